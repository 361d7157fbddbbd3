"""Callbacks on the progress of a run, and early stopping by them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from fedprompt.api.progress import PythonWarnings, console_callbacks, plain_console
from fedprompt.arguments import flag, listed, shown
from fedprompt.errors import UserError, did_you_mean
from fedprompt.experiments.context import JoinedCallbacks, RunCallbacks


class Callback(RunCallbacks):
    """Base class of callbacks: override what you want to know.

    One object is told of all trials, that is methods, one after another: `on_trial(name, rounds, done)` is called when
    one begins or continues, and is where to forget what was noted of the one before. `on_round(number, loss)` is called
    after every round, `on_score(score)` after every scored test set, and `stops(number)` ends the training of a trial
    after the round if it returns True; the model of that round is scored. `on_warning(text)` has what the user should
    look at; with `progress=False` it is a Python warning (UserWarning) too.

    Examples:
        >>> import fedprompt as fp
        >>> class Losses(fp.Callback):
        ...     def on_trial(self, name, rounds, done):
        ...         self.values = []
        ...     def on_round(self, number, loss):
        ...         self.values.append(loss)
        ...     def stops(self, number):
        ...         return self.values[-1] < 0.1
    """


HOOKS = tuple(name for name in dir(RunCallbacks) if not name.startswith("_"))


class _KeepsTheLastRound(RunCallbacks):
    """In Python, Ctrl-C leaves the model of the last finished round with its scores."""

    def on_interrupt(self, number: int) -> bool:
        """Have it scored."""
        return True


def _check(callback: object) -> None:
    """UserError for what is no callback, and for a method that is named like a hook and is none."""
    if not isinstance(callback, RunCallbacks):
        is_class = isinstance(callback, type) and issubclass(callback, RunCallbacks)
        made = f"; make one, {callback.__name__}()" if is_class else ""  # type: ignore[attr-defined]
        raise UserError(
            f"A callback is an instance of a class derived from fedprompt.Callback, not {shown(callback)}{made}."
        )
    for name in dir(callback):
        hint = "" if name.startswith("_") or name in HOOKS else did_you_mean(name, HOOKS)
        if name not in HOOKS and (name.startswith("on_") or hint) and callable(getattr(callback, name)):
            raise UserError(
                f"{type(callback).__name__} has a method {name!r}, which is never called{hint} "
                f"(called are {', '.join(HOOKS)}; a helper of yours needs a name that looks like none of them)."
            )


@contextmanager
def joined(callbacks: RunCallbacks | Sequence[RunCallbacks], *, progress: bool) -> Iterator[RunCallbacks]:
    """All callbacks as one, with bars or lines of progress, or else warnings; UserError for what is no callback."""
    alone = isinstance(callbacks, RunCallbacks) or callable(callbacks)
    given = (callbacks,) if alone else listed(callbacks, "callbacks")
    for one in given:
        _check(one)
    progress = flag(progress, "progress")
    with ExitStack() as stack:
        given = (*given, _KeepsTheLastRound())
        shown = stack.enter_context(console_callbacks(plain_console(), quiet=False)) if progress else PythonWarnings()
        yield JoinedCallbacks([shown, *given])
