from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fedprompt.config.registry import AGGREGATION_RULES, SERVER_OPTIMIZERS
from fedprompt.errors import UserError
from fedprompt.federated.aggregation.base import TooFewError
from fedprompt.federated.aggregation.robust import krum
from fedprompt.federated.attacks import Adversaries, broken
from fedprompt.federated.client import TrainSettings, train_client
from fedprompt.federated.privacy.clients import ClientPrivacy
from fedprompt.federated.rounds import Round, Start, federate, initial_state
from fedprompt.federated.server import Server
from fedprompt.federated.server_optimizers import fedadam, fedavgm
from fedprompt.records.checkpoints import Checkpoint
from fedprompt.records.run_folder import RunFolder
from fedprompt.runtimes.simulator import Simulator
from fedprompt.updates import Update, fedavg
from toys import Toy, fake_clip, toy_client

SETTINGS = TrainSettings(rounds=4, local_epochs=1, batch_size=2, lr=0.1, seed=2)
CLIENTS = {number: toy_client(number) for number in range(7)}


def run(server: Server, start: Start | None = None, personal=None, rounds: int = 4, **options) -> list[Round]:
    simulator = Simulator(Toy(switch=False), fake_clip(), CLIENTS, SETTINGS, personal=personal, **options)
    return list(federate(Toy(), simulator, clients=range(7), rounds=rounds, seed=2, server=server, start=start))


def servers() -> list:
    rules = [pytest.param(Server(rule=rule()), id=name) for name, rule in AGGREGATION_RULES.builders.items()]
    steps = [pytest.param(Server(optimizer=step()), id=name) for name, step in SERVER_OPTIMIZERS.builders.items()]
    return [*rules, *steps]


@pytest.mark.parametrize("server", servers())
def test_resuming_from_a_checkpoint_file_gives_the_same_bits(server: Server, tmp_path: Path) -> None:
    simulator = Simulator(Toy(), fake_clip(), CLIENTS, SETTINGS)
    whole = run(server)
    before = list(federate(Toy(), simulator, clients=range(7), rounds=2, seed=2, server=server))[-1]
    folder = RunFolder(tmp_path)
    folder.save_checkpoint("a", Checkpoint(2, before.shared, simulator.personal, before.memory))
    kept = folder.load_checkpoint("a")
    assert kept is not None
    after = run(server, Start(2, kept.shared, kept.memory), personal=kept.personal)
    simulated = run(server, Start(2, before.shared, before.memory), personal=simulator.personal)
    for one, other, third in zip(after, whole[2:], simulated, strict=True):
        assert one.memory.keys() == other.memory.keys() == third.memory.keys()
        assert all(torch.equal(one.memory[name], third.memory[name]) for name in one.memory)
        assert all(torch.equal(one.shared[name], third.shared[name]) for name in one.shared)


def update(client: int, value: float) -> Update:
    return Update(client, 1, {"w": torch.full((2,), value)}, {}, 0.0, 0.0)


def test_steps_follow_their_papers() -> None:
    shared, memory = {"w": torch.zeros(2)}, {}
    step = fedavgm(lr=0.5, momentum=0.5)
    shared, memory = step(shared, {"w": torch.full((2,), 4.0)}, memory)
    assert shared["w"].tolist() == [2.0, 2.0]
    shared, memory = step(shared, {"w": torch.full((2,), 4.0)}, memory)  # v = 0.5 * 4 + 2
    assert shared["w"].tolist() == [4.0, 4.0]
    adam = fedadam(lr=0.1, beta1=0.5, beta2=0.75, tau=1.0)
    shared, memory = adam({"w": torch.zeros(2)}, {"w": torch.full((2,), 4.0)}, {})  # m = 2, u = 4
    assert shared["w"] == pytest.approx(torch.tensor([0.2 / 3, 0.2 / 3]))


def test_momentum_zero_and_lr_one_is_the_plain_mean() -> None:
    plain, stepped = run(Server()), run(Server(optimizer=fedavgm(lr=1.0, momentum=0.0)))
    for one, other in zip(plain, stepped, strict=True):
        assert all(torch.allclose(one.shared[name], other.shared[name], atol=1e-6) for name in one.shared)


def test_a_round_with_too_few_for_a_rule_is_skipped_or_refused_at_once() -> None:
    server, shared = Server(rule=krum(adversaries=1)), {"w": torch.zeros(2)}
    sent = [update(client, 1.0) for client in range(4)]
    out = server.combine(fedavg, shared, sent, {}, asked=range(5))
    assert "krum needs 5" in out.skipped and out.shared is shared and out.used == ()
    with pytest.raises(TooFewError, match="ask more clients"):
        server.combine(fedavg, shared, sent, {}, asked=range(4))


def test_a_sum_that_overflows_changes_nothing() -> None:
    server = Server(optimizer=fedavgm(lr=10.0))
    out = server.combine(fedavg, {"w": torch.zeros(2)}, [update(0, 1e38)], {}, asked=[0])
    assert "not finite" in out.skipped and not out.shared["w"].any()


def test_privacy_goes_with_the_plain_mean_alone() -> None:
    privacy = ClientPrivacy(clip=1.0, noise=1.0, epsilon=1.0, delta=1e-3)
    for options in ({"rule": krum()}, {"weighting": "examples"}):
        with pytest.raises(UserError, match="plain uniform mean"):
            Server(privacy=privacy, **options)
    with pytest.raises(UserError, match="aggregates otherwise"):
        Server(privacy=privacy).combine(
            lambda s, u, w, m: (s, m), {"w": torch.zeros(2)}, [update(0, 1.0)], {}, asked=[0]
        )


@pytest.mark.parametrize("kind", ["nan", "infinity", "shape", "name", "weight"])
def test_broken_clients_cost_what_their_absence_costs(kind: str) -> None:
    rounds = run(Server(), adversaries=Adversaries(broken(kind=kind), frozenset({5, 6}), seed=0))
    assert all(list(one.refused) == [5, 6] and len(one.updates) == 5 for one in rounds)


def test_fedprox_holds_a_client_near_what_it_received() -> None:
    def distance(mu: float) -> float:
        settings = TrainSettings(rounds=1, local_epochs=5, batch_size=2, lr=0.1, seed=2, proximal=mu, momentum=0.0)
        shared, personal = initial_state(Toy())
        sent = train_client(
            Toy(switch=False),
            fake_clip(),
            CLIENTS[0],
            shared=shared,
            personal=personal,
            round_number=1,
            settings=settings,
        )
        return float((sent.shared["matrix"] - shared["matrix"]).norm())

    distances = [distance(mu) for mu in (0.0, 1.0, 8.0)]
    assert distances == sorted(distances, reverse=True) and distances[2] < 0.5 * distances[0]


def test_order_of_answers_does_not_show() -> None:
    server, shared = Server(), {"w": torch.zeros(2)}

    def combine(order: Sequence[int]) -> torch.Tensor:
        return server.combine(fedavg, shared, [update(k, 0.1 * k) for k in order], {}, asked=range(4)).shared["w"]

    assert torch.equal(combine([0, 1, 2, 3]), combine([2, 0, 3, 1]))
