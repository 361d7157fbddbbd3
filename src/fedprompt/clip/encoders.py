"""The differentiable encoders of a frozen CLIP: text and image towers that gradients flow through to their inputs.

Legend: B images, N texts, T tokens, W width of a tower, D joint width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import CLIPModel

from fedprompt.clip.loading import copy_weights_aligned
from fedprompt.clip.prompts import Layout, Prompts, PromptTokenizer
from fedprompt.clip.towers import (
    Edit,
    Encoded,
    block_output_at,
    run_blocks,
    run_shared_prefixes,
    use_lean_gelu,
    value_value_attention,
    with_layer_offsets,
)
from fedprompt.ops.layers import recomputed

MOST_TEXTS = 1024  # that are encoded together, with all activations kept for the gradient
TEXTS = 256  # of more texts, encoded at a time


class Encoders(nn.Module):
    """The two towers of a CLIP (Radford et al., 2021), frozen and always in evaluation mode.

    The encoders run at the shape of what they are given; gradients flow to their inputs, never to the weights.
    """

    def __init__(self, model: CLIPModel, tokenizer: Any) -> None:
        super().__init__()
        model.set_attn_implementation("sdpa")
        self.model = model.float().requires_grad_(requires_grad=False)
        self.eval()
        use_lean_gelu((*model.text_model.encoder.layers, *model.vision_model.encoder.layers))
        copy_weights_aligned(model)
        text, vision = model.config.text_config, model.config.vision_config
        self.image_width: int = vision.hidden_size
        self.text_width: int = text.hidden_size
        self.dim: int = model.config.projection_dim
        self.scale = float(model.logit_scale.exp())
        self.patches: int = model.vision_model.embeddings.num_patches
        self.image_blocks: int = vision.num_hidden_layers
        self.text_blocks: int = text.num_hidden_layers
        self.context_length: int = text.max_position_embeddings
        self.tokenizer = PromptTokenizer(
            tokenizer, context_length=self.context_length, vocabulary=text.vocab_size, end=text.eos_token_id
        )
        self._changed = False  # whether `adapted` is open
        self._layout = functools.lru_cache(maxsize=64)(self._compute_layout)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 (nn.Module's signature)
        """Stay in evaluation mode: the backbone is frozen."""
        return super().train(mode=False)

    @property
    def device(self) -> torch.device:
        """The device of the towers."""
        device: torch.device = self.model.logit_scale.device
        return device

    def token_embeddings(self, phrase: str) -> Tensor:
        """[n, W] embeddings of a phrase's tokens, to initialise a context with."""
        return self._embed(torch.tensor(self.tokenizer.pieces([phrase])[0], device=self.device)).clone()

    def fill(self, texts: Sequence[str], **slots: Tensor) -> Prompts:
        """Prompts with vectors in place of `<name>` in the texts: `fill(["<ctx> a dog."], ctx=vectors)`.

        Each slot is [n, W], the same for all texts, or [N, n, W]. Raises UserError with the text when it does not fit.
        """
        lengths = tuple((name, vectors.shape[-2]) for name, vectors in slots.items())
        layout = self._layout(tuple(texts), lengths)
        embeddings = self._embed(layout.ids.to(self.device))  # [N, T, W]
        rows = torch.arange(len(layout.ids), device=self.device)[:, None]
        places = {name: positions.to(self.device) for name, positions in layout.slots.items()}
        for name, vectors in slots.items():
            values = vectors.to(embeddings).expand(len(rows), -1, -1)  # [N, n, W]
            embeddings = embeddings.index_put((rows, places[name]), values)
        return Prompts(embeddings, layout.end.to(self.device), places)

    def encode_text(self, prompts: Prompts, *, edit: Edit | None = None) -> Tensor:
        """[N, D] text features, not normalised. `edit(k, tokens)` may change the tokens [N, T, W] entering block k.

        More than 1,024 texts are encoded 256 at a time, without keeping activations, unless there is an edit or a layer
        is adapted.
        """
        if edit is None and not self._changed and len(prompts.embeddings) > MOST_TEXTS:
            pieces = zip(torch.split(prompts.embeddings, TEXTS), torch.split(prompts.end, TEXTS), strict=True)
            return torch.cat([recomputed(functools.partial(self._encode_text, end=end), x) for x, end in pieces])
        return self._encode_text(prompts.embeddings, end=prompts.end, edit=edit)

    def _encode_text(self, embeddings: Tensor, *, end: Tensor, edit: Edit | None = None) -> Tensor:
        """[N, D] text features of embeddings [N, T, W], whose end tokens are at `end` [N]."""
        tower, blocks = self.model.text_model, self.model.text_model.encoder.layers
        length = embeddings.shape[1]
        tokens = embeddings + tower.embeddings.position_embedding.weight[:length]
        tokens = run_blocks(blocks[:-1], tokens, edit=edit, causal=True)
        last = len(blocks) - 1
        tokens = edit(last, tokens) if edit else tokens
        end = end + (tokens.shape[1] - length)  # tokens that an edit inserted come before the end token
        state = block_output_at(blocks[last], tokens, end)
        features: Tensor = self.model.text_projection(tower.final_layer_norm(state))
        return features

    def encode_shared_prefixes(self, prompts: Prompts, size: int) -> Tensor:
        """`encode_text` where every `size` consecutive texts share a prefix, which runs through the tower only once.

        This is possible because the tower is causal; the result equals that of `encode_text` up to rounding.
        """
        tower, blocks = self.model.text_model, self.model.text_model.encoder.layers
        tokens = prompts.embeddings + tower.embeddings.position_embedding.weight[: prompts.embeddings.shape[1]]
        state = run_shared_prefixes(blocks, tokens, prompts.end, size)  # [N, W]
        features: Tensor = self.model.text_projection(tower.final_layer_norm(state))
        return features

    def encode_image(self, tokens: Tensor, *, start: int = 0, edit: Edit | None = None) -> Encoded:
        """Run tokens [B, T, W] through the image tower; the result gives image and patch features.

        Tokens are embeddings before the first norm or, for start > 0, those entering block `start`. `edit(k, tokens)`
        may change, add or drop tokens entering block k; the class token stays first.
        """
        vision, blocks = self.model.vision_model, self.model.vision_model.encoder.layers
        tokens = tokens if start else vision.pre_layrnorm(tokens)
        last = len(blocks) - 1
        assert 0 <= start <= last, f"the image tower has no block {start}"
        tokens = run_blocks(blocks[start:last], tokens, start=start, edit=edit)
        tokens = edit(last, tokens) if edit else tokens
        return Encoded(tokens, blocks[last], nn.Sequential(vision.post_layernorm, self.model.visual_projection))

    @contextmanager
    def adapted(self, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """While open, the encoders add `changes[name](x)` to layer `name`'s output for x; use an `Encoded` inside."""
        self._changed = True
        try:
            with with_layer_offsets(self.model, changes):
                yield
        finally:
            self._changed = False

    def value_attention(self, block: int, tokens: Tensor) -> Tensor:
        """[B, T, W] output of value-value attention in image block `block` for tokens [B, T, W]."""
        return value_value_attention(self.model.vision_model.encoder.layers[block], tokens)

    def project_image(self, tokens: Tensor) -> Tensor:
        """[B, T, D] tokens [B, T, W] through the image tower's last norm and projection, not normalised."""
        features: Tensor = self.model.visual_projection(self.model.vision_model.post_layernorm(tokens))
        return features

    def _embed(self, ids: Tensor) -> Tensor:
        embeddings: Tensor = self.model.text_model.embeddings.token_embedding(ids)
        return embeddings

    def _compute_layout(self, texts: tuple[str, ...], lengths: tuple[tuple[str, int], ...]) -> Layout:
        return self.tokenizer.layout(texts, dict(lengths))
