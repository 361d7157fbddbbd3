"""A million pictures listed, indexed and opened again, and pictures decoded a second: `python -m benchmarks.data`."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from fedprompt.data.images import Images
from fedprompt.data.named import list_set
from fedprompt.data.readers import FileSource
from fedprompt.data.workers import Workers

IMAGENET = 1_281_167
CLASSES = 1000
SIZE = (500, 375)  # of a usual photograph in ImageNet


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def make_tree(root: Path, pictures: int) -> None:
    """ImageNet's layout with empty files: listing opens none."""
    ids = [f"n{number:08d}" for number in range(CLASSES)]
    (root / "imagenet").mkdir()
    (root / "imagenet/classnames.txt").write_text("".join(f"{wnid} thing {wnid}\n" for wnid in ids))
    for split, count in (("train", pictures), ("val", CLASSES)):
        for number, wnid in enumerate(ids):
            folder = root / f"imagenet/images/{split}/{wnid}"
            folder.mkdir(parents=True)
            for picture in range(number, count, CLASSES):
                os.close(os.open(folder / f"{wnid}_{picture}.JPEG", os.O_CREAT | os.O_WRONLY))


def index(pictures: int) -> dict[str, float]:
    """Seconds to list and index a tree of ImageNet's size, and to open it again; memory that the opened one takes."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["FEDPROMPT_CACHE"] = str(root / "cache")
        make_tree(root, pictures)
        built = seconds(lambda: list_set("imagenet", root, {}))
        before = psutil.Process().memory_info().rss
        opened = seconds(lambda: list_set("imagenet", root, {}))
        _, kept, _ = list_set("imagenet", root, {})
        memory = (psutil.Process().memory_info().rss - before) / 2**20
        size = next((root / "cache/indexes").iterdir()).stat().st_size / 2**20
        assert len(kept.files) == pictures + CLASSES
    return {"list and index (s)": built, "open again (s)": opened, "index (MiB)": size, "memory (MiB)": memory}


def decoding(count: int, workers: tuple[int, ...]) -> dict[str, float]:
    """Pictures a second from JPEG to what the tower takes, and how much memory the main process has grown by."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        draws = np.random.default_rng(0)
        for number in range(count):
            small = draws.integers(0, 255, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize(SIZE).save(Path(folder) / f"{number}.jpg", quality=90)
        source = FileSource(Path(folder), tuple(f"{number}.jpg" for number in range(count)))
        batches = [Images(source, tuple(range(start, min(start + 32, count)))) for start in range(0, count, 32)]
        prepare = _Prepare(processor)
        found["one process"] = count / seconds(lambda: [prepare(list(batch)) for batch in batches])
        for number in workers:
            pool = Workers(number, source, prepare)
            list(pool.map(batches[:1] * number))  # processes that have begun
            before = psutil.Process().memory_info().rss
            found[f"{number} worker processes"] = count / seconds(lambda pool=pool: [None for _ in pool.map(batches)])
            found[f"{number} worker processes, memory grown (MiB)"] = (
                psutil.Process().memory_info().rss - before
            ) / 2**20
            pool.close()
    return found


class _Prepare:
    def __init__(self, processor: CLIPImageProcessorPil) -> None:
        self.processor = processor

    def __call__(self, images: list[Image.Image]) -> np.ndarray:
        return self.processor(images=images, return_tensors="np")["pixel_values"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=IMAGENET)
    parser.add_argument("--decoded", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 4, 8])
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name, value in {**index(given.pictures), **decoding(given.decoded, tuple(given.workers))}.items():
        print(f"{name}: {value:.3g}")


if __name__ == "__main__":
    main()
