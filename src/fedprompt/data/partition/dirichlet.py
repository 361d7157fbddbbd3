"""A non-IID partition by Dirichlet label skew (Hsu et al., 2019): class shares are drawn from Dirichlet(alpha)."""

from __future__ import annotations

import torch
from torch import Tensor

from fedprompt.config.values import LARGEST, OrInfinite
from fedprompt.data.dataset import Dataset
from fedprompt.data.partition.base import Partition, make_shards, require_enough
from fedprompt.data.partition.few_shot import Shots, rows_by_class, shots_warnings
from fedprompt.errors import UserError
from fedprompt.seeding import numpy_stream, stream


def dirichlet(
    dataset: Dataset, *, clients: int = 10, alpha: OrInfinite = 0.5, shots: Shots = "all", seed: int = 1
) -> Partition:
    """Split each class over clients in shares drawn from Dirichlet(alpha): the smaller alpha, the more heterogeneous.

    alpha = inf is the IID limit: each class is shared out evenly, and sizes of clients differ by at most one. Every
    client has all base classes as candidates and at least one image. A multi-label image is assigned by one of its
    labels, drawn at random; images without a label are split as a class of their own. Every client is tested on the
    same images, all test images of base classes; domains_or_dirichlet divides them by label distribution instead.
    """
    check_alpha(alpha)
    by_class = rows_by_class(dataset, shots, seed)
    rows = torch.cat(list(by_class.values()))
    require_enough(dataset, clients, len(rows))
    owners: list[Tensor] = []
    for label, own in by_class.items():
        order = torch.randperm(len(own), generator=stream(seed, "order", label))
        if alpha > LARGEST:
            owners.append((order + sum(map(len, owners))) % clients)  # in turn, going on where the class before ended
            continue
        shares = torch.from_numpy(numpy_stream(seed, "shares", label).dirichlet([alpha] * clients))
        ends = (shares.cumsum(0) * len(own)).round().long()
        # The image at place `order` of the shuffled class belongs to the client whose share ends after that place.
        owners.append(torch.searchsorted(ends, order, right=True).clamp(max=clients - 1))
    owner = torch.cat(owners)
    _fill_empty_clients(owner, clients)
    sizes = torch.bincount(owner, minlength=clients)
    shards = make_shards(torch.split(rows[owner.argsort(stable=True)], sizes.tolist()), dataset.base)
    return Partition("dirichlet", seed, shards, shots_warnings(shots, by_class.values())).checked(dataset)


def _fill_empty_clients(owner: Tensor, clients: int) -> None:
    """Give every client without images one image of the largest client, in place."""
    sizes = torch.bincount(owner, minlength=clients)
    for empty in (sizes == 0).nonzero().flatten().tolist():
        largest = int(sizes.argmax())
        owner[(owner == largest).nonzero().flatten()[-1]] = empty
        sizes[largest] -= 1
        sizes[empty] = 1


def check_alpha(alpha: float) -> None:
    """UserError unless alpha > 0."""
    if not alpha > 0:
        raise UserError(f"dirichlet needs alpha > 0, not {alpha}; 0.1 is strongly non-IID, inf is IID.")
