"""Where in a tree of folders, or in the names of files of rows, the splits are."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from fedprompt.data.intake.splits import (
    LEFT_OUT,
    Splits,
    is_split,
    listed,
    mentions_split,
    read_name,
    understand_splits,
)
from fedprompt.errors import UserError
from fedprompt.text_files import data_setting


@dataclass(frozen=True)
class SplitFolders:
    """The levels of folders that say the split (several, where an archive was unpacked into a folder of its name)."""

    levels: tuple[int, ...]
    splits: Splits

    def of(self, parts: Sequence[str]) -> str:
        """The part that a path is in."""
        return self.splits.parts[parts[self.levels[0]]]

    def below(self, parts: Sequence[str]) -> tuple[str, ...]:
        """The path without its splits."""
        return tuple(part for level, part in enumerate(parts) if level not in self.levels)


def split_folders(
    places: Collection[Sequence[str]], *, root: str, declared: Mapping[str, str] | None = None, domains: bool = False
) -> SplitFolders | None:
    """Which folders on the way to the images, whose paths `places` are in parts, say the split; None if none does.

    The folders of a level are splits if all of them say so and there are two parts at least, or if those at the top
    are `declared` so. Raises UserError for a top folder that is none beside others that are, unless these are known to
    be `domains`; for two levels that say different things; and for splits that hold images but no class folders.
    """
    depth = min((len(parts) for parts in places), default=1) - 1  # levels of folders that all paths have
    at = [{parts[level] for parts in places} for level in range(depth)]
    levels = [level for level, names in enumerate(at) if _is_level(names, {} if level else declared or {})]
    if not levels:
        if not domains:
            _refuse_half_understood(at, root)
        return None
    first = levels[0]
    for parts in places:
        if len({read_name(parts[level]).word for level in levels}) > 1:
            raise UserError(f"{root} says twice, and differently, which split {'/'.join(parts)} is in; move it.")
    splits = understand_splits(sorted(at[first]), place=root, declared=declared)
    assert splits is not None, "a level of splits has splits"
    if "train" not in splits.parts.values():
        have = listed(splits.parts)
        raise UserError(f"{root} holds {have} and no training part; add it, or give the folder inside.")
    if depth == len(levels):
        shallow = "/".join(sorted(places, key=lambda parts: (len(parts), parts))[0])
        raise UserError(f"{root} has images in split folders, like {shallow}, not in class folders below; move them.")
    return SplitFolders(tuple(levels), splits)


def _is_level(names: set[str], declared: Mapping[str, str]) -> bool:
    cuts = [read_name(name) for name in names if name not in declared]
    words = {cut.word for cut in cuts}
    alike = len({cut.rest for cut in cuts}) <= 1
    return (bool(declared) or len(words) > 1) and "" not in words and alike


def _refuse_half_understood(at: Sequence[set[str]], root: str) -> None:
    tops = sorted(at[0]) if at else []
    said = [name for name in tops if mentions_split(name)]
    plain = {read_name(name).word for name in tops if is_split(name)}
    if not said or (len(at) == 1 and len(plain) < 2):
        return  # of folders that hold images themselves, one may well be a class called "train"
    if len(said) == len(tops) and len({read_name(name).word for name in tops}) == 1:
        raise UserError(
            f"{root} holds {listed(said)} and nothing else: add the other parts, or give the folder inside it, from "
            "which a test split is drawn."
        )
    if others := [name for name in tops if name not in said]:
        raise UserError(
            f"{root} has {said[0]!r}, which reads like a split, beside {others[0]!r}, which does not: rename or move "
            f'it, say what it is with {data_setting(f"splits.{others[0]}", "train")} ("" leaves it out), or give '
            f"{data_setting('layout', 'domains')} if all of them are domains."
        )
    understand_splits(tops, place=root)


def splits_of_files(
    files: Sequence[str], *, root: str, declared: Mapping[str, str] | None = None
) -> tuple[dict[str, str], Splits | None]:
    """The split name of every file of rows (Parquet, tar) below a folder, and what those names mean.

    The name is the part of the path that says a split: a folder, or the file's own name. Numbers and `-of-` are
    pieces of one split. Raises UserError where only some say one, and for several configurations side by side.
    """
    named: dict[str, str] = {}
    around: dict[tuple[str, ...], str] = {}
    for file in files:
        path = PurePosixPath(file)
        parts = [*path.parent.parts, path.name.partition(".")[0]]
        own = next((part for part in reversed(parts) if part in (declared or {}) or mentions_split(part)), "")
        # A number in the file's name is that of a piece, one in a folder's name is not.
        stem = parts.pop() if parts[-1] != own else ""
        rest = (*(part for part in parts if part != own), *read_name(stem).rest)
        named[file] = own
        around.setdefault(rest, file)
    if len(around) > 1:
        first, second, *_ = around.values()
        raise UserError(
            f"{root} has {first} beside {second}, which look like two configurations of one data set; "
            "give the path of one of them."
        )
    own_names = {_unnumbered(name) for name in named.values()}
    if own_names == {""}:
        return named, None
    if "" in own_names:
        silent = next(file for file, name in named.items() if not name)
        other = next(file for file, name in named.items() if name)
        raise UserError(
            f"{root} has {other}, which says its split, beside {silent}, which does not; rename or move it."
        )
    splits = understand_splits(sorted(set(named.values())), place=root, kind="files", declared=declared)
    if splits and len(set(splits.parts.values()) - {LEFT_OUT}) > 1 and "train" not in splits.parts.values():
        raise UserError(f"{root} holds {listed(splits.parts)} and no training part; add it.")
    if splits and (some := next((name for name in splits.parts if "partial" in name.lower()), "")):
        remark = f"{root}: {some} is the beginning of a split, not all of it."
        splits = replace(splits, remarks=(*splits.remarks, remark))
    return named, splits


def _unnumbered(name: str) -> str:
    return re.sub(r"[\W_]*\d+(?:[\W_]*of[\W_]*\d+)?$", "", name)
