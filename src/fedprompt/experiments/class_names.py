"""What `fedprompt describe` reads: class names, label co-occurrence, and descriptions compared by a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from fedprompt.config.outside_code import named_code, require_trusted, typed
from fedprompt.config.recipe import find_recipe, load_recipe
from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.data.dataset import Dataset
from fedprompt.data.descriptions import Descriptions
from fedprompt.data.labels import LabelSpace
from fedprompt.descriptions import statistics as measure
from fedprompt.descriptions.label_combinations import Combination, co_occurrence, combinations
from fedprompt.descriptions.pipeline import read_names
from fedprompt.descriptions.review import FindDuplicates
from fedprompt.errors import UserError
from fedprompt.experiments.experiment import load_backbone
from fedprompt.experiments.plan import resolve

MOST_IMAGES = 2000  # training images on which zero-shot accuracy is measured


@dataclass(frozen=True)
class ClassNames:
    """Class names, and the data set that they are from, if any."""

    names: tuple[str, ...] = ()
    dataset: Dataset | None = None

    def combinations(self, most: int, *, seed: int) -> list[Combination]:
        """Combinations of labels that co-occur in training images; without a data set, any combinations."""
        counts = torch.zeros(len(self.names), len(self.names))
        if self.dataset is not None and self.dataset.space.kind == "multi":
            counts = co_occurrence(self.dataset.targets[self.dataset.rows(split="train")])
        return combinations(counts, most=most, seed=seed)


def read_class_names(
    classes: Path | None, recipe: str | None, settings: Sequence[str] = (), *, trusted: Sequence[str] = ()
) -> ClassNames:
    """The classes of a text file or of a recipe's data set; none if neither is given, UserError if both are.

    Code outside fedprompt that the recipe names must be of `trusted` modules, or stand in the settings.
    """
    if classes is not None and recipe is not None:
        raise UserError("Give the classes once: --classes FILE, or --data RECIPE.")
    if classes is not None:
        return ClassNames(read_names(classes))
    if recipe is None:
        return ClassNames()
    path = find_recipe(recipe)
    wanted = load_recipe(path, settings)
    names = named_code(wanted)
    require_trusted(names, (*trusted, *typed(names, settings)), place=path.name)
    dataset = resolve(wanted, origin=path.name).source()
    return ClassNames(dataset.space.names, dataset)


@dataclass(frozen=True)
class Comparison:
    """Descriptions compared by a backbone: near-duplicate phrases, and the separation of the classes."""

    overlaps: FindDuplicates | None = None
    separations: tuple[measure.Separation, measure.Separation] | None = None


def compare(descriptions: Descriptions, known: ClassNames, backbone: str | None) -> Comparison:
    """Compare descriptions by their text features; an empty comparison without a backbone."""
    named = dict.fromkeys(
        (*descriptions.attributes, *(label for scene in descriptions.scenes for label in scene.labels))
    )
    names = known.names or tuple(named)
    if backbone is None or len(names) < 2:
        return Comparison()
    clip = load_backbone(BackboneTable(path=backbone))
    overlaps = partial(measure.overlaps, clip, limit=measure.similarity_threshold(clip, names))
    if not descriptions.attributes:
        return Comparison(overlaps)
    if known.dataset is None:
        return Comparison(overlaps, measure.separations(clip, LabelSpace(names), descriptions.attributes))
    rows = known.dataset.rows(split="train")
    examples = known.dataset.examples(rows[:: max(1, len(rows) // MOST_IMAGES)])
    return Comparison(overlaps, measure.separations(clip, known.dataset.space, descriptions.attributes, examples))
