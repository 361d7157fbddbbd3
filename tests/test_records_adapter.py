"""The adapter folder: what is written is what is read, and nothing that does not fit is ever loaded."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.records.adapter import Adapter, AdapterCard, load_adapter, load_tensors, save_adapter

STATE = {"prompt.context": torch.arange(6.0).reshape(2, 3), "former.weight": torch.ones(4)}
SPACE = LabelSpace(("dog", "cat"), attributes={"dog": ("four legs",)}, conditions=("light", "place"))
FINGERPRINT = "f" * 64
FILES = {"adapter_config.json", "adapter_model.safetensors", "attributes.json", "README.md", "metrics.json"}


def written(folder: Path) -> Adapter:
    card = AdapterCard(
        method="some_method",
        task="single",
        base_model_name_or_path="some/backbone",
        base_model_sha256=FINGERPRINT,
        class_names=("dog", "cat"),
        templates=("a photo of a {}.",),
        params={"n_ctx": 4, "init": "a photo of"},
    )
    files = {"README.md": "# card", "metrics.json": "{}"}
    save_adapter(folder, card, STATE, space=SPACE, files=files)
    return load_adapter(folder)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    adapter = written(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert adapter.card.params == {"n_ctx": 4, "init": "a photo of"}
    assert adapter.space.names == ("dog", "cat") and adapter.space.attributes == {"dog": ("four legs",)}
    tensors = load_tensors(adapter, STATE, fingerprint=FINGERPRINT)
    assert tensors.keys() == STATE.keys() and all(torch.equal(tensors[name], STATE[name]) for name in STATE)


def test_the_folder_is_what_peft_users_know_but_no_peft_adapter(tmp_path: Path) -> None:
    written(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "peft_type" not in settings
    assert settings["library_name"] == "fedprompt" and settings["format_version"] == 1 and settings["revision"] is None
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda folder: (folder / "adapter_config.json").unlink(),
            r"adapter_config\.json does not exist; give an adapter folder or a run folder",
        ),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), r"adapter_config\.json is damaged"),
        (lambda folder: rewrite(folder, class_names=3), r"damaged \(class_names: .*\); copy the adapter again"),
        (lambda folder: rewrite(folder, library_name="peft"), r"is an adapter of peft in format 1"),
        (
            lambda folder: rewrite(folder, format_version=9),
            r"of fedprompt in format 9, and this version reads .*format 1",
        ),
        (lambda folder: rewrite(folder, task="guessing"), r"names no known task"),
        (lambda folder: (folder / "attributes.json").write_text('{"attributes": []}'), r"attributes\.json is damaged"),
        (lambda folder: os.truncate(folder / "attributes.json", 17 << 20), r"larger than 16 MB"),
    ],
)
def test_words_that_do_not_fit_are_refused(tmp_path: Path, damage: Callable[[Path], object], sentence: str) -> None:
    written(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=sentence):
        load_adapter(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"prompt.context": torch.zeros(2, 3)}, r"holds former\.weight as nothing where its method has \(4,\)"),
        (
            STATE | {"prompt.context": torch.zeros(3, 2)},
            r"holds prompt\.context as \(3, 2\) where its method has \(2, 3\)",
        ),
        (STATE | {"evil": torch.zeros(1)}, r"holds evil as \(1,\) where its method has nothing"),
        (STATE | {"former.weight": torch.zeros(1 << 20)}, r"has \d+ bytes and its method holds at most \d+"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, tensors: dict[str, Tensor], sentence: str) -> None:
    adapter = written(tmp_path)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=sentence):
        load_tensors(adapter, STATE, fingerprint=FINGERPRINT)


def test_torn_weights_are_refused(tmp_path: Path) -> None:
    adapter = written(tmp_path)
    os.truncate(tmp_path / "adapter_model.safetensors", 40)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors cannot be read"):
        load_tensors(adapter, STATE, fingerprint=FINGERPRINT)


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "attributes.json"])
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, file: str) -> None:
    written(tmp_path)
    (tmp_path / file).write_bytes(pickle.dumps(Payload(tmp_path / "canary")))
    with pytest.raises(UserError, match=f"{file} .*copy the adapter again"):
        load_tensors(load_adapter(tmp_path), STATE, fingerprint=FINGERPRINT)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "head",
    [
        {"prompt.context": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "former.weight": [0]},
        {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} for name in STATE},
        {"prompt.context": {"dtype": "F32", "shape": [25 * 10**9], "data_offsets": [0, 10**11]}},
    ],
)
def test_a_forged_header_is_refused(tmp_path: Path, head: dict[str, object]) -> None:
    adapter, text = written(tmp_path), json.dumps(head).encode()
    for length in (len(text), 2**63):
        content = length.to_bytes(8, "little") + text + bytes(24)
        (tmp_path / "adapter_model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=r"adapter_model\.safetensors cannot be read"):
            load_tensors(adapter, STATE, fingerprint=FINGERPRINT)


def test_changed_bytes_of_the_weights_are_refused_by_their_hash_if_there_is_one(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(
        UserError, match=r"adapter_model\.safetensors is damaged \(its SHA-256 .*copy the adapter again"
    ):
        load_adapter(tmp_path)
    rewrite(tmp_path, weights_sha256=None)  # as in adapters of earlier versions
    assert load_adapter(tmp_path).card.weights_sha256 is None


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    adapter = written(tmp_path)
    with pytest.raises(
        UserError, match=r"was trained on the backbone some/backbone \(ffffffffffff\) and the one given is e"
    ):
        load_tensors(adapter, STATE, fingerprint="e" * 64)
