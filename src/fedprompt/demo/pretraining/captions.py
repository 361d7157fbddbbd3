"""Captions for pretraining: many forms; frequent concepts are often named, rare ones mostly described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from fedprompt.demo.pretraining.vocabulary import HEAD, Concept, Vocabulary, is_colour
from fedprompt.demo.render import COLOURS, GROUNDS
from fedprompt.demo.sprites import MONO, SEEN
from fedprompt.seeding import numpy_stream

T = TypeVar("T")

NAMED_HEAD, NAMED_TAIL = 0.45, 0.12  # how often a caption names its concept
STARTS = (*("a photo of ",) * 4, "a picture of ", "an image of ", "a drawing of ", "there is ", "")
STYLES = {
    "noto": ("a shaded drawing of ", "a glossy picture of "),
    "fluent": ("a flat drawing of ", "a clean picture of "),
    "twemoji": ("a sticker of ", "a bold picture of "),
    MONO: ("a black and white drawing of ", "an outline of "),
}
ARTISTS = (*SEEN, MONO)
SIZES = ((0.35, "a small "), (0.7, ""), (9.0, "a large "))
FILLERS = (
    *("a", "an", "the", "of", "on", "in", "at", "and", "with", "which", "is", "has"),
    *("there", "photo", "picture", "image", "drawing", "ground", "left", "right", "top", "bottom"),
)
LIGHTS = ((0.65, "in dark light"), (0.85, "in dim light"), (1.05, ""), (9.0, "in bright light"))


class Chooser:
    """Random choices for the texts of one batch, from an addressed seed; numbers are drawn in blocks for speed."""

    def __init__(self, seed: int, *address: str | int) -> None:
        self._generator = numpy_stream(seed, *address)
        self._block: list[float] = []

    def number(self) -> float:
        """A number in [0, 1)."""
        if not self._block:
            self._block = self._generator.random(1024).tolist()
        return self._block.pop()

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[int(self.number() * len(options))]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """At most `count` different options."""
        left = list(options)
        return [left.pop(int(self.number() * len(left))) for _ in range(min(count, len(left)))]


@dataclass(frozen=True)
class Shown:
    """What a caption may say about one object in an image."""

    concept: int
    artist: int  # position in ARTISTS
    true_colours: bool  # False for grey, hue-rotated and single-colour drawings
    x: float  # centre, -1 to 1
    y: float
    size: float
    ground: int
    pattern: int
    light: float
    other: int  # another concept in the image, or -1


def clause(phrase: str) -> str:
    """ "wings" -> "has wings", "a bird" -> "is a bird"; phrases that begin with "is" or "has" stay."""
    first = phrase.split(maxsplit=1)[0]
    return phrase if first in {"is", "has"} else f"is {phrase}" if first in {"a", "an"} else f"has {phrase}"


def caption(choose: Chooser, vocabulary: Vocabulary, shown: Shown, strange_starts: float = 0.0) -> str:
    """A random caption of one object: named or not, with up to three attributes and some facts about the image.

    `strange_starts` is the share that starts with up to six random words instead of a form such as "a photo of".
    """
    concept = vocabulary.concepts[shown.concept]
    phrases = [phrase for phrase in concept.phrases if shown.true_colours or not is_colour(phrase)]
    named = choose.number() < (NAMED_HEAD if vocabulary.ranks[shown.concept] < HEAD else NAMED_TAIL)
    listed = choose.sample(phrases, choose.pick((0, 0, 1, 1, 2, 3) if named else (1, 2, 2, 3)))
    if not named and choose.number() < 0.12:
        return " and ".join(listed) + ("." if choose.number() < 0.5 else "")
    subject = concept.name if named else _stand_in(choose, concept)
    listed = [phrase for phrase in listed if not phrase.endswith(" " + subject)]
    strange = strange_starts > 0 and choose.number() < strange_starts
    start = _strange_start(choose) if strange else _start(choose, shown) + _article(choose, shown)
    text = start + _adjective(choose, concept, shown) + subject
    if listed:
        text += ", which " + " and ".join(map(clause, listed))
    return text + _facts(choose, vocabulary, shown) + ("." if choose.number() < 0.7 else "")


def _stand_in(choose: Chooser, concept: Concept) -> str:
    draw = choose.number()
    if draw < 0.5:
        return concept.kind.partition(" ")[2]
    return choose.pick(concept.keywords) + " thing" if draw < 0.65 and concept.keywords else "thing"


def _start(choose: Chooser, shown: Shown) -> str:
    return choose.pick(STYLES[ARTISTS[shown.artist]] if choose.number() < 0.3 else STARTS)


def _strange_start(choose: Chooser) -> str:
    return "".join(choose.pick(FILLERS) + " " for _ in range(1 + int(6 * choose.number())))


def _article(choose: Chooser, shown: Shown) -> str:
    draw = choose.number()
    return next(word for limit, word in SIZES if shown.size < limit) or "a " if draw < 0.15 else "a "


def _adjective(choose: Chooser, concept: Concept, shown: Shown) -> str:
    mostly = [phrase.rpartition(" ")[2] for phrase in concept.measured if phrase.startswith("is mostly")]
    return mostly[0] + " " if mostly and shown.true_colours and choose.number() < 0.2 else ""


def place(x: float, y: float) -> str:
    """A position in the image in words."""
    if max(abs(x), abs(y)) < 0.2:
        return "in the middle"
    if abs(x) > abs(y):
        return "on the left" if x < 0 else "on the right"
    return "at the top" if y < 0 else "at the bottom"


def _facts(choose: Chooser, vocabulary: Vocabulary, shown: Shown) -> str:
    colour, pattern = list(COLOURS)[shown.ground], GROUNDS[shown.pattern]
    found = []
    if shown.other >= 0 and choose.number() < 0.15:
        found.append("with a " + vocabulary.concepts[shown.other].name)
    if choose.number() < 0.12:
        found.append(place(shown.x, shown.y))
    if choose.number() < 0.2:
        found.append(choose.pick((f"on {colour}", f"on a {pattern} ground", f"on a {pattern} {colour} ground")))
    if choose.number() < 0.2:
        found.append(next(words for limit, words in LIGHTS if shown.light < limit))
    return "".join(" " + words for words in found if words)


def corpus(vocabulary: Vocabulary) -> list[str]:
    """The tokenizer's corpus: every word that captions, names, attributes and conditions use."""
    words: list[str] = [*STARTS, *(style for own in STYLES.values() for style in own), *COLOURS, *GROUNDS]
    words += [words for _, words in (*SIZES, *LIGHTS)]
    words += ["on a ground, which has is and with in at the top bottom left right middle thing . ,"]
    words += ["something nothing photo objects object image scene sky summer winter season spring autumn day night"]
    words += [*vocabulary.attributes, *(word for one in vocabulary.concepts for word in one.keywords)]
    return words * 4 + [concept.name for concept in vocabulary.concepts] * 4
