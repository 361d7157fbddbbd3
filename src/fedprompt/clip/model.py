"""The frozen backbone (CLIP, Radford et al., 2021): cached frozen features on top of the differentiable encoders.

Legend: B images, P patches, L leading tokens (class token), N texts, W width of a tower, D joint width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedprompt.clip.backbone import Capability, Edit, Encoded, Tower, layers_pattern
from fedprompt.clip.devices import to_device
from fedprompt.clip.encoders import Encoders
from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.loading import check_size, fingerprint, numerics_id, open_parts, preprocess
from fedprompt.clip.precision import Precision
from fedprompt.clip.prompts import Prompts
from fedprompt.clip.refusals import naming
from fedprompt.data.decode_workers import Decoder
from fedprompt.data.images import Images
from fedprompt.ops.layers import unit

__all__ = ["Capability", "Clip", "Edit", "Encoded", "Prompts", "Tower", "layers_pattern"]


class Clip(Encoders):
    """A frozen CLIP: the differentiable encoders that it inherits, and frozen features, which are cached.

    The frozen features (`image_features`, ..., `text_features`) carry no gradient and are kept in a `FeatureCache`.
    They are computed in padded batches of exactly `batch` rows, so their bits depend neither on what is requested
    together nor on what the cache has evicted. One row at a time is exact by construction, wastes nothing on small
    requests and is as fast on a CPU; more rows fill an accelerator, but a row's last bits may then depend on its
    place in the batch. In a lower `precision` they are kept in it, which halves the cache, and given as float32.
    """

    def __init__(  # noqa: PLR0913  (three parts, and the keys of [backbone])
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        processor: Any,
        *,
        cache: FeatureCache | None = None,
        batch: int = 1,
        workers: int = 0,
        precision: Precision = "float32",
        activation_bytes: int = 0,
    ) -> None:
        known = fingerprint(model, processor, tokenizer) if precision != "float32" else None
        super().__init__(model, tokenizer, precision=precision, activation_bytes=activation_bytes)
        if known is not None:  # of the weights before they were rounded, so that an adapter fits in any precision
            self.fingerprint = known
        self.origin = ""  # where it was loaded from, as an adapter's configuration names it
        self.processor = processor
        self.cache = FeatureCache() if cache is None else cache
        self.batch = batch
        size = self.image_tower.side
        self._decoder = Decoder(functools.partial(preprocess, processor, size), workers=workers)
        self._sentences = functools.lru_cache(maxsize=64)(self.tokenizer.keyed_sentences)
        check_size(processor, size)

    def __repr__(self) -> str:
        return f"CLIP {self.origin or 'without a path'}: images of {self.image_tower.side} pixels, {self.dim} features"

    @classmethod
    def load(  # noqa: PLR0913  (the keys of [backbone])
        cls,
        path: str | Path,
        *,
        cache: FeatureCache | None = None,
        device: str | torch.device = "cpu",
        batch: int = 1,
        workers: int = 0,
        precision: Precision = "float32",
        activation_bytes: int = 0,
        origin: str = "",
    ) -> Clip:
        """Open a folder, checkpoint or Hub id; UserError when it is not there, incomplete, or no contrastive pair.

        `origin` is what configurations call it, by default its path.
        """
        parts = open_parts(path)
        with naming(str(path)):  # what does not fit together
            made = cls(
                *parts,
                cache=cache,
                batch=batch,
                workers=workers,
                precision=precision,
                activation_bytes=activation_bytes,
            )
        loaded = made.to(device)
        loaded.origin = origin or str(path)
        return loaded

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of weights, configuration, preprocessing and tokenizer: equal wherever one backbone was loaded."""
        return fingerprint(self.model, self.processor, self.tokenizer.tokenizer)

    def image_features(self, images: Images) -> Tensor:
        """[B, D] unit image features."""
        return self._frozen_image_rows(
            "image_features", images, lambda _, tokens: unit(self.encode_image(tokens).image)
        )

    def image_projections(self, images: Images) -> Tensor:
        """[B, D] image features before they are scaled to length one."""
        return self._frozen_image_rows("image_projections", images, lambda _, tokens: self.encode_image(tokens).image)

    def patch_features(self, images: Images) -> Tensor:
        """[B, P, D] unit features of every patch: the last block's tokens, each read as the family reads one."""

        def read(part: Images, tokens: Tensor) -> Tensor:
            encoded = self.encode_image(tokens)
            # One pass through the tower gives both, and methods that use patches usually use the image feature too.
            features = unit(encoded.image)[: len(part)]
            self.cache.put("image_features", self._origin(part.source.fingerprint), part.keys, features.to(self.dtype))
            return unit(encoded.patches)

        return self._frozen_image_rows("patch_features", images, read)

    def image_embeddings(self, images: Images) -> Tensor:
        """[B, L + P, W] leading and patch embeddings with positions, before any norm: what `encode_image` takes."""
        return self._given(self._embeddings(images))

    def image_tokens(self, images: Images, depth: int = 0) -> Tensor:
        """[B, L + P, W] tokens entering block `depth`, after the first norm; `encode_image` takes them if depth > 0."""
        tower = self.image_tower
        assert 0 <= depth < tower.blocks, f"the image tower has no block {depth}"
        return self._frozen_image_rows(
            f"image_tokens.{depth}", images, lambda _, tokens: tower.run(tower.enter(tokens), start=0, stop=depth)
        )

    def value_tokens(self, images: Images, depth: int) -> Tensor:
        """[B, L + P, W] the first norm's tokens plus the value-value attention outputs of the first `depth` blocks.

        Value-value attention keeps patches local where the tower's own attention mixes them (CLIP Surgery; Li et al.,
        2023). `project_image` turns the result into features. UserError if the family has no such attention.
        """
        tower = self.image_tower

        def read(part: Images, tokens: Tensor) -> Tensor:
            tokens = values = tower.enter(tokens)
            for block in range(depth):
                values = values + tower.value_attention(block, tokens)
                tokens = tower.run(tokens, start=block, stop=block + 1)
            if depth < self.image_blocks:  # methods that go on from here usually need the tower's own tokens too
                origin = self._origin(part.source.fingerprint)
                self.cache.put(f"image_tokens.{depth}", origin, part.keys, tokens[: len(part)].to(self.dtype))
            return values

        return self._frozen_image_rows(f"value_tokens.{depth}", images, read)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """[N, D] unit features of plain sentences, truncated to the context length in tokens."""
        rows, keys = self._sentences(tuple(texts))

        def compute(positions: Tensor) -> Tensor:
            return self._text_rows([rows[position] for position in positions.tolist()])

        return self._given(self.cache.fetch("text_features", self._origin(""), keys, compute))

    def _given(self, rows: Tensor) -> Tensor:
        """Cached rows, on the device and in float32."""
        return to_device(rows, self.device).float()

    def _origin(self, source: str) -> str:
        """Everything besides the key that the bits of a frozen feature depend on."""
        assert not self._changes, "features of an adapted tower must not be cached as frozen ones"
        return f"{self.fingerprint} {self.precision} {self.batch} {numerics_id(self.device)} {source}"

    def _frozen_image_rows(self, kind: str, images: Images, read: Callable[[Images, Tensor], Tensor]) -> Tensor:
        def compute(positions: Tensor) -> Tensor:
            # Cached embeddings spare the decoding; new ones are not cached here, since they are larger than features.
            embed = functools.partial(self._embeddings, keep=False)
            return self._padded(images.take(positions), functools.partial(map, embed), read)

        return self._given(self.cache.fetch(kind, self._origin(images.source.fingerprint), images.keys, compute))

    def _embeddings(self, images: Images, *, keep: bool = True) -> Tensor:
        def compute(positions: Tensor) -> Tensor:
            embed = self.image_tower.embed
            return self._padded(images.take(positions), self._decoder.map, lambda _, pixels: embed(pixels))

        origin = self._origin(images.source.fingerprint)
        return self.cache.fetch("image_embeddings", origin, images.keys, compute, keep=keep)

    def _padded(
        self,
        images: Images,
        load: Callable[[Sequence[Images]], Iterable[Tensor]],
        run: Callable[[Images, Tensor], Tensor],
    ) -> Tensor:
        """Run on exactly `batch` rows at a time; the last batch is filled up with zero rows, which are dropped.

        The results are on the device, in its precision.
        """
        results = []
        starts = range(0, max(len(images), 1), self.batch)
        parts = [images.take(range(start, min(start + self.batch, len(images)))) for start in starts]
        for part, values in zip(parts, load(parts), strict=True):
            filler = values.new_zeros(self.batch - len(part), *values.shape[1:])
            rows = run(part, to_device(torch.cat([values, filler]), self.device))  # [batch, ...]
            results.append(rows[: len(part)].to(self.dtype))
        return torch.cat(results)  # [B, ...]

    def _text_rows(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """[N, D] unit features of token rows, computed in batches of `batch` rows of equal length."""
        features = torch.empty(len(rows), self.dim, dtype=self.dtype, device=self.device)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        for length in sorted(set(lengths.tolist())):
            end = torch.full((self.batch,), length - 1, device=self.device)
            for places in (lengths == length).nonzero().flatten().split(self.batch):
                chosen = [rows[place] for place in places.tolist()]
                ids = torch.tensor(chosen + chosen[:1] * (self.batch - len(chosen)), device=self.device)
                found = unit(self.encode_text(Prompts(self._embed(ids), end, {})))  # [batch, D]
                features[places] = found[: len(chosen)].to(self.dtype)
        return features
