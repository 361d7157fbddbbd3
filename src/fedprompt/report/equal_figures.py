"""Trials of a run with equal figures, and whether they also predict the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedprompt.errors import series
from fedprompt.records.run_record import Run, TrialRecord


def equal_figures(run: Run) -> Iterator[str]:
    """A sentence on each group of trials whose figures are equal in all columns: whether predictions are, too."""
    groups: dict[tuple[tuple[str, float], ...], list[TrialRecord]] = {}
    for trial in run.trials:
        if trial.figures:
            groups.setdefault(tuple(sorted(trial.figures.items())), []).append(trial)
    for group in groups.values():
        if len(group) > 1:
            yield _sentence(run, group)


def _sentence(run: Run, group: Sequence[TrialRecord]) -> str:
    names = series(trial.label for trial in group)
    one = next((trial for trial in group if trial in (run.reference, run.main)), group[0])
    others = [trial for trial in group if trial != one]
    known = {other.name: _changed(run, one, other) for other in others}
    counts = [found for found in known.values() if found is not None]
    if len(counts) == len(others) and not any(changed for changed, _ in counts):
        why = "training changed no prediction" if not one.trains else "they predict the same"
        return f"The figures of {names} are identical: {why}."
    differing = [
        f"{changed:,} of {images:,}{f' ({other.label})' if len(others) > 1 else ''}"
        for other in others
        if (found := known[other.name]) is not None
        for changed, images in (found,)
        if changed
    ]
    if not differing:
        return f"The figures of {names} are equal; their predictions have not been compared."
    if run.header.metric == "accuracy":
        return f"{names} have the same accuracy, though {series(differing)} predictions differ."
    return f"{names} have the same figures, though the scores of {series(differing)} images differ."


def _changed(run: Run, first: TrialRecord, second: TrialRecord) -> tuple[int, int] | None:
    """Images that two trials predict differently, and all of them, over the columns with images of their own."""
    pair = ((first.name, second.name), (second.name, first.name))
    found = {
        event.column: (event.changed, event.images)
        for event in run.intervals
        if (event.trial, event.against) in pair and event.changed is not None
    }
    return (sum(one for one, _ in found.values()), sum(one for _, one in found.values())) if found else None
