"""Published experiments as recipes: a protocol, a block of training settings, methods, and the runs they come to."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, JsonValue

from fedprompt.config.recipe import Recipe, parse_recipe
from fedprompt.config.tables import Toml
from fedprompt.data.published.catalog import CatalogEntry, entry
from fedprompt.data.splits import first_half
from fedprompt.errors import UserError, did_you_mean
from fedprompt.studies.published_tables import PublishedCell, table

SEEDS = (1, 2, 3)
BACKBONE = "openai/clip-vit-base-patch16"
HARDWARE = "one GPU that holds ViT-B/16 with its gradients at the batch size, or a patient CPU"
MEAN = "mean"  # the column of a published table that stands for its others
TEST_SHARE = 1 / 3  # of a training picture's work: forward, without backward
Settings = Mapping[str, JsonValue]


class Reach(BaseModel):
    """Which published cells belong to figures of ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str
    axis: Literal["figure", "run", "part", "column"]  # what the table's columns are: our figures, runs, data sets, one
    rows: Mapping[str, str]  # trial -> row
    figure: str = ""
    column: str = ""


class Published(BaseModel):
    """One experiment; `runs` are what its runs differ in, by label, or `grid` the values of one key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    protocol: str
    block: str
    methods: tuple[Settings, ...]
    set: Settings = {}
    runs: Mapping[str, Settings] = {}
    grid: Mapping[str, tuple[JsonValue, ...]] = {}
    seeds: tuple[int, ...] = SEEDS
    reach: tuple[Reach, ...] = ()
    remark: str = ""

    @property
    def variants(self) -> Mapping[str, Settings]:
        """Label -> settings of every run."""
        for key, values in self.grid.items():
            return {_label(value): {key: value} for value in values}
        return self.runs or {"all": {}}

    @property
    def command(self) -> str:
        """What to type."""
        return f"fedprompt reproduce {self.name} --root DIR"


def _label(value: JsonValue) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


@cache
def _pieces() -> Toml:
    return tomllib.loads((files("fedprompt.studies") / "experiments.toml").read_text(encoding="utf-8"))


@cache
def experiments() -> Mapping[str, Published]:
    """All of them, by name."""
    return {table["name"]: Published.model_validate(table) for table in _pieces()["experiment"]}


def experiment(name: str) -> Published:
    """One of them; UserError if there is none of that name."""
    if name not in experiments():
        hint = did_you_mean(name, experiments())
        raise UserError(f"There is no experiment {name!r}{hint}; list them with: fedprompt reproduce --list")
    return experiments()[name]


def recipe(about: Published, label: str, *, root: Path, seed: int, settings: Sequence[str] = ()) -> Recipe:
    """The recipe of one run; `settings` are the user's own, which come last."""
    pieces = _pieces()
    protocol, block = pieces["protocol"][about.protocol], pieces["block"][about.block]
    main, *others = about.methods
    tables: Toml = {
        "name": f"{about.name}-{label}-{seed}".replace("/", "-").replace("+", "."),
        "about": f"{about.name}, {label}: {protocol['about']}",
        "seed": seed,
        "check": False,  # a million pictures are checked once, by `fedprompt data check`
        "backbone": {"path": BACKBONE, "batch": 32},
        "data": {**protocol["data"], "root": str(Path(root).expanduser().resolve())},
        "partition": dict(protocol["partition"]),
        "method": dict(main),
        "compare": [dict(other) for other in others],
        "train": dict(block["train"]),
        "evaluate": dict(protocol.get("evaluate", {})),
    }
    own = [f"{key}={_toml(value)}" for key, value in {**about.set, **about.variants[label]}.items()]
    return parse_recipe(tomli_w.dumps(tables), [*own, *settings], origin=about.name)


def _toml(value: JsonValue) -> str:
    # A string in quotes, a list on one line: what stands after "key = ".
    return " ".join(tomli_w.dumps({"value": value}).partition("=")[2].split())


def source(about: Published) -> str:
    """Where its training settings come from."""
    return str(_pieces()["block"][about.block]["source"])


def sets(about: Published) -> tuple[str, ...]:
    """Names of the data sets that its runs need, each once."""
    plans = [recipe(about, label, root=Path("."), seed=1).data.options for label in about.variants]
    return tuple(dict.fromkeys(name for data in plans for name in _named(data, "sets") + _named(data, "targets")))


def _named(data: Mapping[str, Any], word: str) -> list[str]:
    alone = [data["name"]] if word == "sets" and "name" in data else []
    return [*data.get(word, ()), *alone]


def targets(about: Published) -> list[str]:
    """What each trial is to reach, a sentence a row of a published table."""
    found = []
    for reach, _, cells in expected_cells(about):
        one = reach.column or MEAN
        shown = [cell for cell in cells if cell.column == one] or cells
        text = ", ".join(" ".join(filter(None, (c.column, c.measure, f"{c.value:.2f}"))) for c in shown)
        found.append(f"{cells[0].row} {text} ({reach.table})")
    return found


def expected_cells(about: Published) -> Iterator[tuple[Reach, str, Sequence[PublishedCell]]]:
    """For every trial that has a row in a published table, that row's cells."""
    for reach in about.reach:
        for trial, printed in reach.rows.items():
            yield reach, trial, [cell for cell in table(reach.table) if cell.row == printed]


def pictures(about: Published) -> float:
    """Pictures that pass through the image tower with gradients in all runs of one seed; tests count a third each.

    An upper bound from the table of data sets: what is remembered of frozen features is not subtracted.
    """
    return sum(_pictures(recipe(about, label, root=Path("."), seed=1)) for label in about.variants)


def _pictures(plan: Recipe) -> float:
    data, shots = plan.data.options, plan.partition.options.get("shots")
    trained_on = [entry(name) for name in _named(data, "sets")]
    tested = [*trained_on, *(entry(name) for name in _named(data, "targets"))]
    seen = sum(_held(about, shots, data) for about in trained_on)
    trained = [method for method in (plan.method, *plan.compare) if "rounds" not in method.train]
    passes = seen * plan.train.rounds * plan.train.local_epochs * plan.train.fraction * len(trained)
    tests = sum(_tests(about) for about in tested)
    return float(passes + TEST_SHARE * tests * (1 + len(plan.compare)))


def _tests(about: CatalogEntry) -> int:
    return sum(count for word, count in about.counts.items() if word not in ("train", "val")) or sum(
        about.domains.values()
    )


def _held(about: CatalogEntry, shots: object, data: Mapping[str, object]) -> int:
    """Training pictures that all clients hold together."""
    if not isinstance(shots, int):
        return about.counts.get("train", sum(about.domains.values()))
    unseen = data.get("unseen_domains")
    places = max(1, len(about.domains) - (len(unseen) if isinstance(unseen, list) else 0))
    classes = about.classes if data.get("base") == "all" else len(first_half(about.classes))
    return classes * shots * places
