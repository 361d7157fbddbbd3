"""The class descriptions of a trial: the data set's own, those of a file, none, or shuffled ones as a control."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from fedprompt.config.recipe_tables import DescriptionsTable
from fedprompt.data.dataset import Dataset
from fedprompt.data.descriptions import read_conditions, read_descriptions
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError, did_you_mean
from fedprompt.seeding import numpy_stream

NONE = "none"
Attributes = Mapping[str, tuple[str, ...]]


def find_descriptions(name: str) -> Path:
    """A descriptions file: a path, or the name of one that is included in the package; UserError if there is none."""
    own = Path(str(files("fedprompt") / "demo" / "descriptions"))
    known = {path.stem: path for path in sorted(own.glob("*.json"))}
    if name in known and not Path(name).is_file():
        return known[name]
    if not Path(name).is_file():
        raise UserError(
            f"There is no descriptions file {name!r}{did_you_mean(name, known)} "
            f"(a JSON file, or one of {', '.join(known)})."
        )
    return Path(name)


def with_absolute_paths(table: DescriptionsTable) -> DescriptionsTable:
    """The table with absolute paths: a run may be resumed from another folder. UserError for a missing file."""
    names = {"attributes": table.attributes, "conditions": table.conditions}
    paths = {
        key: str(find_descriptions(name).resolve())
        for key, name in names.items()
        if isinstance(name, str) and name not in ("", NONE)
    }
    return table.model_copy(update=paths)


def with_descriptions(space: LabelSpace, table: DescriptionsTable, *, seed: int) -> LabelSpace:
    """The label space with the descriptions that the table names; `seed` is that of the shuffled control.

    Raises UserError if a file lacks a class or has no conditions.
    """
    attributes = _attributes(space, table.attributes)
    if table.shuffled:
        attributes = shuffle_attributes(attributes, space.names, seed=seed)
    return replace(space, attributes=attributes, conditions=_conditions(space, table.conditions))


def _attributes(space: LabelSpace, name: str) -> Attributes:
    if not name:
        return space.attributes
    if name == NONE:
        return {}
    found = read_descriptions(find_descriptions(name)).attributes
    missing = [one for one in space.names if one not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"The descriptions file {name} has no attributes for the class {missing[0]!r}"
            f"{did_you_mean(missing[0], found)}{more}; add them, or an empty list for a class that should have none."
        )
    return {one: found[one] for one in space.names}


def _conditions(space: LabelSpace, named: str | tuple[str, ...]) -> tuple[str, ...]:
    if not named:
        return space.conditions
    if isinstance(named, tuple):
        return named
    if named == NONE:
        return ()
    return read_conditions(find_descriptions(named))


def shuffle_attributes(attributes: Attributes, names: tuple[str, ...], *, seed: int) -> Attributes:
    """Give every class the attributes of another class, as a control for whether their content matters."""
    owners = [name for name in names if name in attributes]
    if len(owners) < 2:
        raise UserError("Attributes can be shuffled between two classes or more; the data set has fewer with any.")
    order = [owners[place] for place in numpy_stream(seed, "shuffled words").permutation(len(owners))]
    # Along one cycle no class keeps its own.
    return {name: attributes[order[(place + 1) % len(order)]] for place, name in enumerate(order)}


def text_fingerprint(dataset: Dataset) -> str:
    """A hash of all texts of a data set: class names, templates, attributes and conditions."""
    spaces = [part.space for part in dataset.parts]
    parts = [one for s in spaces for one in (s.names, s.template, sorted(s.attributes.items()), s.conditions)]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:32]
