"""The catalog of published data sets: per TOML file in `sets/`, where a data set comes from and how it is read."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from fedprompt.data.folder import DatasetFolder
from fedprompt.data.images import OnStep
from fedprompt.data.published.index import indexed
from fedprompt.data.published.listing import Listing
from fedprompt.errors import UserError, did_you_mean
from fedprompt.text_files import json_text

Options = Mapping[str, JsonValue]


class HubCopy(BaseModel):
    """A copy on the Hugging Face Hub, and how its columns, splits and class names map to ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    caution: str
    splits: Mapping[str, str] = Field(default={}, description='its splits -> ours; "" where none is fixed')
    label: str = "label"
    order: Literal["given", "bytewise", "lower", "number"] = Field("given", description="our order of its class names")
    rename: Mapping[str, str] = {}
    year_first: bool = False
    camel_case: bool = Field(default=False, description="ApplyLipstick stands for Apply_Lipstick")
    name_column: str = Field("", description="a column with class names, where labels have none")
    video_columns: tuple[str, ...] = Field((), description="columns that identify a video; its middle `frame` is taken")


class CatalogEntry(BaseModel):
    """What the catalog says of one data set; `options` are those of its layout's reader."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    layout: str = Field(description="the module in `layouts` that reads it")
    folders: tuple[str, ...] = Field(description="names its folder has in circulation, the usual one first")
    options: Options = {}
    kind: Literal["single", "multi"] = "single"
    template: str = "a photo of a {}."
    ensemble: tuple[str, ...] = ()
    templates: Mapping[str, str] = Field(default={}, description="templates of domains")
    rename: Mapping[str, str] = Field(default={}, description="class name in the download -> our class name")
    synonyms: Mapping[str, tuple[str, ...]] = {}
    prompts: Mapping[str, str] = Field(default={}, description="whole prompts of classes for which the template fails")
    descriptions: tuple[str, ...] = Field((), description="bundled descriptions of its classes; else its own name")
    classes: int = 0
    counts: Mapping[str, int] = Field(default={}, description="images per split, of the published version")
    test_halves: tuple[int, int] | None = Field(default=None, description="test images of base and of new classes")
    domains: Mapping[str, int] = Field(default={}, description="images per domain, of the published version")
    other_versions: Mapping[str, int] = Field(default={}, description="images of other versions in circulation")
    size: str
    origin: str
    licence: str
    tree: str
    traps: tuple[str, ...]
    sources: str = Field(description="where names, templates and counts come from")
    hub: HubCopy | None = None


@cache
def catalog() -> Mapping[str, CatalogEntry]:
    """All entries by name."""
    folder = files("fedprompt.data.published") / "sets"
    found = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return {
        file.name.removesuffix(".toml"): CatalogEntry.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
        for file in found
    }


def entry(name: str) -> CatalogEntry:
    """One entry; UserError for a name that the catalog does not have."""
    if name not in catalog():
        raise UserError(
            f"There is no data set {name!r}{did_you_mean(name, catalog())} (known: {', '.join(catalog())})."
        )
    return catalog()[name]


def descriptions_of(name: str) -> tuple[str, ...]:
    """The bundled descriptions files that have the classes of a data set."""
    return entry(name).descriptions or (name,)


def folder_of(name: str, root: Path) -> Path | None:
    """The data set's folder below `root`, or `root` itself if it has such a name; None if neither exists."""
    folders, root = entry(name).folders, Path(root).expanduser()
    places = [*(root / choice for choice in folders), *([root] if root.name in folders else [])]
    return next((place for place in places if place.is_dir()), None)


def find_folder(name: str, root: Path) -> Path:
    """Like `folder_of`; UserError saying where to get the data set if it is not there."""
    about, root = entry(name), Path(root).expanduser()
    if found := folder_of(name, root):
        return found
    raise UserError(
        f"{about.title} is not in {root} (looked for {', '.join(about.folders)}).\n"
        f"Get it: {about.origin}\nLicence: {about.licence}\nSize: {about.size}\nExpected tree:\n{about.tree.rstrip()}"
    )


def layout_reader(about: CatalogEntry) -> Callable[..., Listing]:
    """The function that reads the layout of a data set; its keywords are the options."""
    function: Callable[..., Listing] = import_module(f"fedprompt.data.published.layouts.{about.layout}").read
    return function


def layout_options(about: CatalogEntry) -> list[str]:
    """The names of all options of a data set's layout."""
    return [*inspect.signature(layout_reader(about)).parameters][1:]  # the first is the folder


def list_images(
    name: str, root: Path, options: Options, *, skip_missing: bool = False, seed: int = 1, on_step: OnStep | None = None
) -> tuple[Path, Listing, str]:
    """Folder, listing and index fingerprint of a data set; UserError for an unknown option or a missing image."""
    about, path = entry(name), find_folder(name, root)
    known = layout_options(about)
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known)
            raise UserError(f"{about.title} has no option {option!r}{hint} (options: {', '.join(known)}).")
    chosen: dict[str, JsonValue] = {**about.options, **options}
    if "seed" in known:
        chosen.setdefault("seed", seed)

    def read() -> Listing:
        folder = DatasetFolder(path, on_step=on_step)
        listing = layout_reader(about)(folder, **chosen)
        return listing if listing.files_exist else listing.existing(folder, skip=skip_missing)

    key = json_text([about.layout, chosen, skip_missing], sort_keys=True)
    listing, fingerprint = indexed(path, key, read)
    return path, listing, fingerprint
