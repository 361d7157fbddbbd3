"""Cost estimate of the requests to a language model, made before the first is sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedprompt.descriptions.attributes import first_request
from fedprompt.descriptions.conditions import LONGEST_SENTENCE, ConditionSettings, distil_request, scene_request
from fedprompt.descriptions.endpoint import Request
from fedprompt.descriptions.transcript import Transcript
from fedprompt.descriptions.validated_query import GenerationSettings

CHARACTERS_PER_TOKEN = 3.5  # of English prose under current tokenizers; low, so that estimates are high
TURN_TOKENS = 8  # tokens around a message


@dataclass(frozen=True)
class Estimate:
    """Requests to send, answers already kept, tokens sent, and the most tokens that can come back; without repairs."""

    requests: int
    kept: int
    tokens_in: int
    tokens_out: int

    def price(self, million_in: float, million_out: float) -> float:
        """The highest cost at these prices per million tokens."""
        return (self.tokens_in * million_in + self.tokens_out * million_out) / 1e6

    def sentence(self, million_in: float = 0.0, million_out: float = 0.0) -> str:
        """The estimate in words."""
        kept = f" ({self.kept} answers are kept and cost nothing)" if self.kept else ""
        text = f"{self.requests} requests{kept}: about {self.tokens_in:,} tokens in, at most {self.tokens_out:,} out"
        if million_in or million_out:
            text += f", at most {self.price(million_in, million_out):.2f} at your prices"
        return text + "; repairs of invalid answers come on top."


def tokens(request: Request) -> int:
    """The approximate number of tokens of a request."""
    return sum(TURN_TOKENS + int(len(message.text) / CHARACTERS_PER_TOKEN) for message in request.messages)


def estimate(requests: Iterable[Request], transcript: Transcript, model: str) -> Estimate:
    """The cost of those requests that have no kept answer."""
    every = list(requests)
    unanswered = [request for request in every if transcript.find(request.key(model)) is None]
    out = sum(request.max_tokens for request in unanswered)
    return Estimate(len(unanswered), len(every) - len(unanswered), sum(map(tokens, unanswered)), out)


def attribute_requests(names: Sequence[str], settings: GenerationSettings) -> list[Request]:
    """The first request about every class."""
    return [first_request(name, settings) for name in names]


def condition_requests(
    names: Sequence[str], combinations: Sequence[Sequence[int]], settings: ConditionSettings
) -> list[Request]:
    """The request about every combination, and placeholders of full length for those that distil conditions."""
    scenes = [scene_request([names[label] for label in chosen], settings) for chosen in combinations]
    written = len(combinations) * settings.sentences * LONGEST_SENTENCE // 2
    chunk = ["x" * LONGEST_SENTENCE] * max(1, min(written, settings.context_characters) // LONGEST_SENTENCE)
    chunks = -(-written // settings.context_characters)
    return scenes + [distil_request(chunk, settings)] * (chunks + (chunks > 1))
