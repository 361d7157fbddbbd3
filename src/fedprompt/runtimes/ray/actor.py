"""The process of an actor: a backbone with its feature cache, and a simulator per trial that trains single clients.

An actor computes with the simulator of `fedprompt.runtimes.simulator`, so its updates have that one's bits.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol, TypeVar

import numpy as np
import ray
import torch
from ray.exceptions import RaySystemError
from safetensors.torch import load, save

from fedprompt.clip.loading import numerics_id
from fedprompt.clip.model import Clip
from fedprompt.clip.threads import use_fitting_threads
from fedprompt.data.images import Images, ImageSource
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import NotFiniteError, UserError
from fedprompt.federated.evaluate import Score, compute_logits
from fedprompt.runtimes.simulator import Simulator
from fedprompt.updates import State

Answer = TypeVar("Answer")
Answers = list[tuple[int, Answer | UserError]]  # by client: the answer, or the mistake that was found with it
Key = tuple[int, int, int]  # of a part of images
Logits = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
PACKAGES = ("torch", "transformers", "safetensors", "numpy", "pillow")  # whose versions results depend on


class Setup(Protocol):
    """What actors are made from, sent to all of them once: the data set's index and the clients of a run."""

    @property
    def sources(self) -> Sequence[ImageSource]:
        """The images of clients and test sets."""
        ...

    def open_backbone(self) -> Clip:
        """The backbone, with a feature cache of its own; UserError where it cannot be opened."""
        ...

    def unreadable(self) -> str:
        """Why images cannot be read on this node, "" if they can."""
        ...

    def simulator(self, clip: Clip, trial: object) -> Simulator:
        """A simulator of all clients of a trial, as the driver describes it."""
        ...


@dataclass(frozen=True)
class Task:
    """A client with the version of its personal state, and the state itself if the actor lacks it.

    Version 0 is the initial state; after training, the new one gets the version `after`.
    """

    client: int
    version: int = 0
    after: int = 0
    personal: bytes | None = None


@dataclass(frozen=True)
class Stored:
    """An object in the object store, a trial or a shared state, which an actor fetches once."""

    number: int
    box: tuple[Any, ...]  # with the reference to it; Ray would fetch a reference that is an argument by itself


@dataclass(frozen=True)
class Trained:
    """An update in transit, its tensors as safetensors."""

    num_examples: int
    shared: bytes
    personal: bytes
    loss: float
    seconds: float


@dataclass(frozen=True)
class Part:
    """Some rows of the images of one of the sources."""

    source: int
    rows: tuple[int, ...]
    mirrored: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Scoring:
    """The candidate classes of test images, and the number of images per batch."""

    space: LabelSpace
    batch_size: int


@dataclass(frozen=True)
class Opened:
    """An actor that is ready: its node, its backbone, what the last bits depend on, and its process."""

    node: str
    fingerprint: str
    numerics: str
    process: int


@dataclass(frozen=True)
class Process:
    """What a process on Ray begins with: its threads, its share of a GPU, and where the driver finds modules."""

    threads: int
    gpus: float
    path: tuple[str, ...]

    @classmethod
    def like_this(cls, threads: int, gpus: float) -> Process:
        """A process that finds the modules that this one finds."""
        return cls(threads, gpus, tuple(map(os.path.abspath, sys.path)))

    def begin(self) -> None:
        """Set up the process, before anything of the driver's is unpickled."""
        sys.path += [place for place in self.path if place not in sys.path]
        torch.set_num_threads(self.threads)
        if self.gpus and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(min(self.gpus, 1.0))


class Actor:
    """An actor of `pool.Pool`; nothing is opened before `open`, so that versions are compared first."""

    def __init__(self, process: Process) -> None:
        process.begin()
        self._trial: tuple[int, Simulator] | None = None
        self._personal: dict[int, tuple[int, State]] = {}  # by client, with its version; those of the trial
        self._shared: tuple[int, State] = (0, {})

    def versions(self) -> tuple[str, Mapping[str, str]]:
        """The node's name, and the versions there."""
        return node_name(), versions()

    def open(self, setup: tuple[Any, ...], memory_share: float) -> Opened | UserError:
        """Open the backbone and try to read images; the feature cache gets a share of the recipe's memory."""
        try:
            self.setup: Setup = ray.get(setup[0])
            self.clip = self.setup.open_backbone()
            use_fitting_threads(self.clip)  # as the driver does
            if reason := self.setup.unreadable():
                raise UserError(reason)
        except UserError as error:
            return error
        except RaySystemError as error:  # something in the setup is of a module that is missing here
            missing = str(error).strip().splitlines()[-1]
            return UserError(f"{missing}; install it there, or put it on storage that all nodes have at the same path.")
        self.clip.cache.memory_bytes = int(self.clip.cache.memory_bytes * memory_share)
        return Opened(node_name(), self.clip.fingerprint, numerics_id(self.clip.device), os.getpid())

    def train(self, trial: Stored, round_number: int, shared: Stored, tasks: Sequence[Task]) -> Answers[Trained | str]:
        """Train clients one after another; a text says why one diverged."""

        def train(simulator: Simulator, state: State, task: Task) -> Trained | str:
            update = simulator.train_each(round_number, state, [task.client])[task.client]
            if isinstance(update, NotFiniteError):
                return str(update)
            if update.personal:
                self._personal[task.client] = task.after, update.personal
            return Trained(update.num_examples, pack(update.shared), pack(update.personal), update.loss, update.seconds)

        return self._each(trial, shared, tasks, train)

    def evaluate(self, trial: Stored, round_number: int, shared: Stored, tasks: Sequence[Task]) -> Answers[list[Score]]:
        """Score clients on their test images; a list without an element for one that has none."""
        return self._each(
            trial, shared, tasks, lambda simulator, state, task: simulator.evaluate(round_number, state, [task.client])
        )

    def validate(
        self, trial: Stored, round_number: int, shared: Stored, tasks: Sequence[Task]
    ) -> Answers[dict[int, Score]]:
        """Score clients on their held-out images."""
        return self._each(
            trial, shared, tasks, lambda simulator, state, task: simulator.validate(round_number, state, [task.client])
        )

    def predict(
        self, trial: Stored, shared: Stored, task: Task, parts: Mapping[Key, Part], scoring: Scoring
    ) -> list[tuple[Key, Logits]]:
        """Logits [N, C] of a client's model, or of the shared one if the client is -1, for the images of each part."""
        simulator, state = self._simulator(trial), self._state(shared)
        self._hold(simulator, task)
        method = simulator.restore(state, None if task.client < 0 else task.client)
        found = []
        for key, part in parts.items():
            images = Images(self.setup.sources[part.source], part.rows, part.mirrored)
            logits = compute_logits(method, self.clip, images, scoring.space, batch_size=scoring.batch_size)
            found.append((key, logits.numpy()))
        return found

    def _each(
        self,
        trial: Stored,
        shared: Stored,
        tasks: Sequence[Task],
        work: Callable[[Simulator, State, Task], Answer],
    ) -> Answers[Answer]:
        simulator, state = self._simulator(trial), self._state(shared)
        found: Answers[Answer] = []
        for task in tasks:
            self._hold(simulator, task)
            try:
                found.append((task.client, work(simulator, state, task)))
            except UserError as error:
                found.append((task.client, error))
        return found

    def _simulator(self, trial: Stored) -> Simulator:
        if self._trial is None or self._trial[0] != trial.number:
            self._personal.clear()
            self._trial = trial.number, self.setup.simulator(self.clip, ray.get(trial.box[0]))
        return self._trial[1]

    def _state(self, shared: Stored) -> State:
        if self._shared[0] != shared.number:
            self._shared = shared.number, unpack(ray.get(shared.box[0]))
        return self._shared[1]

    def _hold(self, simulator: Simulator, task: Task) -> None:
        """Give the simulator the personal state of a task's client, and no other."""
        if task.personal is not None:
            self._personal[task.client] = task.version, unpack(task.personal)
        simulator.personal = {}
        if task.version:
            number, state = self._personal[task.client]
            assert number == task.version, "the driver knows which states its actors hold"
            simulator.personal = {task.client: state}


def pack(state: State) -> bytes:
    """A state as bytes."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}) if state else b""


def unpack(content: bytes) -> State:
    """The state that was packed; its tensors have aligned memory of their own, as products depend on that."""
    return {name: tensor.clone() for name, tensor in load(content).items()} if content else {}


def versions() -> dict[str, str]:
    """Versions here that must be those of the driver."""
    return {"fedprompt": _version("fedprompt"), **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def node_name() -> str:
    """The node of this process: its host name and address."""
    return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"
