"""Sample pictures with what each method saw in them, and by what it went: attention maps, labels under conditions."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps

from fedprompt.records.events import Attention, Explanation, SampleLine
from fedprompt.records.reading import Run

PNG = b"\x89PNG\r\n\x1a\n"
WARM = ("#ff6a00", "#ffec5a")  # from weak to strong attention, over a grey picture
OPAQUE = 0.92  # of the strongest patch: the picture still shines through
SMOOTH = 4  # pixels a patch


@dataclass(frozen=True)
class Guess:
    """One prediction; `right` if it is (one of) the truth."""

    name: str
    probability: float
    right: bool


@dataclass(frozen=True)
class Answer:
    """The strongest predictions of one trial for a picture."""

    trial: str
    label: str
    guesses: tuple[Guess, ...]

    @property
    def right(self) -> bool:
        """Whether the first prediction is true."""
        return bool(self.guesses) and self.guesses[0].right


@dataclass(frozen=True)
class Picture:
    """One sample picture as a data address, its truth, and every trial's answer."""

    sample: str
    address: str
    truth: str
    where: str
    name: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Map:
    """Attention of the patches on one attribute: a tiny picture to lay over, and its range in multiples of uniform."""

    attribute: str
    address: str
    low: str
    high: str


@dataclass(frozen=True)
class Look:
    """One sample picture with its attention maps."""

    picture: Picture
    maps: tuple[Map, ...]


@dataclass(frozen=True)
class Cell:
    """One label under one condition: how sure, and a tiny picture of where to lay over."""

    found: float
    address: str
    high: str


@dataclass(frozen=True)
class Reasons:
    """One sample picture with the weight of each condition, and a row of cells a label."""

    picture: Picture
    conditions: tuple[tuple[str, float], ...]
    rows: tuple[tuple[str, bool, tuple[Cell, ...]], ...]  # label, whether it is true, a cell a condition


def sample_pictures(run: Run) -> list[Picture]:
    """The sample pictures in file order with the answers of all trials; one without a readable picture is left out."""
    lines = [(trial, sample) for trial in run.trials for sample in trial.samples]
    found = []
    for name in dict.fromkeys(sample.sample for _, sample in lines):
        same = [(trial, sample) for trial, sample in lines if sample.sample == name]
        answers = tuple(Answer(trial.name, trial.label, _guesses(sample)) for trial, sample in same)
        address = next((address for _, sample in same if (address := png_address(sample.picture))), "")
        if address:
            first = same[0][1]
            found.append(Picture(name, address, " + ".join(first.truth), first.split, first.name, answers))
    return found


def _guesses(sample: SampleLine) -> tuple[Guess, ...]:
    return tuple(Guess(name, probability, name in sample.truth) for name, probability in sample.top)


def png_address(picture: str) -> str:
    """A `data:` address of a base64 PNG, re-encoded so that it holds nothing else; empty if it is not one."""
    try:
        content = base64.b64decode(picture, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}" if content.startswith(PNG) else ""


def attention_maps(run: Run) -> list[Look]:
    """The attention maps of the main trial, or of the first trial that recorded any, beside their pictures."""
    return [
        Look(picture, _maps(sample.attention))
        for picture, sample in _explained(run, lambda sample: bool(sample.attention and sample.attention.attributes))
        if sample.attention
    ]


def label_reasons(run: Run) -> list[Reasons]:
    """Labels under conditions, of the main trial or of the first that recorded any, beside their pictures."""
    return [
        _reasons(picture, sample.explanation)
        for picture, sample in _explained(run, lambda sample: sample.explanation is not None)
        if sample.explanation
    ]


def _explained(run: Run, explains: Callable[[SampleLine], bool]) -> list[tuple[Picture, SampleLine]]:
    """The samples that explain themselves with their pictures, of the first trial that has any, main trial first."""
    candidates = [trial for trial in (run.main, *run.trials) if trial and any(map(explains, trial.samples))]
    shown = {picture.sample: picture for picture in sample_pictures(run)}
    samples = candidates[0].samples if candidates else ()
    return [(shown[line.sample], line) for line in samples if line.sample in shown and explains(line)]


def _reasons(picture: Picture, explanation: Explanation) -> Reasons:
    """All maps of a picture share their scale."""
    strongest = max((max(lifts) for label in explanation.labels for lifts in label.lifts), default=1.0)
    true = picture.truth.split(" + ")
    rows = tuple(
        (
            label.name,
            label.name in true,
            tuple(
                Cell(found, heat(lifts, explanation.grid, strongest), f"{max(lifts):.0f}")
                for found, lifts in zip(label.found, label.lifts, strict=True)
            ),
        )
        for label in explanation.labels
    )
    return Reasons(picture, tuple(zip(explanation.conditions, explanation.gate, strict=True)), rows)


def _maps(attention: Attention) -> tuple[Map, ...]:
    """One map an attribute; all maps of a picture share their scale, so that a weak one looks weak."""
    count = attention.total or len(attention.attributes)  # uniform attention is one part in so many
    lifts = {attribute.name: [count * weight for weight in attribute.weights] for attribute in attention.attributes}
    strongest = max(max(found) for found in lifts.values())
    return tuple(
        Map(name, heat(found, attention.grid, strongest), f"{min(found):.1f}", f"{max(found):.1f}")
        for name, found in lifts.items()
    )


def heat(lifts: Sequence[float], grid: tuple[int, int], strongest: float) -> str:
    """A PNG to lay over a picture: clear up to uniform attention (1), warm at `strongest`, smooth between patches."""
    span = max(strongest - 1, 1e-9)
    shares = bytes(round(255 * min(max((lift - 1) / span, 0), 1)) for lift in lifts)
    size = (SMOOTH * grid[1], SMOOTH * grid[0])
    shade = Image.frombytes("L", (grid[1], grid[0]), shares).resize(size, Image.Resampling.BICUBIC)
    image = ImageOps.colorize(shade, *WARM)
    image.putalpha(shade.point(lambda share: round(OPAQUE * share)))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
