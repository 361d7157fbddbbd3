"""Sample pictures with what each method saw in them, and where patches attend to which attributes."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps

from fedprompt.report.events import Attention, SampleLine
from fedprompt.report.reading import Run

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
    candidates = [
        trial for trial in (run.main, *run.trials) if trial and any(sample.attention for sample in trial.samples)
    ]
    if not candidates:
        return []
    trial = candidates[0]
    shown = {picture.sample: picture for picture in sample_pictures(run)}
    found = []
    for sample in trial.samples:
        picture = shown.get(sample.sample)
        if picture and sample.attention and sample.attention.attributes:
            found.append(Look(picture, _maps(sample.attention)))
    return found


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
