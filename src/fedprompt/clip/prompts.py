"""Prompt texts with placeholders for learned vectors, tokenised so that a placeholder has one position per vector.

A text is split at its placeholders and the pieces are tokenised separately, so filling a placeholder with the
embeddings of words gives the token row of the text written out with those words.
Legend: N texts, T tokens, W text width.
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedprompt.data.labels import readable_name
from fedprompt.errors import UserError

SINGLE_QUOTES, DOUBLE_QUOTES = "\u02bc\u2018\u2019\u201a\u201b", "\u201c\u201d\u201e\u201f"
LIGATURES, WIDE = range(0xFB00, 0xFB07), (0x3000, *range(0xFF01, 0xFFF0))  # fi, fl, ...; forms for East Asian type
PLAIN = {ord(quote): "'" for quote in SINGLE_QUOTES} | {ord(quote): '"' for quote in DOUBLE_QUOTES}
PLAIN |= {code: unicodedata.normalize("NFKC", chr(code)) for code in (*LIGATURES, *WIDE)}
SPARE = 1024  # ids that a tower may embed beyond those of its tokenizer, since tables are rounded up
TEMPLATE = "template"  # as `init`: the data set's template, which a run fills in
LONGEST_TEXT = 10_000  # characters; tokenisers take memory by the length of a text before it is cut


@dataclass(frozen=True)
class ContextSlot:
    """Where learned context vectors stand in a class's sentence: in place of the words before the class name.

    `words` are what the vectors start from, "" for a random start. `rest` is what follows them, with `{}` for the name.
    """

    words: str
    rest: str = "{}."

    @classmethod
    def of(cls, init: str) -> ContextSlot:
        """The slot of an option `init`: words before the name ("a photo of a"), or a template ("a photo of a {}.").

        A template's words after the name stay, so vectors that start from those before it give the template's own
        sentences. What touches the name, as the quotation mark in 'a photo of a "{}"', stays with it.
        """
        before, name, _ = init.partition("{}")
        if not name:
            return cls(init)
        whole = before[: len(before) - len(before.split(" ")[-1])]
        return cls(whole.strip(), init[len(whole) :])

    def texts(self, names: Sequence[str]) -> tuple[str, ...]:
        """Per class a text with the placeholder `<ctx>` for the vectors."""
        return tuple(f"<ctx> {self.rest.replace('{}', readable_name(name))}" for name in names)


@dataclass(frozen=True)
class Layout:
    """Token rows with their placeholders, padded to one length."""

    ids: Tensor  # [N, T] int64
    end: Tensor  # [N] position of the last token that the tower sees
    slots: Mapping[str, Tensor]  # name -> [N, n] positions of its vectors


@dataclass(frozen=True)
class Prompts:
    """The input of the text tower: token embeddings without position embeddings, and the positions of end and slots."""

    embeddings: Tensor  # [N, T, W]
    end: Tensor  # [N] position of the last token that the tower sees; causal towers are read there
    slots: Mapping[str, Tensor]  # name -> [N, n] positions, for edits of deeper blocks


@dataclass(frozen=True)
class SpecialTokens:
    """What a text tower reads around a sentence.

    With a `length` the tower sees padding, as in training, so every row is padded to it and read at its last token;
    otherwise rows are padded as far as the longest, and no tower sees it.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    pad: int
    length: int | None = None
    pad_left: bool = False

    @classmethod
    def of(cls, tokenizer: Any, *, vocabulary: int, length: int | None = None) -> SpecialTokens:
        """What a tokenizer itself puts around a sentence and pads with.

        Raises UserError if it has another vocabulary than the tower, which embeds `vocabulary` ids, or no padding.
        """
        require_vocabulary(tokenizer, vocabulary)
        words = tokenizer("a", add_special_tokens=False)["input_ids"]
        row = tokenizer("a")["input_ids"]
        start = next((place for place in range(len(row)) if row[place : place + len(words)] == words), None)
        if start is None or tokenizer.pad_token_id is None:
            raise UserError(
                f"The tokenizer reads 'a' as {words}, but a sentence of it as {row}, and pads with id "
                f"{tokenizer.pad_token_id}; use the tokenizer that this backbone was trained with."
            )
        before, after = tuple(row[:start]), tuple(row[start + len(words) :])
        return cls(before, after, tokenizer.pad_token_id, length, pad_left=tokenizer.padding_side == "left")

    def padded(self, row: Sequence[int], length: int) -> list[int]:
        """A row of `length` tokens."""
        padding = [self.pad] * (length - len(row))
        return [*padding, *row] if self.pad_left else [*row, *padding]


class PromptTokenizer:
    """A tokenizer with the special tokens and the context length of the text tower that it feeds.

    `clean` is what the tower's own preprocessing does to a text before it is split.
    """

    def __init__(
        self, tokenizer: Any, special: SpecialTokens, *, context_length: int, clean: Callable[[str], str] = str
    ) -> None:
        self.tokenizer = tokenizer
        self.special = special
        self.context_length = context_length
        self.clean = clean
        self._pieces: dict[str, list[int]] = {}

    @property
    def room(self) -> int:
        """The number of tokens that a sentence may have."""
        return self.context_length - len(self.special.before) - len(self.special.after)

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text without special tokens; UserError for a text that is far longer than any sentence."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._pieces]
        if fresh:
            if len(longest := max(fresh, key=len)) > LONGEST_TEXT:
                raise UserError(f"The text {longest[:40]!r}... has {len(longest):,} characters; shorten it.")
            plain = [self.clean(text) for text in fresh]
            rows = self.tokenizer(plain, add_special_tokens=False, return_attention_mask=False, verbose=False)[
                "input_ids"
            ]
            self._pieces.update(zip(fresh, rows, strict=True))
        return [self._pieces[text] for text in texts]

    def sentences(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as the tower reads it, truncated to the context length."""
        special = self.special
        rows = [[*special.before, *ids[: self.room], *special.after] for ids in self.pieces(texts)]
        return [special.padded(row, special.length) for row in rows] if special.length else rows

    def keyed_sentences(self, texts: Sequence[str]) -> tuple[list[list[int]], Tensor]:
        """`sentences` and a key [N] int64 of each."""
        rows = self.sentences(texts)
        return rows, row_keys(rows)

    def layout(self, texts: Sequence[str], lengths: Mapping[str, int]) -> Layout:
        """Tokenise texts that hold each placeholder `<name>` once, with `lengths[name]` positions for it.

        Raises UserError with the text if a placeholder is missing or repeated, or the row exceeds the context length.
        """
        pattern = re.compile("|".join(re.escape(f"<{name}>") for name in lengths) or r"(?!)")
        rows, places = [], []
        parts = [_split(text, pattern, lengths) for text in texts]
        self.pieces([piece for pieces, _ in parts for piece in pieces])  # tokenises all new pieces at once
        for text, (pieces, names) in zip(texts, parts, strict=True):
            row, place = list(self.special.before), {}
            for ids, name in zip(self.pieces(pieces), [*names, None], strict=True):
                row += ids
                if name is not None:
                    place[name] = len(row)
                    row += [self.special.pad] * lengths[name]
            row += self.special.after
            if len(row) > self.context_length:
                raise UserError(
                    f"The text {text!r} takes {len(row)} tokens, {sum(lengths.values())} of them learned vectors, but "
                    f"the backbone reads {self.context_length}; shorten the class name or learn fewer vectors."
                )
            rows.append(row)
            places.append(place)
        length = self.special.length or max(map(len, rows), default=0)
        shifts = [length - len(row) if self.special.pad_left else 0 for row in rows]
        slots = {
            name: torch.tensor([place[name] + shift for place, shift in zip(places, shifts, strict=True)])[:, None]
            + torch.arange(count)  # [N, n]
            for name, count in lengths.items()
        }
        padded = torch.tensor([self.special.padded(row, length) for row in rows], dtype=torch.int64)
        end = torch.tensor([length - 1 if self.special.length else len(row) - 1 for row in rows])
        return Layout(padded.reshape(len(rows), length), end, slots)


def require_vocabulary(tokenizer: Any, vocabulary: int) -> None:
    """Raise UserError if a tokenizer has another vocabulary than a tower, which embeds `vocabulary` ids."""
    if not vocabulary - SPARE <= len(tokenizer) <= vocabulary:
        raise UserError(other_vocabulary(tokenizer, vocabulary))


def other_vocabulary(tokenizer: Any, vocabulary: int) -> str:
    """The sentence on a tokenizer that has another number of ids than a tower."""
    return (
        f"The text tower knows {vocabulary} token ids, but the tokenizer has {len(tokenizer)}; use the tokenizer that "
        "this backbone was trained with."
    )


def require_special_ids(tokenizer: Any, text: Any) -> None:
    """Raise UserError if a tokenizer ends or pads with another id than the configuration of a text tower states.

    An id that is the default of the configuration's class is not stated: SigLIP's defaults are those of no SigLIP.
    """
    for key in ("eos_token_id", "pad_token_id"):
        said, own = getattr(text, key, None), getattr(tokenizer, key, None)
        if None not in (said, own) and said not in (own, getattr(type(text), key, None)):
            raise UserError(
                f"text_config.{key} in config.json is {said}, but the tokenizer has {own}; use the tokenizer that this "
                "backbone was trained with, or correct config.json."
            )


def plain_text(text: str) -> str:
    """A text with typographic quotes, ligatures, wide letters and HTML entities in plain characters.

    OpenAI's tokenizer does so before it splits a text; that of transformers does not. Dashes stay as they are in both.
    """
    # differs: OpenAI's tokenizer also repairs text that was decoded with the wrong encoding, by the package ftfy
    return html.unescape(html.unescape(text)).translate(PLAIN)


def row_keys(rows: Sequence[Sequence[int]]) -> Tensor:
    """[N] int64: a digest of each token row, as the cache key of its features."""
    digests = [hashlib.sha256(" ".join(map(str, row)).encode()).digest() for row in rows]
    return torch.tensor([int.from_bytes(digest[:8], "big", signed=True) for digest in digests], dtype=torch.int64)


def _split(text: str, pattern: re.Pattern[str], lengths: Mapping[str, int]) -> tuple[list[str], list[str]]:
    names = [found[1:-1] for found in pattern.findall(text)]
    if sorted(names) != sorted(lengths):
        places = ", ".join(f"<{name}>" for name in lengths)
        raise UserError(f"The text {text!r} must hold {places} exactly once each, where the learned vectors go.")
    pieces = pattern.split(text)
    # The space before a placeholder belongs to what fills it; a piece that ends in a space could gain a token.
    return [*(piece.rstrip() for piece in pieces[:-1]), pieces[-1]], names
