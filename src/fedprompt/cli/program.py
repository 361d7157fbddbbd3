"""The command group of the command line: panels and order of commands, help of arguments, errors in one sentence."""

from __future__ import annotations

import errno
import inspect
import multiprocessing
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, get_type_hints

import click
import typer
from typer.core import TyperArgument, TyperGroup, TyperOption
from typer.models import ArgumentInfo

from fedprompt.errors import UserError

# Panels of `fedprompt --help` with their commands, in the order in which they are shown.
PANELS: Mapping[str, tuple[str, ...]] = {
    "Train": ("demo", "run", "resume", "report", "predict", "app", "push", "config", "methods", "backbone", "doctor"),
    "Data": ("check", "partition", "data", "describe"),
    "Studies": ("tune", "compare", "reproduce"),
    "Deployment": ("deploy", "server", "site", "status"),
}


MARKUP = re.compile(r"\[(?=[a-z])")  # what rich takes for the beginning of a style
REFUSALS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT),
)


_terminated: list[int] = []  # the SIGTERM of the command that runs; Ray raises a KeyboardInterrupt of its own for it


def interrupt_code() -> int:
    """The exit code of a command that Ctrl-C or SIGTERM has ended."""
    return 128 + (_terminated[0] if _terminated else signal.SIGINT)


@contextmanager
def _terminable() -> Iterator[None]:
    """Have SIGTERM, which schedulers send when a job's time is up, end a block as Ctrl-C does."""
    _terminated.clear()
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        for child in multiprocessing.active_children():  # which Ctrl-C in a terminal reaches too
            child.terminate()
        _terminated.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Program(TyperGroup):
    """Command group that prints a UserError as one sentence with exit code 2.

    So it does with what the system refuses (a folder that may not be read, a name that is too long, a full disk); other
    exceptions keep their traceback.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for panel, names in PANELS.items():
            for name in names:
                self.commands[name].rich_help_panel = panel  # type: ignore[attr-defined]
        for command in _commands(self):
            if isinstance(command, TyperGroup):
                command.suggest_commands = False  # click suggests commands itself
            _restore_help(command)
            _as_plain_text(command)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of their panels."""
        return list(dict.fromkeys([*(name for names in PANELS.values() for name in names), *self.commands]))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with _terminable():
                return super().invoke(ctx)
        except UserError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from error
        except OSError as error:
            if error.errno not in REFUSALS or error.filename is None:
                raise
            typer.echo(f"{error.filename} cannot be used ({error.strerror}); give another path.", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(interrupt_code()) from error


def _commands(group: TyperGroup) -> Iterator[click.Command]:
    """A group and all commands below it."""
    yield group
    for command in group.commands.values():
        if isinstance(command, TyperGroup):
            yield from _commands(command)
        else:
            yield command


def _as_plain_text(command: click.Command) -> None:
    """Have help shown as it is written: names of tables in brackets are no markup, and paragraphs are not broken."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    command.help = MARKUP.sub(r"\\[", "\n\n".join(one.replace("\n", " ") for one in paragraphs)) or None
    for one in command.params:
        if isinstance(one, TyperArgument | TyperOption):
            one.help = one.help and MARKUP.sub(r"\\[", one.help)


def _restore_help(command: click.Command) -> None:
    """Give arguments the help of their annotations, which typer sets and click 8.5 then overwrites with nothing."""
    arguments = [one for one in command.params if isinstance(one, TyperArgument) and not one.help and one.name]
    function = getattr(command.callback, "__wrapped__", None)
    if not arguments or function is None:
        return
    hints = get_type_hints(function, include_extras=True)
    for argument in arguments:
        marks = getattr(hints.get(argument.name or ""), "__metadata__", ())
        argument.help = next((mark.help for mark in marks if isinstance(mark, ArgumentInfo)), None)
