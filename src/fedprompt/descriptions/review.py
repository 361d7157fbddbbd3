"""Review pages of descriptions in Markdown and HTML, for a person to read before training: flagged entries first."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedprompt.data.descriptions import Descriptions
from fedprompt.descriptions.conditions import rejection_reason
from fedprompt.descriptions.parsing import clean
from fedprompt.descriptions.phrases import content_stems, names_class, near_duplicates
from fedprompt.descriptions.statistics import Separation, Sharing, sharing
from fedprompt.records.atomic_files import write_atomic

MOST_PAIRS = 3  # of phrases, in one flag
FindDuplicates = Callable[[Sequence[str]], Sequence[tuple[str, str, float]]]


@dataclass(frozen=True)
class Flag:
    """An entry that a person should check, and why."""

    entry: str  # the class, or "conditions"
    text: str


@dataclass(frozen=True)
class Review:
    """The content of the review pages."""

    title: str
    descriptions: Descriptions
    flags: tuple[Flag, ...]
    edited: tuple[str, ...]
    sharing: Sharing
    rejections: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
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
    rejections: Mapping[str, tuple[str, ...]] | None = None,
    separations: tuple[Separation, Separation] | None = None,
    overlaps: FindDuplicates | None = None,
) -> Review:
    """Check descriptions; `names` are the data set's classes, `overlaps` compares phrases with a backbone."""
    known = tuple(names) or tuple(dict.fromkeys(label for scene in descriptions.scenes for label in scene.labels))
    flags = (*class_flags(descriptions, tuple(names)), *flag_twins(descriptions), *condition_flags(descriptions, known))
    if overlaps is not None:
        flags += tuple(_backbone_flags(descriptions, overlaps))
    before, after = separations or (None, None)
    edited = (*descriptions.edited(), *(("conditions",) if descriptions.conditions_edited else ()))
    if descriptions.provenance.authors:
        edited = ()  # the page names who wrote it, so that single lists need no mark
    return Review(title, descriptions, flags, edited, sharing(descriptions.attributes), rejections or {}, before, after)


def class_flags(descriptions: Descriptions, names: Sequence[str], *, excepted: Sequence[str] = ()) -> Iterator[Flag]:
    """Classes that are missing or empty, name themselves, or have markup or near-duplicates in their attributes."""
    missing = [name for name in names if name not in descriptions.attributes] if descriptions.attributes else []
    yield from (Flag(name, "is missing from the file") for name in missing)
    for name, phrases in descriptions.attributes.items():
        if not phrases:
            yield Flag(name, "has no attributes")
        for place, phrase in enumerate(phrases):
            if names_class(phrase, name) and name not in excepted:
                yield Flag(name, f"leaks its own name: {phrase!r}")
            if clean(phrase, 300) != phrase:
                yield Flag(name, f"has markup, a link or unusual characters in it: {phrase!r}")
            yield from (
                Flag(name, f"has near-duplicates: {other!r} and {phrase!r}")
                for other in phrases[:place]
                if near_duplicates(phrase, other)
            )


def flag_twins(descriptions: Descriptions) -> Iterator[Flag]:
    """Classes with the same set of attributes, which therefore cannot distinguish them."""
    owners: dict[frozenset[frozenset[str]], list[str]] = defaultdict(list)
    for name, phrases in descriptions.attributes.items():
        if phrases:
            owners[frozenset(map(content_stems, phrases))].append(name)
    for names in owners.values():
        for name in names[1:]:
            yield Flag(name, f"has the same list as {names[0]!r}")


def condition_flags(descriptions: Descriptions, names: Sequence[str]) -> Iterator[Flag]:
    """Conditions that name a class or overlap."""
    conditions = descriptions.conditions
    if descriptions.scenes and not conditions:
        yield Flag("conditions", "are empty")
    for place, condition in enumerate(conditions):
        if reason := rejection_reason(condition, names):
            yield Flag("conditions", f"{condition!r} {reason}")
        yield from (
            Flag("conditions", f"{other!r} and {condition!r} overlap")
            for other in conditions[:place]
            if near_duplicates(condition, other)
        )


def _backbone_flags(descriptions: Descriptions, overlaps: FindDuplicates) -> Iterator[Flag]:
    """One flag per entry, with its nearest pairs only: to a backbone that knows none of the words, all are equal."""
    for name, phrases in (*descriptions.attributes.items(), ("conditions", descriptions.conditions)):
        if pairs := overlaps(phrases):
            nearest = ", ".join(f"{one!r} and {other!r} ({cosine:.2f})" for one, other, cosine in pairs[:MOST_PAIRS])
            more = f" and {len(pairs) - MOST_PAIRS} pairs more" if len(pairs) > MOST_PAIRS else ""
            yield Flag(name, f"has near-duplicates for the backbone: {nearest}{more}")


def markdown(text: str) -> str:
    """Text escaped for Markdown, and for HTML inside it."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", text)


def write_pages(path: Path, found: Review) -> tuple[Path, Path]:
    """Write NAME.md and NAME.html beside the descriptions file, with everything from a model or a file escaped."""
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
