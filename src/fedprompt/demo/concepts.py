"""Concepts of the demo data sets: classes, attributes, glyphs, colours and scene contexts, read from JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from fedprompt.data.descriptions import read_conditions
from fedprompt.demo import fonts

SCENES = Path(str(files("fedprompt.demo") / "descriptions" / "scenes.json"))
SEEN = ("material", "fontawesome", "remix")  # the icon styles that pretraining draws
UNSEEN = ("phosphor-light", "phosphor-regular", "phosphor-bold", "phosphor-fill")
DOMAINS = SEEN + UNSEEN
SUFFIXES = {
    "material": ("", "-outline", "-variant", "-variant-outline"),
    "fontawesome": ("",),
    "remix": ("-fill", "-line"),
}


@dataclass(frozen=True)
class Context:
    """The context of a scene: frequencies of its objects, their position and size, the background and the light."""

    objects: Mapping[str, float]  # concept -> relative frequency
    place: tuple[float, float]  # vertical band of object centres, 0 is the top
    size: tuple[float, float]  # object size as a fraction of the image
    background: tuple[str, ...]
    light: tuple[float, float]  # brightness factor


@dataclass(frozen=True)
class Concepts:
    """The contents of concepts.json. The order of `classes` is the fixed shuffled order of `pictograms`."""

    classes: tuple[str, ...]  # base = the first 39, new = the last 38
    extra_concepts: tuple[str, ...]  # further concepts, seen only in pretraining
    attributes: Mapping[str, tuple[str, ...]]  # attribute phrase -> concepts
    colours: Mapping[str, tuple[int, int, int]]
    contexts: Mapping[str, Context]
    conditions: tuple[str, ...]  # co-occurrence conditions of the labels of `scenes`, from descriptions/scenes.json
    variants: Mapping[str, Mapping[str, tuple[str, ...]]]  # family -> concept -> further glyphs of the concept

    @property
    def concepts(self) -> tuple[str, ...]:
        """Classes, then the further concepts."""
        return self.classes + self.extra_concepts

    def attributes_of(self, concept: str) -> tuple[str, ...]:
        """The attribute phrases of a concept, most specific (least shared) first."""
        own = [phrase for phrase, concepts in self.attributes.items() if concept in concepts]
        return tuple(sorted(own, key=lambda phrase: len(self.attributes[phrase])))

    @property
    def objects(self) -> tuple[str, ...]:
        """The classes of `scenes`, in the order in which the contexts name them."""
        return tuple(dict.fromkeys(name for context in self.contexts.values() for name in context.objects))


@lru_cache(maxsize=1)
def load_concepts() -> Concepts:
    """Read concepts.json; cached."""
    raw = json.loads((files("fedprompt.demo") / "concepts.json").read_text())
    return Concepts(
        classes=tuple(raw["classes"]),
        extra_concepts=tuple(raw["extra_concepts"]),
        attributes={phrase: tuple(concepts) for phrase, concepts in raw["attributes"].items()},
        colours={name: (red, green, blue) for name, (red, green, blue) in raw["colours"].items()},
        contexts={name: _context(entry) for name, entry in raw["contexts"].items()},
        conditions=read_conditions(SCENES),
        variants={
            family: {name: tuple(more) for name, more in table.items()} for family, table in raw["variants"].items()
        },
    )


def _context(entry: Mapping[str, object]) -> Context:
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Context(**values)  # type: ignore[arg-type]


@lru_cache(maxsize=8192)
def glyph_names(concept: str, domain: str) -> tuple[str, ...]:
    """The glyphs of a concept in a domain (icon style); empty if the domain has none."""
    if domain not in SEEN:
        family, _, weight = domain.partition("-")
        name = concept if weight == "regular" else f"{concept}-{weight}"
        return (name,) if name in fonts.glyphs(family) else ()
    names = [concept + suffix for suffix in SUFFIXES[domain]]
    more = load_concepts().variants[domain].get(concept, ())
    names += [name + suffix for name in more for suffix in (SUFFIXES[domain] if domain == "remix" else ("",))]
    return tuple(dict.fromkeys(name for name in names if name in fonts.glyphs(domain)))
