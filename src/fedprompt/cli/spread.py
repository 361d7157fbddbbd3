"""Runs of a study on Ray from the command line, with the progress of all in one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedprompt.errors import UserError, plural

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fedprompt.studies.sweep import Job

States = Mapping[Path, str]  # where each run stands, by its folder


def spread_jobs(todo: Sequence[Job]) -> None:
    """Run the jobs that are not done as tasks on Ray; UserError that names those that failed, when all have ended."""
    from fedprompt.api.progress import plain_console
    from fedprompt.studies.spread import spread

    waiting = [job for job in todo if not job.done]
    if not waiting:
        return
    with _shown(plain_console()) as show:
        failed = spread(waiting, show)
    for one in failed:
        typer.echo(f"Failed: {one.job.folder}: {one.reason}", err=True)
    if failed:
        names = ", ".join(one.job.folder.name for one in failed)
        raise UserError(
            f"{len(failed)} of {plural(len(waiting), 'run')} failed ({names})"
            f"{'; the others are done' * (len(failed) < len(waiting))}. Correct that, then "
            "give the same command again, which runs only what is missing."
        )


@contextmanager
def _shown(console: Console) -> Iterator[Callable[[States], None]]:
    """Show the states in a table that is drawn anew, or on no terminal in a line for each run that has ended."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    from rich.live import Live

    started = time.monotonic()
    with Live(console=console, auto_refresh=False) as live:
        yield lambda states: live.update(_table(states, time.monotonic() - started), refresh=True)


class _Lines:
    """Prints a line when a run has ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._known: dict[Path, str] = {}

    def __call__(self, states: States) -> None:
        from fedprompt.studies.spread import is_over

        for folder, state in states.items():
            if is_over(state) and folder not in self._known:
                self._known[folder] = state
                self._console.print(f"{folder}: {state} ({len(self._known)} of {len(states)})", soft_wrap=True)


def _table(states: States, seconds: float) -> Table:
    from fedprompt.cli.console import rows_table

    done = sum(state == "done" for state in states.values())
    title = f"{done} of {plural(len(states), 'run')} done after {seconds:.0f} s"
    return rows_table(("run", "state"), [(folder.name, state) for folder, state in states.items()], title=title)
