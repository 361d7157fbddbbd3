"""Pictures that lie at several sites: one folder of class folders each, over one list of classes agreed beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fedprompt.data.dataset import Dataset
from fedprompt.data.decode import Window
from fedprompt.data.images import JoinedSource
from fedprompt.data.labels import LabelSpace
from fedprompt.data.partition.base import Partition, Shard
from fedprompt.data.sources.image_folder import image_folder
from fedprompt.errors import UserError, did_you_mean

SERVER = "server"  # the domain of pictures that the server tests with


def sites(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    classes: tuple[str, ...],
    folders: Mapping[str, Path] | None = None,
    test: Path | None = None,
    template: str = "a photo of a {}.",
    attributes: Mapping[str, tuple[str, ...]] | None = None,
    test_fraction: float = 0.25,
    window: Window | None = None,
    seed: int = 0,
) -> Dataset:
    """Read `folders[site]/<class>/*` of every site that is here; the pictures of the others stay where they are.

    `classes` are what all sites have agreed to tell apart, in that order; a site may lack some and have no others.
    `test` is a folder of class folders that the server alone tests with. A folder is read, and its test pictures are
    drawn, as `image_folder` does, so a site sees in a federation what a simulation sees of it. Raises UserError for a
    class that was not agreed on.
    """
    read = {
        name: image_folder(
            path=folder, seed=seed, test_fraction=test_fraction, layout="classes", base="all", window=window
        )
        for name, folder in sorted((folders or {}).items())
    }
    if test:
        read[SERVER] = image_folder(path=test, test_fraction=0, layout="classes", base="all", window=window)
    targets = [_agreed(dataset, classes)[dataset.targets] for dataset in read.values()]
    return Dataset(
        name="several sites",
        source=JoinedSource(tuple(dataset.source for dataset in read.values())),
        space=LabelSpace(classes, template=template, attributes=attributes or {}),
        targets=torch.cat([torch.empty(0, dtype=torch.int64), *targets]),
        splits=tuple("test" if name == SERVER else split for name, dataset in read.items() for split in dataset.splits),
        domains=tuple(name for name, dataset in read.items() for _ in dataset.splits),
        base=tuple(range(len(classes))),
    )


def _agreed(dataset: Dataset, classes: Sequence[str]) -> torch.Tensor:
    """The agreed label of each of a folder's classes."""
    for name in dataset.space.names:
        if name not in classes:
            raise UserError(
                f"The class {name!r} was not agreed on{did_you_mean(name, classes)} "
                f"(classes: {', '.join(classes)}); rename or remove its folder."
            )
    return torch.tensor([classes.index(name) for name in dataset.space.names])


def by_site(dataset: Dataset, *, sites: tuple[str, ...] = ()) -> Partition:
    """A client a site, in the order of names; each holds all its own pictures and chooses between all classes.

    `sites` are those that take part, here or elsewhere; all that the data set knows if none are named.
    """
    names = sorted(sites or {domain for domain in dataset.domains if domain != SERVER})
    shards = (
        Shard(name, tuple(dataset.rows(split="train", domains=(name,)).tolist()), dataset.base, name) for name in names
    )
    return Partition("by_site", 0, tuple(shards))
