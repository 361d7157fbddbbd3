"""One client's part of a round: train a method on its own pictures and say what changed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Examples
from fedprompt.errors import UserError
from fedprompt.methods.base import Method
from fedprompt.ops.averaging import State, Update
from fedprompt.seeding import stream


@dataclass(frozen=True)
class Client:
    """A site: its pictures over its own candidate list, and the domain they come from where there is one."""

    id: int
    name: str
    train: Examples
    test: Examples | None = None
    domain: str = ""


@dataclass(frozen=True)
class Settings:
    """How every client trains; the defaults are FedMVP's (specified for ViT-B/16, 8 shots, 20 classes a client)."""

    rounds: int
    local_epochs: int = 1
    batch_size: int = 128
    lr: float = 3e-3
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    seed: int = 0

    def lr_at(self, round_number: int) -> float:
        """Learning rate of a global round 1..rounds; the first uses `lr` whole."""
        # differs: the FedTPG and FedMVP releases advance one cosine a client by participation, not by global round
        if self.schedule == "constant":
            return self.lr
        return self.lr / 2 * (1 + math.cos(math.pi * (round_number - 1) / self.rounds))


def train_client(  # noqa: PLR0913  (three objects and four values; a container would only hide them)
    method: Method,
    clip: Clip,
    client: Client,
    *,
    shared: State,
    personal: State,
    round_number: int,
    settings: Settings,
) -> Update:
    """Load the states into `method`, train it for the local epochs and return copies of what it learned.

    The update sends the shared tensors that were trainable at any time in this round. Raises UserError if the client
    has no pictures or its loss is no longer a finite number.
    """
    if not len(client.train):
        raise UserError(f"Client {client.id} ({client.name}) has no training images; leave it out or give it some.")
    started = time.perf_counter()
    method.load_state_dict({**shared, **personal})
    method.train()
    sent: set[str] = set()
    losses: list[float] = []
    names: tuple[str, ...] = ()
    optimizer: torch.optim.Optimizer | None = None  # stays None for a method that trains nothing, like zero-shot CLIP
    for epoch in range(settings.local_epochs):
        if (wanted := method.trainable()) != names:
            names = wanted
            # differs: the releases keep a client's momentum over rounds although its weights are overwritten
            trained = _require_grad(method, names)
            optimizer = _optimizer(method, trained, settings, settings.lr_at(round_number)) if trained else None
            sent.update(name for name in names if not name.startswith(method.personal))
        losses += _train_epoch(method, clip, client, optimizer, address=(round_number, epoch), settings=settings)
        method.end_epoch(epoch)
    method.zero_grad()
    state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in method.state_dict().items()}
    return Update(
        client=client.id,
        num_examples=len(client.train),
        shared={name: state[name] for name in state if name in sent},
        personal={name: state[name] for name in state if name.startswith(method.personal)},
        loss=sum(losses) / len(losses),
        seconds=time.perf_counter() - started,
    )


def _require_grad(method: Method, names: Sequence[str]) -> dict[str, Tensor]:
    parameters = dict(method.named_parameters())
    for name, parameter in parameters.items():
        parameter.grad = None
        parameter.requires_grad_(name in names)
    return {name: parameters[name] for name in names}


def _optimizer(
    method: Method, parameters: Mapping[str, Tensor], settings: Settings, lr: float
) -> torch.optim.Optimizer:
    groups = [{"params": [parameter], "lr": lr * method.rate(name)} for name, parameter in parameters.items()]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, lr=lr, weight_decay=settings.weight_decay)


def _train_epoch(
    method: Method,
    clip: Clip,
    client: Client,
    optimizer: torch.optim.Optimizer | None,
    *,
    address: tuple[int, int],
    settings: Settings,
) -> list[float]:
    order = torch.randperm(len(client.train), generator=stream(settings.seed, "client", client.id, *address))
    draws = stream(settings.seed, "loss", client.id, *address)
    losses = []
    # differs: the FedMVP release back-propagates the last batch only; every batch is a step here
    for positions in torch.split(order, settings.batch_size):
        images, targets = client.train.images.take(positions), client.train.targets[positions].to(clip.device)
        loss = method.loss(clip, images, targets, client.train.space, stream=draws)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise UserError(
                f"The loss of {type(method).__name__} became {losses[-1]} at client {client.id} ({client.name}) "
                f"in round {address[0]}; lower the learning rate (now {settings.lr})."
            )
        if optimizer is not None:
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return losses
