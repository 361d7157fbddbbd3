"""What to try after a run, most useful first, as commands that are complete or as calls in Python."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal, Protocol

from fedprompt.config.method_files import method_files
from fedprompt.config.outside_code import is_outside
from fedprompt.config.tuned import recommended
from fedprompt.data.splits import is_drawn
from fedprompt.demo import DEMO
from fedprompt.demo import SOURCES as EMBEDDED
from fedprompt.methods import load, missing
from fedprompt.records.events import BudgetEvent
from fedprompt.records.reading import Run, TrialRecord
from fedprompt.text_files import json_text

FEW = 100  # test images; below this an interval spans about 20 points
MARGIN = 1.15  # on the time that all rounds need: measuring takes a part, and the machine may be busier
REAL_CLIP = "openai/clip-vit-base-patch16"
TEMPLATE = "a satellite photo of a {}."  # an example
SEARCH_MINUTES = 30  # proposed for a search of learning rates, at least
MOST_HELD_BACK = 0.4  # share of the images that a step proposes for testing


@dataclass(frozen=True)
class Situation:
    """What a verdict has found: `direction` of the main trial's difference to the reference, None without interval.

    `images` are the test images behind it; `moved` says whether the loss did, `unknown` whether the backbone cannot be
    told from guessing, `foreign` whether it was trained on images of another kind, and `too_many_labels` whether
    clearly more labels are predicted than there are.
    """

    run: Run
    best: TrialRecord | None
    direction: int | None
    images: int
    moved: bool
    unknown: bool
    foreign: bool
    too_many_labels: bool = False


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


def steps(found: Situation, commands: Proposals) -> Iterator[str]:
    """What to try next, in order."""
    run = found.run
    if run.stopped and (going_on := commands.resume()):
        yield f"Go on: {going_on}"
    yield from _near_duplicates(run, commands)
    yield from _more_rounds(run, commands)
    yield from _other_backbone(found, commands)
    if found.too_many_labels:
        yield from _other_threshold(run, commands)
    if not found.moved:
        yield "Raise the learning rate (train.lr) or the number of rounds (train.rounds)."
    if found.direction is not None and found.direction <= 0 and found.moved:
        yield from _other_methods(run, commands)
    if found.direction is not None and found.images < FEW:
        yield _more_test_images(run, found.images, commands)
    if found.direction:
        yield f"The interval covers the choice of test images, not that of seeds: {commands.seeds()}"
    # The choice of a search is not made again by the test images.
    if (chosen := run.main if is_tuning(run) else found.best) is not None:
        yield f"Predict with {chosen.label}: {commands.predict(chosen)}"


def _near_duplicates(run: Run, commands: Proposals) -> Iterator[str]:
    """How to keep test images that look like training images out of the test part."""
    data, table = run.header.data, run.header.recipe.get("data")
    options = table if isinstance(table, dict) else {}
    named = 2 * data.near_of_same_name >= max(1, data.near_duplicates)
    if named and options.get("names_together") is False and is_drawn(run.header.data.origins):
        yield f"Keep files of one name, such as a photograph in several domains, together: {commands.names_together()}"
    elif data.near_duplicates:
        yield (
            "Remove images that show the same as another one, or put them into the same split; what lists them: "
            f"{commands.near_duplicates()}"
        )


def _more_rounds(run: Run, commands: Proposals) -> Iterator[str]:
    if any(one.rounds < one.wanted for one in run.budgets.values()):
        minutes, given = minutes_for_all(run), limit(run)
        if minutes > given:
            yield f"Give more time: {commands.more_time(minutes)}"
        else:
            yield f"Run it again on a quiet machine, where all rounds fit: {commands.more_time(math.ceil(given))}"
    if cut_short(run) and (command := run.header.command) is not None:
        yield f"Train all rounds with the settings that were found: {commands.all_rounds(command.rounds)}"


def _other_backbone(found: Situation, commands: Proposals) -> Iterator[str]:
    if found.foreign:
        yield f"Take a CLIP that was trained on images of all kinds: {commands.other_clip()}"
    elif found.unknown:
        yield (
            "Give class names in plain English, and a template that says what the images are: "
            f"{commands.other_template()}. Or try a larger CLIP."
        )


def _other_threshold(run: Run, commands: Proposals) -> Iterator[str]:
    evaluate = run.header.recipe.get("evaluate")
    if isinstance(evaluate, dict) and evaluate.get("threshold", "best_f1") == "best_f1":
        again = commands.evaluate("threshold", "near_count")
        yield f"Fit the threshold so that about as many labels are predicted as there are: {again}"
    else:
        yield f"Hold out more training images, on which the threshold is fitted: {commands.evaluate('held_out', '0.3')}"


def uses_drawings_clip(run: Run) -> bool:
    """Whether the embedded CLIP, which was trained on drawings, has been used on images that are not embedded."""
    data = run.header.recipe.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    return run.header.backbone.name == DEMO and isinstance(source, str) and source not in EMBEDDED


def is_tuning(run: Run) -> bool:
    """Whether the run is the final one of a search for settings."""
    return run.header.command is not None and run.header.command.name == "tune"


def limit(run: Run) -> float:
    """The minutes that the user gave; 0 if there was no limit."""
    command = run.header.command
    return command.minutes or 0 if command is not None else 0


def minutes_for_all(run: Run) -> int:
    """Whole minutes into which all rounds of all methods fit, as far as the measurement says."""
    trials = {trial.name: trial for trial in run.trials}
    needed = [_seconds_needed(budget, trials.get(name)) for name, budget in run.budgets.items()]
    return math.ceil(MARGIN * sum(needed) / 60)


def _seconds_needed(budget: BudgetEvent, trial: TrialRecord | None) -> float:
    """The seconds of all rounds of a trial: from those that it took, else as they were estimated before."""
    taken = trial.round_seconds if trial is not None else ()
    if trial is None or trial.seconds is None or not taken:
        return budget.needed
    later = fmean(taken[1:] or taken)  # the first one opens images
    return trial.seconds + max(0, budget.wanted - len(taken)) * later


def cut_short(run: Run) -> list[TrialRecord]:
    """The trials of a tuning's final run that have fewer rounds than the recipe, for want of time."""
    command, train = run.header.command, run.header.recipe.get("train")
    rounds = train.get("rounds") if isinstance(train, dict) else None
    if command is None or not command.rounds:
        return []
    return [trial for trial in run.trials if trial.rounds and trial.about.rounds == rounds]


def _other_methods(run: Run, commands: Proposals) -> Iterator[str]:
    """Methods that can run here and have not; without any, other rates unless they were searched."""
    kind: Literal["single", "multi"] = "multi" if run.header.data.kind == "multi" else "single"
    ran = [trial.about.method or trial.name for trial in run.trials]
    known = [name for name in recommended(kind) if not missing(load(name))]  # whose packages are installed
    untried = [name for name in known if name not in (*ran, *run.header.backbone.refused)]
    if untried:
        yield f"Try methods that have not run, on held-out training images: {commands.search(untried)}"
    elif not is_tuning(run):
        trained = [trial.name for trial in run.trials if trial.trains]
        yield f"Search learning rates on held-out training images: {commands.search(trained)}"


def _more_test_images(run: Run, images: int, commands: Proposals) -> str:
    data = run.header.recipe.get("data")
    share = data.get("test_fraction") if isinstance(data, dict) else None
    few = f"{images} test images say little about small differences"
    if is_drawn(run.header.data.origins) and isinstance(share, int | float):
        if share < MOST_HELD_BACK:
            return f"{few}; hold more back: {commands.more_tests(MOST_HELD_BACK)}"
        return f"{few}; collect more images."
    return f"{few}; add images to the test part of your data."
