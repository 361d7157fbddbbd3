from __future__ import annotations

import math

import pytest
import torch

from fedprompt.errors import NotFiniteError, UserError
from fedprompt.federated.client import TrainSettings, train_client
from fedprompt.federated.rounds import initial_state
from fedprompt.seeding import stream
from fedprompt.updates import State, Update
from toys import Toy, fake_clip, toy_client

SETTINGS = TrainSettings(rounds=10, local_epochs=2, batch_size=2, lr=0.1, seed=3)


def run(method: Toy | None = None, *, personal: State | None = None, round_number: int = 1, **changes) -> Update:
    shared, start = initial_state(Toy())
    return train_client(
        method or Toy(),
        fake_clip(),
        toy_client(4),
        shared=shared,
        personal=personal or start,
        round_number=round_number,
        settings=SETTINGS.model_copy(update=changes),
    )


def assert_equal(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_learning_rate_follows_the_global_round() -> None:
    rates = [SETTINGS.learning_rate(number) for number in range(1, 11)]
    assert rates[0] == 0.1
    assert rates == sorted(rates, reverse=True)
    assert rates[5] == pytest.approx(0.05)
    assert rates[-1] == pytest.approx(0.05 * (1 + math.cos(0.9 * math.pi)))
    assert SETTINGS.model_copy(update={"schedule": "constant"}).learning_rate(7) == 0.1


def test_training_equals_the_steps_written_out() -> None:
    update = run(Toy(switch=False), local_epochs=2, round_number=3, momentum=0.5, weight_decay=0.01)
    method, clip, client = Toy(switch=False), fake_clip(), toy_client(4)
    lr, momentum, losses = SETTINGS.learning_rate(3), {}, []
    for epoch in range(2):
        order = torch.randperm(5, generator=stream(3, "client", 4, 3, epoch))
        draws = stream(3, "loss", 4, 3, epoch)
        for batch in (order[:2], order[2:4], order[4:]):
            images, targets = client.train.images.take(batch), client.train.targets[batch]
            loss = method.loss(clip, images, targets, client.train.space, stream=draws)
            losses.append(loss.item())
            for name, parameter in method.named_parameters():
                (slope,) = torch.autograd.grad(loss, parameter, retain_graph=True)
                step = slope + 0.01 * parameter.detach()
                momentum[name] = 0.5 * momentum[name] + step if name in momentum else step
            with torch.no_grad():
                for name, parameter in method.named_parameters():
                    parameter -= lr * momentum[name]
    assert update.shared.keys() == {"matrix", "bias"}
    assert all(torch.allclose(update.shared[name], getattr(method, name), atol=1e-6) for name in update.shared)
    assert torch.allclose(update.personal["own"], method.own, atol=1e-6)
    assert update.loss == pytest.approx(sum(losses) / 6)
    assert (update.client, update.num_examples) == (4, 5)


def test_what_the_method_held_before_does_not_matter() -> None:
    used = Toy()
    run(used, personal={"own": torch.ones(6), "phase": torch.tensor(1)})
    again, fresh = run(used), run()
    assert_equal(again.shared, fresh.shared)
    assert_equal(again.personal, fresh.personal)


def test_only_what_was_trained_is_sent() -> None:
    everything = run(local_epochs=1)
    assert everything.shared.keys() == {"matrix", "bias"}
    assert everything.personal["phase"] == 1
    late = run(local_epochs=1, personal=everything.personal)
    assert late.shared.keys() == {"bias"}
    assert late.bytes == 4 * 4 and everything.bytes == 4 * (4 + 4 * 6)
    both = run(local_epochs=2)
    assert both.shared.keys() == {"matrix", "bias"}, "trained in the first of two epochs is trained"


def test_a_frozen_tensor_does_not_move_even_by_momentum() -> None:
    one, two = run(local_epochs=1), run(local_epochs=2)
    assert torch.equal(one.shared["matrix"], two.shared["matrix"])
    assert not torch.equal(one.shared["bias"], two.shared["bias"])


def test_no_gradient_is_computed_for_what_is_frozen() -> None:
    class Watched(Toy):
        def loss(self, *objects, **named):
            seen.append({name for name, parameter in self.named_parameters() if parameter.requires_grad})
            return super().loss(*objects, **named)

    seen: list[set[str]] = []
    run(Watched(), batch_size=5)
    assert seen == [{"matrix", "bias", "own"}, {"bias", "own"}]


def test_updates_are_copies() -> None:
    method = Toy()
    shared, personal = initial_state(method)
    before = {name: tensor.clone() for name, tensor in (shared | personal).items()}
    update = run(method)
    sent = {name: tensor.clone() for name, tensor in (update.shared | update.personal).items()}
    with torch.no_grad():
        for tensor in method.state_dict().values():
            tensor.fill_(9)
    assert_equal(update.shared | update.personal, sent)
    assert_equal(shared | personal, before)
    assert not any(tensor.requires_grad for tensor in sent.values())
    assert all(parameter.grad is None for parameter in method.parameters())


def test_every_address_draws_its_own_order() -> None:
    first = run().shared["bias"]
    assert torch.equal(first, run().shared["bias"])
    assert not torch.equal(first, run(seed=4).shared["bias"])
    other_round = run(round_number=2, schedule="constant").shared["bias"]
    assert not torch.equal(run(schedule="constant").shared["bias"], other_round)


def test_adamw_takes_its_own_step() -> None:
    update = run(optimizer="adamw", batch_size=5, local_epochs=1, weight_decay=0.0)
    moved = (update.shared["matrix"] - Toy().matrix).abs()
    assert torch.allclose(moved, torch.full_like(moved, 0.1), rtol=1e-3)  # Adam's first step is lr, whatever the slope


def test_a_method_without_parameters_trains_nothing() -> None:
    class Frozen(Toy):
        def trainable(self) -> tuple[str, ...]:
            return ()

    update = run(Frozen())
    assert update.shared == {} and update.bytes == 0
    assert torch.equal(update.personal["own"], torch.zeros(6))


def test_an_exploding_loss_names_client_round_and_method() -> None:
    with pytest.raises(UserError, match=r"loss of Toy became (nan|inf) at client 4 \(site 4\) in round 2; lower the"):
        run(lr=1e38, round_number=2)


def test_a_loss_that_no_site_could_send_counts_as_not_finite() -> None:
    class Steep(Toy):
        def loss(self, *objects: object, **options: object) -> torch.Tensor:
            return super().loss(*objects, **options) * 1e13

    with pytest.raises(NotFiniteError, match=r"loss of Steep became \d"):
        run(Steep())


def test_a_client_without_pictures_is_named() -> None:
    shared, personal = initial_state(Toy())
    with pytest.raises(UserError, match=r"Client 9 \(site 9\) has no training images"):
        train_client(
            Toy(),
            fake_clip(),
            toy_client(9, examples=0),
            shared=shared,
            personal=personal,
            round_number=1,
            settings=SETTINGS,
        )
