"""A budget of time: how many rounds of each trial fit into a run, from the first training steps of each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from fedprompt.data.dataset import Examples
from fedprompt.errors import option, plural
from fedprompt.experiments.context import RunContext
from fedprompt.experiments.experiment import Experiment
from fedprompt.experiments.keep import SCORINGS
from fedprompt.experiments.plan import Trial
from fedprompt.experiments.test_sets import TestSet
from fedprompt.federated.client import train_client
from fedprompt.federated.evaluate import predict
from fedprompt.federated.rounds import initial_state
from fedprompt.methods.base import Method
from fedprompt.records.events import BudgetEvent

MOST_STEPS = 4  # training steps per client that are measured
SHARE = 0.05  # of a trial's time, after which no further client is measured


@dataclass(frozen=True)
class Costs:
    """Estimated seconds: of the first round, which opens images, of a later one, of a scoring, of the last scoring.

    `held_out` is a scoring of the images by which a round is chosen; 0 if none is.
    """

    first_round: float
    round: float
    scoring: float
    final: float
    held_out: float = 0.0

    def later_round(self, every: int) -> float:
        """Seconds of a later round with its share of scorings, every so many rounds or of held-out images."""
        return self.round + ((self.scoring + self.held_out) / every if every else self.held_out)


def divide_time(trials: Mapping[str, Trial], contexts: Mapping[str, RunContext]) -> dict[str, Costs]:
    """Divide a run's time between the trials that train, before the first of them does, if the recipe sets a limit.

    `contexts` are those of the trials, by name. Each gets what all its rounds need, up to an equal part of the time;
    what is left over goes to those that need more. The numbers of rounds are recorded for a resumed run. Returns the
    costs that were measured, by trial.
    """
    context = next(iter(contexts.values()), None)
    if context is None or not context.experiment.recipe.minutes:
        return {}
    clip, known = context.experiment.clip, _recorded(context)
    todo = [
        trial
        for name, trial in trials.items()
        if name not in known and any(True for _ in trial.make_method(clip).parameters())
    ]
    seconds = 60 * context.experiment.recipe.minutes - sum(event.seconds for event in known.values())
    started, costs = time.perf_counter(), []
    for trial in todo:
        own = contexts[trial.name]
        own.callbacks.on_step(f"Measuring {trial.label}")
        costs.append(measure(own.experiment, own.test_sets, trial, seconds=seconds / len(todo)))
    left = seconds - (time.perf_counter() - started)
    found = dict(zip((trial.name for trial in todo), costs, strict=True))
    for trial, event in zip(todo, _divided(context, todo, found, left), strict=True):
        context.run.append(event)
        _say(context, trial, event)
    return found


def give_back_time(context: RunContext, todo: Sequence[Trial], costs: Mapping[str, Costs], left: float) -> None:
    """Divide the seconds that are left between the trials that have not begun, once others have taken more or less.

    A new number of rounds is recorded, before the first round of its trial. Only trials whose costs were measured in
    this process count: a resumed run keeps its numbers.
    """
    known, measured = _recorded(context), [trial for trial in todo if trial.name in costs]
    if left <= 0:  # others took more than all of it, or the recipe sets no limit
        return
    for trial, event in zip(measured, _divided(context, measured, costs, left), strict=True):
        if event.rounds > known[trial.name].rounds:
            context.run.append(event)
            _say(context, trial, event)


def _divided(
    context: RunContext, trials: Sequence[Trial], costs: Mapping[str, Costs], seconds: float
) -> Iterator[BudgetEvent]:
    """The rounds of each trial that fit into its part of the seconds."""
    every = context.experiment.recipe.evaluate.every
    needed = [seconds_needed(costs[trial.name], trial.settings.rounds, every=every) for trial in trials]
    for trial, need, part in zip(trials, needed, water_filled(needed, seconds), strict=True):
        one = costs[trial.name]
        yield BudgetEvent(
            name=trial.name,
            rounds=rounds_that_fit(one, part, most=trial.settings.rounds, every=every),
            seconds=part,
            first_round=one.first_round,
            round=one.round,
            scoring=one.final,
            wanted=trial.settings.rounds,
            needed=need,
        )


def _recorded(context: RunContext) -> dict[str, BudgetEvent]:
    return {event.name: event for event in context.run.events() if isinstance(event, BudgetEvent)}


def within_budget(context: RunContext, trial: Trial) -> Trial:
    """The trial with the number of rounds that `divide_time` recorded; itself if the recipe sets no limit.

    Training is that of a run whose recipe has this number of rounds: the same learning rates, the same bits. What is
    trained for the measurement is thrown away.
    """
    found = _recorded(context).get(trial.name) if context.experiment.recipe.minutes else None
    if found is None:
        return trial
    return replace(trial, settings=trial.settings.model_copy(update={"rounds": found.rounds}))


def water_filled(needed: Sequence[float], total: float) -> list[float]:
    """Parts of a total: each what it needs up to an equal part; what is left over goes to those that need more.

    If there is more than all need, they share the rest equally.
    """
    parts, left = [0.0] * len(needed), total
    order = sorted(range(len(needed)), key=lambda place: needed[place])
    for number, place in enumerate(order):
        parts[place] = min(needed[place], left / (len(order) - number))
        left -= parts[place]
    return [part + left / len(parts) for part in parts]


def rounds_that_fit(costs: Costs, seconds: float, *, most: int, every: int = 0) -> int:
    """How many rounds fit into the seconds, from 1 to `most`, with a scoring every so many rounds and at the end."""
    left = seconds - costs.first_round - costs.final - 2 * costs.held_out
    later = costs.later_round(every)
    if not every and most > SCORINGS and left / later > SCORINGS:  # held-out images are not scored in every round then
        later, left = costs.round, left - SCORINGS * costs.held_out
    return most if later * (most - 1) <= left else max(1, 1 + math.floor(left / later))


def seconds_needed(costs: Costs, rounds: int, *, every: int = 0) -> float:
    """The seconds into which so many rounds fit, by `rounds_that_fit`."""
    later, more = costs.later_round(every), 0.0
    if not every and rounds > SCORINGS + 1:
        later, more = costs.round, SCORINGS * costs.held_out
    fixed = costs.first_round + costs.final + 2 * costs.held_out
    return (fixed + more + later * (rounds - 1)) * (1 + 1e-9)  # for rounding


def measure(experiment: Experiment, test_sets: Sequence[TestSet], trial: Trial, *, seconds: float) -> Costs:
    """Estimate the costs of a trial that has so many seconds, from the first steps of some clients, each taken twice.

    Clients are measured in turn until a small part of the time is used up; what they train is thrown away.
    """
    settings = trial.settings
    method = trial.make_method(experiment.clip)
    shared, personal = initial_state(method)
    first = again = 0.0
    steps, begun = 0, time.perf_counter()
    for client in experiment.trainers(trial):
        part = replace(client, train=_first(client.train, MOST_STEPS * settings.batch_size))
        train = partial(train_client, method, experiment.clip, shared=shared, personal=personal)
        train_once = partial(train, round_number=1, settings=settings)
        count, once = _steps(len(part.train), settings.batch_size), _timed(partial(train_once, part))
        # Where that was slow, one step is enough the second time.
        few = replace(client, train=_first(client.train, settings.batch_size)) if once > SHARE * seconds else part
        twice = _timed(partial(train_once, few)) * count / _steps(len(few.train), settings.batch_size)
        first, again, steps = first + once, again + twice, steps + count
        if time.perf_counter() - begun > SHARE * seconds:
            break
    share = _steps_per_round(experiment, trial) / steps
    return _with_scoring(experiment, test_sets, method, first_round=first * share, later=again * share)


def _with_scoring(
    experiment: Experiment, test_sets: Sequence[TestSet], method: Method, *, first_round: float, later: float
) -> Costs:
    images = sum(len(test_set.examples) for test_set in test_sets)
    held_out = [examples for client in experiment.clients for examples in client.held_out.values()]
    examples = [*(test_set.examples for test_set in test_sets), *held_out]
    if not examples:
        return Costs(first_round, later, 0.0, 0.0)
    table, clip, some = experiment.recipe.evaluate, experiment.clip, examples[0]
    few = _first(some, table.batch_size)
    score = partial(predict, method, clip, few.images, few.space, batch_size=table.batch_size)
    once, twice = _timed(score) / len(few), _timed(score) / len(few)  # per image
    first, again = once * images, twice * images
    models = len(experiment.clients) if initial_state(method)[1] else 1
    validation = twice * sum(map(len, held_out))
    return Costs(first_round, later, again * models, first + again * (models - 1 + table.local), validation)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _first(examples: Examples, most: int) -> Examples:
    positions = torch.arange(min(most, len(examples)))
    return Examples(examples.images.take(positions), examples.targets[positions], examples.space)


def _steps(images: int, batch_size: int) -> int:
    return math.ceil(images / batch_size)


def _steps_per_round(experiment: Experiment, trial: Trial) -> float:
    """Training steps of all clients of a round together, on average, in one pass over their images."""
    sizes = [len(shard.rows) for shard in experiment.partition.shards]
    sizes = [sum(sizes)] if trial.sharing == "pooled" else sizes
    chosen = max(math.floor(trial.fraction * len(sizes) + 1e-9), 1)
    return sum(_steps(size, trial.settings.batch_size) for size in sizes) * chosen / len(sizes)


def _say(context: RunContext, trial: Trial, found: BudgetEvent) -> None:
    costs, part = f"{trial.label}: a round takes about {duration(found.round)}", duration(found.seconds)
    most = plural(trial.settings.rounds, "round")
    first = f", the first one {duration(found.first_round)}" if found.first_round > 2 * found.round else ""
    if found.first_round + found.scoring > found.seconds:
        context.callbacks.on_warning(
            f"{costs}, the first one {duration(found.first_round)} and scoring {duration(found.scoring)}, more than "
            f"its part of the time, {part}, so it trains one round. Give more {option('minutes')}, fewer images "
            "per class (partition.shots), or a part of the clients per round (train.fraction)."
        )
    elif found.rounds < trial.settings.rounds:
        fit = "fits" if found.rounds == 1 else "fit"
        context.callbacks.on_message(
            f"{costs}{first}; {found.rounds:,} of {most} {fit} into its part of the time, {part}."
        )
    else:
        context.callbacks.on_message(f"{costs}; all {most} fit into its part of the time, {part}.")


def duration(value: float) -> str:
    """Seconds with two digits, or minutes with three."""
    return f"{value:.2g} s" if value < 99.5 else f"{value / 60:.3g} min"
