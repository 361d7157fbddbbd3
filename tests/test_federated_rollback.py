"""Attack 13: an update that destroys the model is bounded, or its round is rolled back and its sender named."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from fedprompt.config.recipe_tables import NORM_LIMIT
from fedprompt.errors import NotFiniteError
from fedprompt.federated.attacks import Adversaries, scaled
from fedprompt.federated.client import TrainSettings
from fedprompt.federated.evaluate import Score
from fedprompt.federated.history import FIRST_ROUNDS, STANDS_OUT, History
from fedprompt.federated.rollback import Finished
from fedprompt.federated.rounds import Round, Start, federate
from fedprompt.federated.screening import Limits
from fedprompt.federated.server import Server
from fedprompt.runtimes.simulator import Simulator
from fedprompt.seeding import numpy_stream
from fedprompt.updates import AGGREGATE_CLIENT, State, Update, weighted_mean
from toys import Toy, fake_clip, toy_client

TRIES = int(os.environ.get("FEDPROMPT_ATTACK_TRIES", "30"))
SERVER = Server(limits=Limits(norm=NORM_LIMIT))
BREAKS = 1e15  # length of a state from which honest losses are not finite, as squares of float32 are not
Poison = Callable[[int, State], Update | None]


class Quadratic:
    """Clients whose loss is half the squared distance to a point of their own; adversaries send what `poison` says."""

    def __init__(self, count: int, poison: Mapping[int, Poison]) -> None:
        draws = torch.Generator().manual_seed(count)
        self.points = {client: torch.randn(4, generator=draws) for client in range(count)}
        self.poison, self.undone = poison, 0

    def train(self, round_number: int, shared: State, asked: Sequence[int]) -> list[Update]:
        if float(shared["bias"].norm()) > BREAKS and len(self.poison) < len(asked):
            raise NotFiniteError(f"The loss became nan in round {round_number}; lower the learning rate.")
        sent = [self._answer(round_number, shared, client) for client in asked]
        return [update for update in sent if update is not None]

    def _answer(self, round_number: int, shared: State, client: int) -> Update | None:
        away = self.points[client] - shared["bias"]
        honest = Update(client, 5, {"bias": shared["bias"] + 0.3 * away}, {}, 1.0 + float(away @ away) / 2, 0.0)
        return self.poison[client](round_number, shared) if client in self.poison else honest

    def undo(self, clients: Iterable[int]) -> None:
        self.undone += 1

    def evaluate(self, round_number: int, shared: State, asked: Sequence[int]) -> list[Score]:
        return []


def run(transport: Quadratic, *, rounds: int, server: Server = SERVER) -> list[Round]:
    return list(federate(Toy(), transport, clients=range(len(transport.points)), rounds=rounds, seed=1, server=server))


def sends(client: int, change: torch.Tensor, *, loss: float = 1.0, rounds: Sequence[int] = ()) -> Poison:
    """An adversary that sends this change, in all rounds or in some; in the others it is silent."""

    def poison(number: int, shared: State) -> Update | None:
        if rounds and number not in rounds:
            return None
        return Update(client, 5, {"bias": shared["bias"] + change}, {}, loss, 0.0)

    return poison


def one_huge(client: int, size: float = 1e30, **options: object) -> dict[int, Poison]:
    return {client: sends(client, torch.full((4,), size), **options)}


def blamed(rounds: Sequence[Round]) -> set[int]:
    return {client for one in rounds for client in one.refused}


def test_one_huge_update_costs_its_client_the_round_and_nobody_else() -> None:
    attacked, without = run(Quadratic(5, one_huge(4)), rounds=8), run(Quadratic(5, {4: lambda *_: None}), rounds=8)
    assert blamed(attacked) == {4} and all("norm: the change has length" in one.refused[4] for one in attacked)
    assert torch.equal(attacked[-1].shared["bias"], without[-1].shared["bias"])


def test_of_two_clients_the_one_that_broke_the_model_is_named_and_its_update_is_left_out() -> None:
    transport = Quadratic(2, one_huge(1))
    rounds = run(transport, rounds=9)
    first, second = rounds[0], rounds[1]
    assert not first.refused and float(first.shared["bias"].norm()) > BREAKS
    assert second.rolled_back == 1 and transport.undone and not second.updates
    assert second.refused.keys() == {1} and "rolled back: its change in round 1 was" in second.refused[1]
    assert "round 1 was rolled back, because after it losses were not finite" in second.skipped
    alone = run(Quadratic(2, {1: lambda *_: None}), rounds=8)
    assert torch.equal(second.shared["bias"], alone[0].shared["bias"]), "the round counts without that update"
    assert float(rounds[-1].shared["bias"].norm()) < 10 and blamed(rounds) == {1}
    assert sum(bool(one.rolled_back) for one in rounds) <= 2, "a client that was caught is held to a tighter limit"


def test_losses_that_explode_roll_back_too() -> None:
    """A change within the limit of norms, in the first round, after which losses are finite."""
    transport = Quadratic(5, {4: sends(4, torch.full((4,), 15.0), rounds=[1])})
    rounds = run(transport, rounds=4)
    assert not rounds[0].refused and rounds[1].rolled_back == 1 and rounds[1].refused.keys() == {4}
    assert "the median loss rose to" in rounds[1].skipped and rounds[2].updates and not rounds[2].rolled_back


class Steep(Quadratic):
    """Honest changes grow with the cube of the distance, and honest losses tell nothing."""

    def _answer(self, round_number: int, shared: State, client: int) -> Update | None:
        if client in self.poison:
            return self.poison[client](round_number, shared)
        away = self.points[client] - shared["bias"]
        step = 0.02 * away * float(away @ away)
        return Update(client, 5, {"bias": shared["bias"] + step}, {}, 1.0, 0.0)


def test_a_poisoned_model_whose_changes_are_all_too_long_is_rolled_back() -> None:
    limits, attack = Server(limits=Limits(norm=1e4)), {2: sends(2, torch.full((4,), 100.0), rounds=(7,))}
    attacked = run(Steep(3, attack), rounds=10, server=limits)
    assert [one.rolled_back for one in attacked] == [0] * 7 + [7] + [0] * 2 and blamed(attacked) == {2}
    assert attacked[7].refused[2].endswith("after it no update could be used.")
    without = run(Steep(3, {2: lambda *_: None}), rounds=9, server=limits)
    assert torch.equal(attacked[7].shared["bias"], without[6].shared["bias"])
    assert torch.allclose(attacked[-1].shared["bias"], without[-1].shared["bias"])


def test_a_round_without_answers_between_does_not_hide_the_poisoned_one() -> None:
    class Absent(Quadratic):
        def train(self, round_number: int, shared: State, asked: Sequence[int]) -> list[Update]:
            return [] if round_number == 2 else super().train(round_number, shared, asked)

    rounds = run(Absent(2, one_huge(1, rounds=[1])), rounds=5)
    assert [one.rolled_back for one in rounds] == [0, 0, 1, 0, 0] and blamed(rounds) == {1}


def test_losses_that_one_client_claims_roll_nothing_back() -> None:
    claims = {4: sends(4, torch.ones(4) / 4, loss=1e11)}
    assert not any(one.rolled_back or one.refused for one in run(Quadratic(5, claims), rounds=5))


def test_without_a_suspect_the_loss_that_is_not_finite_ends_the_run_as_before() -> None:
    class Diverging(Quadratic):
        def train(self, round_number: int, shared: State, asked: Sequence[int]) -> list[Update]:
            updates = super().train(round_number, shared, asked)
            return [replace(one, shared={"bias": one.shared["bias"] * 1e16}) for one in updates]

    with pytest.raises(NotFiniteError, match="lower the learning rate"):
        run(Diverging(4, {}), rounds=5)
    with pytest.raises(NotFiniteError):
        run(Quadratic(2, one_huge(1)), rounds=5, server=Server())


class Momentum(Toy):
    """A method whose rule has a memory, and weighs the clients' numbers of images."""

    @staticmethod
    def aggregate(
        shared: State, updates: Sequence[Update], weights: Sequence[float], memory: State
    ) -> tuple[State, State]:
        mean = weighted_mean(shared, updates, weights)["bias"] - shared["bias"]
        velocity = 0.5 * memory.get("velocity", torch.zeros(4)) + mean
        return {**shared, "bias": shared["bias"] + velocity}, {"velocity": velocity}


class Absent(Quadratic):
    """Nobody answers in round 3."""

    def train(self, round_number: int, shared: State, asked: Sequence[int]) -> list[Update]:
        return [] if round_number == 3 else super().train(round_number, shared, asked)


CASES: dict[str, tuple[type[Toy], Callable[[], Quadratic], list[int]]] = {
    "refused": (Toy, lambda: Quadratic(5, one_huge(4, rounds=[3, 5])), []),
    "of two": (Momentum, lambda: Quadratic(2, one_huge(1, rounds=[2])), [2]),
    "before round 1": (Toy, lambda: Quadratic(2, one_huge(1)), [1]),
    "without answers between": (Momentum, lambda: Absent(2, one_huge(1, rounds=[2])), [2]),
    "losses that explode": (Toy, lambda: Quadratic(5, {4: sends(4, torch.full((4,), 15.0), rounds=[1])}), [1]),
    "no suspect": (Toy, lambda: Quadratic(4, {3: sends(3, torch.ones(4), loss=9.0)}), []),
    "twice": (Toy, lambda: Quadratic(3, one_huge(1, 1e16, rounds=[1]) | one_huge(2, 2e17, rounds=[1])), [1, 1]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_resumed_after_any_round_decides_as_one_that_never_stopped(name: str) -> None:
    method, transport, undone = CASES[name]
    options = {"clients": range(len(transport().points)), "rounds": 7, "seed": 1}
    server = Server(limits=Limits(norm=NORM_LIMIT), weighting="examples")
    whole = list(federate(method(), transport(), **options, server=server))
    assert [one.rolled_back for one in whole if one.rolled_back] == undone
    for last in whole:
        kept = {} if last.suspected is None else last.suspected.tensors()
        start = Start(last.number, last.shared, last.memory, Finished.of(kept))
        rest = list(federate(method(), transport(), **options, server=server, start=start))
        for ours, theirs in zip(rest, whole[last.number :], strict=True):
            decisions = [(one.rolled_back, one.refused, one.skipped, len(one.updates)) for one in (ours, theirs)]
            assert decisions[0] == decisions[1]
            assert same(ours.shared, theirs.shared) and same(ours.memory, theirs.memory)


def same(ours: State, theirs: State) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_any_minority_of_adversaries_loses_its_rounds_and_nobody_else_is_named() -> None:
    """Random numbers of clients, lengths, rounds and claimed losses, in up to half of the rounds."""
    draws = numpy_stream(0, "attack 13")
    for _ in range(TRIES):
        count = int(draws.integers(3, 9))
        few = int(draws.integers(1, (count + 1) // 2))
        attacked = [number for number in range(1, 9) if draws.random() < 0.5]
        poison = {}
        for client in range(count - few, count):
            change = torch.from_numpy(draws.normal(size=4)).float() * 10.0 ** float(draws.uniform(-3, 37))
            loss = float(draws.choice([0.0, 1.0, 1e12, -1e12]))
            poison[client] = sends(client, change, loss=loss, rounds=attacked or [9])
        rounds = run(Quadratic(count, poison), rounds=24)
        end = rounds[-1].shared["bias"]
        assert len(rounds) == 24 and blamed(rounds) <= poison.keys(), (count, few, attacked)
        goal = torch.stack([point for client, point in Quadratic(count, {}).points.items() if client not in poison])
        assert float((end - goal.mean(dim=0)).norm()) < 1.0, (count, few, attacked, end)


def test_the_simulator_goes_on_after_a_scaled_update() -> None:
    pair = [toy_client(number) for number in range(2)]
    adversaries = Adversaries(scaled(factor=1e30), frozenset({1}), seed=0)
    simulator = Simulator(
        Toy(), fake_clip(), pair, TrainSettings(rounds=4, batch_size=2, lr=0.1), adversaries=adversaries
    )
    rounds = list(federate(Toy(), simulator, clients=range(2), rounds=4, seed=1, server=SERVER))
    assert [one.rolled_back for one in rounds[:2]] == [0, 1] and blamed(rounds) == {1}
    assert all(tensor.isfinite().all() for tensor in rounds[-1].shared.values())


def test_a_client_whose_update_is_refused_goes_on_from_the_personal_state_before() -> None:
    clients = [toy_client(number) for number in range(4)]
    adversaries = Adversaries(scaled(factor=1e6), frozenset({3}), seed=0)
    settings = TrainSettings(rounds=2, batch_size=2, lr=0.1)
    simulator = Simulator(Toy(), fake_clip(), clients, settings, adversaries=adversaries)
    (only,) = federate(Toy(), simulator, clients=range(4), rounds=1, seed=1, server=SERVER)
    assert only.refused.keys() == {3} and simulator.personal.keys() == {0, 1, 2}


def test_the_usual_length_needs_three_lengths_and_ignores_those_that_are_zero() -> None:
    assert History().usual([1.0, 5.0]) is None and History().usual([0.0, 0.0, 0.0, 2.0]) is None
    assert History().usual([0.0, 1.0, 2.0, 9.0]) == 2.0
    assert History(lengths=(4.0, 4.0, 4.0)).usual([1.0, 1.0, 1.0]) == 4.0, "changes that shrink refuse nobody"
    assert History(lengths=(1.0, 1.0, 1.0)).usual([4.0, 4.0, 4.0]) == 4.0, "nor do changes that all grow"
    assert not History(lengths=(1.0,) * 3).too_long({0: 99.0}, 100.0)
    assert History(lengths=(1.0,) * 3, caught=frozenset({0})).too_long({0: 2 * STANDS_OUT, 1: 99.0}, 100.0).keys() == {
        0
    }


def test_the_history_survives_in_a_checkpoint_and_stops_growing() -> None:
    history, update = History(), Update(0, 1, {}, {}, 0.25, 0.0)
    for _ in range(FIRST_ROUNDS + 3):
        history = history.after({0: 1.0, 1: 2.0}, [update])
    history = replace(history, caught=frozenset({7, 3}))
    assert History.of(history.memory()) == history and len(history.lengths) == 2 * FIRST_ROUNDS
    assert history.loss == 0.25 and History.of({}) == History()
    assert not history.exploded([replace(update, client=AGGREGATE_CLIENT, loss=1e9)])
    assert history.exploded([replace(update, loss=0.76)]) and not history.exploded([replace(update, loss=math.nan)])


def test_losses_that_few_clients_give_show_nothing() -> None:
    """Sites may withhold their losses; then one that lies could have an honest round rolled back."""
    history = History(loss=0.25)
    told, withheld = (Update(client, 1, {}, {}, loss, 0.0) for client, loss in ((0, 9.0), (1, math.nan)))
    assert history.exploded([told]) and history.exploded([told, told, withheld])
    assert not history.exploded([told, withheld]) and not history.exploded([told, withheld, withheld])
    assert History().after({0: 1.0}, [told, withheld]).loss == 0.0
