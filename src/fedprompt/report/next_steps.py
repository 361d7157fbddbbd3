"""What to try after a run, most useful first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from fedprompt.config.tuned import recommended
from fedprompt.data.splits import is_drawn
from fedprompt.demo import DEMO
from fedprompt.demo import SOURCES as EMBEDDED
from fedprompt.methods import load, missing
from fedprompt.records.events import BudgetEvent
from fedprompt.records.run_record import Run, TrialRecord
from fedprompt.report.proposals import Proposals, is_tuning, limit

FEW = 100  # test images; below this an interval spans about 20 points
MARGIN = 1.15  # on the time that all rounds need: measuring takes a part, and the machine may be busier
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
