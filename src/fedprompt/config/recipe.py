"""Recipes: experiments as TOML files, read, changed by `--set key=value` and validated by pydantic."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, cast

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
    RuntimeTable,
    Table,
    Toml,
    TrainTable,
    TuningTable,
)
from fedprompt.config.settings import Fit, apply_settings, suggestion
from fedprompt.config.tuned import PAPER, Defaults
from fedprompt.config.values import refused_value, table_in
from fedprompt.errors import UserError, did_you_mean, plural
from fedprompt.file_system import is_file, require_file
from fedprompt.text_files import LARGEST_TOML, load_toml, read_unicode

Model = TypeVar("Model", bound=BaseModel)


class Spoken(type(BaseModel)):  # type: ignore[misc]
    """The type of tables that Python code makes by a call: a mistake in the call is one sentence, as in a file."""

    def __call__(cls, /, *values: Any, **keys: Any) -> Any:
        """Make the table; UserError for an unknown key or a refused value."""
        try:
            return super().__call__(*values, **keys)
        except ValidationError as error:
            raise UserError(_sentence(error, cast("type[BaseModel]", cls), cls.__name__)) from None


class Recipe(Table, metaclass=Spoken):
    """One experiment: a main method and others to compare it with, on the same data, partition and seed.

    Its fields are the keys and tables of a recipe's TOML file (docs/recipes.md). Raises UserError for unknown keys,
    wrong types and values out of range. `fp.run(recipe)` runs it.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", description="name of the run and of its folder")
    about: str = Field("", description="one sentence for the report")
    seed: int = Field(1, ge=0, description="seed of every random draw")
    check: bool = Field(
        default=False, description="open every image of the data set before training, not only those that the run uses"
    )
    defaults: Defaults = Field(
        PAPER,
        description="settings that the recipe leaves open: those of each method's paper, or those tuned for data of "
        'one\'s own ("single-label", "multi-label"), where contexts also start from data.template',
    )
    minutes: float = Field(
        0,
        ge=0,
        description="time for training and scoring, divided between the methods that train; as many rounds as fit, "
        "and train.rounds at most; 0 is no limit",
    )
    track: tuple[str, ...] = Field(
        (), description="experiment trackers that follow the run: tensorboard, wandb, mlflow and others of accelerate"
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
    runtime: RuntimeTable = RuntimeTable()
    tuning: TuningTable = TuningTable()
    vary: dict[str, tuple[Toml, ...]] = Field(
        {},
        description="groups of settings that `fedprompt compare` runs one by one; a setting is a table of dotted keys "
        'and values, such as { "train.rounds" = 30 }',
    )

    def to_toml(self, *, defaults: bool = True) -> str:
        """TOML text with every default written out, or only with what the recipe sets; parsing it gives the recipe."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True, exclude_unset=not defaults))


def bundled_recipes() -> Mapping[str, Path]:
    """The recipes that are included in the package, by name."""
    own = Path(str(files("fedprompt") / "recipes"))
    return {path.stem: path for path in sorted(own.glob("*.toml"))}


def find_recipe(name: str) -> Path:
    """A recipe's file: a path, or the name of a recipe that is included in the package; UserError if there is none."""
    known = bundled_recipes()
    path = Path(name)
    if name in known and not is_file(path):  # a folder of that name is no recipe
        return known[name]
    if os.path.lexists(path):
        require_file(path, "give a recipe, which is a TOML file")
    elif name.endswith(".toml") or "/" in name:
        raise UserError(f"The file {name} does not exist; give a recipe, or one of {', '.join(known)}.")
    elif not is_file(path):
        raise UserError(
            f"There is no recipe {name!r}{did_you_mean(name, known)} (a TOML file, or one of {', '.join(known)})."
        )
    return path


def load_recipe(path: Path, settings: Sequence[str] = (), *, fit: Fit | None = None) -> Recipe:
    """Read a TOML recipe and apply `key=value` settings; UserError if it cannot be read or a key is unknown."""
    return parse_recipe(read_unicode(path, most=LARGEST_TOML), settings, origin=path.name, fit=fit)


def parse_recipe(text: str, settings: Sequence[str] = (), *, origin: str = "recipe", fit: Fit | None = None) -> Recipe:
    """Parse a recipe's TOML text; `origin` names it in messages, and `fit` adapts it to settings."""
    try:
        tables = load_toml(text)
    except ValueError as error:
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
    *tables, key = map(str, _key(model, first["loc"]))
    place = f"{origin}: " + (f"[{'.'.join(tables)}] " if tables else "")
    # A value that no member of a union accepts is one mistake, with an error per member.
    own = _key(model, first["loc"])
    same = [first, *(other for other in others if _key(model, other["loc"]) == own)]
    count = len({_key(model, other["loc"]) for other in others} - {own})
    more = f" ({plural(count, 'more mistake')} after this one.)" if count else ""
    if first["type"] == "extra_forbidden":
        known = list((_model_at(model, first["loc"][:-1]) or model).model_fields)
        return f"{place}has no key {key!r}{suggestion(key, known, recipe_keys())} (known: {', '.join(known)}).{more}"
    if first["type"] == "missing":
        is_table = _model_at(model, first["loc"]) is not None
        what = f"the table [{'.'.join((*tables, key))}]" if is_table else f"the key {key!r}"
        return f"{place}lacks {what}; add it.{more}"
    # A table where a value belongs, as of `--set train.optimizer.lr=1`, or one with a number that cannot be meant.
    misplaced = isinstance(first["input"], dict) and first["type"] != "number"
    inner = next(iter(first["input"]), "") if misplaced else ""
    hint = suggestion(str(inner), (), recipe_keys()) if inner else ""
    return f"{place}{refused_value(same, key, '.'.join(tables))}{hint or '.'}{more}"


def recipe_key_hint(key: str, known: Collection[str]) -> str:
    """`"; did you mean 'train.lr'?"` for a key that is unknown where it stands; `known` are the keys of that place."""
    return suggestion(key, known, recipe_keys())


@functools.cache
def recipe_keys() -> tuple[str, ...]:
    """All dotted keys of a recipe, without options of building blocks: seed, backbone.path, ..., tuning.grid."""
    return tuple(_dotted(Recipe, ""))


def _dotted(model: type[BaseModel], before: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = table_in(field.annotation)
        if inner is None:
            yield before + name
        elif name != "compare":
            yield from _dotted(inner, f"{before}{name}.")


def _key(model: type[BaseModel], location: Sequence[int | str]) -> tuple[int | str, ...]:
    """The path of the key that a validation error is about, without the steps into the key's value."""
    for depth in range(1, len(location)):
        if _model_at(model, location[:depth]) is None:
            return tuple(location[:depth])
    return tuple(location)


def _model_at(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel] | None:
    """The (nested) model of the table at a path; None where a key's value is no table."""
    found: type[BaseModel] | None = model
    for step in path:
        if isinstance(step, int) or found is None:
            continue
        field = found.model_fields.get(step)
        found = None if field is None else table_in(field.annotation)
    return found
