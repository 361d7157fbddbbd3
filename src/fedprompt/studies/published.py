"""Published experiments as recipes: a protocol, a block of training settings, methods, and the runs of each."""

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
from fedprompt.config.recipe_tables import Toml
from fedprompt.config.settings import setting
from fedprompt.data.published.catalog import CatalogEntry, entry
from fedprompt.data.splits import first_half
from fedprompt.errors import UserError, did_you_mean, wording
from fedprompt.studies.published_tables import PublishedCell, table

SEEDS = (1, 2, 3)
BACKBONE = "openai/clip-vit-base-patch16"
HARDWARE = "one GPU with memory for ViT-B/16 and its gradients at the batch size, or days on a CPU"
MEAN = "mean"  # the column of a published table with the mean of the others
TEST_SHARE = 1 / 3  # cost of a test image relative to a training image: forward without backward
Settings = Mapping[str, JsonValue]


class TableMatch(BaseModel):
    """Which cells of a published table correspond to our figures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str
    axis: Literal["figure", "run", "part", "column"]  # its columns are our figures, runs, data sets, or one is
    rows: Mapping[str, str]  # our trial -> row of the table
    figure: str = ""
    column: str = ""


class PublishedExperiment(BaseModel):
    """One experiment; `runs` has the settings in which its runs differ, by label, or `grid` the values of one key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    protocol: str
    block: str
    methods: tuple[Settings, ...]
    set: Settings = {}
    runs: Mapping[str, Settings] = {}
    grid: Mapping[str, tuple[JsonValue, ...]] = {}
    seeds: tuple[int, ...] = SEEDS
    matches: tuple[TableMatch, ...] = ()
    remark: str = ""

    @property
    def variants(self) -> Mapping[str, Settings]:
        """Label -> settings of every run."""
        for key, values in self.grid.items():
            return {_label(value): {key: value} for value in values}
        return self.runs or {"all": {}}

    @property
    def command(self) -> str:
        """The command that reproduces it."""
        return f"fedprompt reproduce {self.name} --root DIR"


def _label(value: JsonValue) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


@cache
def _pieces() -> Toml:
    return tomllib.loads((files("fedprompt.studies") / "experiments.toml").read_text(encoding="utf-8"))


@cache
def experiments() -> Mapping[str, PublishedExperiment]:
    """All experiments by name."""
    return {table["name"]: PublishedExperiment.model_validate(table) for table in _pieces()["experiment"]}


def experiment(name: str) -> PublishedExperiment:
    """The experiment of a name; UserError if there is none."""
    if name not in experiments():
        hint = did_you_mean(name, experiments())
        lister = "fedprompt reproduce --list" if wording() == "shell" else "fedprompt.published()"
        raise UserError(f"There is no experiment {name!r}{hint}; list them with: {lister}")
    return experiments()[name]


def recipe(about: PublishedExperiment, label: str, *, root: Path, seed: int, settings: Sequence[str] = ()) -> Recipe:
    """The recipe of one run; `settings` are the user's own, which override the others."""
    pieces = _pieces()
    protocol, block = pieces["protocol"][about.protocol], pieces["block"][about.block]
    main, *others = about.methods
    tables: Toml = {
        "name": f"{about.name}-{label}-{seed}".replace("/", "-").replace("+", "."),
        "about": f"{about.name}, {label}: {protocol['about']}",
        "seed": seed,
        "check": False,  # a million images are checked once, by `fedprompt data check`
        "backbone": {"path": BACKBONE, "batch": 32},
        "data": {**protocol["data"], "root": str(Path(root).expanduser().resolve())},
        "partition": dict(protocol["partition"]),
        "method": dict(main),
        "compare": [dict(other) for other in others],
        "train": dict(block["train"]),
        "evaluate": dict(protocol.get("evaluate", {})),
    }
    own = [setting(key, value) for key, value in {**about.set, **about.variants[label]}.items()]
    return parse_recipe(tomli_w.dumps(tables), [*own, *settings], origin=about.name)


def source(about: PublishedExperiment) -> str:
    """The source of the training settings."""
    return str(_pieces()["block"][about.block]["source"])


def sets(about: PublishedExperiment) -> tuple[str, ...]:
    """Names of the data sets that the runs need, without repeats."""
    plans = [recipe(about, label, root=Path("."), seed=1).data.options for label in about.variants]
    return tuple(dict.fromkeys(name for data in plans for name in _named(data, "sets") + _named(data, "targets")))


def _named(data: Mapping[str, Any], word: str) -> list[str]:
    alone = [data["name"]] if word == "sets" and "name" in data else []
    return [*data.get(word, ()), *alone]


def targets(about: PublishedExperiment) -> list[str]:
    """The published figures of each trial, a sentence per row of a published table."""
    found = []
    for match, _, cells in matched_cells(about):
        one = match.column or MEAN
        shown = [cell for cell in cells if cell.column == one] or cells
        text = ", ".join(" ".join(filter(None, (c.column, c.measure, f"{c.value:.2f}"))) for c in shown)
        found.append(f"{cells[0].row} {text} ({match.table})")
    return found


def matched_cells(about: PublishedExperiment) -> Iterator[tuple[TableMatch, str, Sequence[PublishedCell]]]:
    """The cells of every row of a published table that corresponds to a trial."""
    for match in about.matches:
        for trial, printed in match.rows.items():
            yield match, trial, [cell for cell in table(match.table) if cell.row == printed]


def image_passes(about: PublishedExperiment) -> float:
    """Training images that the image encoder processes in all runs of one seed; a test image counts a third.

    An upper bound from the catalogue of data sets, which ignores the feature cache.
    """
    return sum(_passes_of(recipe(about, label, root=Path("."), seed=1)) for label in about.variants)


def _passes_of(planned: Recipe) -> float:
    data, shots = planned.data.options, planned.partition.options.get("shots")
    trained_on = [entry(name) for name in _named(data, "sets")]
    tested = [*trained_on, *(entry(name) for name in _named(data, "targets"))]
    seen = sum(_training_images(about, shots, data) for about in trained_on)
    trained = [method for method in (planned.method, *planned.compare) if "rounds" not in method.train]
    passes = seen * planned.train.rounds * planned.train.local_epochs * planned.train.fraction * len(trained)
    tests = sum(_test_images(about) for about in tested)
    return float(passes + TEST_SHARE * tests * (1 + len(planned.compare)))


def _test_images(about: CatalogEntry) -> int:
    return sum(count for word, count in about.counts.items() if word not in ("train", "val")) or sum(
        about.domains.values()
    )


def _training_images(about: CatalogEntry, shots: object, data: Mapping[str, object]) -> int:
    """The number of training images of all clients together."""
    if not isinstance(shots, int):
        return about.counts.get("train", sum(about.domains.values()))
    unseen = data.get("unseen_domains")
    places = max(1, len(about.domains) - (len(unseen) if isinstance(unseen, list) else 0))
    classes = about.classes if data.get("base") == "all" else len(first_half(about.classes))
    return classes * shots * places
