"""Other backbones as a user meets them: `own_folder` runs, adapters reload and refuse others."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedprompt.testing import FAMILIES, tiny_images
from fedprompt.testing.tiny_families import tiny_family_parts
from test_cli import call, sentence
from test_clip_checkpoints import BIOMED, Biomed, drawn, write

FACTS = {
    "clip": ("CLIP, fingerprint", "16 patches, 1 class token", "of width 32, at most 40 tokens"),
    "metaclip_2": ("MetaCLIP 2, fingerprint", "16 patches, 1 class token", "of width 32, at most 40 tokens"),
    "siglip": ("SigLIP, fingerprint", "16 patches, no class token", "logits 20.09 * cosine -0.02934"),
    "siglip2": ("SigLIP, fingerprint", "16 patches, no class token", "logits 20.09 * cosine -0.02934"),
    "vit_bert": ("ViT and BERT, fingerprint", "16 patches, 1 class token", "of width 32, at most 40 tokens"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of three classes, and one with a backbone of every family."""
    place = tmp_path_factory.mktemp("backbones")
    source = tiny_images(30)
    for number in range(30):
        path = place / "photos" / ("dog", "cat", "tree")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        source.open(number).save(path)
    for family in FAMILIES:
        for part in tiny_family_parts(family):
            part.save_pretrained(place / family)
    write(place / "biomed", state=drawn(Biomed()).state_dict(), config=BIOMED, name="open_clip_pytorch_model.bin")
    return place


@pytest.mark.parametrize("family", FAMILIES)
def test_inspect_says_what_a_backbone_is_and_what_it_cannot_carry(family: str, folders: Path) -> None:
    said = call("backbone", "inspect", folders / family)
    assert all(fact in said for fact in FACTS[family]), said
    refused = {line.split()[1] for line in said.splitlines() if line.startswith("no ")}
    assert refused == (set() if "clip" in family and "siglip" not in family else {"fedmaple", "fedram", "fedtcp"})


def test_inspect_refuses_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    assert "its model_type is 'dinov2', which is none of the supported" in sentence("backbone", "inspect", tmp_path)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ["siglip", "biomed"])
def test_own_folder_runs_and_its_adapters_know_their_backbone(name: str, folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = call(
        *("run", "own_folder", "--set", f"data.path={folders / 'photos'}", "--set", f"backbone.path={folders / name}"),
        *("--set", "train.rounds=1", "--set", "minutes=0", "--set", "partition.clients=2", "--out", out),
    )
    assert "Left out of the comparison: FedMaPLe changes tokens between the blocks of the text tower" in said.replace(
        "\n", " "
    )
    image = folders / "photos" / "dog" / "0.png"
    assert str(image.name) in call("predict", out, image)
    refused = sentence("predict", out, image, "--backbone", folders / "vit_bert")
    assert "--backbone" in refused or "another backbone" in refused
