"""The verdict on a run: what its figures show and what they do not, in sentences, with steps to take next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from fedprompt.demo import LIMIT
from fedprompt.errors import plural
from fedprompt.ops.bootstrap import chance_average_precision
from fedprompt.ops.metrics import harmonic_mean
from fedprompt.records.events import IntervalEvent
from fedprompt.records.outcome import stopped_early
from fedprompt.records.run_record import AVERAGED, NATURAL, Run, Score, TrialRecord
from fedprompt.report.collapse import collapse, too_many_labels
from fedprompt.report.decisions import (
    decisions,
    drawn_together,
    majority,
    near_duplicates,
    never_predicted,
    untested_classes,
)
from fedprompt.report.equal_figures import equal_figures
from fedprompt.report.next_steps import Situation, steps, uses_drawings_clip
from fedprompt.report.proposals import is_tuning, proposals
from fedprompt.report.rounds import STILL, ended_early, fewer_rounds, kept_rounds, losses, percent

KNOWN = 0.5  # of the way from chance to 1: from there on, an untrained backbone knows the images
FEWEST_CLIENTS, SHOWN_CLIENTS = 2, 3  # of a sentence about clients without a gain
UNTESTED = (
    "Nothing was tested, so there are no figures: the data set has no test images, or the recipe tests on none "
    "(data.test_fraction, evaluate.test)."
)
PREFERRED = ("hm", NATURAL, "test", "base")  # the column that a verdict is about, the first that a run has


@dataclass(frozen=True)
class Verdict:
    """Sentences about the result, and steps to take, most useful first; both may be empty."""

    sentences: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.sentences)


def verdict(run: Run, folder: str = "") -> Verdict:
    """The verdict on the main trial of a run; empty before it is scored, or ends without.

    `folder` is where the run lies now, if that is not where it began.
    """
    main, column = _judged(run), headline_column(run)
    if main is None or not column:
        return Verdict((UNTESTED,) if run.end is not None and run.end.status == "done" else ())
    sentences = [
        *stopped_early(run),
        _result(run, main, column),
        *_against_reference(run, main, column),
        *_against_others(run, main, column),
        *_best(run, main, column),
        *drawn_together(run),
        *near_duplicates(run),
        *fewer_rounds(run),
        *ended_early(run),
        *kept_rounds(run),
        *equal_figures(run),
        *_unmoved(main),
        *_collapsed(run, main, column),
        *never_predicted(run, main, column),
        *untested_classes(run, main, column),
        *_unknown_images(run, column),
        *_single_class_clients(main),
        *_clients_below(run, main),
    ]
    return Verdict(tuple(sentences), tuple(steps(_situation(run, main, column), proposals(run, folder))))


def headline_column(run: Run) -> str:
    """The column that a verdict is about; empty if the main trial is not scored."""
    main = _judged(run)
    return next((one for one in (*PREFERRED, *run.headlines) if main is not None and one in main.figures), "")


def _judged(run: Run) -> TrialRecord | None:
    """The trial that a verdict is about: the main one, or the last of a run that names none."""
    return run.main or (run.trials[-1] if run.trials else None)


def best_trial(run: Run, column: str) -> TrialRecord | None:
    """The trial with the highest figure, of equals the main one or else one that trains; None without any."""
    scored = [trial for trial in run.trials if column in trial.figures]
    return max(scored, key=lambda one: (one.figures[column], one == run.main, one.trains), default=None)


def introduced(run: Run, trial: TrialRecord) -> Iterator[str]:
    """A trial that is to predict, its figure and rounds; then another that has a higher figure, if it is surely higher.

    "FedVPT, Base 6.9%, round 1 of 30."
    """
    column, budget = headline_column(run), run.budgets.get(trial.name)
    figure = [f"{run.title(column)} {percent(trial.figures[column])}"] if column in trial.figures else []
    number = trial.kept.round if trial.kept else len(trial.rounds)
    planned = budget.wanted if budget and budget.wanted else trial.about.rounds or number
    yield f"{', '.join([trial.label, *figure, *([f'round {number} of {planned}'] if trial.rounds else [])])}."
    best = best_trial(run, column)
    if best is None or best == trial:
        return
    found, turned = run.interval(trial, column, best), run.interval(best, column, trial)
    if (found and _direction(found) < 0) or (turned and _direction(turned) > 0):
        yield f"{best.label} scored higher, {percent(best.figures[column])}: predict with --trial {best.name}."


def _situation(run: Run, main: TrialRecord, column: str) -> Situation:
    found = run.interval(main, column, run.reference) if run.reference else None
    return Situation(
        run,
        best_trial(run, column),
        direction=None if found is None else _direction(found),
        images=found.images if found else 0,
        moved=_moved(main),
        unknown=_is_unknown(run, column),
        foreign=_is_foreign(run, column),
        too_many_labels=(event := decisions(run, main, column)) is not None and too_many_labels(event),
    )


def chance(run: Run, column: str) -> float | None:
    """The figure of random guessing: 1 / classes, or with many labels the expected mAP of a random order of images."""
    if column == "hm":
        parts = [chance(run, one) for one in AVERAGED]
        known = [part for part in parts if part is not None]
        return harmonic_mean(*known) if len(known) == len(AVERAGED) else None
    final = run.trials[0].final(column) if run.trials else ()
    if run.header.metric == "accuracy":
        return fmean(1 / len(score.classes) for score in final) if final and all(s.classes for s in final) else None
    return _chance_precision(run, column, final)


def _chance_precision(run: Run, column: str, final: tuple[Score, ...]) -> float | None:
    event = next((event for event in run.cooccurrence if not event.trial and event.split == column), None)
    images = max((score.num_examples for score in final), default=0)
    if event is None or not images:
        return None
    positives = event.positives or [event.counts[label][label] for label in range(len(event.counts))]
    levels = [chance_average_precision(count, images) for count in positives if count]
    return fmean(levels) if levels else None


def _result(run: Run, main: TrialRecord, column: str) -> str:
    found, guessed = run.interval(main, column), chance(run, column)
    details = []
    if found is not None and found.low is not None and found.high is not None:
        details.append(f"95% interval {percent(found.low)} to {percent(found.high)}, {found.images:,} test images")
    if guessed is not None:
        most = majority(run, main, column)
        always = f", always answering {most[0]} {percent(most[1])}" if most else ""
        details.append(f"random guessing gives {percent(guessed)}{always}")
    note = f" ({'; '.join(details)})" if details else ""
    name = "a harmonic mean of" if column == "hm" else f"{run.title(column)}"
    return f"{main.label} reaches {name} {percent(main.figures[column])}{note}."


def _against_reference(run: Run, main: TrialRecord, column: str) -> Iterator[str]:
    reference = run.reference
    if reference is None or reference == main or column not in reference.figures:
        return
    where = f"{reference.label} ({percent(reference.figures[column])})"
    found = run.interval(main, column, reference)
    if found is None:
        points = 100 * (main.figures[column] - reference.figures[column])
        yield f"That is {points:+.1f} points against {where}; no interval is recorded."
    else:
        yield f"It is {WORDS[_direction(found)]} {where}: {_points(found)}."


def _best(run: Run, main: TrialRecord, column: str) -> Iterator[str]:
    """Which other method has a higher figure than the main one, which `predict` takes."""
    best = best_trial(run, column)
    if best is None or best == main or not main.trains:
        return
    found = run.interval(main, column, best)
    surely = found is not None and _direction(found) < 0
    sure = f"above {main.label} by {'' if surely else 'no '}more than the interval"
    if is_tuning(run):
        yield (
            f"The search chose {main.label} by held-out images, and on the test images {best.label} is higher, "
            f"{run.title(column)} {percent(best.figures[column])}, {sure}. A figure by which one chooses is too high, "
            f"so {main.label} stays the choice unless other test images say the same."
        )
        return
    yield f"The best method is {best.label} with {run.title(column)} {percent(best.figures[column])}, {sure}."


WORDS = {1: "better than", 0: "not distinguishable from", -1: "worse than"}


def _direction(found: IntervalEvent) -> int:
    """1 if a difference is above zero with its whole interval, -1 if below, else 0."""
    if found.low is None or found.high is None:
        return 0
    return int(found.low > 0) - int(found.high < 0)


def _against_others(run: Run, main: TrialRecord, column: str) -> Iterator[str]:
    others = [trial for trial in run.trials if trial not in (main, run.reference)]
    compared = [(trial.label, run.interval(main, column, trial)) for trial in others]
    for sign, word in WORDS.items():
        same = [f"{label} ({_points(found)})" for label, found in compared if found and _direction(found) == sign]
        if same:
            yield f"It is {word} {', '.join(same)}."


def _unmoved(main: TrialRecord) -> Iterator[str]:
    if not _moved(main):
        found = losses(main)
        yield f"The training loss of {main.label} hardly moved: {found[0]:.3f} at first, {found[-1]:.3f} at last."


def _moved(trial: TrialRecord) -> bool:
    """False if the training loss of the last round differs by less than 2% from that of the first."""
    found = losses(trial)
    return len(found) < 2 or abs(found[-1] - found[0]) >= STILL * abs(found[0])


def _collapsed(run: Run, main: TrialRecord, column: str) -> Iterator[str]:
    event = decisions(run, main, column)
    if event is not None and (said := collapse(event)):
        yield f"{main.label} {said}"


def _unknown_images(run: Run, column: str) -> Iterator[str]:
    name = run.header.backbone.name
    if _is_unknown(run, column):
        yield (
            f"Without training, the backbone {name} cannot be told from random guessing here: the interval of "
            f"{run.reference.label if run.reference else name} covers the chance level."
        )
    if _is_foreign(run, column):
        yield LIMIT


def _is_foreign(run: Run, column: str) -> bool:
    """Whether the backbone was trained on drawings, and images are others: it is not half way from chance to all."""
    if not uses_drawings_clip(run):
        return False
    guessed, figure = chance(run, column), run.reference.figures.get(column) if run.reference else None
    return guessed is None or figure is None or (figure - guessed) / (1 - guessed) < KNOWN


def _is_unknown(run: Run, column: str) -> bool:
    """True if the interval of the untrained reference includes the chance level, or lies below it."""
    guessed = chance(run, column)
    found = run.interval(run.reference, column) if run.reference else None
    return guessed is not None and found is not None and found.low is not None and found.low <= guessed


def _single_class_clients(main: TrialRecord) -> Iterator[str]:
    local = main.final("local")
    single = sum(len(score.classes) == 1 for score in local)
    if single:
        yield (
            f"{single} of {len(local)} clients hold images of one class only; their Local figure is 100% with any "
            "method."
        )


def _clients_below(run: Run, main: TrialRecord) -> Iterator[str]:
    """At which clients the Local figure is below the untrained reference's; nothing of fewer than two clients."""
    reference = run.reference
    if reference is None or reference == main or not main.trains:
        return
    before = {score.client: score.value for score in reference.final("local")}
    pairs = [(score, score.value, before.get(score.client)) for score in main.final("local")]
    known = [(score, value, old) for score, value, old in pairs if value is not None and old is not None]
    if len(known) < FEWEST_CLIENTS:
        return
    below = sorted((one for one in known if one[1] < one[2]), key=lambda one: one[1] - one[2])
    title = run.title("local")
    if not below:
        yield f"{title} of {main.label} is below {reference.label} at none of the {len(known)} clients."
        return
    named = [
        f"{s.name} {percent(value)} ({percent(old)}, {plural(s.num_examples, 'image')})" for s, value, old in below
    ]
    more = f", and {len(named) - SHOWN_CLIENTS} more" if len(named) > SHOWN_CLIENTS else ""
    listed = ", ".join(named[:SHOWN_CLIENTS]) + more
    yield f"{title} of {main.label} is below {reference.label} at {len(below)} of {len(known)} clients: {listed}."


def _points(found: IntervalEvent) -> str:
    """ "+3.0 points, interval +1.2 to +4.8"."""
    value, low, high = (100 * (number or 0.0) for number in (found.value, found.low, found.high))
    return f"{value:+.1f} points, interval {low:+.1f} to {high:+.1f}"
