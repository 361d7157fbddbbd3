"""The generated part of docs/bundled_descriptions.md: the rules of bundled descriptions, and their quality by file."""

from __future__ import annotations

from collections.abc import Iterator

from fedprompt.data.published.catalog import catalog, descriptions_of
from fedprompt.descriptions import bundled
from fedprompt.descriptions.bundled import quality
from fedprompt.descriptions.bundled.files import rules
from tools.markdown import bullet, cell, wrapped


def rules_and_quality() -> str:
    """The rules as a list, their exceptions, and a row per file."""
    return f"{''.join(map(bullet, _rules()))}\n{_exceptions()}\n{_table()}"


def _rules() -> Iterator[str]:
    yield "every class has attributes, and no two classes have the same list;"
    yield "no phrase has the name of its own or of another class in it, singular or plural;"
    yield (
        f"of all attribute occurrences, {quality.LEAST_SHARED:.0%} to {quality.MOST_SHARED:.0%} have a phrase that "
        "another class has too, word for word;"
    )
    yield "no class has near-duplicates, and no two classes differ in a phrase by articles, plurals or word order only;"
    yield (
        'phrases complete "which has ..." or begin with "is", "has", "used" or "can", in lower case and at most '
        f"{quality.MOST_WORDS} words; "
        f"the reading grade (Flesch-Kincaid) is at most {quality.HIGHEST_GRADE:g};"
    )
    yield (
        f"sentences with any template of the data set have at most {quality.CONTEXT} tokens, by a bound of one token "
        f"per {quality.LETTERS_PER_TOKEN} letters, digit or sign, which is above what CLIP's tokenizer needs for every "
        "sentence of these files (31 at most);"
    )
    yield "synonyms belong to one class, and conditions name no class and do not overlap."


def _exceptions() -> str:
    said = [f"{name} in {file} ({reason})" for file, own in rules().exceptions.items() for name, reason in own.items()]
    return wrapped(f"Class names that phrases may contain in another meaning: {', '.join(said)}.") + "\n"


def _table() -> str:
    """A row per file with its figures, and the data sets that use it."""
    head = ("file", "data sets", "classes", "phrases", "different", "shared", "words", "grade", "tokens", "flags")
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 2)]
    for name in bundled.names():
        found = quality.measure_bundled(name)
        users = ", ".join(about.title for own, about in catalog().items() if name in descriptions_of(own))
        figures = (f"{found.classes:,}", f"{found.phrases:,}", f"{found.distinct:,}", f"{found.shared:.0%}")
        measured = (f"{found.words:.1f}", f"{found.grade:.1f}", f"{found.tokens}", f"{len(found.flags)}")
        lines.append(f"| {' | '.join((f'`{name}`', cell(users), *figures, *measured))} |")
    return "\n".join(lines) + "\n"
