"""Privacy accounting: epsilon by Google's dp-accounting, and a ledger that stops a run before a budget is exceeded."""

from __future__ import annotations

import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

from fedprompt.errors import UserError

SMALLEST, LARGEST = 1e-9, 1e9  # clip and noise multiplier


@dataclass(frozen=True, order=True)
class Mechanism:
    """`times` Gaussian mechanisms with noise multiplier `noise`, each on a Poisson sample with sampling rate `rate`."""

    noise: float
    rate: float = 1.0
    times: int = 1


def composed_epsilon(mechanisms: Iterable[Mechanism], *, delta: float) -> float:
    """Epsilon of all these mechanisms on the same data, composed by their Renyi divergences."""
    times: Counter[tuple[float, float]] = Counter()
    for one in mechanisms:
        times[one.noise, one.rate] += one.times
    return _epsilon(tuple(sorted((noise, rate, count) for (noise, rate), count in times.items() if count)), delta)


def gaussian_epsilon(noise: float, *, rounds: int, delta: float) -> float:
    """Epsilon of `rounds` Gaussian mechanisms with noise multiplier `noise`, without any amplification."""
    return composed_epsilon([Mechanism(noise, 1.0, rounds)], delta=delta)


def sampled_epsilon(noise: float, *, rate: float, steps: int, delta: float) -> float:
    """Epsilon of `steps` Gaussian mechanisms, each on a Poisson sample of the images with sampling rate `rate`."""
    return composed_epsilon([Mechanism(noise, rate, steps)], delta=delta)


@functools.lru_cache(maxsize=4096)
def _epsilon(mechanisms: tuple[tuple[float, float, int], ...], delta: float) -> float:
    if not mechanisms:
        return 0.0
    accounting = _dp_accounting()
    # Renyi accounting gives an upper bound about ten per cent above the tightest known, in milliseconds, not seconds.
    accountant = accounting.rdp.RdpAccountant()
    for noise, rate, times in mechanisms:
        event = accounting.GaussianDpEvent(noise)
        if rate < 1:
            event = accounting.PoissonSampledDpEvent(rate, event)
        accountant.compose(event, times)
    return float(accountant.get_epsilon(delta))


def _dp_accounting() -> ModuleType:
    try:
        import dp_accounting
        import dp_accounting.rdp
    except ImportError as error:
        raise UserError(
            "Privacy budgets need the package dp-accounting; install it with: pip install fedprompt[privacy]"
        ) from error
    logging.getLogger("absl").addFilter(_is_of_another_package)
    module: ModuleType = dp_accounting
    return module


def _is_of_another_package(record: logging.LogRecord) -> bool:
    """Whether a log record is not of dp-accounting, which warns of orders that it leaves out of its upper bound."""
    return "dp_accounting" not in record.pathname


@dataclass(frozen=True, kw_only=True)
class GaussianPrivacy:
    """The Gaussian mechanism: clip to the L2 norm `clip`, add noise of standard deviation `noise` * `clip`.

    `epsilon` at `delta` is the budget, `protects` the unit of privacy. Raises UserError naming the option that makes no
    sense.
    """

    protects: ClassVar[str] = "client"

    clip: float
    noise: float
    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        for name in ("clip", "noise", "epsilon", "delta"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"The privacy option {name} = {getattr(self, name)} must be a number above 0.")
        for name in ("clip", "noise"):
            if not SMALLEST <= getattr(self, name) <= LARGEST:  # beyond, products and steps lose their digits
                raise UserError(
                    f"The privacy option {name} = {getattr(self, name)} must lie between {SMALLEST:g} and {LARGEST:g}."
                )
        if self.delta >= 1:
            raise UserError(
                f"The privacy option delta = {self.delta} must be below 1, and should be below 1 divided by the number "
                "of protected clients or images."
            )

    def at_client(self, *, images: int, batch_size: int, epochs: int) -> Mechanism | None:
        """What a client itself computes in a round of so many epochs; None where it sends its plain update.

        Only what a client adds itself protects it from the server.
        """
        return None


# (client, number of times it was charged) -> epsilon
EpsilonFunction = Callable[[int, int], float]


class Ledger:
    """Counts how often every client was charged, and admits a round only if nobody's epsilon would pass the budget.

    A charge is recorded before the round runs, so failed and repeated rounds count too; `record` must not return before
    the entry would survive a crash. A server keeps a ledger of all clients of its run, a site a ledger of itself alone.
    `charges` are those recorded so far.
    """

    def __init__(
        self,
        epsilon_of: EpsilonFunction,
        *,
        budget: float,
        charges: Mapping[int, int] | None = None,
        record: Callable[[int, Sequence[int], float], None],
    ) -> None:
        self.epsilon_of = epsilon_of
        self.budget = budget
        self.charges = dict(charges or {})
        self.record = record

    @property
    def epsilon(self) -> float:
        """The epsilon spent so far: the largest of any client."""
        return max((self.epsilon_of(client, count) for client, count in self.charges.items()), default=0.0)

    def admit(self, round_number: int, clients: Sequence[int]) -> bool:
        """Charge these clients for one more round and return True; if that exceeds the budget, charge nobody: False."""
        epsilons = [self.epsilon_of(client, self.charges.get(client, 0) + 1) for client in clients]
        after = max([self.epsilon, *epsilons])
        if after > self.budget:
            return False
        self.record(round_number, tuple(clients), after)
        for client in clients:
            self.charges[client] = self.charges.get(client, 0) + 1
        return True
