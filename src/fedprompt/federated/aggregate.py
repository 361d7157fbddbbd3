"""What a server does around a sum: refuse broken updates, and say how much each client counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fedprompt.errors import UserError
from fedprompt.ops.averaging import State, Update

Weighting = Literal["uniform", "examples"]


def weights_for(updates: Sequence[Update], weighting: Weighting) -> list[float]:
    """One weight an update, summing to one: all equal, or in proportion to the number of training examples."""
    counts = [update.num_examples if weighting == "examples" else 1 for update in updates]
    return [count / sum(counts) for count in counts]


def check_update(update: Update, shared: State) -> None:
    """Raise a UserError naming the client if an update does not fit the shared state or holds NaN or infinity."""
    for name, tensor in update.shared.items():
        if name not in shared:
            raise UserError(f"Client {update.client} sent the tensor {name!r}, which the server does not share.")
        if tensor.shape != shared[name].shape or tensor.dtype != shared[name].dtype:
            raise UserError(
                f"Client {update.client} sent {name!r} as {list(tensor.shape)} {tensor.dtype}; "
                f"the server expects {list(shared[name].shape)} {shared[name].dtype}."
            )
        if not tensor.isfinite().all():
            raise UserError(f"Client {update.client} sent NaN or infinity in {name!r}; lower the learning rate.")
