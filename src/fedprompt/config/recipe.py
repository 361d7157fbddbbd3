"""Recipes: experiments as TOML files, read, changed by `--set key=value` and validated by pydantic."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo

from fedprompt.config.phrases import reason
from fedprompt.config.recipe_tables import (
    AnnotationTable,
    BackboneTable,
    DataTable,
    DescriptionsTable,
    EvaluateTable,
    MethodTable,
    PartitionTable,
    Table,
    TrainTable,
    TuningTable,
)
from fedprompt.config.settings import Fit, apply_settings, suggestion
from fedprompt.errors import UserError, did_you_mean, plural
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
        if name.endswith(".toml") or "/" in name:
            raise UserError(f"The file {name} does not exist; give a recipe, or one of {', '.join(known)}.")
        raise UserError(
            f"There is no recipe {name!r}{did_you_mean(name, known)} (a TOML file, or one of {', '.join(known)})."
        )
    return Path(name)


def load_recipe(path: Path, settings: Sequence[str] = (), *, fit: Fit | None = None) -> Recipe:
    """Read a TOML recipe and apply `key=value` settings; UserError if it cannot be read or a key is unknown."""
    return parse_recipe(read_unicode(path), settings, origin=path.name, fit=fit)


def parse_recipe(text: str, settings: Sequence[str] = (), *, origin: str = "recipe", fit: Fit | None = None) -> Recipe:
    """Parse a recipe's TOML text; `origin` names it in messages, and `fit` adapts it to settings."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"The recipe {origin} is not valid TOML ({error}); correct that line.") from error
    apply_settings(tables, settings, keys=recipe_keys(), fit=fit)
    return checked(Recipe, tables, origin=origin)


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
    more = f" ({plural(len(others), 'more mistake')} after this one.)" if others else ""
    if first["type"] == "extra_forbidden":
        known = _fields(model, first["loc"][:-1])
        return f"{place}has no key {key!r}{suggestion(key, known, recipe_keys())} (known: {', '.join(known)}).{more}"
    if first["type"] == "missing":
        field = _fields(model, first["loc"][:-1])[key]
        what = f"the table [{'.'.join((*tables, key))}]" if _model_in(field.annotation) else f"the key {key!r}"
        return f"{place}lacks {what}; add it.{more}"
    inner = next(iter(first["input"]), "") if isinstance(first["input"], dict) else ""
    hint = suggestion(str(inner), (), recipe_keys()) if inner else ""
    return f"{place}{key} = {first['input']!r} is not accepted: {reason(first)}{hint or '.'}{more}"


def recipe_key_hint(key: str, known: Collection[str]) -> str:
    """`"; did you mean 'train.lr'?"` for a key that is unknown where it stands; `known` are the keys of that place."""
    return suggestion(key, known, recipe_keys())


@functools.cache
def recipe_keys() -> tuple[str, ...]:
    """All dotted keys of a recipe, without options of building blocks: seed, backbone.path, ..., tuning.grid."""
    return tuple(_dotted(Recipe, ""))


def _dotted(model: type[BaseModel], before: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is None:
            yield before + name
        elif name != "compare":
            yield from _dotted(inner, f"{before}{name}.")


def _fields(model: type[BaseModel], path: Iterable[int | str]) -> Mapping[str, FieldInfo]:
    """The fields of the (nested) model at a location of a validation error."""
    for step in path:
        model = (_model_in(model.model_fields[step].annotation) if isinstance(step, str) else None) or model
    return model.model_fields


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model of the table, or of each table of a list, that a field of this type holds; None if it holds none."""
    parts = (annotation, *getattr(annotation, "__args__", ()))
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)
