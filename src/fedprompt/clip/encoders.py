"""The differentiable encoders of a frozen backbone: text and image towers that gradients flow through to their inputs.

Legend: B images, N texts, T tokens, W width of a tower, D joint width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedprompt.clip import families
from fedprompt.clip.activations import blocks_that_fit, bytes_kept, recomputed_block
from fedprompt.clip.backbone import AttentionLayers, Edit, Encoded, Tower
from fedprompt.clip.devices import to_device
from fedprompt.clip.loading import copy_weights_aligned
from fedprompt.clip.precision import DTYPES, Precision, half_changes, with_float32_edges
from fedprompt.clip.prompts import Layout, Prompts
from fedprompt.clip.towers import use_lean_gelu, with_layer_offsets
from fedprompt.ops.layers import recomputed

MOST_TEXTS = 1024  # that are encoded together, with all activations kept for the gradient
Changes = Mapping[str, Callable[[Tensor], Tensor]]  # by layer: its input -> what is added to its output
TEXTS = 256  # of more texts, encoded at a time


class Encoders(nn.Module):
    """The two towers of a contrastive pair such as CLIP (Radford et al., 2021), frozen and always in evaluation mode.

    The encoders run at the shape of what they are given; gradients flow to their inputs, never to the weights. What
    differs between families is behind `text_tower` and `image_tower`. In a lower `precision` the towers compute in it;
    what they take and give is float32. Blocks of the image tower keep `activation_bytes` for gradients, or all if it is
    0; the others are computed again.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, *, precision: Precision = "float32", activation_bytes: int = 0
    ) -> None:
        super().__init__()
        model.set_attn_implementation("sdpa")
        self.model = model.float().requires_grad_(requires_grad=False)
        self.eval()
        use_lean_gelu(model)
        self.family = families.find(model.config.model_type)
        backbone = self.family.build(model, tokenizer)  # reads scale and bias in float32
        self.precision, self.dtype, self.activation_bytes = precision, DTYPES[precision], activation_bytes
        if precision != "float32":
            model.to(self.dtype)
            backbone = with_float32_edges(backbone, self.dtype)
        copy_weights_aligned(model)
        self.text_tower, self.image_tower = backbone.text, backbone.image
        self.image_width, self.image_blocks = self.image_tower.width, self.image_tower.blocks
        self.text_width, self.text_blocks = self.text_tower.width, self.text_tower.blocks
        self.patches, self.leading = self.image_tower.patches, self.image_tower.leading
        self.dim, self.scale, self.bias = backbone.dim, backbone.scale, backbone.bias
        self.tokenizer = backbone.tokenizer
        self.context_length = self.tokenizer.context_length
        self._changes: Changes = {}  # while `adapted` is open
        self._layout = functools.lru_cache(maxsize=64)(self._compute_layout)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 (nn.Module's signature)
        """Stay in evaluation mode: the backbone is frozen."""
        return super().train(mode=False)

    @property
    def device(self) -> torch.device:
        """The device of the towers."""
        device: torch.device = self.model.device
        return device

    def token_embeddings(self, phrase: str) -> Tensor:
        """[n, W] embeddings of a phrase's tokens, to initialise a context with."""
        return self._embed(
            to_device(torch.tensor(self.tokenizer.pieces([phrase])[0], device="cpu"), self.device)
        ).clone()

    def fill(self, texts: Sequence[str], **slots: Tensor) -> Prompts:
        """Prompts with vectors in place of `<name>` in the texts: `fill(["<ctx> a dog."], ctx=vectors)`.

        Each slot is [n, W], the same for all texts, or [N, n, W]. Raises UserError with the text when it does not fit.
        """
        lengths = tuple((name, vectors.shape[-2]) for name, vectors in slots.items())
        layout = self._layout(tuple(texts), lengths)
        embeddings = self._embed(to_device(layout.ids, self.device))  # [N, T, W]
        rows = torch.arange(len(layout.ids), device=self.device)[:, None]
        places = {name: to_device(positions, self.device) for name, positions in layout.slots.items()}
        for name, vectors in slots.items():
            values = vectors.to(embeddings).expand(len(rows), -1, -1)  # [N, n, W]
            embeddings.index_put_((rows, places[name]), values)  # a copy would be the largest tensor of a step
        return Prompts(embeddings, to_device(layout.end, self.device), places)

    def encode_text(self, prompts: Prompts, *, edit: Edit | None = None) -> Tensor:
        """[N, D] text features, not normalised. `edit(k, tokens)` may change the tokens [N, T, W] entering block k.

        More than 1,024 texts are encoded 256 at a time, without keeping activations, unless there is an edit or a layer
        is adapted.
        """
        if edit is None and not self._changes and len(prompts.embeddings) > MOST_TEXTS:
            encode, end = self.text_tower.encode, prompts.end
            return recomputed(lambda x, rows: encode(x, end[rows]), prompts.embeddings, size=TEXTS)
        return self.text_tower.encode(prompts.embeddings, prompts.end, edit=edit)

    def encode_shared_prefixes(self, prompts: Prompts, size: int) -> Tensor:
        """`encode_text` where every `size` consecutive texts share a prefix, which a causal tower reads only once.

        The result equals that of `encode_text` up to rounding.
        """
        return self.text_tower.encode_shared_prefixes(prompts.embeddings, prompts.end, size)

    def encode_image(self, tokens: Tensor, *, start: int = 0, edit: Edit | None = None) -> Encoded:
        """Run tokens [B, T, W] through the image tower; the result gives image and patch features.

        Tokens are embeddings before the first norm or, for start > 0, those entering block `start`. `edit(k, tokens)`
        may change, add or drop tokens entering block k; the leading tokens stay first.
        """
        tower, last = self.image_tower, self.image_blocks - 1
        tokens = tokens if start else tower.enter(tokens)
        assert 0 <= start <= last, f"the image tower has no block {start}"
        if self._limits_activations():
            tokens = self._run_blocks_within_budget(tokens, start, edit)
        else:
            tokens = tower.run(tokens, start=start, stop=last, edit=edit)
        return tower.read(edit(last, tokens) if edit else tokens)

    def run_within_budget(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """run(x); where activations are limited, those of `run`, a method's own network, are computed again."""
        return recomputed_block(run, x) if self._limits_activations() else run(x)

    def _limits_activations(self) -> bool:
        return bool(self.activation_bytes) and torch.is_grad_enabled()

    def _run_blocks_within_budget(self, tokens: Tensor, start: int, edit: Edit | None) -> Tensor:
        """Tokens through the blocks from `start` to before the last one; what does not fit is computed again."""
        last, first_kept = self.image_blocks - 1, None
        for number in range(start, last):
            tokens = edit(number, tokens) if edit else tokens
            run = functools.partial(self._run_block, number, self._changes)
            if first_kept is None:
                kept = bytes_kept(run, tokens, self.model.parameters())
                sizes = {"kept": kept, "entering": tokens.nbytes}
                first_kept = last - blocks_that_fit(self.activation_bytes, blocks=last - start, **sizes)
            tokens = run(tokens) if number >= first_kept else recomputed_block(run, tokens)
        return tokens

    def _run_block(self, number: int, changes: Changes, tokens: Tensor) -> Tensor:
        """Tokens through one block with these changes, also in a backward pass after `adapted` was left."""
        with nullcontext() if self._changes is changes else self._opened(changes):
            return self.image_tower.run(tokens, start=number, stop=number + 1)

    @contextmanager
    def adapted(self, changes: Changes) -> Iterator[None]:
        """While open, the encoders add `changes[name](x)` to layer `name`'s output for x; use an `Encoded` inside."""
        if self.precision != "float32":
            changes = half_changes(changes, self.dtype)
        with self._opened(changes):
            yield

    @contextmanager
    def _opened(self, changes: Changes) -> Iterator[None]:
        assert not self._changes, "a tower is adapted in one way at a time"
        self._changes = changes
        try:
            with with_layer_offsets(self.model, changes):
                yield
        finally:
            self._changes = {}

    def value_attention(self, block: int, tokens: Tensor) -> Tensor:
        """[B, T, W] output of value-value attention in image block `block` for tokens [B, T, W]."""
        return self.image_tower.value_attention(block, tokens)

    def project_image(self, tokens: Tensor) -> Tensor:
        """[B, T, D] the readings of single tokens [B, T, W] that left the last block, not normalised."""
        return self.image_tower.project(tokens)

    def attention_layers(self, tower: Tower) -> AttentionLayers:
        """The names of the layers in `model` that low-rank adapters of a tower change."""
        return self.family.attention[tower]

    def _embed(self, ids: Tensor) -> Tensor:
        return self.text_tower.embed(ids)

    def _compute_layout(self, texts: tuple[str, ...], lengths: tuple[tuple[str, int], ...]) -> Layout:
        return self.tokenizer.layout(texts, dict(lengths))
