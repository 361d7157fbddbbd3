"""Conformance tests of attacks: reproducible, effective, and harmless to honest clients' data and updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch

from fedprompt.config.registry import ATTACKS
from fedprompt.data.dataset import Examples
from fedprompt.federated.attacks import Adversaries, Attack
from fedprompt.seeding import stream
from fedprompt.testing.federation import examples
from fedprompt.testing.properties import (
    assert_options_are_keywords,
    builder_of,
    check,
    differing,
    untouched_generators,
)
from fedprompt.updates import State, Update

CLIENTS = range(5)
MALICIOUS = frozenset({1, 4})


def check_attack(attack: str | Callable[..., Attack], options: Mapping[str, object] | None = None) -> None:
    """Check that an attack has the properties that simulations rely on.

    `attack` is a function of options that returns an `Attack`, or a name as in a recipe's [train.server.attack];
    `options` are those it is tested with. Raises AssertionError with a sentence about the first property that does not
    hold.
    """
    check(AttackTests, attack=attack, options=options or {})


class AttackTests:
    """The conformance tests, one per property: derive a class `Test...` from it, set `attack`, and run pytest.

    attack: a function `(*, options) -> Attack`, or a name as in a recipe's [train.server.attack].
    options: what it is tested with besides its defaults.
    """

    attack: ClassVar[str | Callable[..., Attack]]
    options: ClassVar[Mapping[str, object]] = {}

    def test_options_are_keywords_with_defaults(self) -> None:
        """The signature is `(*, options with types and defaults)`."""
        assert_options_are_keywords(self._builder, positional=(), defaults=True)

    def test_the_seed_alone_decides(self) -> None:
        """Two simulations with one seed see the same updates; no global generator is used."""
        with untouched_generators(self._name):
            first, again = self._sent(), self._sent()
        wrong = [a.client for a, b in zip(first, again, strict=True) if _differ(a, b)]
        assert not wrong, f"{self._name} sends other updates of clients {wrong} when repeated; use the generator."

    def test_honest_clients_are_left_alone(self) -> None:
        """Their examples and updates are what they were, and nothing is written into anybody's."""
        before, sent = _honest(), self._sent()
        wrong = [a.client for a, b in zip(before, sent, strict=True) if a.client not in MALICIOUS and _differ(a, b)]
        assert not wrong, f"{self._name} changes the updates of the honest clients {wrong}."
        assert [update.client for update in sent] == list(CLIENTS), f"{self._name} changes who sends an update."
        data = examples(range(6), (0, 1, 2, 3))
        kept = data.targets.clone()
        assert self._adversaries.poison_data(0, data) is data, f"{self._name} changes the data of an honest client."
        self._adversaries.poison_data(min(MALICIOUS), data)
        assert torch.equal(data.targets, kept), f"{self._name} writes into the labels that it is given; copy them."

    def test_malicious_clients_do_something_else(self) -> None:
        """Each malicious client's training data, or its update, differs from the honest one."""
        same = [a.client for a, b in zip(_honest(), self._sent(), strict=True) if not _differ(a, b)]
        idle = [client for client in sorted(MALICIOUS) if client in same and not self._poisons_data(client)]
        assert not idle, f"{self._name} leaves the data and the updates of the malicious clients {idle} as they are."

    def test_poisoned_labels_are_labels(self) -> None:
        """Poisoned examples have the same images, and targets of the same form and range."""
        for data in (examples(range(6), (0, 1, 2, 3)), examples(range(6), (0, 1, 2, 3), kind="multi")):
            found = self._adversaries.poison_data(min(MALICIOUS), data)
            low, high = (-1, 1) if data.space.kind == "multi" else (0, len(data.space) - 1)
            assert found.targets.shape == data.targets.shape and len(found) == len(data), (
                f"{self._name} makes targets {list(found.targets.shape)} of {list(data.targets.shape)}."
            )
            assert low <= int(found.targets.min()) and int(found.targets.max()) <= high, (
                f"{self._name} makes targets from {int(found.targets.min())} to {int(found.targets.max())}; labels go "
                f"from {low} to {high} here."
            )

    @property
    def _builder(self) -> Callable[..., Attack]:
        return builder_of(self, "attack", ATTACKS)

    @property
    def _name(self) -> str:
        return self._builder.__name__

    @property
    def _adversaries(self) -> Adversaries:
        return Adversaries(self._builder(**self.options), MALICIOUS, seed=3)

    def _sent(self) -> list[Update]:
        return self._adversaries.poison_updates(1, _shared(), _honest())

    def _poisons_data(self, client: int) -> bool:
        data: Examples = examples(range(6), (0, 1, 2, 3))
        return not torch.equal(self._adversaries.poison_data(client, data).targets, data.targets)


def _shared() -> State:
    return {"a": torch.full((3,), 1.0), "b": torch.tensor(2.0)}


def _honest() -> list[Update]:
    """Updates whose changes differ from client to client."""
    changed = torch.randn(len(CLIENTS), 4, generator=stream(0, "honest"))
    shared = _shared()
    return [
        Update(client, 5, {"a": shared["a"] + row[:3], "b": shared["b"] + row[3]}, {}, 0.0, 0.0)
        for client, row in zip(CLIENTS, changed, strict=True)
    ]


def _differ(ours: Update, theirs: Update) -> bool:
    return ours.num_examples != theirs.num_examples or bool(differing(_bits(ours.shared), _bits(theirs.shared)))


def _bits(state: State) -> State:
    """The bytes of each tensor: a NaN is unlike itself."""
    return {name: tensor.contiguous().flatten().view(torch.uint8) for name, tensor in state.items()}
