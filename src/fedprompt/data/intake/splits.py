"""Train, validation and test parts, understood from the names of folders, files, table cells and Hub splits.

A name is cut into words at `_ - .`, blanks and changes of case. One word says which part it is; numbers and words like
"set" or "images" say nothing; what is left ("seg" of `seg_train`) must be the same in all names, else several data
sets lie beside each other, which is refused. The rules for a set of names:

- train, training, trn: trained on; val, valid, validation, dev: validation; test, testing, tst: tested on;
- eval, evaluation and holdout are the test part, or the validation part where there is a test part too;
- a validation part is the test part where nothing else is;
- names that contain such a word beside names that do not are refused.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from fedprompt.errors import UserError, did_you_mean, series
from fedprompt.text_files import data_setting

Part = Literal["train", "val", "test"]
WORDS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("eval", "evaluation", "holdout"), "eval"),
}
SILENT = frozenset(
    {
        *(
            "set",
            "sets",
            "data",
            "dataset",
            "split",
            "splits",
            "part",
            "partial",
            "folder",
            "dir",
            "of",
            "list",
            "file",
        ),
        *("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "sample", "samples", "files"),
    }
)
GLUED = re.compile(rf"({'|'.join(sorted(WORDS, key=len, reverse=True))})(?:{'|'.join(sorted(SILENT - {'of'}))})?\d*")
LEFT_OUT = ""  # what `declared` says of a part that nobody uses


@dataclass(frozen=True)
class Splits:
    """The part of every name, and in words where that comes from. `remarks` are sentences for the user."""

    parts: Mapping[str, str]  # name -> "train", "val", "test", or "" for one that is left out on request
    origin: str
    remarks: tuple[str, ...] = ()

    @property
    def has_test(self) -> bool:
        """Whether something is there to test with."""
        return "test" in self.parts.values()


@dataclass(frozen=True)
class SplitName:
    """What the words of a name say."""

    word: str  # "train", "val", "test", "eval", or "" where the name does not say
    rest: tuple[str, ...]  # words that say something else
    numbered: bool


def read_name(name: str) -> SplitName:
    """Cut a name into words, and sort them into those that say a split, others, and those that say nothing."""
    tokens = re.split(r"[\W_]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())
    tokens = re.sub(r"\bhold out\b|\bheld out\b", "holdout", " ".join(filter(None, tokens))).split()
    words = [WORDS[found[1]] for token in tokens if (found := GLUED.fullmatch(token))]
    rest = tuple(
        token for token in tokens if not GLUED.fullmatch(token) and token not in SILENT and not token.isdecimal()
    )
    numbered = any(token.isdecimal() or (GLUED.fullmatch(token) and token[-1].isdecimal()) for token in tokens)
    return SplitName(words[0] if len(set(words)) == 1 else "", rest, numbered)


def says_nothing(name: str) -> bool:
    """Whether a name has words like "images" and "data" alone, which tell neither a class nor a part."""
    tokens = set(re.split(r"[\W_]+", name.lower())) - {""}
    return bool(tokens & SILENT) and all(token in SILENT or token.isdecimal() for token in tokens)


def mentions_split(name: str) -> bool:
    """Whether a name has a word in it that says train, validation or test."""
    return bool(read_name(name).word)


def is_split(name: str) -> bool:
    """Whether a name says which part it is and nothing else, as `Training_Set` does and `toy_train` does not."""
    cut = read_name(name)
    return bool(cut.word) and not cut.rest


def understand_splits(
    names: Iterable[str], *, place: str, kind: str = "folders", declared: Mapping[str, str] | None = None
) -> Splits | None:
    """Which part each of the names is; None where none of them says so. `place` and `kind` are for messages.

    `declared` overrides: a part by its name, "" for one that is left out. Raises UserError for names that are
    understood in part, for two names of one part, and where nothing is trained on.
    """
    every = list(dict.fromkeys(names))
    said = _declared(every, declared or {}, place)
    open_names = [name for name in every if name not in said]
    cuts = {name: read_name(name) for name in open_names}
    if not said and not any(cut.word for cut in cuts.values()):
        return None
    if strange := [name for name, cut in cuts.items() if not cut.word]:
        known = next((name for name in every if name not in strange), "")
        close = get_close_matches(strange[0].lower(), WORDS, n=1, cutoff=0.75)
        hint = f", unless {close[0]!r} is meant" if close else ""
        raise UserError(
            f"{place} has {known!r}, a split, beside {strange[0]!r}, which is none{hint}; rename or move it, "
            f'or say what it is with {data_setting(f"splits.{strange[0]}", "train")} ("" leaves it out).'
        )
    _one_data_set(cuts, place)
    _each_part_once(cuts, place, kind)
    parts, remarks = _parts(cuts, said, place)
    return Splits({name: parts[name] for name in every}, _origin(parts, kind), remarks)


def _declared(names: Sequence[str], declared: Mapping[str, str], place: str) -> dict[str, str]:
    for name, part in declared.items():
        if name not in names:
            hint = did_you_mean(name, names)
            raise UserError(f"splits names {name!r}, which {place} does not have{hint} (has {', '.join(names)}).")
        if part not in ("train", "val", "test", LEFT_OUT):
            raise UserError(f'splits says {part!r} of {name!r}; write "train", "val", "test", or "" to leave it out.')
    return dict(declared)


def _one_data_set(cuts: Mapping[str, SplitName], place: str) -> None:
    rests = {cut.rest: name for name, cut in cuts.items()}
    if len(rests) > 1:
        first, second, *_ = rests.values()
        raise UserError(
            f"{place} has {first!r} beside {second!r}, which look like two data sets or two versions of one; "
            "give the path of one of them."
        )


def _each_part_once(cuts: Mapping[str, SplitName], place: str, kind: str) -> None:
    # Numbered files are pieces of one part, and cells are of one table; two folders that mean one part are not.
    if kind == "cells":
        return
    groups = defaultdict(list)
    for name, cut in cuts.items():
        groups[cut.word].append(name)
    for word, group in groups.items():
        if len(group) > 1 and not (kind == "files" and all(cuts[name].numbered for name in group)):
            raise UserError(
                f"{place} has {group[0]!r} and {group[1]!r}, and both say {word}: put them together, or leave one "
                f"out with {data_setting(f'splits.{group[1]}', '')}."
            )


def _parts(
    cuts: Mapping[str, SplitName], said: Mapping[str, str], place: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    parts = {**{name: cut.word for name, cut in cuts.items()}, **said}
    present = set(parts.values())
    remarks: list[str] = []

    def reread(word: str, part: Part) -> None:
        named = series(sorted(name for name, own in parts.items() if own == word))
        for name in [name for name, own in parts.items() if own == word]:
            parts[name] = part
        remarks.append(f"{place}: {named} is the {'test' if part == 'test' else 'validation'} part.")

    if "eval" in present and {"test", "val"} <= present:
        extra = next(name for name, own in parts.items() if own == "eval")
        raise UserError(
            f"{place} has test and validation parts, and {extra!r} beside them: say what it is, or leave it out with "
            f"{data_setting(f'splits.{extra}', '')}."
        )
    if "eval" in present:
        reread("eval", "val" if "test" in present else "test")
    if "val" in parts.values() and "test" not in parts.values():
        reread("val", "test")
    for word in ("train", "val", "test"):
        if len(alike := sorted(name for name, cut in cuts.items() if cut.word == word and not cut.numbered)) > 1:
            remarks.append(f"{place}: {listed(alike)} are one part.")
    return parts, tuple(remarks)


def _origin(parts: Mapping[str, str], kind: str) -> str:
    first: dict[str, str] = {}
    for name, part in parts.items():
        if part:
            first.setdefault(part, name)
    *others, last = (first[part] for part in ("train", "val", "test") if part in first)
    return f"the {kind} {', '.join(others)} and {last}" if others else f"the {kind} {last}"


def listed(names: Iterable[str]) -> str:
    """Names in order, with "and" between them."""
    return series(sorted(names))
