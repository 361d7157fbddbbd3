"""Hostile values, damaged bytes and special files for the attacks by made files (threat model T4)."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from fedprompt.errors import UserError

TRIES = int(os.environ.get("FEDPROMPT_ATTACK_TRIES", "10"))
RECIPE = """
name = "small"
seed = 3
[data]
source = "emoji"
train = 1
test = 1
[partition]
rule = "class_chunks"
classes_per_client = 20
shots = 1
[method]
name = "promptfl"
[train]
rounds = 1
batch_size = 20
lr = 0.002
[evaluate]
samples = 0
"""


def tries() -> Iterator[random.Random]:
    """A generator per try; the seed of the try that fails is its `number`."""
    for number in range(TRIES):
        draw = random.Random(number)
        draw.number = number  # type: ignore[attr-defined]  (for whoever looks at a failure)
        yield draw


def refused_or_harmless(read: Callable[[], object]) -> bool:
    """Whether reading is refused by a UserError; any other exception fails the test."""
    try:
        read()
    except UserError as error:
        assert len(str(error).split()) > 3, error
        return True
    return False


VALUES = (
    None,
    True,
    -1,
    0,
    1e308,
    10**299,
    "",
    "x" * 5000,
    [],
    {},
    [[]],
    {"a": {}},
    ["\0"],
    [1, "a"],
    [0.5],
    ["a", "a"],
)


def hostile(draw: random.Random, value: object) -> object:
    """A value in which one part is another one."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(sorted(value))
        return (
            {**value, key: hostile(draw, value[key])}
            if draw.random() < 0.9
            else {k: value[k] for k in value if k != key}
        )
    if isinstance(value, list) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        return [*value[:place], hostile(draw, value[place]), *value[place + 1 :]]
    return draw.choice(VALUES)


def special(draw: random.Random, path: Path) -> None:
    """Put something else than a regular file in the place of one."""
    path.unlink(missing_ok=True)
    kind = draw.choice(("pipe", "zero", "full", "loop", "folder", "link to a pipe", "gone", "socket"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind in ("zero", "full"):
        path.symlink_to(f"/dev/{kind}")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a pipe":
        pipe = path.with_name(f"{path.name}.{draw.random()}.pipe")
        os.mkfifo(pipe)
        path.symlink_to(pipe)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = Path.cwd()
            os.chdir(path.parent)  # a socket's path is short
            server.bind(path.name)
            os.chdir(here)


def damaged(draw: random.Random, content: bytes) -> bytes:
    """The bytes cut, with some flipped, doubled, or replaced."""
    kind = draw.randrange(5)
    place = draw.randrange(max(len(content), 1))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + draw.randbytes(draw.randint(1, 40)) + content[place + draw.randint(0, 40) :]
    if kind == 2:
        return content[:place] + content[place:] * draw.randint(0, 3)
    if kind == 3:
        flipped = bytearray(content)
        for _ in range(draw.randint(1, 20)):
            if flipped:
                flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        return bytes(flipped)
    return draw.randbytes(draw.randint(0, 300))
