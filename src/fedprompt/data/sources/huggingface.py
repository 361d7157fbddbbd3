"""Hugging Face `datasets`: from the Hub, saved to disk, or Parquet files; pictures stay undecoded until asked for."""

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
from fedprompt.data.labels import LabelSpace
from fedprompt.data.published.catalog import Hub, distinct, row
from fedprompt.data.published.layouts.natives import spaced
from fedprompt.data.sources.image_folder import SPLITS, first_half
from fedprompt.data.splits import draw_splits
from fedprompt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import datasets

Names = tuple[str, ...]
LABELS = ("label", "labels", "objects", "cls", "npy")  # columns that usually hold them


@dataclass(frozen=True)
class TableSource:
    """Pictures in a column of an Arrow table, as bytes or paths."""

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
        """Decode one picture to RGB; decoding is ours, so that all formats see a picture alike."""
        cell = cast(Mapping[str, object], self.table[row][self.column])
        content = cell["bytes"]
        path = self.describe(row) if content is not None else str(cell["path"])
        return decode(path, content=cast("bytes | None", content), window=self.window, bands=self.bands)

    def take(self, rows: Sequence[int]) -> TableSource:
        """A source of these pictures alone."""
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

    Pictures are in the column that holds them and labels in `label`, `labels`, `objects`, or in `cls` or `npy` as
    WebDataset copies have it, unless columns are named. A label column may hold class numbers, names, lists of either,
    or 0/1 vectors; `classes` names them where the table does not. `like` is one of our data sets of which this is a
    copy: its names, order of classes and template are taken, mapped by name; `classes` are then in our order, in place
    of the copy's names. Where there is one split only, ours is drawn from the seed. Raises UserError for columns that
    are not there, scripts (which no longer run) and label names that fit no class.
    """
    about = row(like) if like else None
    rules = about.hub if about else None
    table, splits = _load(path, revision, rules)
    image_column = image_column or picture_column(table.features)
    label_column = label_column or find_label_column(table.features, rules)
    for column in (image_column, label_column, *filter(None, (domain_column,))):
        if column not in table.column_names:
            hint = did_you_mean(column, table.column_names)
            raise UserError(f"{path} has no column {column!r}{hint} (columns: {', '.join(table.column_names)}).")
    own = _names(table.features[label_column])
    if rules and (own or "string" in str(getattr(table.features[label_column], "dtype", ""))):
        found, targets = _targets(table[label_column], own, path, numbers=bool(own))
        names, targets = _reordered(found, targets, rules)
        names = _spoken(names, targets, table, rules, classes)
    else:
        names, targets = _targets(table[label_column], classes or own, path, numbers=bool(own))
    domain = domain_column or ("domain" if "domain" in table.column_names else "")
    domains = tuple(map(str, _words(table, domain))) if domain else ("",) * len(table)
    if not any(splits):
        groups = list(zip(domains, targets.tolist() if targets.ndim == 1 else [0] * len(table), strict=True))
        splits = draw_splits([str(number) for number in range(len(table))], groups, seed=seed)
    whole = base == "all" or bool(unseen_domains) or targets.ndim > 1
    known = tuple(range(len(names))) if whole else first_half(len(names))
    return Dataset(
        name=like or Path(path).name,
        source=TableSource(_undecoded(table, image_column), image_column, window, bands),
        space=LabelSpace(
            distinct(names, path),
            kind="single" if targets.ndim == 1 else "multi",
            template=template or (about.template if about else "a photo of a {}."),
            ensemble=about.ensemble if about else (),
        ),
        targets=targets,
        splits=tuple(splits),
        domains=domains,
        base=known,
        new=tuple(range(len(known), len(names))),
        unseen_domains=unseen_domains,
        notes=(f"Hub copy of {about.title}: {rules.caution}",) if about and rules else (),
    )


def _load(path: str, revision: str, rules: Hub | None) -> tuple[datasets.Dataset, list[str]]:
    """All splits as one table, and the split of every row, "" where there is only one."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("Reading Hub data sets needs the extra: pip install 'fedprompt[hub]'.") from error
    parts = _parts(path, revision)
    words = {name: (rules.splits.get(name, "") if rules and rules.splits else SPLITS.get(name, "")) for name in parts}
    if len(parts) > 1 or (rules and rules.splits):
        kept = {name: word for name, word in words.items() if word or len(parts) == 1}
    else:
        kept = dict.fromkeys(parts, "")
    if "test" not in kept.values() and "val" in kept.values():
        kept = {name: "test" if word == "val" else word for name, word in kept.items()}
    if rules and rules.clip:
        parts = {name: parts[name].select(_middle_frames(parts[name], rules.clip)) for name in kept}
    splits = [word for name, word in kept.items() for _ in range(len(parts[name]))]
    return datasets.concatenate_datasets([parts[name] for name in kept]), splits


def _middle_frames(table: datasets.Dataset, clip: Sequence[str]) -> Sequence[int]:
    """The row of the middle frame of every video; all rows of a table that says nothing of frames."""
    columns = [*clip, "frame"]
    if not set(columns) <= set(table.column_names):
        return range(len(table))
    videos: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    words = table.select_columns(columns)
    for place, (*video, frame) in enumerate(zip(*(words[column] for column in columns), strict=True)):
        videos.setdefault(tuple(video), []).append((frame, place))
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
        raise UserError(f"{folder} is made by a script, which no longer runs; look for a copy in Parquet.")
    found: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        found.setdefault(re.split(r"[-.]", file.name)[0], []).append(str(file))
    if not found:
        raise UserError(f"{folder} has neither Parquet files nor a data set from save_to_disk.")
    return found


def picture_column(features: Mapping[str, object]) -> str:
    """The first column that holds pictures; `image` if the table does not say which one does."""
    import datasets

    pictures = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    return "image" if "image" in features or not pictures else pictures[0]


def find_label_column(features: Mapping[str, object], rules: Hub | None = None) -> str:
    """The column with the labels: what our table says of a known copy, else the first of the usual ones."""
    usual = (rules.label,) if rules and rules.label in features else LABELS
    return next((name for name in usual if name in features), usual[0])


def _undecoded(table: datasets.Dataset, column: str) -> datasets.Dataset:
    import datasets

    # The library would turn pictures by their EXIF and leave greys grey, each unlike ours.
    return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _names(feature: object) -> Names:
    """Class names of a column that has them: of one label, of a list of them, or of the objects in a picture."""
    inner = getattr(feature, "feature", feature)
    if isinstance(feature, dict) or isinstance(inner, dict):
        inner = cast(Mapping[str, object], feature if isinstance(feature, dict) else inner)["category"]
        inner = getattr(inner, "feature", inner)
    return tuple(getattr(inner, "names", None) or ())


def _words(table: datasets.Dataset, column: str) -> list[object]:
    names, values = _names(table.features[column]), list(table[column])
    return [names[value] if names else value for value in values]


def _targets(column: Sequence[object], names: Names, path: str, *, numbers: bool) -> tuple[Names, Tensor]:
    """Class names, and labels [N] or [N, C]; lists of `numbers` name classes, others may be vectors of 0 and 1."""
    values = [value["category"] if isinstance(value, dict) else value for value in column]
    many = any(isinstance(value, list) for value in values)
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    if not names and all(isinstance(one, str) for one in flat):
        names = tuple(sorted({str(one) for one in flat}))
    if not names:
        raise UserError(f"{path} has numbers for labels and no names for them; set `classes` in label order.")
    number = _numbering(names, path)
    if not many:
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


def _spoken(names: Names, targets: Tensor, table: datasets.Dataset, rules: Hub, classes: Names) -> Names:
    """What to call the classes of a copy: `classes`, else what a column says of each, else the copy's own names."""
    if classes:
        if len(classes) != len(names):
            raise UserError(f"{rules.id} has {len(names)} classes, but {len(classes)} were named; name each of them.")
        return classes
    if not rules.names:
        return names
    known = rules.names in table.column_names
    said = dict(zip(targets.tolist(), table[rules.names], strict=True)) if known else {}
    if not known or len(said) < len(names):
        raise UserError(f"The classes of {rules.id} are called {names[0]!r} and so on; set data.classes in our order.")
    return tuple(str(said[label]) for label in range(len(names)))


def _reordered(names: Names, targets: Tensor, rules: Hub) -> tuple[Names, Tensor]:
    """Our order of a copy's classes: sorted by the copy's own names, then renamed; labels follow their names."""
    keys: Mapping[str, Callable[[str], object]] = {
        "given": lambda name: names.index(name),
        "bytewise": lambda name: name,
        "lower": lambda name: name.lower(),
        "number": lambda name: int(name),
    }
    ordered = sorted(names, key=keys[rules.order])  # type: ignore[arg-type]
    shown = [rules.rename.get(name, name) for name in ordered]
    shown = [re.sub(r"^(.*) (\d{4})$", r"\2 \1", name) if rules.year_first else name for name in shown]
    shown = [spaced(name) if rules.run_together else name for name in shown]
    place = torch.tensor([ordered.index(name) for name in names])
    columns = torch.tensor([names.index(name) for name in ordered])
    return tuple(shown), place[targets] if targets.ndim == 1 else targets[:, columns]
