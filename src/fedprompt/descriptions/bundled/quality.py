"""Quality of descriptions: rules for every phrase, and figures per file on sharing, length and reading level."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedprompt.data.descriptions import Descriptions
from fedprompt.data.labels import readable_name, with_attribute
from fedprompt.data.published.catalog import catalog, descriptions_of
from fedprompt.descriptions.bundled import files
from fedprompt.descriptions.bundled.lookup import normal_form
from fedprompt.descriptions.phrases import content_stems, near_duplicates, stems
from fedprompt.descriptions.review import Flag, class_flags, condition_flags, flag_twins

LEAST_SHARED, MOST_SHARED = 0.4, 0.9  # of attribute occurrences, those whose phrase another class has too
MOST_WORDS = 8  # in a phrase
HIGHEST_GRADE = 8.0
CONTEXT = 77  # tokens of CLIP's text tower, of which two mark start and end
LETTERS_PER_TOKEN = 3  # CLIP's tokenizer needs fewer tokens than this for every sentence of the bundled files
TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class Quality:
    """The figures of one descriptions file, and every place where it breaks a rule."""

    classes: int
    phrases: int  # occurrences, all classes together
    distinct: int
    shared: float  # share of occurrences whose phrase is used by two classes or more
    words: float  # per phrase
    grade: float
    tokens: int  # of the longest sentence with any template, at most
    flags: tuple[Flag, ...]


def measure(descriptions: Descriptions, *, templates: Sequence[str] = (), excepted: Sequence[str] = ()) -> Quality:
    """The quality of descriptions; phrases may contain the class names in `excepted`, in another meaning."""
    attributes = descriptions.attributes
    phrases = [phrase for own in attributes.values() for phrase in own]
    shared = share_used_twice(attributes)
    tokens = max(_sentence_lengths(attributes, templates or (TEMPLATE,)), default=0)
    return Quality(
        classes=len(attributes),
        phrases=len(phrases),
        distinct=len(set(phrases)),
        shared=shared,
        words=sum(len(phrase.split()) for phrase in phrases) / max(1, len(phrases)),
        grade=reading_grade(phrases),
        tokens=tokens,
        flags=(*_flags(descriptions, excepted), *_flag_figures(shared, reading_grade(phrases), tokens)),
    )


def measure_bundled(name: str) -> Quality:
    """The quality of a bundled file with the templates of all data sets that use it; UserError if there is none."""
    excepted = files.rules().exceptions.get(name, {})
    return measure(files.read(name), templates=templates_of(name), excepted=tuple(excepted))


def templates_of(name: str) -> tuple[str, ...]:
    """Every template of the data sets that use a bundled file, those of prompt ensembles and domains included."""
    users = [about for own, about in catalog().items() if name in descriptions_of(own)]
    found = (text for about in users for text in (about.template, *about.ensemble, *about.templates.values()))
    return tuple(dict.fromkeys(found))


def share_used_twice(attributes: Mapping[str, Sequence[str]]) -> float:
    """Of all attribute occurrences, the share whose phrase at least two classes have; 0 without any."""
    owners: dict[str, int] = defaultdict(int)
    for own in attributes.values():
        for phrase in set(own):
            owners[phrase] += 1
    uses = [owners[phrase] for own in attributes.values() for phrase in own]
    return sum(count > 1 for count in uses) / max(1, len(uses))


def reading_grade(phrases: Sequence[str]) -> float:
    """The Flesch-Kincaid grade of phrases as sentences; a run of vowels is a syllable, a final silent e is none."""
    words = [word for phrase in phrases for word in re.findall(r"[^\W\d_]+", phrase.lower())]
    syllables = sum(max(1, len(re.findall(r"[aeiouy]+", re.sub(r"(?<=[^aeiouyl])e$", "", word)))) for word in words)
    if not words:
        return 0.0
    return 0.39 * len(words) / len(phrases) + 11.8 * syllables / len(words) - 15.59


def token_bound(text: str) -> int:
    """An upper bound on CLIP's tokens: one per three letters of a word, per digit and per sign, and two marks."""
    parts = re.findall(r"[^\W\d_]+|\S", text)
    return 2 + sum(-(-len(part) // LETTERS_PER_TOKEN) for part in parts)


def _sentence_lengths(attributes: Mapping[str, Sequence[str]], templates: Sequence[str]) -> Iterator[int]:
    """Per class and template a bound on the tokens of its longest sentence."""
    for name, own in attributes.items():
        for template in templates:
            text = template.replace("{}", readable_name(name))
            yield max((token_bound(with_attribute(text, phrase)) for phrase in own), default=token_bound(text))


def _flag_figures(shared: float, grade: float, tokens: int) -> Iterator[Flag]:
    if not LEAST_SHARED <= shared <= MOST_SHARED:
        yield Flag("all", f"{shared:.0%} of the attributes are shared, not {LEAST_SHARED:.0%} to {MOST_SHARED:.0%}")
    if grade > HIGHEST_GRADE:
        yield Flag("all", f"the reading grade is {grade:.1f}, above {HIGHEST_GRADE:g}")
    if tokens > CONTEXT:
        yield Flag("all", f"a sentence may have {tokens} tokens, more than {CONTEXT}")


def _flags(descriptions: Descriptions, excepted: Sequence[str]) -> Iterator[Flag]:
    names = tuple(descriptions.attributes)
    yield from class_flags(descriptions, names, excepted=excepted)
    yield from flag_twins(descriptions)
    yield from condition_flags(descriptions, names)
    yield from _flag_other_names(descriptions.attributes, excepted)
    yield from _flag_wordings(descriptions.attributes)
    yield from _flag_synonyms(descriptions)
    for name, own in descriptions.attributes.items():
        for phrase in own:
            if problem := _grammar(phrase):
                yield Flag(name, f"{phrase!r} {problem}")


def _grammar(phrase: str) -> str:
    """Why a phrase does not complete "which has ..." or begin with "is", "has", "used" or "can"; empty if it does."""
    first = phrase.split()[0]
    if first in {"a", "an", "the", "often", "typically", "usually", "with", "are"}:
        return f"begins with {first!r}"
    if phrase != phrase.lower() or phrase.endswith("."):
        return "has capitals or a full stop"
    return f"has more than {MOST_WORDS} words" if len(phrase.split()) > MOST_WORDS else ""


def _flag_other_names(attributes: Mapping[str, Sequence[str]], excepted: Sequence[str]) -> Iterator[Flag]:
    """Phrases that contain the name of another class as whole words, singular or plural."""
    known = {stems(readable_name(name)): name for name in attributes if name not in excepted}
    for name, own in attributes.items():
        for phrase in own:
            others = dict.fromkeys(known[span] for span in _spans(stems(phrase)) if span in known)
            yield from (Flag(name, f"names the class {other!r}: {phrase!r}") for other in others if other != name)


def _spans(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every run of consecutive words."""
    yield from (tuple(words[start:end]) for end in range(len(words) + 1) for start in range(end))


def _flag_synonyms(descriptions: Descriptions) -> Iterator[Flag]:
    """Synonyms of classes that do not exist, that are names of another class, or that two classes have."""
    owners = {normal_form(name): name for name in descriptions.attributes}
    for name, synonyms in descriptions.synonyms.items():
        if name not in descriptions.attributes:
            yield Flag(name, "has synonyms and no attributes")
        for synonym in synonyms:
            if (owner := owners.setdefault(normal_form(synonym), name)) != name:
                yield Flag(name, f"has the synonym {synonym!r}, which is {owner!r} too")


def _flag_wordings(attributes: Mapping[str, Sequence[str]]) -> Iterator[Flag]:
    """Phrases of different classes that differ by articles, plurals or word order only, and so are not shared."""
    wordings: dict[frozenset[str], str] = {}
    for name, own in attributes.items():
        for phrase in own:
            first = wordings.setdefault(content_stems(phrase), phrase)
            if first != phrase and near_duplicates(first, phrase):
                yield Flag(name, f"{phrase!r} is worded {first!r} elsewhere")
