"""Attack 8: adapters and run folders that an attacker made run no code, fill no memory and end in no traceback.

Every attack is tried `FEDPROMPT_ATTACK_TRIES` times, each try from a seed of its own.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fedprompt import methods
from fedprompt.cli.main import app
from fedprompt.config.outside_code import is_outside, named_code
from fedprompt.config.recipe import parse_recipe
from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.errors import UserError
from fedprompt.experiments import run as runs
from fedprompt.experiments.adapters import open_adapter, restore
from fedprompt.experiments.experiment import load_backbone
from fedprompt.experiments.plan import bind_method, resolve
from fedprompt.experiments.predict import Request, predict_files
from fedprompt.records import run_folder
from fedprompt.records.adapter import load_adapter
from fedprompt.records.checkpoints import Checkpoint, save_tensors
from fedprompt.records.run_folder import RunFolder, read_lines
from fedprompt.report import read_run, render
from made_files import RECIPE, damaged, hostile, refused_or_harmless, special, tries

pytestmark = pytest.mark.usefixtures("kept_backbone", "undrawn")

CANARY = "made_canary"  # a package on the path that says when it is imported


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
        ('source = "emoji"', 'source = "{}"'),
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
        with pytest.raises(UserError, match=rf"names code outside fedprompt .* in '{CANARY}[.a-z]*'; .*--trust-code"):
            runs.resume(folder)
        refused_or_harmless(lambda: open_adapter(folder))
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
    show = ["config", "show", str(own)]
    for command in (["run", str(own), "--out", str(tmp_path / "out")], show, ["check", str(own)]):
        found = CliRunner().invoke(app, command)
        assert found.exit_code == 2 and f"--trust-code {CANARY}.mine" in found.output, found.output
    assert not canary.exists()
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
    monkeypatch.setattr("fedprompt.experiments.adapters.stream", lambda *_: allocated.append(1))
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


@pytest.mark.parametrize("name", methods.installed())
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


def test_made_adapters_are_refused_or_predict_probabilities(run: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(image)
    refused = 0
    for number, draw in enumerate(tries()):
        folder = shutil.copytree(run / "adapters/promptfl", tmp_path / f"adapter{number % 2}{draw.random()}")
        path = folder / draw.choice(("adapter_config.json", "attributes.json", "adapter_model.safetensors"))
        edited(folder / "adapter_config.json", "weights_sha256", None)  # who makes an adapter makes its hash, too
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
            found = predict_files(open_adapter(folder), Request([image]))
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
            ends = ("x", "-0000001", "", "1_0", "\u0663\u0663", "1e9", "99999999999")
            checkpoint.rename(checkpoint.with_name(f"promptfl@{draw.choice(ends)}.safetensors"))

        def read(folder: Path = folder, draw: random.Random = draw) -> None:
            read_run(folder)
            if draw.random() < 0.1:  # which takes a hundred times as long
                render(folder)
            with RunFolder.open(folder) as opened:
                list(opened.events())
                found = opened.load_checkpoint("promptfl")
                assert found is None or found.round_number == 1

        refused_or_harmless(read)
        refused_or_harmless(lambda folder=folder: open_adapter(folder))
        shutil.rmtree(folder)


@pytest.mark.parametrize("end", ["x", "-0000001", "0000_001", "\u0661" * 8])
def test_a_checkpoint_of_an_odd_name_is_skipped(tmp_path: Path, end: str) -> None:
    with RunFolder(tmp_path) as folder:
        folder.save_checkpoint("promptfl", Checkpoint(3, {}, {}))
        path = next((tmp_path / "checkpoints").iterdir())
        path.rename(path.with_name(f"promptfl@{end}.safetensors"))
        assert folder.load_checkpoint("promptfl") is None


@pytest.mark.parametrize("address", ["shared", "personal/x/a", "personal/a", "personal/-1/a", "path/a", ""])
def test_a_checkpoint_with_a_tensor_of_an_odd_name_is_skipped(tmp_path: Path, address: str) -> None:
    import torch

    with RunFolder(tmp_path) as folder:
        save_tensors(tmp_path / "checkpoints/promptfl@00000003.safetensors", {address: torch.zeros(2)})
        assert folder.load_checkpoint("promptfl") is None


def test_a_record_with_an_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "LARGEST_LINE", 1000)
    (tmp_path / "run.jsonl").write_bytes(b'{"event": "start"}\n' + b" " * 2000)
    with pytest.raises(UserError, match=r"run\.jsonl has a line of more than"):
        list(read_lines(tmp_path))
