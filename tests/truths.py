"""A data set as plain facts: drawn by hypothesis, written in dialects, compared with what a reader makes of it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st
from PIL import Image

from fedprompt.data.dataset import Dataset

STEP = 12  # between the reds of two images, which survives the losses of JPEG
SIDE = 4
UNKNOWN = "?"  # among the labels of an image of which some are unknown
PLAIN = ("cat", "dog", "red fox", "Äpfel", "sea-lion", "o'clock", "naïve", "fir tree", "bus 2", "Straße")
# Names that some layout, table or language takes for something else.
AWKWARD = (
    *("7", "007", "0", "1", "1.0", "-1", "1e5", "true", "False", "nan", "None", "null", "NA", "²"),
    *("train", "test", "val", "Testing", "image", "images", "label", "labels", "split", "domain", "default", "id"),
    *("Road", "road", "red_fox", "red fox", "a,b", "a, b", "a;b", "a|b", "a/b", "x & y", "x#y", "#1", "a:b", "a b"),
    *("[x]", "['x']", "{y}", "(z)", '"quoted"', "it's", "'s", "C++", "100%", "=SUM(A1)", "a\\b", "<b>", "&amp;", "$x"),
    *("cat.jpg", "cat.png", ".hidden", "_", "-", "~", "aux", "sep=;", "日本", "🦊", "ﬁg", "ß", "İ", "x" * 90),
)


@dataclass(frozen=True)
class TrueImage:
    """One image; its number is written into its pixels."""

    number: int
    split: str
    labels: frozenset[str]
    domain: str = ""

    @property
    def label(self) -> str:
        """The one label of single-label data."""
        (label,) = self.labels
        return label


@dataclass(frozen=True)
class Truth:
    """What a data set says, however it is written."""

    classes: tuple[str, ...]
    multi: bool
    images: tuple[TrueImage, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The parts that there are, in order."""
        return tuple(part for part in ("train", "val", "test") if any(one.split == part for one in self.images))

    @property
    def domains(self) -> tuple[str, ...]:
        """All domains, sorted; ("",) for none."""
        return tuple(sorted({one.domain for one in self.images}))

    def without(self, number: int) -> Truth:
        """The truth without an image."""
        return replace(self, images=tuple(one for one in self.images if one.number != number))

    def changed(self, number: int, **changes: object) -> Truth:
        """The truth with something else about an image."""
        own = tuple(replace(one, **changes) if one.number == number else one for one in self.images)
        return replace(self, images=own)


@dataclass(frozen=True)
class Facts:
    """What can be compared: the class names, and per image its number, split, labels and domain, however ordered."""

    names: frozenset[str]
    images: Counter[tuple[int, str, frozenset[str], str]]


def facts(truth: Truth, *, splits: bool, listed: bool, domains: bool) -> Facts:
    """The facts of a truth; without `splits` none are said, and a list of classes may name some that no image has."""
    images = Counter(
        (one.number, one.split if splits else "", one.labels, one.domain if domains else "") for one in truth.images
    )
    present = frozenset(label for one in truth.images for label in one.labels)
    return Facts(frozenset(truth.classes) if listed else present, images)


def facts_of(data: Dataset, *, splits: bool, domains: bool) -> Facts:
    """The facts of a data set that was read, its images decoded; AssertionError for an image that is none of ours."""
    images: Counter[tuple[int, str, frozenset[str], str]] = Counter()
    for row in range(len(data.source)):
        if row in data.excluded:
            continue
        target = data.targets[row].tolist()
        own = [target] if isinstance(target, int) else [label for label, mark in enumerate(target) if mark == 1]
        unknown = isinstance(target, list) and -1 in target
        labels = frozenset({data.space.names[label] for label in own} | ({UNKNOWN} if unknown else set()))
        split = data.splits[row] if splits else ""
        images[number_of(data.source.open(row)), split, labels, data.domains[row] if domains else ""] += 1
    return Facts(frozenset(data.space.names), images)


def pixels(number: int) -> Image.Image:
    """The image of a number."""
    return Image.new("RGB", (SIDE, SIDE), (STEP * number + STEP // 2, 90, 40))


def number_of(image: Image.Image) -> int:
    """The number of an image, exact or after the losses of JPEG."""
    red, green, blue = image.getpixel((1, 1))
    assert image.size == (SIDE, SIDE) and abs(green - 90) < 6 and abs(blue - 40) < 6, "these are other pixels"
    return int(red) // STEP


def encoded(number: int, form: str) -> bytes:
    """The image of a number as a file."""
    file = io.BytesIO()
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(form, {})
    pixels(number).save(file, form, **options)
    return file.getvalue()


@st.composite
def truths(
    draw: st.DrawFn,
    names: Sequence[str] = PLAIN,
    *,
    multi: bool | None = None,
    domains: Collection[int] = (0,),
    val: bool | None = None,
) -> Truth:
    """Every class is on images for training and for testing, of each domain if there are some."""
    classes = tuple(draw(st.lists(st.sampled_from(sorted(set(names))), min_size=2, max_size=4, unique=True)))
    many = draw(st.booleans()) if multi is None else multi
    places = ("north", "South pole")[: draw(st.sampled_from(sorted(domains)))] or ("",)
    parts = ("train", "test", "val")[: 2 + (draw(st.booleans()) if val is None else val)]
    if len(classes) * len(places) * len(parts) > 18:
        classes = classes[:2]
    rows = [(split, place, frozenset({label})) for split in parts for place in places for label in classes]
    if many:
        more = st.frozensets(st.sampled_from(classes), max_size=len(classes))
        rows = [(split, place, labels | draw(more)) for split, place, labels in rows]
        rows += [(draw(st.sampled_from(parts)), draw(st.sampled_from(places)), frozenset())] * draw(st.integers(0, 1))
    numbers = draw(st.permutations(range(len(rows))))
    images = (TrueImage(number, split, own, place) for number, (split, place, own) in zip(numbers, rows, strict=True))
    return Truth(classes, many, tuple(sorted(images, key=lambda one: one.number)))
