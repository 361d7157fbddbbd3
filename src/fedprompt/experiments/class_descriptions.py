"""The class descriptions of a trial: the data set's own, bundled ones, a file's, none, shuffled or foreign ones."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.resources import files
from itertools import cycle
from pathlib import Path

from fedprompt.clip.model import Clip
from fedprompt.config.recipe_tables import DescriptionsTable
from fedprompt.data.dataset import Dataset
from fedprompt.data.descriptions import read_conditions, read_descriptions
from fedprompt.data.labels import LabelSpace
from fedprompt.descriptions import bundled
from fedprompt.descriptions.phrases import content_stems
from fedprompt.errors import UserError, did_you_mean, plural, series
from fedprompt.file_system import is_file, require_file
from fedprompt.methods.base import Reads
from fedprompt.seeding import numpy_stream
from fedprompt.text_files import json_text

NONE = "none"
BUNDLED = "bundled"
MOST_NAMED = 5  # missing classes in one message
LONGEST_SHOWN = 60  # characters of a class name or text in a message
Attributes = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class ChosenDescriptions:
    """Attributes and conditions for the classes of one data set.

    `files` has the number of classes whose attributes are from each bundled file, `missing` the classes that no bundled
    file has, and `conditions_file` the bundled file with the conditions.
    """

    attributes: Attributes
    conditions: tuple[str, ...] = ()
    files: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    conditions_file: str = ""


def included_files() -> dict[str, Path]:
    """The descriptions files that come with the package, by name: those of the demo, then the bundled ones."""
    demo = Path(str(files("fedprompt") / "demo" / "descriptions"))
    own = {path.stem: path for path in sorted(demo.glob("*.json"))}
    return own | {name: bundled.path(name) for name in bundled.names()}


def find_descriptions(name: str, words: Sequence[str] = ()) -> Path:
    """A descriptions file: a path, or the name of one that is included in the package; UserError if there is none.

    `words` are what may stand in its place, which the message names too.
    """
    known, path = included_files(), Path(name)
    if name in known and not is_file(path):
        return known[name]
    if os.path.lexists(path):
        require_file(path, "give a descriptions file, which is JSON")
    elif not is_file(path):
        accepted = (*words, *known)
        raise UserError(
            f"There is no descriptions file {name!r}{did_you_mean(name, accepted)} "
            f"(a JSON file, or one of {', '.join(accepted)})."
        )
    return path


def with_absolute_paths(table: DescriptionsTable) -> DescriptionsTable:
    """The table with absolute paths: a run may be resumed from another folder. UserError for a missing file."""
    named = {"attributes": table.attributes, "conditions": table.conditions, "foreign": table.foreign}
    words = {"attributes": (BUNDLED, NONE), "conditions": (NONE,), "foreign": (BUNDLED,)}
    paths = {
        key: _absolute(name, words[key])
        for key, name in named.items()
        if isinstance(name, str) and name and name not in words[key]
    }
    return table.model_copy(update=paths)


def _absolute(name: str, words: Sequence[str]) -> str:
    path = find_descriptions(name, words)
    return str(path.resolve()) if is_file(Path(name)) else name


def with_descriptions(space: LabelSpace, table: DescriptionsTable, *, seed: int, reads: Reads = ()) -> LabelSpace:
    """The label space with the descriptions that the table names; `seed` is that of the controls.

    `reads` is what the method reads: bundled descriptions stand in for it where the table names none and the data set
    has none. Raises UserError if a file lacks a class or has no conditions.
    """
    chosen = choose(space, table, reads)
    attributes = chosen.attributes
    if table.shuffled:
        attributes = shuffle_attributes(attributes, space.names, seed=seed)
    if table.foreign:
        attributes = foreign_attributes(attributes, space.names, _foreign_phrases(table.foreign), seed=seed)
    return replace(space, attributes=attributes, conditions=chosen.conditions)


def choose(space: LabelSpace, table: DescriptionsTable, reads: Reads) -> ChosenDescriptions:
    """What the table names for the classes of one data set; UserError if a file lacks a class or has no conditions."""
    chosen = _choose_attributes(space, table, wanted="attributes" in reads or table.shuffled or bool(table.foreign))
    conditions, file = _choose_conditions(space, table.conditions, wanted="conditions" in reads)
    return replace(chosen, conditions=conditions, conditions_file=file)


def _choose_attributes(space: LabelSpace, table: DescriptionsTable, *, wanted: bool) -> ChosenDescriptions:
    name = table.attributes
    if name == NONE:
        return ChosenDescriptions({})
    if not name:
        if space.attributes or not wanted or not space.descriptions:
            return ChosenDescriptions(space.attributes)
        return _bundled_attributes(space, space.descriptions, missing="empty")
    if name == BUNDLED:
        others = (file for file in bundled.names() if file not in space.descriptions)
        return _bundled_attributes(space, (*space.descriptions, *others), missing=table.missing)
    if name in bundled.names() and not is_file(Path(name)):
        return _bundled_attributes(space, (name,), missing=table.missing)
    found = read_descriptions(find_descriptions(name)).attributes
    missing = [one for one in space.names if one not in found]
    if missing and table.missing == "refuse":
        raise _lacking(f"The descriptions file {name} has", missing, partial(did_you_mean, known=found))
    return ChosenDescriptions({one: found[one] for one in space.names if one in found})


def _bundled_attributes(space: LabelSpace, among: Sequence[str], *, missing: str) -> ChosenDescriptions:
    found = bundled.find(space.names, among)
    if found.missing and missing == "refuse":
        suggest = partial(bundled.suggestion, among=among)
        if len(among) > 1:
            raise _lacking("The bundled descriptions have", found.missing, suggest)
        remedy = f'set descriptions.attributes = "{BUNDLED}" to search the others too'
        raise _lacking(f"The bundled descriptions {among[0]} have", found.missing, suggest, remedy)
    return ChosenDescriptions(found.attributes, files=found.counts, missing=found.missing)


def _lacking(what: str, missing: Sequence[str], suggest: Callable[[str], str], remedy: str = "") -> UserError:
    hints = {name: suggest(name).removeprefix("; ") for name in missing[:MOST_NAMED]}
    named = ", ".join(f"{name!r} ({hint})" if hint else repr(name) for name, hint in hints.items())
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    classes = "class" if len(missing) == 1 else "classes"
    return UserError(
        f"{what} no attributes for the {classes} {named}{more}; {remedy}{', ' if remedy else ''}write them into "
        'a descriptions file, or set descriptions.missing = "empty" to go without.'
    )


def _choose_conditions(space: LabelSpace, named: str | tuple[str, ...], *, wanted: bool) -> tuple[tuple[str, ...], str]:
    """The conditions, and the bundled file that they are from."""
    if named == NONE:
        return (), ""
    if isinstance(named, tuple) and named:
        return named, ""
    if named and isinstance(named, str):
        included = named in bundled.names() and not is_file(Path(named))
        return read_conditions(find_descriptions(named)), named if included else ""
    if not space.conditions and wanted:
        for file in bundled.ranked(space.names, space.descriptions):
            if conditions := bundled.read(file).conditions:
                return conditions, file
    return space.conditions, ""


def describe_origin(dataset: Dataset, table: DescriptionsTable, reads: Reads) -> str:
    """Which bundled descriptions a trial uses, in a phrase for its record; empty if none."""
    chosen = [choose(part.space, table, reads) for part in dataset.parts]
    counts = sum((Counter(one.files) for one in chosen), Counter())
    conditions = dict.fromkeys(one.conditions_file for one in chosen if one.conditions_file)
    missing = [name for one in chosen for name in one.missing]
    said = []
    if counts:
        said.append("attributes of " + ", ".join(f"{file} ({_classes(count)})" for file, count in counts.items()))
        same = (names for one in chosen for names in _with_equal_attributes(one.attributes))
        said += [f"the same attributes for {series(map(repr, names))}" for names in same]
    if missing:
        said.append(f"no attributes for {_classes(len(missing))}, for example {missing[0]!r}")
    if conditions:
        said.append(f"conditions of {', '.join(conditions)}")
    return "; ".join(said)


def _classes(count: int) -> str:
    return f"{count} class" if count == 1 else f"{count} classes"


def _with_equal_attributes(attributes: Attributes) -> list[list[str]]:
    """Groups of classes with the same list, as "sofa" and "couch" have."""
    owners: dict[tuple[str, ...], list[str]] = {}
    for name, own in attributes.items():
        owners.setdefault(own, []).append(name)
    return [names for names in owners.values() if len(names) > 1]


def shuffle_attributes(attributes: Attributes, names: tuple[str, ...], *, seed: int) -> Attributes:
    """Give every class the attributes of another class, as a control for whether their content matters."""
    owners = [name for name in names if name in attributes]
    if len(owners) < 2:
        raise UserError("Attributes can be shuffled between two classes or more; the data set has fewer with any.")
    order = [owners[place] for place in numpy_stream(seed, "shuffled words").permutation(len(owners))]
    # Along one cycle no class keeps its own.
    return {name: attributes[order[(place + 1) % len(order)]] for place, name in enumerate(order)}


def foreign_attributes(
    attributes: Attributes, names: tuple[str, ...], foreign: Iterable[Sequence[str]], *, seed: int
) -> Attributes:
    """Give every class as many attributes of foreign classes as it has of its own, as a control that shuffling is not.

    Shuffling keeps the set of all attributes; here no attribute has a content word that is in the data set's attributes
    or class names. Foreign classes are taken in a drawn order, again from the first one if they are too few. Raises
    UserError if they have too few such attributes for the class with the most.
    """
    known = frozenset().union(*map(content_stems, (*names, *(one for own in attributes.values() for one in own))))
    pools = [[one for one in phrases if not content_stems(one) & known] for phrases in foreign]
    drawn = [one for place in numpy_stream(seed, "foreign words").permutation(len(pools)) for one in pools[place]]
    most = max(map(len, attributes.values()), default=0)
    if not most or len(set(drawn)) < most:
        raise UserError(
            f"descriptions.foreign has {len(set(drawn))} attributes without a word of the data set's own, and a class "
            f'has up to {most} of these; name a descriptions file of other things, or "{BUNDLED}".'
        )
    dealt = cycle(drawn)
    found: dict[str, tuple[str, ...]] = {}
    for name in (name for name in names if name in attributes):
        own: dict[str, None] = {}
        while len(own) < len(attributes[name]):
            own[next(dealt)] = None
        found[name] = tuple(own)
    return found


def _foreign_phrases(named: str) -> list[tuple[str, ...]]:
    """The attributes of each class of a descriptions file, or of all bundled ones."""
    every = map(bundled.read, bundled.names()) if named == BUNDLED else [read_descriptions(find_descriptions(named))]
    return [phrases for file in every for phrases in file.attributes.values()]


def check_distinct_texts(clip: Clip, space: LabelSpace) -> None:
    """UserError if two classes have the same text in tokens: every method would score them alike.

    Texts are the same to a backbone if they differ in case or blanks alone, or after the tokens that it reads.
    """
    texts, first = space.texts(), dict[tuple[int, ...], int]()
    for label, row in enumerate(clip.tokenizer.sentences(texts)):
        other = first.setdefault(tuple(row), label)
        if other != label:
            longest = len(clip.tokenizer.pieces([texts[label]])[0]) + 2
            reason, fix = "it reads the same tokens", "rename one of the classes, or make them one"
            if longest > len(row):
                reason = f"it reads {len(row)} tokens, which are the same"
                fix = "shorten the names, or the template, so that what differs comes first"
            raise UserError(
                f"The classes {_cut(space.names[other])} and {_cut(space.names[label])} are one to the backbone: of "
                f"{_cut(texts[other])} and {_cut(texts[label])} {reason}; {fix}."
            )


def check_distinct_classes(clip: Clip, dataset: Dataset) -> None:
    """UserError if two classes of a data set have the same text in tokens, with any of its templates."""
    for space in templated_spaces(dataset):
        check_distinct_texts(clip, space)


def templated_spaces(dataset: Dataset) -> Iterator[LabelSpace]:
    """The label space of every part with each template that its domains have."""
    for part in dataset.parts:
        for template in dict.fromkeys((part.space.template, *part.templates.values())):
            yield replace(part.space, template=template)


def cut_texts(clip: Clip, spaces: Sequence[LabelSpace]) -> tuple[str, ...]:
    """A sentence on the classes whose texts have more tokens than the backbone reads; none if it reads all whole."""
    room = clip.tokenizer.room
    texts = {text: name for space in spaces for name, text in zip(space.names, space.texts(), strict=True)}
    lengths = zip(texts.values(), map(len, clip.tokenizer.pieces(list(texts))), strict=True)
    too_long = {name: length for name, length in lengths if length > room}
    if not too_long:
        return ()
    name, length = next(iter(too_long.items()))
    others = f" (and those of {plural(len(too_long) - 1, 'more class')})" if len(too_long) > 1 else ""
    return (
        f"The backbone reads the first {room} of the {length} tokens of the text of the class {_cut(name)}{others}; "
        "shorten the name, or the template.",
    )


def candidate_warnings(clip: Clip, space: LabelSpace) -> tuple[str, ...]:
    """What to know about the candidates of a prediction: texts that are cut, and one class alone."""
    alone = len(space) == 1 and space.kind == "single"
    said = f"The only class is {_cut(space.names[0])}, so every image has it with 100%; give two classes at least."
    return (*cut_texts(clip, [space]), *([said] if alone else []))


def _cut(text: str) -> str:
    """A text in quotes, cut to what a message can show."""
    return repr(text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}...")


def text_fingerprint(dataset: Dataset) -> str:
    """A hash of all texts of a data set: class names, templates, attributes and conditions."""
    spaces = [part.space for part in dataset.parts]
    parts = [one for s in spaces for one in (s.names, s.template, sorted(s.attributes.items()), s.conditions)]
    return hashlib.sha256(json_text(parts, ascii_only=False).encode()).hexdigest()[:32]
