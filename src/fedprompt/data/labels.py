"""What is to be recognised, in words: class names, their template, their attributes, the conditions they occur in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from fedprompt.errors import UserError

Kind = Literal["single", "multi"]
# Control signs, and those that turn text round: a name with them is not the one that is seen.
HIDDEN = re.compile("[\\x00-\\x1f\\x7f\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069]")


@dataclass(frozen=True)
class LabelSpace:
    """Candidate classes in label order; targets are positions in `names`.

    `attributes[name]` are short visual phrases ("four legs") that a language model or a person wrote for the class,
    `synonyms[name]` other words for it, and `prompts[name]` is a whole sentence where the template makes no sense ("a
    photo of no animal."). `ensemble` are further templates.
    """

    names: tuple[str, ...]
    kind: Kind = "single"
    template: str = "a photo of a {}."
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    conditions: tuple[str, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ensemble: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise UserError("A label space needs at least one class name; the list of names is empty.")
        name, count = Counter(self.names).most_common(1)[0]
        if count > 1:
            raise UserError(f"The class name {name!r} stands {count} times in the list; give each class its own.")
        if hidden := next(filter(HIDDEN.search, self.names), ""):
            raise UserError(f"The class name {hidden!r} has signs that cannot be seen; give the class another name.")
        for template in (self.template, *self.ensemble):
            if "{}" not in template:
                raise UserError(
                    f"The template {template!r} has no {{}} where the class name goes; write 'a photo of a {{}}.'."
                )

    def __len__(self) -> int:
        return len(self.names)

    def texts(self) -> tuple[str, ...]:
        """One sentence a class: the template with the name in it, or the class's own prompt."""
        return tuple(self.prompts.get(name) or self.template.replace("{}", words(name)) for name in self.names)

    def wordings(self) -> tuple[tuple[str, ...], ...]:
        """For each class its text and, with further templates and synonyms, every other way to say it."""
        return tuple((self.prompts[name],) if name in self.prompts else self._wordings(name) for name in self.names)

    def _wordings(self, name: str) -> tuple[str, ...]:
        said = (words(synonym) for synonym in (name, *self.synonyms.get(name, ())))
        return tuple(template.replace("{}", one) for one in said for template in (self.template, *self.ensemble))

    def sentences(self) -> tuple[tuple[str, ...], ...]:
        """For each class its attribute sentences, "a photo of a dog, which has legs."; its plain text if none."""
        return tuple(
            tuple(describe(text, phrase) for phrase in self.attributes.get(name, ())) or (text,)
            for name, text in zip(self.names, self.texts(), strict=True)
        )

    def take(self, classes: Sequence[int]) -> LabelSpace:
        """The sub-space of these class ids, in this order."""
        names = tuple(self.names[label] for label in classes)
        attributes = {name: tuple(self.attributes[name]) for name in names if name in self.attributes}
        prompts = {name: self.prompts[name] for name in names if name in self.prompts}
        synonyms = {name: self.synonyms[name] for name in names if name in self.synonyms}
        return replace(self, names=names, attributes=attributes, prompts=prompts, synonyms=synonyms)


def words(name: str) -> str:
    """A class name as a text tower should read it: underscores become spaces."""
    return name.replace("_", " ")


def clause(attribute: str) -> str:
    """Turn an attribute phrase into a relative clause (FedMVP's rule, with a test on whole words)."""
    # differs: the FedMVP release tests the first letter, which makes "arched windows" read "which is arched windows",
    # and knows no phrase that begins with "is"
    first = attribute.split(maxsplit=1)[0].lower() if attribute.strip() else ""
    if first in {"a", "an", "used"}:
        return f"which is {attribute}"
    if first in {"has", "is", "often", "typically", "may", "can"}:
        return f"which {attribute}"
    return f"which has {attribute}"


def describe(text: str, attribute: str) -> str:
    """Append an attribute clause to a class sentence: "a photo of a dog." -> "a photo of a dog, which has legs."."""
    return f"{text.rstrip('.')}, {clause(attribute)}."
