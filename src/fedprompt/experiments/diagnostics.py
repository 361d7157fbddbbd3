"""Diagnostics of a trained method: figures on what its parts do with a few test images, the same for every trial."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedprompt.clip.model import Clip
from fedprompt.experiments.test_sets import TestSet
from fedprompt.methods.base import Method
from fedprompt.records.event_fields import DiagnosticRecord
from fedprompt.records.events import DiagnosticsEvent
from fedprompt.seeding import stream

IMAGES = 64  # of the first test set
FEWEST, CELLS = 8, 6400  # of more than 100 classes fewer images, so that images x classes do not grow
DIGITS = 4


def diagnostics_event(
    method: Method, clip: Clip, test_sets: Sequence[TestSet], *, trial: str, seed: int
) -> DiagnosticsEvent | None:
    """What a method says of itself on images of the first test set; None if it says nothing or there are no images.

    A forward pass over 64 images at most: it is done after training and scoring, draws from a generator of its own, and
    changes no result.
    """
    if not test_sets:
        return None
    examples, split = test_sets[0].examples, test_sets[0].split
    count = max(FEWEST, min(IMAGES, CELLS // len(examples.space)))
    chosen = torch.randperm(len(examples), generator=stream(seed, "diagnostics"))[:count]
    method.eval()
    with torch.no_grad():
        found = method.diagnostics(clip, examples.images.take(chosen), examples.space)
    figures = [DiagnosticRecord(name=one.name, value=round(one.value, DIGITS), meaning=one.meaning) for one in found]
    if not figures:
        return None
    return DiagnosticsEvent(trial=trial, split=split, images=len(chosen), diagnostics=figures)
