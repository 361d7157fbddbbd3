"""The verdict on a run: what its figures show and what they do not, and what to try next, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from fedprompt.errors import plural
from fedprompt.ops.metrics import harmonic_mean
from fedprompt.records.events import IntervalEvent, KeptEvent
from fedprompt.records.reading import AVERAGED, NATURAL, TITLES, Run, Score, TrialRecord

FEW = 100  # test images; below this an interval spans about 20 points
STILL = 0.02  # relative change of the training loss below which it has hardly moved
PREFERRED = ("hm", NATURAL, "test", "base")  # the column that a verdict is about, the first that a run has


@dataclass(frozen=True)
class Verdict:
    """Sentences about the result, and steps to take, most useful first; both may be empty."""

    sentences: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.sentences)


def verdict(run: Run) -> Verdict:
    """The verdict on the main trial of a run; empty before it is scored."""
    main = run.main or (run.trials[-1] if run.trials else None)
    column = next((one for one in (*PREFERRED, *run.headlines) if main is not None and one in main.figures), "")
    if main is None or not column:
        return Verdict()
    sentences = [
        _result(run, main, column),
        *_against_reference(run, main, column),
        *_against_others(run, main, column),
        *kept_rounds(run),
        *_identical(run),
        *_unmoved(main),
        *_unknown_images(run, column),
        *_single_class_clients(main),
    ]
    return Verdict(tuple(sentences), tuple(_steps(run, main, column)))


def chance(run: Run, column: str) -> float | None:
    """The figure of random guessing: 1 / classes, or with many labels the mean share of images that have a label."""
    if column == "hm":
        parts = [chance(run, one) for one in AVERAGED]
        known = [part for part in parts if part is not None]
        return harmonic_mean(*known) if len(known) == len(AVERAGED) else None
    final = run.trials[0].final(column) if run.trials else ()
    if run.header.metric == "accuracy":
        return fmean(1 / len(score.classes) for score in final) if final and all(s.classes for s in final) else None
    return _mean_prevalence(run, column, final)


def _mean_prevalence(run: Run, column: str, final: tuple[Score, ...]) -> float | None:
    event = next((event for event in run.cooccurrence if not event.trial and event.split == column), None)
    images = max((score.num_examples for score in final), default=0)
    if event is None or not images:
        return None
    positives = event.positives or [event.counts[label][label] for label in range(len(event.counts))]
    shares = [count / images for count in positives if count]
    return fmean(shares) if shares else None


def _result(run: Run, main: TrialRecord, column: str) -> str:
    found, guessed = run.interval(main, column), chance(run, column)
    details = []
    if found is not None and found.low is not None and found.high is not None:
        details.append(f"95% interval {_percent(found.low)} to {_percent(found.high)}, {found.images:,} test images")
    if guessed is not None:
        details.append(f"random guessing gives {_percent(guessed)}")
    note = f" ({'; '.join(details)})" if details else ""
    name = "a harmonic mean of" if column == "hm" else f"{run.title(column)}"
    return f"{main.label} reaches {name} {_percent(main.figures[column])}{note}."


def _against_reference(run: Run, main: TrialRecord, column: str) -> Iterator[str]:
    reference = run.reference
    if reference is None or reference == main or column not in reference.figures:
        return
    where = f"{reference.label} ({_percent(reference.figures[column])})"
    found = run.interval(main, column, reference)
    if found is None:
        points = 100 * (main.figures[column] - reference.figures[column])
        yield f"That is {points:+.1f} points against {where}; no interval is recorded."
    else:
        yield f"It is {WORDS[_direction(found)]} {where}: {_points(found)}."


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


def _identical(run: Run) -> Iterator[str]:
    """Trials whose figures are the same in all columns."""
    groups: dict[tuple[tuple[str, float], ...], list[str]] = {}
    for trial in run.trials:
        if trial.figures:
            groups.setdefault(tuple(sorted(trial.figures.items())), []).append(trial.label)
    for labels in groups.values():
        if len(labels) > 1:
            yield f"The figures of {' and '.join(labels)} are identical: training changed no prediction."


def kept_rounds(run: Run) -> Iterator[str]:
    """Which round each trial keeps and why, where rounds are chosen by held-out images."""
    chosen = [(trial, trial.kept) for trial in run.trials if trial.kept is not None]
    if not chosen:
        return
    first = chosen[0][1]
    said = [f"{trial.label} {_kept_round(trial, kept)}" for trial, kept in chosen]
    yield (
        f"The round with the best {metric_title(run, first.metric)} on held-out images is kept "
        f"({first.images:,} images): {'; '.join(said)}."
    )


def metric_title(run: Run, metric: str) -> str:
    """A metric of held-out images as tables spell it: "HM", "mAP", "macro F1"."""
    names = {"mean_average_precision": "mAP", "of1": "OF1", "cf1_macro": "CF1", "macro_f1": "macro F1"}
    return run.title(metric) if metric in TITLES else names.get(metric, metric.replace("_", " "))


def _kept_round(trial: TrialRecord, kept: KeptEvent) -> str:
    """ "round 12 of 20 (91.2%; 88.0% after the last round)"."""
    where = f"round {kept.round}" if kept.round else "the state before training, which no round improved"
    planned = f" of {trial.about.rounds}" if kept.round and trial.about.rounds else ""
    details = [] if kept.value is None else [_percent(kept.value)]
    stopped = f", where training ended: {plural(kept.patience, 'scoring')} in a row had no better one"
    if kept.last_value is not None and kept.last != kept.round:
        details.append(f"{_percent(kept.last_value)} after round {kept.last}{stopped * bool(kept.patience)}")
    return f"{where}{planned} ({'; '.join(details)})" if details else f"{where}{planned}"


def _unmoved(main: TrialRecord) -> Iterator[str]:
    if not _moved(main):
        losses = _losses(main)
        yield f"The training loss of {main.label} hardly moved: {losses[0]:.3f} at first, {losses[-1]:.3f} at last."


def _moved(trial: TrialRecord) -> bool:
    """False if the training loss of the last round differs by less than 2% from that of the first."""
    losses = _losses(trial)
    return len(losses) < 2 or abs(losses[-1] - losses[0]) >= STILL * abs(losses[0])


def _losses(trial: TrialRecord) -> list[float]:
    return [event.loss for event in trial.rounds if event.loss is not None]


def _unknown_images(run: Run, column: str) -> Iterator[str]:
    if _is_unknown(run, column):
        name = run.header.backbone.name
        yield (
            f"Without training the backbone {name} is no better than random guessing here: it does not know such "
            "images or such class names."
        )


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


def _steps(run: Run, main: TrialRecord, column: str) -> Iterator[str]:
    """What to try next, in order."""
    found = run.interval(main, column, run.reference) if run.reference else None
    if _is_unknown(run, column):
        yield (
            "Take a backbone that knows photographs: --set backbone.path=openai/clip-vit-base-patch16, or the folder "
            "of a CLIP. The embedded demo CLIP was trained on drawings."
            if run.header.backbone.name == "demo"
            else "Give class names in plain English, and a template that says what the images are "
            '(data.template = "a satellite photo of {}."), or try a larger CLIP.'
        )
    if not _moved(main):
        yield "Raise the learning rate (train.lr) or the number of rounds (train.rounds)."
    if found is not None and _direction(found) <= 0 and _moved(main):
        yield (
            "Try other methods and learning rates on held-out training images: fedprompt tune RECIPE --method "
            "fedvpt,promptfl --minutes 30. Which method suits which images is on docs/choosing.md."
        )
    if found is not None and found.images < FEW:
        yield f"Hold more images back for testing: {found.images} say little about small differences."
    if found is not None and _direction(found):
        yield (
            "The interval covers the choice of test images, not that of seeds: fedprompt compare RECIPE --seeds 1,2,3."
        )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _points(found: IntervalEvent) -> str:
    """ "+3.0 points, interval +1.2 to +4.8"."""
    value, low, high = (100 * (number or 0.0) for number in (found.value, found.low, found.high))
    return f"{value:+.1f} points, interval {low:+.1f} to {high:+.1f}"
