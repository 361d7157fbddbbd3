"""Messages as a broken or hostile site might send them: ten thousand mutations, each used or refused, none a crash."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedprompt.federated.geometry import multi_krum
from fedprompt.federated.sanitise import Limits, RefusedUpdateError, check_raw
from fedprompt.federated.secure.collector import Collector
from fedprompt.federated.secure.member import Session
from fedprompt.federated.secure.rehearsal import Exchange
from fedprompt.federated.server import Server
from fedprompt.ops.averaging import State, Update, weighted_mean
from fedprompt.seeding import numpy_stream

SHARED: State = {"context": torch.zeros(4, 64), "bias": torch.zeros(64)}
STEPS = ("keys", "shares", "masked", "unmask")
CLIENTS = 7


@dataclass(frozen=True)
class Raw:
    """A tensor as it travels."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def fuzz(count: int) -> tuple[Counter[str], float]:
    """Mutate `count` messages: how often each reason was given ("used" for none), and peak memory over the nominal."""
    draws = numpy_stream(0, "mutations")
    kinds: tuple[Callable[[np.random.Generator], str], ...] = (_update, _raw, _secure)
    for kind in kinds:
        kind(draws)
    tracemalloc.start()
    _honest_round()
    nominal = tracemalloc.get_traced_memory()[1]
    reasons: Counter[str] = Counter()
    for number in range(count):
        reasons[kinds[number % len(kinds)](draws)] += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return reasons, peak / nominal


def _honest(client: int, draws: np.random.Generator) -> Update:
    sent = {name: torch.from_numpy(draws.normal(size=tuple(t.shape))).float() for name, t in SHARED.items()}
    return Update(client, 5, sent, {}, 0.5, 0.0)


def _honest_round() -> None:
    draws = numpy_stream(1, "mutations")
    for _ in range(20):
        _combine([_honest(client, draws) for client in range(CLIENTS)])
        _exchange(lambda answer: answer, "keys")


def _combine(sent: list[Update]) -> str:
    server = Server(rule=multi_krum(attackers=1), limits=Limits(most_examples=10_000, norm=5.0))
    out = server.combine(weighted_mean, SHARED, sent, {}, asked=range(CLIENTS))
    assert all(tensor.isfinite().all() for tensor in out.shared.values())
    return next(iter(out.refused.values()), "used").partition(":")[0]


def _update(draws: np.random.Generator) -> str:
    """One of seven decoded updates is mutated: dropped, renamed, retyped, resized, huge, negative, NaN, unicode."""
    sent = [_honest(client, draws) for client in range(CLIENTS)]
    shared = dict(sent[0].shared)
    name = str(draws.choice(sorted(shared)))
    tensor = shared[name]
    types = (torch.float64, torch.float16, torch.int64, torch.complex64, torch.bool)
    odd: list[object] = [None, "1", -1, 0, 10**12, 1.5, True, float("nan"), [], b"x"]
    names = ["", "ñ\x00\u202e", "../../etc", "a" * 10_000, "shared/context", "personal"]
    spot = int(draws.integers(tensor.numel()))
    ways: list[Callable[[], Update]] = [
        lambda: replace(sent[0], shared={k: v for k, v in shared.items() if k != name}),
        lambda: replace(sent[0], shared={**shared, str(draws.choice(names)): shared.pop(name)}),
        lambda: replace(sent[0], shared={**shared, name: tensor.to(types[draws.integers(len(types))])}),
        lambda: replace(
            sent[0], shared={**shared, name: torch.zeros(draws.integers(0, 9, int(draws.integers(4))).tolist())}
        ),
        lambda: replace(sent[0], shared={**shared, name: tensor * float(10.0 ** draws.integers(0, 38))}),
        lambda: replace(
            sent[0],
            shared={
                **shared,
                name: tensor.flatten()
                .index_fill(0, torch.tensor([spot]), float(draws.choice([np.nan, np.inf, -np.inf])))
                .view_as(tensor),
            },
        ),
        lambda: replace(sent[0], shared={**shared, name: odd[draws.integers(len(odd))]}),
        lambda: replace(sent[0], num_examples=odd[draws.integers(len(odd))]),
        lambda: replace(sent[0], loss=odd[draws.integers(len(odd))]),
        lambda: replace(sent[0], client=int(draws.integers(-3, 12))),
    ]
    return _combine([ways[draws.integers(len(ways))](), *sent[1:]])


def _raw(draws: np.random.Generator) -> str:
    """A tensor as it travels, mutated before any byte is read."""
    name = str(draws.choice(["context", "bias", "", "contexts", "bias\n"]))
    shape = tuple(int(size) for size in draws.choice([1, 4, 64, 2**40, -1], size=int(draws.integers(1, 4))))
    raw = Raw(
        str(draws.choice(["float32", "float64", "bfloat16", "object", "<U8", ""])),
        ((4, 64), (64,), shape)[draws.integers(3)],
        bytes(int(draws.choice([0, 255, 256, 1024, 10_000]))),
    )
    try:
        check_raw({name: raw}, SHARED)
    except RefusedUpdateError as refusal:
        return refusal.code
    return "used"


def _secure(draws: np.random.Generator) -> str:
    """One member's bytes in one step of a secure sum are cut, grown, flipped, swapped or emptied."""

    def mutate(content: bytes) -> bytes:
        place = int(draws.integers(len(content)))
        flipped = content[:place] + bytes([content[place] ^ int(draws.integers(1, 256))]) + content[place + 1 :]
        ways = (content[:place], content + content[:place], flipped, content[::-1], b"")
        return ways[draws.integers(len(ways))]

    return _exchange(mutate, STEPS[draws.integers(len(STEPS))])


def _exchange(mutate: Callable[[bytes], bytes], step: str) -> str:
    class Rogue(Exchange):
        def _ask(self, now, members, speak):  # type: ignore[no-untyped-def]
            answers = super()._ask(now, members, speak)
            return {c: mutate(answer) if (c, now) == (0, step) else answer for c, answer in answers.items()}

    session = Session("run", 1, 4)
    vectors = {client: np.arange(8, dtype=np.uint64) for client in range(5)}
    collector = Collector(session, count=8)
    try:
        Rogue(session, vectors, lambda now, client: True, collector).run()
    except RefusedUpdateError as given_up:
        return given_up.code
    return next(iter(collector.refused.values()), "used").partition(":")[0]
