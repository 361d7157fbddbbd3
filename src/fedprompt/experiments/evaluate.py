"""Evaluation of a trained trial: clients' models on their own test images, every model on all test sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from fedprompt.experiments.context import RunContext, RunTransport
from fedprompt.experiments.deciding import deciding_images, fit_threshold
from fedprompt.experiments.diagnostics import diagnostics_event
from fedprompt.experiments.events import cooccurrence_event, score_event
from fedprompt.experiments.mistakes import mistakes_event
from fedprompt.experiments.plan import Trial
from fedprompt.experiments.sample_images import draw_samples, sample_events
from fedprompt.experiments.test_sets import TestSet, top_k
from fedprompt.federated.evaluate import Decision, Score, score
from fedprompt.methods.base import Method
from fedprompt.ops.bootstrap import influences
from fedprompt.records.client_scores import append_scores
from fedprompt.records.events import LocalImagesEvent, ScoreEvent
from fedprompt.records.predictions import prediction_table, write_predictions
from fedprompt.runtimes.simulator import Simulator
from fedprompt.updates import State


def score_clients(
    context: RunContext, trial: Trial, transport: RunTransport, shared: State, *, round_number: int
) -> None:
    """Score every client's model on the client's own test images, if the recipe asks for it.

    Where this process scores them, it also records the images, for intervals.
    """
    if not (context.experiment.recipe.evaluate.local and context.experiment.recipe.evaluate.test):
        return
    clients = context.experiment.clients
    reached = _reaching_all(context, trial, transport, shared)
    events, scored = [], []
    numbers = {shard.name: number for number, shard in enumerate(context.experiment.partition.shards)}
    for found in reached.evaluate(round_number, shared, range(len(clients))):  # sites may not answer
        number = numbers[found.name]
        part, space = clients.part(number), clients[number].train.space
        events.append(score_event(trial, round_number, "local", found, space, client=number, part=part))
        scored.append((number, part, found.correct))
    _record(context, events)
    for part in dict.fromkeys(part for _, part, _ in scored):
        _record_local_images(context, trial, round_number, part, {n: own for n, of, own in scored if of == part})


def _record_local_images(
    context: RunContext, trial: Trial, round_number: int, part: str, correct: Mapping[int, Tensor | None]
) -> None:
    """Record the distinct test images of clients, by which of them each client's model classifies correctly."""
    known = {number: own.numpy() for number, own in correct.items() if own is not None and len(own)}
    if not known or len(known) < len(correct):
        return
    tested = [context.experiment.clients[number].test for number in known]
    rows, influence = influences([np.array(test.images.rows) for test in tested if test], list(known.values()))
    context.run.append(
        LocalImagesEvent(
            trial=trial.name, round=round_number, part=part, rows=rows.tolist(), influence=influence.tolist()
        )
    )


def score_held_out(
    context: RunContext, trial: Trial, transport: RunTransport, shared: State, *, round_number: int
) -> dict[int, Score]:
    """Every client's model on the client's held-out images, by client; sites may not answer."""
    reached = _reaching_all(context, trial, transport, shared)
    return reached.validate(round_number, shared, range(len(context.experiment.clients)))


def record_held_out(context: RunContext, transport: RunTransport, shared: State, *, name: str) -> None:
    """Write every client's predictions for its held-out images under a name, by which settings are compared."""
    clip, batch_size = context.experiment.clip, context.experiment.recipe.evaluate.batch_size
    tables = []
    for number, client in enumerate(context.experiment.clients):
        owner = number if number in transport.owners else transport.owners[0]
        for column, held in client.held_out.items():
            if len(held):
                logits = transport.predict(clip, shared, owner, held, batch_size=batch_size)
                key = (column, client.name, "", number)
                tables.append(prediction_table(key, held, logits, names=may_name(context)))
    if tables:
        write_predictions(context.run.path, name, tables)


def may_name(context: RunContext) -> bool:
    """Whether records may name images: those of sites must not leave the sites."""
    plan = context.experiment.plan
    return not plan.data_at_sites and not plan.clients_are_sites


def _reaching_all(context: RunContext, trial: Trial, transport: RunTransport, shared: State) -> RunTransport:
    """The transport to all clients, also where one client has trained for all."""
    if trial.sharing != "pooled":
        return transport
    clients, method = context.experiment.clients, transport.restore(shared)
    everyone = dict.fromkeys(range(len(clients)), transport.personal.get(0, {}))
    return Simulator(method, context.experiment.clip, clients, trial.settings, personal=everyone)


def fit_decisions(context: RunContext, transport: RunTransport, shared: State) -> dict[int | None, Decision]:
    """Decision thresholds of multi-label data by owner of a model; None is the shared model, or a new client's.

    The threshold is fitted as the recipe says, if there are images for that.
    """
    recipe, images = context.experiment.recipe.evaluate, deciding_images(context.experiment)
    decisions = {}
    for owner in {*transport.owners, None}:
        decisions[owner] = Decision(oracle=recipe.oracle)
        if images is not None:
            logits = transport.predict(context.experiment.clip, shared, owner, images, batch_size=recipe.batch_size)
            decisions[owner] = Decision(fit_threshold(context.experiment, logits, images.targets), recipe.oracle)
    return decisions


def score_test_sets(
    context: RunContext,
    trial: Trial,
    transport: RunTransport,
    shared: State,
    *,
    round_number: int,
    decisions: Mapping[int | None, Decision] = MappingProxyType({}),
) -> None:
    """Score every model on every test set.

    With `decisions`, by owner, it is the final score: also record each prediction and how predicted labels co-occur.
    """
    clip, batch_size = context.experiment.clip, context.experiment.recipe.evaluate.batch_size
    present: dict[str, list[Tensor]] = {}  # by split, one tensor per owner
    events, tables = [], []
    for owner in transport.owners:
        for test_set in context.test_sets:
            examples, space = test_set.examples, test_set.examples.space
            logits = transport.predict(clip, shared, owner, examples, batch_size=batch_size)
            figures = score(logits, examples.targets, space, name=test_set.name, decision=decisions.get(owner))
            events.append(
                score_event(trial, round_number, test_set.split, figures, space, client=owner, part=test_set.part)
            )
            if decisions:
                key = (test_set.split, test_set.name, test_set.part, owner)
                tables.append(prediction_table(key, examples, logits, names=may_name(context)))
                decision = decisions[owner] if owner == transport.owners[0] else None
                _record_mistakes(context, trial, test_set, logits, decision)
            if decisions and space.kind == "multi":
                present.setdefault(test_set.split, []).append(top_k(logits, examples.targets))
    _record(context, events)
    if tables:
        write_predictions(context.run.path, trial.name, tables)
    for test_set in context.test_sets:
        if test_set.split in present:
            shown = torch.cat(present[test_set.split])
            context.run.append(cooccurrence_event(test_set, shown, trial=trial.name))


def _record(context: RunContext, scores: Sequence[ScoreEvent]) -> None:
    append_scores(context.run, scores)
    for event in scores:
        context.callbacks.on_score(event)


def _record_mistakes(
    context: RunContext, trial: Trial, test_set: TestSet, logits: Tensor, decision: Decision | None
) -> None:
    """Record the mistakes of the main trial on the first test set of each split, for one domain stands for the others.

    A run that records no sample images records no pictures of mistakes either.
    """
    first = next(one for one in context.test_sets if one.split == test_set.split)
    if decision is not None and test_set is first and trial.name == context.experiment.trials[0].name:
        pictures = context.experiment.recipe.evaluate.samples > 0
        threshold = 0.5 if decision.tuned is None else decision.tuned
        context.run.append(mistakes_event(trial.name, test_set, logits, thresholds=threshold, pictures=pictures))


def record_samples(context: RunContext, trial: Trial, method: Method) -> None:
    """Record the method's predictions for a few test images, and its diagnostics."""
    recipe, clip = context.experiment.recipe, context.experiment.clip
    chosen = draw_samples(context.test_sets, count=recipe.evaluate.samples, seed=recipe.seed)
    main = trial.name == context.experiment.trials[0].name
    for event in sample_events(method, clip, chosen, trial=trial.name, pixels=main):
        context.run.append(event)
    diagnostics = diagnostics_event(method, clip, context.test_sets, trial=trial.name, seed=recipe.seed)
    if diagnostics is not None:
        context.run.append(diagnostics)
