"""Evaluation of a trained trial: clients' models on their own test images, every model on all test sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from fedprompt.experiments.context import RunContext, RunTransport
from fedprompt.experiments.events import cooccurrence_event, score_event
from fedprompt.experiments.plan import Trial
from fedprompt.experiments.sample_images import draw_samples, sample_events
from fedprompt.experiments.test_sets import top_k
from fedprompt.federated.evaluate import Decision, predict, score
from fedprompt.federated.rounds import Transport
from fedprompt.methods.base import Method
from fedprompt.ops.metrics import best_threshold
from fedprompt.records.events import ScoreEvent
from fedprompt.records.predictions import prediction_table, write_predictions
from fedprompt.runtimes.simulator import Simulator
from fedprompt.updates import State


def score_clients(
    context: RunContext, trial: Trial, transport: RunTransport, shared: State, *, round_number: int
) -> None:
    """Score every client's model on the client's own test images, if the recipe asks for it."""
    if not context.experiment.recipe.evaluate.local:
        return
    clients = context.experiment.clients
    reached: Transport = transport
    if trial.sharing == "pooled":  # one client has trained for all
        method = transport.restore(shared)
        everyone = dict.fromkeys(range(len(clients)), transport.personal.get(0, {}))
        reached = Simulator(method, context.experiment.clip, clients, trial.settings, personal=everyone)
    numbers = {shard.name: number for number, shard in enumerate(context.experiment.partition.shards)}
    for found in reached.evaluate(round_number, shared, range(len(clients))):  # sites may not answer
        number = numbers[found.name]
        part, space = clients.part(number), clients[number].train.space
        _record(context, score_event(trial, round_number, "local", found, space, client=number, part=part))


def fit_decisions(context: RunContext, transport: RunTransport, shared: State) -> dict[int | None, Decision]:
    """Decision thresholds of multi-label data by owner of a model; None is the shared model, or a new client's.

    The threshold is the one that is best on held-out training images, if there are any.
    """
    recipe, held = context.experiment.recipe.evaluate, context.experiment.clients.held_out()
    decisions = {}
    for owner in {*transport.owners, None}:
        decisions[owner] = Decision(oracle=recipe.oracle)
        if held is not None and held.space.kind == "multi":
            method = transport.restore(shared, owner)
            logits = predict(method, context.experiment.clip, held.images, held.space, batch_size=recipe.batch_size)
            tuned = best_threshold(logits.sigmoid(), held.targets)
            decisions[owner] = Decision(None if math.isnan(tuned) else tuned, recipe.oracle)
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
    tables = []
    for owner in transport.owners:
        method = transport.restore(shared, owner)
        for test_set in context.test_sets:
            examples, space = test_set.examples, test_set.examples.space
            logits = predict(method, clip, examples.images, space, batch_size=batch_size)
            figures = score(logits, examples.targets, space, name=test_set.name, decision=decisions.get(owner))
            _record(
                context,
                score_event(trial, round_number, test_set.split, figures, space, client=owner, part=test_set.part),
            )
            if decisions:
                key = (test_set.split, test_set.name, test_set.part, owner)
                tables.append(prediction_table(key, examples.images.rows, logits, examples.targets, space))
            if decisions and space.kind == "multi":
                present.setdefault(test_set.split, []).append(top_k(logits, examples.targets))
    if tables:
        write_predictions(context.run.path, trial.name, tables)
    for test_set in context.test_sets:
        if test_set.split in present:
            shown = torch.cat(present[test_set.split])
            context.run.append(cooccurrence_event(test_set, shown, trial=trial.name))


def _record(context: RunContext, score: ScoreEvent) -> None:
    context.run.append(score)
    context.callbacks.on_score(score)


def record_samples(context: RunContext, trial: Trial, method: Method) -> None:
    """Record the method's predictions for a few test images."""
    recipe, clip = context.experiment.recipe, context.experiment.clip
    chosen = draw_samples(context.test_sets, count=recipe.evaluate.samples, seed=recipe.seed)
    main = trial.name == context.experiment.trials[0].name
    for event in sample_events(method, clip, chosen, trial=trial.name, pixels=main):
        context.run.append(event)
