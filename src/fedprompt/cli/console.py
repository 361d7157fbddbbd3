"""Terminal output: progress bars on a terminal, plain lines elsewhere, and tables."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fedprompt.cli.doctor import Finding
from fedprompt.errors import plural
from fedprompt.experiments.context import RunCallbacks
from fedprompt.records.outcome import shown_name
from fedprompt.report import Run, TrialRecord, read_run
from fedprompt.report.legend import UPLOAD, legend, one_seed_note
from fedprompt.report.published import HEAD, Difference, difference_tables, differences
from fedprompt.report.tables import uploads
from fedprompt.report.verdict import verdict

NUMBER = re.compile(r"[-+]?\d[\d,.]*( ± [\d.]+)?")


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
            self.on_message(f"Warning: {text}")


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
    elif console.is_terminal:
        with ProgressBars(console) as bars:
            yield bars
    else:
        yield ProgressLines(console)


def run_tables(run: Run) -> Iterator[Table]:
    """One row per trial: headline figures in percent, trained parameters and uploads; then the further metrics."""
    shown = [column for column in run.columns if ":" not in column]
    table = _figures_table(run, shown, title=run.header.title or None)
    for heading in ("parameters", UPLOAD):
        table.add_column(heading, justify="right")
    for trial in run.trials:
        sent, _ = uploads(trial)
        _add(table, run, trial, shown, f"{trial.about.trainable or 0:,}", sent)
    yield table
    if further := [column for column in run.columns if ":" in column]:
        table = _figures_table(run, further, title=f"Decisions at {run.threshold}")
        for trial in run.trials:
            _add(table, run, trial, further)
        yield table
    yield from published_tables(differences([run]))


def print_results(folder: Path) -> None:
    """Print the tables of a run, their legend, its verdict, and where its report and adapters are."""
    finished, console = read_run(folder), plain_console()
    for table in run_tables(finished):
        console.print(table)
    console.print(legend_table(finished))
    found = verdict(finished, str(folder))
    console.print(" ".join(found.sentences))
    for step in found.steps:
        console.print(f"Next: {step}", soft_wrap=True)  # commands stay whole lines
    if note := one_seed_note(finished):
        console.print(note)
    typer.echo(f"Report: {folder / 'report.html'}\nAdapters: {folder / 'adapters'}")


def legend_table(run: Run) -> Table:
    """The meaning of each column of `run_tables`."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, meaning in legend(run):
        table.add_row(f"  {name}", meaning)
    return table


def published_tables(found: Sequence[Difference]) -> Iterator[Table]:
    """Our figures beside each published table."""
    for title, rows in difference_tables(found):
        yield rows_table(HEAD, rows, title=title)


def _figures_table(run: Run, columns: Sequence[str], *, title: str | None) -> Table:
    table = Table("method", title=title)
    for column in columns:
        table.add_column(run.title(column), justify="right")
    return table


def _add(table: Table, run: Run, trial: TrialRecord, columns: Sequence[str], *words: str) -> None:
    figures = [f"{100 * trial.figures[column]:.1f}" if column in trial.figures else "-" for column in columns]
    table.add_row(shown_name(trial), *figures, *words, style="bold" if trial is run.main else None)


def rows_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> Table:
    """A plain table; columns of numbers are right-aligned."""
    table = Table(title=title)
    for place, name in enumerate(head):
        numeric = bool(rows) and all(NUMBER.fullmatch(row[place]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*row)
    return table


def findings_table(findings: Sequence[Finding]) -> Table:
    """The findings of `fedprompt doctor`, each failure with its fix."""
    rows = [
        (
            "FAILED" if finding.failed else "WARNING" if finding.warning else "ok",
            finding.what,
            finding.found + (f" -> {finding.fix}" if finding.fix else ""),
        )
        for finding in findings
    ]
    return rows_table(("", "what", "found"), rows)


def option_rows(options: Mapping[str, inspect.Parameter], documentation: str) -> list[tuple[str, str, str]]:
    """Name, default and meaning of each option, from the `name: text` lines of the class's docstring."""
    meanings = dict(line.strip().split(": ", 1) for line in documentation.splitlines() if ": " in line)
    return [(name, repr(option.default), meanings.get(name, "")) for name, option in options.items()]
