"""Other backbones as a user meets them: `own_folder` runs, adapters reload and refuse others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fedprompt.config.recipe import load_recipe
from fedprompt.errors import UserError
from fedprompt.experiments import adapters
from fedprompt.experiments.adapters import open_adapter, restore
from fedprompt.experiments.experiment import absolute_backbone
from fedprompt.experiments.prediction_notes import introduction
from fedprompt.records.reading import read_run
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


@pytest.fixture(scope="module")
def relative_run(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose backbone was named by a relative path, in half precision."""
    out = tmp_path_factory.mktemp("relative") / "run"
    keys = {"data.path": folders / "photos", "backbone.path": "clip", "backbone.precision": "bfloat16"}
    keys |= {"train.rounds": 1, "minutes": 0, "partition.clients": 2, "compare": "[]", "backbone.disk": "cache"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folders)
        call(
            "run",
            "own_folder",
            *(part for key, value in keys.items() for part in ("--set", f"{key}={value}")),
            "--out",
            out,
        )
    return out


def test_a_backbone_in_a_relative_folder_is_found_from_elsewhere(
    relative_run: Path, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call("predict", relative_run, folders / "photos" / "dog" / "0.png")
    adapter = open_adapter(relative_run)
    assert adapter.card.base_model_name_or_path == str((folders / "clip").resolve())
    recipe = load_recipe(relative_run / "recipe.toml").backbone
    assert (recipe.path, recipe.disk) == (str((folders / "clip").resolve()), str((folders / "cache").resolve()))
    assert str(folders) not in (adapter.folder / "README.md").read_text(encoding="utf-8")
    assert read_run(relative_run).header.backbone.family == "CLIP"


def test_an_id_of_the_hub_and_the_embedded_backbone_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "model.pt").write_bytes(b"")
    named = ("demo", "", "openai/clip-vit-base-patch16", "model.pt")
    assert [absolute_backbone(name) for name in named] == [*named[:3], str(tmp_path.resolve() / "model.pt")]


def test_predictions_are_in_the_precision_of_the_run_where_the_device_has_it(
    relative_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = open_adapter(relative_run)
    assert adapter.card.precision == "bfloat16" and adapter.card.dtype == "float32"
    assert restore(adapter)[1].precision == "bfloat16"
    assert not any("float32 here" in said for said in introduction(adapter))

    def lacks(name: str, precision: str = "float32") -> torch.device:
        if precision != "float32":
            raise UserError("no")
        return torch.device("cpu")

    monkeypatch.setattr(adapters, "find_device", lacks)
    assert restore(adapter)[1].precision == "float32"
    assert any("computed in bfloat16 in the run and does so in float32 here" in said for said in introduction(adapter))


def test_another_backbone_is_said_to_be_one_whatever_its_shapes(relative_run: Path, folders: Path) -> None:
    image = folders / "photos" / "dog" / "0.png"
    for other in ("demo", folders / "biomed"):
        said = sentence("predict", relative_run, image, "--backbone", other)
        assert "was trained on the backbone" in said and "give the first with --backbone" in said


def test_a_backbone_that_is_gone_is_asked_for_with_the_commands_own_option(
    relative_run: Path, folders: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(open_adapter(relative_run).folder, adapter)
    card = adapter / "adapter_config.json"
    for gone in ("/nowhere/clip", "nobody/nothing"):
        found = json.loads(card.read_text(encoding="utf-8"))
        card.write_text(json.dumps(found | {"base_model_name_or_path": gone}), encoding="utf-8")
        said = sentence("predict", adapter, folders / "photos" / "dog" / "0.png")
        assert "give the folder of a copy with --backbone" in said and "--set" not in said and "path=demo" not in said


def test_a_part_that_does_not_fit_names_the_backbone(folders: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders / "clip", tmp_path / "copy"))
    settings = json.loads((copy / "preprocessor_config.json").read_text(encoding="utf-8")) | {"image_mean": [0.5]}
    (copy / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    said = sentence("backbone", "inspect", copy)
    assert f"The backbone '{copy}' cannot be opened: The preprocessing has image_mean" in said
