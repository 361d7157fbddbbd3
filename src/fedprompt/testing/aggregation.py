"""Conformance tests of aggregation rules and server optimisers: order, weights, memory, missing tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from safetensors.torch import load, save
from torch import Tensor

from fedprompt.config.registry import AGGREGATION_RULES, SERVER_OPTIMIZERS
from fedprompt.errors import UserError
from fedprompt.federated.server_optimizers import ServerOptimizer
from fedprompt.seeding import stream
from fedprompt.testing.properties import (
    assert_options_are_keywords,
    assert_refuses_impossible_options,
    builder_of,
    check,
    differing,
    largest_difference,
    untouched_generators,
)
from fedprompt.updates import AggregationRule, State, Update

CASES = 10  # random rounds that a property is tried with
CLIENTS = 9
CLOSE = 1e-5
OFFSET = 2.0  # by which the shared state is moved


def check_aggregation_rule(
    rule: str | Callable[..., AggregationRule], options: Mapping[str, object] | None = None
) -> None:
    """Check that an aggregation rule has the properties that servers and checkpoints rely on.

    `rule` is a function of options that returns the rule, or a name as in a recipe's [train.server.aggregate];
    `options` are those it is tested with. Raises AssertionError with a sentence about the first property that does not
    hold.
    """
    check(AggregationRuleTests, rule=rule, options=options or {})


def check_server_optimizer(
    optimizer: str | Callable[..., ServerOptimizer], options: Mapping[str, object] | None = None
) -> None:
    """Check a server optimiser, as `check_aggregation_rule` checks a rule."""
    check(ServerOptimizerTests, optimizer=optimizer, options=options or {})


@dataclass(frozen=True)
class Case:
    """One round's updates: changes [n, 4] of a tensor `a` [3] and a tensor `b` [], and numbers of examples."""

    changes: Tensor
    counts: tuple[int, ...]

    @property
    def weights(self) -> list[float]:
        """Weights in proportion to the numbers of examples; they sum to one."""
        return [count / sum(self.counts) for count in self.counts]

    def updates(self, shared: State) -> list[Update]:
        """The updates of clients 0, 1, ... that received this shared state."""
        return [
            Update(client, count, {"a": shared["a"] + row[:3], "b": shared["b"] + row[3]}, {}, 0.0, 0.0)
            for client, (row, count) in enumerate(zip(self.changes, self.counts, strict=True))
        ]

    def reordered(self, order: Sequence[int]) -> Case:
        """The same round with other client ids."""
        return Case(self.changes[list(order)], tuple(self.counts[place] for place in order))


def _cases(clients: int = CLIENTS) -> Iterator[Case]:
    for number in range(CASES):
        generator = stream(0, "aggregation", number)
        counts = torch.randint(1, 20, (clients,), generator=generator).tolist()
        changes = torch.randn(clients, 4, generator=generator)
        # Numbers on a grid too, of which some are equal.
        yield Case((4 * changes).round() / 4 if number % 2 else changes, tuple(counts))


def _shared(value: float = 0.0) -> State:
    return {"a": torch.full((3,), value), "b": torch.tensor(value)}


def _changed(new: State, shared: State) -> Tensor:
    """[4] the change of both tensors, float64."""
    return torch.cat([(new[name].double() - shared[name].double()).flatten() for name in ("a", "b")])


class AggregationRuleTests:
    """The conformance tests, one per property: derive a class `Test...` from it, set `rule`, and run pytest.

    Two properties may be given up if the rule's docstring says so: a rule that ignores client weights is "unweighted",
    and one whose result depends on the shared state besides the changes is "not translation equivariant".

    rule: a function `(*, options) -> AggregationRule`, or a name as in a recipe's [train.server.aggregate].
    options: what it is tested with besides its defaults.
    """

    rule: ClassVar[str | Callable[..., AggregationRule]]
    options: ClassVar[Mapping[str, object]] = {}

    def test_options_are_keywords_with_defaults(self) -> None:
        """The signature is `(*, options with types and defaults)`."""
        assert_options_are_keywords(self._builder, positional=(), defaults=True)

    def test_impossible_options_are_refused(self) -> None:
        """A negative number, or one that is none, raises a `UserError` that names the option."""
        assert_refuses_impossible_options(self._builder, self._build)

    def test_the_order_of_clients_does_not_matter(self) -> None:
        """The same updates under other client ids give the same result."""
        for number, case in enumerate(_cases()):
            order = torch.randperm(CLIENTS, generator=stream(0, "order", number)).tolist()
            off = float((self._apply(case.reordered(order)) - self._apply(case)).abs().max())
            assert off <= CLOSE, f"{self._name} gives a result that differs by {off:.2g} when clients change places."

    def test_only_changes_count(self) -> None:
        """The same changes of another shared state give the same change: translation equivariance."""
        worst = max(float((self._apply(case, at=OFFSET) - self._apply(case)).abs().max()) for case in _cases())
        assert worst <= 10 * CLOSE or "not translation equivariant" in self._docstring, (
            f"The change by {self._name} differs by {worst:.2g} when the shared state and all updates are moved by "
            f'{OFFSET}; aggregate the changes, or write "not translation equivariant" and why in the docstring.'
        )

    def test_equal_updates_are_returned(self) -> None:
        """If all clients send the same, that is the result; if nobody changed anything, nothing changes."""
        for change in (torch.zeros(4), torch.tensor([0.5, -1.0, 2.0, 0.25])):
            case = Case(change.repeat(CLIENTS, 1), (5,) * CLIENTS)
            off = float((self._apply(case) - change).abs().max())
            assert off <= CLOSE, f"{self._name} changes {CLIENTS} equal updates ({change.tolist()}) by {off:.2g}."

    def test_a_missing_tensor_is_unchanged(self) -> None:
        """A client that does not send a tensor, because it did not train it, counts as having left it as it is."""
        shared = _shared(1.0)
        for case in _cases():
            updates = case.updates(shared)
            without = [_without(update, "b") if update.client % 2 else update for update in updates]
            filled = [_with(update, "b", shared["b"]) if update.client % 2 else update for update in updates]
            rule = self._build()
            ours, theirs = rule(shared, without, case.weights, {})[0], rule(shared, filled, case.weights, {})[0]
            off = largest_difference(ours, theirs)
            assert off <= CLOSE, (
                f"{self._name} gives another result (by {off:.2g}) if clients leave a tensor out than if they send it "
                "unchanged; a tensor that an update lacks is a change of zero."
            )

    def test_weights_count(self) -> None:
        """A client with most of the weight pulls the result to its update."""
        moved = 0.0
        for case in _cases():
            heavy = Case(case.changes, (1000, *case.counts[1:]))
            moved = max(moved, float((self._apply(heavy) - self._apply(case)).abs().max()))
        assert moved > CLOSE or "unweighted" in self._docstring, (
            f'{self._name} ignores the weights of clients; write "unweighted" in its docstring, or use them.'
        )

    def test_results_are_finite(self) -> None:
        """Also for updates of very different lengths; a single update is aggregated or refused by a `UserError`."""
        for case in _cases():
            for size in (1e-30, 1e4, 1e30):
                changes = case.changes.clone()
                changes[:2] *= size
                found = self._apply(Case(changes, case.counts))
                assert found.isfinite().all(), (
                    f"{self._name} gives {found.tolist()} if two updates are {size:g} times longer."
                )
        for case in _cases(1):
            try:
                found = self._apply(case)
            except UserError:
                continue
            assert found.isfinite().all(), f"{self._name} gives {found.tolist()} for a single update."

    def test_the_memory_survives_a_checkpoint(self) -> None:
        """A server that stops and goes on from files, with a rule built anew, gives the same bits."""
        first, second = list(_cases())[:2]
        shared, rule = _shared(1.0), self._build()
        middle, memory = rule(shared, first.updates(shared), first.weights, {})
        straight = rule(middle, second.updates(middle), second.weights, memory)
        read, kept = load(save(middle)), load(save(memory))
        resumed = self._build()(read, second.updates(read), second.weights, kept)
        for ours, theirs, what in zip(resumed, straight, ("result", "memory"), strict=True):
            wrong = differing(ours, theirs)
            assert not wrong, (
                f"After a checkpoint {self._name} gives another {what}, in {wrong}; keep all that it remembers in the "
                "memory that it returns, as tensors."
            )

    def test_the_result_has_the_form_of_the_shared_state(self) -> None:
        """The same names, shapes and types; neither the shared state, the updates nor the memory are written to."""
        case, shared = next(_cases()), _shared(1.0)
        updates = case.updates(shared)
        before = {**_shared(1.0), **_sent(case.updates(shared))}
        with untouched_generators(self._name):
            new, memory = self._build()(shared, updates, case.weights, {})
        kept = {name: tensor.clone() for name, tensor in memory.items()}
        self._build()(new, case.updates(new), case.weights, memory)
        wrong = differing(before, {**shared, **_sent(updates)}) + differing(kept, memory)
        assert not wrong, f"{self._name} writes into {wrong}, which belong to the caller; return new tensors."
        _assert_same_form(new, shared, self._name)

    @property
    def _builder(self) -> Callable[..., AggregationRule]:
        return builder_of(self, "rule", AGGREGATION_RULES)

    @property
    def _name(self) -> str:
        return self._builder.__name__

    @property
    def _docstring(self) -> str:
        return " ".join((inspect.getdoc(self._builder) or "").lower().split())

    def _build(self, options: Mapping[str, object] | None = None) -> AggregationRule:
        return self._builder(**{**self.options, **(options or {})})

    def _apply(self, case: Case, *, at: float = 0.0) -> Tensor:
        """[4] the change that a fresh rule makes of the updates of one round."""
        shared = _shared(at)
        return _changed(self._build()(shared, case.updates(shared), case.weights, {})[0], shared)


class ServerOptimizerTests:
    """The conformance tests, one per property: derive a class `Test...` from it, set `optimizer`, and run pytest.

    optimizer: a function `(*, options) -> ServerOptimizer`, or a name as in a recipe's [train.server.optimizer].
    options: what it is tested with besides its defaults.
    """

    optimizer: ClassVar[str | Callable[..., ServerOptimizer]]
    options: ClassVar[Mapping[str, object]] = {}

    def test_options_are_keywords_with_defaults(self) -> None:
        """The signature is `(*, options with types and defaults)`."""
        assert_options_are_keywords(self._builder, positional=(), defaults=True)

    def test_impossible_options_are_refused(self) -> None:
        """A negative number, or one that is none, raises a `UserError` that names the option."""
        assert_refuses_impossible_options(self._builder, self._build)

    def test_no_change_is_no_step(self) -> None:
        """If the aggregation rule returns the shared state, the first step leaves it as it is."""
        shared = _shared(1.0)
        off = float(_changed(self._build()(shared, _shared(1.0), {})[0], shared).abs().max())
        assert off <= CLOSE, f"{self._name} takes a step of {off:.2g} although the rule changed nothing."

    def test_the_first_step_goes_the_way_of_the_change(self) -> None:
        """In every coordinate the first step is finite and has the sign of the change."""
        for case in _cases(1):
            shared = _shared(1.0)
            target = case.updates(shared)[0].shared
            found = _changed(self._build()(shared, target, {})[0], shared)
            against = int((found * _changed(target, shared) < 0).sum())
            assert found.isfinite().all() and not against, (
                f"The first step of {self._name} goes against the change in {against} of 4 coordinates."
            )

    def test_the_memory_survives_a_checkpoint(self) -> None:
        """A server that stops and goes on from files, with an optimiser built anew, gives the same bits."""
        shared, (first, second, *_) = _shared(1.0), _cases(1)
        optimizer = self._build()
        middle, memory = optimizer(shared, first.updates(shared)[0].shared, {})
        target = second.updates(middle)[0].shared
        straight = optimizer(middle, target, memory)
        resumed = self._build()(load(save(middle)), target, load(save(memory)))
        for ours, theirs, what in zip(resumed, straight, ("state", "memory"), strict=True):
            wrong = differing(ours, theirs)
            assert not wrong, (
                f"After a checkpoint {self._name} gives another {what}, in {wrong}; keep all that it remembers in the "
                "memory that it returns, as tensors."
            )

    def test_the_result_has_the_form_of_the_shared_state(self) -> None:
        """The same names, shapes and types; the shared state and the rule's result are not written to."""
        shared, target = _shared(1.0), _shared(2.0)
        with untouched_generators(self._name):
            new, _ = self._build()(shared, target, {})
        wrong = differing(shared, _shared(1.0)) + differing(target, _shared(2.0))
        assert not wrong, f"{self._name} writes into {wrong}, which belong to the caller; return new tensors."
        _assert_same_form(new, shared, self._name)

    @property
    def _builder(self) -> Callable[..., ServerOptimizer]:
        return builder_of(self, "optimizer", SERVER_OPTIMIZERS)

    @property
    def _name(self) -> str:
        return self._builder.__name__

    def _build(self, options: Mapping[str, object] | None = None) -> ServerOptimizer:
        return self._builder(**{**self.options, **(options or {})})


def _assert_same_form(new: State, shared: State, name: str) -> None:
    def form(state: State) -> Mapping[str, Any]:
        return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in sorted(state.items())}

    assert form(new) == form(shared), f"{name} returns tensors {form(new)}, not {form(shared)}."


def _sent(updates: Sequence[Update]) -> State:
    return {f"{name} of client {one.client}": tensor for one in updates for name, tensor in one.shared.items()}


def _without(update: Update, name: str) -> Update:
    rest = {key: tensor for key, tensor in update.shared.items() if key != name}
    return Update(update.client, update.num_examples, rest, {}, 0.0, 0.0)


def _with(update: Update, name: str, tensor: Tensor) -> Update:
    return Update(update.client, update.num_examples, {**update.shared, name: tensor}, {}, 0.0, 0.0)
