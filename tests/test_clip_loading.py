"""Any CLIP folder opens; one fingerprint for one backbone; what cannot be opened is named with the fix."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fedprompt.clip import hub, loading
from fedprompt.clip.loading import preprocess
from fedprompt.clip.model import Clip
from fedprompt.errors import UserError
from fedprompt.testing import tiny_model, tiny_processor, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_parts: Any) -> Path:
    """A CLIP folder as transformers writes it."""
    path = tmp_path_factory.mktemp("backbone")
    for part in tiny_parts:
        part.save_pretrained(path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_saved_backbone_is_the_same_backbone(
    folder: Path, tiny_clip: Clip, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = Clip.load(str(folder))
    assert capfd.readouterr() == ("", "")
    assert loaded.fingerprint == tiny_clip.fingerprint == Clip.load(folder).fingerprint
    assert torch.equal(loaded.text_features(["a photo of a dog."]), tiny_clip.text_features(["a photo of a dog."]))
    assert not loaded.training and loaded.device == torch.device("cpu")


def test_half_precision_files_are_computed_in_single_precision(copy: Path) -> None:
    weights = {name: tensor.half() for name, tensor in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    halved = Clip.load(copy)
    assert {tensor.dtype for tensor in halved.parameters()} == {torch.float32}
    save_file({name: tensor.float() for name, tensor in weights.items()}, copy / "model.safetensors", {"format": "pt"})
    assert Clip.load(copy).fingerprint == halved.fingerprint


def test_the_fingerprint_tells_weights_and_preprocessing_apart(tiny_parts: Any) -> None:
    model, tokenizer, processor = tiny_parts
    brighter = tiny_processor()
    brighter.image_mean = [0.5, 0.5, 0.5]
    other = tiny_model(tiny_tokenizer())
    with torch.no_grad():
        other.visual_projection.weight[0, 0] += 1e-6
    backbones = (Clip(model, tokenizer, processor), Clip(model, tokenizer, brighter), Clip(other, tokenizer, processor))
    assert len({clip.fingerprint for clip in backbones}) == 3


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/no/such/folder"])
def test_a_folder_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"There is no backbone folder '{name}'; give a folder"):
        Clip.load(name)


def test_an_unknown_hub_id_is_refused() -> None:
    with pytest.raises(UserError, match="The backbone 'nobody/nothing' cannot be opened"):
        Clip.load("nobody/nothing")


def test_without_a_network_a_hub_id_that_is_not_cached_is_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network() -> NoReturn:
        raise OSError("Name or service not known")

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_session", no_network)
    hub.hub_answers.cache_clear()
    with pytest.raises(
        UserError, match=r"Set backbone\.path=demo .* or to the folder of a CLIP.*`fedprompt backbone fetch"
    ):
        hub.require_available("nobody/nothing")
    hub.hub_answers.cache_clear()


def test_a_hub_id_in_the_cache_is_opened_without_a_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda name, file: str(folder / file))
    hub.require_available("somebody/clip")
    wanted = []
    monkeypatch.setattr(
        loading.CLIPConfig, "get_config_dict", lambda origin, **settings: wanted.append((origin, settings)) or ({}, {})
    )
    with pytest.raises(UserError, match="model of no stated type"):
        Clip.load("somebody/clip")
    assert wanted == [("somebody/clip", {"local_files_only": True})]


def test_another_kind_of_model_is_refused(copy: Path) -> None:
    settings = json.loads((copy / "config.json").read_text()) | {"model_type": "bert"}
    (copy / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="it is a bert, not a CLIP"):
        Clip.load(copy)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"])
@pytest.mark.parametrize("spoil", ["remove", "tear"])
def test_a_missing_or_torn_part_is_refused(copy: Path, name: str, spoil: str) -> None:
    if spoil == "remove":
        (copy / name).unlink()
    else:
        (copy / name).write_bytes((copy / name).read_bytes()[:100])
    with pytest.raises(UserError):
        Clip.load(copy)


def test_pickled_weights_are_refused(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        Clip.load(copy)


def test_missing_weights_are_not_made_up(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights, 'visual_projection\.weight' first"):
        Clip.load(copy)


@pytest.mark.parametrize("excess", range(9))
def test_the_centre_crop_rounds_half_pixels_down(excess: int) -> None:
    """OpenAI's rounds them to an even number, which differs by one pixel for 3 and 7 pixels in excess."""
    processor = tiny_processor()
    size = processor.crop_size["height"]
    columns = np.arange(size + excess, dtype=np.uint8)
    pixels = np.broadcast_to(columns[None, :, None], (size, size + excess, 3))
    made = preprocess(processor, size, [Image.fromarray(np.ascontiguousarray(pixels))])[0, 0, 0]  # [W]
    first = round(float(made[0] * processor.image_std[0] + processor.image_mean[0]) * 255)
    assert first == excess // 2
    assert (round(excess / 2) - first == 1) == (excess % 4 == 3)


def test_an_id_that_is_not_in_the_hubs_cache_is_not_looked_up_as_a_path(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path.parent)
    name = f"{tmp_path.name}/{copy.name}"
    assert Path(name).is_dir()
    for wrong in (name, "nobody/nothing", "a..b/c", "a--b/c"):
        with pytest.raises(UserError, match="is not in the cache of the Hugging Face Hub"):
            hub.cached_folder(wrong)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda name, file: str(copy / file))
    assert hub.cached_folder("somebody/clip") == copy
