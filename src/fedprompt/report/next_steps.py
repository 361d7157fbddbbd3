"""What to try after a run, most useful first, as commands that are complete."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedprompt.config.tuned import recommended
from fedprompt.demo import DEMO
from fedprompt.demo import SOURCES as EMBEDDED
from fedprompt.records.reading import Run, TrialRecord

FEW = 100  # test images; below this an interval spans about 20 points
MARGIN = 1.15  # on the time that all rounds need: measuring takes a part, and the machine may be busier
REAL_CLIP = "openai/clip-vit-base-patch16"
TEMPLATE = "a satellite photo of a {}."  # an example
MOST_HELD_BACK = 0.4  # share of the images that a step proposes for testing


@dataclass(frozen=True)
class Situation:
    """What a verdict has found: `direction` of the main trial's difference to the reference, None without interval.

    `images` are the test images behind it; `moved` says whether the loss did, and `unknown` whether the backbone cannot
    be told from guessing.
    """

    run: Run
    best: TrialRecord | None
    direction: int | None
    images: int
    moved: bool
    unknown: bool


@dataclass(frozen=True)
class Commands:
    """The commands of a run, with the recipe and the settings that its user gave, and its folder."""

    run: Run
    folder: str = ""

    @property
    def place(self) -> str:
        """The folder of the run; as the report does not know where it lies, "." if no command is recorded."""
        command = self.run.header.command
        return self.folder or (command.folder if command else "") or "."

    def of(self, name: str, *words: str, **changes: str) -> str:
        """`fedprompt NAME RECIPE --set ... WORDS`, where changes replace settings; dots of keys are given as "__"."""
        command = self.run.header.command
        recipe, given = (command.recipe, command.settings) if command else (str(Path(self.place) / "recipe.toml"), ())
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        kept = [one for one in given if one.partition("=")[0].strip() not in changed]
        settings = [*kept, *(f"{key}={value}" for key, value in changed.items())]
        options = [word for setting in settings for word in ("--set", setting)]
        return shlex.join(["fedprompt", name, recipe, *options, *words])

    def predict(self, trial: TrialRecord) -> str:
        """`fedprompt predict RUN IMAGES`, with the trial if it is not the main one."""
        chosen = [] if trial == self.run.main else ["--trial", trial.name]
        return f"{shlex.join(['fedprompt', 'predict', self.place])} IMAGES {shlex.join(chosen)}".strip()


def steps(found: Situation, commands: Commands) -> Iterator[str]:
    """What to try next, in order."""
    run = found.run
    if any(one.rounds < one.wanted for one in run.budgets.values()):
        yield f"Give more time: {commands.of('run', '--minutes', str(minutes_for_all(run)))}"
    yield from _other_backbone(found, commands)
    if not found.moved:
        yield "Raise the learning rate (train.lr) or the number of rounds (train.rounds)."
    if found.direction is not None and found.direction <= 0 and found.moved:
        yield from _other_methods(run, commands)
    if found.direction is not None and found.images < FEW:
        yield _more_test_images(run, found.images, commands)
    if found.direction:
        yield (
            "The interval covers the choice of test images, not that of seeds: "
            f"{commands.of('compare', '--seeds', '1,2,3')}"
        )
    if found.best is not None:
        yield f"Predict with {found.best.label}: {commands.predict(found.best)}"


def _other_backbone(found: Situation, commands: Commands) -> Iterator[str]:
    if on_drawings(found.run):
        fetched = commands.of("run", **{"backbone__path": "clip-b16"})
        yield f"Take a CLIP that knows photographs: fedprompt backbone fetch {REAL_CLIP} clip-b16, then {fetched}"
    elif found.unknown:
        yield (
            "Give class names in plain English, and a template that says what the images are: "
            f"{commands.of('run', data__template=TEMPLATE)}. Or try a larger CLIP."
        )


def on_drawings(run: Run) -> bool:
    """Whether the embedded CLIP, which was trained on drawings, has been used on images that are not embedded."""
    data = run.header.recipe.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    return run.header.backbone.name == DEMO and isinstance(source, str) and source not in EMBEDDED


def minutes_for_all(run: Run) -> int:
    """Whole minutes into which all rounds of all methods fit, as far as the measurement says."""
    return math.ceil(MARGIN * sum(one.needed for one in run.budgets.values()) / 60)


def _other_methods(run: Run, commands: Commands) -> Iterator[str]:
    """Methods that have not run; if all that are worth it have, other learning rates, unless these were searched."""
    kind: Literal["single", "multi"] = "multi" if run.header.data.kind == "multi" else "single"
    ran = [trial.about.method or trial.name for trial in run.trials]
    untried = [name for name in recommended(kind) if name not in ran]
    if untried:
        yield f"Try methods that have not run, on held-out training images: {_tune(commands, untried)}"
    elif run.header.command is None or run.header.command.name != "tune":
        trained = [trial.name for trial in run.trials if trial.trains]
        yield f"Search learning rates on held-out training images: {_tune(commands, trained)}"


def _tune(commands: Commands, names: Sequence[str]) -> str:
    return commands.of("tune", "--method", ",".join(names), "--minutes", "30")


def _more_test_images(run: Run, images: int, commands: Commands) -> str:
    data = run.header.recipe.get("data")
    share = data.get("test_fraction") if isinstance(data, dict) else None
    few = f"{images} test images say little about small differences"
    if run.header.data.origins.get("splits", "").startswith("drawn") and isinstance(share, int | float):
        if share < MOST_HELD_BACK:
            return f"{few}; hold more back: {commands.of('run', data__test_fraction=str(MOST_HELD_BACK))}"
        return f"{few}; collect more images."
    return f"{few}; add images to the test part of your data."
