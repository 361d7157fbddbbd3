"""What every step of a run works with, and whoever looks on."""

from __future__ import annotations

from dataclasses import dataclass

from fedprompt.build.evaluation import Question
from fedprompt.build.experiment import Experiment
from fedprompt.records import RunFolder


class Watch:
    """Whoever looks on while a run goes: every step is told here. This one does nothing."""

    def step(self, text: str) -> None:
        """Something that takes a while begins."""

    def said(self, text: str) -> None:
        """Something that is good to know."""

    def warn(self, text: str) -> None:
        """Something is odd, but the run goes on."""

    def moved(self, done: int, total: int) -> None:
        """How far a step has come, if it can tell."""

    def trial(self, name: str, rounds: int, done: int) -> None:
        """A trial begins, or goes on after `done` rounds."""

    def client(self, done: int, total: int) -> None:
        """A client of the round has answered."""

    def round(self, number: int, loss: float | None) -> None:
        """A round is recorded and kept."""


SILENT = Watch()


@dataclass(frozen=True)
class Desk:
    """What every step of a run works with."""

    run: RunFolder
    experiment: Experiment
    asked: tuple[Question, ...]
    watch: Watch
