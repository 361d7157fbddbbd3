"""Convert existing attribute files, such as FedMVP's, to descriptions: any order, spelling of names and nesting."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedprompt.data.descriptions import Descriptions, Provenance, fingerprint, load_description_json
from fedprompt.descriptions.phrases import normalise, select_phrases, stems
from fedprompt.errors import UserError, did_you_mean

_ARTICLE = frozenset(("a", "an", "the"))


@dataclass(frozen=True)
class Converted:
    """The descriptions, the classes without a key, the keys that are no class, and the phrases rejected per class."""

    descriptions: Descriptions
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    rejections: Mapping[str, tuple[str, ...]]


def convert(path: Path, names: Sequence[str]) -> Converted:
    """Read a JSON file of attributes for these classes; without names its own keys are the classes.

    Raises UserError when the file is no JSON object, or no key belongs to a class, or two keys belong to one.
    """
    table = _load(path)
    owners = _owners(table, names or tuple(table), path)
    attributes: dict[str, tuple[str, ...]] = {}
    rejections: dict[str, tuple[str, ...]] = {}
    for name in names or tuple(table):
        if name not in owners:
            continue
        phrases = list(_phrases(table[owners[name]]))
        kept, dropped = select_phrases(phrases, name)
        attributes[name] = kept
        if dropped:
            rejections[name] = dropped
    missing = tuple(name for name in names if name not in owners)
    used = set(owners.values())
    unused = tuple(f"{key!r}{did_you_mean(key, missing)}" for key in table if key not in used)
    written = {name: fingerprint(phrases) for name, phrases in attributes.items()}
    descriptions = Descriptions(attributes=attributes, provenance=Provenance(source=path.name, written=written))
    return Converted(descriptions, missing, unused, rejections)


def _load(path: Path) -> dict[str, object]:
    found = load_description_json(path)
    if isinstance(found, dict) and isinstance(found.get("attributes"), dict):
        found = found["attributes"]
    if isinstance(found, list):  # [{"name": "dog", "attributes": [...]}, ...]
        found = dict(pair for pair in map(_pair, found) if pair)
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} holds no object of class names and attributes; give FedMVP's kind of JSON.")
    return found


def _pair(entry: object) -> tuple[str, object] | None:
    if not isinstance(entry, dict):
        return None
    name = next((value for value in entry.values() if isinstance(value, str)), None)
    listed = next((value for value in entry.values() if isinstance(value, list | dict)), None)
    return (name, listed) if name and listed else None


def _owners(table: Mapping[str, object], names: Sequence[str], path: Path) -> dict[str, str]:
    """The table's key for each class: an exact match, else one that differs in case, hyphens, article or plural."""
    spellings: dict[tuple[str, ...], list[str]] = {}
    for key in table:
        spellings.setdefault(_spelling(key), []).append(key)
    owners: dict[str, str] = {}
    for name in names:
        keys = [name] if name in table else spellings.get(_spelling(name), [])
        if len(keys) > 1:
            raise UserError(f"{path} has several keys for the class {name!r}: {', '.join(keys)}; leave one.")
        if keys:
            owners[name] = keys[0]
    if not owners:
        raise UserError(f"No key of {path} is one of the classes; its first keys are {', '.join(list(table)[:5])}.")
    return owners


def _spelling(name: str) -> tuple[str, ...]:
    """A name in canonical form: "a photo of a Golden_Retriever." and "golden retrievers" are equal."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ")
    name = re.sub(r"^.*\b(?:photo|picture|image) of ", "", name.lower().strip())
    found = stems(name)
    return ("".join(found[1:] if found[:1] and found[0] in _ARTICLE else found),)


def _phrases(value: object) -> list[str]:
    """The phrases in a value: a list, a text with separators, an object of either, numbered or not."""
    if isinstance(value, str):
        return [part for part in re.split(r"[;\n]|(?<!\d),(?!\d)", value) if normalise(part)]
    if isinstance(value, Mapping):
        return [phrase for part in value.values() for phrase in _phrases(part)]
    if isinstance(value, list):
        return [phrase for part in value for phrase in (_phrases(part) if not isinstance(part, str) else [part])]
    return []
