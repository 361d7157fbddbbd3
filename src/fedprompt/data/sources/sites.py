"""Images that lie at several sites: one folder of class folders per site, over one agreed list of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fedprompt.config.registry import at_sites
from fedprompt.data.dataset import Dataset
from fedprompt.data.image_formats import Window
from fedprompt.data.images import JoinedSource
from fedprompt.data.intake.class_names import normal_name
from fedprompt.data.intake.report import joined_intake
from fedprompt.data.labels import LabelSpace
from fedprompt.data.partition.by_site import SERVER
from fedprompt.data.sources.image_folder import image_folder
from fedprompt.errors import UserError, did_you_mean


@at_sites
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
    """Read `folders[site]/<class>/*` of every site that is readable here; the images of the others stay at their site.

    `classes` are those that all sites have agreed on, in that order; a site may lack some and have no others. `test`
    is a folder of class folders that the server alone tests with. A folder is read, and its test images are drawn, as
    by `image_folder`, so a deployed site has the same images as in simulation. Raises UserError for a class that was
    not agreed on.
    """
    datasets = {
        name: image_folder(
            path=folder, seed=seed, test_fraction=test_fraction, layout="classes", base="all", window=window
        )
        for name, folder in sorted((folders or {}).items())
    }
    if test:
        datasets[SERVER] = image_folder(path=test, test_fraction=0, layout="classes", base="all", window=window)
    classes = tuple(map(normal_name, classes))
    targets = [_agreed_labels(dataset, classes)[dataset.targets] for dataset in datasets.values()]
    return Dataset(
        name="several sites",
        source=JoinedSource(tuple(dataset.source for dataset in datasets.values())),
        space=LabelSpace(classes, template=template, attributes=attributes or {}),
        targets=torch.cat([torch.empty(0, dtype=torch.int64), *targets]),
        splits=tuple(
            "test" if name == SERVER else split for name, dataset in datasets.items() for split in dataset.splits
        ),
        domains=tuple(name for name, dataset in datasets.items() for _ in dataset.splits),
        base=tuple(range(len(classes))),
        intake=replace(
            joined_intake({name: dataset.report for name, dataset in datasets.items()}),
            origins={"classes": "as the sites have agreed", "domains": "one per site", "splits": _split_origin(test)},
        ),
    )


def _split_origin(test: Path | None) -> str:
    return "as each part says" + (f"; the server tests with {test}" if test else "")


def _agreed_labels(dataset: Dataset, classes: Sequence[str]) -> torch.Tensor:
    """[C] the agreed label of each class of a folder."""
    for name in dataset.space.names:
        if name not in classes:
            raise UserError(
                f"The class {name!r} was not agreed on{did_you_mean(name, classes)} "
                f"(classes: {', '.join(classes)}); rename or remove its folder."
            )
    return torch.tensor([classes.index(name) for name in dataset.space.names])
