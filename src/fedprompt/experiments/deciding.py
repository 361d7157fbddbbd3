"""From which probability a label counts as present: the images on which that threshold is fitted, and the fit."""

from __future__ import annotations

import math

from torch import Tensor

from fedprompt.data.dataset import Examples
from fedprompt.errors import plural
from fedprompt.experiments.experiment import Experiment
from fedprompt.ops.metrics import best_threshold

FEWEST = 200  # images on which a threshold near the number of labels is fitted, if there are as many
MOST_LABELS = 1.25  # times as many labels as there are that such a threshold predicts, at most


def deciding_images(experiment: Experiment) -> Examples | None:
    """The images on which decision thresholds are fitted: never a test image; None with one label per image."""
    if experiment.dataset.space.kind != "multi":
        return None
    return experiment.clients.deciding(FEWEST if _is_near_count(experiment) else 0)


def fit_threshold(experiment: Experiment, logits: Tensor, targets: Tensor) -> float | None:
    """The threshold on probabilities that fits logits [N, C], as the recipe says; None without any label."""
    most = MOST_LABELS if experiment.recipe.evaluate.threshold == "near_count" else math.inf
    found = best_threshold(logits.sigmoid(), targets, most=most)
    return None if math.isnan(found) else found


def threshold_in_words(experiment: Experiment) -> str:
    """What the threshold is fitted on: "a threshold fitted on 9 held-out training images and ..."."""
    images, held_out = deciding_images(experiment), experiment.clients.held_out()
    if images is None:
        return ""
    held = len(held_out) if held_out is not None else 0
    if len(images) == held:
        return f"a threshold fitted on {plural(held, 'held-out training image')}"
    trained = plural(len(images) - held, "image")
    if not held:
        return f"a threshold fitted on {trained} that the clients train on"
    few = plural(held, "held-out training image")
    return f"a threshold fitted on {few} and, as these are too few, {trained} that the clients train on"


def _is_near_count(experiment: Experiment) -> bool:
    return experiment.recipe.evaluate.threshold == "near_count" and not experiment.plan.data_at_sites
