"""One question asked until its answer is of use: the list in it is found, checked, and asked for again with reasons."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fedprompt.descriptions.endpoint import Message, Request
from fedprompt.descriptions.parsing import refuses, strings
from fedprompt.descriptions.requests import LlmClient

MOST_REASONS = 10
LONGEST_ECHO = 2000  # characters of an answer that go back to its model: it must not grow the next question
AGAIN = """Only {good} of {count} {listed} can be used: {reasons}.
Answer again in the same form with {count} different short {listed}, in English."""
REFUSED = "the answer was a refusal; the question is harmless"
NOTHING = "no list was found in the answer"
TOO_FEW = "they are too few"

Choose = Callable[[Sequence[str]], tuple[tuple[str, ...], tuple[str, ...]]]  # phrases -> usable ones, complaints


@dataclass(frozen=True)
class GenerationSettings:
    """What to ask for: phrases, repairs of an answer that has fewer, and the model's parameters.

    `brief` asks in one line, for models too small for rules, examples and JSON.
    """

    count: int = 5
    repairs: int = 2
    temperature: float = 0.3
    max_tokens: int = 400
    seed: int = 0
    brief: bool = False

    def request(self, *messages: Message, listed: str) -> Request:
        """A question with these parameters."""
        return Request(messages, listed, self.temperature, self.max_tokens, self.seed)


@dataclass(frozen=True)
class Outcome:
    """What a model's answers came to: phrases that can be used, and why there are not more."""

    phrases: tuple[str, ...]
    complaints: tuple[str, ...] = ()


def insist(
    first: Request, correspondence: LlmClient, wish: GenerationSettings, *, choose: Choose, brief_again: str
) -> Outcome:
    """Ask, check, and ask again with the reasons until there are enough phrases or the repairs are used up.

    `brief_again` words a brief repair; {first}, {kept} and {count} stand for the question, what is kept, and how many.
    """
    request = first
    kept: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    for _ in range(1 + wish.repairs):
        text = correspondence.ask(request).text
        found = strings(text, first.listed)
        kept, complaints = choose([*kept, *found])
        if len(kept) >= wish.count:
            return Outcome(kept[: wish.count])
        reasons = complaints[:MOST_REASONS] or (_reason(text, found),)
        if wish.brief:
            told = brief_again.format(first=first.messages[-1].text, kept=", ".join(kept) or "none", count=wish.count)
            request = replace(first, messages=(Message("user", told),))
        else:
            request = _with_reasons(first, text, reasons, good=len(kept), count=wish.count)
    return Outcome(kept, reasons)


def _reason(text: str, found: Sequence[str]) -> str:
    if refuses(text):
        return REFUSED
    return TOO_FEW if found else NOTHING


def _with_reasons(first: Request, text: str, reasons: Sequence[str], *, good: int, count: int) -> Request:
    told = AGAIN.format(good=good, count=count, listed=first.listed, reasons="; ".join(reasons))
    turns = (Message("assistant", text[:LONGEST_ECHO]), Message("user", told))
    return replace(first, messages=(*first.messages, *turns))


def wording(*texts: str) -> str:
    """A fingerprint of the questions, for the record of what made a file."""
    return hashlib.sha256(json.dumps([AGAIN, *texts]).encode()).hexdigest()[:16]
