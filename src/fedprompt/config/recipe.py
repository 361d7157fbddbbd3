"""Recipes: TOML checked by pydantic, where every mistake is one sentence that names the file and the key."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from fedprompt.config.tables import Choice, ServerTable, Table, Toml
from fedprompt.errors import UserError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


class BackboneTable(Table):
    """Which CLIP, and how much of what it computes is remembered."""

    path: str = Field("demo", description='"demo" (embedded), a Hugging Face folder, or a Hub id')
    batch: int = Field(
        1,
        ge=1,
        description="pictures or texts of a frozen pass; only 1 is exact to the last bit, a GPU is faster with 32",
    )
    workers: int = Field(0, ge=0, description="processes that decode pictures; 0 decodes them in the main one")
    memory_gb: float = Field(2.0, ge=0, description="memory for frozen features; 0 switches the memory off")
    disk: str | None = Field(None, description="folder for frozen features that outlive the process")
    device: str = Field("auto", description='"cpu", "cuda", or "auto": a GPU if there is one')


class DataTable(Choice):
    """Where the pictures come from."""

    source: str
    unreadable: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of a client's or a data set's pictures that a run does without if they cannot be read; one "
        "always, unless this is 0",
    )


class PartitionTable(Choice):
    """Which client holds which pictures."""

    rule: str


class AnnotationTable(Table):
    """Labels that annotators of training pictures missed; many labels a picture only."""

    missing: float = Field(0.0, ge=0, lt=1, description="share of the labels that are missing, drawn once")
    form: Literal["drop_positive", "unknown"] = Field(
        "drop_positive", description="a missing positive label is absent, or any missing label is unknown"
    )


class DescriptionsTable(Table):
    """What the classes are described with; the data set's own words where nothing is said."""

    attributes: str = Field("", description='a descriptions file, one that comes with fedprompt by its name, or "none"')
    conditions: str | tuple[str, ...] = Field(
        "", description="a descriptions file, one by its name, or a list of phrases"
    )
    shuffled: bool = Field(default=False, description="a control: give every class the attributes of another one")


class TrainTable(Table):
    """How clients train and how the server combines them."""

    rounds: int = Field(100, ge=1)
    local_epochs: int = Field(1, ge=1)
    batch_size: int = Field(128, ge=1)
    lr: float = Field(3e-3, gt=0)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-5, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    fraction: float = Field(1.0, gt=0, le=1, description="share of the clients that take part in a round")
    weighting: Literal["uniform", "examples"] = "uniform"
    proximal: float = Field(0.0, ge=0, description="FedProx: weight of the pull towards what a client received")
    server: ServerTable = ServerTable()
    sharing: Literal["federated", "local", "pooled"] = Field(
        "federated",
        description='the two ends of the scale: "local", every client alone; "pooled", one client has all pictures',
    )


class MethodTable(Choice):
    """One method of a run: a module name, its options, and what of [train] and [descriptions] is different."""

    name: str
    label: str = Field("", pattern=r"^[A-Za-z0-9._+=-]*$", description="what the run calls it; the name if empty")
    train: Toml = Field(default_factory=dict, description="overrides of [train] for this method alone")
    descriptions: Toml = Field(default_factory=dict, description="overrides of [descriptions] for this method alone")

    @property
    def title(self) -> str:
        """The trial's name in tables, records and folders."""
        return self.label or self.name


class EvaluateTable(Table):
    """When and how the global model is scored."""

    every: int = Field(
        0, ge=0, description="score every so many rounds for the learning curve; 0 scores at the end only"
    )
    batch_size: int = Field(128, ge=1)
    local: bool = Field(default=True, description="also score every client on its own classes; slow for thousands")
    held_out: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="many labels: share of a client's training pictures kept for fitting a decision threshold",
    )
    oracle: bool = Field(
        default=False, description="many labels: also score at the threshold that is best on the test pictures"
    )
    samples: int = Field(8, ge=0, description="test pictures kept in the record with their top predictions")


class TuningTable(Table):
    """What `compare --tune` tries for every method before it compares them."""

    seed: int = Field(100, ge=0, description="of the search; one that no comparison uses")
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict, description="values of keys of [train]")


class Recipe(Table):
    """One experiment: a main method and those beside it, on the same data, partition and seed."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    about: str = Field("", description="one sentence for the report")
    seed: int = Field(1, ge=0)
    check: bool = Field(
        default=False, description="open every picture of the data before training, not only those that the run uses"
    )
    backbone: BackboneTable = BackboneTable()
    data: DataTable
    partition: PartitionTable
    annotation: AnnotationTable = AnnotationTable()
    descriptions: DescriptionsTable = DescriptionsTable()
    method: MethodTable
    compare: tuple[MethodTable, ...] = ()
    train: TrainTable = TrainTable()
    evaluate: EvaluateTable = EvaluateTable()
    tuning: TuningTable = TuningTable()

    def to_toml(self, *, defaults: bool = True) -> str:
        """The recipe with every default written out, or with what it sets itself; parsing gives the same recipe."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True, exclude_unset=not defaults))


def find_recipe(name: str) -> Path:
    """A recipe's file: a path, or the name of one that comes with the package."""
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
    """Read a TOML recipe and apply `key=value` settings; UserError for whatever cannot be read or is not known."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The recipe {path} cannot be read ({_reason(error)}); give the path of a TOML file."
        ) from error
    return parse_recipe(text, settings, origin=path.name)


def parse_recipe(text: str, settings: Sequence[str] = (), *, origin: str = "recipe") -> Recipe:
    """Parse a recipe's TOML text; `origin` names it in messages."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"The recipe {origin} is not valid TOML ({error}); correct that line.") from error
    for setting in settings:
        _apply(tables, setting)
    return checked(Recipe, tables, origin=origin)


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"


def _apply(tables: Toml, setting: str) -> None:
    """Write one `train.rounds=3` into the tables; a value that is not TOML is taken as a plain word."""
    key, equals, value = setting.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {setting!r} is not of the form key=value; write e.g. --set train.rounds=3.")
    *tables_on_the_way, last = key.strip().split(".")
    place: Any = tables
    for step in tables_on_the_way:
        place = _enter(place, step, setting)
    if not isinstance(place, dict):
        raise UserError(f"--set {setting!r} does not name a key of a table; write e.g. --set train.rounds=3.")
    place[last] = _value(value.strip())


def _enter(place: Any, step: str, setting: str) -> Any:
    if isinstance(place, dict):
        return place.setdefault(step, {})
    if isinstance(place, list) and step.isdigit() and int(step) < len(place):
        return place[int(step)]
    raise UserError(
        f"--set {setting!r} names {step!r}, which is not a table of the recipe; tables in a list are counted from 0."
    )


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def checked(model: type[Model], tables: Mapping[str, Any], *, origin: str) -> Model:
    """Validate tables against a model; the first mistake becomes one sentence."""
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


def options_model(builder: Callable[..., object], *, supplied: Iterable[str] = ()) -> type[BaseModel]:
    """A pydantic model of a builder's keyword-only arguments: its signature is the configuration.

    `supplied` are arguments that the assembly passes itself (a seed, a generator), hence no options.
    """
    hints = get_type_hints(builder.__init__ if inspect.isclass(builder) else builder)
    fields: Toml = {
        name: (hints.get(name, Any), ... if parameter.default is inspect.Parameter.empty else parameter.default)
        for name, parameter in inspect.signature(builder).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in set(supplied)
    }
    settings = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    return create_model(getattr(builder, "__name__", "Options"), __config__=settings, **fields)


def check_options(
    builder: Callable[..., object], options: Mapping[str, Any], *, place: str, supplied: Iterable[str] = ()
) -> Toml:
    """Options with all defaults filled in; `place` ("demo.toml: [method] for coop") names the table in messages."""
    model = options_model(builder, supplied=supplied)
    try:
        values = model.model_validate(options)
    except ValidationError as error:
        raise UserError(_option_sentence(error, model, place)) from None
    return {name: getattr(values, name) for name in model.model_fields}


def _option_sentence(error: ValidationError, model: type[BaseModel], place: str) -> str:
    first = error.errors(include_url=False)[0]
    option = str(first["loc"][0])
    takes = ", ".join(model.model_fields) or "none"
    if first["type"] == "extra_forbidden":
        return f"{place}: there is no option {option!r}{did_you_mean(option, model.model_fields)} (options: {takes})."
    if first["type"] == "missing":
        return f"{place}: the option {option!r} is missing; add it (options: {takes})."
    return f"{place}: {option} = {first['input']!r} is not accepted: {first['msg'][0].lower()}{first['msg'][1:]}."
