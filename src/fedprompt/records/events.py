"""The schema of `run.jsonl`: one JSON object a line, its kind in `event`; a later line replaces an earlier one.

`header` -> `Header`, `trial` -> `TrialLine`, `round` -> `RoundLine`, `score` -> `ScoreLine`, `sample` -> `SampleLine`,
`company` -> `CooccurrenceLine`, `end` -> `EndLine`. Every field with a default may be absent; unknown events
and keys are ignored.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, JsonValue, model_validator


class Line(BaseModel):
    """One event; numbers are accepted where a word is expected."""

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False)


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


class Expected(Line):
    """A published figure, and which of a trial's own belongs beside it: the first of `columns` it has.

    Figures are in percent; "a+b" is the mean of two columns, and "parameters (M)" counts what is trained.
    """

    trial: str
    table: str
    name: str
    value: float
    source: str = ""
    columns: tuple[str, ...]
    part: str = ""


class LeftOut(Line):
    """A picture that the run does without, whose it would have been, and why."""

    row: int
    picture: str
    place: str
    reason: str


class Header(Line):
    """What was fixed before the run began."""

    title: str = ""
    time: str = ""
    seed: int | None = None
    main: str = ""  # the trial the run is about; the others are compared with it
    metric: str = "accuracy"  # the key of the headline figure in score lines
    further: tuple[str, ...] = ()  # keys of figures that stand beside it
    recipe: dict[str, JsonValue] = {}
    versions: dict[str, JsonValue] = {}
    backbone: dict[str, JsonValue] = {}
    data: dict[str, JsonValue] = {}
    protocol: str = ""
    splits: dict[str, str] = {}  # split -> what it means; also the order of the columns
    partition: Partition | None = None
    expected: tuple[Expected, ...] = ()  # what was published of the same experiment
    left_out: tuple[LeftOut, ...] = ()  # a resumed run leaves out the same


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
    """One round: who was asked, what it cost and what came back; bytes are per client.

    `failed` says whose update was not used and why ("code: sentence"), `skipped` why the round changed nothing.
    `epsilon` at `delta` has been spent so far on each one of whatever `protects` names.
    """

    trial: str
    round: int
    clients: tuple[int, ...] = ()
    loss: float | None = None
    bytes_up: dict[int, int] = {}
    seconds: float | None = None
    failed: dict[int, str] = {}
    skipped: str = ""
    epsilon: float | None = None
    delta: float | None = None
    protects: str = ""


class ScoreLine(Line):
    """One score of one model on one set of test pictures; `model` is `personal` if it used the client's own tensors."""

    trial: str
    round: int
    split: str
    name: str = "all"
    client: int | None = None
    part: str = ""  # the data set, where there are several
    model: str = "global"
    measure: str = ""  # which further figure `value` is; the headline one if empty
    num_examples: int = 0
    value: float | None = None
    classes: tuple[str, ...] = ()
    per_class: tuple[float | None, ...] = ()

    @property
    def column(self) -> str:
        """The column this score belongs to."""
        column = self.split if self.model == "global" else f"{self.split} ({self.model})"
        return f"{column}:{self.measure}" if self.measure else column


class Attribute(Line):
    """How strongly each patch attends to one attribute, row by row."""

    name: str
    weights: tuple[float, ...]


class Attention(Line):
    """Where the patches of a picture look: the strongest of all `total` attributes."""

    grid: tuple[int, int]
    total: int = 0
    attributes: tuple[Attribute, ...]

    @model_validator(mode="after")
    def _shape(self) -> Self:
        if any(len(attribute.weights) != self.grid[0] * self.grid[1] for attribute in self.attributes):
            raise ValueError("weights must have one value a patch")
        return self


class Reason(Line):
    """One label of a picture under every condition: how sure, and where, in multiples of an even spread."""

    name: str
    found: tuple[float, ...]
    lifts: tuple[tuple[float, ...], ...]  # [conditions, patches]


class Explanation(Line):
    """By what a picture got its labels: the weight of every condition, and labels under each of them."""

    grid: tuple[int, int]
    conditions: tuple[str, ...]
    gate: tuple[float, ...]
    labels: tuple[Reason, ...]

    @model_validator(mode="after")
    def _shape(self) -> Self:
        conditions, patches = len(self.conditions), self.grid[0] * self.grid[1]
        for label in self.labels:
            sizes = {len(lifts) for lifts in label.lifts}
            if not len(self.gate) == len(label.found) == len(label.lifts) == conditions or sizes != {patches}:
                raise ValueError("lifts must be [conditions, patches]")
        return self


class CooccurrenceLine(Line):
    """How often labels stand together, [classes, classes], in truth (no trial) or as a trial predicts them."""

    trial: str = ""
    split: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @model_validator(mode="after")
    def _shape(self) -> Self:
        if {len(self.counts), *map(len, self.counts)} != {len(self.classes)}:
            raise ValueError("counts must be [classes, classes]")
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
    explanation: Explanation | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_word(cls, line: dict[str, JsonValue]) -> dict[str, JsonValue]:
        return {**line, "truth": [line["truth"]]} if isinstance(line.get("truth"), str) else line


class EndLine(Line):
    """How the run ended; a run without this line is still going on or was killed."""

    status: str = ""
    seconds: float | None = None
    message: str = ""
