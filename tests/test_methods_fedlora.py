"""FedLoRA: it starts at zero-shot CLIP, PEFT opens what it writes and sees the same; without PEFT it says so."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from fedprompt import methods
from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.methods.fedlora import FedLoRA
from fedprompt.methods.zeroshot import ZeroShot
from fedprompt.ops.layers import unit
from fedprompt.seeding import stream
from fedprompt.testing import FAMILIES, TinyImages, tiny_backbone
from fedprompt.testing.tiny_families import tiny_family_parts
from vit import VIT, size

SPACE = LabelSpace(("dog", "cat", "four_legs"))
IMAGES = Images(TinyImages(), (0, 1, 2))
peft = pytest.importorskip("peft")


def trained(clip: Clip, **options: object) -> FedLoRA:
    method = FedLoRA(clip, generator=stream(0), **options)
    for up in method.up.values():
        nn.init.normal_(up, std=0.2, generator=stream(1))
    return method


def test_published_size() -> None:
    assert size(FedLoRA(VIT)) == 12 * 2 * 2 * 4 * (768 + 512) == 245_760


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_training_starts_at_zero_shot(tiny_clip: Clip, kind: str) -> None:
    space = LabelSpace(SPACE.names, kind)
    ours, theirs = (m.classifier(tiny_clip, space)(IMAGES) for m in (FedLoRA(tiny_clip), ZeroShot(tiny_clip)))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("towers", "rank"), [("both", 4), ("image", 2), ("text", 4)])
def test_peft_opens_what_it_writes(tiny_clip: Clip, tmp_path: Path, towers: str, rank: int) -> None:
    method = trained(tiny_clip, towers=towers, rank=rank, alpha=3)
    for name, content in method.exports("somebody/clip").items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(tiny_clip.model), tmp_path / "peft")
    assert theirs.peft_config["default"].base_model_name_or_path == "somebody/clip"
    assert sum(weight.numel() for name, weight in theirs.named_parameters() if "lora" in name) == size(method)
    pixels = tiny_clip.processor(images=list(IMAGES), return_tensors="pt")["pixel_values"]
    ids = torch.tensor(tiny_clip.tokenizer.sentences(["a photo of a dog."]))
    with torch.no_grad():
        found = theirs(pixel_values=pixels, input_ids=ids)
        logits = method.classifier(tiny_clip, LabelSpace(("dog",)))(IMAGES)
    expected = tiny_clip.scale * unit(found.image_embeds) @ unit(found.text_embeds).T
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)
    zero = ZeroShot(tiny_clip).classifier(tiny_clip, LabelSpace(("dog",)))(IMAGES)
    assert not torch.allclose(logits, zero, atol=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_merges_what_it_writes_into_a_backbone_of_any_family(family: str, tmp_path: Path) -> None:
    clip = tiny_backbone(family)
    method = trained(clip, rank=2)
    for name, content in method.exports("somebody/clip").items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    merged = peft.PeftModel.from_pretrained(copy.deepcopy(clip.model), tmp_path / "peft").merge_and_unload()
    theirs = ZeroShot(clip).classifier(Clip(merged, *tiny_family_parts(family)[1:]), SPACE)(IMAGES)
    torch.testing.assert_close(method.classifier(clip, SPACE)(IMAGES), theirs, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(theirs, ZeroShot(clip).classifier(clip, SPACE)(IMAGES), atol=0.1)


def test_the_backbone_is_itself_again(tiny_clip: Clip) -> None:
    before = tiny_clip.encode_image(tiny_clip.image_embeddings(IMAGES)).image
    trained(tiny_clip).classifier(tiny_clip, SPACE)(IMAGES)
    assert torch.equal(tiny_clip.encode_image(tiny_clip.image_embeddings(IMAGES)).image, before)


def test_an_adapted_tower_is_not_remembered(tiny_clip: Clip) -> None:
    changes = trained(tiny_clip)._changes("image")
    with tiny_clip.adapted(changes), pytest.raises(AssertionError, match="frozen"):
        tiny_clip.image_features(IMAGES)


def test_a_missing_package_is_said(tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FedLoRA, "needs", ("peft_that_is_not_there",))
    assert methods.missing(FedLoRA) == ("peft_that_is_not_there",)
    with pytest.raises(UserError, match="pip install 'fedprompt"):
        FedLoRA(tiny_clip)
