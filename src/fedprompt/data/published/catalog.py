"""Published data sets by name: a row of the table in `data/sets` says where it comes from and how it is read."""

from __future__ import annotations

import inspect
import json
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from fedprompt.data.dataset import Dataset
from fedprompt.data.decode import Bands, Window
from fedprompt.data.labels import LabelSpace, words
from fedprompt.data.published.index import indexed
from fedprompt.data.published.listing import Folder, Listing, absent
from fedprompt.data.sources.image_folder import FileSource, OnStep, first_half
from fedprompt.errors import UserError, did_you_mean

Options = Mapping[str, JsonValue]
Base = Literal["half", "all"]
SHOWN = 3  # lost files that a message names


class Hub(BaseModel):
    """How a copy on the Hugging Face Hub names what we name otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    caution: str
    splits: Mapping[str, str] = Field(default={}, description='its splits -> ours; "" where none is fixed')
    label: str = "label"
    order: Literal["given", "bytewise", "lower", "number"] = Field("given", description="our order of its class names")
    rename: Mapping[str, str] = {}
    year_first: bool = False
    run_together: bool = Field(default=False, description="ApplyLipstick stands for Apply_Lipstick")
    names: str = Field("", description="a column with words for labels that are none")
    clip: tuple[str, ...] = Field((), description="columns that name a video, of which the middle `frame` is taken")


class Row(BaseModel):
    """What the table says of one data set; `options` are those of its family's reader."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    family: str
    folders: tuple[str, ...] = Field(description="names its folder has in circulation, the usual one first")
    options: Options = {}
    kind: Literal["single", "multi"] = "single"
    template: str = "a photo of a {}."
    ensemble: tuple[str, ...] = ()
    templates: Mapping[str, str] = Field(default={}, description="a domain's own template")
    rename: Mapping[str, str] = Field(default={}, description="what the download calls a class -> what we call it")
    synonyms: Mapping[str, tuple[str, ...]] = {}
    prompts: Mapping[str, str] = Field(default={}, description="a class's whole sentence, where the template fails")
    classes: int = 0
    counts: Mapping[str, int] = Field(default={}, description="pictures by split, of the published version")
    halves: tuple[int, int] | None = Field(default=None, description="test pictures of base and of new classes")
    domains: Mapping[str, int] = Field(default={}, description="pictures by domain, of the published version")
    others: Mapping[str, int] = Field(default={}, description="totals of other versions in circulation, by their name")
    size: str
    origin: str
    licence: str
    tree: str
    traps: tuple[str, ...]
    sources: str = Field(description="where names, templates and counts come from")
    hub: Hub | None = None


@cache
def rows() -> Mapping[str, Row]:
    """The table: a file a data set, by name."""
    folder = files("fedprompt.data.published") / "sets"
    found = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return {
        file.name.removesuffix(".toml"): Row.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
        for file in found
    }


def row(name: str) -> Row:
    """One row; UserError for a name that the table does not have."""
    if name not in rows():
        raise UserError(f"There is no data set {name!r}{did_you_mean(name, rows())} (known: {', '.join(rows())}).")
    return rows()[name]


def folder_of(name: str, root: Path) -> Path | None:
    """The data set's folder below `root`, or `root` itself if it is called so; None if neither is there."""
    folders, root = row(name).folders, Path(root).expanduser()
    places = [*(root / choice for choice in folders), *([root] if root.name in folders else [])]
    return next((place for place in places if place.is_dir()), None)


def find_folder(name: str, root: Path) -> Path:
    """What `folder_of` finds; UserError saying where to get the data set."""
    about, root = row(name), Path(root).expanduser()
    if found := folder_of(name, root):
        return found
    raise UserError(
        f"{about.title} is not in {root} (looked for {', '.join(about.folders)}).\n"
        f"Get it: {about.origin}\nLicence: {about.licence}\nSize: {about.size}\nExpected tree:\n{about.tree.rstrip()}"
    )


def reader(about: Row) -> Callable[..., Listing]:
    """The function that reads a family; its keywords are the options."""
    function: Callable[..., Listing] = import_module(f"fedprompt.data.published.layouts.{about.family}").read
    return function


def list_set(
    name: str, root: Path, options: Options, *, skip_missing: bool = False, seed: int = 1, on_step: OnStep | None = None
) -> tuple[Path, Listing, str]:
    """Folder, listing and index fingerprint of a data set; UserError for a wrong option or a picture not there."""
    about, path = row(name), find_folder(name, root)
    read = reader(about)
    known = [*inspect.signature(read).parameters][1:]  # the first is where to read
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known)
            raise UserError(f"{about.title} has no option {option!r}{hint} (options: {', '.join(known)}).")
    chosen: dict[str, JsonValue] = {**about.options, **options}
    if "seed" in known:
        chosen.setdefault("seed", seed)

    def now() -> Listing:
        folder = Folder(path, on_step=on_step)
        listing = read(folder, **chosen)
        return listing if listing.walked else _present(folder, listing, skip=skip_missing)

    wanted = json.dumps([about.family, chosen, skip_missing], sort_keys=True)
    listing, fingerprint = indexed(path, wanted, now)
    return path, listing, fingerprint


def _present(folder: Folder, listing: Listing, *, skip: bool) -> Listing:
    lost = absent(folder, listing.files)
    if not lost:
        return Listing(**{**vars(listing), "stamps": folder.stamps})
    shown = ", ".join(listing.files[place] for place in sorted(lost)[:SHOWN])
    if not skip:
        raise UserError(
            f"{len(lost)} of {len(listing.files)} listed pictures are not in {folder.path}, {shown} for one; "
            "unpack the archive again, or set missing = 'skip' to go on without them."
        )
    kept = [place for place in range(len(listing.files)) if place not in lost]
    columns = {word: tuple(getattr(listing, word)[place] for place in kept) for word in ("files", "splits", "domains")}
    note = f"{len(lost)} listed picture(s) are not there and were left out, {shown} for one."
    return Listing(
        **{
            **vars(listing),
            **columns,
            "targets": listing.targets[kept],
            "notes": (*listing.notes, note),
            "stamps": folder.stamps,
        }
    )


def published_set(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    name: str,
    root: Path,
    base: Base = "half",
    unseen_domains: tuple[str, ...] = (),
    template: str = "",
    domain_templates: bool = False,
    missing: Literal["refuse", "skip"] = "refuse",
    options: Mapping[str, JsonValue] | None = None,
    attributes: Path | None = None,
    train: bool = True,
    window: Window | None = None,
    bands: Bands | None = None,
    seed: int = 1,
    on_step: OnStep | None = None,
) -> Dataset:
    """Read a published data set from the folder `root` that holds its download, in the layout it comes in.

    `base` are the classes seen in training, the first ceil(C/2) label ids or all; with unseen domains, or without
    training pictures, always all. `template` replaces the data set's own, `domain_templates` uses those of domains.
    `options` are its family's (`fedprompt data info NAME`), `attributes` a folder with a file NAME.json of visual
    phrases by class, names with spaces for underscores (the form of FedMVP's files). Without `train` it is for testing
    alone. `missing` "skip" leaves listed pictures out that are not there. Raises UserError for a download that is not
    there, incomplete or wrong, saying what to do.
    """
    about = row(name)
    path, listing, fingerprint = list_set(
        name, root, options or {}, skip_missing=missing == "skip", seed=seed, on_step=on_step
    )
    names = distinct([about.rename.get(own, own) for own in listing.names], name)
    splits: Sequence[str] = listing.splits if train else ["val" if word == "train" else word for word in listing.splits]
    some = "train" in splits
    known = _base(len(names), listing, whole=base == "all" or bool(unseen_domains) or not some)
    return Dataset(
        name=name,
        source=FileSource(path, listing.files, window, fingerprint, bands),
        space=LabelSpace(
            names,
            kind=about.kind,
            template=template or about.template,
            prompts={key: text for key, text in about.prompts.items() if key in names},
            synonyms={key: own for key, own in about.synonyms.items() if key in names},
            ensemble=about.ensemble,
            attributes=_attributes(attributes, name, names),
        ),
        targets=listing.targets,
        splits=splits,
        domains=listing.domains,
        base=known,
        new=tuple(sorted(set(range(len(names))) - set(known))),
        unseen_domains=unseen_domains,
        templates=about.templates if domain_templates else {},
        tests=listing.tests or {},
        notes=(*listing.notes, *odd_counts(name, listing), *other_version(name, listing)),
    )


def distinct(names: Sequence[str], origin: str) -> tuple[str, ...]:
    """The names as a tuple; UserError if two are the same after renaming."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{origin} has two classes called {twice[0]!r}; give one another name in its `rename` table.")
    return tuple(names)


def _attributes(folder: Path | None, name: str, names: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Phrases by our names; UserError unless every class has some: a class without would be told by its name alone."""
    if folder is None:
        return {}
    file = Path(folder).expanduser() / f"{name}.json"
    table = Folder(file.parent).json(file.name)
    phrases = table if isinstance(table, dict) else {}
    found = {own: phrases.get(words(own), phrases.get(own)) for own in names}
    # differs: the FedMVP release follows the order of the file and drops a class without a word
    for own, said in found.items():
        if not isinstance(said, list) or not said or not all(isinstance(one, str) and one.strip() for one in said):
            raise UserError(f'{file} has no phrases for {words(own)!r}; write {{"{words(own)}": ["...", "..."]}}.')
    return {own: tuple(map(str, said or ())) for own, said in found.items()}  # type: ignore[arg-type]


def _base(classes: int, listing: Listing, *, whole: bool) -> tuple[int, ...]:
    if listing.base is not None:
        return listing.base
    return tuple(range(classes)) if whole else first_half(classes)


def odd_counts(name: str, listing: Listing) -> tuple[str, ...]:
    """What differs from the published version, in sentences; nothing if the numbers are those of the table."""
    about = row(name)
    found = []
    if about.classes and len(listing.names) != about.classes:
        found.append(f"{about.title} has {about.classes} classes, but {len(listing.names)} were found.")
    counts = Counter(listing.splits)
    if about.counts:
        wrong = [
            f"{word} {counts[word]:,} instead of {count:,}"
            for word, count in about.counts.items()
            if counts[word] != count
        ]
        found += [f"{about.title} has other numbers of pictures than published: {', '.join(wrong)}."] if wrong else []
    if about.halves is not None and (halves := _test_halves(listing)) != about.halves:
        found.append(f"{about.title} has {halves} test pictures of base and new classes instead of {about.halves}.")
    held = Counter(listing.domains)
    total = len(listing.files)
    if about.domains and total not in (sum(about.domains.values()), *about.others.values()):
        wrong = [f"{word} {held[word]:,} ({count:,})" for word, count in about.domains.items() if held[word] != count]
        found.append(f"{about.title} has {total:,} pictures, as no version known: {', '.join(wrong)}.")
    return tuple(found)


def other_version(name: str, listing: Listing) -> tuple[str, ...]:
    """A sentence that says which known version a copy is, if it is not the published one."""
    about, total = row(name), len(listing.files)
    which = next((word for word, count in about.others.items() if count == total), "")
    return (f"{about.title} is {which} with {total:,} pictures; say so beside results.",) if which else ()


def _test_halves(listing: Listing) -> tuple[int, int]:
    half = -(-len(listing.names) // 2)
    labels = [label for label, word in zip(listing.targets.tolist(), listing.splits, strict=True) if word == "test"]
    return sum(label < half for label in labels), sum(label >= half for label in labels)


def tally(listing: Listing) -> torch.Tensor:
    """Pictures of each class, [C] int64."""
    if listing.targets.ndim == 1:
        return torch.bincount(listing.targets, minlength=len(listing.names))
    return (listing.targets == 1).sum(dim=0)
