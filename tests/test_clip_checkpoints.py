"""Checkpoints of OpenAI and open_clip become the same model; what is damaged, contradictory or code is refused."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel

from fedprompt.clip.checkpoints.config import OpenClipConfig
from fedprompt.clip.checkpoints.convert import convert
from fedprompt.clip.checkpoints.heads import find_heads
from fedprompt.clip.checkpoints.reading import read_tensors
from fedprompt.clip.checkpoints.weights import BERT_NAMES, CLIP_NAMES, _in_file, _renamed
from fedprompt.clip.loading import family_of
from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.errors import UserError
from fedprompt.testing import TinyImages, tiny_tokenizer
from fedprompt.testing.tiny_families import tiny_family_parts
from test_cli import call, sentence

IMAGES = Images(TinyImages(), (3, 0, 5))
TEXTS = ("a photo of a dog.", "the cat", "a photo of a zebra")
WIDTH, DIM, SIDE, PATCH = 128, 24, 32, 8


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """The residual attention block of OpenAI's release, from its description: torch's attention, LayerNorm before."""

    def __init__(self, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        layers = {"c_fc": nn.Linear(width, 2 * width), "gelu": activation, "c_proj": nn.Linear(2 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, activation: nn.Module) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, activation) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x.transpose(0, 1)  # torch's attention has the tokens first
        for block in self.resblocks:
            x = block(x, mask)
        return x.transpose(0, 1)


class Visual(nn.Module):
    def __init__(self, activation: nn.Module, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(1 + (SIDE // PATCH) ** 2, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, 3, activation)
        self.proj = nn.Parameter(torch.randn(width, DIM))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.proj


class Published(nn.Module):
    """CLIP with a vision transformer as OpenAI and open_clip name its parts."""

    def __init__(self, activation: nn.Module, image: int = WIDTH, text: int = 64) -> None:
        super().__init__()
        self.visual = Visual(activation, image)
        self.transformer = Transformer(text, 2, activation)
        self.token_embedding = nn.Embedding(len(tiny_tokenizer()), text)
        self.positional_embedding = nn.Parameter(torch.randn(40, text))
        self.ln_final = nn.LayerNorm(text)
        self.text_projection = nn.Parameter(torch.randn(text, DIM))
        self.logit_scale = nn.Parameter(torch.tensor(3.0))

    def encode_text(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu_(1)
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(ids)), ids.argmax(dim=-1)] @ self.text_projection


class TimmBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 2 * width), "fc2": nn.Linear(2 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.attn["qkv"](self.norm1(x)).reshape(batch, tokens, 3, width // 64, 64).permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(*parts)
        x = x + self.attn["proj"](found.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (SIDE // PATCH) ** 2, WIDTH))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.blocks = nn.Sequential(*(TimmBlock(WIDTH) for _ in range(3)))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.norm(self.blocks(x))[:, 0]


class Biomed(nn.Module):
    """A plain vision transformer and a BERT as open_clip names the parts of BiomedCLIP."""

    def __init__(self, *, linear: bool = False) -> None:
        super().__init__()
        head = nn.ModuleDict({"proj": nn.Linear(WIDTH, DIM, bias=False)})
        self.trunk_and_head = nn.ModuleDict({"trunk": Trunk(), "head": head})
        sizes = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        words = len(tiny_family_parts("vit_bert")[1])
        self.bert = BertModel(
            BertConfig(vocab_size=words, max_position_embeddings=48, **sizes), add_pooling_layer=False
        ).eval()
        hidden = (128 + DIM) // 2
        self.proj = nn.Sequential(nn.Linear(128, hidden, bias=False), nn.GELU(), nn.Linear(hidden, DIM, bias=False))
        if linear:
            self.proj = nn.Linear(128, DIM, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(3.0))

    def state_dict(self, **_: Any) -> dict[str, Tensor]:
        return {
            **{f"visual.{name}": one for name, one in self.trunk_and_head.state_dict().items()},
            **{f"text.transformer.{name}": one for name, one in self.bert.state_dict().items()},
            **{f"text.proj.{name}": one for name, one in self.proj.state_dict().items()},
            "logit_scale": self.logit_scale.detach(),
        }

    def visual(self, pixels: Tensor) -> Tensor:
        return self.trunk_and_head["head"]["proj"](self.trunk_and_head["trunk"](pixels))

    def encode_text(self, ids: Tensor) -> Tensor:
        return self.proj(self.bert(ids).last_hidden_state[:, 0])


def drawn(module: nn.Module) -> nn.Module:
    """The module with weights from one generator, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if not name.endswith("logit_scale"):
                weight.copy_(noise / max(1, weight[0].numel()) ** 0.5 if weight.ndim > 1 else weight + 0.1 * noise)
    return module.eval()


VISION = {"image_size": SIDE, "layers": 3, "width": WIDTH, "patch_size": PATCH}
TEXT = {"context_length": 40, "vocab_size": len(tiny_tokenizer()), "width": 64, "heads": 1, "layers": 2}
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "interpolation": "bicubic", "resize_mode": "shortest"}
CONFIG = {"model_cfg": {"embed_dim": DIM, "vision_cfg": VISION, "text_cfg": TEXT}, "preprocess_cfg": PREPROCESS}
BIOMED = {
    "model_cfg": {
        "embed_dim": DIM,
        "vision_cfg": {
            "timm_model_name": "vit_base_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": SIDE,
        },
        "text_cfg": {
            "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
            "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 40,
        },
    },
    "preprocess_cfg": PREPROCESS,
}
GELU, QUICK = drawn(Published(nn.GELU())), drawn(Published(QuickGELU()))
OPENAI = {"input_resolution": torch.tensor(SIDE), "context_length": torch.tensor(40)}
OPENAI |= {"vocab_size": torch.tensor(len(tiny_tokenizer()))}


def as_custom_text(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of an open_clip model with a text tower of its own."""
    apart = ("visual.", "logit_scale")
    return {name if name.startswith(apart) else f"text.{name}": one for name, one in state.items()}


def write(folder: Path, *, state: Any, config: Any = None, name: str = "open_clip_model.safetensors") -> Path:
    """A checkpoint with its configuration and a tokenizer beside it; the file."""
    folder.mkdir(exist_ok=True)
    biomed = config is not None and "hf_model_name" in config["model_cfg"]["text_cfg"]
    (tiny_family_parts("vit_bert")[1] if biomed else tiny_tokenizer()).save_pretrained(folder)
    if config is not None:
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    if name.endswith(".safetensors"):
        save_file({key: one.contiguous() for key, one in state.items()}, folder / name)
    else:
        torch.save(state, folder / name)
    return folder / name


def changed(config: Mapping[str, Any], place: str, **values: Any) -> dict[str, Any]:
    """The configuration with other values of a table."""
    copy = json.loads(json.dumps(config))
    table = copy["model_cfg"] if place == "model_cfg" else copy["model_cfg"][place]
    table.update(values)
    return copy


def assert_same(clip: Clip, published: nn.Module) -> None:
    """Image and text features are those of the published modules, to 1e-5."""
    with torch.no_grad():
        pixels = torch.from_numpy(clip._decoder.prepare(list(IMAGES)))
        image = published.visual(pixels)
        text = torch.cat([published.encode_text(torch.tensor([row])) for row in clip.tokenizer.sentences(TEXTS)])
    torch.testing.assert_close(clip.image_features(IMAGES), normalize(image, dim=-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(clip.image_projections(IMAGES), image, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(clip.text_features(TEXTS), normalize(text, dim=-1), atol=1e-5, rtol=1e-5)
    assert clip.scale == pytest.approx(20.0855, abs=1e-3)


FORMS: dict[str, tuple[Callable[[], Any], Any, str, nn.Module]] = {
    "safetensors": (GELU.state_dict, CONFIG, "open_clip_model.safetensors", GELU),
    "bin": (GELU.state_dict, CONFIG, "open_clip_pytorch_model.bin", GELU),
    "QuickGELU": (QUICK.state_dict, changed(CONFIG, "model_cfg", quick_gelu=True), "model.pt", QUICK),
    "a training script's": (
        lambda: {"epoch": 3, "state_dict": {f"module.{name}": one for name, one in GELU.state_dict().items()}},
        CONFIG,
        "epoch_3.pt",
        GELU,
    ),
    "custom text": (lambda: as_custom_text(GELU.state_dict()), CONFIG, "open_clip_pytorch_model.bin", GELU),
    "OpenAI's": (lambda: QUICK.state_dict() | OPENAI, None, "ViT-B-16.pt", QUICK),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_is_the_published_model(form: str, tmp_path: Path) -> None:
    state, config, name, published = FORMS[form]
    path = write(tmp_path / "ckpt", state=state(), config=config, name=name)
    assert family_of(path).title == "CLIP"
    assert_same(Clip.load(path), published)
    found = convert(path, tmp_path / "out")
    assert found.difference < 1e-5 and found.title == "CLIP"
    loaded = Clip.load(tmp_path / "out")
    assert_same(loaded, published)
    assert loaded.fingerprint == Clip.load(path).fingerprint == found.fingerprint
    assert not any(one.suffix in (".bin", ".pt") for one in (tmp_path / "out").iterdir())


def test_biomedclips_pair_is_the_published_model(tmp_path: Path) -> None:
    published = drawn(Biomed())
    folder = tmp_path / "ckpt"
    write(folder, state=published.state_dict(), config=BIOMED, name="open_clip_pytorch_model.bin")
    assert family_of(folder).title == "ViT and BERT"
    assert_same(Clip.load(folder), published)
    said = call("backbone", "convert", folder, tmp_path / "out")
    assert "as a ViT and BERT backbone" in said and "assumed" not in said
    assert f"--set backbone.path={tmp_path / 'out'}" in said
    loaded = Clip.load(tmp_path / "out")
    assert_same(loaded, published)
    assert loaded.context_length == 40 and loaded.tokenizer.special.length is None
    assert loaded.model.config.vision_config.projection_dim == loaded.model.config.projection_dim == DIM


def test_a_bert_with_a_linear_projection_is_the_published_model(tmp_path: Path) -> None:
    published = drawn(Biomed(linear=True))
    path = write(
        tmp_path / "ckpt", state=published.state_dict(), config=changed(BIOMED, "text_cfg", hf_proj_type="linear")
    )
    assert convert(path, tmp_path / "out").difference < 1e-5
    assert_same(Clip.load(tmp_path / "out"), published)


def test_half_precision_checkpoints_are_computed_in_single_precision(tmp_path: Path) -> None:
    state = {name: one.half() for name, one in GELU.state_dict().items()}
    path = write(tmp_path / "ckpt", state=state, config=CONFIG)
    assert {tensor.dtype for tensor in Clip.load(path).parameters()} == {torch.float32}
    assert convert(path, tmp_path / "out").difference < 1e-5


def test_a_bare_checkpoint_must_be_told_its_activation(tmp_path: Path) -> None:
    path = write(tmp_path / "ckpt", state=GELU.state_dict(), name="RemoteCLIP-ViT-B-32.pt")
    with pytest.raises(UserError, match="do not say which activation it was trained with; say it in a conversion"):
        Clip.load(path)
    said = call("backbone", "convert", path, tmp_path / "out", "--activation", "gelu", "--heads", 2, 1)
    assert "No configuration says the mean and std of its preprocessing: OpenAI's are assumed" in said
    assert "heads:" not in said  # which the user says
    assert_same(Clip.load(tmp_path / "out"), GELU)


WIDTHS = {  # of the image and the text tower of open_clip's models, with their heads
    (384, 384): (6, 6),  # ViT-S-16
    (512, 384): (8, 6),  # ViT-M-16-alt
    (768, 512): (12, 8),  # ViT-B-16
    (896, 640): (14, 10),  # ViT-B-16-plus
    (1024, 768): (16, 12),  # ViT-L-14
    (1280, 1024): (16, 16),  # ViT-H-14
    (1408, 1024): (16, 16),  # ViT-g-14
    (1664, 1280): (16, 20),  # ViT-bigG-14
    (1792, 1280): (16, 20),  # ViT-e-14
}


@pytest.mark.parametrize("widths", WIDTHS)
def test_the_heads_of_published_widths_are_known(widths: tuple[int, int]) -> None:
    image, text = widths
    tensors = {"visual.conv1.weight": torch.empty(image, 3, 1, 1), "token_embedding.weight": torch.empty(2, text)}
    assert find_heads(OpenClipConfig("gelu", 32), tensors, "model.pt") == WIDTHS[widths]


def test_heads_that_nothing_says_are_asked_for_and_used(tmp_path: Path) -> None:
    """Heads 32 wide, of which neither shapes nor the comparison with the published formulas could tell."""
    odd = Published(nn.GELU())
    for block in odd.visual.transformer.resblocks:
        block.attn = nn.MultiheadAttention(WIDTH, 4)
    path = write(tmp_path / "ckpt", state=drawn(odd).state_dict(), name="odd.pt")
    options = ("backbone", "convert", path, tmp_path / "out", "--activation", "gelu")
    said = "how many attention heads the image tower of .* width 128 is that of no published one; .* --heads IMAGE TEXT"
    assert re.search(said, sentence(*options))
    assert "which cannot be divided into 3 heads" in sentence(*options, "--heads", 3, 1)
    call(*options, "--heads", 4, 1)
    assert_same(Clip.load(tmp_path / "out"), odd)
    stated = changed(CONFIG, "vision_cfg", head_width=32)
    path = write(tmp_path / "stated", state=odd.state_dict(), config=stated)
    assert_same(Clip.load(path), odd)
    with pytest.raises(UserError, match=r"is for a checkpoint that says none, unlike .*; leave the option out"):
        convert(path, tmp_path / "other", heads=(4, 1))


def test_open_clips_default_of_text_heads_is_used(tmp_path: Path) -> None:
    """Its TextCfg has 8 heads at any width."""
    odd = Published(nn.GELU())
    for block in odd.transformer.resblocks:
        block.attn = nn.MultiheadAttention(64, 8)
    config = changed(CONFIG, "text_cfg")
    del config["model_cfg"]["text_cfg"]["heads"]
    assert_same(Clip.load(write(tmp_path / "ckpt", state=drawn(odd).state_dict(), config=config)), odd)


def test_the_heads_of_a_bert_of_another_width_must_be_stated(tmp_path: Path) -> None:
    tensors = {
        "visual.trunk.patch_embed.proj.weight": torch.empty(768, 3, 1, 1),
        "text.transformer.embeddings.word_embeddings.weight": torch.empty(2, 384),
    }
    about = OpenClipConfig("gelu", 32, vision_head_width=64, bert=True)
    with pytest.raises(UserError, match="its width 384 is that of no published one"):
        find_heads(about, tensors, "model.pt")
    assert find_heads(replace(about, text_heads=12), tensors, "model.pt") == (12, 12)


def test_assumed_heads_are_said(tmp_path: Path) -> None:
    small = drawn(Published(nn.GELU(), image=384, text=256))
    path = write(tmp_path / "ckpt", state=small.state_dict(), name="small.pt")
    said = call("backbone", "convert", path, tmp_path / "out", "--activation", "gelu")
    assert "Nothing says its heads: 6 of the image tower and 4 of the text tower are assumed, as in" in said


def test_an_activation_that_contradicts_the_checkpoint_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "ckpt", state=GELU.state_dict(), config=CONFIG)
    said = sentence("backbone", "convert", path, tmp_path / "out", "--activation", "quick_gelu")
    assert "--activation quick_gelu contradicts" in said and "was trained with gelu" in said
    assert convert(path, tmp_path / "out", activation="gelu").difference < 1e-5
    own = write(tmp_path / "openai", state=QUICK.state_dict() | OPENAI, name="ViT-B-16.pt")
    with pytest.raises(UserError, match=r"has input_resolution as OpenAI's models have: the model was trained"):
        convert(own, tmp_path / "other", activation="gelu")


def test_a_conversion_writes_nothing_but_its_sentences(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "ckpt", state=GELU.state_dict(), config=CONFIG)
    capfd.readouterr()
    convert(path, tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_from_elsewhere_is_used(tmp_path: Path) -> None:
    path = write(tmp_path / "ckpt", state=GELU.state_dict(), config=CONFIG)
    tiny_tokenizer().save_pretrained(tmp_path / "words")
    for one in path.parent.glob("*token*"):
        one.unlink()
    with pytest.raises(UserError, match=r"has no tokenizer beside it .*--tokenizer openai/clip-vit-base-patch16"):
        Clip.load(path.parent)
    with pytest.raises(UserError, match="tokenizer nowhere cannot be opened: it is no folder, and neither the Hub nor"):
        convert(path, tmp_path / "out", tokenizer="nowhere")
    convert(path, tmp_path / "out", tokenizer=str(tmp_path / "words"))
    assert_same(Clip.load(tmp_path / "out"), GELU)


def test_the_preprocessing_of_a_checkpoint_is_its_configurations(tmp_path: Path) -> None:
    squash = CONFIG | {"preprocess_cfg": PREPROCESS | {"resize_mode": "squash", "interpolation": "bilinear"}}
    clip = Clip.load(write(tmp_path / "ckpt", state=GELU.state_dict(), config=squash))
    assert list(clip.processor.image_mean) == [0.5, 0.5, 0.5] and not clip.processor.do_center_crop
    assert dict(clip.processor.size) == {"height": SIDE, "width": SIDE} and clip.processor.resample == 2
    stretch = CONFIG | {"preprocess_cfg": PREPROCESS | {"resize_mode": "longest"}}
    with pytest.raises(UserError, match="resizes by 'longest' and 'bicubic'; only shortest and squash"):
        Clip.load(write(tmp_path / "other", state=GELU.state_dict(), config=stretch))


class Code:
    """What runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


def test_a_pickle_that_is_more_than_tensors_is_refused_before_anything_is_executed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    state = {**GELU.state_dict(), "extra": Code(trace)}
    path = write(tmp_path / "ckpt", state=state, config=CONFIG, name="open_clip_pytorch_model.bin")
    for open_ in (lambda: Clip.load(path), lambda: convert(path, tmp_path / "out")):
        with pytest.raises(UserError, match=r"holds more than tensors \(posix.system\); nothing in it was executed"):
            open_()
    assert not trace.exists() and not (tmp_path / "out").exists()


def test_a_torchscript_archive_is_not_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "ckpt", state={}, config=CONFIG, name="ViT-B-16.pt")
    torch.jit.script(nn.Linear(2, 2)).save(str(path))
    said = "is a TorchScript archive, which holds code, so it is not opened"
    with warnings.catch_warnings(record=True, action="always") as shown, pytest.raises(UserError, match=said):
        Clip.load(path)
    assert not shown


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello" * 50, None])
def test_a_file_that_is_no_whole_checkpoint_is_refused(name: str, content: bytes | None, tmp_path: Path) -> None:
    path = write(tmp_path / "ckpt", state=GELU.state_dict(), config=CONFIG, name=name)
    path.write_bytes(path.read_bytes()[:5000] if content is None else content)
    with pytest.raises(UserError, match=r"is no whole|is a text file, no checkpoint: it begins with 'hellohello"):
        Clip.load(path)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_pointer_of_git_lfs_is_no_checkpoint(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 345\n")
    with pytest.raises(UserError, match="is a pointer of Git LFS, not the file that it stands for; run git lfs pull"):
        read_tensors(path)


STATES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda s: {k: v for k, v in s.items() if k != "visual.proj"}, "lacks 1 tensor, 'visual.proj' first"),
    "no embedding": (lambda s: {k: v for k, v in s.items() if k != "token_embedding.weight"}, "lacks the tensor"),
    "extra": (
        lambda s: s | {"visual.head.weight": torch.ones(2)},
        "has 1 tensor that a CLIP with a vision transformer",
    ),
    "misshapen": (
        lambda s: s | {"ln_final.weight": torch.ones(3)},
        r"'text_model.final_layer_norm.weight' .* is \[3\]",
    ),
    "flat patches": (lambda s: s | {"visual.conv1.weight": torch.ones(9)}, r"is \[9\], but must have 4 dimensions"),
    "one position": (
        lambda s: s | OPENAI | {"positional_embedding": torch.tensor(1.0)},
        r"is \[\], but must have 2 dimensions",
    ),
    "a ResNet": (lambda s: {"visual.layer1.0.conv1.weight": torch.ones(2)}, "is a ResNet; only vision transformers"),
    "sigmoid": (
        lambda s: s | {"logit_bias": torch.ones(())},
        "trained with a sigmoid loss .* Hugging Face folder of siglip",
    ),
    "another": (lambda s: {"cls_token": torch.ones(2)}, "no visual.class_embedding, but cls_token"),
    "whole numbers": (lambda s: s | {"visual.proj": torch.ones(WIDTH, DIM, dtype=torch.int64)}, "holds int64, not"),
    "OpenAI's vocabulary": (
        lambda s: s | OPENAI | {"vocab_size": torch.tensor(9)},
        "'vocab_size' .* says vocabulary 9",
    ),
    "not finite": (lambda s: s | {"ln_final.weight": torch.full((64,), torch.nan)}, "values that are not finite"),
}


@pytest.mark.parametrize("what", STATES)
def test_weights_that_are_not_those_of_a_clip_are_refused(what: str, tmp_path: Path) -> None:
    change, said = STATES[what]
    path = write(tmp_path / "ckpt", state=change(dict(GELU.state_dict())), config=CONFIG)
    with pytest.raises(UserError, match=said):
        Clip.load(path)


def test_a_file_without_tensors_is_no_state_dict(tmp_path: Path) -> None:
    for number, state in enumerate(({"epoch": 3}, {"state_dict": {"a": 1}}, [torch.ones(2)])):
        path = write(tmp_path / str(number), state=state, config=CONFIG, name="model.pt")
        with pytest.raises(UserError, match="is no state dict: it does not hold tensors by name"):
            Clip.load(path)


CONFIGS: dict[str, tuple[Any, str]] = {
    "sizes": (changed(CONFIG, "vision_cfg", layers=4), "says image layers 4, but its weights have 3"),
    "vocabulary": (changed(CONFIG, "text_cfg", vocab_size=99), "says vocabulary 99, but its weights have"),
    "image size": (changed(CONFIG, "vision_cfg", image_size=64), r"position_embedding.weight' .* is \[17, 128\]"),
    "pooling": (changed(CONFIG, "vision_cfg", pool_type="avg"), "sets vision_cfg.pool_type = 'avg', which is not"),
    "no mask": (changed(CONFIG, "text_cfg", no_causal_mask=True), "sets text_cfg.no_causal_mask = True"),
    "layer scale": (changed(CONFIG, "vision_cfg", ls_init_value=1e-5), "sets vision_cfg.ls_init_value"),
    "words": (changed(CONFIG, "text_cfg", tokenizer_kwargs={"clean": "lower"}), "sets text_cfg.tokenizer_kwargs"),
    "multimodal": (changed(CONFIG, "model_cfg", multimodal_cfg={"width": 8}), "sets model_cfg.multimodal_cfg"),
    "timm": (changed(CONFIG, "vision_cfg", timm_model_name="convnext_base"), "a tower of timm or of the Hub beside"),
    "RoBERTa": (changed(BIOMED, "text_cfg", hf_model_name="roberta-base"), "and roberta-base; of those of timm"),
    "registers": (changed(BIOMED, "vision_cfg", timm_model_name="vit_base_patch16_reg4_gap_256"), "only a plain ViT"),
    "pooler": (
        changed(BIOMED, "text_cfg", hf_pooler_type="mean_pooler"),
        "'mean_pooler', .*; only cls_last_hidden_state_pooler",
    ),
    "five heads": (changed(CONFIG, "text_cfg", heads=5), "has width 64, which cannot be divided into 5 heads"),
    "no head width": (
        changed(CONFIG, "vision_cfg", head_width=0),
        "head_width = 0, which must be a whole number above",
    ),
    "head width": (changed(CONFIG, "vision_cfg", head_width=48), "width 128, which cannot be divided into heads of 48"),
    "truth": (changed(CONFIG, "model_cfg", quick_gelu="false"), "quick_gelu = 'false', which must be true or false"),
    "width as text": (changed(CONFIG, "vision_cfg", width="128"), "width = '128', which must be a whole number"),
    "true as one": (changed(CONFIG, "text_cfg", heads=True), "heads = True, which must be a whole number"),
    "image sides": (changed(CONFIG, "vision_cfg", image_size=[32, 32]), "only square images are read"),
    "a ResNet": (changed(CONFIG, "vision_cfg", layers=[3, 4, 6, 3]), "is a ResNet's"),
    "two colours": (
        CONFIG | {"preprocess_cfg": {"mean": [0.5, 0.5]}},
        r"cfg.mean = \[0.5, 0.5\], which must be a list",
    ),
    "no spread": (CONFIG | {"preprocess_cfg": {"std": [0.5, 0, 1]}}, "which must be a list of three numbers above 0"),
    "mean as text": (CONFIG | {"preprocess_cfg": {"mean": "0.5"}}, "mean = '0.5', which must be a list of three"),
    "no table": (CONFIG | {"preprocess_cfg": "none"}, "has no JSON object as preprocess_cfg"),
    "nothing": ({"model_cfg": {}}, "is no configuration of an open_clip model"),
    "a list": (
        {"model_cfg": {"embed_dim": 2, "vision_cfg": [], "text_cfg": {}}},
        "is no configuration of an open_clip",
    ),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_configuration_that_is_not_supported_or_contradicts_the_weights_is_refused(what: str, tmp_path: Path) -> None:
    config, said = CONFIGS[what]
    path = write(tmp_path / "ckpt", state=GELU.state_dict(), config=CONFIG)
    (path.parent / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=said):
        Clip.load(path)


def test_a_missing_tensor_is_named_as_in_the_file(tmp_path: Path) -> None:
    for number, (published, config) in enumerate(((GELU, CONFIG), (drawn(Biomed()), BIOMED))):
        whole = dict(published.state_dict())
        assert {
            _in_file(new, bert=bool(number)) for new, _ in _renamed(whole, (CLIP_NAMES, BERT_NAMES)[number], "")
        } == {name for name in whole if not name.endswith("position_ids")}
        gone = sorted(name for name in whole if ".attn.in_proj_" in name or ".attn.qkv." in name)[0]
        left = {name: one for name, one in whole.items() if name != gone}
        with pytest.raises(UserError, match=f"lacks 1 tensor, '{gone}' first"):
            Clip.load(write(tmp_path / str(number), state=left, config=config))


BERTS = {
    "heads": (changed(BIOMED, "text_cfg", heads=5), "says text heads 5, but its weights have 2"),
    "head width": (changed(BIOMED, "vision_cfg", head_width=32), "says image head width 32, but its weights have 64"),
    "positions": (changed(BIOMED, "text_cfg", context_length=49), "says context length 49, but its weights have 48"),
}


@pytest.mark.parametrize("what", BERTS)
def test_a_configuration_that_contradicts_a_bert_is_refused(what: str, tmp_path: Path) -> None:
    config, said = BERTS[what]
    with pytest.raises(UserError, match=said):
        Clip.load(write(tmp_path / "ckpt", state=drawn(Biomed()).state_dict(), config=config))


def test_a_folder_without_weights_or_with_several_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "ckpt", state=GELU.state_dict(), config=CONFIG, name="one.pt")
    (path.parent / "two.pt").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"has several checkpoints, one.pt and two.pt; give the file"):
        Clip.load(path.parent)
    for one in ("one.pt", "two.pt"):
        (path.parent / one).unlink()
    with pytest.raises(UserError, match="but no weights"):
        Clip.load(path.parent)


def test_a_missing_file_and_a_hub_id_are_not_converted(tmp_path: Path) -> None:
    said = sentence("backbone", "convert", "openai/clip-vit-base-patch16", tmp_path / "out")
    assert "convert takes no Hub id; fetch it first: fedprompt backbone fetch openai/clip-vit-base-patch16" in said
    said = sentence("backbone", "convert", tmp_path / "model.pt", tmp_path / "out")
    assert "There is no such file or folder as" in said and "Hub" not in said


def test_what_is_no_checkpoint_is_not_converted(tmp_path: Path) -> None:
    assert "is no checkpoint to convert" in sentence("backbone", "convert", tmp_path, tmp_path / "out")
    path = write(tmp_path / "ckpt", state=GELU.state_dict(), config=CONFIG)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    assert "is not empty; give a new one" in sentence("backbone", "convert", path, tmp_path / "full")


def test_a_conversion_whose_features_differ_leaves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "ckpt", state=GELU.state_dict(), config=CONFIG)

    def spoiled(folder: Path) -> Clip:
        clip = Clip.load(folder)
        clip.model.visual_projection.weight[0] += 0.1
        return clip

    with pytest.raises(UserError, match=r"differ by .* after conversion, more than 0.0001; nothing was written"):
        convert(path, tmp_path / "out", load=spoiled)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["ckpt"]
