"""Scores of many models as one event of lists, and the score events that it stands for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from fedprompt.records.events import BaseEvent, ClientScoresEvent, ScoreEvent
from fedprompt.records.run_folder import RunFolder
from fedprompt.records.vectors import LONG


def append_scores(run: RunFolder, events: Sequence[ScoreEvent]) -> None:
    """Record scores of one trial and round, as one event per split where there are many."""
    splits: dict[str, list[ScoreEvent]] = {}
    for event in events:
        splits.setdefault(event.split, []).append(event)
    many = {split for split, found in splits.items() if len(found) > LONG}
    for event in events:
        if event.split not in many:
            run.append(event)
    for split in splits:
        if split in many:
            run.append(packed(splits[split]))


def packed(events: Sequence[ScoreEvent]) -> ClientScoresEvent:
    """One event for the scores of one trial, round and split; a metric that a model lacks is None."""
    first = events[0]
    metrics = dict.fromkeys(metric for event in events for metric in event.figures)
    lists = dict.fromkeys(event.classes for event in events)
    place = {name: number for number, name in enumerate(dict.fromkeys(chain.from_iterable(lists)))}
    known = {classes: tuple(place[name] for name in classes) for classes in lists}
    return ClientScoresEvent(
        trial=first.trial,
        round=first.round,
        split=first.split,
        names=[event.name for event in events],
        clients=[event.client for event in events],
        parts=[event.part for event in events],
        num_examples=[event.num_examples for event in events],
        figures={metric: [event.figures.get(metric) for event in events] for metric in metrics},
        classes=list(place),
        candidates=[known[event.classes] for event in events],
        per_class=[event.per_class for event in events],
    )


def unpacked(event: BaseEvent) -> Iterator[BaseEvent]:
    """The score events that an event of many scores stands for; any other event itself."""
    if not isinstance(event, ClientScoresEvent):
        yield event
        return
    known = {places: tuple(event.classes[place] for place in places) for places in set(event.candidates)}
    for number, client in enumerate(event.clients):
        yield ScoreEvent(
            trial=event.trial,
            round=event.round,
            split=event.split,
            name=event.names[number],
            client=client,
            part=event.parts[number],
            num_examples=event.num_examples[number],
            figures={metric: values[number] for metric, values in event.figures.items()},
            classes=known[event.candidates[number]],
            per_class=event.per_class[number],
        )
