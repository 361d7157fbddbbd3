"""Screening of client updates: malformed, implausible or unrequested ones are refused with a reason.

There are two stages. `check_raw` checks tensors in transit, before any byte is read as a number; transports call it
with anything that has `dtype`, `shape` and `data`. `screen` checks decoded updates before every aggregation rule; the
round loop calls it, whatever the transport. It never raises: a malicious site must not end a run.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fedprompt.errors import NotFiniteError, UserError, refusing
from fedprompt.federated.history import History
from fedprompt.updates import AGGREGATE_CLIENT, State, Update

LARGEST_LOSS = 1e12  # whatever its sign; a larger one has diverged
MOST_EXAMPLES = 10_000_000  # training images that an update may claim, unless a recipe says otherwise
NO_HISTORY = History()
LONGEST_NAME = 80  # characters of a site's tensor name that a reason quotes


class RefusedUpdateError(UserError):
    """A site's update is not used; `code` is a short word for statistics, such as "shape", and `sentence` the rest."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(f"{code}: {sentence}")
        self.code, self.sentence = code, sentence

    @property
    def rule(self) -> str:
        """The code, which names the rule that refused."""
        return self.code


class NotFiniteUpdateError(RefusedUpdateError, NotFiniteError):
    """A site's update or loss is NaN or infinite."""


@dataclass(frozen=True)
class Limits:
    """What a server accepts: at most so many training examples, and no change longer than `norm` usual lengths.

    The usual length is the median L2 norm of the clients' changes (see `History.usual`); 0 allows any length.
    """

    most_examples: int = MOST_EXAMPLES
    norm: float = 0.0


@dataclass(frozen=True)
class Screened:
    """The usable updates, sorted by client id, and for the others client -> "code: sentence".

    `lengths` are the L2 norms of the accepted changes by client, if norms are limited.
    """

    accepted: tuple[Update, ...]
    refused: Mapping[int, str]
    lengths: Mapping[int, float] = field(default_factory=dict)


class RawTensor(Protocol):
    """A tensor in transit."""

    @property
    def dtype(self) -> str:
        """Torch's name: "float32"."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape it claims."""
        ...

    @property
    def data(self) -> bytes:
        """Its bytes, in row order."""
        ...


def check_raw(raws: Mapping[str, RawTensor], shared: State, *, dtype: str | None = None) -> None:
    """Raise a RefusedUpdateError unless every tensor is one of `shared`, of its shape, type and size.

    `dtype` is the type of everything in transit where it is not that of `shared`.
    """
    for name, raw in raws.items():
        own = _known(name, shared)
        expected = dtype or str(own.dtype).removeprefix("torch.")
        size = own.numel() * torch.empty((), dtype=getattr(torch, expected)).element_size()
        if raw.dtype != expected or tuple(raw.shape) != tuple(own.shape):
            raise RefusedUpdateError("shape", f"{_quoted(name)} is not {expected} {list(own.shape)}.")
        if len(raw.data) != size:
            raise RefusedUpdateError("size", f"{len(raw.data)} bytes came for {_quoted(name)}, which has {size}.")


def check_update(update: Update, shared: State, limits: Limits = Limits()) -> None:
    """Raise a RefusedUpdateError if an update does not fit the shared state, is not finite or claims too much."""
    count = update.num_examples
    if type(count) is not int or not 1 <= count <= limits.most_examples:
        raise RefusedUpdateError("weight", f"1 to {limits.most_examples} training examples are accepted.")
    # NaN: a secure sum with noise has no loss, and a site may withhold its own
    if type(update.loss) is not float or math.isinf(update.loss):
        raise NotFiniteUpdateError("loss", "the training loss is not a finite number.")
    for name, tensor in update.shared.items():
        own = _known(name, shared)
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise RefusedUpdateError("shape", f"{_quoted(name)} is no dense tensor in memory.")
        if tensor.shape != own.shape or tensor.dtype != own.dtype:
            raise RefusedUpdateError(
                "shape",
                f"{_quoted(name)} came as {list(tensor.shape)} {tensor.dtype}, not {list(own.shape)} {own.dtype}.",
            )
        _check_finite(name, tensor)
    check_personal(update)


def check_personal(update: Update) -> None:
    """Raise a RefusedUpdateError if a personal tensor of an update is not finite: its client must not keep it."""
    for name, tensor in update.personal.items():
        _check_finite(name, tensor)


def is_finite(update: Update) -> bool:
    """Whether all numbers of an update's tensors are finite, shared and personal ones."""
    return all(bool(tensor.isfinite().all()) for tensor in (*update.shared.values(), *update.personal.values()))


def is_poisoned(diverged: Collection[int], answered: int) -> bool:
    """Whether so many of the clients that answered diverged that the state they received is to blame.

    Fewer than most may be lying, so they alone are left out.
    """
    return 2 * len(diverged) > answered


def _check_finite(name: str, tensor: Tensor) -> None:
    if not tensor.isfinite().all():
        raise NotFiniteUpdateError("not finite", f"NaN or infinity in {_quoted(name)}.")


def screen(
    updates: Iterable[Update], shared: State, *, limits: Limits, asked: Sequence[int], history: History = NO_HISTORY
) -> Screened:
    """Sort the updates of a round into usable and refused ones; unrequested ones are refused."""
    refused: dict[int, str] = {}
    accepted: dict[int, Update] = {}
    allowed = {*asked, AGGREGATE_CLIENT}
    for update in updates:
        with refusing(refused, update.client):
            if update.client not in allowed:
                raise RefusedUpdateError("stranger", "this client was not asked in this round.")
            if update.client in accepted:
                raise RefusedUpdateError("twice", "this client answered more than once.")
            check_update(update, shared, limits)
            accepted[update.client] = update
    usable = {client: accepted[client] for client in sorted(accepted.keys() - refused.keys())}
    lengths = {client: change_norm(update, shared) for client, update in usable.items()} if limits.norm else {}
    long = history.too_long(lengths, limits.norm)
    kept = tuple(update for client, update in usable.items() if client not in long)
    known = {client: length for client, length in lengths.items() if client not in long}
    return Screened(kept, dict(sorted((refused | long).items())), known)


def change_norm(update: Update, shared: State) -> float:
    """L2 norm of the change that an update makes, over all its tensors, in float64."""
    squares = ((tensor.double() - shared[name]).square().sum().item() for name, tensor in update.shared.items())
    return math.sqrt(sum(squares))


def _known(name: str, shared: State) -> Tensor:
    if name not in shared:
        raise RefusedUpdateError("name", f"the server does not share {_quoted(name)}.")
    return shared[name]


def _quoted(name: object) -> str:
    """A site's tensor name, cut short, without anything that could pass for markup or a new line."""
    text = ascii(name)
    return text if len(text) <= LONGEST_NAME else text[:LONGEST_NAME] + "...'"
