"""Benchmarks of data: listing, indexing and opening a data set of ImageNet's size, and decoding images by workers."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import numpy as np
import psutil
from PIL import Image
from transformers import CLIPImageProcessorPil

from fedprompt.data.decode_workers import Pixels, Workers
from fedprompt.data.file_source import FileSource
from fedprompt.data.images import Images
from fedprompt.data.published.catalog import list_images

IMAGENET = 1_281_167
CLASSES = 1000
SIZE = (500, 375)  # of a usual photograph in ImageNet
BATCH = 32

Made = TypeVar("Made")


def data(*, images: int = IMAGENET, decoded: int = 1000) -> dict[str, float]:
    """Index and decoding, with worker processes in powers of two up to the number of cores."""
    cores = len(os.sched_getaffinity(0))
    return index(images) | decoding(decoded, tuple(2**power for power in range(1, cores.bit_length())))


def index(images: int, *, classes: int = CLASSES) -> dict[str, float]:
    """Seconds to list and index that many training images and to open the index again, and the memory it takes."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, FEDPROMPT_CACHE=f"{folder}/cache"):
        root = Path(folder)
        make_tree(root, images, classes)
        built, _ = timed(lambda: list_images("imagenet", root, {}))
        before = memory()
        opened, (_, kept, _) = timed(lambda: list_images("imagenet", root, {}))
        assert len(kept.files) == images + classes
        size = next((root / "cache/indexes").iterdir()).stat().st_size / 2**20
        return {
            f"list and index {images:,} images (s)": built,
            "open the index again (s)": opened,
            "index on disk (MiB)": size,
            "memory of the opened index (MiB)": memory() - before,
        }


def make_tree(root: Path, images: int, classes: int) -> None:
    """ImageNet's layout with empty files, because listing opens none."""
    ids = [f"n{number:08d}" for number in range(classes)]
    (root / "imagenet").mkdir()
    (root / "imagenet/classnames.txt").write_text("".join(f"{wnid} thing {wnid}\n" for wnid in ids))
    for split, count in (("train", images), ("val", classes)):
        for number, wnid in enumerate(ids):
            folder = root / f"imagenet/images/{split}/{wnid}"
            folder.mkdir(parents=True)
            for image in range(number, count, classes):
                os.close(os.open(folder / f"{wnid}_{image}.JPEG", os.O_CREAT | os.O_WRONLY))


def decoding(count: int, workers: tuple[int, ...]) -> dict[str, float]:
    """Images per second from JPEG files to pixel tensors, and the growth of the main process's memory."""
    prepare = Prepare()
    with jpegs(count) as source:
        batches = [Images(source, tuple(range(start, min(start + BATCH, count)))) for start in range(0, count, BATCH)]
        prepare(batches[0])
        alone, _ = timed(lambda: [prepare(batch) for batch in batches])
        found = {"decoded by one process (images/s)": count / alone}
        for number in workers:
            pool = Workers(number, prepare)
            list(pool.map(batches[:1] * number))  # start the processes
            before = memory()
            spent, _ = timed(partial(_count, pool, batches))
            found[f"decoded by {number} workers (images/s)"] = count / spent
            found[f"memory growth, {number} workers (MiB)"] = memory() - before
            pool.close()
    return found


class Prepare:
    """CLIP's preprocessing; a class, so that it can be sent to workers."""

    def __init__(self) -> None:
        size = {"height": 224, "width": 224}
        self.processor = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size=size)

    def __call__(self, batch: Images) -> Pixels:
        return self.processor(images=list(batch), return_tensors="np")["pixel_values"]


@contextmanager
def jpegs(count: int) -> Iterator[FileSource]:
    """That many JPEG files of photograph size with random content."""
    draws = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            small = draws.integers(0, 255, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize(SIZE).save(Path(folder) / f"{number}.jpg", quality=90)
        yield FileSource(Path(folder), tuple(f"{number}.jpg" for number in range(count)))


def _count(pool: Workers[Pixels], batches: list[Images]) -> int:
    return sum(1 for _ in pool.map(batches))


def timed(work: Callable[[], Made]) -> tuple[float, Made]:
    """Seconds that a function took, and its result."""
    started = time.perf_counter()
    made = work()
    return time.perf_counter() - started, made


def memory() -> float:
    """Resident memory of this process in MiB."""
    return float(psutil.Process().memory_info().rss / 2**20)
