"""Recipes: experiments as TOML files, read, changed by `--set key=value` and validated by pydantic."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, Field, ValidationError

from fedprompt.config.recipe_tables import (
    AnnotationTable,
    BackboneTable,
    DataTable,
    DescriptionsTable,
    EvaluateTable,
    MethodTable,
    PartitionTable,
    Table,
    Toml,
    TrainTable,
    TuningTable,
)
from fedprompt.errors import UserError, did_you_mean
from fedprompt.text_files import read_unicode

Model = TypeVar("Model", bound=BaseModel)


class Recipe(Table):
    """One experiment: a main method and others to compare it with, on the same data, partition and seed."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="name of the run and of its folder")
    about: str = Field("", description="one sentence for the report")
    seed: int = Field(1, ge=0, description="seed of every random draw")
    check: bool = Field(
        default=False, description="open every image of the data set before training, not only those that the run uses"
    )
    backbone: BackboneTable = BackboneTable()
    data: DataTable
    partition: PartitionTable
    annotation: AnnotationTable = AnnotationTable()
    descriptions: DescriptionsTable = DescriptionsTable()
    method: MethodTable
    compare: tuple[MethodTable, ...] = Field((), description="methods to train beside the main one")
    train: TrainTable = TrainTable()
    evaluate: EvaluateTable = EvaluateTable()
    tuning: TuningTable = TuningTable()

    def to_toml(self, *, defaults: bool = True) -> str:
        """TOML text with every default written out, or only with what the recipe sets; parsing it gives the recipe."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True, exclude_unset=not defaults))


def find_recipe(name: str) -> Path:
    """A recipe's file: a path, or the name of a recipe that is included in the package; UserError if there is none."""
    own = Path(str(files("fedprompt") / "recipes"))
    known = {path.stem: path for path in sorted(own.glob("*.toml"))}
    if name in known and not Path(name).is_file():  # a folder of that name is no recipe
        return known[name]
    if not Path(name).is_file():
        raise UserError(
            f"There is no recipe {name!r}{did_you_mean(name, known)} (a TOML file, or one of {', '.join(known)})."
        )
    return Path(name)


def load_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """Read a TOML recipe and apply `key=value` settings; UserError if it cannot be read or a key is unknown."""
    return parse_recipe(read_unicode(path), settings, origin=path.name)


def parse_recipe(text: str, settings: Sequence[str] = (), *, origin: str = "recipe") -> Recipe:
    """Parse a recipe's TOML text; `origin` names it in messages."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"The recipe {origin} is not valid TOML ({error}); correct that line.") from error
    for setting in settings:
        _apply(tables, setting)
    return checked(Recipe, tables, origin=origin)


def _apply(tables: Toml, setting: str) -> None:
    """Write a setting such as `train.rounds=3` into the tables; a value that is not TOML is taken as text."""
    key, equals, value = setting.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {setting!r} is not of the form key=value; write e.g. --set train.rounds=3.")
    *parents, last = key.strip().split(".")
    place: Any = tables
    for parent in parents:
        place = _enter(place, parent, setting)
    if not isinstance(place, dict):
        raise UserError(f"--set {setting!r} does not name a key of a table; write e.g. --set train.rounds=3.")
    place[last] = _value(value.strip())


def _enter(place: Any, key: str, setting: str) -> Any:
    if isinstance(place, dict):
        return place.setdefault(key, {})
    if isinstance(place, list) and key.isdigit() and int(key) < len(place):
        return place[int(key)]
    raise UserError(
        f"--set {setting!r} names {key!r}, which is not a table of the recipe; tables in a list are counted from 0."
    )


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def checked(model: type[Model], tables: Mapping[str, Any], *, origin: str) -> Model:
    """Validate tables against a model; UserError with one sentence about the first mistake."""
    try:
        return model.model_validate(tables)
    except ValidationError as error:
        raise UserError(_sentence(error, model, origin)) from None


def _sentence(error: ValidationError, model: type[BaseModel], origin: str) -> str:
    first, *others = error.errors(include_url=False)
    *tables, key = [str(step) for step in first["loc"]]
    place = f"{origin}: " + (f"[{'.'.join(tables)}] " if tables else "")
    more = f" ({len(others)} more mistake{'s' if len(others) > 1 else ''} after this one.)" if others else ""
    if first["type"] == "extra_forbidden":
        known = _keys(model, first["loc"][:-1])
        return f"{place}has no key {key!r}{did_you_mean(key, known)} (known: {', '.join(known)}).{more}"
    if first["type"] == "missing":
        return f"{place}lacks the key {key!r}; add it.{more}"
    return f"{place}{key} = {first['input']!r} is not accepted: {first['msg'][0].lower()}{first['msg'][1:]}.{more}"


def _keys(model: type[BaseModel], path: Iterable[int | str]) -> list[str]:
    """The keys of the (nested) model at a location of a validation error."""
    for step in path:
        annotation = model.model_fields[step].annotation if isinstance(step, str) else model
        model = next((part for part in (annotation, *getattr(annotation, "__args__", ())) if _is_model(part)), model)
    return list(model.model_fields)


def _is_model(part: object) -> bool:
    return isinstance(part, type) and issubclass(part, BaseModel)
