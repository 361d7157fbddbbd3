"""A trained trial is asked everything: clients about their own pictures, every owner's model all test_sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from fedprompt.experiments import events as describe
from fedprompt.experiments.context import RunContext, RunTransport
from fedprompt.experiments.plan import Trial
from fedprompt.experiments.sample_images import choose, sample_lines
from fedprompt.experiments.test_sets import top_k
from fedprompt.federated.evaluate import Decision, predict, score
from fedprompt.federated.rounds import Transport
from fedprompt.methods.base import Method
from fedprompt.ops.metrics import best_threshold
from fedprompt.runtimes.simulator import Simulator
from fedprompt.updates import State


def score_clients(
    context: RunContext, trial: Trial, transport: RunTransport, shared: State, *, round_number: int
) -> None:
    """Ask every client's model about the client's own test pictures, if the recipe wants that."""
    if not context.experiment.recipe.evaluate.local:
        return
    clients = context.experiment.clients
    asked: Transport = transport
    if trial.sharing == "pooled":  # one client has trained for all
        method = transport.restore(shared)
        everyone = dict.fromkeys(range(len(clients)), transport.personal.get(0, {}))
        asked = Simulator(method, context.experiment.clip, clients, trial.settings, personal=everyone)
    numbers = {shard.name: number for number, shard in enumerate(context.experiment.partition.shards)}
    for found in asked.evaluate(round_number, shared, range(len(clients))):  # sites may not answer
        number = numbers[found.name]
        part, space = clients.part(number), clients[number].train.space
        line = describe.score_line(trial, round_number, "local", found, space, client=number, part=part)
        context.run.append(line)


def decide(context: RunContext, transport: RunTransport, shared: State) -> dict[int | None, Decision]:
    """When a label counts as present, by owner and, under None, for the model that all share or a new client gets.

    From the threshold on that is best on held-out training pictures, if there are any.
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


def score_all(
    context: RunContext,
    trial: Trial,
    transport: RunTransport,
    shared: State,
    *,
    round_number: int,
    decisions: Mapping[int | None, Decision] = MappingProxyType({}),
) -> None:
    """Ask every owner's model every test_set; with `decisions`, by owner, also which labels it sees together."""
    clip, batch_size = context.experiment.clip, context.experiment.recipe.evaluate.batch_size
    present: dict[str, list[Tensor]] = {}  # by split, a tensor an owner
    for owner in transport.owners:
        method = transport.restore(shared, owner)
        for test_set in context.asked:
            asked, space = test_set.examples, test_set.examples.space
            logits = predict(method, clip, asked.images, space, batch_size=batch_size)
            figures = score(logits, asked.targets, space, name=test_set.name, decision=decisions.get(owner))
            line = describe.score_line(
                trial, round_number, test_set.split, figures, space, client=owner, part=test_set.part
            )
            context.run.append(line)
            if decisions and space.kind == "multi":
                present.setdefault(test_set.split, []).append(top_k(logits, asked.targets))
    for test_set in context.asked:
        if test_set.split in present:
            shown = torch.cat(present[test_set.split])
            context.run.append(describe.cooccurrence_line(test_set, shown, trial=trial.name))


def show_samples(context: RunContext, trial: Trial, method: Method) -> None:
    """Record what the method says of a few test pictures."""
    recipe, clip = context.experiment.recipe, context.experiment.clip
    chosen = choose(context.asked, count=recipe.evaluate.samples, seed=recipe.seed)
    main = trial.name == context.experiment.trials[0].name
    for line in sample_lines(method, clip, chosen, trial=trial.name, pictures=main):
        context.run.append(line)
