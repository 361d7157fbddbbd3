"""A run read back from `run.jsonl`: its trials with their figures, in the order of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from pydantic import JsonValue, ValidationError

from fedprompt.errors import UserError
from fedprompt.ops.metrics import harmonic_mean
from fedprompt.records.events import (
    CooccurrenceLine,
    EndLine,
    Header,
    Line,
    RoundLine,
    SampleLine,
    ScoreLine,
    TrialLine,
)
from fedprompt.records.run_folder import read_events

TITLES = {"local": "Local", "base": "Base", "new": "New", "hm": "HM", "unseen": "Unseen", "zsl": "ZSL", "gzsl": "GZSL"}
MEASURES = {"mean_average_precision": "mAP", "cf1_macro": "CF1", "of1": "OF1"}
TUNED = "_tuned"  # ends the name of a figure whose threshold was fitted on held-out training pictures
NATURAL, BROKEN, GAP = "natural", "broken", "gap"  # labels in their usual company, in any, and what that costs
AVERAGED = ("local", "base", "new")  # the columns whose harmonic mean is the field's headline


@dataclass(frozen=True)
class Trial:
    """One method of a run with everything recorded about it, in round order."""

    about: TrialLine
    rounds: tuple[RoundLine, ...]
    scores: tuple[ScoreLine, ...]
    samples: tuple[SampleLine, ...]

    @property
    def name(self) -> str:
        """The trial's unique name in the run."""
        return self.about.trial

    @property
    def label(self) -> str:
        """What to call it in a table: its label, else the name its method's idea begins with, unless it has its own."""
        head, found, _ = self.about.idea.partition(" (")
        return self.about.label or (head if found and self.name == self.about.method else self.name)

    @property
    def trains(self) -> bool:
        """False for a method that learns nothing, such as zero-shot CLIP."""
        return bool(self.about.trainable) or bool(self.rounds)

    def final(self, column: str) -> tuple[ScoreLine, ...]:
        """The scores of one column at its last scored round."""
        lines = [score for score in self.scores if score.column == column]
        return tuple(score for score in lines if score.round == lines[-1].round)

    @cached_property
    def figures(self) -> Mapping[str, float]:
        """Column -> unweighted mean of its last scores (over clients, or domains), of several data sets set by set.

        Also `hm` of local, base and new, and `gap`, what labels in any company lose against their usual one.
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

    def figure(self, column: str, part: str = "") -> float | None:
        """One figure, on one data set if `part` names it; None if it was not recorded."""
        return self.by_part(column).get(part) if part else self.figures.get(column)

    @property
    def bytes_up(self) -> float | None:
        """Bytes a client uploads in a round, mean over all uploads; None if nothing was sent."""
        return mean_of(sent for line in self.rounds for sent in line.bytes_up.values())


@dataclass(frozen=True)
class Run:
    """Everything a run recorded; `trials` in the order of a table: what learns nothing first, the main one last."""

    header: Header
    trials: tuple[Trial, ...]
    end: EndLine | None
    resumed: tuple[int, ...] = ()
    company: tuple[CooccurrenceLine, ...] = ()

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The figures the trials have, in the order of a table; `hm` follows what it is the mean of, `gap` is last."""
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
        """The columns of the headline figure: those that share an axis."""
        return tuple(column for column in self.columns if ":" not in column and column != GAP)

    @property
    def main(self) -> Trial | None:
        """The trial the run is about: the one named by the header, else the last that trains."""
        named = [trial for trial in self.trials if trial.name == self.header.main]
        candidates = named or [trial for trial in self.trials if trial.trains]
        return candidates[-1] if candidates else None

    @property
    def reference(self) -> Trial | None:
        """The trial that learns nothing, which the others are measured against."""
        return next((trial for trial in self.trials if not trial.trains), None)

    @property
    def constant(self) -> tuple[Trial, ...]:
        """The trials in which the same clients took part in every round, none failed and all sent the same."""
        return tuple(
            trial for trial in self.trials if trial.rounds and len({_taking_part(r) for r in trial.rounds}) == 1
        )

    def title(self, column: str) -> str:
        """A column's name for readers."""
        split, _, measure = column.partition(":")
        name = TITLES.get(split, split[:1].upper() + split[1:])
        measure = measure or (self.header.metric if self.header.further and split in self.header.splits else "")
        return f"{name} {MEASURES.get(measure.removesuffix(TUNED), measure)}".strip()

    @property
    def threshold(self) -> str:
        """From which probability on a label counts as present in the further figures."""
        tuned = any(measure.endswith(TUNED) for measure in self.header.further)
        return "a threshold fitted on held-out training pictures" if tuned else "probability 0.5"


def _taking_part(line: RoundLine) -> object:
    return frozenset(line.clients), frozenset(line.bytes_up.values()), frozenset(line.failed)


def mean_of(values: Iterable[float | None]) -> float | None:
    """The unweighted mean of the known values; None if there is none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def read_run(run_folder: Path) -> Run:
    """Read the records of a run folder, finished or not.

    Raises `UserError` if there is no readable `run.jsonl`, or none that begins with a header.
    """
    lines = tuple(read_events(Path(run_folder)))
    header = _last(Header, lines, "header")
    if header is None:
        raise UserError(f"The run.jsonl of {run_folder} has no header line, so the run never began; start it again.")
    resumed = tuple(line.round for line in _all(RoundLine, lines, "resume"))
    end = _last(EndLine, lines[-1:], "end")  # an earlier end was followed by going on
    trials = sorted(_trials(lines, header), key=lambda trial: (trial.trains, trial.name == header.main))
    company = {(line.trial, line.split): line for line in _all(CooccurrenceLine, lines, "company")}
    return Run(header, tuple(trials), end, resumed, tuple(company.values()))


L = TypeVar("L", bound=Line)
Raw = Mapping[str, JsonValue]


def _parse(kind: type[L], line: Raw) -> L | None:
    """Validate a line; fields that do not fit are left out, and a line that cannot do without them is None."""
    try:
        return kind.model_validate(line)
    except ValidationError as error:
        wrong = {problem["loc"][0] for problem in error.errors() if problem["loc"]}
    try:
        return kind.model_validate({key: value for key, value in line.items() if key not in wrong})
    except ValidationError:
        return None


def _all(kind: type[L], lines: Iterable[Raw], event: str) -> list[L]:
    parsed = (_parse(kind, line) for line in lines if line.get("event") == event)
    return [line for line in parsed if line is not None]


def _last(kind: type[L], lines: Iterable[Raw], event: str) -> L | None:
    return next(reversed(_all(kind, lines, event)), None)


def _scores(lines: tuple[Raw, ...], header: Header) -> list[ScoreLine]:
    """A score a figure that the header names: what one line says of many becomes many."""
    found = [line for line in lines if line.get("event") == "score"]
    shared = [line for line in found if line.get("split") != "local"]  # those of clients' own pictures are too many
    further = [{**line, "value": line[key], "measure": key} for line in shared for key in header.further if key in line]
    return _all(ScoreLine, [*({**line, "value": line.get(header.metric)} for line in found), *further], "score")


def _trials(lines: tuple[Raw, ...], header: Header) -> list[Trial]:
    """Group the lines by trial, in file order; what a trial says at its end is merged with what it said before."""
    abouts: dict[str, TrialLine] = {}
    for about in _all(TrialLine, lines, "trial"):
        before = abouts.get(about.trial, about)
        said = {key: getattr(about, key) for key in about.model_fields_set}
        abouts[about.trial] = before.model_copy(update={"message": "", **said})
    rounds = {(line.trial, line.round): line for line in _all(RoundLine, lines, "round")}
    scored = _scores(lines, header)
    scores = {(line.trial, line.round, line.column, line.client, line.name): line for line in scored}
    samples = {(line.trial, line.sample): line for line in _all(SampleLine, lines, "sample")}
    names = dict.fromkeys([*abouts, *(str(key[0]) for key in (*rounds, *scores, *samples))])
    return [
        Trial(
            abouts.get(name) or TrialLine(trial=name),
            tuple(sorted((line for line in rounds.values() if line.trial == name), key=lambda line: line.round)),
            tuple(sorted((line for line in scores.values() if line.trial == name), key=lambda line: line.round)),
            tuple(line for line in samples.values() if line.trial == name),
        )
        for name in names
    ]
