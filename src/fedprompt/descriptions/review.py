"""The page on which a person reads the words before a model is trained on them: Markdown and HTML, flags first."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedprompt.data.descriptions import Descriptions
from fedprompt.descriptions.conditions import trouble
from fedprompt.descriptions.parsing import plain
from fedprompt.descriptions.phrases import core, names_class, near
from fedprompt.descriptions.statistics import Separation, Sharing, sharing
from fedprompt.records.run_folder import write_atomic

MOST_PAIRS = 3  # of phrases, in one flag
Overlaps = Callable[[Sequence[str]], Sequence[tuple[str, str, float]]]


@dataclass(frozen=True)
class Flag:
    """Something a person should look at."""

    entry: str  # the class, or "conditions"
    text: str


@dataclass(frozen=True)
class Review:
    """All that the page shows."""

    title: str
    descriptions: Descriptions
    flags: tuple[Flag, ...]
    edited: tuple[str, ...]
    sharing: Sharing
    complaints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    before: Separation | None = None
    after: Separation | None = None

    @property
    def flagged(self) -> frozenset[str]:
        """The entries with a flag."""
        return frozenset(flag.entry for flag in self.flags)


def review(
    descriptions: Descriptions,
    *,
    title: str,
    names: Sequence[str] = (),
    complaints: Mapping[str, tuple[str, ...]] | None = None,
    separations: tuple[Separation, Separation] | None = None,
    overlaps: Overlaps | None = None,
) -> Review:
    """Look for what a person should see; `names` are the classes of the data set, `overlaps` compares by a backbone."""
    known = tuple(names) or tuple(dict.fromkeys(label for scene in descriptions.scenes for label in scene.labels))
    flags = (*_class_flags(descriptions, tuple(names)), *_twins(descriptions), *_condition_flags(descriptions, known))
    if overlaps is not None:
        flags += tuple(_backbone_flags(descriptions, overlaps))
    before, after = separations or (None, None)
    edited = (*descriptions.edited(), *(("conditions",) if descriptions.conditions_edited else ()))
    return Review(title, descriptions, flags, edited, sharing(descriptions.attributes), complaints or {}, before, after)


def _class_flags(descriptions: Descriptions, names: Sequence[str]) -> Iterator[Flag]:
    missing = [name for name in names if name not in descriptions.attributes] if descriptions.attributes else []
    yield from (Flag(name, "is missing from the file") for name in missing)
    for name, phrases in descriptions.attributes.items():
        if not phrases:
            yield Flag(name, "has no attributes")
        for place, phrase in enumerate(phrases):
            if names_class(phrase, name):
                yield Flag(name, f"leaks its own name: {phrase!r}")
            if plain(phrase, 300) != phrase:
                yield Flag(name, f"has markup, a link or odd signs in it: {phrase!r}")
            yield from (
                Flag(name, f"says nearly the same twice: {other!r} and {phrase!r}")
                for other in phrases[:place]
                if near(phrase, other)
            )


def _twins(descriptions: Descriptions) -> Iterator[Flag]:
    """Classes with the same list, whatever its order: nothing in the words tells them apart."""
    owners: dict[frozenset[frozenset[str]], list[str]] = defaultdict(list)
    for name, phrases in descriptions.attributes.items():
        if phrases:
            owners[frozenset(map(core, phrases))].append(name)
    for names in owners.values():
        for name in names[1:]:
            yield Flag(name, f"has the same list as {names[0]!r}")


def _condition_flags(descriptions: Descriptions, names: Sequence[str]) -> Iterator[Flag]:
    conditions = descriptions.conditions
    if descriptions.scenes and not conditions:
        yield Flag("conditions", "are empty")
    for place, condition in enumerate(conditions):
        if reason := trouble(condition, names):
            yield Flag("conditions", f"{condition!r} {reason}")
        yield from (
            Flag("conditions", f"{other!r} and {condition!r} overlap")
            for other in conditions[:place]
            if near(condition, other)
        )


def _backbone_flags(descriptions: Descriptions, overlaps: Overlaps) -> Iterator[Flag]:
    """One flag an entry with its nearest pairs: to a backbone that knows none of the words all are the same."""
    for name, phrases in (*descriptions.attributes.items(), ("conditions", descriptions.conditions)):
        if pairs := overlaps(phrases):
            told = ", ".join(f"{one!r} and {other!r} ({cosine:.2f})" for one, other, cosine in pairs[:MOST_PAIRS])
            more = f" and {len(pairs) - MOST_PAIRS} pairs more" if len(pairs) > MOST_PAIRS else ""
            yield Flag(name, f"says nearly the same twice, to the backbone: {told}{more}")


def markdown(text: str) -> str:
    """Text that Markdown, and HTML inside it, leaves as it is."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", text)


def write_pages(path: Path, found: Review) -> tuple[Path, Path]:
    """Write NAME.md and NAME.html beside the descriptions file; everything from a model or a file is escaped in both."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = markdown
    pages = path.with_suffix(".md"), path.with_suffix(".html")
    for page in pages:
        text = environment.get_template(f"review{page.suffix}.j2").render(review=found, descriptions=found.descriptions)
        write_atomic(page, text)
    return pages
