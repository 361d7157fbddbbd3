from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprompt.errors import UserError
from fedprompt.federated.evaluate import Score
from fedprompt.federated.rounds import Round, Start, federate, initial_state, sample
from fedprompt.federated.server import Server
from fedprompt.seeding import stream
from fedprompt.updates import State, Update
from toys import Toy


class Echo:
    """Answers in a scrambled order with values that depend on the address alone; some clients never answer."""

    def __init__(self, *, silent: Sequence[int] = (), poison: int | None = None) -> None:
        self.silent = silent
        self.poison = poison

    def train(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Update]:
        answering = [client for client in clients if client not in self.silent]
        return [self.answer(round_number, shared, client) for client in sorted(answering, key=lambda c: (c * 7) % 5)]

    def answer(self, round_number: int, shared: State, client: int) -> Update:
        noise = torch.randn(shared["bias"].shape, generator=stream(0, round_number, client))
        new = {"bias": 0.9 * shared["bias"] + noise * (float("nan") if client == self.poison else 1.0)}
        return Update(client=client, num_examples=client + 1, shared=new, personal={}, loss=0.0, seconds=0.0)

    def undo(self, clients: Iterable[int]) -> None: ...

    def evaluate(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Score]:
        return []


def run(transport: Echo | None = None, rounds: int = 6, start: Start | None = None, **options) -> list[Round]:
    options = {"clients": range(9), "fraction": 0.5, "seed": 1} | options
    return list(federate(Toy(), transport or Echo(), rounds=rounds, start=start, **options))


def test_a_round_is_the_weighted_mean_of_its_updates() -> None:
    uniform, by_size = run(rounds=1)[0], run(rounds=1, server=Server(weighting="examples"))[0]
    assert uniform.clients == by_size.clients == tuple(sorted(uniform.clients))
    sent = torch.stack([update.shared["bias"] for update in uniform.updates]).double()
    sizes = torch.tensor([update.num_examples for update in uniform.updates]).double()
    assert torch.allclose(uniform.shared["bias"], sent.mean(dim=0).float())
    assert torch.allclose(by_size.shared["bias"], (sizes @ sent / sizes.sum()).float())
    assert torch.equal(uniform.shared["matrix"], Toy().matrix)


def test_going_on_from_any_round_gives_the_same_bits() -> None:
    whole = run()
    assert [one.number for one in whole] == [1, 2, 3, 4, 5, 6]
    for last in range(len(whole) + 1):
        start = Start(last, whole[last - 1].shared) if last else None
        rest = run(start=start)
        assert [one.number for one in rest] == list(range(last + 1, 7))
        assert [one.clients for one in rest] == [one.clients for one in whole[last:]]
        assert all(torch.equal(a.shared["bias"], b.shared["bias"]) for a, b in zip(rest, whole[last:], strict=True))


def test_the_order_of_answers_and_of_the_client_list_does_not_show() -> None:
    class Ordered(Echo):
        def train(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Update]:
            return sorted(super().train(round_number, shared, clients), key=lambda update: update.client)

    for other in (run(Ordered()), run(clients=[3, 1, 8, 0, 2, 7, 4, 6, 5])):
        assert torch.equal(other[-1].shared["bias"], run()[-1].shared["bias"])


def test_silent_clients_are_left_out_and_an_empty_round_changes_nothing() -> None:
    some = run(Echo(silent=[0, 1, 2, 3]), fraction=1.0, rounds=1)[0]
    assert some.clients == tuple(range(9)) and [update.client for update in some.updates] == [4, 5, 6, 7, 8]
    assert torch.allclose(some.shared["bias"], torch.stack([u.shared["bias"] for u in some.updates]).mean(dim=0))
    none = run(Echo(silent=range(9)), rounds=2)[-1]
    assert none.updates == () and torch.equal(none.shared["bias"], torch.zeros(4))


def test_a_poisoned_update_is_left_out_and_its_client_named() -> None:
    rounds = run(Echo(poison=6), fraction=1.0)
    assert all(list(one.refused) == [6] and "NaN" in one.refused[6] and not one.skipped for one in rounds)
    without = run(Echo(silent=[6]), fraction=1.0)
    assert all(torch.equal(a.shared["bias"], b.shared["bias"]) for a, b in zip(rounds, without, strict=True))


def test_three_rounds_without_a_usable_update_stop_the_run_with_the_reasons() -> None:
    done = []
    with pytest.raises(UserError, match=r"3 rounds in a row \(client 6: not finite"):
        done.extend(federate(Toy(), Echo(poison=6), clients=[6], rounds=9, seed=0))
    one = next(federate(Toy(), Echo(poison=6), clients=[6], rounds=9, seed=0))
    assert one.skipped and torch.equal(one.shared["bias"], torch.zeros(4))


def test_a_run_ends_before_the_round_that_is_not_admitted() -> None:
    asked = []

    def admit(number: int, clients: Sequence[int]) -> bool:
        asked.append((number, tuple(clients)))
        return number < 3

    done = run(admit=admit)
    assert [one.number for one in done] == [1, 2] and [number for number, _ in asked] == [1, 2, 3]
    assert all(clients == one.clients for (_, clients), one in zip(asked, done, strict=False))


def test_a_method_may_bring_its_own_aggregation() -> None:
    class Last(Toy):
        @staticmethod
        def aggregate(shared, updates, weights, memory) -> tuple[State, State]:
            count = memory.get("count", torch.zeros(()))
            return {**shared, **updates[-1].shared}, {"count": count + 1}

    one, two = federate(Last(), Echo(), clients=range(3), rounds=2, seed=0)
    assert torch.equal(one.shared["bias"], one.updates[2].shared["bias"])
    assert [float(done.memory["rule/count"]) for done in (one, two)] == [1, 2], "the method's rule has a memory"


@given(st.integers(1, 60), st.floats(0, 1), st.integers(0, 5), st.integers(1, 100))
def test_sampling(count: int, fraction: float, seed: int, round_number: int) -> None:
    ids = [3 * position + 1 for position in range(count)]
    chosen = sample(ids, fraction, seed=seed, round_number=round_number)
    assert list(chosen) == sorted(set(chosen)) and set(chosen) <= set(ids)
    assert max(int(fraction * count), 1) <= len(chosen) <= max(fraction * count + 1e-6, 1)
    assert chosen == sample(ids[::-1], fraction, seed=seed, round_number=round_number)


def test_sampling_covers_everyone_and_rounds_up_float_dust() -> None:
    assert len(sample(range(100), 0.29, seed=0, round_number=1)) == 29
    rounds = [sample(range(20), 0.25, seed=0, round_number=number) for number in range(1, 60)]
    assert set().union(*rounds) == set(range(20)) and len(set(rounds)) > 50


def test_initial_state_is_a_value() -> None:
    method = Toy()
    shared, personal = initial_state(method)
    assert shared.keys() == {"matrix", "bias"} and personal.keys() == {"own", "phase"}
    with torch.no_grad():
        method.bias.fill_(9)
        method.own.fill_(9)
    assert not shared["bias"].any() and not personal["own"].any()


def test_a_buffer_that_is_neither_trained_nor_personal_is_refused() -> None:
    method = Toy()
    method.register_buffer("anchor", torch.zeros(1), persistent=False)
    initial_state(method)
    method.register_buffer("statistics", torch.zeros(1))
    with pytest.raises(UserError, match="Toy keeps the buffer 'statistics'"):
        initial_state(method)
