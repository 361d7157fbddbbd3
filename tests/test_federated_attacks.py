from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedprompt.config.registry import ATTACKS
from fedprompt.data.labels import LabelSpace
from fedprompt.federated.attacks import Adversaries, alie, gaussian, inner_product, label_flip, scaled, sign_flip
from fedprompt.federated.client import TrainSettings
from fedprompt.federated.rounds import initial_state
from fedprompt.runtimes.simulator import Simulator
from fedprompt.updates import Update
from toys import Toy, fake_clip, toy_client

SHARED = {"w": torch.ones(3)}


def poisoned_by(attack, values=(2.0, 3.0, 4.0, 9.0, 9.0), round_number: int = 1) -> list[torch.Tensor]:
    sent = [Update(client, 5, {"w": torch.full((3,), value)}, {}, 0.0, 0.0) for client, value in enumerate(values)]
    after = Adversaries(attack, frozenset({3, 4}), seed=0).poison_updates(round_number, SHARED, sent)
    assert [one is other for one, other in zip(after, sent, strict=True)] == [True] * 3 + [False] * 2
    return [one.shared["w"] for one in after[3:]]


def test_attacks_on_ones_own_change() -> None:
    assert poisoned_by(sign_flip(scale=2.0))[0].tolist() == [-15.0] * 3
    assert poisoned_by(scaled(factor=3.0))[0].tolist() == [25.0] * 3
    one, other = poisoned_by(gaussian(sigma=5.0))
    assert not torch.equal(one, other) and torch.equal(one, poisoned_by(gaussian(sigma=5.0))[0])
    assert not torch.equal(one, poisoned_by(gaussian(sigma=5.0), round_number=2)[0])


def test_attacks_that_follow_the_honest_changes() -> None:
    assert poisoned_by(inner_product(epsilon=0.5))[0].tolist() == [0.0] * 3  # honest changes 1, 2, 3
    (first, second) = poisoned_by(alie())
    assert torch.equal(first, second) and 1.0 < first[0] < 3.0, "the poisoned value stays among honest ones"
    assert poisoned_by(alie(), values=(2.0, 2.0, 2.0, 9.0, 9.0))[0].tolist() == [2.0] * 3


def test_label_flips_reach_training_and_only_that_of_adversaries() -> None:
    clients = {number: toy_client(number, examples=6) for number in range(3)}
    settings = TrainSettings(rounds=1, batch_size=2, lr=0.1)
    shared = initial_state(Toy())[0]
    honest = Simulator(Toy(), fake_clip(), clients, settings).train(1, shared, range(3))
    adversaries = Adversaries(label_flip(), frozenset({2}), seed=0)
    poisoned = Simulator(Toy(), fake_clip(), clients, settings, adversaries=adversaries).train(1, shared, range(3))
    same = [torch.equal(a.shared["matrix"], b.shared["matrix"]) for a, b in zip(honest, poisoned, strict=True)]
    assert same == [True, True, False]
    many = replace(clients[0].train, targets=torch.tensor([[1, 0, -1, 0]]), space=LabelSpace(tuple("abcd"), "multi"))
    assert label_flip().poison_data(many).targets.tolist() == [[0, 1, -1, 1]]


@pytest.mark.parametrize("name", ATTACKS.names())
def test_every_attack_of_the_kit_can_be_built_from_its_defaults(name: str) -> None:
    attack = ATTACKS.builders[name]()
    assert (attack.poison_data is None) != (attack.poison_update is None)
