"""The battery every method passes by existing; it finds methods and their options by itself and names none."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from safetensors.torch import load as parse
from safetensors.torch import save
from torch import Tensor, nn

from conftest import Pictures
from fedprompt import methods
from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.model import Clip, Encoded
from fedprompt.clip.prompts import Prompts
from fedprompt.data.dataset import Examples
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.federated.client import Client, TrainSettings
from fedprompt.federated.evaluate import predict
from fedprompt.federated.rounds import Round, Start, federate, initial_state
from fedprompt.methods.base import Method
from fedprompt.ops.losses import objective
from fedprompt.runtimes.simulator import Simulator
from fedprompt.seeding import stream
from fedprompt.updates import State, Update

SPACE = LabelSpace(
    ("dog", "cat", "car", "tree"),
    attributes={"dog": ("four legs", "round"), "cat": ("four legs",), "car": ("a photo", "is round")},
    synonyms={"dog": ("horse",)},
)
SETTINGS = TrainSettings(rounds=3, local_epochs=2, batch_size=3, lr=0.01, seed=5)
# What an option is tried at besides its default: the first values that its type allows and its default is not.
VALUES: dict[Any, tuple[Any, ...]] = {
    bool: (False, True),
    int: (2, 1, 0),
    float: (1e3, 0.5, 0.0),
    str: ("", "the"),
    tuple[str, ...]: (("dog", "cat"), ()),
}


def others(kind: type[Method], option: str) -> tuple[Any, ...]:
    """Values of an option that differ from its default."""
    annotation = get_type_hints(kind.__init__)[option]
    default = methods.class_options(kind, SPACE.names).get(option, methods.options(kind)[option].default)
    values = get_args(annotation) if get_origin(annotation) is Literal else VALUES[annotation]
    return tuple(value for value in values if value != default)


NAMES = tuple(name for name in methods.names() if not methods.missing(methods.load(name)))
OPTIONS = [(name, option) for name in NAMES for option in methods.options(methods.load(name))]
each_method = pytest.mark.parametrize("name", NAMES)
each_kind = pytest.mark.parametrize("kind", ["single", "multi"])


def build(name: str, clip: Clip, *, seed: int = SETTINGS.seed, **options: object) -> Method:
    kind = methods.load(name)
    return kind(clip, **methods.class_options(kind, SPACE.names) | options, generator=stream(seed, "method"))


def examples(rows: Sequence[int], classes: Sequence[int], *, kind: str = "single") -> Examples:
    """Rows whose class is their number modulo the candidates; for many labels the next class too, and one unknown."""
    space = replace(SPACE, kind=kind).take(classes)
    targets = torch.tensor([row % len(classes) for row in rows])
    if kind == "multi":
        targets = nn.functional.one_hot(targets, len(classes)) | nn.functional.one_hot(targets // 2, len(classes))
        targets[0, -1] = -1
    return Examples(Images(Pictures(), tuple(rows)), targets, space)


def clients() -> tuple[Client, ...]:
    """Three sites that hold different numbers of pictures of different classes."""
    return (
        Client(0, "zero", examples((0, 1, 2, 3, 4), (0, 1, 2))),
        Client(1, "one", examples((5, 6, 7), (2, 3))),
        Client(2, "two", examples((8, 9, 10, 11), (0, 1, 2, 3))),
    )


def rounds_of(method: Method, simulator: Simulator, *, start: Start | None = None, rounds: int = 2) -> list[Round]:
    return list(federate(method, simulator, clients=(0, 1, 2), rounds=rounds, seed=SETTINGS.seed, start=start))


def outcome(name: str, clip: Clip, **options: object) -> State:
    """All that two rounds leave behind: the shared tensors and every client's personal ones."""
    method = build(name, clip, **options)
    simulator = Simulator(method, clip, clients(), SETTINGS)
    return flat(rounds_of(method, simulator)[-1].shared, simulator.personal)


def untrained(name: str, clip: Clip, **options: object) -> Tensor:
    """What a method answers as it is built."""
    return predict(build(name, clip, **options), clip, Images(Pictures(), (0, 1)), SPACE)


@functools.cache
def default_outcome(name: str, clip: Clip) -> State:
    """`outcome` of the default options, which many tests compare with."""
    return outcome(name, clip)


def flat(shared: State, personal: Mapping[int, State]) -> State:
    own = {f"{client}/{key}": tensor for client, state in personal.items() for key, tensor in state.items()}
    return {**shared, **own}


def same(ours: State, theirs: State) -> bool:
    """Equal to the bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal up to 1e-5 in the cosines, of which logits are `scale` (20 here) or 100 times the difference."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)


@each_method
def test_the_memory_may_forget(name: str, tiny_parts: tuple[Any, ...], forgetful_cache: FeatureCache) -> None:
    remembering, forgetful, without = (
        outcome(name, Clip(*tiny_parts, cache=cache))
        for cache in (FeatureCache(), forgetful_cache, FeatureCache(memory_bytes=0))
    )
    assert same(remembering, forgetful) and same(remembering, without)


class FreshMethods(Simulator):
    """Builds a new method object for every client, as messages to other processes do."""

    name: str

    def train(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Update]:
        updates = []
        for client in clients:
            self.method = build(self.name, self.clip)
            updates += super().train(round_number, shared, [client])
        return updates


@each_method
def test_one_object_may_serve_all_clients(name: str, tiny_clip: Clip) -> None:
    method = build(name, tiny_clip)
    simulator = FreshMethods(method, tiny_clip, clients(), SETTINGS)
    simulator.name = name
    fresh = flat(rounds_of(method, simulator)[-1].shared, simulator.personal)
    assert same(fresh, default_outcome(name, tiny_clip))


@each_method
def test_going_on_is_never_having_stopped(name: str, tiny_clip: Clip) -> None:
    method = build(name, tiny_clip)
    straight = Simulator(method, tiny_clip, clients(), SETTINGS)
    last = rounds_of(method, straight, rounds=3)[-1]
    method = build(name, tiny_clip)
    before = Simulator(method, tiny_clip, clients(), SETTINGS)
    stopped = rounds_of(method, before, rounds=1)[-1]
    saved = {key: parse(save(state)) for key, state in {"shared": stopped.shared, **before.personal}.items()}
    start = Start(stopped.number, saved.pop("shared"))
    after = Simulator(build(name, tiny_clip), tiny_clip, clients(), SETTINGS, personal=saved)
    resumed = rounds_of(build(name, tiny_clip), after, start=start, rounds=3)[-1]
    assert same(flat(resumed.shared, after.personal), flat(last.shared, straight.personal))


@each_method
def test_the_backbone_stays_as_it_is(name: str, tiny_clip: Clip) -> None:
    before = {key: tensor.clone() for key, tensor in tiny_clip.state_dict().items()}
    method = build(name, tiny_clip)
    rounds_of(method, Simulator(method, tiny_clip, clients(), SETTINGS))
    assert same(before, dict(tiny_clip.state_dict()))
    assert all(weight.grad is None and not weight.requires_grad for weight in tiny_clip.parameters())
    theirs = {tensor.untyped_storage().data_ptr() for tensor in tiny_clip.state_dict().values()}
    assert not any(tensor.untyped_storage().data_ptr() in theirs for tensor in method.state_dict().values())
    assert not any(isinstance(part, Clip) for part in (*method.modules(), *vars(method).values()))


@each_method
def test_draws_come_from_addressed_streams(name: str, tiny_clip: Clip) -> None:
    before = torch.get_rng_state()
    outcome(name, tiny_clip)
    assert torch.equal(before, torch.get_rng_state())


@each_method
@each_kind
def test_permuting_classes_permutes_logits(name: str, kind: str, tiny_clip: Clip) -> None:
    method, order = trained(name, tiny_clip, kind=kind), (2, 0, 3, 1)
    images, space = Images(Pictures(), (0, 4, 6)), replace(SPACE, kind=kind)
    logits = predict(method, tiny_clip, images, space)
    assert logits.shape == (3, 4) and logits.std(dim=1).min() > 0.01
    close(predict(method, tiny_clip, images, space.take(order)), logits[:, order])


@each_method
@each_kind
def test_the_rest_of_the_batch_does_not_matter(name: str, kind: str, tiny_clip: Clip) -> None:
    method, space, rows = trained(name, tiny_clip, kind=kind), replace(SPACE, kind=kind), (11, 6, 0, 4, 9)
    together = predict(method, tiny_clip, Images(Pictures(), rows), space)
    alone = torch.cat([predict(method, tiny_clip, Images(Pictures(), (row,)), space) for row in rows])
    close(alone, together)
    assert not torch.allclose(together[0], together[1], atol=0.01)


@each_method
def test_other_classes_are_scored_or_refused(name: str, tiny_clip: Clip) -> None:
    method = trained(name, tiny_clip)
    foreign = LabelSpace(("horse", "a_round_tree", "the"), template="{}", conditions=("is", "has"))
    try:
        logits = predict(method, tiny_clip, Images(Pictures(), (0, 4)), foreign)
    except UserError as refusal:
        assert len(str(refusal).split()) > 5
    else:
        assert logits.shape == (2, 3) and logits.isfinite().all()


def trained(name: str, clip: Clip, *, kind: str = "single", steps: int = 12) -> Method:
    """A method after some steps on all pictures."""
    method, data = build(name, clip), examples(range(12), (0, 1, 2, 3), kind=kind)
    step(method, clip, data, steps)
    return method


def step(method: Method, clip: Clip, data: Examples, steps: int, *, lr: float = 0.003) -> dict[str, int]:
    """Train what the method wants trained, and count for each tensor the steps in which its gradient was not zero."""
    names = method.trainable()
    parameters = dict(method.named_parameters())
    for key, parameter in parameters.items():
        parameter.requires_grad_(key in names)
    reached = dict.fromkeys(names, 0)
    optimizer = torch.optim.AdamW([parameters[key] for key in names], lr=lr) if names else None
    for _ in range(steps if optimizer else 0):
        optimizer.zero_grad()
        method.loss(clip, data.images, data.targets, data.space, stream=stream(0)).backward()
        for key, parameter in parameters.items():
            if key in names:
                reached[key] += int(parameter.grad is not None and bool(parameter.grad.any()))
            else:
                assert parameter.grad is None
        optimizer.step()
    return reached


@each_method
@each_kind
def test_gradients_reach_every_tensor_and_the_loss_falls(name: str, kind: str, tiny_clip: Clip) -> None:
    """At some usual learning rate, at some time: random towers have plateaus that real ones have not."""
    data = examples(range(12), (0, 1, 2, 3), kind=kind)

    def cost(method: Method) -> float:
        return objective(kind)(predict(method, tiny_clip, data.images, data.space), data.targets).item()

    costs = []
    for lr in (0.01, 0.003):
        method = build(name, tiny_clip)
        costs.append(cost(method))
        for _ in range(6):
            reached = step(method, tiny_clip, data, 6, lr=lr)
            assert all(count > 2 for count in reached.values()), reached
            costs.append(cost(method))
            if costs[-1] < 0.9 * costs[0]:
                return
    assert not reached and len(set(costs)) == 1, costs


@each_method
def test_personal_tensors_never_leave(name: str, tiny_clip: Clip) -> None:
    method = build(name, tiny_clip)
    shared, personal = initial_state(method)
    finished = rounds_of(method, Simulator(method, tiny_clip, clients(), SETTINGS))
    for update in (update for one in finished for update in one.updates):
        assert not any(key.startswith(method.personal) for key in update.shared)
        assert update.shared.keys() <= shared.keys() and update.personal.keys() == personal.keys()
        assert bool(update.shared) == bool(shared)


@each_method
def test_the_state_travels_through_safetensors(name: str, tiny_clip: Clip) -> None:
    method, images = trained(name, tiny_clip), Images(Pictures(), (0, 1))
    copy = build(name, tiny_clip, seed=99)
    copy.load_state_dict(parse(save({key: tensor.contiguous() for key, tensor in method.state_dict().items()})))
    assert torch.equal(predict(copy, tiny_clip, images, SPACE), predict(method, tiny_clip, images, SPACE))


@each_method
def test_frozen_texts_are_encoded_once(name: str, tiny_parts: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Clip(*tiny_parts, batch=4)
    calls: list[tuple[Tensor, bool]] = []
    encode = clip.encode_text

    def counted(prompts: Prompts, **edits: Any) -> Tensor:
        features = encode(prompts, **edits)
        calls.append((prompts.embeddings.detach(), features.requires_grad))
        return features

    monkeypatch.setattr(clip, "encode_text", counted)
    method, data = build(name, clip), examples(range(4), (0, 1, 2, 3))
    step(method, clip, data, 1)
    calls.clear()
    step(method, clip, data, 2)
    assert all(live for _, live in calls), "a frozen text was encoded again"
    classify = method.classifier(clip, data.space)
    calls.clear()
    classify(data.images.take((0, 1)))
    known = [prompts for prompts, _ in calls]
    classify(data.images.take((2, 3)))
    again = [prompts for prompts, _ in calls[len(known) :]]
    assert not any(torch.equal(old, new) for old in known for new in again), "a text was encoded again for images"


@each_method
@each_kind
def test_frozen_pictures_are_encoded_once(
    name: str, kind: str, tiny_parts: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second pass over the pictures on, the image tower runs for gradients only."""
    clip, live = Clip(*tiny_parts, batch=4), []
    encode = clip.encode_image

    def watched(tokens: Tensor, **edits: Any) -> Encoded:
        encoded = encode(tokens, **edits)
        live.append(encoded.tokens.requires_grad)
        return encoded

    monkeypatch.setattr(clip, "encode_image", watched)
    method, data = build(name, clip), examples(range(6), (0, 1, 2, 3), kind=kind)
    step(method, clip, data, 1)
    live.clear()
    step(method, clip, data, 1)
    assert all(live), "a frozen picture was encoded again"


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_does_something(name: str, option: str, tiny_clip: Clip) -> None:
    """Other values change what training leaves behind or what is answered, or are refused in a sentence about them."""
    kind, changes, refusals = methods.load(name), 0, ""
    for value in others(kind, option):
        try:
            changed = outcome(name, tiny_clip, **{option: value})
        except UserError as refusal:
            assert option in str(refusal)
            refusals += str(refusal)
        else:
            assert all(tensor.isfinite().all() for tensor in changed.values())
            changes += not same(changed, default_outcome(name, tiny_clip))
            changes += not torch.equal(untrained(name, tiny_clip, **{option: value}), untrained(name, tiny_clip))
    # An option that cannot be changed alone is refused with the name of the one that must go along.
    assert changes or any(other in refusals for other in methods.options(kind) if other != option)


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_options_that_make_no_sense_are_refused(name: str, option: str, tiny_clip: Clip) -> None:
    annotation = get_type_hints(methods.load(name).__init__)[option]
    nonsense = {int: (-1,), float: (-1.0, float("nan"))}
    for value in ("nonsense",) if get_origin(annotation) is Literal else nonsense.get(annotation, ()):
        with pytest.raises(UserError, match=option):
            build(name, tiny_clip, **{option: value})


@each_method
def test_constructors_take_options_by_keyword(name: str) -> None:
    clip, *options = inspect.signature(methods.load(name)).parameters.values()
    assert clip.name == "clip" and options[-1].name == "generator"
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in options)
    assert all(option.default is not inspect.Parameter.empty for option in options)
