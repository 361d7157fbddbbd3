"""What a run recorded, as values: its trials with their scores and figures, in the order of the report's tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Literal

from fedprompt.ops.metrics import harmonic_mean
from fedprompt.records.events import (
    BudgetEvent,
    CooccurrenceEvent,
    DiagnosticsEvent,
    EndEvent,
    HeaderEvent,
    IntervalEvent,
    KeptEvent,
    LocalImagesEvent,
    MistakesEvent,
    RoundEvent,
    SampleEvent,
    TrialEvent,
    ValidationEvent,
)

TITLES = {"local": "Local", "base": "Base", "new": "New", "hm": "HM", "unseen": "Unseen", "zsl": "ZSL", "gzsl": "GZSL"}
MEASURES = {"mean_average_precision": "mAP", "cf1_macro": "CF1", "of1": "OF1"}
TUNED = "_tuned"  # suffix of a metric whose threshold was fitted in training
NATURAL, BROKEN, GAP = "natural", "broken", "gap"  # test sets with usual and changed co-occurrence; their difference
AVERAGED = ("local", "base", "new")  # columns of the harmonic mean


@dataclass(frozen=True)
class Score:
    """One metric of one model on one test set; `measure` names a further metric, and is empty for the headline one.

    With the headline metric, `figures` are all that were recorded.
    """

    round: int
    split: str
    name: str
    client: int | None
    part: str
    measure: str
    num_examples: int
    value: float | None
    classes: tuple[str, ...]
    per_class: tuple[float | None, ...]
    figures: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def column(self) -> str:
        """The column of the report that this score belongs to."""
        return f"{self.split}:{self.measure}" if self.measure else self.split


def trial_label(name: str, method: str, summary: str) -> str:
    """A trial's name in tables: its method's as the first line of its file spells it, unless the trial has another."""
    head, found, _ = summary.partition(" (")
    return head if found and name == method else name


@dataclass(frozen=True)
class TrialRecord:
    """One method of a run with everything recorded about it, in round order.

    `validations` are the scorings of held-out images by which a round was chosen, and `kept` says which was.
    `local_images` have the clients' test images, where one process has scored them; `diagnostics` say what the parts of
    the trained method do with some test images.
    """

    about: TrialEvent
    rounds: tuple[RoundEvent, ...]
    scores: tuple[Score, ...]
    samples: tuple[SampleEvent, ...]
    validations: tuple[ValidationEvent, ...] = ()
    kept: KeptEvent | None = None
    diagnostics: DiagnosticsEvent | None = None
    local_images: tuple[LocalImagesEvent, ...] = ()

    @property
    def name(self) -> str:
        """The trial's unique name in the run."""
        return self.about.trial

    @property
    def label(self) -> str:
        """Name in tables."""
        return trial_label(self.name, self.about.method, self.about.idea)

    @property
    def trains(self) -> bool:
        """False for a method without trained parameters, such as zero-shot CLIP."""
        return bool(self.about.trainable) or bool(self.rounds)

    @property
    def round_seconds(self) -> tuple[float, ...]:
        """The seconds of the rounds that have them recorded."""
        return tuple(event.seconds for event in self.rounds if event.seconds is not None)

    @property
    def seconds(self) -> float | None:
        """The seconds of the trial, at least those of its rounds: its own are of the session in which it ended."""
        return None if self.about.seconds is None else max(self.about.seconds, sum(self.round_seconds))

    def final(self, column: str) -> tuple[Score, ...]:
        """The scores of one column at the round that was kept, else at its last scored round."""
        found = [score for score in self.scores if score.column == column]
        rounds = [score.round for score in found]
        number = self.kept.round if self.kept is not None and self.kept.round in rounds else max(rounds, default=0)
        return tuple(score for score in found if score.round == number)

    @cached_property
    def figures(self) -> Mapping[str, float]:
        """Column -> unweighted mean of its last scores over clients or domains, then over data sets.

        Also `hm` of local, base and new, and `gap`, natural less broken.
        """
        columns = dict.fromkeys(score.column for score in self.scores)
        means = {column: mean_of(self.by_part(column).values()) for column in columns}
        known = {column: value for column, value in means.items() if value is not None}
        if all(column in known for column in AVERAGED):
            known["hm"] = harmonic_mean(*(known[column] for column in AVERAGED))
        if NATURAL in known and BROKEN in known:
            known[GAP] = known[NATURAL] - known[BROKEN]
        return known

    def by_part(self, column: str) -> Mapping[str, float | None]:
        """Data set (or "", if there is one) -> unweighted mean of a column's last scores on it."""
        final = self.final(column)
        parts = dict.fromkeys(score.part for score in final)
        return {part: mean_of(score.value for score in final if score.part == part) for part in parts}

    def local_images_of(self, part: str) -> LocalImagesEvent | None:
        """The clients' test images behind the figure `local` on a data set; None where sites have scored them."""
        number = next((score.round for score in self.final("local")), None)
        return next((one for one in self.local_images if (one.round, one.part) == (number, part)), None)

    def figure(self, column: str, part: str = "") -> float | None:
        """One figure, on the data set `part` if it is given; None if it was not recorded."""
        return self.by_part(column).get(part) if part else self.figures.get(column)

    @property
    def bytes_up(self) -> float | None:
        """Bytes that a client uploads per round, mean over all uploads; None if nothing was uploaded."""
        return mean_of(size for event in self.rounds for size in event.bytes_up.values())


@dataclass(frozen=True)
class Run:
    """Everything a run recorded; `trials` in table order: those without training first, the main trial last.

    `sessions` are the seconds from each start or resume of the run to its end; one that was killed is not among them.
    `budgets` say by trial how many rounds fit into its time, if it has a limit. `files` are the Parquet files with the
    long fields of the last scores, by trial and split. `scores_of_sites` says by site whether its scores are "exact",
    "rounded" or "withheld".
    """

    header: HeaderEvent
    trials: tuple[TrialRecord, ...]
    end: EndEvent | None
    resumed: tuple[int, ...] = ()
    sessions: tuple[float, ...] = ()
    cooccurrence: tuple[CooccurrenceEvent, ...] = ()
    intervals: tuple[IntervalEvent, ...] = ()
    mistakes: tuple[MistakesEvent, ...] = ()
    budgets: Mapping[str, BudgetEvent] = field(default_factory=dict)
    files: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    scores_of_sites: Mapping[str, str] = field(default_factory=dict)

    def interval(self, trial: TrialRecord, column: str, against: TrialRecord | None = None) -> IntervalEvent | None:
        """The 95% interval of a figure, or of its difference to another trial; None if it was not recorded."""
        other = against.name if against else ""
        wanted = (trial.name, column, other)
        return next((one for one in self.intervals if (one.trial, one.column, one.against) == wanted), None)

    @property
    def stopped(self) -> Literal["", "interrupted", "failed"]:
        """How the run ended before its time; empty for one that is done or goes on."""
        status = self.end.status if self.end is not None else None
        return status if status in ("interrupted", "failed") else ""

    @property
    def planned(self) -> tuple[str, ...]:
        """The names of all trials that the recipe has, the main one first."""
        recipe = self.header.recipe
        compared = recipe.get("compare")
        tables = (recipe.get("method"), *(compared if isinstance(compared, list | tuple) else ()))
        return tuple(str(table.get("label") or table.get("name")) for table in tables if isinstance(table, dict))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that the trials have, in table order; `hm` follows its summands, `gap` is last."""
        known = dict.fromkeys(column for trial in self.trials for column in trial.figures)
        measured = ("", *(f":{measure}" for measure in self.header.further))
        splits = [*self.header.splits, *AVERAGED]
        order = dict.fromkeys([*(split + measure for split in splits for measure in measured), *known])
        columns = [column for column in order if column in known and column not in ("hm", GAP)]
        if "hm" in known:
            columns.insert(1 + max(columns.index(column) for column in AVERAGED), "hm")
        return (*columns, GAP) if GAP in known else tuple(columns)

    @property
    def headlines(self) -> tuple[str, ...]:
        """The columns of the headline metric, which share an axis."""
        return tuple(column for column in self.columns if ":" not in column and column != GAP)

    @property
    def main(self) -> TrialRecord | None:
        """The trial that the run is about: the one named by the header, else the last that trains."""
        named = [trial for trial in self.trials if trial.name == self.header.main]
        candidates = named or [trial for trial in self.trials if trial.trains]
        return candidates[-1] if candidates else None

    @property
    def reference(self) -> TrialRecord | None:
        """The first trial without training, which the other trials are compared with."""
        return next((trial for trial in self.trials if not trial.trains), None)

    @property
    def constant(self) -> tuple[TrialRecord, ...]:
        """The trials in which every round had the same clients, failures and upload sizes."""
        return tuple(
            trial for trial in self.trials if trial.rounds and len({_participation(r) for r in trial.rounds}) == 1
        )

    def title(self, column: str) -> str:
        """Heading of a column, with its metric if there are several."""
        split, _, measure = column.partition(":")
        measure = measure or (self.header.metric if self.header.further and split in self.header.splits else "")
        return f"{self.test_set_title(split)} {MEASURES.get(measure.removesuffix(TUNED), measure)}".strip()

    def test_set_title(self, split: str) -> str:
        """Heading of a test set: "Test" or "Base", without a metric."""
        data = self.header.data
        name = figure_title(split, trains_on_all=bool(data.base) and not data.new)
        return name[:1].upper() + name[1:]

    @property
    def threshold(self) -> str:
        """The threshold, in words, from which a label counts as present in the further metrics."""
        tuned = any(measure.endswith(TUNED) for measure in self.header.further)
        return (
            (self.header.threshold or "a threshold fitted on held-out training images") if tuned else "probability 0.5"
        )


def figure_title(figure: str, *, trains_on_all: bool) -> str:
    """Name of a figure; where every class is trained on, `base` is the figure among all of them and is called Test."""
    return "Test" if figure == "base" and trains_on_all else TITLES.get(figure, figure.replace("_", " "))


def _participation(event: RoundEvent) -> object:
    return frozenset(event.clients), frozenset(event.bytes_up.values()), frozenset(event.failed)


def mean_of(values: Iterable[float | None]) -> float | None:
    """The unweighted mean of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
