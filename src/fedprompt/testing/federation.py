"""A federation of three clients on the tiny CLIP: what the conformance tests of methods train, resume and compare."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from fedprompt import methods
from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Examples
from fedprompt.data.images import Images
from fedprompt.data.labels import Kind, LabelSpace
from fedprompt.federated.client import Client, TrainSettings
from fedprompt.federated.rounds import Round, Start, federate
from fedprompt.methods.base import Method
from fedprompt.runtimes.simulator import Simulator
from fedprompt.seeding import stream
from fedprompt.testing.tiny import tiny_images
from fedprompt.testing.tiny_families import tiny_backbone
from fedprompt.updates import State, Update

CLIENTS = (0, 1, 2)
SPACE = LabelSpace(
    ("dog", "cat", "car", "tree"),
    attributes={"dog": ("four legs", "round"), "cat": ("four legs",), "car": ("a photo", "is round")},
    synonyms={"dog": ("horse",)},
)
SETTINGS = TrainSettings(rounds=3, local_epochs=2, batch_size=3, lr=0.01, seed=5)


@functools.cache
def shared_clip(family: str = "clip") -> Clip:
    """The tiny backbone of a family in this process, whose feature cache all tests share."""
    return tiny_backbone(family)


def build(kind: type[Method], clip: Clip, options: Mapping[str, object], *, seed: int = SETTINGS.seed) -> Method:
    """A fresh method as a run builds it: with the classes if it asks for them, and a generator of initial draws."""
    given = {**methods.class_options(kind, SPACE.names), **options}
    return kind(clip, **given, generator=stream(seed, "method"))


def batch(*rows: int) -> Images:
    """Some of the twelve tiny images."""
    return Images(tiny_images(), rows)


def examples(rows: Sequence[int], classes: Sequence[int], *, kind: Kind = "single") -> Examples:
    """Rows with the class (row modulo candidates); multi-label: a second class too, and one label is unknown."""
    space = replace(SPACE, kind=kind).take(classes)
    targets = torch.tensor([row % len(classes) for row in rows])
    if kind == "multi":
        targets = nn.functional.one_hot(targets, len(classes)) | nn.functional.one_hot(targets // 2, len(classes))
        targets[0, -1] = -1
    return Examples(batch(*rows), targets, space)


def clients() -> tuple[Client, ...]:
    """Three clients with different numbers of images of different classes."""
    return (
        Client(0, "zero", examples((0, 1, 2, 3, 4), (0, 1, 2))),
        Client(1, "one", examples((5, 6, 7), (2, 3))),
        Client(2, "two", examples((8, 9, 10, 11), (0, 1, 2, 3))),
    )


class FreshMethods(Simulator):
    """A simulator that builds a new method object for every client, as a real deployment does."""

    options: Mapping[str, object]

    def train(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Update]:
        """Train these clients, each with a method object of its own."""
        updates = []
        for client in clients:
            self.method = build(type(self.method), self.clip, self.options)
            updates += super().train(round_number, shared, [client])
        return updates


def simulator(method: Method, clip: Clip | None = None, *, personal: Mapping[int, State] | None = None) -> Simulator:
    """The three clients in this process, by default on the CLIP that tests share."""
    return Simulator(method, clip or shared_clip(), clients(), SETTINGS, personal=personal)


def rounds(method: Method, transport: Simulator, count: int, *, start: Start | None = None) -> Iterator[Round]:
    """The rounds up to number `count`, or those of them after `start`."""
    return federate(method, transport, clients=CLIENTS, rounds=count, seed=SETTINGS.seed, start=start)


def last_round(method: Method, transport: Simulator, count: int, *, start: Start | None = None) -> Round:
    """The last of these rounds."""
    return list(rounds(method, transport, count, start=start))[-1]


def trained_state(method: Method, transport: Simulator, count: int = 2) -> State:
    """All that training leaves behind: the shared tensors and each client's personal ones."""
    return flat(last_round(method, transport, count).shared, transport.personal)


def flat(shared: State, personal: Mapping[int, State]) -> State:
    """The shared state and the personal ones of all clients in one."""
    own = {f"client {client}: {key}": tensor for client, state in personal.items() for key, tensor in state.items()}
    return {**shared, **own}


def train(method: Method, clip: Clip, data: Examples, steps: int, *, lr: float = 0.003) -> dict[str, int]:
    """Take steps on all examples; return, per trainable tensor, the number of steps in which its gradient was not zero.

    AssertionError if a gradient reaches a tensor that is not to be trained.
    """
    names = method.trainable()
    parameters = dict(method.named_parameters())
    for key, parameter in parameters.items():
        parameter.requires_grad_(key in names)
    reached = dict.fromkeys(names, 0)
    optimizer = torch.optim.AdamW([parameters[key] for key in names], lr=lr) if names else None
    if optimizer is None:
        return reached
    for _ in range(steps):
        optimizer.zero_grad()
        loss = method.loss(clip, data.images, data.targets, data.space, stream=stream(0))
        torch.autograd.backward(loss)
        for key, parameter in parameters.items():
            if key in names:
                reached[key] += int(parameter.grad is not None and bool(parameter.grad.any()))
            else:
                assert parameter.grad is None, f"A gradient reaches {key}, which trainable() does not name."
        optimizer.step()
    return reached
