"""Any CLIP folder opens; one fingerprint for one backbone; what cannot be opened is named with the fix."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fedprompt.clip import hub, loading
from fedprompt.clip.checkpoints.convert import convert
from fedprompt.clip.loading import family_of, preprocess
from fedprompt.clip.model import Clip
from fedprompt.errors import UserError
from fedprompt.testing import FAMILIES, tiny_backbone, tiny_model, tiny_processor, tiny_tokenizer
from fedprompt.testing.tiny_families import tiny_family_parts
from test_cli import call


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


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("vision_config", "hidden_act", "gelu"),
        ("text_config", "hidden_act", "gelu"),
        ("vision_config", "num_attention_heads", 1),
        ("text_config", "layer_norm_eps", 0.1),
    ],
)
def test_the_fingerprint_tells_apart_what_is_computed_with_the_same_weights(
    copy: Path, part: str, key: str, value: object
) -> None:
    before, file = Clip.load(copy), copy / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    assert config[part].get(key) != value
    config[part][key] = value
    file.write_text(json.dumps(config), encoding="utf-8")
    after = Clip.load(copy)
    assert all(map(torch.equal, before.state_dict().values(), after.state_dict().values()))
    assert after.fingerprint != before.fingerprint


def test_the_fingerprint_tells_tokenizers_apart(tiny_parts: Any) -> None:
    model, tokenizer, processor = tiny_parts
    before = Clip(model, tokenizer, processor).fingerprint
    other = tiny_tokenizer()
    vocabulary = other.get_vocab()
    first, second = list(vocabulary)[:2]
    other.get_vocab = lambda: vocabulary | {first: vocabulary[second], second: vocabulary[first]}
    assert Clip(model, other, processor).fingerprint != before
    assert Clip(model, tiny_tokenizer(), processor).fingerprint == before


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
        UserError, match=r"set backbone\.path=demo .* or to the folder of a CLIP.*`fedprompt backbone fetch"
    ):
        hub.require_available("nobody/nothing")
    hub.hub_answers.cache_clear()


def test_a_hub_id_in_the_cache_is_opened_without_a_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda name, file: str(folder / file))
    hub.require_available("somebody/clip")
    wanted = []
    monkeypatch.setattr(
        loading.PreTrainedConfig,
        "get_config_dict",
        lambda origin, **settings: wanted.append((origin, settings)) or ({}, {}),
    )
    with pytest.raises(UserError, match=r"its config\.json states no model_type"):
        Clip.load("somebody/clip")
    assert wanted == [("somebody/clip", {"local_files_only": True})]


NONE_OF = r"which is none of the supported families \(clip, metaclip_2, siglip, vit_bert\)"
TYPES = {
    "align": rf"its model_type is 'align', {NONE_OF}\.$",
    "bert": rf"'bert', {NONE_OF}\.$",
    "blip": rf"'blip', {NONE_OF}\.$",
    "sigilp": rf"'sigilp', {NONE_OF}; did you mean 'siglip'\?",
    None: "its config.json states no model_type",
    ("clip",): r"sets model_type = \['clip'\], which is no text",
}


@pytest.mark.parametrize("kind", TYPES)
def test_another_kind_of_model_is_refused(kind: Any, copy: Path) -> None:
    settings = json.loads((copy / "config.json").read_text()) | {"model_type": kind}
    (copy / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=TYPES[kind]):
        Clip.load(copy)


VALUES: dict[tuple[str, object], str] = {
    ("hidden_act", "swooosh"): "config.json sets text_config.hidden_act = 'swooosh', which is no activation",
    ("hidden_act", 3): "config.json sets text_config.hidden_act = 3, which is no activation",
    ("num_attention_heads", 0): "text_config.num_attention_heads = 0, which must be a whole number above 0",
    ("num_attention_heads", 5): "cannot be opened: The hidden size .* not a multiple of the number of attention heads",
    ("hidden_size", "32"): "text_config.hidden_size = '32', which must be a whole number above 0",
}


@pytest.mark.parametrize("what", VALUES)
def test_values_that_no_tower_can_have_are_refused_in_a_sentence(what: tuple[str, object], copy: Path) -> None:
    settings = json.loads((copy / "config.json").read_text())
    settings["text_config"][what[0]] = what[1]
    (copy / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=VALUES[what]):
        Clip.load(copy)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["[1]", "{"])
def test_a_part_that_is_no_json_object_is_named(content: str, name: str, copy: Path) -> None:
    (copy / name).write_text(content)
    with pytest.raises(UserError, match=rf"cannot be opened: its {name} is no whole JSON object; copy it again"):
        Clip.load(copy)


FILES = {
    "nothing": ((), r"the folder has no config\.json\. A"),
    "images": (("a.png", "b.jpg"), r"the folder has no config\.json\. A"),
    "a checkpoint": (
        ("notes.txt", "RemoteCLIP-ViT-B-32.pt"),
        r"no config\.json; give the file RemoteCLIP-ViT-B-32\.pt",
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_a_folder_without_a_configuration_says_so(what: str, tmp_path: Path) -> None:
    names, said = FILES[what]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    for open_ in (Clip.load, family_of):
        with pytest.raises(UserError, match=said):
            open_(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "said"), [("preproc*", "has no preprocessor_config.json"), ("tok*", "no tokenizer")]
)
def test_a_missing_part_is_named(pattern: str, said: str, copy: Path) -> None:
    for one in copy.glob(pattern):
        one.unlink()
    with pytest.raises(UserError, match=f"{said}.*; copy its? ") as caught:
        Clip.load(copy)
    assert "local directory" not in str(caught.value)


def test_offline_the_hub_is_not_said_to_have_been_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    hub.hub_answers.cache_clear()
    with pytest.raises(UserError, match="the Hub is not asked, since HF_HUB_OFFLINE is set"):
        hub.require_available("nobody/nothing")


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


Weights = dict[str, Any]
SPOILED: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "missing": (
        lambda found: {name: one for name, one in found.items() if name != "visual_projection.weight"},
        r"lacks 1 weight, 'visual_projection\.weight' first",
    ),
    "extra": (
        lambda found: found | {"text_model.encoder.layers.3.mlp.fc1.bias": torch.ones(64)},
        r"has 1 weight that its config\.json does not speak of, 'text_model\.encoder\.layers\.3",
    ),
    "misshapen": (
        lambda found: found | {"visual_projection.weight": torch.ones(24, 47)},
        r"'visual_projection\.weight' of the backbone .* is \[24, 47\], but by its config\.json \[24, 48\]",
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_weights_that_are_not_those_of_the_configuration_are_refused(copy: Path, what: str) -> None:
    spoil, said = SPOILED[what]
    save_file(spoil(load_file(copy / "model.safetensors")), copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=said):
        Clip.load(copy)


def test_weights_that_are_not_finite_or_whole_numbers_are_refused_when_the_backbone_is_opened(copy: Path) -> None:
    name, file = "visual_projection.weight", copy / "model.safetensors"
    whole = load_file(file)
    save_file(whole | {name: torch.full_like(whole[name], torch.nan)}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"The weight '{name}' of the backbone .* has numbers that are not finite"):
        Clip.load(copy)
    save_file(whole | {name: whole[name].to(torch.int8)}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"'{name}' in model.safetensors is of the type I8, .* not quantised\.$"):
        Clip.load(copy)


def test_the_configuration_of_another_model_is_named_as_the_cause(copy: Path) -> None:
    for part in tiny_family_parts("siglip")[:1]:
        save_file(
            {key: one.contiguous() for key, one in part.state_dict().items()},
            copy / "model.safetensors",
            {"format": "pt"},
        )
    with pytest.raises(
        UserError, match=r"lacks .* other ones, .* the model_type 'clip' in its config\.json may be anot"
    ):
        Clip.load(copy)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 345\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_said_to_be_one(name: str, copy: Path) -> None:
    (copy / name).write_text(POINTER)
    with pytest.raises(UserError, match=rf"{name} is a pointer of Git LFS, .* run git lfs pull"):
        Clip.load(copy)


def test_a_torn_file_of_weights_is_named(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"/model\.safetensors is no whole file of safetensors .*; copy it again\.$"):
        Clip.load(copy)


def test_constants_that_older_files_hold_are_left_out(copy: Path, tiny_clip: Clip) -> None:
    weights = load_file(copy / "model.safetensors") | {"text_model.embeddings.position_ids": torch.arange(40)[None]}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert Clip.load(copy).fingerprint == tiny_clip.fingerprint


def test_a_configuration_of_impossible_values_is_refused(copy: Path) -> None:
    settings = json.loads((copy / "config.json").read_text())
    settings["text_config"]["hidden_size"] = "wide"
    (copy / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="cannot be opened: "):
        Clip.load(copy)


@pytest.mark.parametrize("mean", [[0.5, 0.5], "0.5", [0.5, 0.5, "0.5"]])
def test_a_mean_that_is_not_three_numbers_is_refused_when_the_backbone_is_opened(mean: Any, copy: Path) -> None:
    settings = json.loads((copy / "preprocessor_config.json").read_text()) | {"image_mean": mean}
    (copy / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"image_mean"):
        Clip.load(copy)


def test_weights_of_another_form_are_converted_once(copy: Path, tmp_path: Path, tiny_clip: Clip) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="converted once: fedprompt backbone convert FOLDER OUT"):
        Clip.load(copy)
    with pytest.raises(UserError, match=r"is a Hugging Face folder, whose activation, .* leave out --activation"):
        convert(copy, tmp_path / "out", activation="gelu")
    assert convert(copy, tmp_path / "out").fingerprint == tiny_clip.fingerprint
    assert "its weights are the file's, number by number" in call("backbone", "convert", copy, tmp_path / "said")
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()
    with pytest.raises(UserError, match="is no checkpoint to convert"):
        convert(tmp_path / "out", tmp_path / "again")
    (tmp_path / "out" / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"Hugging Face model that its config\.json names is taken.* give its file"):
        convert(tmp_path / "out", tmp_path / "again")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_any_family_is_the_same_backbone(
    family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for part in tiny_family_parts(family):
        part.save_pretrained(tmp_path)
    capfd.readouterr()
    loaded, made = Clip.load(tmp_path), tiny_backbone(family)
    assert capfd.readouterr() == ("", "")
    assert loaded.fingerprint == made.fingerprint
    assert loaded.family is made.family is family_of(tmp_path)
    assert torch.equal(loaded.text_features(["a photo of a dog."]), made.text_features(["a photo of a dog."]))


def test_a_file_of_a_folder_and_a_file_that_is_none_are_refused(copy: Path) -> None:
    with pytest.raises(UserError, match=r"is a part of the Hugging Face folder .*; give the folder"):
        Clip.load(copy / "model.safetensors")
    (copy / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="cannot be opened: "):
        Clip.load(copy / "notes.txt")


FOREIGN: dict[str, tuple[str, dict[str, Any], bool, str]] = {  # whether with CLIP's tokenizer of 547 ids
    "SigLIP's end": (
        "siglip",
        {"eos_token_id": 5},
        False,
        r"eos_token_id in config.json is 5, but the tokenizer has 0",
    ),
    "SigLIP's padding": ("siglip", {"pad_token_id": 5}, False, r"pad_token_id in config.json is 5, but the tokenizer"),
    "BERT's padding": ("vit_bert", {"pad_token_id": 5}, False, r"pad_token_id in config.json is 5, but the tokenizer"),
    "CLIP's for SigLIP": (
        "siglip",
        {"vocab_size": 547, "eos_token_id": 546, "pad_token_id": 546},
        True,
        r"begins a sentence with the ids \[545\], but SigLIP has no start token",
    ),
    "CLIP's for BERT": (
        "vit_bert",
        {"vocab_size": 547},
        True,
        "are not a class and a separator token, as a BERT reads",
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_tokenizer_of_another_tower_is_refused(what: str) -> None:
    family, text, clips, said = FOREIGN[what]
    model, tokenizer, processor = FAMILIES[family]({"text": text})
    with pytest.raises(UserError, match=said):
        Clip(model, tiny_tokenizer() if clips else tokenizer, processor)


def test_a_tokenizer_of_far_fewer_ids_than_a_clip_embeds_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(UserError, match=r"knows 5000 token ids, but the tokenizer has 547; use .* trained with\.$"):
        Clip(tiny_model(tokenizer, text={"vocab_size": 5000, "eos_token_id": 2}), tokenizer, tiny_processor())


def test_a_naflex_siglip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "siglip2"}')
    for open_ in (Clip.load, family_of):
        with pytest.raises(UserError, match="SigLIP 2 of the NaFlex kind, whose number of patches varies"):
            open_(tmp_path)


def test_a_tokenizer_that_needs_another_package_says_which(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ImportError("\nT needs SentencePiece, which is not there. See the instructions on the\npage of it.")

    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(
        UserError, match=r"which is not there\. Install the package .* pip install sentencepiece protobuf"
    ):
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
