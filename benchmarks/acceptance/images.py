"""Criteria for images at a site: unreadable ones, 16-bit greys, colour modes, malicious paths, very few images."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.acceptance.criteria import Criterion, Row, proof, row
from fedprompt.config.recipe import parse_recipe
from fedprompt.data.image_formats import MAX_PIXELS, Window, decode
from fedprompt.data.sources.class_table import class_table
from fedprompt.errors import UserError
from fedprompt.experiments import run as runs
from fedprompt.experiments.plan import resolve
from fedprompt.records.events import RoundEvent
from fedprompt.records.reading import read_run
from fedprompt.records.run_folder import read_events

NAMES = 84  # generated paths of each of six kinds
BOMB = 30_000  # pixels a side
RECIPE = """
name = "bars"
seed = 1
{data}
[partition]
{partition}
[method]
name = "promptfl"
[train]
rounds = 2
batch_size = 8
[evaluate]
samples = 0
"""


def criteria(folder: Path) -> Iterator[Criterion]:
    """All criteria for images."""
    yield from unreadable(folder / "unreadable")
    yield from bad_images(folder / "bad")
    yield from deep_greys(folder)
    yield proof(
        "CMYK, grey with alpha, RGBA, 1-bit, palettes, EXIF turns",
        "on white, in colour, upright, as documented",
        "test_data_image_formats.py::test_every_mode_becomes_rgb_on_white",
        "test_data_image_formats.py::test_palettes_become_colours_and_their_transparent_entry_white",
        "test_data_image_formats.py::test_exif_orientation_is_applied",
    )
    yield from paths(folder / "paths")
    yield proof(
        "class names made of markup, in a report",
        "are only ever text",
        "test_report.py::test_names_from_clients_are_only_ever_text",
    )
    yield few_images(folder / "few")
    yield proof(
        "a class without any image",
        "named before the run",
        "test_data_sources_image_folder.py::test_a_class_without_images_is_left_out_and_named",
    )
    yield proof(
        "unknown labels (-1), images that show nothing",
        "cost, move and count nothing; such a run ends well",
        "test_ops_losses.py::test_unknown_labels_cost_nothing_and_move_nothing",
        "test_ops_metrics.py::test_unknown_labels_count_nowhere",
        "test_cli_multilabel.py::test_a_run_on_a_table_writes_all_its_files",
    )
    yield proof(
        "class lists that differ between sites in order, case or spelling",
        "the preflight stops the run and names the classes as what differs",
        "test_deploy_site.py::test_different_class_lists_fail_the_preflight",
    )


def unreadable(folder: Path) -> Iterator[Criterion]:
    """Unreadable images are refused with a reason."""
    folder.mkdir()
    image = folder / "whole.jpg"
    Image.effect_noise((256, 256), 50).save(image)
    content = image.read_bytes()
    files = {"cut": content[: len(content) // 2], "empty": b"", "text": b"no image", "bomb": bomb(BOMB)}
    refused, slowest = [], 0.0
    for name, data in files.items():
        (folder / f"{name}.jpg").write_bytes(data)
        started = time.perf_counter()
        try:
            decode(folder / f"{name}.jpg")
        except UserError as error:
            refused += [name] * (f"{name}.jpg" in str(error))
        slowest = max(slowest, time.perf_counter() - started)
    size = f"{BOMB} x {BOMB} pixels in {len(files['bomb']) // 1000} kB"
    what = f"images that are cut off, empty, text, or {size}"
    yield row(
        what,
        "refused with the reason",
        f"{len(refused)} of {len(files)}, in {slowest:.2f} s at most",
        met=len(refused) == 4,
    )
    yield row("most pixels of an image", "at most 64 million", f"{MAX_PIXELS:,}", met=MAX_PIXELS <= 64_000_000)


def bomb(side: int) -> bytes:
    """A black PNG of 1 bit per pixel, compressed line by line."""
    packer, line = zlib.compressobj(9), bytes(1 + -(-side // 8))
    packed = b"".join([*(packer.compress(line) for _ in range(side)), packer.flush()])

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def write_images(folder: Path, *, count: int, shade: int = 0) -> None:
    """Write `count` different small images."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (16, 16), (shade, 5 * number, 90)).save(folder / f"{number}.png")


def run_with_bad_pictures(folder: Path, bad: int) -> str:
    """The outcome of a run with `bad` unreadable images among forty."""
    for number, name in enumerate(("cat", "dog")):
        write_images(folder / "images" / name, count=20, shade=100 * number)
    for number in range(bad):
        (folder / "images" / "cat" / f"{number}.png").write_bytes(b"")
    table = f'[data]\nsource = "image_folder"\npath = "{folder / "images"}"\nbase = "all"'
    try:
        runs.start(
            resolve(parse_recipe(RECIPE.format(data=table, partition='rule = "iid"\nclients = 2'))), folder / "run"
        )
    except UserError:
        return "stops in its rounds" if (folder / "run").exists() else "stops before round 1"
    reasons = [image.reason for image in read_run(folder / "run").header.left_out]
    return f"goes on; {sum(map(bool, reasons))} recorded with the reason"


def bad_images(folder: Path) -> Iterator[Criterion]:
    """Fewer unreadable images than one in twenty, and more."""
    few, many = (run_with_bad_pictures(folder / str(bad), bad) for bad in (1, 3))
    criterion = "goes on without it, and records it with its reason"
    yield row("a run with 1 unreadable image of 40", criterion, few, met=few == "goes on; 1 recorded with the reason")
    criterion = "stops before it begins: above 5% is no accident"
    yield row("a run with 3 unreadable images of 40", criterion, many, met=many == "stops before round 1")


def deep_greys(folder: Path) -> Iterator[Criterion]:
    """A ramp of 256 levels in 16-bit, 32-bit and float modes, by every window."""
    ramp = np.linspace(0, 65535, 256).reshape(16, 16)
    ways: tuple[tuple[str, str, Window | None], ...] = (
        ("<u2", "png", None),
        (">u2", "tif", None),
        ("<u2", "png", "minmax"),
        ("<u2", "png", (0, 65535)),
        ("<i4", "tif", (0, 65535)),
        ("<i4", "tif", "minmax"),
        ("<f4", "tif", (0, 65535)),
        ("<f4", "tif", "minmax"),
    )
    kept = []
    for number, (kind, suffix, window) in enumerate(ways):
        path = folder / f"ramp{number}.{suffix}"
        Image.fromarray(ramp.astype(kind)).save(path)
        kept.append(len(np.unique(np.asarray(decode(path, window=window)))))
    what = "a ramp of 256 levels in 16 bits, 32 bits and floats, by full range, window and own extremes"
    yield row(what, "keeps at least 250 levels", f"{min(kept)} levels", met=min(kept) >= 250)


def paths(root: Path) -> Iterator[Criterion]:
    """Tables with paths to images outside their folder, or with invalid names."""
    inside = root / "inside"
    write_images(inside, count=2)
    write_images(root / "outside", count=1)
    (inside / "link").symlink_to(root / "outside")
    kinds: dict[str, Callable[[int], str]] = {
        "out of its folder by ..": lambda number: "./" * number + "../outside/0.png",
        "from the root": lambda number: "/" * (1 + number % 3) + str(root / "outside" / "0.png").lstrip("/"),
        "through a link out of its folder": lambda number: "./" * number + "link/0.png",
        "with a NUL": lambda number: f"{number}\0.png",
        "named as a device of Windows": lambda number: f"{('CON', 'NUL', 'aux', 'COM1')[number % 4]}.{number}.png",
        "with marks that turn the writing round": lambda number: f"{number}\u202egnp.exe",
    }
    for kind, path in kinds.items():
        ends = Counter(ending(inside, path(number)) for number in range(NAMES))
        said = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
        yield row(f"{NAMES} paths in a table, {kind}", "refused", said, met=ends["refused"] == NAMES)


def ending(folder: Path, path: str) -> str:
    """The outcome of a table with that path in it."""
    name = path.rpartition("/")[2]
    if "/" not in path and "\0" not in path:
        Image.new("RGB", (4, 4)).save(folder / name, "PNG")
    table = folder / "table.jsonl"
    lines = [{"image": path, "label": "a"}, {"image": "1.png", "label": "b"}]
    table.write_text("".join(json.dumps(line | {"split": "train"}) + "\n" for line in lines), encoding="utf-8")
    try:
        dataset = class_table(path=table)
        dataset.source.open(0)
    except UserError:
        return "refused"
    except Exception as error:
        return f"uncaught {type(error).__name__}"
    return "opened"


def few_images(folder: Path) -> Row:
    """A site with a single image, and a site without its class."""
    write_images(folder / "a" / "cat", count=1)
    write_images(folder / "b" / "dog", count=6)
    folders = "\n".join(f'{name} = "{folder / name}"' for name in "ab")
    table = f'[data]\nsource = "sites"\nclasses = ["cat", "dog"]\n[data.folders]\n{folders}'
    runs.start(resolve(parse_recipe(RECIPE.format(data=table, partition='rule = "by_site"'))), folder / "run")
    rounds = [event for event in read_events(folder / "run") if isinstance(event, RoundEvent)]
    finite = sum(loss is not None for event in rounds for loss in event.losses.values())
    said = f"{len(rounds)} of 2 rounds, {finite} of 4 finite losses"
    what = "a site with one image, and one that lacks a class"
    return row(what, "both train and the run ends well", said, met=finite == 4)
