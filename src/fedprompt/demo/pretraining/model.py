"""Architecture of the embedded CLIP: a small `CLIPModel` of transformers, saved with its tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from fedprompt.demo.render import PATCH, SIZE

CONTEXT = 32  # tokens
JOINT = 128
MEAN, STD = 0.5, 0.27  # of pixels between 0 and 1
VISION = {"hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 5, "num_attention_heads": 5}
TEXT = {"hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 4, "num_attention_heads": 5}


def make_model(tokenizer: CLIPTokenizer, seed: int) -> CLIPModel:
    """A new model; vision position embeddings start as two-dimensional sines, which saves the first thousand steps."""
    shared = {"hidden_act": "relu", "projection_dim": JOINT}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**TEXT, **shared, **special, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT}
    vision = {**VISION, **shared, "image_size": SIZE, "patch_size": PATCH}
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())  # transformers draws from the global one
        model = CLIPModel(CLIPConfig(projection_dim=JOINT, text_config=text, vision_config=vision))
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embedding" not in name:
                gain = 0.5 if "out_proj" in name or "fc2" in name else 1.0
                torch.nn.init.normal_(weight, std=gain * weight.shape[1] ** -0.5)
    positions = model.vision_model.embeddings.position_embedding.weight.data
    positions[1:] = 0.3 * sines(SIZE // PATCH, positions.shape[1])
    return model


def sines(side: int, width: int) -> torch.Tensor:
    """Position embeddings [side * side, width]: sines and cosines of row and column at decreasing frequencies."""
    quarter = width // 4
    frequency = 1 / 30 ** (torch.arange(quarter) / quarter)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.flatten()[:, None] * frequency for place in (row, column)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)  # [P, W]


def save(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path, *, card: str | None = None) -> None:
    """Write the model in float16, with a card if given; the folder replaces an earlier one atomically."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    half = CLIPModel(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(fresh)
    (fresh / "model.safetensors").chmod(0o644)
    tokenizer.backend_tokenizer.no_truncation()  # else the file would depend on the tokenizer's last call
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(fresh)
    edge = {"height": SIZE, "width": SIZE}
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size=edge, image_mean=[MEAN] * 3, image_std=[STD] * 3
    )
    processor.save_pretrained(fresh)
    if card is not None:
        (fresh / "CARD.md").write_text(card)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
