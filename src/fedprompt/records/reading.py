"""Reading a run back from `run.jsonl`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import JsonValue, ValidationError

from fedprompt.errors import UserError
from fedprompt.records.client_scores import unpacked
from fedprompt.records.events import (
    BaseEvent,
    BudgetEvent,
    ClientScoresEvent,
    CooccurrenceEvent,
    DiagnosticsEvent,
    EndEvent,
    HeaderEvent,
    IntervalEvent,
    KeptEvent,
    LocalImagesEvent,
    MistakesEvent,
    ResumeEvent,
    RoundEvent,
    SampleEvent,
    ScoreEvent,
    SitesEvent,
    TrialEvent,
    ValidationEvent,
    parse_event,
)
from fedprompt.records.run_folder import read_lines
from fedprompt.records.run_record import Run, Score, TrialRecord
from fedprompt.records.vectors import vector_files

Kind = TypeVar("Kind", bound=BaseEvent)


def read_run(run_folder: Path) -> Run:
    """Read the records of a run folder, finished or not; what does not fit the schema is left out.

    Raises `UserError` if there is no readable `run.jsonl`, or if it has no header.
    """
    events: list[BaseEvent] = []
    files: dict[tuple[str, str], dict[int, tuple[str, ...]]] = {}
    for fields in read_lines(Path(run_folder)):
        event = _parse(fields)
        if isinstance(event, ScoreEvent | ClientScoresEvent) and (names := vector_files(fields)):
            before = files.get((event.trial, event.split), {}).get(event.round, ())
            files[event.trial, event.split] = {event.round: tuple(dict.fromkeys([*before, *names]))}
        events += [] if event is None else unpacked(event)
    headers = _all(HeaderEvent, events)
    if not headers:
        raise UserError(f"The run.jsonl of {run_folder} has no header line, so the run never began; start it again.")
    header = headers[-1]
    trials = sorted(_trials(events, header), key=lambda trial: (trial.trains, trial.name == header.main))
    counted = {(event.trial, event.split): event for event in _all(CooccurrenceEvent, events)}
    mistakes = {(event.trial, event.split, event.name, event.part): event for event in _all(MistakesEvent, events)}
    intervals = {(event.trial, event.column, event.against): event for event in _all(IntervalEvent, events)}
    return Run(
        header,
        tuple(trials),
        end=events[-1] if isinstance(events[-1], EndEvent) else None,  # after an earlier end the run was resumed
        resumed=tuple(event.round for event in _all(ResumeEvent, events)),
        sessions=tuple(event.seconds for event in _all(EndEvent, events) if event.seconds is not None),
        cooccurrence=tuple(counted.values()),
        intervals=tuple(intervals.values()),
        mistakes=tuple(mistakes.values()),
        budgets={event.name: event for event in _all(BudgetEvent, events)},
        files={key: names for key, found in files.items() for names in found.values()},
        scores_of_sites={
            name: str(said.get("scores", ""))
            for event in _all(SitesEvent, events)
            for name, said in event.sites.items()
            if isinstance(said, dict)
        },
    )


def _parse(fields: Mapping[str, JsonValue]) -> BaseEvent | None:
    """The event of a line without fields of a wrong type; None if a field that it must have is missing."""
    try:
        return parse_event(fields)
    except ValidationError as error:
        wrong = {problem["loc"][1] for problem in error.errors() if len(problem["loc"]) > 1}  # after the event's name
    try:
        return parse_event({key: value for key, value in fields.items() if key not in wrong})
    except ValidationError:
        return None


def _all(kind: type[Kind], events: Iterable[BaseEvent]) -> list[Kind]:
    return [event for event in events if isinstance(event, kind)]


def _scores(event: ScoreEvent, header: HeaderEvent) -> Iterator[Score]:
    """One score per metric that the header names; of the clients' own test sets the headline metric only."""
    further = header.further if event.split != "local" else ()
    measured = {"": header.metric, **{key: key for key in further if key in event.figures}}
    for measure, key in measured.items():
        yield Score(
            round=event.round,
            split=event.split,
            name=event.name,
            client=event.client,
            part=event.part,
            measure=measure,
            num_examples=event.num_examples,
            value=event.figures.get(key),
            classes=event.classes,
            per_class=event.per_class,
            figures={} if measure else event.figures,
        )


def _trials(events: list[BaseEvent], header: HeaderEvent) -> list[TrialRecord]:
    """Group the events by trial, in file order; a later event replaces an earlier one about the same thing."""
    abouts: dict[str, TrialEvent] = {}
    for about in _all(TrialEvent, events):
        before = abouts.get(about.trial, about)
        said = {key: getattr(about, key) for key in about.model_fields_set}
        abouts[about.trial] = before.model_copy(update={"message": "", **said})
    rounds = {(event.trial, event.round): event for event in _all(RoundEvent, events)}
    scores = {
        (event.trial, score.round, score.column, score.client, score.name): score
        for event in _all(ScoreEvent, events)
        for score in _scores(event, header)
    }
    samples = {(event.trial, event.sample): event for event in _all(SampleEvent, events)}
    validations = {(event.trial, event.round): event for event in _all(ValidationEvent, events)}
    kept = {event.trial: event for event in _all(KeptEvent, events)}
    diagnostics = {event.trial: event for event in _all(DiagnosticsEvent, events)}
    local = {(event.trial, event.round, event.part): event for event in _all(LocalImagesEvent, events)}
    names = dict.fromkeys([*abouts, *(str(key[0]) for key in (*rounds, *scores, *samples))])
    return [
        TrialRecord(
            abouts.get(name) or TrialEvent(trial=name),
            tuple(sorted((one for key, one in rounds.items() if key[0] == name), key=lambda one: one.round)),
            tuple(sorted((one for key, one in scores.items() if key[0] == name), key=lambda one: one.round)),
            tuple(one for key, one in samples.items() if key[0] == name),
            tuple(sorted((one for key, one in validations.items() if key[0] == name), key=lambda one: one.round)),
            kept.get(name),
            diagnostics.get(name),
            tuple(one for key, one in local.items() if key[0] == name),
        )
        for name in names
    ]
