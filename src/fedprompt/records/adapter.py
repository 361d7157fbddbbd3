"""The adapter folder: trained tensors and their configuration without the backbone, as PEFT and the Hub lay it out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import fedprompt
from fedprompt.clip.precision import Precision
from fedprompt.data.labels import Kind, LabelSpace
from fedprompt.errors import UserError, option
from fedprompt.file_system import open_file, read_bytes, too_large
from fedprompt.records.atomic_files import write_atomic
from fedprompt.records.event_fields import table_value
from fedprompt.text_files import json_text, load_json

FORMAT = 1
TASKS: dict[Kind, str] = {"single": "single", "multi": "multi-label"}
KINDS: dict[str, Kind] = {task: kind for kind, task in TASKS.items()}
# Limits for files that may come from elsewhere: a replaced file must not fill the memory. Descriptions of a large
# data set stay below them; what makes parsing expensive is objects with many keys.
LARGEST_JSON = 16_000_000
MOST_KEYS = 200_000
LARGEST_HEADER = 1 << 20
MOST_CLASSES = 50_000  # ImageNet has 21,841
WEIGHTS = "adapter_model.safetensors"
LARGEST_WEIGHTS = 1 << 32  # bytes of that file, all of which are read for its hash
COPY_AGAIN = "copy the adapter again"

Value = TypeVar("Value")
Text = Annotated[str, Field(max_length=2000)]


@dataclass(frozen=True)
class AdapterCard:
    """`adapter_config.json`: method, options, backbone and class names of an adapter."""

    method: str
    task: str
    base_model_name_or_path: str
    base_model_sha256: str
    class_names: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MOST_CLASSES)]
    templates: Annotated[tuple[Text, ...], Field(max_length=1000)]
    params: dict[str, object]
    format_version: int = FORMAT
    library_name: str = "fedprompt"
    fedprompt_version: str = fedprompt.__version__
    revision: str | None = None
    thresholds: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = (
        None  # multi label, fitted on images that were not tested on; None: not fitted
    )
    fitted_classes: Annotated[int, Field(ge=1)] | None = (
        None  # the first classes, among which alone the thresholds were fitted; None: all of them
    )
    image_policy: str = "RGB; EXIF orientation applied; 16-bit scaled, never clipped; alpha over white"
    dtype: str = "float32"  # of the trained tensors
    precision: Precision = "float32"  # that the backbone computed in, which figures of the run are of
    weights_sha256: str | None = None  # of the file of tensors; None in adapters of earlier versions


@dataclass(frozen=True)
class DescriptionsFile:
    """`attributes.json`: the class descriptions that the method was trained with."""

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    attributes: dict[str, Annotated[tuple[Text, ...], Field(max_length=1000)]]
    conditions: Annotated[tuple[Text, ...], Field(max_length=1000)] = ()


@dataclass(frozen=True)
class Adapter:
    """An adapter folder without its tensors, which are read once the method is known.

    `trusted` are the modules outside fedprompt that the user allows as its method.
    """

    folder: Path
    card: AdapterCard
    space: LabelSpace
    trusted: tuple[str, ...] = ()


def save_adapter(
    folder: Path,
    card: AdapterCard,
    shared: Mapping[str, Tensor],
    *,
    space: LabelSpace,
    files: Mapping[str, str | bytes],
) -> None:
    """Write the folder with the class descriptions of `space`.

    `files` are further files by path (README.md, metrics.json, provenance.json). The configuration is written last,
    so a folder that has one is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in shared.items()}
    weights = save(tensors, metadata={"format": "pt"})
    write_atomic(folder / WEIGHTS, weights)
    descriptions = DescriptionsFile(card.class_names, card.templates, dict(space.attributes), space.conditions)
    write_atomic(folder / "attributes.json", to_json(asdict(descriptions)))
    for name, content in files.items():
        write_atomic(folder / name, content)
    write_atomic(
        folder / "adapter_config.json",
        to_json(asdict(replace(card, weights_sha256=hashlib.sha256(weights).hexdigest()))),
    )


def to_json(value: object) -> str:
    """Indented JSON with a final newline; what JSON lacks is written as in `run.jsonl`."""
    return json_text(table_value(value), indent=2, ascii_only=False) + "\n"


def load_adapter(folder: Path) -> Adapter:
    """Read an adapter without its tensors; UserError if it is missing, damaged, or of another library or format.

    The bytes of the tensors are those that were written, by their hash, if the adapter has one; `check_tensors`
    compares the header of their file with what the method has.
    """
    card = _read(folder / "adapter_config.json", AdapterCard)
    if card.library_name != "fedprompt" or card.format_version != FORMAT:
        raise UserError(
            f"{folder} is an adapter of {card.library_name} in format {card.format_version}, and this version reads "
            f"fedprompt's format {FORMAT}; load it with the library that wrote it."
        )
    descriptions = _read(folder / "attributes.json", DescriptionsFile)
    if card.task not in KINDS or not card.templates:
        raise UserError(f"{folder / 'adapter_config.json'} names no known task or no template; {COPY_AGAIN}.")
    space = LabelSpace(
        card.class_names, KINDS[card.task], card.templates[0], descriptions.attributes, descriptions.conditions
    )
    adapter = Adapter(folder, card, space)
    with _opened(adapter):
        _check_hash(adapter)
        return adapter


def _read(path: Path, form: type[Value]) -> Value:
    """Read JSON of limited size into a dataclass and check its types."""
    content = read_bytes(path, "give an adapter folder or a run folder", most=LARGEST_JSON)
    try:
        return TypeAdapter(form).validate_python(load_json(content, most_keys=MOST_KEYS))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or "the file"
        raise UserError(f"{path} is damaged ({place}: {first['msg']}); {COPY_AGAIN}.") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {COPY_AGAIN}.") from error


def _check_hash(adapter: Adapter) -> None:
    """UserError unless the file of tensors has the hash that was written with it; an adapter may have none."""
    if adapter.card.weights_sha256 is None:
        return
    path = adapter.folder / WEIGHTS
    if path.stat().st_size > LARGEST_WEIGHTS:
        raise UserError(too_large(path, LARGEST_WEIGHTS, COPY_AGAIN))
    with open_file(path, COPY_AGAIN) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != adapter.card.weights_sha256:
        raise UserError(
            f"{path} is damaged (its SHA-256 is {found[:12]}, not {adapter.card.weights_sha256[:12]} as in "
            f"adapter_config.json); {COPY_AGAIN}."
        )


def check_tensors(adapter: Adapter, expected: Mapping[str, Tensor]) -> None:
    """Check the file's size, and all names and shapes in its header, against `expected`; no tensor is read.

    `expected` may be on the meta device. Raises UserError with the first difference.
    """
    with _opened(adapter) as file:
        path = adapter.folder / WEIGHTS
        _check_size(path, expected)
        _check_shapes(path, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, expected)  # noqa: SIM118 (not a dict)


@contextmanager
def _opened(adapter: Adapter) -> Iterator[Any]:
    """The file of tensors, of which the header is read; UserError if it is none or cannot be read."""
    path = adapter.folder / WEIGHTS
    try:
        with open_file(path, COPY_AGAIN) as file:
            header = int.from_bytes(file.read(8), "little")
        if header > LARGEST_HEADER:
            raise UserError(f"{path} cannot be read (it is no safetensors file); {COPY_AGAIN}.")
        with safe_open(path, framework="pt") as opened:
            yield opened
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); {COPY_AGAIN}.") from error


def check_backbone(adapter: Adapter, fingerprint: str) -> None:
    """Raise UserError if a backbone is another one than the adapter's."""
    card = adapter.card
    if card.base_model_sha256 != fingerprint:
        raise UserError(
            f"The adapter {adapter.folder} was trained on the backbone {card.base_model_name_or_path} "
            f"({card.base_model_sha256[:12]}) and the one given is {fingerprint[:12]}; give the first with "
            f"{option('backbone', 'clip')}."
        )


def load_tensors(adapter: Adapter, expected: Mapping[str, Tensor], *, fingerprint: str) -> dict[str, Tensor]:
    """Read the tensors after everything that `check_backbone` and `check_tensors` do.

    Raises UserError with the first difference before any tensor is read.
    """
    check_backbone(adapter, fingerprint)
    check_tensors(adapter, expected)
    with _opened(adapter) as file:
        return {name: file.get_tensor(name).to(expected[name].dtype) for name in expected}


def _check_size(path: Path, expected: Mapping[str, Tensor]) -> None:
    largest = LARGEST_HEADER + sum(8 * tensor.numel() for tensor in expected.values())
    if path.stat().st_size > largest:
        raise UserError(f"{path} has {path.stat().st_size} bytes and its method holds at most {largest}; {COPY_AGAIN}.")


def _check_shapes(path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, Tensor]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"{path} holds {name} as {found.get(name, 'nothing')} where its method has "
                f"{wanted.get(name, 'nothing')}; it belongs to another method, other options or another backbone."
            )
