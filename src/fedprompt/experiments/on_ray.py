"""A run on Ray: what its actors are made from, and the checks of their nodes before the first round."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.loading import numerics_id
from fedprompt.clip.model import Clip
from fedprompt.config.recipe_tables import BackboneTable, RuntimeTable
from fedprompt.data.dataset import Dataset
from fedprompt.data.images import ImageSource
from fedprompt.errors import plural
from fedprompt.experiments.clients import Clients
from fedprompt.experiments.context import RunCallbacks, RunContext, RunTransport, TransportFactory
from fedprompt.experiments.experiment import Backbone, Experiment, load_backbone
from fedprompt.experiments.given import Given
from fedprompt.experiments.plan import Trial
from fedprompt.experiments.runtimes import Prepare, simulate
from fedprompt.methods.base import Method
from fedprompt.records.checkpoints import Checkpoint
from fedprompt.records.output_folder import resuming
from fedprompt.runtimes.ray.cluster import Node, actors_and_gpus, connected
from fedprompt.runtimes.ray.pool import Pool
from fedprompt.runtimes.ray.transport import OnRay
from fedprompt.runtimes.simulator import Simulator

TRIED = 8  # images that every actor opens before the first round


@dataclass(frozen=True)
class RunSetup:
    """What the actors of a run are made from: images, clients by trial, and how the backbone is opened.

    `sources` are the data set's own one and those of the parts that it was joined from, `folder` is that of the driver.
    """

    sources: tuple[ImageSource, ...]
    trainers: Mapping[str, Clients]  # by name of the trial
    backbone: BackboneTable
    open: Backbone
    folder: str

    def open_backbone(self) -> Clip:
        """The backbone with a feature cache of its own."""
        if os.path.isdir(self.folder):  # on another node it may be missing, and paths absolute
            os.chdir(self.folder)
        return self.open(self.backbone)

    def unreadable(self) -> str:
        """A sentence on the first of some images that cannot be read here; "" if all can."""
        shards = next(iter(self.trainers.values())).partition.shards
        rows = [shard.rows[0] for shard in shards if shard.rows]
        for row in rows[:: max(1, len(rows) // TRIED)]:
            try:
                self.sources[0].open(row)
            except Exception as error:  # of any kind: the image is not there, cut short, or another file
                what = f"{self.sources[0].describe(row)} cannot be read ({type(error).__name__}: {error})"
                return f"{what}; put the data on storage that all nodes have at the same path."
        return ""

    def simulator(self, clip: Clip, trial: object) -> Simulator:
        """A simulator of the clients of a trial, without the server's side."""
        assert isinstance(trial, Trial)
        clients = self.trainers[trial.name]
        adversaries = trial.setup.adversaries(clients=len(clients), seed=trial.settings.seed)
        return Simulator(trial.make_method(clip), clip, clients, trial.settings, adversaries=adversaries)


@dataclass(frozen=True)
class SentBackbone:
    """A backbone that was given as an object: its parts, for actors to make it from."""

    parts: tuple[Any, Any, Any]  # model, tokenizer, processor
    options: Mapping[str, Any]  # keywords of Clip
    known: Mapping[str, object]  # what weights that were rounded to the precision no longer tell, and the origin
    memory_bytes: int
    memory_on_device: bool
    device: str

    @classmethod
    def of(cls, clip: Clip) -> SentBackbone:
        """The parts of a backbone."""
        parts = clip.model, clip.tokenizer.tokenizer, clip.processor
        options = {name: getattr(clip, name) for name in ("batch", "precision", "activation_bytes")}
        known = {name: getattr(clip, name) for name in ("fingerprint", "scale", "bias", "origin")}
        on_device = clip.cache.device.type != "cpu"
        return cls(parts, options, known, clip.cache.memory_bytes, on_device, clip.device.type)

    def __call__(self, table: BackboneTable) -> Clip:
        """The backbone, whatever a recipe says, on a GPU if it was on one and there is one here."""
        device = torch.device(self.device if torch.cuda.is_available() else "cpu")
        cache = FeatureCache(memory_bytes=self.memory_bytes, device=device if self.memory_on_device else None)
        clip = Clip(*self.parts, cache=cache, workers=table.workers, **self.options).to(device)
        for name, value in self.known.items():
            setattr(clip, name, value)
        return clip


def sources_of(dataset: Dataset) -> tuple[ImageSource, ...]:
    """The images of a data set, and those of each part that it was joined from."""
    return dataset.source, *(part.source for part in dataset.parts)


@contextmanager
def opened(table: RuntimeTable, given: Given) -> Iterator[Prepare]:
    """Ray for the time of a run; this process has as many threads as an actor then, for the same bits."""
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(table.threads)
        nodes = stack.enter_context(connected())

        def prepare(experiment: Experiment, callbacks: RunCallbacks) -> TransportFactory:
            pool = start_pool(experiment, table, given, nodes, callbacks)
            stack.callback(pool.close)
            return partial(_make_transport, pool)

        yield prepare


def _make_transport(
    pool: Pool, context: RunContext, trial: Trial, method: Method, checkpoint: Checkpoint
) -> RunTransport:
    simulator = simulate(context, trial, method, checkpoint)
    resume = resuming(context.run.path)
    return OnRay(pool, trial, sources_of(context.experiment.dataset), simulator, resume=resume)


def start_pool(
    experiment: Experiment, table: RuntimeTable, given: Given, nodes: Sequence[Node], callbacks: RunCallbacks
) -> Pool:
    """Start the actors of a run; UserError, naming the node, where one cannot do its work."""
    backbone = experiment.recipe.backbone
    count, gpus = actors_and_gpus(table, nodes, wants_gpu=backbone.device != "cpu")
    trainers = {trial.name: experiment.of(trial).trainers(trial) for trial in experiment.trials}
    assert all(isinstance(clients, Clients) for clients in trainers.values())
    if not table.actors:
        count = min(count, len(experiment.clients))  # more would be idle
    callbacks.on_step(f"Starting {plural(count, 'actor')} on Ray")
    experiment.clip.cache.close()  # an actor writes the features that are kept on disk
    pool = Pool(
        RunSetup(
            sources_of(experiment.dataset),
            {name: clients for name, clients in trainers.items() if isinstance(clients, Clients)},
            backbone,
            load_backbone if given.clip is None else SentBackbone.of(given.clip),
            os.getcwd(),
        ),
        table,
        gpus=gpus,
        expected=(experiment.clip.fingerprint, numerics_id(experiment.clip.device)),
        warn=callbacks.on_warning,
    )
    pool.start(count)
    places = Counter(member.node for member in pool.members.values())
    where = ", ".join(f"{number} on {node}" for node, number in places.items())
    callbacks.on_message(f"Clients are trained by {plural(count, 'actor')} on Ray: {where}.")
    return pool
