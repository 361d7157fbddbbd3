"""The frozen backbone (CLIP, Radford et al., 2021) on transformers' own towers: remembered nouns and live verbs.

Legend: B images, P patches, N texts, T tokens, W width of a tower, D joint width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel

from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.loading import align, arithmetic, check_size, fingerprint, open_parts, prepared
from fedprompt.clip.prompts import Layout, Prompts, PromptTokenizer
from fedprompt.clip.towers import (
    Edit,
    Encoded,
    adding,
    read_at,
    slim,
    value_value_attention,
    walk,
    walk_shared_prefixes,
)
from fedprompt.data.decoding import Decoder
from fedprompt.data.images import Images
from fedprompt.ops.layers import unit

__all__ = ["Clip", "Edit", "Encoded", "Prompts"]


class Clip(nn.Module):
    """A frozen CLIP, always in evaluation mode and never differentiated itself; it owns nothing that is trained.

    Nouns (`image_features`, ..., `text_features`) carry no gradient and are remembered in a `FeatureCache`. They are computed
    in padded batches of exactly `batch` rows, so their bits depend neither on what is asked together nor on what the
    cache forgot. One row at a time is exact by construction, wastes nothing on small requests and is as fast on a
    processor; more rows fill an accelerator, but a row's last bits may then depend on its place in the batch. Verbs
    (`fill`, `encode_text`, `encode_image`) run at the shape of what they are given, and gradients flow to it.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: Any,
        processor: Any,
        *,
        cache: FeatureCache | None = None,
        batch: int = 1,
        workers: int = 0,
    ) -> None:
        super().__init__()
        model.set_attn_implementation("sdpa")
        self.model = model.float().requires_grad_(requires_grad=False)
        self.eval()
        slim((*model.text_model.encoder.layers, *model.vision_model.encoder.layers))
        align(model)
        self.processor = processor
        self.cache = FeatureCache() if cache is None else cache
        self.batch = batch
        text, vision = model.config.text_config, model.config.vision_config
        self.image_width: int = vision.hidden_size
        self.text_width: int = text.hidden_size
        self.dim: int = model.config.projection_dim
        self.scale = float(model.logit_scale.exp())
        self._decoder = Decoder(functools.partial(prepared, processor, vision.image_size), workers=workers)
        self.patches: int = model.vision_model.embeddings.num_patches
        self.image_blocks: int = vision.num_hidden_layers
        self.text_blocks: int = text.num_hidden_layers
        self.context_length: int = text.max_position_embeddings
        self.tokenizer = PromptTokenizer(
            tokenizer, context_length=self.context_length, vocabulary=text.vocab_size, end=text.eos_token_id
        )
        self._changed = False  # whether `adapted` is open
        self._layout = functools.lru_cache(maxsize=64)(self._compute_layout)
        self._sentences = functools.lru_cache(maxsize=64)(self.tokenizer.keyed_sentences)
        check_size(processor, vision.image_size)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        cache: FeatureCache | None = None,
        device: str | torch.device = "cpu",
        batch: int = 1,
        workers: int = 0,
    ) -> Clip:
        """Open a CLIP folder or Hub id; raises UserError when it is not there, incomplete, or not a CLIP."""
        return cls(*open_parts(path), cache=cache, batch=batch, workers=workers).to(device)

    def train(self, mode: bool = True) -> Clip:  # noqa: FBT001, FBT002 (nn.Module's signature)
        """Stay in evaluation mode whatever is asked: the backbone is frozen."""
        return super().train(mode=False)

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        device: torch.device = self.model.logit_scale.device
        return device

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of weights and preprocessing: equal wherever and however the same backbone was loaded."""
        return fingerprint(self.model, self.processor)

    # Nouns

    def image_features(self, images: Images) -> Tensor:
        """[B, D] unit features of the pictures."""
        return self._frozen_image_rows(
            "image_features", images, lambda _, tokens: unit(self.encode_image(tokens).image)
        )

    def image_projections(self, images: Images) -> Tensor:
        """[B, D] features as the tower leaves them, before they are scaled to length one."""
        return self._frozen_image_rows("image_projections", images, lambda _, tokens: self.encode_image(tokens).image)

    def patch_features(self, images: Images) -> Tensor:
        """[B, P, D] unit features of every patch: the last block's tokens through CLIP's own norm and projection."""

        def read(part: Images, tokens: Tensor) -> Tensor:
            encoded = self.encode_image(tokens)
            # One pass through the tower serves both: who reads patches usually reads the image too.
            features = unit(encoded.image)[: len(part)]
            self.cache.put("image_features", self._origin(part.source.fingerprint), part.keys, features)
            return unit(encoded.patches)

        return self._frozen_image_rows("patch_features", images, read)

    def image_embeddings(self, images: Images) -> Tensor:
        """[B, 1 + P, W] class and patch embeddings with positions, before the first norm: what `encode_image` takes."""
        return self._embeddings(images).to(self.device)

    def image_tokens(self, images: Images, depth: int = 0) -> Tensor:
        """[B, 1 + P, W] tokens entering block `depth`, after the first norm; `encode_image` takes them if depth > 0."""
        vision = self.model.vision_model
        assert 0 <= depth < len(vision.encoder.layers), f"the image tower has no block {depth}"
        blocks = vision.encoder.layers[:depth]
        return self._frozen_image_rows(
            f"image_tokens.{depth}", images, lambda _, tokens: walk(blocks, vision.pre_layrnorm(tokens))
        )

    def value_tokens(self, images: Images, depth: int) -> Tensor:
        """[B, 1 + P, W] the first norm's tokens plus what `value_attention` says of them in the first `depth` blocks.

        Patches keep to themselves here, where the tower mixes them; `project_image` turns the result into features.
        """
        vision = self.model.vision_model

        def read(part: Images, tokens: Tensor) -> Tensor:
            tokens = values = vision.pre_layrnorm(tokens)
            for block in vision.encoder.layers[:depth]:
                values, tokens = values + value_value_attention(block, tokens), walk((block,), tokens)
            if depth < self.image_blocks:  # who follows the patches from here on usually follows the tower too
                origin = self._origin(part.source.fingerprint)
                self.cache.put(f"image_tokens.{depth}", origin, part.keys, tokens[: len(part)])
            found: Tensor = values
            return found

        return self._frozen_image_rows(f"value_tokens.{depth}", images, read)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """[N, D] unit features of plain sentences; what exceeds the context length is cut, in tokens."""
        rows, keys = self._sentences(tuple(texts))

        def compute(positions: Tensor) -> Tensor:
            return self._text_rows([rows[position] for position in positions.tolist()])

        return self.cache.fetch("text_features", self._origin(""), keys, compute).to(self.device)

    # Verbs

    def words(self, phrase: str) -> Tensor:
        """[n, W] token embeddings of a phrase, to initialise a context with."""
        return self._embed(torch.tensor(self.tokenizer.pieces([phrase])[0], device=self.device)).clone()

    def fill(self, texts: Sequence[str], **slots: Tensor) -> Prompts:
        """Put vectors in the places `<name>` of the texts: `fill(["<ctx> a dog."], ctx=vectors)`.

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
        """[N, D] text features, not normalised. `edit(k, tokens)` may change the tokens [N, T, W] entering block k."""
        tower, blocks = self.model.text_model, self.model.text_model.encoder.layers
        length = prompts.embeddings.shape[1]
        tokens = prompts.embeddings + tower.embeddings.position_embedding.weight[:length]
        tokens = walk(blocks[:-1], tokens, edit=edit, causal=True)
        last = len(blocks) - 1
        tokens = edit(last, tokens) if edit else tokens
        end = prompts.end + (tokens.shape[1] - length)  # tokens that an edit added stand before the end
        state = read_at(blocks[last], tokens, end)
        features: Tensor = self.model.text_projection(tower.final_layer_norm(state))
        return features

    def encode_shared_prefixes(self, prompts: Prompts, size: int) -> Tensor:
        """`encode_text` for texts of which every `size` in a row begin alike: a beginning runs through the tower once.

        The tower is causal, so what texts end with changes nothing about how they begin; equal up to rounding.
        """
        tower, blocks = self.model.text_model, self.model.text_model.encoder.layers
        tokens = prompts.embeddings + tower.embeddings.position_embedding.weight[: prompts.embeddings.shape[1]]
        state = walk_shared_prefixes(blocks, tokens, prompts.end, size)  # [N, W]
        features: Tensor = self.model.text_projection(tower.final_layer_norm(state))
        return features

    def encode_image(self, tokens: Tensor, *, start: int = 0, edit: Edit | None = None) -> Encoded:
        """Run tokens [B, T, W] through the image tower and return both of its readings.

        Tokens are embeddings before the first norm or, for start > 0, those entering block `start`. `edit(k, tokens)`
        may change, add or drop tokens entering block k; the class token stays first.
        """
        vision, blocks = self.model.vision_model, self.model.vision_model.encoder.layers
        tokens = tokens if start else vision.pre_layrnorm(tokens)
        last = len(blocks) - 1
        assert 0 <= start <= last, f"the image tower has no block {start}"
        tokens = walk(blocks[start:last], tokens, start=start, edit=edit)
        tokens = edit(last, tokens) if edit else tokens
        return Encoded(tokens, blocks[last], nn.Sequential(vision.post_layernorm, self.model.visual_projection))

    @contextmanager
    def adapted(self, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """While open, verbs add `changes[name](x)` to what layer `name` makes of x; read an `Encoded` inside."""
        self._changed = True
        try:
            with adding(self.model, changes):
                yield
        finally:
            self._changed = False

    def value_attention(self, block: int, tokens: Tensor) -> Tensor:
        """[B, T, W] what image block `block` adds to tokens [B, T, W] when it attends from values to values."""
        return value_value_attention(self.model.vision_model.encoder.layers[block], tokens)

    def project_image(self, tokens: Tensor) -> Tensor:
        """[B, T, D] the image tower's last norm and projection of tokens [B, T, W], not normalised."""
        features: Tensor = self.model.visual_projection(self.model.vision_model.post_layernorm(tokens))
        return features

    # How nouns are computed

    def _origin(self, source: str) -> str:
        """All that the bits of a noun depend on besides its key."""
        assert not self._changed, "an adapted tower must not be remembered as the frozen one"
        return f"{self.fingerprint} {self.batch} {arithmetic(self.device)} {source}"

    def _frozen_image_rows(self, kind: str, images: Images, read: Callable[[Images, Tensor], Tensor]) -> Tensor:
        def compute(positions: Tensor) -> Tensor:
            # Remembered embeddings spare the decoding; those made on the way are not kept, being larger than features.
            embed = functools.partial(self._embeddings, keep=False)
            return self._padded(images.take(positions), functools.partial(map, embed), read)

        return self.cache.fetch(kind, self._origin(images.source.fingerprint), images.keys, compute).to(self.device)

    def _embeddings(self, images: Images, *, keep: bool = True) -> Tensor:
        def compute(positions: Tensor) -> Tensor:
            embed = self.model.vision_model.embeddings
            return self._padded(images.take(positions), self._decoder.map, lambda _, pixels: embed(pixels))

        origin = self._origin(images.source.fingerprint)
        return self.cache.fetch("image_embeddings", origin, images.keys, compute, keep=keep)

    def _padded(
        self,
        images: Images,
        load: Callable[[Sequence[Images]], Iterable[Tensor]],
        run: Callable[[Images, Tensor], Tensor],
    ) -> Tensor:
        """Run on exactly `batch` rows at a time; the rows that fill the last batch up are zeros and are dropped."""
        results = []
        starts = range(0, max(len(images), 1), self.batch)
        parts = [images.take(range(start, min(start + self.batch, len(images)))) for start in starts]
        for part, values in zip(parts, load(parts), strict=True):
            filler = values.new_zeros(self.batch - len(part), *values.shape[1:])
            results.append(run(part, torch.cat([values, filler]).to(self.device))[: len(part)].cpu())  # [batch, ...]
        return torch.cat(results)  # [B, ...]

    def _text_rows(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """[N, D] unit features of token rows, each run among `batch` rows of exactly its own length."""
        features = torch.empty(len(rows), self.dim)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        for length in sorted(set(lengths.tolist())):
            end = torch.full((self.batch,), length - 1, device=self.device)
            for places in (lengths == length).nonzero().flatten().split(self.batch):
                chosen = [rows[place] for place in places.tolist()]
                ids = torch.tensor(chosen + chosen[:1] * (self.batch - len(chosen)), device=self.device)
                features[places] = unit(self.encode_text(Prompts(self._embed(ids), end, {})))[: len(chosen)].cpu()
        return features

    def _embed(self, ids: Tensor) -> Tensor:
        embeddings: Tensor = self.model.text_model.embeddings.token_embedding(ids)
        return embeddings

    def _compute_layout(self, texts: tuple[str, ...], lengths: tuple[tuple[str, int], ...]) -> Layout:
        return self.tokenizer.layout(texts, dict(lengths))
