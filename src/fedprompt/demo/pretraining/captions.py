"""Captions for pretraining: many forms, with partial and generic ones too, as on the web."""

from __future__ import annotations

from collections.abc import Sequence

from fedprompt.data.labels import relative_clause
from fedprompt.demo.concepts import load_concepts
from fedprompt.demo.drawing import Draws

# A token whose embedding pretraining replaces by a random vector, so that the model tolerates learned contexts.
WILDCARD = "*"
EMPTY = "an empty background."

FORMS = (
    "a photo of a {x}.",
    "a photo of a {x}.",
    "a photo of a {x}.",
    "a photo of the {x}.",
    "a picture of a {x}.",
    "a drawing of a {x}.",
    "a sketch of a {x}.",
    "an icon of a {x}.",
    "an image of one {x}.",
    "there is a {x} here.",
    "this is a {x}.",
    "a {x}.",
    "a {x}",
    "{x}.",
    "{x}",
    "a good view of a {x}.",
    "a blurry photo of a {x}.",
)
SIZES = ("tiny", "small", "medium", "large", "huge")
LIGHTS = ("dark", "dim", "bright")


def concept_text(draws: Draws, concept: str) -> str:
    """A sentence that names a concept, without anything specific to one image."""
    draw = draws.uniform()
    if draw < 0.3:
        context = " ".join([WILDCARD] * (1 + int(draws.uniform(0, 6))))
        return context + draws.pick((" {x}.", " {x}", " a {x}.")).format(x=concept)
    if draw < 0.45:
        own = load_concepts().attributes_of(concept)
        return f"a photo of a {concept}, {relative_clause(draws.pick(own))}." if own else f"a photo of a {concept}."
    return draws.pick(FORMS).format(x=concept)


def attribute_text(draws: Draws, attribute: str) -> str:
    """A sentence or a bare phrase about an attribute, without its concept."""
    draw = draws.uniform()
    if draw < 0.5:
        return attribute
    if draw < 0.6:
        return f"{WILDCARD} {WILDCARD} {attribute}."
    form = draws.pick(("something {}", "a photo of something {}.", "a thing {}.", "an object {}"))
    return form.format(relative_clause(attribute))


def full_caption(draws: Draws, phrases: Sequence[str], facts: Sequence[str]) -> str:
    """A caption of an image from phrases about its objects and facts about the whole, some of them left out."""
    start = draws.pick(("a photo of ", "", "a drawing of ", "an image with ", "there is "))
    text = start + " and ".join(phrases)
    kept = [fact for fact in facts if draws.uniform() < 0.5]
    return " ".join([text, *kept]) + "."


def noun_phrase(draws: Draws, concept: str, colour: str, size: float) -> str:
    """ "a large red car", "a car", or "something with wheels"."""
    words = []
    if draws.uniform() < 0.25:
        words.append(SIZES[min(4, int((size - 0.1) / 0.18))])
    if draws.uniform() < 0.4:
        words.append(colour)
    own = load_concepts().attributes_of(concept)
    if own and draws.uniform() < 0.15:
        return " ".join(["a", *words, "thing", relative_clause(draws.pick(own))])
    if own and draws.uniform() < 0.1:
        return " ".join(["a", *words, concept, relative_clause(draws.pick(own))])
    return " ".join(["a", *words, concept])


def where(x: float, y: float) -> str:
    """A position in the image in words."""
    if abs(x - 0.5) < 0.12 and abs(y - 0.5) < 0.12:
        return "in the middle"
    if abs(x - 0.5) > abs(y - 0.5):
        return "on the left" if x < 0.5 else "on the right"
    return "at the top" if y < 0.5 else "at the bottom"


def relation(first: tuple[float, float], second: tuple[float, float]) -> str:
    """The position of the first object relative to the second."""
    across, down = first[0] - second[0], first[1] - second[1]
    if abs(across) > abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def corpus() -> list[str]:
    """The tokenizer's corpus: every word of the data sets, names often enough to become single tokens."""
    world = load_concepts()
    words = [*FORMS, *SIZES, *LIGHTS, *world.colours, *world.contexts, *world.conditions, *world.attributes, EMPTY]
    words += ["something which is which has thing object with above below left right of on in the at top bottom middle"]
    words += ["there is and one two three scene photo drawing image light a an background dark bright dim"]
    return words * 4 + list(world.concepts) * 8
