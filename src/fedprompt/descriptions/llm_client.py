"""Client of a language model: kept answers first, then requests with a rate limit, retries and backoff."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TypeVar

from fedprompt.descriptions.endpoint import Answer, Endpoint, Request, TransientError
from fedprompt.descriptions.transcript import Transcript
from fedprompt.errors import UserError
from fedprompt.seeding import seed_for

Item = TypeVar("Item")
Result = TypeVar("Result")
OnDone = Callable[[int, int], None]


@dataclass(frozen=True)
class RateLimit:
    """Concurrent requests, requests per minute (0: no limit), attempts per request, and waits between them."""

    concurrent: int = 4
    per_minute: float = 0.0
    attempts: int = 5
    first_wait: float = 1.0  # seconds before the second attempt; doubles with each further one
    longest_wait: float = 60.0

    def wait(self, attempt: int, key: str, retry_after: float | None) -> float:
        """Seconds before attempt + 1: what the server asks for, or exponential backoff with seeded jitter of 50%."""
        jitter = 0.5 + seed_for(attempt, key) / 2**64
        own = self.first_wait * 2.0 ** (attempt - 1) * jitter
        return min(self.longest_wait, own if retry_after is None else max(retry_after, 0.1 * own))


class LlmClient:
    """Sends requests to an endpoint and keeps the answers in a transcript; `sleep` and `clock` are for tests."""

    def __init__(
        self,
        endpoint: Endpoint,
        transcript: Transcript,
        *,
        rate_limit: RateLimit = RateLimit(),
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint, self.transcript, self.rate_limit = endpoint, transcript, rate_limit
        self._guard, self._next = threading.Lock(), 0.0
        self._stopped = threading.Event()
        self._sleep, self._clock = sleep or self._stopped.wait, clock  # sleepers wake up when the client stops

    def ask(self, request: Request) -> Answer:
        """The kept answer, or a new one, which is kept; UserError once the attempts are used up."""
        key = request.key(self.endpoint.model)
        if kept := self.transcript.find(key):
            return kept
        reason = ""
        for attempt in range(1, self.rate_limit.attempts + 1):
            self._take_turn()
            try:
                answer = self.endpoint.ask(request)
            except TransientError as error:
                reason = str(error)
                self.transcript.failed(key, self.endpoint.name, reason)
                if attempt < self.rate_limit.attempts:
                    self._sleep(self.rate_limit.wait(attempt, key, error.wait))
                continue
            self.transcript.answered(key, self.endpoint.name, request, answer)
            return answer
        raise UserError(
            f"{self.endpoint.name} gave no answer in {self.rate_limit.attempts} attempts (the last: {reason}). The "
            f"{len(self.transcript)} answers so far are kept; the same command continues from there."
        )

    def each(self, ask: Callable[[Item], Result], items: Sequence[Item], on_done: OnDone) -> list[Result]:
        """`ask` for every item, in their order, several at once; the first error, or Ctrl-C, stops the rest."""
        on_done(0, len(items))
        workers = max(1, min(self.rate_limit.concurrent, self.endpoint.parallel))
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(ask, item) for item in items]
            try:
                for done, future in enumerate(as_completed(futures), start=1):
                    future.result()
                    on_done(done, len(items))
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]

    def _take_turn(self) -> None:
        """Wait until the rate limit allows one more request; callers are served in order."""
        if self._stopped.is_set():
            raise UserError("Stopped, because another request failed.")
        if not self.rate_limit.per_minute:
            return
        with self._guard:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + 60 / self.rate_limit.per_minute
        if turn > now:
            self._sleep(turn - now)
