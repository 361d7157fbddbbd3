"""The file index: a listing cached as Parquet, so that a data set of a million images opens in a second."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from fedprompt.data.published.listing import Listing
from fedprompt.errors import UserError
from fedprompt.text_files import json_text, load_json_object

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 2
MIN_FILES = 10_000  # below, reading the lists again is as fast


@dataclass(frozen=True, eq=False)
class LazyColumn(Sequence[str]):
    """Strings of an Arrow column, converted one by one when accessed."""

    values: pa.ChunkedArray

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[row] for row in range(len(self))[index]]
        return str(self.values[index].as_py())

    def __iter__(self) -> Iterator[str]:
        for chunk in self.values.chunks:
            yield from chunk.to_pylist()


def cache_folder() -> Path:
    """Where indexes are stored: $FEDPROMPT_CACHE, else the user's cache folder."""
    given = os.environ.get("FEDPROMPT_CACHE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given).expanduser() if given else cache / "fedprompt"


def indexed(root: Path, key: str, read: Callable[[], Listing], *, cache: Path | None = None) -> tuple[Listing, str]:
    """The listing of a data set, from its index if nothing it depends on has changed, and a fingerprint.

    `key` identifies what is read and how (the layout with all options). The index holds the modification time of
    every file and folder that the reader looked at; an image that is overwritten in place is not noticed. Small
    listings are not cached: their fingerprint is "" and a source hashes its files.
    """
    file = (cache or cache_folder()) / "indexes" / f"{_digest(VERSION, str(root.resolve()), key)}.parquet"
    if (found := _reopen(file, root)) is not None:
        return found
    listing = read()
    if len(listing.files) < MIN_FILES:
        return listing, ""
    _write(file, listing, root)
    found = _reopen(file, root)
    assert found is not None, "an index that was just written can be read"
    return found


def _digest(*parts: object) -> str:
    return hashlib.sha256(json_text(parts).encode()).hexdigest()[:32]


def _times(root: Path, dependencies: Sequence[str]) -> str:
    """When each file and folder was last modified; 0 for one that does not exist."""
    times = []
    for name in dependencies:
        try:
            times.append(os.stat(root / name).st_mtime_ns)
        except OSError:
            times.append(0)
    return json_text(times)


def _write(file: Path, listing: Listing, root: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    targets = listing.targets.numpy()
    labels = (
        pa.array(targets) if targets.ndim == 1 else pa.FixedSizeListArray.from_arrays(targets.ravel(), targets.shape[1])
    )
    sizes = [_size(root / path) for path in listing.files]
    table = pa.table(
        {
            "file": pa.array(listing.files, pa.large_string()),
            "target": labels,
            "split": pa.array(listing.splits).dictionary_encode(),
            "domain": pa.array(listing.domains).dictionary_encode(),
            "bytes": pa.array(sizes, pa.int64()),
        }
    )
    about = {
        "names": listing.names,
        "dependencies": listing.dependencies,
        "times": _times(root, listing.dependencies),
        "notes": listing.notes,
        "missing_note": listing.missing_note,
        "files_exist": listing.files_exist,
        "test_candidates": None if listing.test_candidates is None else dict(listing.test_candidates),
        "base": listing.base,
        "fingerprint": _fingerprint(table),
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
            pq.write_table(table.replace_schema_metadata({"fedprompt": json_text(about)}), part, compression="zstd")
        os.replace(part.name, file)
    except OSError as error:
        raise UserError(
            f"The index {file} cannot be written ({error.strerror}); set FEDPROMPT_CACHE to a folder that can be."
        ) from error


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); restore or remove it.") from error


def _fingerprint(table: pa.Table) -> str:
    digest = hashlib.sha256()
    for name in ("file", "target", "bytes"):
        for chunk in table[name].chunks:
            for buffer in chunk.buffers():
                digest.update(buffer or b"")
    return digest.hexdigest()[:32]


def _reopen(file: Path, root: Path) -> tuple[Listing, str] | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.exists():
        return None
    try:
        table = pq.read_table(file)
        about = load_json_object(table.schema.metadata[b"fedprompt"])
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None  # damaged: it is only a cache, and is made again
    if about["times"] != _times(root, about["dependencies"]):
        return None
    candidates = about["test_candidates"]
    listing = Listing(
        names=tuple(about["names"]),
        files=LazyColumn(table["file"]),
        targets=_tensor(table["target"].combine_chunks()),
        splits=_strings(table["split"]),
        domains=_strings(table["domain"]),
        dependencies=tuple(about["dependencies"]),
        notes=tuple(about["notes"]),
        missing_note=about["missing_note"],
        files_exist=about["files_exist"],
        test_candidates=candidates and {split: tuple(labels) for split, labels in candidates.items()},
        base=None if about["base"] is None else tuple(about["base"]),
    )
    return listing, about["fingerprint"]


def _tensor(values: pa.Array) -> Tensor:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(values.type):
        flat = torch.from_numpy(values.flatten().to_numpy().copy())
        return flat.reshape(len(values), -1)
    return torch.from_numpy(values.to_numpy().copy())


def _strings(column: pa.ChunkedArray) -> tuple[str, ...]:
    """A dictionary-encoded column as strings, each distinct value created once."""
    encoded = column.combine_chunks()
    values = encoded.dictionary.to_pylist()
    if len(values) == 1:
        return tuple(repeat(values[0], len(encoded)))
    return tuple(values[code] for code in encoded.indices.to_pylist())
