"""The predictions of a trial for every test image, as a Parquet file beside `run.jsonl`.

Columns of single-label data: `split`, `name`, `part` and `client` of the test set and model as in score events, `row`
of the image in the data set, `image` its name there, as a path below the folder of the data, `truth`, `predicted`,
`probability`. Multi-label data have the logits `scores` and the `targets` (1, 0, -1 unknown) instead, as lists in the
order of the candidate classes. A run over sites has no names of images, which stay at the sites.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from fedprompt.data.dataset import Examples
from fedprompt.errors import UserError
from fedprompt.records.atomic_files import write_atomic

Key = tuple[str, str, str, int | None]  # split, name, part, client

SINGLE = ("truth", "predicted", "probability")


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for one test set: rows [N] of the data set, and the columns that the kind of task has."""

    key: Key
    rows: NDArray[np.int64]
    correct: NDArray[np.bool_] | None = None  # [N], single-label
    predicted: NDArray[np.object_] | None = None  # [N] class names, single-label
    scores: NDArray[np.float32] | None = None  # [N, C], multi-label
    targets: NDArray[np.int8] | None = None  # [N, C], multi-label


def prediction_table(key: Key, examples: Examples, logits: Tensor, *, names: bool) -> pa.Table:
    """The rows of the file for one model and test set, from logits [N, C]; with the `names` of images if wanted."""
    rows, targets, space = examples.images.rows, examples.targets, examples.space
    count = len(rows)
    columns: dict[str, pa.Array] = {
        name: pa.array([value] * count, pa.string()).dictionary_encode()
        for name, value in zip(("split", "name", "part"), key[:3], strict=True)
    }
    columns["client"] = pa.array([key[3]] * count, pa.int32())
    columns["row"] = pa.array(list(rows), pa.int64())
    if names:
        columns["image"] = pa.array([examples.images.describe(place) for place in range(count)], pa.string())
    if space.kind == "single":
        probability, chosen = logits.softmax(dim=1).max(dim=1)
        names = pa.array(space.names, pa.string())
        columns["truth"] = pa.DictionaryArray.from_arrays(pa.array(targets.numpy(), pa.int32()), names)
        columns["predicted"] = pa.DictionaryArray.from_arrays(pa.array(chosen.numpy(), pa.int32()), names)
        columns["probability"] = pa.array(probability.float().numpy())
    else:
        columns["scores"] = pa.array(list(logits.float().numpy()), pa.list_(pa.float32()))
        columns["targets"] = pa.array(list(targets.numpy().astype(np.int8)), pa.list_(pa.int8()))
    return pa.table(columns)


def predictions_path(run: Path, trial: str) -> Path:
    """The Parquet file of a trial in a run's folder."""
    return run / "predictions" / f"{quote(trial, safe='')}.parquet"


def write_predictions(run: Path, trial: str, tables: Sequence[pa.Table]) -> None:
    """Write the predictions of a trial, atomically."""
    plain = [table.cast(pa.schema([_plain(field) for field in table.schema])) for table in tables]
    buffer = io.BytesIO()
    table = pa.concat_tables(plain)
    options = {}
    if "scores" in table.column_names:
        # Logits as streams of their first, second, ... bytes: signs and exponents compress, which saves a fifth.
        others = [name for name in table.column_names if name not in ("scores", "targets")]
        options = {
            "use_byte_stream_split": ["scores.list.element"],
            "use_dictionary": [*others, "targets.list.element"],
        }
    pq.write_table(table, buffer, compression="zstd", **options)
    write_atomic(predictions_path(run, trial), buffer.getvalue())


def read_predictions(run: Path, trial: str) -> Iterator[Predictions]:
    """The predictions of a trial, one value per model and test set; nothing if the file does not exist.

    Raises UserError for a file that is not Parquet.
    """
    path = predictions_path(run, trial)
    if not path.is_file():
        return
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"The file {path} cannot be read as Parquet ({error}); delete it to do without it.") from error
    keys = table.select(["split", "name", "part", "client"]).to_pylist()
    places: dict[Key, list[int]] = {}
    for place, fields in enumerate(keys):
        places.setdefault((fields["split"], fields["name"], fields["part"], fields["client"]), []).append(place)
    for key, found in places.items():
        part = table.take(found)
        rows = part["row"].to_numpy()
        if "scores" in part.column_names:
            scores, targets = (_matrix(part[name], len(rows)) for name in ("scores", "targets"))
            yield Predictions(key, rows, scores=scores.astype(np.float32), targets=targets.astype(np.int8))
        else:
            correct = pc.equal(part["truth"], part["predicted"]).to_numpy()
            predicted = np.array(part["predicted"].to_pylist(), dtype=object)
            yield Predictions(key, rows, correct=correct, predicted=predicted)


def _matrix(column: pa.ChunkedArray, rows: int) -> NDArray[np.generic]:
    """[N, C] from lists of C values."""
    values: NDArray[np.generic] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(rows, -1)


def _plain(field: pa.Field) -> pa.Field:
    """The field with text instead of dictionary indices, because test sets differ in their classes."""
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
