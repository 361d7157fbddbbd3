"""Rounds of a run in sentences: which round is kept, which methods had fewer rounds than the recipe has."""

from __future__ import annotations

from collections.abc import Iterator

from fedprompt.errors import plural
from fedprompt.records.events import KeptEvent
from fedprompt.records.run_record import TITLES, Run, TrialRecord
from fedprompt.report.next_steps import cut_short, minutes_for_all
from fedprompt.report.proposals import limit

STILL = 0.02  # relative change of the training loss below which it has hardly moved


def fewer_rounds(run: Run) -> Iterator[str]:
    """Which methods had fewer rounds than the recipe has, for want of time, and the time that all rounds need."""
    found = []
    for trial in run.trials:
        budget = run.budgets.get(trial.name)
        if budget is not None and trial.rounds and budget.rounds < budget.wanted:
            falling = " and its loss was still falling" if _falls(trial) else ""
            found.append(f"{trial.label} had {budget.rounds:,} of {plural(budget.wanted, 'round')}{falling}")
    if found:
        minutes, given = minutes_for_all(run), limit(run)
        if minutes > given:
            yield f"{'; '.join(found)}: {plural(minutes, 'minute')} would fit all."
        else:
            yield (
                f"{'; '.join(found)}: they were planned while the machine was busy. By the time that the rounds took, "
                f"{given:g} minutes fit all."
            )
    if (cut := cut_short(run)) and (command := run.header.command) is not None:
        said = [f"{trial.label} had {trial.about.rounds:,} of {plural(command.rounds, 'round')}" for trial in cut]
        yield (
            f"{'; '.join(said)}, as many as were planned, from the first training steps, to fit into the time beside "
            "the search."
        )


def ended_early(run: Run) -> Iterator[str]:
    """Which methods ended before their planned rounds, without patience that `kept_rounds` names."""
    for trial in run.trials:
        last, planned = max((event.round for event in trial.rounds), default=0), trial.about.rounds or 0
        if trial.about.status == "done" and 0 < last < planned and not (trial.kept and trial.kept.patience):
            why = (
                "its privacy budget allowed no more" if trial.rounds[-1].epsilon is not None else "a callback ended it"
            )
            yield f"{trial.label} trained {last:,} of {plural(planned, 'round')}: {why}."


def _falls(trial: TrialRecord) -> bool:
    """Whether the training loss of the last round is still well below that of the round before."""
    found = losses(trial)
    return len(found) > 1 and found[-1] < (1 - STILL) * found[-2]


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
    details = [] if kept.value is None else [percent(kept.value)]
    stopped = f", where training ended: {plural(kept.patience, 'scoring')} in a row had no better one"
    if kept.last_value is not None and kept.last != kept.round:
        details.append(f"{percent(kept.last_value)} after round {kept.last}{stopped * bool(kept.patience)}")
    return f"{where}{planned} ({'; '.join(details)})" if details else f"{where}{planned}"


def losses(trial: TrialRecord) -> list[float]:
    """The training losses of the rounds that have one."""
    return [event.loss for event in trial.rounds if event.loss is not None]


def percent(value: float) -> str:
    """A share as "63.0%"."""
    return f"{100 * value:.1f}%"
