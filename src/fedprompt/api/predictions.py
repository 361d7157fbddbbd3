"""What an adapter predicts for images: labels and probabilities, as text, as a table and in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from fedprompt.arguments import whole
from fedprompt.data.images import Images
from fedprompt.errors import plural
from fedprompt.experiments.sample_images import png

if TYPE_CHECKING:
    import pandas

SHOWN = 24  # images that a notebook shows
TOP = 5  # classes of `top`


class Prediction(NamedTuple):
    """What was predicted for one image: its label, or labels, and the probability of every class, best first."""

    name: str
    label: str | Sequence[str]
    probabilities: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for B images over C classes.

    `probabilities` [B, C] sum to one per image (single-label) or are one per label; `present` [B, C] says which labels
    are at or above the decision threshold (multi-label only): the adapter's own, or 0.5 where that does not hold.
    `unreadable` maps the names of images that were left out to the reason.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    probabilities: Tensor
    present: Tensor | None = None
    images: Images | None = field(default=None, repr=False)
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Prediction]:
        """One `Prediction` per image: its name, label and probabilities."""
        for name, label, best in zip(self.names, self.labels, self.top(len(self.classes)), strict=True):
            yield Prediction(name, label, dict(best))

    @property
    def labels(self) -> list[str] | list[list[str]]:
        """The most probable class per image or, with many labels, the present ones."""
        if self.present is None:
            return [self.classes[label] for label in self.probabilities.argmax(dim=1).tolist()]
        return [self._chosen(row) for row in self.present]

    def _chosen(self, present: Tensor) -> list[str]:
        return [self.classes[label] for label in present.nonzero().flatten().tolist()]

    def top(self, count: int = TOP) -> list[list[tuple[str, float]]]:
        """Per image the `count` most probable classes with their probabilities, best first; UserError below one."""
        found = self.probabilities.topk(min(whole(count, "count"), len(self.classes)))
        return [
            [(self.classes[label], value) for label, value in zip(labels, values, strict=True)]
            for labels, values in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]

    def to_pandas(self) -> pandas.DataFrame:
        """A row per image, its label or labels first, then a column of probabilities per class."""
        import pandas

        table = pandas.DataFrame(self.probabilities.numpy(), columns=list(self.classes))
        table.insert(0, "label" if self.present is None else "labels", self.labels)
        table.insert(0, "image", self.names)
        return table

    def __repr__(self) -> str:
        shown = ", ".join(self._in_words(row) for row in range(min(len(self), SHOWN)))
        return f"Predictions of {plural(len(self), 'image')}: {shown}{', ...' if len(self) > SHOWN else ''}"

    def _in_words(self, row: int) -> str:
        """The decided label with its probability, "bird 91%"; of several the names, "bird + fish"."""
        if self.present is not None:
            return " + ".join(self._chosen(self.present[row])) or "none of the labels"
        value, label = self.probabilities[row].max(dim=0)
        return f"{self.classes[int(label)]} {100 * value:.0f}%"

    def _repr_html_(self) -> str:
        cells = []
        for row, best in enumerate(self.top(3)[:SHOWN]):
            decided = [] if self.present is None else [f"<b>{escape(self._in_words(row))}</b>"]
            lines = "<br>".join([*decided, *(f"{escape(name)} {100 * value:.0f}%" for name, value in best)])
            shown = "" if self.images is None else f'<img src="data:image/png;base64,{png(self.images.decode(row))}">'
            cells.append(
                f'<figure style="display:inline-block;margin:6px;font:12px sans-serif">{shown}<br>{lines}</figure>'
            )
        more = f"<p>and {len(self) - SHOWN:,} more</p>" if len(self) > SHOWN else ""
        return "".join(cells) + more
