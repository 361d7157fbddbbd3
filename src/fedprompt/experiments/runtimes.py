"""The runtimes of a run's simulated clients, by the name in [runtime]: one process, or actors on Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from fedprompt.config.recipe_tables import RuntimeTable
from fedprompt.errors import option, series
from fedprompt.experiments.context import RunCallbacks, RunContext, TransportFactory
from fedprompt.experiments.experiment import Experiment
from fedprompt.experiments.given import Given
from fedprompt.experiments.plan import Trial
from fedprompt.methods.base import Method
from fedprompt.records.checkpoints import Checkpoint
from fedprompt.runtimes.simulator import Simulator

ON_RAY = 'on="ray"'  # in Python

# Prepares the training of an experiment's clients, before anything is written; UserError if they cannot be trained.
Prepare = Callable[[Experiment, RunCallbacks], TransportFactory]


def simulate(context: RunContext, trial: Trial, method: Method, checkpoint: Checkpoint) -> Simulator:
    """The transport to clients that this process simulates."""
    clients = context.experiment.trainers(trial)
    return Simulator(
        method,
        context.experiment.clip,
        clients,
        trial.settings,
        personal=checkpoint.personal,
        on_client=context.callbacks.on_client,
        adversaries=trial.setup.adversaries(clients=len(clients), seed=trial.settings.seed),
        secure=trial.setup.secure,
    )


def one_process(table: RuntimeTable, given: Given) -> AbstractContextManager[Prepare]:
    """This process simulates all clients; a message names the keys of [runtime] that have no effect then."""
    unused = [key for key, value in RuntimeTable(name=table.name) if getattr(table, key) != value]

    def prepare(experiment: Experiment, callbacks: RunCallbacks) -> TransportFactory:
        if unused:
            callbacks.on_message(
                f"{series(f'runtime.{key}' for key in unused)} had no effect: this run trains in one process; "
                f"{option('on ray', ON_RAY)} spreads its clients."
            )
        return simulate

    return nullcontext(prepare)


def on_ray(table: RuntimeTable, given: Given) -> AbstractContextManager[Prepare]:
    """Actors on Ray train and score the clients; UserError if Ray is not installed."""
    from fedprompt.runtimes.ray.cluster import require_ray

    require_ray()
    from fedprompt.experiments.on_ray import opened

    return opened(table, given)


RUNTIMES: Mapping[str, Callable[[RuntimeTable, Given], AbstractContextManager[Prepare]]] = {
    "simulator": one_process,
    "ray": on_ray,
}
