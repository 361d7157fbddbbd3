from __future__ import annotations

import pytest
import torch

from fedprompt.errors import NotFiniteError, UserError
from fedprompt.federated.client import Client, TrainSettings
from fedprompt.federated.evaluate import evaluate
from fedprompt.federated.rounds import Round, Start, federate, initial_state
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.runtimes.simulator import Simulator
from toys import SPACE, Toy, fake_clip, toy_client

SETTINGS = TrainSettings(rounds=6, local_epochs=1, batch_size=2, lr=0.1, seed=2)


def make(clients=None, personal=None, **options) -> Simulator:
    clients = clients or {number: toy_client(number, test=4) for number in range(5)}
    return Simulator(Toy(), fake_clip(), clients, SETTINGS, personal=personal, **options)


def run(simulator: Simulator, start: Start | None = None, rounds: int = 6) -> list[Round]:
    return list(federate(Toy(), simulator, clients=range(5), rounds=rounds, fraction=0.6, seed=2, start=start))


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_resumed_run_equals_one_that_never_stopped_bitwise() -> None:
    never = make()
    whole = run(never)
    assert any(update.shared.keys() == {"bias"} for update in whole[-1].updates), "the second phase was reached"
    for last in range(1, 6):
        stopped = make()
        before = run(stopped, rounds=last)
        resumed = make(personal=stopped.personal)  # another process: another method object, another transport
        after = run(resumed, Start(last, before[-1].shared))
        assert all(same(a.shared, b.shared) for a, b in zip(before + after, whole, strict=True))
        assert resumed.personal.keys() == never.personal.keys()
        assert all(same(resumed.personal[client], never.personal[client]) for client in never.personal)


def test_clients_do_not_see_each_other() -> None:
    shared = initial_state(Toy())[0]
    together, alone = make().train(1, shared, [0, 1, 2]), [make().train(1, shared, [client])[0] for client in range(3)]
    for one, other in zip(together, alone, strict=True):
        assert same(one.shared, other.shared) and same(one.personal, other.personal)


def test_an_interrupted_round_leaves_personal_states_as_they_were() -> None:
    clients = {0: toy_client(0), 1: toy_client(1, examples=0)}
    simulator = make(clients)
    with pytest.raises(UserError, match="Client 1"):
        simulator.train(1, initial_state(Toy())[0], [0, 1])
    assert simulator.personal == {}


class SpoilsItself(Toy):
    """Some clients end their training with a tensor that is not finite, while their loss is."""

    def __init__(self, spoiled: str) -> None:
        super().__init__()
        self.spoiled, self.clients, self.place = spoiled, (), 0

    def loss(self, clip, images, targets, space, *, stream) -> torch.Tensor:
        self.place = images.rows[0] // 100  # rows of `toy_client`
        return super().loss(clip, images, targets, space, stream=stream)

    def end_epoch(self, epoch: int) -> None:
        super().end_epoch(epoch)
        if self.place in self.clients:
            getattr(self, self.spoiled).data[0] = float("nan")


@pytest.mark.parametrize(("spoiled", "why"), [("own", "diverged: "), ("bias", "not finite: NaN")])
def test_a_few_clients_that_diverge_are_left_out_and_most_are_an_error(spoiled: str, why: str) -> None:
    """As over sites; those left out go on from the personal state before."""
    method = SpoilsItself(spoiled)
    simulator = Simulator(method, fake_clip(), {number: toy_client(number) for number in range(3)}, SETTINGS)
    shared = initial_state(Toy())[0]
    simulator.train(1, shared, range(3))
    before = dict(simulator.personal)
    method.clients = (1,)
    out = next(federate(method, simulator, clients=range(3), rounds=2, seed=2, start=Start(1, shared)))
    assert [one.client for one in out.updates] == [0, 2]
    assert {**simulator.notes.failed, **out.refused}.keys() == {1}
    assert {**simulator.notes.failed, **out.refused}[1].startswith(why)
    assert same(simulator.personal[1], before[1]) and not same(simulator.personal[0], before[0])
    method.clients, before = (1, 2), dict(simulator.personal)
    with pytest.raises(NotFiniteError, match=r"client 1 are not finite after training in round 3; lower the"):
        simulator.train(3, shared, range(3))
    assert simulator.personal == before


def test_a_few_clients_that_diverge_are_left_out_of_a_secure_sum() -> None:
    method = SpoilsItself("bias")
    method.clients = (1,)
    clients = {number: toy_client(number) for number in range(4)}
    simulator = Simulator(method, fake_clip(), clients, SETTINGS, secure=SecureSum())
    (cohort,) = simulator.train(1, initial_state(Toy())[0], range(4))
    assert cohort.num_examples == 3 and simulator.notes.failed.keys() == {1}
    assert simulator.notes.failed[1].startswith("diverged: ") and simulator.personal.keys() == {0, 2, 3}


def test_a_lazy_sequence_of_ten_thousand_is_asked_only_for_the_chosen() -> None:
    asked = []

    class Lazy:
        def __len__(self) -> int:
            return 10_000

        def __getitem__(self, number: int) -> Client:
            asked.append(number)
            return toy_client(number, examples=2)

    simulator = make(Lazy())
    done = list(federate(Toy(), simulator, clients=range(10_000), rounds=2, fraction=0.01, seed=0))
    assert asked == [*done[0].clients, *done[1].clients] and len(asked) == 200
    assert simulator.personal.keys() == set(asked)


def test_scores_use_each_clients_own_candidates_and_personal_state() -> None:
    clients = [toy_client(0, test=8, classes=(2, 0)), toy_client(1), toy_client(2, test=6)]
    own = {2: {"own": torch.ones(6), "phase": torch.tensor(1)}}
    shared, start = initial_state(Toy())
    scores = make(clients, personal=own).evaluate(1, shared, range(3))
    assert [score.name for score in scores] == ["site 0", "site 2"], "a client without test pictures has no score"
    for score, client, personal in zip(scores, (clients[0], clients[2]), (start, own[2]), strict=True):
        method = Toy()
        method.load_state_dict({**shared, **personal})
        assert client.test is not None and score == evaluate(method, fake_clip(), client.test, name=client.name)
    assert [len(score.per_class) for score in scores] == [2, len(SPACE)]


def test_progress_is_reported() -> None:
    calls = []
    simulator = make(on_client=lambda done, total: calls.append((done, total)))
    shared = initial_state(Toy())[0]
    simulator.train(1, shared, [0, 3])
    simulator.evaluate(1, shared, [0])
    assert calls == [(1, 2), (2, 2), (1, 1)]
