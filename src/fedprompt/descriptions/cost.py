"""What the questions will cost, told before the first of them is asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedprompt.descriptions.attributes import first_request
from fedprompt.descriptions.conditions import LONGEST_SENTENCE, Plan, distil_request, scene_request
from fedprompt.descriptions.endpoint import Request
from fedprompt.descriptions.transcript import Exchanges
from fedprompt.descriptions.validated_query import GenerationSettings

CHARACTERS_A_TOKEN = 3.5  # of English prose under current tokenizers, on the high side
TURN = 8  # tokens around a message


@dataclass(frozen=True)
class Estimate:
    """Questions still to be asked, tokens that go out, and the most that can come back; repairs come on top."""

    questions: int
    kept: int
    tokens_in: int
    tokens_out: int

    def price(self, million_in: float, million_out: float) -> float:
        """The most it costs at these prices for a million tokens."""
        return (self.tokens_in * million_in + self.tokens_out * million_out) / 1e6

    def sentence(self, million_in: float = 0.0, million_out: float = 0.0) -> str:
        """For people."""
        kept = f" ({self.kept} answers are kept and cost nothing)" if self.kept else ""
        text = (
            f"{self.questions} questions{kept}: about {self.tokens_in:,} tokens out, at most {self.tokens_out:,} back"
        )
        if million_in or million_out:
            text += f", at most {self.price(million_in, million_out):.2f} at your prices"
        return text + "; repairs of bad answers come on top."


def tokens(request: Request) -> int:
    """About how many tokens a question has."""
    return sum(TURN + int(len(message.text) / CHARACTERS_A_TOKEN) for message in request.messages)


def estimate(requests: Iterable[Request], exchanges: Exchanges, model: str) -> Estimate:
    """The cost of those first questions that have no kept answer."""
    every = list(requests)
    asked = [request for request in every if exchanges.find(request.key(model)) is None]
    out = sum(request.max_tokens for request in asked)
    return Estimate(len(asked), len(every) - len(asked), sum(map(tokens, asked)), out)


def attribute_requests(names: Sequence[str], wish: GenerationSettings) -> list[Request]:
    """The first question about every class."""
    return [first_request(name, wish) for name in names]


def condition_requests(names: Sequence[str], company: Sequence[Sequence[int]], plan: Plan) -> list[Request]:
    """The question about every combination, and stand-ins of full length for those that distil."""
    scenes = [scene_request([names[label] for label in chosen], plan) for chosen in company]
    written = len(company) * plan.sentences * LONGEST_SENTENCE // 2
    portion = ["x" * LONGEST_SENTENCE] * max(1, min(written, plan.budget) // LONGEST_SENTENCE)
    portions = -(-written // plan.budget)
    return scenes + [distil_request(portion, plan)] * (portions + (portions > 1))
