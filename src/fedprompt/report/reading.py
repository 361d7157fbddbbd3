"""The schema of `run.jsonl` and its reading: one JSON object a line, later lines replace earlier ones of the same key.

Events and their keys (trial, round, split, name and sample address a line; every field with a default may be absent):
`header` -> `Header`, `trial` -> `TrialLine`, `round` -> `RoundLine`, `score` -> `ScoreLine`, `sample` -> `SampleLine`,
`end` -> `EndLine`; unknown events, unknown keys and a torn last line are ignored, a malformed optional field is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, model_validator

from fedprompt.errors import UserError

TITLES = {"local": "Local", "base": "Base", "new": "New", "hm": "HM", "unseen": "Unseen"}


class Line(BaseModel):
    """One event; numbers are accepted where a word is expected."""

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)


class Partition(Line):
    """Who holds how many training pictures of which class; `total` is the number of clients if the lists were cut."""

    rule: str = ""
    clients: tuple[str, ...]
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]  # [clients, classes]
    domains: tuple[str, ...] = ()
    total: int = 0

    @model_validator(mode="after")
    def _shape(self) -> Self:
        widths = {len(row) for row in self.counts}
        if len(self.counts) != len(self.clients) or widths - {len(self.classes)}:
            raise ValueError("counts must be [clients, classes]")
        return self


class Header(Line):
    """What was fixed before the run began."""

    title: str = ""
    time: str = ""
    seed: int | None = None
    main: str = ""  # the trial the run is about; the others are compared with it
    metric: str = "accuracy"  # the key of the headline figure in score lines
    recipe: dict[str, JsonValue] = {}
    versions: dict[str, JsonValue] = {}
    backbone: dict[str, JsonValue] = {}
    data: dict[str, JsonValue] = {}
    protocol: str = ""
    splits: dict[str, str] = {}  # split -> what it means; also the order of the columns
    partition: Partition | None = None


class TrialLine(Line):
    """One method with its options; written when it starts and, with what is new, when it ends."""

    trial: str
    status: str = ""
    method: str = ""
    label: str = ""
    idea: str = ""
    options: dict[str, JsonValue] = {}
    settings: dict[str, JsonValue] = {}
    trainable: int | None = None
    rounds: int | None = None
    seconds: float | None = None
    message: str = ""


class RoundLine(Line):
    """One round: who was asked, what it cost and what came back; bytes are per client."""

    trial: str
    round: int
    clients: tuple[int, ...] = ()
    loss: float | None = None
    bytes_up: dict[int, int] = {}
    seconds: float | None = None
    failed: dict[int, str] = {}


class ScoreLine(Line):
    """One score of one model on one set of test pictures; `model` is `personal` if it used the client's own tensors."""

    trial: str
    round: int
    split: str
    name: str = "all"
    client: int | None = None
    model: str = "global"
    num_examples: int = 0
    value: float | None = None
    classes: tuple[str, ...] = ()
    per_class: tuple[float | None, ...] = ()

    @property
    def column(self) -> str:
        """The column this score belongs to."""
        return self.split if self.model == "global" else f"{self.split} ({self.model})"


class Attribute(Line):
    """How strongly each patch attends to one attribute, row by row."""

    name: str
    weights: tuple[float, ...]


class Attention(Line):
    """Where the patches of one picture look: attention probabilities over all `total` attributes, the strongest kept."""

    grid: tuple[int, int]
    total: int = 0
    attributes: tuple[Attribute, ...]

    @model_validator(mode="after")
    def _shape(self) -> Self:
        if any(len(attribute.weights) != self.grid[0] * self.grid[1] for attribute in self.attributes):
            raise ValueError("weights must have one value a patch")
        return self


class SampleLine(Line):
    """One test picture (PNG, base64) with the strongest predictions of a trial."""

    trial: str
    sample: str
    split: str = ""
    name: str = ""
    picture: str = ""
    truth: tuple[str, ...] = ()
    top: tuple[tuple[str, float], ...] = ()
    attention: Attention | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_word(cls, line: dict[str, JsonValue]) -> dict[str, JsonValue]:
        return {**line, "truth": [line["truth"]]} if isinstance(line.get("truth"), str) else line


class EndLine(Line):
    """How the run ended; a run without this line is still going on or was killed."""

    status: str = ""
    seconds: float | None = None
    message: str = ""


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
        """What to call it in a table."""
        return self.about.label or self.name

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
        """Column -> unweighted mean of its last scores (over clients, or over domains), and `hm` of local, base and new."""
        columns = dict.fromkeys(score.column for score in self.scores)
        means = {column: mean_of(score.value for score in self.final(column)) for column in columns}
        known = {column: value for column, value in means.items() if value is not None}
        three = [known[column] for column in ("local", "base", "new") if column in known]
        return known | {"hm": harmonic_mean(three)} if len(three) == 3 else known  # noqa: PLR2004, the field's HM is of three

    @property
    def bytes_up(self) -> float | None:
        """Bytes a client uploads in a round, mean over all uploads; None if nothing was sent."""
        return mean_of(sent for line in self.rounds for sent in line.bytes_up.values())


@dataclass(frozen=True)
class Run:
    """Everything a run recorded; `trials` has the methods that learn nothing first, then file order."""

    header: Header
    trials: tuple[Trial, ...]
    end: EndLine | None
    resumed: tuple[int, ...] = ()

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The figures the trials have, in the order of a table; `hm` follows what it is the mean of."""
        seen = [score.column for trial in self.trials for score in trial.scores]
        order = [*self.header.splits, "local", "base", "new", *seen]
        columns = [column for column in dict.fromkeys(order) if column in set(seen)]
        if any("hm" in trial.figures for trial in self.trials):
            columns.insert(1 + max(columns.index(column) for column in ("local", "base", "new")), "hm")
        return tuple(columns)

    @property
    def main(self) -> Trial | None:
        """The trial the run is about: the one named by the header, else the last that trains."""
        named = [trial for trial in self.trials if trial.name == self.header.main]
        return (named or [trial for trial in self.trials if trial.trains] or [None])[-1]

    @property
    def reference(self) -> Trial | None:
        """The trial that learns nothing, which the others are measured against."""
        return next((trial for trial in self.trials if not trial.trains), None)

    def title(self, column: str) -> str:
        """A column's name for readers."""
        return TITLES.get(column, column[:1].upper() + column[1:])


def mean_of(values: Iterable[float | None]) -> float | None:
    """The unweighted mean of the known values; None if there is none."""
    known = [value for value in values if value is not None and value == value]
    return fmean(known) if known else None


def read_run(run_folder: Path) -> Run:
    """Read `run.jsonl` of a run folder, finished or not; `UserError` if there is none or it has no header."""
    path = Path(run_folder) / "run.jsonl"
    try:
        lines = tuple(_lines(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the folder of a run.") from error
    header = _last(Header, lines, "header")
    if header is None:
        raise UserError(f"{path} has no header line, so nothing is known about the run; start the run again.")
    resumed = tuple(line["round"] for line in lines if line.get("event") == "resume" and isinstance(line.get("round"), int))
    return Run(header, _trials(lines, header.metric), _last(EndLine, lines, "end"), resumed)


L = TypeVar("L", bound=Line)
Raw = Mapping[str, JsonValue]


def _lines(path: Path) -> Iterator[Raw]:
    """The JSON objects of a file; a torn or foreign line is skipped."""
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line


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


def _trials(lines: tuple[Raw, ...], metric: str) -> tuple[Trial, ...]:
    """Group the lines by trial; what a trial says when it ends is merged into what it said when it started."""
    abouts: dict[str, TrialLine] = {}
    for about in _all(TrialLine, lines, "trial"):
        before = abouts.get(about.trial, about)
        abouts[about.trial] = before.model_copy(update={key: getattr(about, key) for key in about.model_fields_set})
    rounds = {(line.trial, line.round): line for line in _all(RoundLine, lines, "round")}
    scored = _all(ScoreLine, ({**line, "value": line.get(metric)} for line in lines), "score")
    scores = {(line.trial, line.round, line.column, line.client, line.name): line for line in scored}
    samples = {(line.trial, line.sample): line for line in _all(SampleLine, lines, "sample")}
    names = dict.fromkeys([*abouts, *(key[0] for key in (*rounds, *scores, *samples))])
    trials = [
        Trial(
            abouts.get(name) or TrialLine(trial=name),
            tuple(sorted((line for line in rounds.values() if line.trial == name), key=lambda line: line.round)),
            tuple(sorted((line for line in scores.values() if line.trial == name), key=lambda line: line.round)),
            tuple(line for line in samples.values() if line.trial == name),
        )
        for name in names
    ]
    return tuple(sorted(trials, key=lambda trial: trial.trains))
