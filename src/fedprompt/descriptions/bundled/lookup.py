"""Bundled attributes by class name or synonym, over one bundled file or all of them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from fedprompt.data.labels import readable_name
from fedprompt.descriptions.bundled import files
from fedprompt.descriptions.phrases import stems
from fedprompt.errors import did_you_mean


@dataclass(frozen=True)
class Found:
    """What bundled files have of a list of classes; `origins` has the file of each class, `missing` the others."""

    attributes: Mapping[str, tuple[str, ...]]
    origins: Mapping[str, str]
    missing: tuple[str, ...]

    @property
    def counts(self) -> Mapping[str, int]:
        """File -> number of classes that are taken from it, most first."""
        return dict(Counter(self.origins.values()).most_common())


def normal_form(name: str) -> str:
    """A class name without case, accents, spaces, signs and plural endings: "Teddy-Bears" is "teddybear"."""
    letters = unicodedata.normalize("NFKD", readable_name(name))
    return "".join(stems("".join(one for one in letters if not unicodedata.combining(one))))


@cache
def index(file: str) -> Mapping[str, str]:
    """Normal form -> class of a bundled file; the name of a class goes before a synonym of another."""
    found: dict[str, str] = {}
    known = files.read(file)
    for name in known.attributes:
        found.setdefault(normal_form(name), name)
    for name, synonyms in known.synonyms.items():
        for synonym in synonyms:
            found.setdefault(normal_form(synonym), name)
    return found


def class_in(file: str, name: str) -> str | None:
    """The class of a bundled file that has this name, or this name or synonym in normal form; None if there is none."""
    return name if name in files.read(file).attributes else index(file).get(normal_form(name))


def ranked(names: Sequence[str], among: Sequence[str]) -> list[str]:
    """The files by how many of the classes they have, then by how many in the same spelling, then as given."""

    def score(file: str) -> tuple[int, int]:
        spelled = files.read(file).attributes
        return -sum(class_in(file, name) is not None for name in names), -sum(name in spelled for name in names)

    return sorted(among, key=score)


def find(names: Sequence[str], among: Sequence[str] = ()) -> Found:
    """The attributes of each class from the first of the `ranked` files that has it; by default among all files.

    The file with the most classes goes first, because classes of one file share phrases.
    """
    order = ranked(names, among or files.names())
    attributes, origins = {}, {}
    for name in names:
        for file in order:
            if (own := class_in(file, name)) is not None:
                attributes[name], origins[name] = files.read(file).attributes[own], file
                break
    return Found(attributes, origins, tuple(name for name in names if name not in origins))


def holders(name: str) -> Mapping[str, str]:
    """Every bundled file that has the class, with its name there, in the order of preference."""
    return {file: own for file in files.names() if (own := class_in(file, name)) is not None}


def suggestion(name: str, among: Sequence[str] = ()) -> str:
    """A did-you-mean over the classes and synonyms of bundled files; empty if none is similar."""
    known = [files.read(file) for file in among or files.names()]
    spelled = [*(one for own in known for one in own.attributes)]
    spelled += [synonym for own in known for synonyms in own.synonyms.values() for synonym in synonyms]
    return did_you_mean(readable_name(name), dict.fromkeys(map(readable_name, spelled)))
