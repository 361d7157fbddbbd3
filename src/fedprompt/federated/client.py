"""A client's part of a round: it trains a method on its own images and returns an update."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedprompt.arguments import shown
from fedprompt.clip.devices import to_device
from fedprompt.clip.model import Clip
from fedprompt.config.recipe import Spoken
from fedprompt.config.recipe_tables import ClientTraining
from fedprompt.data.dataset import Examples
from fedprompt.errors import LargeLossError, NotFiniteError, UserError, first_names
from fedprompt.federated.gradients import gradients
from fedprompt.federated.privacy.samples import SamplePrivacy, poisson_batches, private_gradient
from fedprompt.federated.screening import LARGEST_LOSS
from fedprompt.methods.base import Method
from fedprompt.seeding import stream
from fedprompt.updates import State, Update


class TooLateError(UserError):
    """A training that was stopped, because nobody waits for it any more."""


@dataclass(frozen=True)
class Client:
    """A client (a site): its images (often few-shot), over its own candidate classes, and their domain if any.

    Clients are usually non-IID: they differ in classes, domains and numbers of images. `held_out` are images that it
    does not train on, to choose a round by: over all base classes ("base"), and over its own classes ("local").
    """

    id: int
    name: str
    train: Examples
    test: Examples | None = None
    domain: str = ""
    held_out: Mapping[str, Examples] = field(default_factory=dict)


class TrainSettings(ClientTraining, metaclass=Spoken):
    """How every client trains: the keys of [train] that concern clients, with their defaults, and what is not in it.

    A client that `hides_loss` does not stop where its loss is not finite: that would tell something about its images.
    Training stops at the time `until`, in seconds since 1970.
    """

    privacy: SamplePrivacy | None = None
    seed: int = 0
    hides_loss: bool = False
    until: float | None = None

    def learning_rate(self, round_number: int) -> float:
        """Learning rate of a global round 1..rounds: `lr` in the first one; by `cosine` it is near 0 in the last."""
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
    settings: TrainSettings,
) -> Update:
    """Load the states into `method`, train it for the local epochs and return the client's update, as copies.

    The update holds the shared tensors that were trainable at any time in this round. Raises UserError if the client
    has no images, NotFiniteError if its loss is no longer finite, and TooLateError after the time `settings.until`.
    """
    if not len(client.train):
        raise UserError(f"Client {client.id} ({client.name}) has no training images; leave it out or give it some.")
    require_accounted(method, settings)
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
            optimizer = _optimizer(method, trained, settings, settings.learning_rate(round_number)) if trained else None
            sent.update(name for name in names if not name.startswith(method.personal))
        local = LocalEpoch(method, clip, client, settings, (round_number, epoch), shared)
        losses += _train_epoch(local, optimizer)
        method.end_epoch(epoch)
        if settings.privacy is not None and method.trainable() != names:
            raise _unaccounted(method, "chooses what to train by the data it has seen; switch that off in its options")
    method.zero_grad()
    state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in method.state_dict().items()}
    return Update(
        client=client.id,
        num_examples=len(client.train),
        shared={name: state[name] for name in state if name in sent},
        personal={name: state[name] for name in state if name.startswith(method.personal)},
        loss=sum(losses) / max(len(losses), 1),  # private batches may all be empty
        seconds=time.perf_counter() - started,
    )


def require_accounted(method: Method, settings: TrainSettings) -> None:
    """Raise UserError if training images are protected and the method says that no budget accounts for its training."""
    if settings.privacy is not None and method.unaccounted:
        raise _unaccounted(method, method.unaccounted)


def _unaccounted(method: Method, what: str) -> UserError:
    return UserError(
        f"{type(method).__name__} {what}, or leave out [train.server.privacy]: no privacy budget accounts for it."
    )


def _require_grad(method: Method, names: Sequence[str]) -> dict[str, Tensor]:
    parameters = dict(method.named_parameters())
    for name, parameter in parameters.items():
        parameter.grad = None
        parameter.requires_grad_(name in names)
    return {name: parameters[name] for name in names}


def _optimizer(
    method: Method, parameters: Mapping[str, Tensor], settings: TrainSettings, lr: float
) -> torch.optim.Optimizer:
    groups = [
        {"params": [parameter], "lr": lr * method.learning_rate_factor(name)} for name, parameter in parameters.items()
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, lr=lr, weight_decay=settings.weight_decay)


@dataclass(frozen=True)
class LocalEpoch:
    """One local epoch; `address` is (round, epoch), `received` the shared state that the round started from."""

    method: Method
    clip: Clip
    client: Client
    settings: TrainSettings
    address: tuple[int, int]
    received: State

    def loss(self, positions: Tensor, draws: torch.Generator) -> Tensor:
        """The method's mean loss, a scalar, of the training images at positions [B]; it draws from `draws`."""
        train = self.client.train
        images, targets = train.images.take(positions), to_device(train.targets[positions], self.clip.device)
        loss = self.method.loss(self.clip, images, targets, train.space, stream=draws)
        return _require_loss(loss, self.method)


def _require_loss(loss: object, method: Method) -> Tensor:
    """The loss, if it is one number that depends on what is trained; UserError otherwise."""
    name = type(method).__name__
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else shown(loss)
        raise UserError(f"The loss of {name} is {found}; return a tensor of one number, such as the mean of it.")
    if loss.requires_grad:
        return loss
    if trained := [name for name, parameter in method.named_parameters() if parameter.requires_grad]:
        raise UserError(
            f"The loss of {name} does not depend on what it trains ({first_names(trained)}); use these parameters in "
            "`classifier` or `loss`, without torch.no_grad(), detach() or item() in between."
        )
    return loss


def _train_epoch(local: LocalEpoch, optimizer: torch.optim.Optimizer | None) -> list[float]:
    settings, count = local.settings, len(local.client.train)
    draws = stream(settings.seed, "loss", local.client.id, *local.address)
    if settings.privacy is not None:
        batches = poisson_batches(count, settings.batch_size)
    else:
        order = torch.randperm(count, generator=stream(settings.seed, "client", local.client.id, *local.address))
        batches = iter(torch.split(order, settings.batch_size))
    losses = []
    # differs: the FedMVP release back-propagates the last batch only; every batch is a step here
    for positions in batches:
        if settings.until is not None and time.time() > settings.until:
            raise TooLateError("The training was stopped, as nobody waits for it any more.")
        loss = _backward(local, positions, draws, trains=optimizer is not None)
        if loss is not None:
            losses.append(_finite(loss, local))
        if optimizer is not None:
            _add_proximal(local)
            optimizer.step()
    return losses


def _backward(local: LocalEpoch, positions: Tensor, draws: torch.Generator, *, trains: bool) -> float | None:
    """Compute the loss and, if anything is trained, its gradients; None for an empty batch."""
    trained = [parameter for parameter in local.method.parameters() if parameter.requires_grad] if trains else []
    if local.settings.privacy is not None and trained:
        losses = [functools.partial(local.loss, position[None], draws) for position in positions]
        size, dtype = local.settings.batch_size, local.clip.dtype
        return private_gradient(losses, trained, local.settings.privacy, batch_size=size, dtype=dtype)
    if not len(positions):
        return None
    loss = local.loss(positions, draws)
    value = loss.item()  # the one place of a step that waits for an accelerator
    if trained and math.isfinite(value):
        for parameter, gradient in zip(trained, gradients(loss, trained, local.clip.dtype), strict=True):
            parameter.grad = gradient
    return value


def _finite(loss: float, local: LocalEpoch) -> float:
    if not (abs(loss) <= LARGEST_LOSS or local.settings.hides_loss):
        error = LargeLossError if math.isfinite(loss) else NotFiniteError
        raise error(
            f"The loss of {type(local.method).__name__} became {loss} at client {local.client.id} "
            f"({local.client.name}) in round {local.address[0]}; lower the learning rate (now {local.settings.lr})."
        )
    return loss


def _add_proximal(local: LocalEpoch) -> None:
    """Add the gradient of FedProx's proximal term, mu (w - w_received), for the shared tensors."""
    # differs: Flower's FedProx leaves this half to the user; here it is the setting `proximal` of every method
    if not local.settings.proximal:
        return
    for name, parameter in local.method.named_parameters():
        if parameter.grad is not None and name in local.received:
            drift = parameter.detach() - local.received[name].to(parameter.device)
            parameter.grad.add_(drift, alpha=local.settings.proximal)
