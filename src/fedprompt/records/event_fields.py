"""Value types and nested records of the events in `run.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from fedprompt.text_files import LARGEST_NUMBER


class Record(BaseModel):
    """A JSON object with known fields.

    Construction refuses an unknown field; reading passes `extra="ignore"`. Numbers are accepted in place of text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False)


def json_value(value: object) -> object:
    """The value with lists for tuples, and None for NaN, infinity and larger numbers than readers take."""
    return _finite(value, infinity=None)


def table_value(value: object) -> object:
    """As `json_value`, but infinity is the text "inf", as recipes write it: there it is a setting, not a failure."""
    return _finite(value, infinity="inf")


def _finite(value: object, *, infinity: str | None) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(item, infinity=infinity) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, infinity=infinity) for item in value]
    if isinstance(value, float) and not abs(value) <= LARGEST_NUMBER:
        return infinity if value == math.inf else None
    return value


Number = Annotated[float | None, BeforeValidator(json_value)]  # None for a number that is not finite
Table = Annotated[dict[str, JsonValue], BeforeValidator(table_value)]  # a nested table with keys of its own


class PartitionCounts(Record):
    """Training images per client and class."""

    rule: str = Field("", description="name of the partition rule")
    clients: tuple[str, ...] = Field(description="names of the clients")
    classes: tuple[str, ...] = Field(description="names of the base classes")
    counts: tuple[tuple[int, ...], ...] = Field(
        description="[clients, classes], training images; of the first 200 clients at most"
    )
    sizes: tuple[int, ...] = Field(
        (), description="training images per client; only where `counts` are not of all, or images have several labels"
    )
    domains: tuple[str, ...] = Field((), description="domain per client; empty without domains")

    def images(self, client: int) -> int:
        """Training images of a client; an image counts once, however many labels it has."""
        return self.sizes[client] if self.sizes else sum(self.counts[client])

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        widths = {len(row) for row in self.counts}
        if len(self.counts) > len(self.clients) or widths - {len(self.classes)}:
            raise ValueError("counts must be [clients, classes]")
        if len(self.counts) < len(self.clients) != len(self.sizes):
            raise ValueError("sizes must be those of all clients")
        return self


class ExpectedFigure(Record):
    """A published figure, in percent, that the report compares with a figure of the run."""

    trial: str = Field(description="trial whose figure is compared")
    table: str = Field(description="name of the published table")
    name: str = Field(description="column of the published table")
    value: float = Field(description="the published figure")
    source: str = Field("", description="where it was published, and how certain the figure is")
    columns: tuple[str, ...] = Field(
        description="columns of the report, of which the first that the trial has is compared; `a+b` is the mean of "
        "two columns, `parameters (M)` counts millions of trained parameters"
    )
    part: str = Field("", description="data set that the figure is of; empty: the mean over all data sets")


class CommandRecord(Record):
    """The command or the call in Python that began a run, for what a verdict proposes."""

    name: str = Field(description="`run` or `tune`")
    recipe: str = Field("", description="the recipe as the user named it; empty for a call in Python")
    settings: tuple[str, ...] = Field((), description="settings of the recipe, key=value")
    minutes: float = Field(0.0, description="time that the user gave with --minutes; 0 if none")
    rounds: int = Field(0, description="rounds of the recipe of which a tuning trained fewer, for want of time; else 0")
    folder: str = Field("", description="folder of the run, seen from where the command was given; empty if temporary")
    python: bool = Field(default=False, description="whether it was a call in Python")


class LeftOutImage(Record):
    """An image that cannot be read and that the run leaves out."""

    row: int = Field(description="row in the data set")
    picture: str = Field(description="file name or address of the image")
    place: str = Field(description="images that it belonged to, e.g. training images of a client")
    reason: str = Field(description="why it cannot be read")


class BackboneRecord(Record):
    """The frozen CLIP model of a run."""

    name: str = Field("", description="path or name in the recipe")
    family: str = Field("", description="its family, empty in earlier versions")
    fingerprint: str = Field("", description="SHA-256 of weights, configuration, preprocessing and tokenizer")
    parameters: int | None = Field(None, description="number of parameters")
    patches: int | None = Field(None, description="patches per image")
    refused: tuple[str, ...] = Field((), description="bundled methods that do not run on it")


class DataRecord(Record):
    """The data set of a run."""

    name: str = Field("", description="name of the data set")
    fingerprint: str = Field("", description="hash of the images' addresses or content")
    columns: dict[str, str] = Field({}, description="hash of the labels, the split, the domains and the classes")
    kind: str = Field("", description="`single` or `multi`: labels per image")
    summary: str = Field("", description="what was read, in one line: images, classes, splits and what was left out")
    images: dict[str, int] = Field({}, description="images per split")
    labels: str = Field("", description="what the labels of an image are, and in which form they were read")
    origins: dict[str, str] = Field({}, description="where images, classes, labels, domains and splits come from")
    left_out: dict[str, int] = Field({}, description="files or rows that were left out, by reason")
    unreadable: int = Field(0, description="images that were left out because they cannot be read")
    base: tuple[str, ...] = Field((), description="base classes, which clients train on")
    new: tuple[str, ...] = Field((), description="new classes, which nobody trains on")
    domains: tuple[str, ...] = Field((), description="all domains")
    unseen_domains: tuple[str, ...] = Field((), description="domains that nobody trains on")
    notes: tuple[str, ...] = Field((), description="warnings of the reader of the data set, and problems of its images")
    near_duplicates: int = Field(0, description="test images that look almost like a training image, where compared")
    near_of_same_name: int = Field(0, description="those of them whose files have the training image's name")


class MistakeRecord(Record):
    """A test image with a wrong prediction of high probability."""

    name: str = Field(description="file name or address of the image")
    picture: str = Field("", description="PNG in base64; empty in a run that records no images")
    truth: tuple[str, ...] = Field((), description="true labels, 100 at most")
    predicted: tuple[str, ...] = Field((), description="predicted labels, 100 at most")
    wrong: str = Field(description="the label that is wrongly predicted, or wrongly left out")
    probability: Number = Field(None, description="its probability")


class ClassDecisions(Record):
    """How often one class was predicted, and how often rightly."""

    name: str = Field(description="the class")
    images: int = Field(description="images that have the label")
    predicted: int = Field(description="images for which it is predicted, among those whose label is known")
    right: int = Field(description="images for which it is predicted and that have it")


class AttributeAttention(Record):
    """Attention of all patches to one attribute."""

    name: str = Field(description="the attribute's text")
    class_name: str = Field("", description="the class that the attribute describes")
    weights: tuple[float, ...] = Field(description="attention weight per patch, row by row")


class AttentionRecord(Record):
    """Attention of the patches of one image to the attributes with the largest weights."""

    grid: tuple[int, int] = Field(description="rows and columns of patches")
    total: int = Field(0, description="number of attributes that share the attention; uniform attention is 1 / total")
    attributes: tuple[AttributeAttention, ...] = Field(description="the attributes that were kept, strongest first")

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if any(len(attribute.weights) != self.grid[0] * self.grid[1] for attribute in self.attributes):
            raise ValueError("weights must have one value per patch")
        return self


class DiagnosticRecord(Record):
    """A figure on what a part of a trained method does; it is no score."""

    name: str = Field(description="what was measured")
    value: Number = Field(description="the figure; null where it is undefined")
    meaning: str = Field(description="how to read it, in sentences")


class LabelEvidence(Record):
    """One label of an image under every condition."""

    name: str = Field(description="the label")
    found: tuple[float, ...] = Field(description="probability of the label per condition")
    lifts: tuple[tuple[float, ...], ...] = Field(
        description="[conditions, patches], transport mass per patch in multiples of uniform mass"
    )


class ExplanationRecord(Record):
    """Labels of one image under every condition, with the gate's weight per condition."""

    grid: tuple[int, int] = Field(description="rows and columns of patches")
    conditions: tuple[str, ...] = Field(description="texts of the conditions")
    gate: tuple[float, ...] = Field(description="weight per condition; the weights sum to 1")
    labels: tuple[LabelEvidence, ...] = Field(description="true and most probable labels")

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        conditions, patches = len(self.conditions), self.grid[0] * self.grid[1]
        for label in self.labels:
            sizes = {len(lifts) for lifts in label.lifts}
            if not len(self.gate) == len(label.found) == len(label.lifts) == conditions or sizes != {patches}:
                raise ValueError("lifts must be [conditions, patches]")
        return self
