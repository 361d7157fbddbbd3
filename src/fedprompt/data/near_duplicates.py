"""Near-duplicate images: perceptual hashes (DCT of the grey image, 64 bits, of `imagehash`) that differ in few bits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedprompt.data.images import OnStep

DISTANCE = 4  # bits in which the hashes of near-duplicates differ at most; other images differ in about 32
BANDS = DISTANCE + 1  # if hashes differ in four bits, at least one of five bands of bits is equal
SMALL = 128  # pixels to which images are reduced before they are hashed
CONTRAST = 16  # grey levels; the hash of an image with less is noise

Words = NDArray[np.uint64]


def perceptual_hash(image: Image.Image) -> int | None:
    """The hash of an RGB image; None for one of nearly one grey, whose hash says nothing."""
    grey = image.convert("L")
    grey.thumbnail((SMALL, SMALL), reducing_gap=2.0)
    levels = np.asarray(grey)
    if int(levels.max()) - int(levels.min()) < CONTRAST:
        return None
    return int(str(imagehash.phash(grey)), 16)


def near_duplicates(
    first: Mapping[int, int], second: Mapping[int, int], *, on_step: OnStep | None = None
) -> Iterator[tuple[int, int, int]]:
    """For each image of `second` (row -> hash) that has a near-duplicate in `first`: both rows, and the distance.

    Of several in `first` the closest, of equally close ones the first. Hashes are compared where a band of bits is
    equal, so that the time grows with the number of images, not with its square.
    """
    rows = np.array(list(first), np.int64)
    words = np.array(list(first.values()), np.uint64)
    bands = [_places(_band(words, band)) for band in range(BANDS)]
    for number, (row, own) in enumerate(second.items(), start=1):
        word = np.uint64(own)
        held = [bands[band].get(int(_band(np.array([word]), band)[0])) for band in range(BANDS)]
        near = [places for places in held if places is not None]
        if near:
            places = np.unique(np.concatenate(near))
            distances = np.bitwise_count(words[places] ^ word)
            best = int(distances.argmin())
            if distances[best] <= DISTANCE:
                yield int(rows[places[best]]), row, int(distances[best])
        if on_step is not None:
            on_step(number, len(second))


def _band(words: Words, band: int) -> Words:
    """The bits of one of the bands of each word."""
    start, end = 64 * band // BANDS, 64 * (band + 1) // BANDS
    return (words >> np.uint64(start)) & np.uint64((1 << (end - start)) - 1)


def _places(values: Words) -> dict[int, NDArray[np.int64]]:
    """The places of each value."""
    found: dict[int, list[int]] = defaultdict(list)
    for place, value in enumerate(values.tolist()):
        found[value].append(place)
    return {value: np.array(places) for value, places in found.items()}
