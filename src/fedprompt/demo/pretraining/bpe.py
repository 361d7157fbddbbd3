"""Byte-pair encoding (Sennrich et al., 2016), learned deterministically: other trainers break ties by hash order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

END = "</w>"
Pair = tuple[str, str]


def learn(corpus: Iterable[str], *, tokens: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges come from the corpus, `tokens` its context length.

    Merging goes on while a pair occurs twice. Ids as in OpenAI's CLIP: bytes, bytes at a word's end, merges, specials.
    """
    backend = CLIPTokenizer().backend_tokenizer
    words: Counter[str] = Counter()
    for text in corpus:
        normal = backend.normalizer.normalize_str(text)
        words.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    merges = _merges(words)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + END for letter in letters), *("".join(pair) for pair in merges)]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: id_ for id_, piece in enumerate(pieces)}, merges=merges, model_max_length=tokens)


def _merges(words: Mapping[str, int]) -> list[Pair]:
    spelled = {word: (*word[:-1], word[-1] + END) for word in sorted(words)}
    counts: Counter[Pair] = Counter()
    where: dict[Pair, set[str]] = {}
    for word, pieces in spelled.items():
        for pair in pairwise(pieces):
            counts[pair] += words[word]
            where.setdefault(pair, set()).add(word)
    merges: list[Pair] = []
    while counts:
        best = max(counts, key=lambda pair: (counts[pair], pair))
        if counts[best] < 2:
            break
        merges.append(best)
        for word in where.pop(best):
            before, after = spelled[word], _merged(spelled[word], best)
            spelled[word] = after
            for pair in pairwise(before):
                counts[pair] -= words[word]
            for pair in pairwise(after):
                counts[pair] += words[word]
                where.setdefault(pair, set()).add(word)
        counts = +counts
    return merges


def _merged(pieces: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    result: list[str] = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return tuple(result)
