"""Sample images with each method's predictions, attention maps and labels under conditions."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps

from fedprompt.records.event_fields import AttentionRecord, ExplanationRecord
from fedprompt.records.events import SampleEvent
from fedprompt.records.run_record import Run

PNG = b"\x89PNG\r\n\x1a\n"
HEAT = ("#ff6a00", "#ffec5a")  # from weak to strong attention
OPACITY = 0.92  # of the strongest patch
PATCH_PIXELS = 4  # side of a patch in an overlay


@dataclass(frozen=True)
class Prediction:
    """One predicted label; `right` if it is a true one."""

    name: str
    probability: float
    right: bool


@dataclass(frozen=True)
class TrialPredictions:
    """The strongest predictions of one trial for an image, and the labels it decides on where that is recorded."""

    trial: str
    label: str
    predictions: tuple[Prediction, ...]
    decided: tuple[str, ...] | None = None


@dataclass(frozen=True)
class SampleImage:
    """One sample image as a data URL, its true labels, and the predictions of every trial."""

    sample: str
    url: str
    labels: tuple[str, ...]
    split: str
    name: str
    predictions: tuple[TrialPredictions, ...]

    @property
    def truth(self) -> str:
        """Its true labels as text, empty without any."""
        return " + ".join(self.labels)

    @property
    def known(self) -> bool:
        """Whether its labels are known: those of a run's test sets are, also where an image has none."""
        return bool(self.truth or self.split)

    @property
    def truth_text(self) -> str:
        """Its true labels, or its name where they are not known."""
        return self.truth or ("none of the labels" if self.known else self.name)

    @property
    def heading(self) -> str:
        """Its name on a page of predictions, where a user looks for it; its true labels in the report of a run."""
        return self.name if self._is_given else self.truth_text

    @property
    def below(self) -> str:
        """What stands below the heading: the given label on a page of predictions, the split in the report of a run."""
        if not self._is_given:
            return self.split
        return f"true: {self.truth_text}" if self.known else ""

    @property
    def _is_given(self) -> bool:
        return any(trial.decided is not None for trial in self.predictions)

    def is_right(self, trial: TrialPredictions) -> bool:
        """Whether the decided labels are exactly the true ones or, where none are, the strongest is a true one."""
        if trial.decided is not None:
            return set(trial.decided) == set(self.labels)
        return bool(trial.predictions) and trial.predictions[0].right


@dataclass(frozen=True)
class AttentionMap:
    """Attention of the patches to one attribute: an overlay, and its range in multiples of uniform attention."""

    attribute: str
    url: str
    low: str
    high: str


@dataclass(frozen=True)
class ImageAttention:
    """One sample image with its attention maps."""

    image: SampleImage
    maps: tuple[AttentionMap, ...]


@dataclass(frozen=True)
class ConditionCell:
    """One label under one condition: its probability, an overlay of where it was found, and the overlay's maximum."""

    probability: float
    url: str
    high: str


@dataclass(frozen=True)
class ImageExplanation:
    """One sample image with the weight per condition, and one row of cells per label."""

    image: SampleImage
    conditions: tuple[tuple[str, float], ...]
    rows: tuple[tuple[str, bool, tuple[ConditionCell, ...]], ...]  # label, whether it is true, one cell per condition


def sample_images(run: Run) -> list[SampleImage]:
    """The sample images in file order with the predictions of all trials, without those that cannot be read."""
    every = [(trial, sample) for trial in run.trials for sample in trial.samples]
    found = []
    for name in dict.fromkeys(sample.sample for _, sample in every):
        same = [(trial, sample) for trial, sample in every if sample.sample == name]
        predictions = tuple(
            TrialPredictions(trial.name, trial.label, _predictions(sample), sample.decided) for trial, sample in same
        )
        url = next((url for _, sample in same if (url := png_data_url(sample.picture))), "")
        if url:
            first = same[0][1]
            found.append(SampleImage(name, url, tuple(first.truth), first.split, first.name, predictions))
    return found


def _predictions(sample: SampleEvent) -> tuple[Prediction, ...]:
    return tuple(Prediction(name, probability, name in sample.truth) for name, probability in sample.top)


def png_data_url(picture: str) -> str:
    """A `data:` URL of a base64 PNG, re-encoded so that it holds nothing else; empty if it is not one."""
    try:
        content = base64.b64decode(picture, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}" if content.startswith(PNG) else ""


def attention_maps(run: Run) -> list[ImageAttention]:
    """The sample images with attention maps, of the main trial or else of the first trial that has any."""
    return [
        ImageAttention(image, _attention_maps(sample.attention))
        for image, sample in _with(run, lambda sample: bool(sample.attention and sample.attention.attributes))
        if sample.attention
    ]


def label_explanations(run: Run) -> list[ImageExplanation]:
    """The sample images with labels under conditions, of the main trial or else of the first trial that has any."""
    return [
        _explanation(image, sample.explanation)
        for image, sample in _with(run, lambda sample: sample.explanation is not None)
        if sample.explanation
    ]


def _with(run: Run, condition: Callable[[SampleEvent], bool]) -> list[tuple[SampleImage, SampleEvent]]:
    """The samples that fulfil a condition with their images, of the main trial or else the first trial that has any."""
    candidates = [trial for trial in (run.main, *run.trials) if trial and any(map(condition, trial.samples))]
    shown = {image.sample: image for image in sample_images(run)}
    samples = candidates[0].samples if candidates else ()
    return [(shown[one.sample], one) for one in samples if one.sample in shown and condition(one)]


def _explanation(image: SampleImage, explanation: ExplanationRecord) -> ImageExplanation:
    """All overlays of an image share their scale."""
    strongest = max((max(lifts) for label in explanation.labels for lifts in label.lifts), default=1.0)
    rows = tuple(
        (
            label.name,
            label.name in image.labels,
            tuple(
                ConditionCell(found, heat_overlay(lifts, explanation.grid, strongest), f"{max(lifts):.0f}")
                for found, lifts in zip(label.found, label.lifts, strict=True)
            ),
        )
        for label in explanation.labels
    )
    return ImageExplanation(image, tuple(zip(explanation.conditions, explanation.gate, strict=True)), rows)


def _attention_maps(attention: AttentionRecord) -> tuple[AttentionMap, ...]:
    """One map per attribute; all maps of an image share their scale, so that a weak one looks weak."""
    count = attention.total or len(attention.attributes)  # uniform attention is 1 / count
    lifts = {attribute.name: [count * weight for weight in attribute.weights] for attribute in attention.attributes}
    strongest = max(max(found) for found in lifts.values())
    return tuple(
        AttentionMap(name, heat_overlay(found, attention.grid, strongest), f"{min(found):.1f}", f"{max(found):.1f}")
        for name, found in lifts.items()
    )


def heat_overlay(lifts: Sequence[float], grid: tuple[int, int], strongest: float) -> str:
    """A PNG overlay: transparent up to uniform attention (1), yellow at `strongest`, smooth between patches."""
    span = max(strongest - 1, 1e-9)
    shares = bytes(round(255 * min(max((lift - 1) / span, 0), 1)) for lift in lifts)
    size = (PATCH_PIXELS * grid[1], PATCH_PIXELS * grid[0])
    shade = Image.frombytes("L", (grid[1], grid[0]), shares).resize(size, Image.Resampling.BICUBIC)
    overlay = ImageOps.colorize(shade, *HEAT)
    overlay.putalpha(shade.point(lambda share: round(OPACITY * share)))
    file = io.BytesIO()
    overlay.save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
