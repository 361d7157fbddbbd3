"""Changes of a site's folder for a while: its policy, its images, its backbone and its records."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file, save_file

from fedprompt.demo import weights_folder
from fedprompt.deploy.audit import AUDIT, LEDGER
from fedprompt.deploy.settings import SITE, load_site, save

WIDTH = 2**30  # of an image that would not fit into any memory


@contextmanager
def policy(folder: Path, **changes: object) -> Iterator[None]:
    """A site whose administrator has another policy for a while."""
    site = load_site(folder)
    save(folder / SITE, site.model_copy(update={"policy": site.policy.model_copy(update=changes)}))
    try:
        yield
    finally:
        save(folder / SITE, site)


@contextmanager
def undivided_images(folder: Path) -> Iterator[None]:
    """A site whose folder does not say for a while which images are for testing."""
    site, whole = load_site(folder), folder / "undivided"
    for image in Path(site.data).rglob("*.png"):
        (whole / image.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, whole / image.parent.name / image.name)
    save(folder / SITE, site.model_copy(update={"data": str(whole)}))
    try:
        yield
    finally:
        save(folder / SITE, site)
        shutil.rmtree(whole)


@contextmanager
def other_image(folder: Path) -> Iterator[None]:
    """A site one of whose training images is another for a while."""
    first, second = training_images(folder)[:2]
    before = first.read_bytes()
    shutil.copyfile(second, first)
    try:
        yield
    finally:
        first.write_bytes(before)


@contextmanager
def other_backbone(folder: Path) -> Iterator[None]:
    """A site whose settings name another backbone for a while: the demo's, with one other weight."""
    shutil.copytree(weights_folder(), folder / "other-backbone", dirs_exist_ok=True)
    path = next((folder / "other-backbone").glob("*.safetensors"))
    weights = load_file(path)
    name = min(weights)
    save_file({**weights, name: weights[name] + 1}, path, {"format": "pt"})
    site = load_site(folder)
    save(folder / SITE, site.model_copy(update={"backbone": str(folder / "other-backbone")}))
    try:
        yield
    finally:
        save(folder / SITE, site)
        shutil.rmtree(folder / "other-backbone")


@contextmanager
def few_images(folder: Path, *, left: int) -> Iterator[None]:
    """A site that has fewer training images of one class for a while."""
    first, *_ = images = training_images(folder)
    moved = [path for path in images if path.parent == first.parent][left:]
    aside = folder / "aside"
    aside.mkdir()
    for path in moved:
        path.rename(aside / path.name)
    try:
        yield
    finally:
        for path in moved:
            (aside / path.name).rename(path)
        aside.rmdir()


@contextmanager
def made_images(folder: Path) -> Iterator[None]:
    """A site among whose training images are a pipe, and the header of an image of 2^60 pixels."""
    place = training_images(folder)[0].parent
    pipe, image = place / "pipe.png", place / "large.png"
    os.mkfifo(pipe)
    image.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, WIDTH, 8, 2, 0, 0, 0)))
    try:
        yield
    finally:
        pipe.unlink()
        image.unlink()


@contextmanager
def lost_ledger(folder: Path) -> Iterator[None]:
    """A site whose ledger is gone for a while."""
    aside = (folder / LEDGER).rename(folder / "ledger-aside")
    try:
        yield
    finally:
        aside.rename(folder / LEDGER)


@contextmanager
def edited_trail(folder: Path) -> Iterator[None]:
    """A site whose audit trail has another first line for a while."""
    trail = folder / AUDIT
    before = trail.read_bytes()
    first, _, rest = before.partition(b"\n")
    trail.write_bytes(first.replace(b'"rule":"', b'"rule":"x', 1) + b"\n" + rest)
    try:
        yield
    finally:
        trail.write_bytes(before)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def training_images(folder: Path) -> list[Path]:
    """The files of a site's training images, in order."""
    return sorted(Path(load_site(folder).data, "train").rglob("*.png"))
