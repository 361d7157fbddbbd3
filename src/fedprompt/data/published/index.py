"""A listing kept as Parquet, so that a data set of a million pictures is listed once and opened in a second."""

from __future__ import annotations

import hashlib
import json
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

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
FIRST = 10_000  # pictures below which reading the lists again is as fast


@dataclass(frozen=True, eq=False)
class Column(Sequence[str]):
    """Words of an Arrow column, made one by one when asked for."""

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


def home() -> Path:
    """Where indexes are kept: $FEDPROMPT_CACHE, else the user's cache folder."""
    given = os.environ.get("FEDPROMPT_CACHE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given).expanduser() if given else cache / "fedprompt"


def indexed(root: Path, wanted: str, read: Callable[[], Listing], *, cache: Path | None = None) -> tuple[Listing, str]:
    """The listing of a data set, from its index if nothing it was made from has changed, and a fingerprint.

    `wanted` says what is read and how (a row of the table with all options). The index holds the time of change of
    every folder and list that the reader looked at; a picture replaced in its place, with the folder untouched, is
    not seen. Small listings are not kept: their fingerprint is "" and a source hashes its files.
    """
    file = (cache or home()) / "indexes" / f"{_digest(VERSION, str(root.resolve()), wanted)}.parquet"
    if (found := _reopen(file, root)) is not None:
        return found
    listing = read()
    if len(listing.files) < FIRST:
        return listing, ""
    _write(file, listing, root)
    found = _reopen(file, root)
    assert found is not None, "an index that was just written can be read"
    return found


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _times(root: Path, stamps: Sequence[str]) -> str:
    """When each folder and list last changed; 0 for one that is not there, which its appearing changes."""
    times = []
    for stamp in stamps:
        try:
            times.append(os.stat(root / stamp).st_mtime_ns)
        except OSError:
            times.append(0)
    return json.dumps(times)


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
        "stamps": listing.stamps,
        "times": _times(root, listing.stamps),
        "notes": listing.notes,
        "walked": listing.walked,
        "tests": None if listing.tests is None else dict(listing.tests),
        "base": listing.base,
        "fingerprint": _fingerprint(table),
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
            pq.write_table(table.replace_schema_metadata({"fedprompt": json.dumps(about)}), part, compression="zstd")
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
        about = json.loads(table.schema.metadata[b"fedprompt"])
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None  # damaged: it is only a memory, and is made again
    if about["times"] != _times(root, about["stamps"]):
        return None
    tests = about["tests"] and {word: tuple(labels) for word, labels in about["tests"].items()}
    listing = Listing(
        names=tuple(about["names"]),
        files=Column(table["file"]),
        targets=_tensor(table["target"].combine_chunks()),
        splits=_words(table["split"]),
        domains=_words(table["domain"]),
        stamps=tuple(about["stamps"]),
        notes=tuple(about["notes"]),
        walked=about["walked"],
        tests=tests,
        base=None if about["base"] is None else tuple(about["base"]),
    )
    return listing, about["fingerprint"]


def _tensor(values: pa.Array) -> Tensor:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(values.type):
        flat = torch.from_numpy(values.flatten().to_numpy().copy())
        return flat.reshape(len(values), -1)
    return torch.from_numpy(values.to_numpy().copy())


def _words(column: pa.ChunkedArray) -> tuple[str, ...]:
    """A column of few different words, each made once."""
    encoded = column.combine_chunks()
    words = encoded.dictionary.to_pylist()
    if len(words) == 1:
        return tuple(repeat(words[0], len(encoded)))
    return tuple(words[code] for code in encoded.indices.to_pylist())
