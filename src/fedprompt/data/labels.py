"""Label spaces: candidate class names with prompt templates, attributes, synonyms and conditions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from fedprompt.errors import UserError, first_names, plural

Kind = Literal["single", "multi"]
# Control characters, line separators and what changes the direction of text: names with them do not read as they look.
INVISIBLE = re.compile("[\\x00-\\x1f\\x7f\\u0085\\u2028\\u2029\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069]")


LONGEST_TEXT = 1000  # characters of a class name, and of a template; text encoders read a few hundred
MOST_TEXT = 3_000_000  # characters of the texts of all classes; the 21,841 of ImageNet have less than a million


@dataclass(frozen=True)
class LabelSpace:
    """Candidate classes in label order; targets are positions in `names`.

    `attributes[name]` are short visual phrases ("four legs") that a language model or a person wrote for the class,
    `synonyms[name]` other names of it, and `prompts[name]` is a whole sentence where the template makes no sense ("a
    photo of no animal."). `ensemble` are further templates for prompt ensembling. `descriptions` names the bundled
    descriptions files of these classes, from which a method gets the attributes or conditions that the space lacks.
    """

    names: tuple[str, ...]
    kind: Kind = "single"
    template: str = "a photo of a {}."
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    conditions: tuple[str, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ensemble: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.names, str) or not all(isinstance(name, str) for name in self.names):
            raise UserError(f"The names of a label space are {self.names!r}; give a list of texts, a name per class.")
        if self.kind not in get_args(Kind):
            kinds = " or ".join(map(repr, get_args(Kind)))
            raise UserError(f"The kind of a label space is {self.kind!r}; give {kinds} (one label per image, or many).")
        if not self.names:
            raise UserError("A label space needs at least one class name; the list of names is empty.")
        name, count = Counter(self.names).most_common(1)[0]
        if count > 1:
            raise UserError(f"The class name {name!r} stands {count} times in the list; give each class its own.")
        if unreadable := next(filter(INVISIBLE.search, self.names), ""):
            raise UserError(f"The class name {unreadable!r} has invisible characters; give the class another name.")
        _check_lengths((self.template, *self.ensemble), self.names)
        for template in (self.template, *self.ensemble):
            if "{}" not in template:
                raise UserError(
                    f"The template {template!r} has no {{}} where the class name goes; write 'a photo of a {{}}.'."
                )

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        what = "label per image" if self.kind == "single" else "labels per image"
        extras = ("attributes", "conditions", "prompts", "synonyms", "ensemble")
        known = [f"{len(getattr(self, extra)):,} {extra}" for extra in extras if getattr(self, extra)]
        texts = ", ".join([f"template {self.template!r}", *known])
        many = "one" if self.kind == "single" else "many"
        return f"{plural(len(self), 'class')} ({first_names(self.names)}), {many} {what}, {texts}"

    def texts(self) -> tuple[str, ...]:
        """One sentence per class: the template with the name in it, or the class's own prompt."""
        return tuple(self.prompts.get(name) or self.template.replace("{}", readable_name(name)) for name in self.names)

    def ensemble_texts(self) -> tuple[tuple[str, ...], ...]:
        """For each class its prompt ensemble: every template with the name and with every synonym."""
        return tuple((self.prompts[name],) if name in self.prompts else self._ensemble(name) for name in self.names)

    def _ensemble(self, name: str) -> tuple[str, ...]:
        names = (readable_name(synonym) for synonym in (name, *self.synonyms.get(name, ())))
        return tuple(template.replace("{}", one) for one in names for template in (self.template, *self.ensemble))

    def attribute_texts(self) -> tuple[tuple[str, ...], ...]:
        """For each class its attribute sentences, "a photo of a dog, which has legs."; its plain text if none."""
        return tuple(
            tuple(with_attribute(text, phrase) for phrase in self.attributes.get(name, ())) or (text,)
            for name, text in zip(self.names, self.texts(), strict=True)
        )

    def take(self, classes: Sequence[int]) -> LabelSpace:
        """The sub-space of these class ids, in this order."""
        names = tuple(self.names[label] for label in classes)
        attributes = {name: tuple(self.attributes[name]) for name in names if name in self.attributes}
        prompts = {name: self.prompts[name] for name in names if name in self.prompts}
        synonyms = {name: self.synonyms[name] for name in names if name in self.synonyms}
        return replace(self, names=names, attributes=attributes, prompts=prompts, synonyms=synonyms)


def _check_lengths(templates: Sequence[str], names: Sequence[str]) -> None:
    """UserError if the texts of a template are longer than anything that a text encoder reads."""
    longest, letters = max(names, key=len), sum(map(len, names))
    if len(longest) > LONGEST_TEXT:
        raise UserError(f"The class name {longest[:40]!r}... has more than {LONGEST_TEXT:,} characters; shorten it.")
    for template in templates:
        places = max(template.count("{}"), 1)
        if len(template) + places * len(longest) > 2 * LONGEST_TEXT:
            raise UserError(
                f"The template {template[:40]!r}... with {longest[:40]!r} in it has more than {2 * LONGEST_TEXT:,} "
                "characters; shorten them."
            )
        if len(names) * len(template) + places * letters > MOST_TEXT:
            raise UserError(
                f"The template {template[:40]!r} gives {len(names):,} classes texts of more than {MOST_TEXT:,} "
                "characters together; shorten it."
            )


def readable_name(name: str) -> str:
    """A class name as the text encoder reads it: underscores become spaces."""
    return name.replace("_", " ")


def distinct_names(names: Sequence[str], origin: str) -> tuple[str, ...]:
    """The class names as a tuple; UserError if two are the same. `origin` says in messages where they are from."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{origin} has two classes called {repeated[0]!r}; rename one of them.")
    return tuple(names)


def relative_clause(attribute: str) -> str:
    """Turn an attribute phrase into a relative clause (FedMVP's rule, with a test on whole words)."""
    # differs: the FedMVP release tests the first letter, which makes "arched windows" read "which is arched windows",
    # and knows no phrase that begins with "is"
    first = attribute.split(maxsplit=1)[0].lower() if attribute.strip() else ""
    if first in {"a", "an", "used"}:
        return f"which is {attribute}"
    if first in {"has", "is", "often", "typically", "may", "can"}:
        return f"which {attribute}"
    return f"which has {attribute}"


def with_attribute(text: str, attribute: str) -> str:
    """Append an attribute clause to a class sentence: "a photo of a dog." -> "a photo of a dog, which has legs."."""
    # differs: the paper's files end such sentences without a full stop; here they end as the class sentence does. The
    # zero-shot accuracy of the embedded CLIP with and without it differs by less than half a point
    return f"{text.rstrip('.')}, {relative_clause(attribute)}."
