"""Attribute phrases in a normal form, so that classes can share them; leaked class names and near-duplicates.

The normal form completes "which has ..." or begins with a word that `data.labels.clause` knows: "four legs",
"has a tail", "a vehicle", "used for writing", "can fly", "often worn", "is round".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fedprompt.data.labels import readable_name
from fedprompt.descriptions.parsing import clean, excerpt, is_foreign, is_refusal

LONGEST = 80  # characters; "typically found in large bodies of water like lakes and rivers" has 63
MOST_WORDS = 12
_NUMBERS = {"2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "8": "eight"}
_SUBJECT = re.compile(r"^(?:it|they|this|these|which|that|the \w+|an? \w+) (?=(?:has|have|is|are|can|may)\b)")
_DONE = ("made", "worn", "shaped", "covered", "found", "held", "kept", "seen", "carried", "filled", "painted", "driven")
_PROPERTY = re.compile(
    r"colou?r(?:ed|ing|ful)?|shape|size|appearance|texture|material|design|style|look|pattern|form|visual|attribute"
    r"|feature|unique|distinctive|function|functionality|purpose|detail|overall|general|specific|sensory|type"
)
_SMALL = re.compile(r"an?|the|of|in|on|for|with|to|and|or|its|is|are|has|have|can|may|often|typically")


def normalise(phrase: str) -> str:
    """The phrase in normal form, lower case as CLIP's tokenizer has it; empty if it is too long or nothing is left."""
    text = _SUBJECT.sub("", _label(clean(phrase, 3 * LONGEST)).lower())
    for old, new in (
        (r"^(?:have|having|with|possess\w*|features?|contains?|includes?|shows?) ", "has "),
        (r"^are ", "is "),
        (r"^(?:usually|commonly|generally|normally) ", "typically "),
        (r"^(?:is|has) used ", "used "),
        (r"^is (?=an? )", ""),
        (rf"^(?={'|'.join(_DONE)}\b)", "is "),
        (r"^has (?!an? )(?:the )?", ""),
        (r"^the ", ""),
    ):
        text = re.sub(old, new, text)
    text = " ".join(_NUMBERS.get(word, word) for word in text.split())
    return text if len(text) <= LONGEST and len(text.split()) <= MOST_WORDS else ""


def _label(text: str) -> str:
    """The useful part of "name: text": "tail" of "Tail: long, which it wags", "brown" of "colour: brown, mostly"."""
    name, colon, said = text.partition(": ")
    if not colon:
        return text
    brief = said.split(",")[0]
    if re.search(r"\ban? \w+$", brief):  # "a small, round body" is one phrase
        brief = said
    return brief if names_no_value(name) or len(said.split()) <= 3 else name


def stem(word: str) -> str:
    """A word without its plural ending, good enough for comparisons ("buses" and "bus" agree; "horse" loses its e)."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    return word[:-1] if word.endswith("se") else word


def stems(text: str) -> tuple[str, ...]:
    """The stems of a text's words, in order; "4" and "four" are the same word."""
    return tuple(stem(_NUMBERS.get(word, word)) for word in re.findall(r"[^\W_]+", text.lower()))


def content_stems(phrase: str) -> frozenset[str]:
    """The stems of a phrase's content words, without articles, prepositions and auxiliaries."""
    found = frozenset(stems(phrase))
    return frozenset(word for word in found if not _SMALL.fullmatch(word)) or found


def names_no_value(phrase: str) -> bool:
    """Whether a phrase names properties without a value: "a colour", "size and shape"."""
    return all(_PROPERTY.fullmatch(word) for word in content_stems(phrase))


def names_class(phrase: str, name: str) -> bool:
    """Whether a phrase contains a class name as whole words, singular or plural: "dogs run" names "dog"."""
    inside, wanted = stems(phrase), stems(readable_name(name))
    width = len(wanted)
    return any(inside[start : start + width] == wanted for start in range(len(inside) - width + 1)) if width else False


def near_duplicates(one: str, other: str) -> bool:
    """Whether two phrases share at least three quarters of their content words."""
    left, right = content_stems(one), content_stems(other)
    return 4 * len(left & right) >= 3 * len(left | right)


def rejection_reason(phrase: str, name: str) -> str:
    """Why a phrase in normal form is no attribute of the class; empty if it is one."""
    if not phrase:
        return "is empty or too long"
    if is_refusal(phrase):
        return "is a refusal"
    if is_foreign(phrase):
        return "is not English"
    if names_no_value(phrase):
        return "names a property and not its value"
    if names_class(phrase, name):
        return "contains the class name"
    said = content_stems(phrase) - frozenset(_NUMBERS.values())
    return "" if any(re.search(r"[^\W\d_]{2}", word) for word in said) else "has no word in it"


def select_phrases(found: Iterable[str], name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The usable phrases in normal form without near-duplicates, and the reason for each rejected one."""
    kept: list[str] = []
    rejections: list[str] = []
    for raw in found:
        phrase = normalise(raw)
        reason = rejection_reason(phrase, name) or next(
            (f"repeats {other!r}" for other in kept if near_duplicates(phrase, other)), ""
        )
        if reason:
            rejections.append(f"{excerpt(raw, LONGEST)!r} {reason}")
        else:
            kept.append(phrase)
    return tuple(kept), tuple(dict.fromkeys(rejections))


def unify(attributes: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Give phrases with the same content words one wording in all classes: the most frequent one.

    Ties go to the shorter, then to the alphabetically first, so the order of the classes does not matter.
    """
    votes = Counter(phrase for phrases in attributes.values() for phrase in phrases)
    best: dict[frozenset[str], str] = {}
    for phrase in sorted(votes, key=lambda phrase: (-votes[phrase], len(phrase), phrase)):
        best.setdefault(content_stems(phrase), phrase)
    return {
        name: tuple(dict.fromkeys(best[content_stems(phrase)] for phrase in phrases))
        for name, phrases in attributes.items()
    }
