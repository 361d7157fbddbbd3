"""Images that lie at several sites: one folder of class folders per site, over one agreed list of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from fedprompt.config.registry import at_sites
from fedprompt.data.dataset import Dataset
from fedprompt.data.file_source import FileSource
from fedprompt.data.image_formats import Window
from fedprompt.data.images import JoinedSource
from fedprompt.data.intake.class_names import normal_name
from fedprompt.data.intake.report import Mistakes, joined_intake, read_all
from fedprompt.data.labels import LabelSpace
from fedprompt.data.partition.by_site import SERVER
from fedprompt.data.sources.image_folder import image_folder
from fedprompt.data.splits import check_test_fraction, draw_test_splits
from fedprompt.errors import UserError, did_you_mean
from fedprompt.seeding import seed_for


class NotAgreedError(UserError):
    """A folder has classes that the sites have not agreed on."""


@at_sites
def sites(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    classes: tuple[str, ...],
    folders: Mapping[str, Path] | None = None,
    test: Path | None = None,
    template: str = "a photo of a {}.",
    attributes: Mapping[str, tuple[str, ...]] | None = None,
    test_fraction: float = 0.25,
    validation_fraction: float = 0.0,
    links: bool = False,
    window: Window | None = None,
    seed: int = 1,
) -> Dataset:
    """Read `folders[site]/<class>/*` of every site that is readable here; the images of the others stay at their site.

    `classes` are those that all sites have agreed on, in that order; a site may lack some and have no others. `test`
    is a folder of class folders that the server alone tests with. A folder is read, and its test images are drawn, as
    by `image_folder`; of its training images, a share `validation_fraction` is drawn for validation unless the folder
    says which those are. A deployed site takes both shares, and the seed, from its own file. With `links`, links in a
    folder may lead out of it. Raises UserError for a class that was not agreed on.
    """
    check_test_fraction(validation_fraction, name="validation_fraction")
    read = partial(image_folder, layout="classes", base="all", links=links, window=window)
    readers = {
        name: partial(read, path=folder, seed=seed, test_fraction=test_fraction)
        for name, folder in sorted((folders or {}).items())
    }
    if test:
        readers[SERVER] = partial(read, path=test, test_fraction=0)
    datasets = {
        name: _with_validation(dataset, validation_fraction, seed)
        for name, dataset in zip(readers, read_all(readers.values()), strict=True)
    }
    classes = tuple(map(normal_name, classes))
    try:
        agreed = read_all([partial(_agreed_labels, dataset, classes) for dataset in datasets.values()])
    except UserError as error:
        raise NotAgreedError(str(error)) from None
    targets = [labels[dataset.targets] for labels, dataset in zip(agreed, datasets.values(), strict=True)]
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


def _with_validation(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The data set with a share of each class's training images for validation, if it has none."""
    rows, source = dataset.rows(split="train").tolist(), dataset.source
    if not share or "val" in dataset.splits or not isinstance(source, FileSource):
        return dataset
    drawn = draw_test_splits(
        [source.files[row] for row in rows],
        dataset.targets[rows].tolist(),
        test_fraction=share,
        seed=seed_for(seed, "validation"),
        contents=[source.contents[row] for row in rows],
    )
    splits = list(dataset.splits)
    for row, split in zip(rows, drawn, strict=True):
        splits[row] = "val" if split == "test" else "train"
    return replace(dataset, splits=tuple(splits))


def _split_origin(test: Path | None) -> str:
    return "as each part says" + (f"; the server tests with {test}" if test else "")


def _agreed_labels(dataset: Dataset, classes: Sequence[str]) -> torch.Tensor:
    """[C] the agreed label of each class of a folder."""
    mistakes = Mistakes(dataset.intake.origins["images"].removeprefix("files below "))
    for name in dataset.space.names:
        if name not in classes:
            mistakes.add(f"the class {name!r} was not agreed on{did_you_mean(name, classes)}")
    mistakes.check(fix=f"rename or remove its folder (classes: {', '.join(classes)})")
    return torch.tensor([classes.index(name) for name in dataset.space.names])
