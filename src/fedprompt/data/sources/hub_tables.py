"""Opening tables of the Hugging Face `datasets` library: all parts as one table, with the split of every row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fedprompt.data.intake.image_files import DEEPEST
from fedprompt.data.intake.split_places import splits_of_files
from fedprompt.data.intake.splits import LEFT_OUT, Splits, understand_splits
from fedprompt.data.published.catalog import HubCopy
from fedprompt.errors import UserError
from fedprompt.file_system import files_below
from fedprompt.text_files import data_setting

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Address:
    """Which data set is meant: a Hub id or a folder, and of a Hub id the configuration (`subset`) and the revision."""

    path: str
    subset: str = ""
    revision: str = ""

    @property
    def folder(self) -> Path:
        """The address as a folder."""
        return Path(self.path).expanduser()


@dataclass(frozen=True)
class Parts:
    """Tables by name, and the split that each name stands for; "" for all if none is given.

    `root` is the folder of Parquet files, whose paths may lead to images below it.
    """

    tables: Mapping[str, datasets.Dataset]
    splits: Mapping[str, str]
    origin: str = ""
    remarks: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    root: Path | None = None


def open_parts(address: Address, copy: HubCopy | None, declared: Mapping[str, str] | None) -> Parts:
    """Open a data set; `declared` says what some of its splits are. UserError for splits understood in part."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("Reading Hub data sets needs the extra: pip install 'fedprompt[hub]'.") from error
    try:
        if _is_saved(address.folder):
            saved = datasets.load_from_disk(str(address.folder))
            tables = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        elif address.folder.is_dir():
            return _parquet_parts(address.folder, copy, declared)
        else:
            subset, revision = address.subset or None, address.revision or None
            tables = dict(datasets.load_dataset(address.path, subset, revision=revision))
    except UserError:
        raise
    except (RuntimeError, ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        text = str(error)
        fix = " It is made by a script, which no longer runs; look for a Parquet copy." if "script" in text else ""
        fix = " Choose one with `subset`." if "onfig name is missing" in text else fix
        raise UserError(f"The data set {address.path} cannot be loaded ({text.rstrip('.')}).{fix}") from error
    if copy and copy.splits:
        return _parts_of_copy(tables, copy)
    splits = understand_splits(tables, place=address.path, kind="splits", declared=declared)
    return _selected(tables, _or_none(tables, splits), copy)


def holds_tables(folder: Path) -> bool:
    """Whether a folder is one from `save_to_disk`, or holds Parquet files."""
    return _is_saved(folder) or any(any(folder.glob(f"{'*/' * depth}*.parquet")) for depth in range(4))


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def _parquet_parts(folder: Path, copy: HubCopy | None, declared: Mapping[str, str] | None) -> Parts:
    found = list(files_below(folder, depth=DEEPEST))
    files = sorted(
        file.relative_to(folder)
        for file in found
        if file.suffix == ".parquet" and not file.relative_to(folder).name.startswith(".")
    )
    if not files and any(file.suffix == ".py" and file.parent == folder for file in found):
        raise UserError(f"{folder} is made by a script, which no longer runs; look for a Parquet copy.")
    if not files:
        raise UserError(f"{folder} has neither Parquet files nor a data set from save_to_disk.")
    if copy and copy.splits:
        named = {str(file): re.split(r"[-.]", file.name)[0] for file in files}
        return _parts_of_copy(_read_parquet(folder, named), copy, root=folder)
    named, splits = splits_of_files([file.as_posix() for file in files], root=str(folder), declared=declared)
    used = {file: name for file, name in named.items() if splits is None or splits.parts[name] != LEFT_OUT}
    tables = _read_parquet(folder, used)
    gone = {"Parquet files of unused splits": len(named) - len(used)} if len(used) < len(named) else {}
    return replace(_selected(tables, _or_none(tables, splits), copy), left_out=gone, root=folder)


def _read_parquet(folder: Path, named: Mapping[str, str]) -> dict[str, datasets.Dataset]:
    """A table per name, in the order of the files; the library takes word characters only for names."""
    import datasets

    files: dict[str, list[str]] = {}
    for file, name in named.items():
        files.setdefault(name, []).append(str(folder / file))
    keys = {f"part{number}": name for number, name in enumerate(files)}
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # they would show our keys, not the user's names
    try:
        loaded = datasets.load_dataset("parquet", data_files={key: files[name] for key, name in keys.items()})
    finally:
        if shown:
            datasets.enable_progress_bars()
    return {name: cast("Mapping[str, datasets.Dataset]", loaded)[key] for key, name in keys.items()}


def _or_none(tables: Mapping[str, datasets.Dataset], splits: Splits | None) -> Parts:
    """The splits that names say; none if there is one table, from which ours are drawn."""
    used = {name: part for name, part in (splits.parts if splits else {}).items() if part != LEFT_OUT}
    if splits is None or len(used) < 2:
        if splits is None and len(tables) > 1:
            raise UserError(
                f"The splits {', '.join(tables)} say neither train nor test; say what they are with "
                f'{data_setting(f"splits.{next(iter(tables))}", "train")} ("" leaves one out).'
            )
        return Parts(tables, dict.fromkeys(used or tables, ""))
    return Parts(tables, used, splits.origin, splits.remarks)


def _selected(tables: Mapping[str, datasets.Dataset], parts: Parts, copy: HubCopy | None) -> Parts:
    """The tables of used splits; of videos in a known copy the middle frames."""
    gone = sum(len(table) for name, table in tables.items() if name not in parts.splits)
    used = {name: table for name, table in tables.items() if name in parts.splits}
    if copy and copy.video_columns:
        used = {name: table.select(_middle_frames(table, copy.video_columns)) for name, table in used.items()}
    return replace(parts, tables=used, left_out={"rows of unused splits": gone} if gone else {})


def _parts_of_copy(tables: Mapping[str, datasets.Dataset], copy: HubCopy, *, root: Path | None = None) -> Parts:
    """The splits of a known copy, as the catalog says; its others are left out."""
    kept = {name: copy.splits.get(name, "") for name in tables if copy.splits.get(name) or len(tables) == 1}
    if "test" not in kept.values() and "val" in kept.values():
        kept = {name: "test" if split == "val" else split for name, split in kept.items()}
    origin = "as the catalog says" if any(kept.values()) else ""
    return _selected(tables, Parts(tables, kept, origin, root=root), copy)


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
