"""Results that a finished run lacks: no round of a trial counted, training changed nothing, or nothing was tested."""

from __future__ import annotations

from collections.abc import Iterator

from fedprompt.errors import series
from fedprompt.records.events import RoundEvent
from fedprompt.records.run_record import Run, TrialRecord


def missing_results(run: Run) -> tuple[str, ...]:
    """A sentence for each result that a finished run lacks; none for a run that trained and tested, or has not ended.

    Without a sentence, every trial that trains had a round that counted and ended with other tensors than it began
    with, and the run has at least one figure.
    """
    if run.end is None or run.end.status != "done":
        return ()
    return (*(sentence for trial in run.trials for sentence in _untrained(trial)), *_untested(run))


def is_untrained(trial: TrialRecord) -> bool:
    """Whether a finished trial was to train, but no round counted or no tensor changed."""
    return any(_untrained(trial))


def shown_name(trial: TrialRecord) -> str:
    """The label of a trial in tables of results, which says so if the trial is not trained."""
    return f"{trial.label} (not trained)" if is_untrained(trial) else trial.label


def _untrained(trial: TrialRecord) -> Iterator[str]:
    about, planned = trial.about, trial.about.rounds or 0
    if about.status != "done" or not planned:
        return
    if not any(map(_counted, trial.rounds)):
        rounds = f"none of the {planned} rounds counted" if planned > 1 else "its only round did not count"
        yield f"{trial.label} is not trained: {rounds}{_reason(trial)}. Its figures are those of the untrained method."
    elif about.unchanged:
        yield (
            f"{trial.label} is not trained: {len(trial.rounds)} round{'s' * (len(trial.rounds) != 1)} changed no "
            "tensor, to the last bit. Its figures are those of the untrained method; raise the learning rate."
        )


def _counted(event: RoundEvent) -> bool:
    """Whether an update was used; with distributed noise clients send no loss, but they do send updates."""
    return not event.skipped and (event.loss is not None or bool(event.bytes_up.keys() - event.failed.keys()))


def _reason(trial: TrialRecord) -> str:
    """Why the last round did not count, as far as the records say."""
    if not trial.rounds:
        return ", for none began"
    last = trial.rounds[-1]
    found = [last.skipped] if last.skipped else [f"client {client}: {why}" for client, why in last.failed.items()]
    return f" ({found[0].rstrip('.')})" if found else " (no client sent an update)"


def _untested(run: Run) -> Iterator[str]:
    scores = [score for trial in run.trials for score in trial.scores]
    if any(trial.validations for trial in run.trials) and not scores:
        return  # a search for settings, which leaves the test images unseen
    withheld = sorted(name for name, said in run.scores_of_sites.items() if said == "withheld")
    if not any(score.num_examples for score in scores) and withheld:
        yield (
            f"Nothing is tested: {', '.join(withheld)} withhold{'s' * (len(withheld) == 1)} the scores of test images, "
            "as the policy there says, so this run has no figure. Test it with images that the server has: name their "
            "folder as data.test."
        )
    elif not any(score.num_examples for score in scores):
        yield (
            "Nothing is tested: there was no test image, so this run has no figure. Give the data set a test part, or "
            "a share of its images to test with."
        )
    elif all(score.value is None for score in scores if not score.measure):  # a wrong decision has figures of its own
        yield "Nothing is measured: no test set has a label that is known and positive, so this run has no figure."


def stopped_early(run: Run) -> Iterator[str]:
    """Where a run was interrupted or failed, and which of its methods have not begun; nothing if it did not."""
    if not run.stopped:
        return
    cut = [
        f"{trial.label} after round {len(trial.rounds)} of {trial.about.rounds}"
        for trial in run.trials
        if trial.about.status == run.stopped and trial.about.rounds
    ]
    left = [sentence.removesuffix(".") for sentence in not_begun(run)]
    how = "was interrupted" if run.stopped == "interrupted" else "ended with an error"
    yield f"The run {how}: {'; '.join((*cut, *left))}." if cut or left else f"The run {how}."


def not_begun(run: Run) -> Iterator[str]:
    """Which methods of a run that ended have not begun; nothing if all have."""
    missing = [name for name in run.planned if name not in {trial.name for trial in run.trials}]
    if missing:
        yield f"{series(missing)} {'has' if len(missing) == 1 else 'have'} not begun."
