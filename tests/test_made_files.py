"""Attacks 9 and 10: made files that never end or cost more than they are worth are refused in a sentence.

Every attack is tried `FEDPROMPT_ATTACK_TRIES` times, each try from a seed of its own.
"""

from __future__ import annotations

import io
import json
import os
import random
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedprompt.config.recipe import load_recipe
from fedprompt.data import image_formats
from fedprompt.data.descriptions import read_descriptions
from fedprompt.data.image_formats import decode
from fedprompt.data.intake.class_names import read_class_file
from fedprompt.data.intake.image_files import looks_like_image
from fedprompt.data.intake.table_columns import read_table
from fedprompt.data.intake.tables import column_names
from fedprompt.data.sources.webdataset import webdataset
from fedprompt.deploy.settings import load_site
from fedprompt.errors import UserError, did_you_mean
from fedprompt.file_system import open_file, read_bytes
from fedprompt.records.adapter import load_adapter
from fedprompt.records.checkpoints import load_tensors
from fedprompt.records.run_folder import read_lines
from fedprompt.text_files import DEEPEST, MOST_TABLES, load_json, load_toml
from made_files import RECIPE, damaged, hostile, refused_or_harmless, special, tries

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other systems have other special files")


# 9: files that never end

READERS: dict[str, Callable[[Path], object]] = {
    "image": decode,
    "name": looks_like_image,
    "table.csv": lambda path: read_table(path, needed=("image",)),
    "head.csv": column_names,
    "table.jsonl": lambda path: read_table(path, needed=("image",)),
    "descriptions.json": read_descriptions,
    "classnames.txt": read_class_file,
    "recipe.toml": load_recipe,
    "site.toml": lambda path: load_site(path.parent),
    "model.safetensors": load_tensors,
    "adapter_config.json": lambda path: load_adapter(path.parent),
    "run.jsonl": lambda path: list(read_lines(path.parent)),
    "train.tar": lambda path: webdataset(path=path.parent, classes=("a",)),
    "file": open_file,
    "bytes": read_bytes,
}


def test_special_files_never_hang_and_never_end_in_a_traceback(tmp_path: Path) -> None:
    for draw in tries():
        name = draw.choice(sorted(READERS))
        folder = tmp_path / str(draw.random())
        folder.mkdir()
        special(draw, folder / name)
        found = refused_or_harmless(lambda path=folder / name, name=name: READERS[name](path))
        assert found or name in ("head.csv", "name")  # these two pass over what cannot be read


@pytest.mark.parametrize("name", ["image", "table.csv", "descriptions.json", "recipe.toml", "bytes"])
def test_a_pipe_that_takes_the_place_of_a_file_after_the_check_does_not_hang(tmp_path, monkeypatch, name):
    os.mkfifo(tmp_path / name)
    monkeypatch.setattr("fedprompt.file_system.obstacle", lambda path, wanted: "")
    with pytest.raises(UserError, match="is not a regular file any more"):
        READERS[name](tmp_path / name)


def test_a_file_that_is_larger_than_its_reader_takes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bytes(path, most=5) == b"12345"
    with pytest.raises(UserError, match=r"a is larger than .* MB, more than such a file may have; give another"):
        read_bytes(path, "give another", most=4)
    os.truncate(path, 1 << 40)  # sparse
    for name in ("table.csv", "descriptions.json", "recipe.toml", "classnames.txt", "image", "model.safetensors"):
        large = tmp_path / name
        path.rename(large)
        with pytest.raises(UserError, match=r"is larger than|more than 512 MiB"):
            READERS[name](large)
        large.rename(path)


# 10: images, JSON, TOML, tables and archives that cost more than they are worth

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")


def image_bytes(draw: random.Random) -> bytes:
    mode = draw.choice(("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK", "I", "F"))
    size = draw.randint(1, 40), draw.randint(1, 40)
    image = Image.new("L", size, draw.randrange(256)).convert("RGB")
    image = Image.fromarray(np.full(size[::-1], 999, np.uint16)) if mode == "I;16" else image.convert(mode)
    content = io.BytesIO()
    while True:
        try:
            image.save(content, draw.choice(FORMATS))
        except (OSError, ValueError, KeyError):
            content = io.BytesIO()
            image = image.convert("RGB")
            continue
        return content.getvalue()


def test_made_images_are_refused_or_decoded_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_formats, "BUDGET", 4 * 40 * 40 * 4)
    for draw in tries():
        content = image_bytes(draw)
        if draw.random() < 0.8:
            content = damaged(draw, content)
        if draw.random() < 0.3:  # another size in the head of a PNG, with the right checksum
            content = png_of(draw.randint(1, 2**31 - 1), draw.randint(1, 2**31 - 1), draw)

        def read(content: bytes = content, draw: random.Random = draw) -> None:
            image = decode("a.img", content=content, window=draw.choice((None, "minmax", (0, 255))))
            assert image.mode == "RGB" and image.width * image.height <= 8 * image_formats.BUDGET // 4

        refused_or_harmless(read)


def png_of(width: int, height: int, draw: random.Random) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    form = draw.choice(((8, 2), (16, 0), (16, 6), (1, 0), (8, 3), (8, 6), (16, 4)))
    head = struct.pack(">IIBBBBB", width, height, *form, 0, 0, 0)
    packed = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def nested(draw: random.Random, depth: int) -> str:
    kinds = [draw.choice((("[", "]"), ('{"a": ', "}"), ('["]", ', "]"), ('{"\\\\\\"[": ', "}"))) for _ in range(depth)]
    return "".join(start for start, _ in kinds) + "1" + "".join(end for _, end in reversed(kinds))


def test_json_beyond_the_limits_is_a_value_error() -> None:
    for draw in tries():
        depth = draw.choice((DEEPEST, DEEPEST + 1, draw.randint(1, 200), 10_000, 200_000))
        text = nested(draw, depth)
        if depth <= DEEPEST:
            assert load_json(text) == json.loads(text)
        else:
            with pytest.raises(ValueError, match="nested more than 64 levels"):
                load_json(text)
        with pytest.raises(
            ValueError, match=r"larger than any number may be|has more than \d|stands twice|is not a number"
        ):
            load_json(
                draw.choice(
                    (
                        f"[1e{draw.randint(301, 10**6)}]",
                        f"[{'9' * draw.randint(309, 4000)}]",
                        f"[{'9' * draw.randint(309, 4000)}.5]",
                        "[NaN]",
                        '{"a": -Infinity}',
                        '{"a": 1, "a": 2}',
                        json.dumps(dict.fromkeys(map(str, range(200)), 0)),
                    )
                ),
                most_keys=100,
            )
        with_any_bytes = damaged(draw, nested(draw, draw.randint(1, 90)).encode())
        try:
            load_json(with_any_bytes)
        except ValueError:
            continue


def test_json_within_the_limits_is_read_as_it_is() -> None:
    for draw in tries():
        value: object = draw.choice((1, -1.5e299, "]]]}}}[[[{{{" * 30, '"\\"[', "\\", 10**299, None, True))
        for level in range(draw.randint(0, DEEPEST - 1)):
            value = [value, "[" * level, level] if draw.random() < 0.5 else {"{" * level: value, '\\"': "}"}
        assert load_json(json.dumps(value)) == value and load_json(json.dumps(value, indent=1).encode()) == value


def test_made_recipes_are_refused_or_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    for draw in tries():
        count = draw.choice((60, 70, 1000, 100_000))
        made = (
            "a = " + "[" * count,
            "a = " + "[" * count + "]" * count,
            ".".join(["a"] * count) + " = 1",
            "[" + ".".join(["a"] * count) + "]",
            "a = {" + ".".join(["b"] * count) + " = 1}",
            "a = " + "9" * count,
            RECIPE.replace("seed = 3", f"seed = {'9' * count}"),
            RECIPE.replace("rounds = 1", f"rounds = {10 ** draw.randint(19, 60)}"),
            "x" * (2 << 20),
        )
        content = draw.choice(made).encode() if draw.random() < 0.5 else damaged(draw, RECIPE.encode())
        path.write_bytes(content)
        refused_or_harmless(lambda: load_recipe(path))


def many_keys(count: int) -> str:
    """A JSON object, written faster than `json.dumps` would."""
    return "{" + ", ".join([f'"{number}": ["a"]' for number in range(count)]) + "}"


def test_made_descriptions_are_refused_or_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    honest = {
        "fedprompt_descriptions": 1,
        "attributes": {"cat": ["four legs"], "dog": ["a tail"]},
        "conditions": ["day"],
    }
    for draw in tries():
        made = (
            json.dumps(hostile(draw, honest)),
            nested(draw, draw.choice((10, 1000))),
            '{"attributes": ' + many_keys(draw.choice((10, 150_000))) + "}",
            damaged(draw, json.dumps(honest).encode()).decode("latin1"),
        )
        path.write_text(draw.choice(made), encoding="utf-8")
        refused_or_harmless(lambda: read_descriptions(path))


def test_a_descriptions_file_of_many_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(many_keys(400_000))
    with pytest.raises(UserError, match=r"not valid JSON \(it has more than 100,000 keys\)"):
        read_descriptions(path)
    assert did_you_mean("a" * 100_000, ["a" * 100_000]) == ""


def test_made_tables_are_refused_or_read(tmp_path: Path) -> None:
    honest = {
        ".csv": b"image,label,split\n" + b"".join(b"a/%d.jpg,cat,train\n" % number for number in range(20)),
        ".jsonl": b"".join(b'{"image": "a/%d.jpg", "labels": ["cat"]}\n' % number for number in range(20)),
    }
    for draw in tries():
        suffix = draw.choice((".csv", ".jsonl"))
        made = (
            b"image,label\na.jpg," + b"x" * draw.choice((131_072, 200_000, 10**6)),
            b'image,label\na.jpg,"' + b"x\n" * 100_000,
            b'"' + b"x" * 200_000,
            b"image," + b"a," * 150_000,
            b"image,label\n" + b"a.jpg," + b"9" * 5000,
            b'{"image": ' + nested(draw, draw.choice((70, 20_000))).encode() + b"}",
            b'{"image": "a.jpg", "label": ' + b"9" * draw.choice((100, 400, 5000)) + b"}",
            b'{"image": "a.jpg", "label": 1e999}',
        )
        path = tmp_path / f"a{suffix}"
        path.write_bytes(draw.choice(made) if draw.random() < 0.5 else damaged(draw, honest[suffix]))
        refused_or_harmless(lambda path=path: read_table(path, needed=("image",)))
        refused_or_harmless(lambda path=path: column_names(path))


def test_made_archives_are_refused_or_read(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    for draw in tries():
        folder = tmp_path / str(draw.random())
        (folder / "train").mkdir(parents=True)
        shard = folder / "train/0.tar"
        label = draw.choice((b"0", b"9" * 5000, b"", npy(draw), b"\xff", b'{"label": ' + b"[" * 500 + b"}"))
        extension = draw.choice(("cls", "npy", "json"))
        with tarfile.open(shard, "w", format=draw.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as tar:
            for name, content in (("a.png", picture.getvalue()), (f"a.{extension}", label)):
                member = tarfile.TarInfo(name if draw.random() < 0.9 else "x" * 200 + name)
                member.size = len(content)
                member.type = draw.choice((tarfile.REGTYPE,) * 8 + (tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE))
                member.linkname = "/dev/zero"
                tar.addfile(member, io.BytesIO(content))
        if draw.random() < 0.5:
            shard.write_bytes(damaged(draw, shard.read_bytes()))
        if draw.random() < 0.2:
            shard.write_bytes(b"".join(long_name() for _ in range(3000)) + shard.read_bytes())

        def read(folder: Path = folder) -> None:
            dataset = webdataset(path=folder, classes=("a", "b"))
            for row in range(len(dataset.source)):
                dataset.source.open(row)

        refused_or_harmless(read)


def npy(draw: random.Random) -> bytes:
    """An array whose head claims another size than its bytes have."""
    shape = draw.choice(((2,), (10**12,), (2**62,), (0,), (1, 1, 1), ()))
    text = f"{{'descr': {draw.choice(('<f8', '|O', '<i1', '|S9', 'x'))!r}, 'fortran_order': False, 'shape': {shape}, }}"
    if draw.random() < 0.2:
        text = "(" * draw.randint(1, 3000) + text
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text.encode() + bytes(16)


def long_name() -> bytes:
    """The header of a long name, of which one after the other is read by recursion."""
    member = tarfile.TarInfo("././@LongLink")
    member.type = tarfile.GNUTYPE_LONGNAME
    return member.tobuf(tarfile.GNU_FORMAT)


def test_one_long_word_in_toml_is_read_once() -> None:
    with pytest.raises(ValueError, match="4300"):  # Python's own limit of digits
        load_toml("a = " + "9" * 900_000)


@pytest.mark.parametrize("form", ["[a{}]", "[[a]]", "  [a.b{}]", "[[a{}.b]]"])
def test_toml_of_many_tables_is_refused_before_it_is_parsed(form: str) -> None:
    content = [form.format(number) for number in range(MOST_TABLES + 1)]
    with pytest.raises(ValueError, match="more than 10,000 tables"):
        load_toml("\n".join(content))
    assert load_toml("\n".join(content[:100]))


def test_toml_of_usual_depth_is_read() -> None:
    assert load_toml("a.b.c = [[1]]\n[d.e]\nf = {g.h = 2}") == {
        "a": {"b": {"c": [[1]]}},
        "d": {"e": {"f": {"g": {"h": 2}}}},
    }
