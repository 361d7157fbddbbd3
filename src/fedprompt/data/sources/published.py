"""A published data set from the catalog, read from its download as it is unpacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from fedprompt.data.dataset import Dataset
from fedprompt.data.file_source import FileSource
from fedprompt.data.folder import DatasetFolder
from fedprompt.data.image_formats import Bands, Window
from fedprompt.data.images import OnStep
from fedprompt.data.intake.report import Intake
from fedprompt.data.labels import LabelSpace, distinct_names, readable_name
from fedprompt.data.published.catalog import descriptions_of, entry, list_images
from fedprompt.data.published.listing import Listing
from fedprompt.data.published.verify import differences, other_version
from fedprompt.data.splits import base_and_new
from fedprompt.errors import UserError


def published(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    name: str,
    root: Path,
    base: Literal["half", "all"] = "half",
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
    training images, always all. `template` replaces the data set's own, `domain_templates` uses those of domains.
    `options` are those of its layout (`fedprompt data info NAME`), `attributes` a folder with a file NAME.json of
    visual phrases per class, names with spaces for underscores (the form of FedMVP's files). Without `train` it is for
    testing only. `missing` "skip" leaves out listed images that do not exist. Raises UserError for a download that is
    not found, incomplete or damaged, saying what to do.
    """
    about = entry(name)
    path, listing, fingerprint = list_images(
        name, root, options or {}, skip_missing=missing == "skip", seed=seed, on_step=on_step
    )
    names = distinct_names([about.rename.get(own, own) for own in listing.names], name)
    splits: Sequence[str] = listing.splits if train else ["val" if own == "train" else own for own in listing.splits]
    all_classes = base == "all" or bool(unseen_domains) or "train" not in splits
    known = _base_classes(listing, "all" if all_classes else "half")
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
            attributes=_attributes_of(attributes, name, names),
            descriptions=descriptions_of(name),
        ),
        targets=listing.targets,
        splits=splits,
        domains=listing.domains,
        base=known,
        new=tuple(sorted(set(range(len(names))) - set(known))),
        unseen_domains=unseen_domains,
        templates=about.templates if domain_templates else {},
        test_candidates=listing.test_candidates or {},
        intake=Intake(
            labels="one per image" if about.kind == "single" else "several per image",
            origins={"images": f"files below {path}"} | dict.fromkeys(("classes", "splits"), "as published"),
            warnings=(*listing.remarks, *differences(name, listing), *other_version(name, listing)),
        ),
    )


def _base_classes(listing: Listing, base: Literal["half", "all"]) -> tuple[int, ...]:
    return base_and_new(len(listing.names), base)[0] if listing.base is None else listing.base


def _attributes_of(folder: Path | None, name: str, names: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Attributes by our class names; UserError unless every class has some."""
    if folder is None:
        return {}
    file = Path(folder).expanduser() / f"{name}.json"
    table = DatasetFolder(file.parent).json(file.name)
    phrases = table if isinstance(table, dict) else {}
    found = {own: phrases.get(readable_name(own), phrases.get(own)) for own in names}
    # differs: the FedMVP release follows the order of the file and drops a class without a word
    for own, listed in found.items():
        if not _is_phrases(listed):
            title = readable_name(own)
            raise UserError(f'{file} has no phrases for {title!r}; write {{"{title}": ["...", "..."]}}.')
    return {own: tuple(map(str, listed or ())) for own, listed in found.items()}  # type: ignore[arg-type]


def _is_phrases(value: JsonValue) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) and one.strip() for one in value)
