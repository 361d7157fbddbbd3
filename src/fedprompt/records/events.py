"""The events of `run.jsonl`: one schema that runs write and reports read.

Each line of the file is one JSON object, and its field `event` says which of these models it is. Writing refuses a
field that the model does not have; reading ignores unknown fields and unknown events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, JsonValue, TypeAdapter, model_validator

from fedprompt.records.event_fields import (
    AttentionRecord,
    BackboneRecord,
    ClassDecisions,
    CommandRecord,
    DataRecord,
    DiagnosticRecord,
    ExpectedFigure,
    ExplanationRecord,
    LeftOutImage,
    MistakeRecord,
    Number,
    PartitionCounts,
    Record,
    Table,
)
from fedprompt.text_files import json_text

SCHEMA = 1
Status = Literal["running", "done", "interrupted", "failed"]


class BaseEvent(Record):
    """One line of `run.jsonl`; a field that was not set is absent from the line."""

    event: str

    def fields(self) -> dict[str, object]:
        """The fields that were set, beginning with `event`."""
        return {"event": self.event, **self.model_dump(exclude_unset=True)}

    def to_json(self) -> str:
        """The line with all fields, also long ones, without its end."""
        return json_text(self.fields())


class HeaderEvent(BaseEvent):
    """The first event of a run: everything that is fixed before round 1."""

    event: Literal["header"] = "header"
    schema_version: int = Field(SCHEMA, description="version of this schema")
    title: str = Field("", description="title of the report")
    time: str = Field("", description="start of the run, ISO 8601, UTC")
    seed: int | None = Field(None, description="seed of the run")
    main: str = Field("", description="trial that the run is about; the other trials are baselines")
    metric: str = Field("accuracy", description="key of the headline metric in the figures of score events")
    further: tuple[str, ...] = Field((), description="keys of further metrics that the report shows")
    threshold: str = Field("", description="what the threshold of labels is fitted on, in words; absent if none is")
    recipe: Table = Field({}, description="the recipe with all defaults written out")
    versions: dict[str, str] = Field({}, description="versions of packages, platform and number of threads")
    backbone: BackboneRecord = Field(BackboneRecord(), description="the frozen backbone")
    data: DataRecord = Field(DataRecord(), description="the data set")
    left_out: tuple[LeftOutImage, ...] = Field((), description="unreadable images; a resumed run leaves out the same")
    protocol: str = Field("", description="evaluation protocol, in paragraphs of text")
    descriptions: dict[str, str] = Field({}, description="fingerprint of the class descriptions per trial")
    bundled: dict[str, str] = Field({}, description="bundled descriptions per trial, where it uses any")
    splits: dict[str, str] = Field({}, description="split -> its meaning, in the order of the report's columns")
    partition: PartitionCounts | None = Field(None, description="training images per client and class")
    expected: tuple[ExpectedFigure, ...] = Field((), description="published figures of the same experiment")
    command: CommandRecord | None = Field(None, description="the command that began the run; absent without one")


class TrialEvent(BaseEvent):
    """A trial (one method with its options) starts or ends; the end event has only what is new."""

    event: Literal["trial"] = "trial"
    trial: str = Field(description="name of the trial")
    status: Status | None = Field(None, description="`running` at the start; then how the trial ended")
    message: str = Field("", description="why it was interrupted or failed")
    seconds: float | None = Field(
        None, description="seconds of the trial, at its end; of one that was resumed, those since then"
    )
    method: str = Field("", description="name of the method")
    idea: str = Field("", description="first line of the method's file: what it is, whose idea")
    texts: str = Field("", description="what its texts or its loss depend on besides the class names")
    options: Table = Field({}, description="options of the method")
    settings: Table = Field({}, description="training settings, and what of the server differs from its defaults")
    descriptions: Table = Field({}, description="the trial's [descriptions] table")
    trainable: int | None = Field(None, description="number of trained parameters")
    rounds: int | None = Field(None, description="planned rounds")
    unchanged: bool = Field(
        default=False, description="at its end: training left every tensor as it was; absent if it did not"
    )


class RoundEvent(BaseEvent):
    """A finished round."""

    event: Literal["round"] = "round"
    trial: str = Field(description="name of the trial")
    round: int = Field(description="number of the round, from 1")
    clients: tuple[int, ...] = Field((), description="numbers of the selected clients")
    loss: Number = Field(None, description="mean training loss over the updates that were used")
    losses: dict[int, Number] = Field({}, description="training loss per client; empty with secure aggregation")
    bytes_up: dict[int, int] = Field({}, description="bytes uploaded per client")
    bytes_down: int | None = Field(None, description="bytes of the shared state that each client downloads")
    seconds: float | None = Field(None, description="duration of the round")
    failed: dict[int, str] = Field({}, description="client -> why its update was not used, `code: sentence`")
    skipped: str = Field("", description="why the round left the shared state as it was")
    rolled_back: int | None = Field(
        None,
        description="earlier round that was computed again without the updates of the clients that `failed` says were "
        "rolled back, because after it clients' losses were not finite or many times as large, or no update could "
        "be used; this round changes nothing itself",
    )
    site_seconds: dict[int, Number] = Field({}, description="training time per client, as sites report it")
    validation: dict[int, Number] = Field(
        {}, description="headline metric per client of the shared state before the round, as sites report it"
    )
    kept: tuple[int, ...] = Field((), description="sites whose update counts: they continue from this personal state")
    epsilon: Number = Field(None, description="epsilon spent so far, the largest of all clients")
    delta: float | None = Field(None, description="delta of that epsilon")
    protects: str = Field("", description="unit of privacy: `client` or `sample`")


class ScoreEvent(BaseEvent):
    """All metrics of one model on one test set."""

    event: Literal["score"] = "score"
    trial: str = Field(description="name of the trial")
    round: int = Field(description="round after which the model was scored")
    split: str = Field(description="split of the test set: a column of the report")
    name: str = Field("all", description="test set within the split, e.g. a domain")
    client: int | None = Field(None, description="client whose personal model or test images these are")
    part: str = Field("", description="data set, where there are several")
    num_examples: int = Field(0, description="number of test images")
    figures: dict[str, Number] = Field({}, description="metric -> value in [0, 1]; null where it is undefined")
    classes: tuple[str, ...] = Field((), description="candidate classes")
    per_class: tuple[Number, ...] = Field((), description="accuracy per class; with many labels, average precision")


class ClientScoresEvent(BaseEvent):
    """The scores of more than 256 models on test sets of one split, as lists with one value per model.

    It stands for as many score events, which hold the same values one by one.
    """

    event: Literal["client_scores"] = "client_scores"
    trial: str = Field(description="name of the trial")
    round: int = Field(description="round after which the models were scored")
    split: str = Field(description="split of the test sets: a column of the report")
    names: tuple[str, ...] = Field(description="test set within the split")
    clients: tuple[int | None, ...] = Field(description="client whose personal model or test images these are")
    parts: tuple[str, ...] = Field(description="data set, where there are several")
    num_examples: tuple[int, ...] = Field(description="number of test images")
    figures: dict[str, tuple[Number, ...]] = Field(description="metric -> value in [0, 1]; null where it is undefined")
    classes: tuple[str, ...] = Field(description="all candidate classes")
    candidates: tuple[tuple[int, ...], ...] = Field(description="the model's candidates, as positions in `classes`")
    per_class: tuple[tuple[Number, ...], ...] = Field(description="as in score events, in the order of the candidates")

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        fields = (self.clients, self.parts, self.num_examples, self.candidates, self.per_class, *self.figures.values())
        if {len(field) for field in fields} != {len(self.names)}:
            raise ValueError("all fields must have one value per model")
        if any(not 0 <= place < len(self.classes) for own in self.candidates for place in own):
            raise ValueError("candidates must be positions in classes")
        return self


class LocalImagesEvent(BaseEvent):
    """The clients' test images, each once: by how much each moves the mean of the clients' accuracies.

    For intervals: an image that several clients are tested on is drawn for all of them together.
    """

    event: Literal["local_images"] = "local_images"
    trial: str = Field(description="name of the trial")
    round: int = Field(description="round after which the clients' models were scored")
    part: str = Field("", description="data set, where there are several")
    rows: tuple[int, ...] = Field(description="rows in the data set, ascending")
    influence: tuple[float, ...] = Field(
        description="mean over clients of (1 if the image is classified correctly, else 0, less the client's accuracy) "
        "/ the number of the client's test images"
    )

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if len(self.rows) != len(self.influence):
            raise ValueError("rows and influence must have one value per image")
        return self


class ValidationEvent(BaseEvent):
    """A scoring of held-out images, by which a round is chosen."""

    event: Literal["validation"] = "validation"
    trial: str = Field(description="name of the trial")
    round: int = Field(description="round after which the images were scored; 0 is before training")
    metric: str = Field(description="metric by which a round is chosen, as `train.keep` names it")
    value: Number = Field(None, description="the metric over the clients that were scored; null if it is undefined")
    better: bool = Field(default=False, description="whether this is the best round so far")
    scores: dict[int, dict[str, Number]] = Field({}, description="the figures of the metric per client")
    images: dict[int, int] = Field({}, description="held-out images per client")


class KeptEvent(BaseEvent):
    """The round that a trial keeps, whose model is tested and saved, and why."""

    event: Literal["kept"] = "kept"
    trial: str = Field(description="name of the trial")
    round: int = Field(description="the round; 0 is the state before training")
    metric: str = Field(description="metric by which it was chosen")
    value: Number = Field(None, description="its metric on held-out images")
    images: int = Field(0, description="number of held-out images")
    last: int = Field(description="the last round that was trained")
    last_value: Number = Field(None, description="the metric after the last round; null if that was not scored")
    patience: int = Field(0, description="scorings without a better one after which training ended early; 0 if not")


class IntervalEvent(BaseEvent):
    """95% interval of a figure, or of its difference to another trial, by bootstrap over the test images."""

    event: Literal["interval"] = "interval"
    trial: str = Field(description="name of the trial")
    column: str = Field(description="column of the report: a split, `hm` or `gap`")
    against: str = Field("", description="trial whose figure is subtracted; empty for the figure itself")
    value: Number = Field(None, description="the figure in [0, 1], or the difference")
    low: Number = Field(None, description="lower end")
    high: Number = Field(None, description="upper end")
    images: int = Field(0, description="test images behind the figure; of a mean over columns, the smallest number")
    changed: int | None = Field(
        None,
        description="images with another prediction than the other trial's (with many labels: other scores); "
        "of a column with test images of its own",
    )


class CooccurrenceEvent(BaseEvent):
    """How often labels occur together: in the annotations, or as a trial predicts them."""

    event: Literal["cooccurrence"] = "cooccurrence"
    trial: str = Field("", description="name of the trial; empty for the annotations")
    split: str = Field(description="split of the test set")
    classes: tuple[str, ...] = Field(description="names of the classes; of more than 256, the most frequent ones")
    counts: tuple[tuple[int, ...], ...] = Field(description="[classes, classes], images that have both labels")
    positives: tuple[int, ...] = Field(
        (), description="images per label, of all classes; only where `classes` are not all of them"
    )

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if {len(self.counts), *map(len, self.counts)} != {len(self.classes)}:
            raise ValueError("counts must be [classes, classes]")
        return self


class MistakesEvent(BaseEvent):
    """The mistakes of a model on a test set: decisions per class, confusions, and the worst with their images."""

    event: Literal["mistakes"] = "mistakes"
    trial: str = Field(description="name of the trial")
    split: str = Field("", description="split of the test set")
    name: str = Field("all", description="test set within the split, e.g. a domain")
    part: str = Field("", description="data set, where there are several")
    images: int = Field(0, description="number of test images")
    threshold: float | None = Field(
        None, description="probability from which a label is predicted, one for all classes; absent with one label"
    )
    classes: tuple[ClassDecisions, ...] = Field((), description="decisions per candidate class")
    counts: tuple[tuple[int, ...], ...] = Field(
        (), description="[true, predicted class], images; empty with many labels or more than 100 classes"
    )
    confusions: int = Field(0, description="how many pairs of classes are confused, of which `confused` has the first")
    confused: tuple[tuple[str, str, int], ...] = Field(
        (), description="[true class, predicted class, images], most frequent first; empty with many labels"
    )
    worst: tuple[MistakeRecord, ...] = Field((), description="wrong predictions with the highest probability")

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if self.counts and {len(self.counts), *map(len, self.counts)} != {len(self.classes)}:
            raise ValueError("counts must be [classes, classes]")
        return self


class SampleEvent(BaseEvent):
    """One sample image with the strongest predictions of a trial."""

    event: Literal["sample"] = "sample"
    trial: str = Field(description="name of the trial")
    sample: str = Field(description="number of the sample; the same image in every trial")
    split: str = Field("", description="split of the test set")
    picture: str = Field("", description="PNG in base64; only in the first trial of a run")
    name: str = Field("", description="file name or address of the image")
    truth: tuple[str, ...] = Field((), description="true labels")
    top: tuple[tuple[str, float], ...] = Field((), description="[label, probability], strongest first")
    decided: tuple[str, ...] | None = Field(
        None, description="labels from the decision threshold on, on pages of predictions"
    )
    attention: AttentionRecord | None = Field(None, description="attention maps, if the method has any")
    explanation: ExplanationRecord | None = Field(None, description="labels under conditions, if the method has any")


class DiagnosticsEvent(BaseEvent):
    """What the parts of a trained method do with a few test images, for methods that say it of themselves."""

    event: Literal["diagnostics"] = "diagnostics"
    trial: str = Field(description="name of the trial")
    split: str = Field("", description="split of the test set that the images are from")
    images: int = Field(0, description="number of images, drawn from one test set")
    diagnostics: tuple[DiagnosticRecord, ...] = Field((), description="the figures, in the method's order")


class SitesEvent(BaseEvent):
    """What the sites of a federation reported in the preflight of a trial."""

    event: Literal["sites"] = "sites"
    trial: str = Field(description="name of the trial")
    sites: dict[str, Table] = Field(description="report per site: versions, fingerprints, counts of images, clock")


class PrivacyEvent(BaseEvent):
    """A charge to the privacy ledger, written before the round that it pays for; resuming never takes it back."""

    event: Literal["privacy"] = "privacy"
    ledger: str = Field(description="name of the trial")
    number: int = Field(description="number of the round")
    clients: tuple[int, ...] = Field(description="clients that are charged for one more round")
    epsilon: Number = Field(description="epsilon after the charge, the largest of all clients")


class BudgetEvent(BaseEvent):
    """The number of rounds that fit into a trial's time, from a measurement before any trains; resuming keeps it.

    A later event of a trial, before its first round, gives it rounds that earlier trials left time for.
    """

    event: Literal["budget"] = "budget"
    name: str = Field(description="name of the trial")
    rounds: int = Field(description="number of rounds that it trains")
    seconds: float = Field(description="its part of the run's time")
    first_round: float = Field(description="estimated seconds of the first round, which opens images")
    round: float = Field(description="estimated seconds of a later round")
    scoring: float = Field(description="estimated seconds of the scoring at the end")
    wanted: int = Field(0, description="number of rounds that the recipe has")
    needed: float = Field(0.0, description="estimated seconds that all of these need")


class ResumeEvent(BaseEvent):
    """A trial continues from a checkpoint."""

    event: Literal["resume"] = "resume"
    trial: str = Field(description="name of the trial")
    round: int = Field(description="round of the checkpoint")


class ChangesEvent(BaseEvent):
    """A run goes on although something has changed since it began, which the user has accepted."""

    event: Literal["changes"] = "changes"
    changes: tuple[str, ...] = Field(description="what has changed, each with its value before and now")


class EndEvent(BaseEvent):
    """The run ended; without this event it is still going on or was killed."""

    event: Literal["end"] = "end"
    status: Status | None = Field(None, description="how it ended")
    message: str = Field("", description="why it was interrupted or failed")
    seconds: float | None = Field(None, description="duration since the run started or was resumed")


Event = Annotated[
    HeaderEvent
    | TrialEvent
    | RoundEvent
    | ScoreEvent
    | ClientScoresEvent
    | LocalImagesEvent
    | ValidationEvent
    | KeptEvent
    | IntervalEvent
    | CooccurrenceEvent
    | MistakesEvent
    | SampleEvent
    | DiagnosticsEvent
    | SitesEvent
    | PrivacyEvent
    | BudgetEvent
    | ResumeEvent
    | ChangesEvent
    | EndEvent,
    Field(discriminator="event"),
]
EVENTS: Mapping[str, type[BaseEvent]] = {
    kind.model_fields["event"].default: kind for kind in get_args(get_args(Event)[0])
}
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(fields: Mapping[str, JsonValue]) -> Event | None:
    """The event of one line, without unknown fields; None for an unknown event.

    Raises pydantic's ValidationError if a field is missing or of another type.
    """
    kind = fields.get("event")
    known = isinstance(kind, str) and kind in EVENTS
    return _ADAPTER.validate_python(fields, extra="ignore") if known else None
