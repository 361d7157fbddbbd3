"""A query whose answer is validated: its list is parsed and checked, and requested again with the reasons."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fedprompt.descriptions.endpoint import Message, Request
from fedprompt.descriptions.llm_client import LlmClient
from fedprompt.descriptions.parsing import is_refusal, parse_list
from fedprompt.text_files import json_text

MOST_REASONS = 10
LONGEST_ECHO = 2000  # characters of an answer that go back to the model, so that requests do not grow
AGAIN = """Only {good} of {count} {listed} can be used: {reasons}.
Answer again in the same form with {count} different short {listed}, in English."""
REFUSED = "the answer was a refusal; the question is harmless"
NOTHING = "no list was found in the answer"
TOO_FEW = "they are too few"

Select = Callable[[Sequence[str]], tuple[tuple[str, ...], tuple[str, ...]]]  # phrases -> usable ones, rejections


@dataclass(frozen=True)
class GenerationSettings:
    """The number of phrases, the repairs of an answer with fewer, and the model's sampling parameters.

    `brief` uses one-line prompts, for models too small for rules, examples and JSON.
    """

    count: int = 5
    repairs: int = 2
    temperature: float = 0.3
    max_tokens: int = 400
    seed: int = 0
    brief: bool = False

    def request(self, *messages: Message, listed: str) -> Request:
        """A request with these parameters."""
        return Request(messages, listed, self.temperature, self.max_tokens, self.seed)


@dataclass(frozen=True)
class Outcome:
    """The usable phrases of a model's answers, and why there are not more."""

    phrases: tuple[str, ...]
    rejections: tuple[str, ...] = ()


def validated_query(
    first: Request, client: LlmClient, settings: GenerationSettings, *, select: Select, brief_again: str
) -> Outcome:
    """Query, validate, and query again with the reasons until there are enough phrases or no repairs are left.

    `brief_again` is the prompt of a brief repair; {first}, {kept} and {count} stand for the first prompt, the phrases
    kept, and the number of phrases wanted.
    """
    request = first
    kept: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    for _ in range(1 + settings.repairs):
        text = client.ask(request).text
        found = parse_list(text, first.listed)
        kept, rejections = select([*kept, *found])
        if len(kept) >= settings.count:
            return Outcome(kept[: settings.count])
        reasons = rejections[:MOST_REASONS] or (_reason(text, found),)
        if settings.brief:
            prompt = brief_again.format(
                first=first.messages[-1].text, kept=", ".join(kept) or "none", count=settings.count
            )
            request = replace(first, messages=(Message("user", prompt),))
        else:
            request = _with_reasons(first, text, reasons, good=len(kept), count=settings.count)
    return Outcome(kept, reasons)


def _reason(text: str, found: Sequence[str]) -> str:
    if is_refusal(text):
        return REFUSED
    return TOO_FEW if found else NOTHING


def _with_reasons(first: Request, text: str, reasons: Sequence[str], *, good: int, count: int) -> Request:
    prompt = AGAIN.format(good=good, count=count, listed=first.listed, reasons="; ".join(reasons))
    turns = (Message("assistant", text[:LONGEST_ECHO]), Message("user", prompt))
    return replace(first, messages=(*first.messages, *turns))


def prompts_hash(*texts: str) -> str:
    """A hash of the prompts, for the provenance of a file."""
    return hashlib.sha256(json_text([AGAIN, *texts]).encode()).hexdigest()[:16]
