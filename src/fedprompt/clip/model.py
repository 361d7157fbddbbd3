"""The frozen backbone (CLIP, Radford et al., 2021) on transformers' own towers: remembered nouns and live verbs.

Legend: B images, P patches, N texts, T tokens, W width of a tower, D joint width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import PIL
import torch
from torch import Tensor, nn
from transformers import CLIPModel

from fedprompt.clip.prompts import Layout, Lexicon, Prompts, row_keys
from fedprompt.clip.store import Store
from fedprompt.clip.towers import Edit, Encoded, family_mask, read_at, slim, walk
from fedprompt.clip.weights import fingerprint, open_parts
from fedprompt.data.images import Images
from fedprompt.errors import UserError
from fedprompt.ops.layers import unit

__all__ = ["Clip", "Edit", "Encoded", "Prompts"]


class Clip(nn.Module):
    """A frozen CLIP, always in evaluation mode and never differentiated itself; it owns nothing that is trained.

    Nouns (`image_features`, ..., `text_features`) carry no gradient and are remembered in a `Store`. They are computed
    in padded batches of exactly `batch` rows, so their bits depend neither on what is asked together nor on what the
    store forgot. One row at a time is exact by construction, wastes nothing on small requests and is as fast on a
    processor; more rows fill an accelerator, but there is no promise that a row's last bits are the same at every place
    in a batch (at 768 wide and two threads they were not). Verbs (`fill`, `encode_text`, `encode_image`) run at the
    shape of what they are given, and gradients flow to it.
    """

    def __init__(
        self, model: CLIPModel, tokenizer: Any, processor: Any, *, store: Store | None = None, batch: int = 1
    ) -> None:
        super().__init__()
        model.set_attn_implementation("sdpa")
        self.model = model.float().requires_grad_(requires_grad=False)
        self.eval()
        slim((*model.text_model.encoder.layers, *model.vision_model.encoder.layers))
        for weight in model.parameters():
            # A file's tensors begin at any byte, and matrix products round differently where memory is not aligned.
            weight.data = weight.data.clone()
        self.processor = processor
        self.store = Store() if store is None else store
        self.batch = batch
        text, vision = model.config.text_config, model.config.vision_config
        self.image_width: int = vision.hidden_size
        self.text_width: int = text.hidden_size
        self.dim: int = model.config.projection_dim
        self.scale = float(model.logit_scale.exp())
        self.patches: int = model.vision_model.embeddings.num_patches
        self.context_length: int = text.max_position_embeddings
        self.lexicon = Lexicon(
            tokenizer, context_length=self.context_length, vocabulary=text.vocab_size, end=text.eos_token_id
        )
        self._layout = functools.lru_cache(maxsize=64)(self._compute_layout)
        self._sentences = functools.lru_cache(maxsize=64)(self._compute_sentences)
        made = dict(processor.crop_size if processor.do_center_crop else processor.size)
        if {made.get("height"), made.get("width")} != {vision.image_size}:
            raise UserError(
                f"The preprocessing makes pictures of {made} but the image tower reads {vision.image_size}x"
                f"{vision.image_size} pixels; correct crop_size in preprocessor_config.json."
            )

    @classmethod
    def load(
        cls, path: str | Path, *, store: Store | None = None, device: str | torch.device = "cpu", batch: int = 1
    ) -> Clip:
        """Open a CLIP folder or Hub id; raises UserError when it is not there, incomplete, or not a CLIP."""
        return cls(*open_parts(path), store=store, batch=batch).to(device)

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
        return self._image_noun("image_features", images, lambda _, tokens: unit(self.encode_image(tokens).image))

    def patch_features(self, images: Images) -> Tensor:
        """[B, P, D] unit features of every patch: the last block's tokens through CLIP's own norm and projection."""

        def read(part: Images, tokens: Tensor) -> Tensor:
            encoded = self.encode_image(tokens)
            # One pass through the tower serves both: who reads patches usually reads the image too.
            features = unit(encoded.image)[: len(part)]
            self.store.put("image_features", self._origin(part.source.fingerprint), part.keys, features)
            return unit(encoded.patches)

        return self._image_noun("patch_features", images, read)

    def image_embeddings(self, images: Images) -> Tensor:
        """[B, 1 + P, W] class and patch embeddings with positions, before the first norm: what `encode_image` takes."""
        return self._embeddings(images).to(self.device)

    def image_tokens(self, images: Images, depth: int = 0) -> Tensor:
        """[B, 1 + P, W] tokens entering block `depth`, after the first norm; `encode_image` takes them if depth > 0."""
        vision = self.model.vision_model
        assert 0 <= depth < len(vision.encoder.layers), f"the image tower has no block {depth}"
        blocks = vision.encoder.layers[:depth]
        return self._image_noun(
            f"image_tokens.{depth}", images, lambda _, tokens: walk(blocks, vision.pre_layrnorm(tokens))
        )

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """[N, D] unit features of plain sentences; what exceeds the context length is cut, in tokens."""
        rows, keys = self._sentences(tuple(texts))

        def compute(positions: Tensor) -> Tensor:
            return self._text_rows([rows[position] for position in positions.tolist()])

        return self.store.fetch("text_features", self._origin(""), keys, compute).to(self.device)

    # Verbs

    def words(self, phrase: str) -> Tensor:
        """[n, W] token embeddings of a phrase, to initialise a context with."""
        ids = torch.tensor(self.lexicon.pieces([phrase])[0], device=self.device)
        return self._embed(ids).clone()

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

    def encode_families(self, prompts: Prompts, size: int) -> Tensor:
        """`encode_text` for texts of which every `size` in a row begin alike: a beginning runs through the tower once.

        The tower is causal, so what texts end with changes nothing about how they begin; equal up to rounding.
        """
        tower, blocks = self.model.text_model, self.model.text_model.encoder.layers
        tokens = prompts.embeddings + tower.embeddings.position_embedding.weight[: prompts.embeddings.shape[1]]
        families = tokens.unflatten(0, (-1, size))  # [F, size, T, W]
        alike = (families == families[:, :1]).all(dim=3).all(dim=1).all(dim=0)  # [T]
        shared = min(int(alike.long().cumprod(dim=0).sum()), int(prompts.end.min()))
        own = families[:, :, shared:]  # [F, size, S, W]
        packed = torch.cat([families[:, 0, :shared], own.flatten(1, 2)], dim=1)  # [F, shared + size * S, W]
        mask = family_mask(shared, size, own.shape[2], device=self.device)
        for block in blocks:
            packed = block(packed, mask)
        ends = prompts.end.view(-1, size) - shared + own.shape[2] * torch.arange(size, device=self.device) + shared
        state = packed[torch.arange(len(families), device=self.device)[:, None], ends]  # [F, size, W]
        features: Tensor = self.model.text_projection(tower.final_layer_norm(state)).flatten(0, 1)
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

    # How nouns are computed

    def _origin(self, source: str) -> str:
        """All that the bits of a noun depend on besides its key."""
        return f"{self.fingerprint} {self.batch} {_arithmetic(self.device)} {source}"

    def _image_noun(self, kind: str, images: Images, read: Callable[[Images, Tensor], Tensor]) -> Tensor:
        def compute(positions: Tensor) -> Tensor:
            # Remembered embeddings spare the decoding; those made on the way are not kept, being larger than features.
            return self._padded(images.take(positions), functools.partial(self._embeddings, keep=False), read)

        return self.store.fetch(kind, self._origin(images.source.fingerprint), images.keys, compute).to(self.device)

    def _embeddings(self, images: Images, *, keep: bool = True) -> Tensor:
        def compute(positions: Tensor) -> Tensor:
            embed = self.model.vision_model.embeddings
            return self._padded(images.take(positions), self._pixels, lambda _, pixels: embed(pixels))

        origin = self._origin(images.source.fingerprint)
        return self.store.fetch("image_embeddings", origin, images.keys, compute, keep=keep)

    def _pixels(self, images: Images) -> Tensor:
        if not len(images):
            vision = self.model.config.vision_config
            return torch.empty(0, vision.num_channels, vision.image_size, vision.image_size)
        pixels: Tensor = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels

    def _padded(
        self, images: Images, load: Callable[[Images], Tensor], run: Callable[[Images, Tensor], Tensor]
    ) -> Tensor:
        """Run on exactly `batch` rows at a time; the rows that fill the last batch up are zeros and are dropped."""
        results = []
        for start in range(0, max(len(images), 1), self.batch):
            part = images.take(range(start, min(start + self.batch, len(images))))
            values = load(part)
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
        return self.lexicon.layout(texts, dict(lengths))

    def _compute_sentences(self, texts: tuple[str, ...]) -> tuple[list[list[int]], Tensor]:
        rows = self.lexicon.sentences(texts)
        return rows, row_keys(rows)


def _arithmetic(device: torch.device) -> str:
    """What else decides the last bits of a result, for files that outlive the process or move between machines."""
    versions = f"{torch.__version__} {PIL.__version__}"
    if device.type == "cuda":
        return f"{versions} {torch.cuda.get_device_name(device)}"
    return f"{versions} {device.type} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"
