"""Test images for which two trials predict differently, counted from the predictions of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

from fedprompt.records.predictions import Predictions

Row = tuple[str, str, int]  # name and part of the test set, row in the data set
Digests = Mapping[str, Mapping[Row, frozenset[bytes]]]  # by split: what the models of a trial predict for each image


def prediction_digests(predictions: Iterable[Predictions]) -> Digests:
    """What a trial predicts for each test image, as digests; personal models may give several for one image."""
    found: dict[str, dict[Row, frozenset[bytes]]] = {}
    for one in predictions:
        split, name, part, _ = one.key
        own = found.setdefault(split, {})
        for row, digest in zip(one.rows.tolist(), _digests(one), strict=True):
            own[name, part, row] = own.get((name, part, row), frozenset()) | {digest}
    return found


def count_changed(first: Digests, second: Digests, split: str) -> int | None:
    """The number of images of a split that the trials predict differently; None unless both predict the same images."""
    left, right = first.get(split), second.get(split)
    if left is None or right is None or left.keys() != right.keys():
        return None
    return sum(left[row] != right[row] for row in left)


def _digests(found: Predictions) -> Iterator[bytes]:
    """The predicted class of each image, or a digest of its scores."""
    if found.predicted is not None:
        yield from (name.encode() for name in found.predicted)
    elif found.scores is not None:
        yield from (hashlib.blake2b(scores.tobytes(), digest_size=16).digest() for scores in found.scores)
