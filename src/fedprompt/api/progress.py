"""Progress of runs in words and bars: bars on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from threading import Timer
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedprompt.errors import plural
from fedprompt.experiments.context import RunCallbacks

PACKAGE = __name__.partition(".")[0]


def plain_console(*, stderr: bool = False) -> Console:
    """A console without markup, because names of classes and clients may have square brackets."""
    return Console(markup=False, highlight=False, stderr=stderr)


@contextmanager
def counting(console: Console, text: str, *, after: float = 0.0) -> Iterator[Callable[[int, int], None]]:
    """Show a temporary progress bar on a terminal, from `after` seconds on; call the function with (done, total)."""
    if not console.is_terminal:
        yield lambda done, total: None
        return
    bar = Progress(console=console, transient=True)
    task = bar.add_task(text, total=None)
    start = Timer(after, bar.start)
    start.start()
    try:
        yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        start.cancel()
        start.join()
        bar.stop()


class ConsoleCallbacks(RunCallbacks):
    """Callbacks that show each warning once, however many runs have it."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def on_warning(self, text: str) -> None:
        """Show the text, unless it was shown before."""
        if text not in self._shown:
            self._shown.add(text)
            self._warn(text)

    def _warn(self, text: str) -> None:
        self.on_message(f"Warning: {text}")


class PythonWarnings(ConsoleCallbacks):
    """Warnings alone, as Python's `UserWarning` at the line that has called this package."""

    def _warn(self, text: str) -> None:
        warn(text)


def warn(text: str) -> None:
    """Warn at the line that has called this package."""
    warnings.warn(text, UserWarning, stacklevel=_depth_of_caller())


def _depth_of_caller() -> int:
    """How many frames the line that has called this package lies above the function that asks; 1 is that function."""
    frames = [frame for frame, _ in traceback.walk_stack(sys._getframe(1))]
    modules = [str(frame.f_globals.get("__name__", "")) for frame in frames]
    ours = [depth for depth, name in enumerate(modules) if name.partition(".")[0] == PACKAGE]
    outside = [depth for depth in range(ours[-1] + 1, len(modules)) if modules[depth] != contextmanager.__module__]
    return outside[0] + 1 if outside else 1  # in another thread there is no such line


class ProgressBars(ConsoleCallbacks):
    """One bar for the rounds of a trial and one for the clients of a round."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.progress = Progress(*columns, console=console)
        self._rounds = self.progress.add_task("", total=None, note="")
        self._clients = self.progress.add_task("", total=None, note="", visible=False)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def on_step(self, text: str) -> None:
        """Show the step, and hide the bar of clients."""
        self.progress.update(self._rounds, description=text)
        self.progress.update(self._clients, visible=False)

    def on_progress(self, done: int, total: int) -> None:
        """Show the progress of the step."""
        self.progress.update(self._clients, completed=done, total=total, description="", visible=True)

    def on_message(self, text: str) -> None:
        """Print the text above the bars."""
        self.progress.print(text)

    def on_trial(self, name: str, rounds: int, done: int) -> None:
        """Reset the bar of rounds."""
        self.progress.reset(self._rounds, total=rounds, completed=done, description=name, note="")

    def on_client(self, done: int, total: int) -> None:
        """Move the bar of clients."""
        self.progress.update(self._clients, completed=done, total=total, description="  clients", visible=True)

    def on_round(self, number: int, loss: float | None) -> None:
        """Move the bar of rounds."""
        self.progress.update(self._rounds, completed=number, note="" if loss is None else f"loss {loss:.3f}")


class ProgressLines(ConsoleCallbacks):
    """One line per round, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self._trial, self._rounds = "", 0

    def on_step(self, text: str) -> None:
        """Print the step."""
        self.console.print(f"{text} ...", highlight=False)

    def on_message(self, text: str) -> None:
        """Print the text."""
        self.console.print(text, highlight=False)

    def on_trial(self, name: str, rounds: int, done: int) -> None:
        """Print the trial's name, its number of rounds and where it resumes."""
        self._trial, self._rounds = name, rounds
        after = f", resumed after round {done}" if done else ""
        self.console.print(f"{name}: {plural(rounds, 'round') if rounds else 'no training'}{after}", highlight=False)

    def on_round(self, number: int, loss: float | None) -> None:
        """Print the round's loss."""
        loss_text = "" if loss is None else f", loss {loss:.4f}"
        self.console.print(f"{self._trial}: round {number}/{self._rounds}{loss_text}", highlight=False)


@contextmanager
def console_callbacks(console: Console, *, quiet: bool) -> Iterator[RunCallbacks]:
    """The callbacks for a console: bars, lines, or none."""
    if quiet:
        yield RunCallbacks()
    elif shows_bars(console):
        with ProgressBars(console) as bars:
            yield bars
    else:
        yield ProgressLines(console)


def shows_bars(console: Console) -> bool:
    """Whether bars can move: on a terminal, or in a notebook that has widgets."""
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.is_terminal
