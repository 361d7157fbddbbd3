"""Hugging Face `datasets`: from the Hub, from `save_to_disk`, or from Parquet files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from PIL import Image
from torch import Tensor

from fedprompt.data.dataset import Dataset, multi_hot
from fedprompt.data.decode import Bands, Window, decode
from fedprompt.data.labels import LabelSpace, distinct_names
from fedprompt.data.published.catalog import HubCopy, entry
from fedprompt.data.published.layouts.original_lists import split_camel_case
from fedprompt.data.splits import SPLIT_NAMES, base_and_new, draw_stratified_splits
from fedprompt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import datasets

Names = tuple[str, ...]
LABELS = ("label", "labels", "objects", "cls", "npy")  # columns that usually hold them


@dataclass(frozen=True)
class TableSource:
    """Images in a column of an Arrow table, as bytes or paths."""

    table: datasets.Dataset = field(repr=False)
    column: str
    window: Window | None = None
    bands: Bands | None = None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the library's own fingerprint of the table, which changes with its content."""
        return hashlib.sha256(json.dumps([self.table._fingerprint, self.window, self.bands]).encode()).hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.table)

    def open(self, row: int) -> Image.Image:
        """Decode one image to RGB, with the same decoder as all other sources."""
        cell = cast(Mapping[str, object], self.table[row][self.column])
        content = cell["bytes"]
        path = self.describe(row) if content is not None else str(cell["path"])
        return decode(path, content=cast("bytes | None", content), window=self.window, bands=self.bands)

    def take(self, rows: Sequence[int]) -> TableSource:
        """A source of these images alone."""
        return replace(self, table=self.table.select(rows))

    def describe(self, row: int) -> str:
        """The row's number."""
        return f"row {row}"


def huggingface(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    path: str,
    image_column: str = "",
    label_column: str = "",
    domain_column: str = "",
    classes: tuple[str, ...] = (),
    like: str = "",
    base: Literal["half", "all"] = "half",
    unseen_domains: tuple[str, ...] = (),
    template: str = "",
    revision: str = "",
    window: Window | None = None,
    bands: Bands | None = None,
    seed: int = 1,
) -> Dataset:
    """Read a Hub id, a folder from `save_to_disk`, or a folder of Parquet files called `<split>-*.parquet`.

    Images are in the column that holds them and labels in `label`, `labels`, `objects`, or in `cls` or `npy` as
    WebDataset copies have it, unless columns are named. A label column may hold class numbers, names, lists of either,
    or 0/1 vectors; `classes` names them where the table does not. `like` is one of our data sets of which this is a
    copy: its names, order of classes and template are taken, mapped by name; `classes` are then in our order, in place
    of the copy's names. Where there is one split only, ours is drawn from the seed. Raises UserError for columns that
    are not there, scripts (which no longer run) and label names that fit no class.
    """
    about = entry(like) if like else None
    copy = about.hub if about else None
    table, splits = _load(path, revision, copy)
    image_column = image_column or find_image_column(table.features)
    label_column = label_column or find_label_column(table.features, copy)
    for column in (image_column, label_column, *filter(None, (domain_column,))):
        if column not in table.column_names:
            hint = did_you_mean(column, table.column_names)
            raise UserError(f"{path} has no column {column!r}{hint} (columns: {', '.join(table.column_names)}).")
    own = _feature_names(table.features[label_column])
    if copy and (own or "string" in str(getattr(table.features[label_column], "dtype", ""))):
        found, targets = _targets(table[label_column], own, path, numbers=bool(own))
        names, targets = _reordered(found, targets, copy)
        names = _class_names(names, targets, table, copy, classes)
    else:
        names, targets = _targets(table[label_column], classes or own, path, numbers=bool(own))
    domain = domain_column or ("domain" if "domain" in table.column_names else "")
    domains = tuple(map(str, _values(table, domain))) if domain else ("",) * len(table)
    if not any(splits):
        groups = list(zip(domains, targets.tolist() if targets.ndim == 1 else [0] * len(table), strict=True))
        splits = draw_stratified_splits([str(number) for number in range(len(table))], groups, seed=seed)
    known, new = base_and_new(len(names), "all" if unseen_domains or targets.ndim > 1 else base)
    return Dataset(
        name=like or Path(path).name,
        source=TableSource(_undecoded(table, image_column), image_column, window, bands),
        space=LabelSpace(
            distinct_names(names, path),
            kind="single" if targets.ndim == 1 else "multi",
            template=template or (about.template if about else "a photo of a {}."),
            ensemble=about.ensemble if about else (),
        ),
        targets=targets,
        splits=tuple(splits),
        domains=domains,
        base=known,
        new=new,
        unseen_domains=unseen_domains,
        notes=(f"Hub copy of {about.title}: {copy.caution}",) if about and copy else (),
    )


def _load(path: str, revision: str, copy: HubCopy | None) -> tuple[datasets.Dataset, list[str]]:
    """All splits as one table, and the split of every row, "" where there is only one."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("Reading Hub data sets needs the extra: pip install 'fedprompt[hub]'.") from error
    parts = _parts(path, revision)
    known = copy.splits if copy and copy.splits else SPLIT_NAMES
    if len(parts) > 1 or (copy and copy.splits):
        kept = {name: known.get(name, "") for name in parts if known.get(name) or len(parts) == 1}
    else:
        kept = dict.fromkeys(parts, "")
    if "test" not in kept.values() and "val" in kept.values():
        kept = {name: "test" if split == "val" else split for name, split in kept.items()}
    if copy and copy.video_columns:
        parts = {name: parts[name].select(_middle_frames(parts[name], copy.video_columns)) for name in kept}
    splits = [split for name, split in kept.items() for _ in range(len(parts[name]))]
    return datasets.concatenate_datasets([parts[name] for name in kept]), splits


def _middle_frames(table: datasets.Dataset, video_columns: Sequence[str]) -> Sequence[int]:
    """The row of the middle frame of every video; all rows of a table without these columns."""
    columns = [*video_columns, "frame"]
    if not set(columns) <= set(table.column_names):
        return range(len(table))
    videos: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    selected = table.select_columns(columns)
    for row, (*video, frame) in enumerate(zip(*(selected[column] for column in columns), strict=True)):
        videos.setdefault(tuple(video), []).append((frame, row))
    return [sorted(frames)[len(frames) // 2][1] for frames in videos.values()]


def _parts(path: str, revision: str) -> Mapping[str, datasets.Dataset]:
    import datasets

    folder = Path(path).expanduser()
    try:
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            saved = datasets.load_from_disk(str(folder))
            return saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        if folder.is_dir():
            return cast("Mapping[str, datasets.Dataset]", datasets.load_dataset("parquet", data_files=_parquet(folder)))
        return cast("Mapping[str, datasets.Dataset]", datasets.load_dataset(path, revision=revision or None))
    except (RuntimeError, ValueError, OSError) as error:
        script = (
            " It is made by a script, which no longer runs; look for a Parquet copy." if "script" in str(error) else ""
        )
        raise UserError(f"The data set {path} cannot be loaded ({error}).{script}") from error


def _parquet(folder: Path) -> Mapping[str, list[str]]:
    if any(folder.glob("*.py")) and not any(folder.rglob("*.parquet")):
        raise UserError(f"{folder} is made by a script, which no longer runs; look for a Parquet copy.")
    found: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        found.setdefault(re.split(r"[-.]", file.name)[0], []).append(str(file))
    if not found:
        raise UserError(f"{folder} has neither Parquet files nor a data set from save_to_disk.")
    return found


def find_image_column(features: Mapping[str, object]) -> str:
    """The first column that holds images; `image` if the table declares none."""
    import datasets

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    return "image" if "image" in features or not images else images[0]


def find_label_column(features: Mapping[str, object], copy: HubCopy | None = None) -> str:
    """The column with the labels: of a known copy that of the catalog, else the first of the usual ones."""
    usual = (copy.label,) if copy and copy.label in features else LABELS
    return next((name for name in usual if name in features), usual[0])


def _undecoded(table: datasets.Dataset, column: str) -> datasets.Dataset:
    import datasets

    # The library's decoding differs from ours (16-bit greys, transparency); `open` decodes the bytes instead.
    return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _feature_names(feature: object) -> Names:
    """Class names of a column that has them: of one label, of a list of them, or of the objects in an image."""
    inner = getattr(feature, "feature", feature)
    if isinstance(feature, dict) or isinstance(inner, dict):
        inner = cast(Mapping[str, object], feature if isinstance(feature, dict) else inner)["category"]
        inner = getattr(inner, "feature", inner)
    return tuple(getattr(inner, "names", None) or ())


def _values(table: datasets.Dataset, column: str) -> list[object]:
    names, values = _feature_names(table.features[column]), list(table[column])
    return [names[value] if names else value for value in values]


def _targets(column: Sequence[object], names: Names, path: str, *, numbers: bool) -> tuple[Names, Tensor]:
    """Class names, and labels [N] or [N, C]; lists of class `numbers`, other lists may be vectors of 0 and 1."""
    values = [value["category"] if isinstance(value, dict) else value for value in column]
    multi = any(isinstance(value, list) for value in values)
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    if not names and all(isinstance(one, str) for one in flat):
        names = tuple(sorted({str(one) for one in flat}))
    if not names:
        raise UserError(f"{path} has numbers for labels and no names for them; set `classes` in label order.")
    number = _numbering(names, path)
    if not multi:
        return names, torch.tensor([number(value) for value in values])
    rows = [cast(Sequence[object], value) for value in values]
    if not numbers and all(len(value) == len(names) and set(value) <= {0, 1} for value in rows):
        return names, torch.tensor(rows, dtype=torch.int8)
    return names, multi_hot([[number(one) for one in value] for value in rows], len(names))


def _numbering(names: Names, path: str) -> Callable[[object], int]:
    labels = {name: place for place, name in enumerate(names)}

    def number(value: object) -> int:
        label = labels.get(value, -1) if isinstance(value, str) else int(str(value))
        if not 0 <= label < len(names):
            raise UserError(f"{path} has the label {value!r}, which is none of its {len(names)} classes; correct it.")
        return label

    return number


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
