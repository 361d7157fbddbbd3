"""The one exception a user's mistake raises: a full sentence that names the thing and the fix; parts of sentences."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something in the input must be changed by the user; the command line prints it and exits with code 2."""


class NotFiniteError(UserError):
    """A loss, a score or a tensor is NaN or infinite: training diverged, or the received model was poisoned."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest known word, or an empty string when none is close.

    Case counts only among words that are equally close without it.
    """
    spelled = list(known)
    lower = {one.casefold(): one for one in reversed(spelled)}
    close = difflib.get_close_matches(word, spelled, n=1)
    close = close or [lower[one] for one in difflib.get_close_matches(word.casefold(), lower, n=1)]
    return f"; did you mean {close[0]!r}?" if close else ""


def plural(count: int, word: str, *, many: str = "") -> str:
    """A number with what it counts: "1 client", "1,744 images", "2 classes"; `many` is an irregular plural."""
    regular = f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"
    return f"{count:,} {word if count == 1 else many or regular}"
