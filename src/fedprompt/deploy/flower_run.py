"""What `flwr run` starts: the recipe of an app's configuration, progress in Flower's log, and runs without sites."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from fedprompt.config.recipe import find_recipe, parse_recipe
from fedprompt.errors import UserError
from fedprompt.experiments import run as runs
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.plan import resolve
from fedprompt.runtimes.flower.apps import LOG, Settings
from fedprompt.text_files import read_unicode


def recipe_text(settings: Settings) -> str:
    """An app's recipe as TOML: `recipe` is text, a file or a name, and `set` changes keys of it."""
    recipe = str(settings["recipe"])
    if not recipe:
        raise UserError(
            "The app names no recipe. Give one, as in: flwr run APP --run-config 'recipe=\"/path/to/lungs.toml\"'; or "
            "write it into [tool.flwr.app.config] of the app's pyproject.toml."
        )
    text = recipe if "\n" in recipe else read_unicode(find_recipe(recipe))
    changes = shlex.split(str(settings.get("set", "")))
    return parse_recipe(text, changes).to_toml(defaults=False) if changes else text


class FlowerLog(RunCallbacks):
    """Progress as lines of Flower's log, which `flwr run --stream` and `flwr log` show."""

    def __init__(self) -> None:
        self._log = logging.getLogger(LOG)
        self._trial, self._rounds = "", 0

    def on_step(self, text: str) -> None:
        """Log the step."""
        self._log.info("%s", text)

    def on_message(self, text: str) -> None:
        """Log the text."""
        self._log.info("%s", text)

    def on_warning(self, text: str) -> None:
        """Log the warning."""
        self._log.warning("%s", text)

    def on_trial(self, name: str, rounds: int, done: int) -> None:
        """Remember the trial for its rounds."""
        self._trial, self._rounds = name, rounds

    def on_round(self, number: int, loss: float | None) -> None:
        """Log the round's loss."""
        shown = "no update" if loss is None else f"loss {loss:.4f}"
        self._log.info("%s: round %d/%d, %s", self._trial, number, self._rounds, shown)


def simulate(text: str, out: str, *, callbacks: RunCallbacks, accept_changes: bool = False) -> Path:
    """Simulate a recipe's clients in this process, into `out` or a new folder below `runs`; returns the report.

    Flower's virtual SuperNodes are not used: they hold no images, and the recipe says who the clients are. If `out`
    holds a run, it is resumed.
    """
    plan = resolve(parse_recipe(text))
    folder = (Path(out) if out else runs.free_folder(Path("runs") / plan.recipe.name)).resolve()
    callbacks.on_message("fedprompt simulates the clients of the recipe in this process, without Flower's SuperNodes.")
    if (folder / "run.jsonl").exists():
        report = runs.resume(folder, callbacks=callbacks, accept_changes=accept_changes)
    else:
        report = runs.start(plan, folder, callbacks=callbacks)
    callbacks.on_message(f"The report of the run is {report}")
    return report
