"""Hugging Face `datasets`: from the Hub, from `save_to_disk`, or from Parquet files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor

from fedprompt.config.registry import recognised_by
from fedprompt.data.copies import copies_remark
from fedprompt.data.dataset import Dataset
from fedprompt.data.image_formats import Bands, Window
from fedprompt.data.intake.class_names import normal_name
from fedprompt.data.intake.label_cells import is_missing
from fedprompt.data.intake.paths import below, missing_files
from fedprompt.data.intake.report import Intake, Mistakes
from fedprompt.data.intake.typed_labels import OBJECT_KEYS, Dialect, TypedLabels, read_typed_labels
from fedprompt.data.labels import LabelSpace, distinct_names
from fedprompt.data.published.catalog import HubCopy, descriptions_of, entry
from fedprompt.data.published.layouts.original_lists import split_camel_case
from fedprompt.data.sources.hub_tables import Address, Parts, holds_tables, open_parts
from fedprompt.data.splits import STRATIFIED_ORIGIN, base_and_new, draw_stratified_splits
from fedprompt.data.table_source import TableSource
from fedprompt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import datasets

Names = tuple[str, ...]
LABELS = ("label", "labels", "objects", "cls", "npy")  # columns that usually hold them


@recognised_by(holds_tables)
def huggingface(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    path: str,
    image_column: str = "",
    label_column: str = "",
    domain_column: str = "",
    classes: tuple[str, ...] = (),
    like: str = "",
    base: Literal["half", "all"] = "all",
    unseen_domains: tuple[str, ...] = (),
    template: str = "",
    revision: str = "",
    subset: str = "",
    splits: Mapping[str, str] | None = None,
    separator: str = "",
    links: bool = False,
    threshold: float | None = None,
    window: Window | None = None,
    bands: Bands | None = None,
    seed: int = 1,
) -> Dataset:
    """Read a Hub id, a folder from `save_to_disk`, or a folder of Parquet files whose paths say their splits.

    Images are in the column that holds them and labels in `label`, `labels`, `objects`, or in `cls` or `npy` as
    WebDataset copies have it, unless columns are named. A label column may hold class numbers, names, lists of either,
    vectors of 0 and 1, or scores with a `threshold`; `classes` names them where the table does not, and `separator` is
    what stands between names in one text. `like` is one of our data sets of which this is a copy: its names, order of
    classes and template are taken, mapped by name; `classes` are then in our order, in place of the copy's names.
    `subset` is the configuration of a Hub id that has several. `splits` says what splits of other names are
    (`{"extra": ""}` leaves one out). Where there is one split only, ours is drawn from the seed. Paths of images in
    Parquet files lead to files below the folder; with `links`, links in it may lead out of it. Raises UserError for
    columns that are not there, scripts (which no longer run), splits understood in part, wrong labels and paths.
    """
    about = entry(like) if like else None
    copy = about.hub if about else None
    parts = open_parts(Address(path, subset, revision), copy, splits)
    table = _joined(parts, path)
    image_column = image_column or find_image_column(table.features)
    label_column = label_column or find_label_column(table.features, copy)
    for column in (image_column, label_column, *filter(None, (domain_column,))):
        if column not in table.column_names:
            hint = did_you_mean(column, table.column_names)
            raise UserError(f"{path} has no column {column!r}{hint} (columns: {', '.join(table.column_names)}).")
    dialect = Dialect(separator=separator, threshold=threshold)
    found, names, targets = _labels(table, label_column, path, dialect, copy, classes)
    domain = domain_column or ("domain" if "domain" in table.column_names else "")
    domains = tuple(map(_domain, _values(table, domain))) if domain else ("",) * len(table)
    source = TableSource(undecoded(table, image_column, path), image_column, window, bands, parts.root, links)
    _check_paths(source, path)
    own = [split for name, split in parts.splits.items() for _ in range(len(parts.tables[name]))]
    copies: tuple[int, ...] = ()
    if not any(own):
        copies = source.contents
        groups = list(zip(domains, targets.tolist() if targets.ndim == 1 else [0] * len(table), strict=True))
        own = draw_stratified_splits([f"{number}" for number in range(len(table))], groups, seed=seed, contents=copies)
    known, new = base_and_new(len(names), "all" if unseen_domains or targets.ndim > 1 else base)
    return Dataset(
        name=like or Path(path).name,
        source=source,
        space=LabelSpace(
            distinct_names(names, path),
            kind="single" if targets.ndim == 1 else "multi",
            template=template or (about.template if about else "a photo of a {}."),
            ensemble=about.ensemble if about else (),
            descriptions=descriptions_of(like) if like else (),
        ),
        targets=targets,
        splits=tuple(own),
        domains=domains,
        base=known,
        new=new,
        unseen_domains=unseen_domains,
        intake=Intake(
            labels=found.form,
            origins={
                "images": f"the column {image_column!r} of {path}",
                "classes": f"those of {like}" if copy else "`classes`" if classes else f"the column {label_column!r}",
                "labels": f"the column {label_column!r}",
                "domains": f"the column {domain!r}",
                "splits": parts.origin or STRATIFIED_ORIGIN.format(seed=seed),
            },
            left_out=parts.left_out,
            warnings=(
                *((f"Hub copy of {about.title}: {copy.caution}",) if about and copy else ()),
                *parts.remarks,
                *found.remarks,
                *copies_remark(copies, [f"row {number}" for number in range(len(table))], place=path),
            ),
        ),
    )


def _joined(parts: Parts, path: str) -> datasets.Dataset:
    import datasets

    try:
        return datasets.concatenate_datasets([parts.tables[name] for name in parts.splits])
    except ValueError as error:
        raise UserError(
            f"The splits of {path} have different columns ({error}); leave one out with `splits`."
        ) from error


def _labels(
    table: datasets.Dataset, column: str, path: str, dialect: Dialect, copy: HubCopy | None, classes: Names
) -> tuple[TypedLabels, Names, Tensor]:
    """The labels of a column, class names and targets [N] or [N, C]; of a known copy in our order."""
    own = _feature_names(table.features[column])
    mistakes = Mistakes(f"the column {column!r} of {path}", place="row {}".format)
    if own:
        dialect = replace(dialect, lists="numbers", positions=True)
    of_copy = copy if own or "string" in str(getattr(table.features[column], "dtype", "")) else None
    if of_copy:  # whose labels are known to be whole names
        dialect = replace(dialect, separator="none")
    values: list[object] = list(table[column])
    found = read_typed_labels(values, own if of_copy else classes or own, dialect=dialect, mistakes=mistakes)
    mistakes.check(fix="correct that label")
    targets = torch.tensor(found.targets, dtype=torch.int8 if found.multi else torch.int64)
    if not of_copy:
        return found, found.names, targets
    names, targets = _reordered(found.names, targets, of_copy)
    return found, _class_names(names, targets, table, of_copy, classes), targets


def _domain(value: object) -> str:
    return "" if is_missing(value) else normal_name(str(value))


def find_image_column(features: Mapping[str, object]) -> str:
    """The first column that holds images; `image` if the table declares none."""
    import datasets

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    return "image" if "image" in features or not images else images[0]


def find_label_column(features: Mapping[str, object], copy: HubCopy | None = None) -> str:
    """The column with the labels: of a known copy that of the catalog, else the first of the usual ones."""
    usual = (copy.label,) if copy and copy.label in features else LABELS
    return next((name for name in usual if name in features), usual[0])


def undecoded(table: datasets.Dataset, column: str, path: str) -> datasets.Dataset:
    """The column of images alone, as bytes or paths; UserError, with the table's `path`, for one that holds others."""
    import datasets

    try:
        # The library's decoding differs from ours (16-bit greys, transparency); `open` decodes the bytes instead.
        return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"The column {column!r} of {path} holds no images ({error}); set `image_column`.") from error


def _check_paths(source: TableSource, place: str) -> None:
    """UserError for paths in Parquet files that lead out of their folder, or to no file."""
    if source.root is None:
        return
    import pyarrow.compute as pc

    cells = source.table.data.column(source.column)
    without = pc.is_null(pc.struct_field(cells, "bytes"))
    paths = pc.struct_field(cells, "path").filter(without).drop_null().to_pylist()
    checked = [below(source.root, path, links=source.links) for path in paths]
    mistakes = Mistakes(f"the column {source.column!r} of {place}")
    for wrong in dict.fromkeys(wrong for _, wrong in checked if wrong):
        mistakes.add(wrong)
    files = [file for file, wrong in checked if not wrong]
    if missing := missing_files(source.root, files):
        mistakes.add(f"{len(missing):,} of {len(files):,} images do not exist, for example {files[min(missing)]}")
    mistakes.check(fix="add the files, or correct the paths")


def _feature_names(feature: object) -> Names:
    """Class names of a column that has them: of one label, of a list of them, or of the objects in an image."""
    inner = getattr(feature, "feature", feature)
    if isinstance(feature, dict) or isinstance(inner, dict):
        fields = cast(Mapping[str, object], feature if isinstance(feature, dict) else inner)
        inner = next((fields[key] for key in OBJECT_KEYS if key in fields), None)
        inner = getattr(inner, "feature", inner)
    return tuple(getattr(inner, "names", None) or ())


def _values(table: datasets.Dataset, column: str) -> list[object]:
    names, values = _feature_names(table.features[column]), list(table[column])
    return [names[value] if names and isinstance(value, int) else value for value in values]


def _class_names(names: Names, targets: Tensor, table: datasets.Dataset, copy: HubCopy, classes: Names) -> Names:
    """The class names of a copy: `classes`, else those of its name column, else its own label names."""
    if classes:
        if len(classes) != len(names):
            raise UserError(f"{copy.id} has {len(names)} classes, but {len(classes)} were named; name each of them.")
        return classes
    if not copy.name_column:
        return names
    known = copy.name_column in table.column_names
    by_label = dict(zip(targets.tolist(), table[copy.name_column], strict=True)) if known else {}
    if not known or len(by_label) < len(names):
        raise UserError(f"The classes of {copy.id} are called {names[0]!r} and so on; set data.classes in our order.")
    return tuple(str(by_label[label]) for label in range(len(names)))


def _reordered(names: Names, targets: Tensor, copy: HubCopy) -> tuple[Names, Tensor]:
    """Our order of a copy's classes: sorted by the copy's own names, then renamed; labels follow their names."""
    keys: Mapping[str, Callable[[str], object]] = {
        "given": lambda name: names.index(name),
        "bytewise": lambda name: name,
        "lower": lambda name: name.lower(),
        "number": lambda name: int(name),
    }
    ordered = sorted(names, key=keys[copy.order])  # type: ignore[arg-type]
    renamed = [copy.rename.get(name, name) for name in ordered]
    renamed = [re.sub(r"^(.*) (\d{4})$", r"\2 \1", name) if copy.year_first else name for name in renamed]
    renamed = [split_camel_case(name) if copy.camel_case else name for name in renamed]
    place = torch.tensor([ordered.index(name) for name in names])
    columns = torch.tensor([names.index(name) for name in ordered])
    return tuple(renamed), place[targets] if targets.ndim == 1 else targets[:, columns]
