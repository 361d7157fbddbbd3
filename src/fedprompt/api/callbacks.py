"""Callbacks on the progress of a run, and early stopping by them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from fedprompt.api.arguments import listed, shown
from fedprompt.api.progress import console_callbacks, plain_console
from fedprompt.errors import UserError
from fedprompt.experiments.context import JoinedCallbacks, RunCallbacks


class Callback(RunCallbacks):
    """Base class of callbacks: override what you want to know.

    `on_round(number, loss)` is called after every round, `on_score(score)` after every scored test set, and
    `stops(number)` ends the training of a trial after the round if it returns True; the model of that round is scored.

    Examples:
        >>> import fedprompt as fp
        >>> class Losses(fp.Callback):
        ...     def __init__(self):
        ...         self.values = []
        ...     def on_round(self, number, loss):
        ...         self.values.append(loss)
        ...     def stops(self, number):
        ...         return self.values[-1] < 0.1
    """


class _KeepsTheLastRound(RunCallbacks):
    """In Python, Ctrl-C leaves the model of the last finished round with its scores."""

    def on_interrupt(self, number: int) -> bool:
        """Have it scored."""
        return True


@contextmanager
def joined(callbacks: RunCallbacks | Sequence[RunCallbacks], *, progress: bool) -> Iterator[RunCallbacks]:
    """All callbacks as one, with bars or lines of progress if wanted; UserError for what is no callback."""
    given = (callbacks,) if isinstance(callbacks, RunCallbacks) else listed(callbacks, "callbacks")
    for one in given:
        if not isinstance(one, RunCallbacks):
            made = f"; make one, {one.__name__}()" if isinstance(one, type) and issubclass(one, RunCallbacks) else ""
            raise UserError(
                f"A callback is an instance of a class derived from fedprompt.Callback, not {shown(one)}{made}."
            )
    with ExitStack() as stack:
        given = (*given, _KeepsTheLastRound())
        bars = [stack.enter_context(console_callbacks(plain_console(), quiet=False))] if progress else []
        yield JoinedCallbacks([*bars, *given])
