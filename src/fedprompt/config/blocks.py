"""Building blocks with their options: a signature is the schema of a recipe's table, and checked options are bound."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from fedprompt.config.recipe_tables import NamedBlock, Toml
from fedprompt.config.values import Settings, refused_value
from fedprompt.errors import UserError, a, did_you_mean

SUPPLIED = ("generator", "on_step")  # keywords that the caller of a block supplies, hence no options
Built = TypeVar("Built", covariant=True)
Named = TypeVar("Named", bound=NamedBlock)
Hint = Callable[[str, Collection[str]], str]  # (unknown key, known keys) -> "; did you mean 'x'?", or nothing


@dataclass(frozen=True)
class Block(Generic[Built]):
    """A function or class with its checked options bound; call it to get the object.

    `options` are the builder's keywords, all of them, with paths made absolute. With `returns`, a call raises UserError
    for an object of another type, which code of one's own may return.
    """

    name: str
    builder: Callable[..., Built]
    options: Mapping[str, Any]
    returns: type | None = None

    def __call__(self, *objects: object, **supplied: object) -> Built:
        """Build from positional objects and those supplied keywords (`SUPPLIED`) that the builder takes."""
        taken = {name: value for name, value in supplied.items() if has_keyword(self.builder, name)}
        built = self.builder(*objects, **self.options, **taken)
        if self.returns is not None and not isinstance(built, self.returns):
            given, wanted = a(type(built).__name__), a(self.returns.__name__)
            raise UserError(f"The function {self.name!r} returned {given}; it is to return {wanted}.")
        return built

    def returning(self, kind: type) -> Block[Built]:
        """The same block, of which a call raises UserError for an object of another type."""
        return replace(self, returns=kind)

    def with_options(self, options: Mapping[str, Any]) -> Block[Built]:
        """The same builder with other values of some options."""
        return replace(self, options={**self.options, **options})

    @property
    def written(self) -> Toml:
        """The options as a recipe writes them: paths are text, and an option without a value is left out."""
        return {name: _written(value) for name, value in self.options.items() if value is not None}


def bind(
    name: str, builder: Callable[..., Any], options: Mapping[str, Any], *, place: str, hint: Hint = did_you_mean
) -> Block[Any]:
    """Check a table's options against the builder's signature and fill in defaults.

    `place` ("demo.toml: [method]") names the table in the UserError for an option that is unknown, missing or of a
    wrong value; `hint` suggests another key for an unknown one.
    """
    checked = check_options(builder, options, place=place, name=name, hint=hint)
    return Block(name, builder, {key: _absolute(value) for key, value in checked.items()})


def with_defaults(table: Named, block: Block[Any]) -> Named:
    """The table that names a block, with every option of the block written out."""
    known = {name: getattr(table, name) for name in type(table).model_fields}
    return type(table)(**known, **block.written)


def has_keyword(builder: Callable[..., object], keyword: str) -> bool:
    """Whether a builder has a keyword."""
    return keyword in inspect.signature(builder).parameters


def option_parameters(builder: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    """The keyword-only parameters of a builder that are options, by name."""
    return {
        name: parameter
        for name, parameter in inspect.signature(builder).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in SUPPLIED
    }


class Options(Settings):
    """The base of models of options, whose types may be any classes."""

    model_config = ConfigDict(arbitrary_types_allowed=True)


def options_model(builder: Callable[..., object]) -> type[Options]:
    """A pydantic model of a builder's options: its signature, with ranges in `Annotated`, is the configuration."""
    hints = get_type_hints(builder.__init__ if inspect.isclass(builder) else builder, include_extras=True)
    fields: Toml = {
        name: (hints.get(name, Any), ... if parameter.default is inspect.Parameter.empty else parameter.default)
        for name, parameter in option_parameters(builder).items()
    }
    return create_model(getattr(builder, "__name__", "Options"), __base__=Options, **fields)


def options_that_fit(builder: Callable[..., object], values: Toml) -> frozenset[str]:
    """The names of a builder's options, without those that cannot have their value among `values`."""
    names = frozenset(option_parameters(builder))
    try:
        options_model(builder).model_validate({name: value for name, value in values.items() if name in names})
    except ValidationError as error:
        return names - {one["loc"][0] for one in error.errors(include_url=False) if one["type"] != "missing"}
    return names


def check_options(
    builder: Callable[..., object], options: Mapping[str, Any], *, place: str, name: str = "", hint: Hint = did_you_mean
) -> Toml:
    """The options with all defaults filled in; UserError as `bind`."""
    model = options_model(builder)
    try:
        values = model.model_validate(options)
    except ValidationError as error:
        raise UserError(_placed(place, _sentence(error, model, name or "it", place, hint))) from None
    return {name: getattr(values, name) for name in model.model_fields}


def require_options(
    name: str, given: Collection[str], known: Collection[str], *, place: str, hint: Hint = did_you_mean
) -> None:
    """Raise UserError for an option that a block does not have."""
    for option in given:
        if option not in known:
            raise UserError(_placed(place, f"{name} has no option {option!r}{hint(option, known)} ({_listed(known)})."))


def _placed(place: str, sentence: str) -> str:
    return f"{place}{'' if place.endswith(']') else ':'} {sentence}"


def _listed(known: Collection[str]) -> str:
    return f"its options: {', '.join(known)}" if known else "it has no options"


def _sentence(error: ValidationError, model: type[Options], name: str, place: str, hint: Hint) -> str:
    errors = error.errors(include_url=False)
    # An unknown option comes before a missing one, which may be the same one misspelt.
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    option = str(first["loc"][0])
    known = _listed(model.model_fields)
    if first["type"] == "extra_forbidden":
        return f"{name} has no option {option!r}{hint(option, model.model_fields)} ({known})."
    if first["type"] == "missing":
        return f"{name} needs the option {option!r}; add it ({known})."
    table = re.search(r"\[([\w.]+)\]", place)
    return refused_value([one for one in errors if one["loc"][0] == option], option, table[1] if table else "") + "."


def _absolute(value: object) -> object:
    """The same value with absolute paths in it: a run may be resumed from another folder."""
    if isinstance(value, Mapping):
        return {key: _absolute(item) for key, item in value.items()}
    return value.expanduser().resolve() if isinstance(value, Path) else value


def _written(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _written(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value
