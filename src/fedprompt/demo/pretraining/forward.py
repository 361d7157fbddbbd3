"""Forward passes of both encoders in pretraining: patch dropout, random extra tokens, texts batched by length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from fedprompt.demo.pretraining.model import CONTEXT, MEAN, STD
from fedprompt.demo.render import PATCH, SIZE

COUNTS = (16, 18, 22, 26, 36)  # patches kept in a step: cheaper, and the encoder learns any number of tokens
LATE_COUNTS = (24, 32, 44, 64)  # while the rate falls, so that the encoder knows whole images
GROUP = 64  # texts encoded together


def encode_images(
    model: CLIPModel, pixels: Tensor, generator: torch.Generator, counts: Sequence[int] = COUNTS
) -> tuple[Tensor, Tensor, Tensor]:
    """Image features [B, D] and patch features [B, K, D], unit norm, of K random patches [B, K] of [B, 3, 64, 64]."""
    tower, embed = model.vision_model, model.vision_model.embeddings
    weight = embed.patch_embedding.weight
    squares = pixels.to(weight).div(255).sub(MEAN).div(STD).unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    squares = squares.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # [B, 3, r, c, p, p] -> [B, P, 3 p p]
    count = counts[int(torch.randint(len(counts), (), generator=generator))]
    kept = torch.rand(len(pixels), (SIZE // PATCH) ** 2, generator=generator).argsort(dim=1)[:, :count]  # [B, K]
    kept = kept.to(pixels.device)
    chosen = squares.gather(1, kept[..., None].expand(-1, -1, squares.shape[-1]))  # [B, K, 3 p p]
    patches = F.linear(chosen, weight.flatten(1)) + embed.position_embedding.weight[1:][kept]
    first = (embed.class_embedding + embed.position_embedding.weight[0]).expand(len(pixels), 1, -1)
    x = tower.pre_layrnorm(_with_stray_tokens(torch.cat([first, patches], dim=1), generator))  # [B, 1 + K + n, W]
    for layer in tower.encoder.layers:
        x = block(layer, x)
    x = model.visual_projection(tower.post_layernorm(x[:, : 1 + count]))
    x = F.normalize(x.float(), dim=-1)
    return x[:, 0], x[:, 1:], kept


def _with_stray_tokens(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """In half of the steps, append one to eight random tokens: visual prompts will have that position."""
    if torch.rand((), generator=generator) >= 0.5:
        return tokens
    count = int(torch.randint(1, 9, (), generator=generator))
    spread = float(torch.rand((), generator=generator)) * 0.1 + 0.005
    rows = 1 if torch.rand((), generator=generator) < 0.5 else len(tokens)
    stray = spread * torch.randn(rows, count, tokens.shape[-1], generator=generator)
    return torch.cat([tokens, stray.to(tokens).expand(len(tokens), -1, -1)], dim=1)  # [B, T + n, W]


def block(layer: CLIPEncoderLayer, x: Tensor, *, causal: bool = False) -> Tensor:
    """One transformer layer over [B, T, W]; written out, because fused attention's backward is slow on CPU."""
    attention = layer.self_attn
    y = layer.layer_norm1(x)
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    q, k, v = (part(y).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in parts)  # [B, H, T, W / H]
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5)  # [B, H, T, T]
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -1e4, dtype=scores.dtype, device=x.device).triu(1)
    x = x + attention.out_proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))  # [B, T, W]
    x = x + layer.mlp.fc2(layer.mlp.activation_fn(layer.mlp.fc1(layer.layer_norm2(x))))
    return x


class TextEncoder:
    """Encodes texts in batches of similar length, because padding costs as much as words."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer
        self.rows: dict[str, Tensor] = {}

    def ids(self, texts: Sequence[str]) -> list[Tensor]:
        """Token ids of each text; cached."""
        if len(self.rows) > 200_000:
            self.rows.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self.rows]
        if new:
            found = self.tokenizer(new, truncation=True, max_length=CONTEXT).input_ids
            self.rows.update(zip(new, map(torch.tensor, found), strict=True))
        return [self.rows[text] for text in texts]

    def encode(self, model: CLIPModel, texts: Sequence[str]) -> Tensor:
        """Text features [T, D], unit norm."""
        rows = self.ids(texts)
        order = sorted(range(len(rows)), key=lambda position: len(rows[position]))
        groups = [order[start : start + GROUP] for start in range(0, len(order), GROUP)]
        found = torch.cat([self._encode(model, [rows[position] for position in group]) for group in groups])
        return found[torch.tensor(order, device=found.device).argsort()]  # [T, D]

    def _encode(self, model: CLIPModel, rows: list[Tensor]) -> Tensor:
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.eos_token_id)  # [N, L]
        tower = model.text_model
        ids = ids.to(tower.embeddings.token_embedding.weight.device)
        x = tower.embeddings.token_embedding(ids) + tower.embeddings.position_embedding.weight[: ids.shape[1]]
        for layer in tower.encoder.layers:
            x = block(layer, x, causal=True)
        ends = torch.tensor([len(row) - 1 for row in rows], device=ids.device)
        x = model.text_projection(tower.final_layer_norm(x[torch.arange(len(ids), device=ids.device), ends]))
        return F.normalize(x.float(), dim=-1)
