"""The embedded CLIP's shape: a transformers `CLIPModel` and a byte-pair tokenizer, both small, saved as a usual folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, trainers
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from fedprompt.demo.drawing import SIZE

CONTEXT = 32  # tokens
MEAN, STD = 0.5, 0.27


def make_tokenizer(corpus: Iterable[str], *, vocabulary: int = 2600) -> CLIPTokenizer:
    """Train byte-pair merges on the corpus; ids as in OpenAI's CLIP: bytes, bytes at a word's end, merges, two specials."""
    blank = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    letters = sorted(blank.pre_tokenizer.alphabet()) if hasattr(blank.pre_tokenizer, "alphabet") else _byte_letters()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False, min_frequency=2
    )
    learner.train_from_iterator(corpus, trainer)
    import json

    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    pieces = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)


def _byte_letters() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def make_model(tokenizer: CLIPTokenizer, seed: int) -> CLIPModel:
    """A fresh tower; vision positions start as two-dimensional sines, which saves the first thousand steps."""
    config = CLIPConfig(
        projection_dim=128,
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            hidden_act="relu",
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        vision_config=dict(
            hidden_size=160,
            intermediate_size=640,
            num_hidden_layers=5,
            num_attention_heads=5,
            image_size=SIZE,
            patch_size=8,
            hidden_act="relu",
            projection_dim=128,
        ),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config)
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embedding" not in name:
                torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5 * (0.5 if "out_proj" in name or "fc2" in name else 1))
    positions = model.vision_model.embeddings.position_embedding.weight.data
    positions[1:] = 0.3 * sines(SIZE // 8, positions.shape[1])
    return model


def sines(side: int, width: int) -> torch.Tensor:
    """[side * side, width]: sines and cosines of row and column at rising frequencies."""
    quarter = width // 4
    frequency = 1 / 30 ** (torch.arange(quarter) / quarter)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.flatten()[:, None] * frequency for place in (row, column)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)  # [P, W]


def save(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the folder in float16; it appears at once and whole, replacing an earlier one."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    half = CLIPModel(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    ).save_pretrained(fresh)
    if (folder / "CARD.md").exists():
        shutil.copy(folder / "CARD.md", fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
