"""How steps after a run are written: as commands of a shell that are complete, or as calls in Python."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedprompt.config.method_files import method_files
from fedprompt.config.outside_code import is_outside
from fedprompt.records.run_record import Run, TrialRecord
from fedprompt.text_files import json_text

REAL_CLIP = "openai/clip-vit-base-patch16"
TEMPLATE = "a satellite photo of a {}."  # an example
SEARCH_MINUTES = 30  # proposed for a search of learning rates, at least


class Proposals(Protocol):
    """How the steps of a verdict are written: as commands of a shell or as calls in Python."""

    def more_time(self, minutes: int) -> str:
        """Run again with so many minutes."""
        ...

    def all_rounds(self, rounds: int) -> str:
        """Train so many rounds with the settings that a tuning has found."""
        ...

    def other_clip(self) -> str:
        """Run again with a CLIP that was trained on photographs."""
        ...

    def other_template(self) -> str:
        """Run again with a template that says what the images are."""
        ...

    def more_tests(self, share: float) -> str:
        """Run again with this share of the images held back for testing."""
        ...

    def names_together(self) -> str:
        """Run again with images of the same file name in one split."""
        ...

    def near_duplicates(self) -> str:
        """List images that look almost like a training image."""
        ...

    def evaluate(self, key: str, value: str) -> str:
        """Run again with another value of a key of [evaluate]."""
        ...

    def search(self, methods: Sequence[str]) -> str:
        """Search settings of these methods."""
        ...

    def seeds(self) -> str:
        """Run with several seeds."""
        ...

    def predict(self, trial: TrialRecord) -> str:
        """Predict with a trial's adapter."""
        ...

    def resume(self) -> str:
        """Go on with a run that stopped; empty if it cannot."""
        ...


def proposals(run: Run, folder: str = "") -> Proposals:
    """What proposes steps in the words of whoever began the run; `folder` is where it lies now, if not there."""
    command = run.header.command
    return Calls(run, folder) if command is not None and command.python else Commands(run, folder)


@dataclass(frozen=True)
class Commands:
    """The commands of a run, with the recipe and the settings that its user gave, and its folder.

    After a tuning they train with the settings that it has found, of which it has written a recipe. Where the images or
    the backbone are others than the search had, they search again.
    """

    run: Run
    folder: str = ""

    @property
    def place(self) -> str:
        """The folder of the run; as the report does not know where it lies, "." if no command is recorded."""
        command = self.run.header.command
        return self.folder or (command.folder if command else "") or "."

    def more_time(self, minutes: int) -> str:
        """`fedprompt run RECIPE --minutes N`."""
        return self._of("run", "--minutes", str(minutes))

    def all_rounds(self, rounds: int) -> str:
        """`fedprompt run OUT/best.toml --set train.rounds=...`."""
        return self._again(train__rounds=str(rounds))

    def other_clip(self) -> str:
        """The command that fetches a backbone, and the one that runs with it."""
        again = self._anew(backbone__path="clip-b16")
        return f"fedprompt backbone fetch {REAL_CLIP} clip-b16 (on a machine with a network), then {again}"

    def other_template(self) -> str:
        """`fedprompt run RECIPE --set data.template=...`."""
        return self._again(data__template=TEMPLATE)

    def more_tests(self, share: float) -> str:
        """`fedprompt run RECIPE --set data.test_fraction=...`."""
        return self._anew(data__test_fraction=str(share))

    def names_together(self) -> str:
        """`fedprompt run RECIPE --set data.names_together=true`."""
        return self._anew(data__names_together="true")

    def near_duplicates(self) -> str:
        """`fedprompt check RECIPE --json`."""
        return self._of("check", "--json")

    def evaluate(self, key: str, value: str) -> str:
        """`fedprompt run RECIPE --set evaluate.KEY=...`."""
        return self._again(**{f"evaluate__{key}": value})

    def search(self, methods: Sequence[str]) -> str:
        """`fedprompt tune RECIPE --method ...`."""
        minutes = max(SEARCH_MINUTES, limit(self.run))  # a search needs more than a run
        return self._of("tune", "--method", ",".join(methods), "--minutes", f"{minutes:g}", *self._beside)

    def seeds(self) -> str:
        """`fedprompt compare RECIPE --seeds ...`."""
        seeds, given = ("--seeds", "1,2,3"), limit(self.run)
        if self._best:
            return _command("compare", self._best, (), seeds, {})
        return self._of("compare", *seeds, **({"minutes": f"{given:g}"} if given else {}))

    def predict(self, trial: TrialRecord) -> str:
        """`fedprompt predict RUN IMAGES`, with the trial if it is not the main one."""
        chosen = [] if trial == self.run.main else ["--trial", trial.name]
        return f"{shlex.join(['fedprompt', 'predict', self.place])} IMAGES {shlex.join(chosen)}".strip()

    def resume(self) -> str:
        """`fedprompt resume RUN`."""
        return shlex.join(["fedprompt", "resume", self.place])

    @property
    def _minutes(self) -> tuple[str, ...]:
        """The time that the user gave, as words of a command; none if there was no limit."""
        given = limit(self.run)
        return ("--minutes", f"{given:g}") if given else ()

    @property
    def _search(self) -> str:
        """The folder of the search of which the run is the final one; empty for another run."""
        return os.path.normpath(Path(self.place) / os.pardir) if is_tuning(self.run) else ""

    @property
    def _best(self) -> str:
        """The recipe that a tuning has written, with the user's settings and those that it found; empty without one."""
        return str(Path(self._search) / "best.toml") if self._search else ""

    @property
    def _beside(self) -> tuple[str, ...]:
        """The folder of a search after this one, whose own may be the default; none if this run is of no search."""
        return ("--out", f"{self._search}-2") if self._search else ()

    def _again(self, **changes: str) -> str:
        """The run again with changes; after a tuning with what it found, in the rounds that fitted."""
        if self._best:
            return _command("run", self._best, (), (), changes)
        return self._of("run", *self._minutes, **changes)

    def _anew(self, **changes: str) -> str:
        """The run again with changes; after a tuning the whole search, which the changes may lead elsewhere."""
        if not self._search:
            return self._of("run", *self._minutes, **changes)
        trained = ",".join(trial.name for trial in self.run.trials if trial.trains)
        return self._of("tune", "--method", trained, *self._minutes, *self._beside, **changes)

    def _of(self, name: str, *words: str, **changes: str) -> str:
        """`fedprompt NAME RECIPE --set ... WORDS` with the recipe and the settings that the user gave."""
        command = self.run.header.command
        recipe, given = (command.recipe, command.settings) if command else (str(Path(self.place) / "recipe.toml"), ())
        return _command(name, recipe, given, words, changes)


def _command(name: str, recipe: str, given: Sequence[str], words: Sequence[str], changes: Mapping[str, str]) -> str:
    """`fedprompt NAME RECIPE --set ... WORDS`, where changes replace settings; dots of keys are given as "__"."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    kept = [one for one in given if one.partition("=")[0].strip() not in changed]
    settings = [*kept, *(f"{key}={value}" for key, value in changed.items())]
    options = [word for setting in settings for word in ("--set", setting)]
    return shlex.join(["fedprompt", name, recipe, *options, *words])


@dataclass(frozen=True)
class Calls:
    """Calls of the Python API; `...` stands for what the call that began the run had."""

    run: Run
    folder: str = ""

    def more_time(self, minutes: int) -> str:
        """The setting of the time."""
        return f'settings={{"minutes": {minutes}}}'

    def all_rounds(self, rounds: int) -> str:
        """A longer `fp.tune(...)`."""
        return f"fp.tune(..., minutes=...) with more minutes, or fp.train(..., {self._found}rounds={rounds})"

    def other_clip(self) -> str:
        """`fp.load_clip(...)`."""
        return f'clip = fp.load_clip("{REAL_CLIP}")'

    def other_template(self) -> str:
        """`fp.load_dataset(..., template=...)`."""
        return f'fp.load_dataset(..., template="{TEMPLATE}")'

    def more_tests(self, share: float) -> str:
        """`fp.load_dataset(..., test_fraction=...)`."""
        return f"fp.load_dataset(..., test_fraction={share})"

    def names_together(self) -> str:
        """`fp.load_dataset(..., names_together=True)`."""
        return "fp.load_dataset(..., names_together=True)"

    def near_duplicates(self) -> str:
        """`fp.check(data)`."""
        return "fp.check(data), whose rows data.without(rows) leaves out"

    def evaluate(self, key: str, value: str) -> str:
        """`fp.train(..., settings={"evaluate.KEY": ...})`."""
        return f'fp.train(..., {self._found}settings={{"evaluate.{key}": {value!r}}})'

    def search(self, methods: Sequence[str]) -> str:
        """`fp.tune(...)`."""
        main, *others = methods
        beside = f", compare={json_text(others)}" if others else ""
        return f'fp.tune("{main}", clip, data, clients{beside}, minutes={SEARCH_MINUTES})'

    def seeds(self) -> str:
        """`fp.compare([...])`."""
        return f"fp.compare([fp.train(..., {self._found}seed=seed) for seed in (1, 2, 3)])"

    def predict(self, trial: TrialRecord) -> str:
        """`run.adapter().predict(...)`, with the trial if it is not the main one."""
        return f"run.adapter({'' if trial == self.run.main else repr(trial.name)}).predict(images)"

    def resume(self) -> str:
        """`fp.resume(...)`, if the run has a folder of its own."""
        command = self.run.header.command
        place = self.folder or (command.folder if command else "")
        return f"fp.resume({place!r}, clip=clip, data=data, clients=clients{self._classes})" if place else ""

    @property
    def _classes(self) -> str:
        """The classes of methods that no module defines, as an argument; empty if there are none."""
        main, compare = (self.run.header.recipe.get(key) for key in ("method", "compare"))
        tables = [main, *(compare if isinstance(compare, list) else ())]
        names = [str(table["name"]) for table in tables if isinstance(table, dict) and "name" in table]
        own = [name for name in dict.fromkeys(names) if name not in method_files() and not is_outside(name)]
        given = ", ".join(own)
        return f", method={given if len(own) == 1 else f'[{given}]'}" if own else ""

    @property
    def _found(self) -> str:
        """The settings that a tuning has found for the main method, as arguments; empty for another run."""
        main = self.run.main
        return f"**tuned.settings[{json_text(main.name)}], " if is_tuning(self.run) and main is not None else ""


def is_tuning(run: Run) -> bool:
    """Whether the run is the final one of a search for settings."""
    return run.header.command is not None and run.header.command.name == "tune"


def limit(run: Run) -> float:
    """The minutes that the user gave; 0 if there was no limit."""
    command = run.header.command
    return command.minutes or 0 if command is not None else 0
