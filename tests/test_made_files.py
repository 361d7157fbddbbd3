"""Files that an attacker made (threat model T4): opened by every reader, they are refused in a sentence, or are harmless.

Every attack is tried `FEDPROMPT_ATTACK_TRIES` times, each try from a seed of its own.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import socket
import struct
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fedprompt import methods
from fedprompt.cli.main import app
from fedprompt.config.outside_code import is_outside, named_code
from fedprompt.config.recipe import load_recipe, parse_recipe
from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.data import image_formats
from fedprompt.data.descriptions import read_descriptions
from fedprompt.data.image_formats import decode
from fedprompt.data.intake.class_names import read_class_file
from fedprompt.data.intake.image_files import looks_like_image
from fedprompt.data.intake.tables import column_names, read_table
from fedprompt.data.sources.webdataset import webdataset
from fedprompt.deploy.settings import load_site
from fedprompt.errors import UserError, did_you_mean
from fedprompt.experiments import run as runs
from fedprompt.experiments.experiment import load_backbone
from fedprompt.experiments.plan import bind_method, resolve
from fedprompt.experiments.predict import open_adapter, predict_files, restore
from fedprompt.file_system import open_file, read_bytes
from fedprompt.records import run_folder
from fedprompt.records.adapter import load_adapter
from fedprompt.records.run_folder import Checkpoint, RunFolder, load_tensors, read_lines
from fedprompt.report import read_run, render
from fedprompt.text_files import DEEPEST, load_json, load_toml

TRIES = int(os.environ.get("FEDPROMPT_ATTACK_TRIES", "10"))
CANARY = "made_canary"  # a package on the path that says when it is imported
RECIPE = """
name = "small"
seed = 3
[data]
source = "pictograms"
train = 1
test = 1
[partition]
rule = "class_chunks"
classes_per_client = 13
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

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other systems have other special files")


def tries() -> Iterator[random.Random]:
    """A generator per try; the number of the one that fails is in pytest's output."""
    for number in range(TRIES):
        print(f"try {number}")
        yield random.Random(number)


def refused_or_harmless(read: Callable[[], object]) -> bool:
    """Whether reading is refused by a UserError of one line or a list; any other exception fails the test."""
    try:
        read()
    except UserError as error:
        assert str(error).strip().endswith((".", "?")) or "mistakes" in str(error) or "--trust-code" in str(error)
        return True
    return False


# 8: an adapter or a run folder names code, and options that would fill the memory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    runs.start(resolve(parse_recipe(RECIPE)), folder)
    return folder


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with a method and other blocks; its path exists once any of it was imported."""
    touched = tmp_path / "imported"
    package = tmp_path / "path" / CANARY
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"from pathlib import Path\nPath({str(touched)!r}).touch()\n")
    (package / "mine.py").write_text(
        "from fedprompt.methods.promptfl import PromptFL\nclass Mine(PromptFL):\n    'Mine (2024).'\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "path")
    yield touched
    for name in [name for name in sys.modules if name.partition(".")[0] == CANARY]:
        del sys.modules[name]


def code(draw: random.Random) -> str:
    """A name that would import the canary, or another module, or that is no name."""
    kinds = (
        CANARY,
        f"{CANARY}.mine",
        f"{CANARY}:f",
        f"{CANARY}.mine:Mine",
        "this.that",
        "antigravity:fly",
        "..x",
        ".",
        ":",
    )
    return draw.choice(
        (*kinds, f"{CANARY}.{'a' * draw.randint(1, 30)}", f"{CANARY}..mine", "os:system", "fedprompt.__main__")
    )


def edited(path: Path, key: str, value: object) -> None:
    content = json.loads(path.read_text())
    content[key] = value
    path.write_text(json.dumps(content))


def test_no_made_adapter_imports_code(run: Path, canary: Path, tmp_path: Path) -> None:
    for draw in tries():
        folder = shutil.copytree(run / "adapters/promptfl", tmp_path / "adapter", dirs_exist_ok=True)
        edited(folder / "adapter_config.json", "method", code(draw))
        trusted = draw.choice(((), ("other",), (CANARY + "x",), (CANARY[:-1],)))
        with pytest.raises(UserError, match=r"code outside fedprompt|no method|not the name of a module"):
            restore(open_adapter(folder, trusted=trusted))
    assert not canary.exists()


def test_no_made_run_folder_imports_code(run: Path, canary: Path, tmp_path: Path) -> None:
    places = (
        ('source = "pictograms"', 'source = "{}"'),
        ('rule = "class_chunks"', 'rule = "{}"'),
        ('name = "promptfl"', 'name = "{}"'),
        ("[evaluate]", '[[compare]]\nname = "{}"\n[evaluate]'),
        ("[evaluate]", '[train.server.aggregate]\nname = "{}"\n[evaluate]'),
        ("[evaluate]", '[train.server.attack]\nname = "{}"\n[evaluate]'),
        ("[evaluate]", '[train.server.privacy]\nname = "{}"\n[evaluate]'),
        ("[train]", '[method.train.server.optimizer]\nname = "{}"\n[train]'),
        ("[evaluate]", '[tuning.grid]\nserver = [{{aggregate = {{name = "{}"}}}}]\n[evaluate]'),
    )
    folder = shutil.copytree(run, tmp_path / "run")
    lines = (folder / "run.jsonl").read_text().splitlines(keepends=True)
    for draw in tries():
        name = draw.choice([f"{CANARY}:f", f"{CANARY}.mine", f"{CANARY}.mine:Mine"])
        before, after = draw.choice(places)
        (folder / runs.RECIPE).write_text(RECIPE.replace(before, after.format(name), 1))
        (folder / "run.jsonl").write_text("".join(lines[: draw.randint(1, len(lines) - 1)]))
        with pytest.raises(
            UserError, match=rf"names the module '{CANARY}[.a-z]*', code outside fedprompt.*--trust-code"
        ):
            runs.resume(folder)
        open_adapter(folder)
        render(folder)
    assert not canary.exists()


def test_trusted_code_runs_on_predict_and_resume(run: Path, canary: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run / "adapters/promptfl", tmp_path / "adapter")
    edited(folder / "adapter_config.json", "method", f"{CANARY}.mine")
    image = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(image)
    refused = CliRunner().invoke(app, ["predict", str(folder), str(image)])
    assert refused.exit_code == 2 and not canary.exists()
    assert f"--trust-code {CANARY}.mine" in refused.output
    done = CliRunner().invoke(app, ["predict", str(folder), str(image), "--trust-code", CANARY])
    assert done.exit_code == 0, done.output
    assert canary.exists()


def test_a_recipe_on_the_command_line_runs_code_that_the_user_has_typed(canary: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(RECIPE.replace('"promptfl"', f'"{CANARY}.mine"'))
    for command in (
        ["run", str(own), "--out", str(tmp_path / "out")],
        ["config", "show", str(own)],
        ["check", str(own)],
    ):
        found = CliRunner().invoke(app, command)
        assert found.exit_code == 2 and f"--trust-code {CANARY}.mine" in found.output, found.output
    assert not canary.exists()
    show = ["config", "show", str(own)]
    assert CliRunner().invoke(app, [*show, "--trust-code", f"{CANARY}.mine"]).exit_code == 0
    assert CliRunner().invoke(app, show, env={"FEDPROMPT_TRUST_CODE": f"other {CANARY}"}).exit_code == 0
    own.write_text(RECIPE)
    assert CliRunner().invoke(app, [*show, "--set", f"method.name={CANARY}.mine"]).exit_code == 0


def test_every_name_of_code_in_a_recipe_is_found() -> None:
    text = RECIPE.replace("[evaluate]", '[tuning.grid]\nserver = [{optimizer = {name = "c.d:e"}}]\n[evaluate]')
    text = text.replace("[train]", '[method.train.server.aggregate]\nname = "a.b:c"\n[train]')
    assert named_code(parse_recipe(text)) == ("a.b:c", "c.d:e")
    assert not any(map(is_outside, methods.names())) and named_code(parse_recipe(RECIPE)) == ()


HUGE = {
    "promptfl": ("n_ctx",),
    "fedmpt": ("n_conditions", "rank", "condition_ctx", "class_ctx"),
    "fedmvp": ("n_tokens", "lora_rank"),
    "fedlora": ("rank", "alpha"),
    "fedpgp": ("n_ctx", "rank"),
    "fedvpt": ("n_tokens", "depth"),
    "fedram": ("n_image", "n_text", "text_depth"),
    "fedtpg": ("n_ctx", "self_attention"),
    "fedmvp_regions": ("n_ctx", "hidden"),
    "fedotp": ("n_ctx",),
    "dualcoop": ("n_ctx",),
    "fedtcp": ("n_ctx", "reduction"),
}


def test_options_that_would_fill_the_memory_are_refused_before_anything_is_allocated(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocated = []
    monkeypatch.setattr("fedprompt.experiments.predict.stream", lambda *_: allocated.append(1))
    for draw in tries():
        folder = shutil.copytree(run / "adapters/promptfl", tmp_path / "adapter", dirs_exist_ok=True)
        name = draw.choice(sorted(HUGE))
        sizes = (10**9, 10**18, 2**63, 10_000, 9_999, 5_000, -1, 0, 1e30, 10**299, True)
        params = {option: draw.choice(sizes) for option in HUGE[name] if draw.random() < 0.8}
        params[HUGE[name][0]] = draw.choice((10**9, 10_000, 9_999, 2**63))
        if name == "promptfl":
            params["init"] = ""
        edited(folder / "adapter_config.json", "method", name)
        edited(folder / "adapter_config.json", "params", params)
        with pytest.raises(UserError):
            restore(load_adapter(folder))
    assert not allocated


@pytest.mark.parametrize("name", [name for name in methods.names() if not methods.missing(methods.load(name))])
def test_a_method_has_the_same_shapes_without_memory(name: str) -> None:
    import torch

    clip = load_backbone(BackboneTable())
    options = {"classes": ("a", "b")} if "classes" in methods.options(methods.load(name)) else {}
    block = bind_method(name, options, place="here")
    with torch.device("meta"):
        outline = block(clip, generator=None).state_dict()
    real = block(clip, generator=torch.Generator().manual_seed(0)).state_dict()
    assert {key: value.shape for key, value in outline.items()} == {key: value.shape for key, value in real.items()}
    assert not any(value.is_meta for value in real.values())


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


def test_made_adapters_are_refused_or_predict_probabilities(run: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(image)
    refused = 0
    for number, draw in enumerate(tries()):
        folder = shutil.copytree(run / "adapters/promptfl", tmp_path / f"adapter{number % 2}{draw.random()}")
        path = folder / draw.choice(("adapter_config.json", "attributes.json", "adapter_model.safetensors"))
        kind = draw.random()
        if kind < 0.2:
            special(draw, path)
        elif path.suffix == ".json" and kind < 0.7:
            path.write_text(json.dumps(hostile(draw, json.loads(path.read_text()))))
        elif path.suffix == ".safetensors" and kind < 0.6:
            path.write_bytes(with_header(draw, path.read_bytes()))
        else:
            path.write_bytes(damaged(draw, path.read_bytes()))

        def read(folder: Path = folder) -> None:
            found = predict_files(open_adapter(folder), [image])
            assert all(0 <= value <= 1 for one in found.images for _, value in one.top)

        refused += refused_or_harmless(read)
        shutil.rmtree(folder)
    assert refused


def with_header(draw: random.Random, content: bytes) -> bytes:
    """A safetensors file with numbers that are not finite, or with another header."""
    size = int.from_bytes(content[:8], "little")
    head, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    if draw.random() < 0.3:
        numbers = np.frombuffer(body, np.float32).copy()
        numbers[draw.randrange(len(numbers))] = draw.choice((np.nan, np.inf, -np.inf, 3e38))
        return content[: 8 + size] + numbers.tobytes()
    name = draw.choice([key for key in head if key != "__metadata__"])
    changes = (
        {"shape": [draw.choice((0, 1, 2**40, 2**63, 10**9)), draw.randint(0, 600)]},
        {"dtype": draw.choice(("F64", "I64", "BOOL", "F8_E5M2", "U8", "C64", "X"))},
        {"data_offsets": [draw.randint(0, 9999), draw.choice((0, 10**11, len(body)))]},
    )
    head = {key: ({**value, **draw.choice(changes)} if key == name else value) for key, value in head.items()}
    if draw.random() < 0.2:
        head["other"] = head[name]
    text = json.dumps(head).encode()
    return struct.pack("<Q", draw.choice((len(text), len(text), 2**63, len(text) + 1))) + text + body


def test_made_run_folders_are_refused_or_read(run: Path, tmp_path: Path) -> None:
    for draw in tries():
        folder = shutil.copytree(run, tmp_path / f"run{draw.random()}")
        log, checkpoint = folder / "run.jsonl", next((folder / "checkpoints").iterdir())
        kind = draw.random()
        if kind < 0.15:
            special(draw, draw.choice((log, checkpoint, folder / runs.RECIPE)))
        elif kind < 0.6:
            lines = log.read_text().splitlines()
            place = draw.randrange(len(lines))
            lines[place] = json.dumps(hostile(draw, json.loads(lines[place])))
            log.write_text("\n".join(lines) + "\n")
        elif kind < 0.8:
            log.write_bytes(damaged(draw, log.read_bytes()))
        else:
            names = (
                "promptfl@x.safetensors",
                "promptfl@-0000001.safetensors",
                "promptfl@.safetensors",
                "promptfl@1_0.safetensors",
            )
            checkpoint.rename(
                checkpoint.with_name(
                    draw.choice((*names, "promptfl@\u0663\u0663.safetensors", "promptfl@1e9.safetensors"))
                )
            )

        def read(folder: Path = folder) -> None:
            read_run(folder)
            render(folder)
            with RunFolder.open(folder) as opened:
                list(opened.events())
                found = opened.load_checkpoint("promptfl")
                assert found is None or found.round_number == 1

        refused_or_harmless(read)
        refused_or_harmless(lambda folder=folder: open_adapter(folder))
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "name",
    [
        "promptfl@x",
        "promptfl@-0000001",
        "promptfl@0000_001",
        "promptfl@\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661",
    ],
)
def test_a_checkpoint_of_an_odd_name_is_skipped(tmp_path: Path, name: str) -> None:
    with RunFolder(tmp_path) as folder:
        folder.save_checkpoint("promptfl", Checkpoint(3, {}, {}))
        path = next((tmp_path / "checkpoints").iterdir())
        path.rename(path.with_name(f"{name}.safetensors"))
        assert folder.load_checkpoint("promptfl") is None


@pytest.mark.parametrize("address", ["shared", "personal/x/a", "personal/a", "personal/-1/a", "path/a", ""])
def test_a_checkpoint_with_a_tensor_of_an_odd_name_is_skipped(tmp_path: Path, address: str) -> None:
    import torch

    with RunFolder(tmp_path) as folder:
        run_folder.save_tensors(tmp_path / "checkpoints/promptfl@00000003.safetensors", {address: torch.zeros(2)})
        assert folder.load_checkpoint("promptfl") is None


def test_a_record_with_an_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "LARGEST_LINE", 1000)
    (tmp_path / "run.jsonl").write_bytes(b'{"event": "start"}\n' + b" " * 2000)
    with pytest.raises(UserError, match=r"run\.jsonl has a line of more than"):
        list(read_lines(tmp_path))


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


@pytest.mark.parametrize("name", ["image", "table.csv", "descriptions.json", "recipe.toml", "train.tar", "bytes"])
def test_a_pipe_that_takes_the_place_of_a_file_after_the_check_does_not_hang(tmp_path, monkeypatch, name):
    os.mkfifo(tmp_path / name)
    monkeypatch.setattr("fedprompt.file_system.obstacle", lambda path, wanted: "")
    with pytest.raises(UserError, match="is not a regular file any more|no tar files"):
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
    image = (
        Image.new("L", size, draw.randrange(256)).convert("RGB").convert(mode)
        if mode not in ("I;16",)
        else Image.fromarray(np.full(size[::-1], draw.randrange(65536), np.uint16))
    )
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
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    form = draw.choice(((8, 2), (16, 0), (16, 6), (1, 0), (8, 3), (8, 6), (16, 4)))
    head = struct.pack(">IIBBBBB", width, height, *form, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def nested(draw: random.Random, depth: int) -> str:
    kinds = [draw.choice((("[", "]"), ('{"a": ', "}"), ('["]", ', "]"), ('{"\\\\\\"[": ', "}"))) for _ in range(depth)]
    return "".join(start for start, _ in kinds) + "1" + "".join(end for _, end in reversed(kinds))


def test_json_beyond_the_limits_is_a_value_error() -> None:
    for draw in tries():
        depth = draw.choice((DEEPEST, DEEPEST + 1, draw.randint(1, 200), 10_000, 200_000))
        if depth <= DEEPEST:
            assert (
                json.dumps(load_json(nested(draw, depth)))
                == json.dumps(json.loads(nested_again := nested(draw, depth)))
                or nested_again
            )
        else:
            with pytest.raises(ValueError, match="nested more than 64 levels"):
                load_json(nested(draw, depth))
        with pytest.raises(ValueError, match=r"larger than any number|has more than \d|stands twice|is not a number"):
            load_json(
                draw.choice(
                    (
                        f"[1e{draw.randint(309, 10**6)}]",
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
        value: object = draw.choice((1, -1.5e300, "]]]}}}[[[{{{" * 30, '"\\"[', "\\", 10**299, None, True))
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
            json.dumps({"attributes": {str(number): ["a"] for number in range(draw.choice((10, 150_000)))}}),
            damaged(draw, json.dumps(honest).encode()).decode("latin1"),
        )
        path.write_text(draw.choice(made), encoding="utf-8")
        refused_or_harmless(lambda: read_descriptions(path))


def test_a_descriptions_file_of_many_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({str(number): ["a"] for number in range(400_000)}))
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


def test_toml_of_usual_depth_is_read() -> None:
    assert load_toml("a.b.c = [[1]]\n[d.e]\nf = {g.h = 2}") == {
        "a": {"b": {"c": [[1]]}},
        "d": {"e": {"f": {"g": {"h": 2}}}},
    }
