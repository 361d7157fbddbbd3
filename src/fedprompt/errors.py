"""The exceptions that a user's mistake raises: full sentences that name the thing and the fix; parts of sentences."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Hashable, Iterable, Iterator, MutableMapping, MutableSet, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Literal, TypeVar

LONGEST_WORD = 200
MOST_WORDS = 10_000
SHOWN_NAMES = 5
Sender = TypeVar("Sender", bound=Hashable)
# How messages name options: as a shell's (`--out`), as keywords of a Python call, or as settings of a recipe in Python.
Wording = Literal["shell", "keywords", "settings"]
_WORDING: ContextVar[Wording] = ContextVar("wording", default="shell")
_log = logging.getLogger(__name__)


class UserError(ValueError):
    """Something in the input must be changed by the user; the command line prints it and exits with code 2."""


class NotFiniteError(UserError):
    """A loss, a score or a tensor is NaN or infinite: training diverged, or the received model was poisoned."""


class LargeLossError(NotFiniteError):
    """A loss that is finite, but larger than a server takes."""


@contextmanager
def worded(wording: Wording) -> Iterator[None]:
    """Have the messages of a block, or of a function that this decorates, name options as its caller knows them."""
    token = _WORDING.set(wording)
    try:
        yield
    finally:
        _WORDING.reset(token)


def wording() -> Wording:
    """How messages are to name options."""
    return _WORDING.get()


def option(name: str, python: str = "") -> str:
    """An option in a message: "--trust-code" in a shell, "`trust_code`" in Python, or what `python` says."""
    return f"--{name}" if wording() == "shell" else f"`{python or name.replace('-', '_')}`"


@contextmanager
def refusing(
    reasons: MutableMapping[Sender, str], sender: Sender, diverged: MutableSet[Sender] | None = None
) -> Iterator[None]:
    """Record under `sender` why its answer is refused, whatever the block that handles it raises.

    An answer is data from outside: no value in it may end the run of everybody. `diverged` gets the sender if its
    losses are not finite.
    """
    try:
        yield
    except NotFiniteError as refusal:
        reasons[sender] = str(refusal)
        if diverged is not None:
            diverged.add(sender)
    except UserError as refusal:
        reasons[sender] = str(refusal)
    except Exception as error:
        _log.exception("The answer of %s is refused", sender)
        reasons[sender] = f"malformed: its answer cannot be read ({type(error).__name__})."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest known word, or an empty string when none is close.

    Case counts only among words that are equally close without it. Words of more than `LONGEST_WORD` characters, and
    those after the first `MOST_WORDS`, are not compared: a comparison takes the product of two lengths.
    """
    if len(word) > LONGEST_WORD:
        return ""
    spelled = [one for one in islice(known, MOST_WORDS) if len(one) <= LONGEST_WORD]
    lower = {one.casefold(): one for one in reversed(spelled)}
    close = difflib.get_close_matches(word, spelled, n=1)
    close = close or [lower[one] for one in difflib.get_close_matches(word.casefold(), lower, n=1)]
    return f"; did you mean {close[0]!r}?" if close else ""


def a(word: str) -> str:
    """A word with its indefinite article: "a list", "an int"."""
    return f"an {word}" if word[:1].lower() in "aeiou" else f"a {word}"


def first_names(names: Sequence[str], most: int = SHOWN_NAMES) -> str:
    """The first few of many names, and that there are more: "cat, dog, ..."."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def untested(names: Sequence[str], classes: int, most: int = SHOWN_NAMES) -> str:
    """The sentence on classes, of so many, without a test image."""
    have, them = ("has", "it") if len(names) == 1 else ("have", "them")
    return (
        f"{len(names):,} of {plural(classes, 'class')} {have} no test image, so nothing is known about {them}: "
        f"{first_names(names, most)}."
    )


def series(names: Iterable[str]) -> str:
    """The names as in a sentence: "a", "a and b", "a, b and c"."""
    *first, last = [*names] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def plural(count: int, word: str, *, many: str = "") -> str:
    """A number with what it counts: "1 client", "1,744 images", "2 classes"; `many` is an irregular plural."""
    regular = f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"
    return f"{count:,} {word if count == 1 else many or regular}"
