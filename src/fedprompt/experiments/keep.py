"""The rule for the round that a run keeps: the last one, or the best by a metric of images that nobody trains on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from fedprompt.config.recipe import Recipe
from fedprompt.data.labels import Kind
from fedprompt.errors import UserError, did_you_mean
from fedprompt.federated.evaluate import Score
from fedprompt.ops.metrics import harmonic_mean

LAST, BEST = "last", "best:"
COLUMNS = ("hm", "base", "local")
# Figures of held-out images over the base classes, by kind of labels.
FIGURES: Mapping[Kind, tuple[str, ...]] = {
    "single": ("accuracy", "macro_f1"),
    "multi": ("mean_average_precision", "accuracy", "cf1_macro", "cf1_hm", "of1", "top3_of1", "top3_cf1_hm"),
}
HELD_OUT = 0.2  # share of a client's images that a run holds out to choose a round, unless its recipe says another
SCORINGS = 20  # of a trial at most, if its recipe does not say how often to evaluate

ClientScores = Mapping[int, Score]  # by client


@dataclass(frozen=True)
class Keep:
    """`metric` of held-out images by which a round is chosen, or "" to keep the last round.

    "base" is the headline metric (accuracy or mAP) among all base classes, "local" that among each client's own
    classes, and "hm" the harmonic mean of both; any other metric is a figure among all base classes. Means over
    clients weigh each by its held-out images, those of "local" all clients alike, as the column Local does.

    Training ends after `patience` scorings in a row without a better one, if that is not 0. Held-out images are scored
    every `every` rounds, or up to 20 times if that is 0.
    """

    metric: str = ""
    patience: int = 0
    every: int = 0

    @classmethod
    def of(cls, recipe: Recipe, *, origin: str) -> Keep:
        """The rule of a recipe; UserError for an unknown metric, or for patience without one."""
        text, place = recipe.train.keep, f"{origin}: [train] keep"
        if any(key in table.train for table in (recipe.method, *recipe.compare) for key in ("keep", "patience")):
            raise UserError(
                f"{origin}: keep and patience are the same for all methods of a run, which would train on different "
                "images otherwise; set them under [train]."
            )
        if text == LAST:
            if recipe.train.patience:
                raise UserError(
                    f'{origin}: [train] patience needs a metric that can improve; add keep = "best:hm" under [train].'
                )
            return cls()
        metric, known = text.removeprefix(BEST), tuple(dict.fromkeys((*COLUMNS, *FIGURES["single"], *FIGURES["multi"])))
        if not text.startswith(BEST) or metric not in known:
            hint = did_you_mean(text, (LAST, *(BEST + one for one in known)))
            choices = ", ".join(f'"{BEST}{one}"' for one in known)
            raise UserError(f'{place} = "{text}" is unknown{hint} (choose "{LAST}", or {choices}).')
        return cls(metric, recipe.train.patience, recipe.evaluate.every)

    def check_kind(self, kind: Kind) -> None:
        """Raise UserError if the metric is not one of data with such labels."""
        if self.metric and self.metric not in (*COLUMNS, *FIGURES[kind]):
            labels = "one label" if kind == "single" else "several labels"
            raise UserError(
                f'[train] keep = "{BEST}{self.metric}" is no metric of images with {labels} each; choose one of '
                f"{', '.join(BEST + one for one in (*COLUMNS, *FIGURES[kind]))}."
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """The figures of a client that the metric is made of; none if the last round is kept."""
        if not self.metric:
            return ()
        return ("base", "local") if self.metric == "hm" else (self.metric,)

    @property
    def candidates(self) -> tuple[str, ...]:
        """Over which candidates clients score held-out images: "base", "local" or both."""
        return tuple(dict.fromkeys("local" if column == "local" else "base" for column in self.columns))

    def is_due(self, number: int, rounds: int) -> bool:
        """Whether held-out images are scored after a round: regularly, before the first round and after the last."""
        every = self.every or math.ceil(rounds / SCORINGS)
        return bool(self.metric) and rounds > 0 and (number % every == 0 or number == rounds)

    def value(self, scores: ClientScores) -> float | None:
        """The metric over clients, of those whose figures are defined; None if there are none."""
        found = [(score.num_examples, score.figures) for _, score in sorted(scores.items())]
        means = []
        for column in self.columns:
            known = [(count, figures[column]) for count, figures in found if _is_known(figures, column)]
            if not known:
                return None
            weights = [1 if column == "local" else count for count, _ in known]
            means.append(sum(w * value for w, (_, value) in zip(weights, known, strict=True)) / sum(weights))
        return harmonic_mean(*means) if len(means) > 1 else fmean(means)

    def compare(self, now: ClientScores, before: ClientScores) -> float | None:
        """By how much the metric is better than before, over the clients that have both; None if there are none.

        Over sites some may not answer, and a mean over other clients would not be comparable.
        """
        both = [
            client
            for client in sorted(now.keys() & before.keys())
            if all(_is_known(scores[client].figures, column) for scores in (now, before) for column in self.columns)
        ]
        values = [self.value({client: scores[client] for client in both}) for scores in (now, before)]
        return None if values[0] is None or values[1] is None else values[0] - values[1]


def _is_known(figures: Mapping[str, float], column: str) -> bool:
    """Whether a figure is defined; what a site sends that is no share cannot be one."""
    return 0.0 <= figures.get(column, math.nan) <= 1.0
