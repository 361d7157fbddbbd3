"""Conformance tests of methods: caching, resuming, privacy of personal tensors, order of classes, options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from safetensors.torch import load, save
from torch import Tensor

from fedprompt import methods
from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.model import Clip, Encoded
from fedprompt.clip.prompts import Prompts
from fedprompt.data.labels import Kind, LabelSpace
from fedprompt.errors import UserError
from fedprompt.federated.evaluate import predict
from fedprompt.federated.rounds import Start, initial_state
from fedprompt.methods.base import Method
from fedprompt.ops.losses import objective
from fedprompt.seeding import stream
from fedprompt.testing import federation
from fedprompt.testing.federation import SETTINGS, SPACE, examples
from fedprompt.testing.method_options import MethodOptionTests
from fedprompt.testing.properties import assert_refused, check, differing, untouched_generators
from fedprompt.testing.tiny import ForgetfulCache
from fedprompt.testing.tiny_families import tiny_backbone, tiny_family_parts

ALL = (0, 1, 2, 3)  # all classes
TOLERANCE = 1e-3  # of logits, which are 20 or 100 times a cosine: 1e-5 of the cosines


def check_method(
    method: str | type[Method], options: Mapping[str, object] | None = None, *, family: str = "clip"
) -> None:
    """Check that a method has the properties that runs, caches, checkpoints and deployments rely on.

    `method` is a class, or a name as in a recipe's [method]; `options` are those it is tested with, and `family` is the
    kind of backbone ("clip", "siglip", ...). Raises AssertionError with a sentence about the first property that does
    not hold.
    """
    if not isinstance(method, str):
        methods.require_method(method)
    check(MethodTests, method=method, options=options or {}, family=family)


class MethodTests(MethodOptionTests):
    """The conformance tests, one per property: derive a class `Test...` from it, set `method`, and run pytest.

    method: a class, or a name as in a recipe's [method].
    options: what it is tested with besides its defaults.
    family: the kind of backbone that it is tested on.
    kinds: the kinds of task that it is made for.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("single", "multi")

    def test_the_constructors_generator_alone_decides(self) -> None:
        """Two objects built with equal generators have equal tensors, whatever was drawn in between."""
        wrong = differing(*(dict(self._build().state_dict()) for _ in range(2)))
        assert not wrong, (
            f"Two objects of {self._name} that are built with equal generators differ in {wrong}; draw initial values "
            "from the constructor's `generator`, as in torch.randn(..., generator=generator)."
        )

    def test_forgotten_features_change_no_bit(self) -> None:
        """Training gives the same bits with a feature cache, without one, and with one that forgets at random."""
        caches = {"without a cache": FeatureCache(memory_bytes=0), "with a cache that forgets": ForgetfulCache()}
        remembering = self._trained_state(clip=tiny_backbone(self.family, cache=FeatureCache()))
        for how, cache in caches.items():
            wrong = differing(self._trained_state(clip=tiny_backbone(self.family, cache=cache)), remembering)
            assert not wrong, (
                f"Training of {self._name} {how} of features ends with other bits than with one, in {wrong}; compute "
                "each frozen feature by the functions of Clip."
            )

    def test_a_fresh_object_per_client_gives_the_same_bits(self) -> None:
        """Nothing but the state dict goes from one client to the next."""
        method = self._build()
        transport = federation.FreshMethods(method, self._clip, federation.clients(), SETTINGS)
        transport.options = self.options
        wrong = differing(federation.trained_state(method, transport), self._default_state)
        assert not wrong, (
            f"One object of {self._name} for all clients gives other bits than one per client, in {wrong}; keep what "
            "must survive in parameters and buffers."
        )

    def test_resuming_gives_the_same_bits(self) -> None:
        """Stopping after a round and going on from files gives what three rounds in one go give."""
        straight = federation.simulator(self._build(), self._clip)
        last = federation.last_round(self._build(), straight, 3)
        before = federation.simulator(self._build(), self._clip)
        stopped = federation.last_round(self._build(), before, 1)
        start = Start(stopped.number, load(save(stopped.shared)), load(save(stopped.memory)))
        personal = {client: load(save(state)) for client, state in before.personal.items()}
        after = federation.simulator(self._build(), self._clip, personal=personal)
        resumed = federation.last_round(self._build(), after, 3, start=start)
        wrong = differing(
            federation.flat(resumed.shared, after.personal), federation.flat(last.shared, straight.personal)
        )
        assert not wrong, f"A resumed run of {self._name} ends with other bits than one that never stopped, in {wrong}."

    def test_the_backbone_stays_frozen(self) -> None:
        """Training changes no weight of CLIP, and the method keeps neither CLIP nor views of its weights."""
        clip = self._clip
        before = {key: tensor.clone() for key, tensor in clip.state_dict().items()}
        method = self._build()
        federation.last_round(method, federation.simulator(method, self._clip), 2)
        changed = differing(before, dict(clip.state_dict()))
        assert not changed, f"Training of {self._name} changed the backbone's weights {changed[:3]}."
        live = [name for name, one in clip.named_parameters() if one.grad is not None or one.requires_grad]
        assert not live, f"After training of {self._name} gradients reach the backbone's weights {live[:3]}."
        storages = {tensor.untyped_storage().data_ptr() for tensor in clip.state_dict().values()}
        views = [name for name, one in method.state_dict().items() if one.untyped_storage().data_ptr() in storages]
        assert not views, f"The tensors {views} of {self._name} are views of the backbone's weights; clone them."
        kept = any(isinstance(part, Clip) for part in (*method.modules(), *vars(method).values()))
        assert not kept, f"{self._name} keeps the backbone; use the one that every call is given."

    def test_global_generators_are_untouched(self) -> None:
        """Initial values come from the constructor's generator and all later draws from the loss's stream."""
        with untouched_generators(self._name):
            self._trained_state()

    def test_permuting_classes_permutes_logits(self) -> None:
        """Class names in another order give the same columns in that order."""
        order = (2, 0, 3, 1)
        for kind in self.kinds:
            method, space = self._trained(kind), replace(SPACE, kind=kind)
            logits = self._predict(method, space, 0, 4, 6)
            assert logits.shape == (3, 4), f"3 images and 4 classes have logits {list(logits.shape)}, not [3, 4]."
            assert logits.std(dim=1).min() > 0.01, f"{self._name} gives an image nearly the same logit for each class."
            off = float((self._predict(method, space.take(order), 0, 4, 6) - logits[:, order]).abs().max())
            assert off <= TOLERANCE, f"With {kind} labels, logits change by {off:.2g} when the classes are reordered."

    def test_it_declares_what_it_reads_besides_class_names(self) -> None:
        """Logits depend on template, attributes or conditions only if `reads` names them: a report relies on it."""
        attributes = {name: ("has fur", "the")[: 1 + len(name) % 2] for name in SPACE.names}
        conditions = ("round", "the", "is", "has", "a tree", "four legs", "a dog", "legs")
        for kind in self.kinds:
            method, space = self._trained(kind), replace(SPACE, kind=kind, attributes={}, conditions=())
            logits = self._predict(method, space, 0, 4)
            described = {
                "template": replace(space, template="the {} tree."),
                "attributes": replace(space, attributes=attributes),
                "conditions": replace(space, conditions=conditions),
            }
            for what, other in described.items():
                if what not in self._kind.reads:
                    off = float((self._predict(method, other, 0, 4) - logits).abs().max())
                    assert off <= TOLERANCE, (
                        f"The logits of {self._name} change by {off:.2g} with {what}; add {what!r} to its `reads`."
                    )

    def test_it_reads_the_template_that_it_declares(self) -> None:
        """Its logits or its loss depend on the template if `reads` names it, and on where a context starts."""
        if "template" in self._kind.reads:
            method, data = self._trained(self.kinds[0]), examples(range(4), ALL, kind=self.kinds[0])
            losses = {
                method.loss(self._clip, data.images, data.targets, space, stream=stream(1, "loss")).item()
                for space in (data.space, replace(data.space, template="the {} tree."))
            }
            assert len(losses) == 2, f"{self._name} names the template in `reads`, but its loss does not depend on it."

    def test_a_context_starts_from_a_template(self) -> None:
        """An option `init` takes a template: its words before the class name, and those after it stay."""
        if "init" in methods.options(self._kind):
            one, other = (self._initial_logits({"init": f"the photo of {{}} {word}."}) for word in ("tree", "dog"))
            assert not torch.equal(one, other), f"{self._name} drops the words of a template after the class name."
            said = self._build({"init": "the photo of {} tree."}).text_inputs(SPACE)
            assert "the photo of {} tree." in said, f"{self._name} says that it reads {said}, without its own template."
            assert_refused("init", "template", self._build)

    def test_the_rest_of_the_batch_does_not_matter(self) -> None:
        """An image has the same logits alone and among others, and different images have different ones."""
        rows = (11, 6, 0, 4, 9)
        for kind in self.kinds:
            method, space = self._trained(kind), replace(SPACE, kind=kind)
            together = self._predict(method, space, *rows)
            alone = torch.cat([self._predict(method, space, row) for row in rows])  # [5, C]
            off = float((alone - together).abs().max())
            assert off <= TOLERANCE, f"With {kind} labels, an image's logits change by {off:.2g} with others beside it."
            apart = float((together[0] - together[1]).abs().max())
            assert apart > 0.01, f"Two different images have the same logits up to {apart:.2g}."

    def test_foreign_classes_are_scored_or_refused(self) -> None:
        """Classes that nobody trained on get logits, or a `UserError` of a whole sentence."""
        method = self._trained("single")
        foreign = LabelSpace(("horse", "a_round_tree", "the"), template="{}", conditions=("is", "has"))
        try:
            logits = self._predict(method, foreign, 0, 4)
        except UserError as refusal:
            assert len(str(refusal).split()) > 5, f"New classes are refused without a reason: {refusal}"
        else:
            assert logits.shape == (2, 3), f"2 images and 3 new classes have logits {list(logits.shape)}, not [2, 3]."
            assert logits.isfinite().all(), "Logits of classes that nobody trained on are not all finite."

    def test_gradients_reach_every_tensor_and_the_loss_falls(self) -> None:
        """At a usual learning rate, a gradient is not zero in most steps, and the loss falls by a tenth in 36 steps."""
        for kind in self.kinds:
            costs = self._costs(kind, lr=0.01)
            costs = costs if _falls(costs) else self._costs(kind, lr=0.003)  # random towers have plateaus
            trains = bool(self._build().trainable())
            shown = ", ".join(f"{cost:.3f}" for cost in costs)
            assert _falls(costs) or not trains, f"The loss with {kind} labels does not fall: {shown}."
            assert trains or len(set(costs)) == 1, f"{self._name} trains nothing, but its loss changes: {shown}."

    def test_personal_tensors_never_leave(self) -> None:
        """An update's shared part holds no personal tensor, no unknown one, and something if anything is shared."""
        method = self._build()
        shared, personal = initial_state(method)
        for finished in federation.rounds(method, federation.simulator(method, self._clip), 2):
            for update in finished.updates:
                leaked = [name for name in update.shared if name.startswith(method.personal)]
                assert not leaked, f"The personal tensors {leaked} leave their client."
                unknown = sorted(update.shared.keys() - shared.keys())
                assert not unknown, f"Updates hold {unknown}, which the initial shared state does not."
                assert update.personal.keys() == personal.keys(), (
                    f"A client keeps {sorted(update.personal)} but should keep {sorted(personal)}."
                )
                assert bool(update.shared) == bool(shared), f"A client of {self._name} sends nothing."

    def test_the_state_survives_a_file(self) -> None:
        """A state dict read from safetensors gives another object the same logits, bit for bit."""
        method, copy = self._trained("single"), self._build(seed=99)
        copy.load_state_dict(load(save({key: tensor.contiguous() for key, tensor in method.state_dict().items()})))
        same = torch.equal(self._predict(copy, SPACE, 0, 1), self._predict(method, SPACE, 0, 1))
        assert same, f"{self._name} predicts otherwise after its state was saved and loaded; keep all of it in tensors."

    def test_diagnostics_change_nothing_and_say_how_to_read_them(self) -> None:
        """They leave the state and the loss as they are, differ in their names, and come with sentences."""
        for kind in self.kinds:
            method, data = self._trained(kind), examples(range(6), ALL, kind=kind)
            before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
            with torch.no_grad():
                found = method.diagnostics(self._clip, data.images, data.space)
                again = method.diagnostics(self._clip, data.images, data.space)
            changed = differing(before, dict(method.state_dict()))
            assert not changed, f"The diagnostics of {self._name} change its tensors {changed}."
            names = [one.name for one in found]
            assert len(set(names)) == len(names), f"{self._name} has two diagnostics of the same name among {names}."
            unread = [one.name for one in found if not one.meaning.endswith(".") or " " not in one.meaning]
            assert not unread, f"The diagnostics {unread} of {self._name} come without a sentence on how to read them."
            same = [str(one.value) for one in found] == [str(one.value) for one in again]
            assert same, f"The diagnostics of {self._name} are others the second time; draw nothing at random."

    def test_frozen_texts_are_encoded_once(self) -> None:
        """After the first step the text tower runs for gradients only, and never per batch of images."""
        clip, method, data = CountingClip(self.family), self._build(), examples(range(4), ALL)
        federation.train(method, clip, data, 1)
        clip.texts.clear()
        federation.train(method, clip, data, 2)
        frozen = sum(not live for _, live in clip.texts)
        assert not frozen, f"Two steps encode {frozen} frozen texts again; take them from clip.text_features."
        classify = method.classifier(clip, data.space)
        clip.texts.clear()
        classify(data.images.take((0, 1)))
        first = len(clip.texts)
        classify(data.images.take((2, 3)))
        known, later = clip.texts[:first], clip.texts[first:]
        again = any(torch.equal(old, new) for old, _ in known for new, _ in later)
        assert not again, "A text is encoded anew for each batch of images; encode it when the classifier is built."

    def test_frozen_images_are_encoded_once(self) -> None:
        """From the second pass over the images on, the image tower runs for gradients only."""
        for kind in self.kinds:
            clip, method, data = CountingClip(self.family), self._build(), examples(range(6), ALL, kind=kind)
            federation.train(method, clip, data, 1)
            clip.images.clear()
            federation.train(method, clip, data, 1)
            frozen = sum(not live for live in clip.images)
            assert not frozen, (
                f"With {kind} labels, a step encodes images {frozen} times without gradients that the step before it "
                "encoded; take them from clip.image_features or clip.patch_features."
            )

    def _trained(self, kind: Kind) -> Method:
        method = self._build()
        federation.train(method, self._clip, examples(range(12), ALL, kind=kind), 12)
        return method

    def _costs(self, kind: Kind, *, lr: float) -> list[float]:
        """The loss before training and after every 6 of 36 steps, or until it has fallen."""
        method, data = self._build(), examples(range(12), ALL, kind=kind)
        costs: list[float] = []
        while len(costs) < 7 and not _falls(costs):
            if costs:
                reached = federation.train(method, self._clip, data, 6, lr=lr)
                unreached = [name for name, count in reached.items() if count <= 2]
                assert not unreached, f"In 6 steps with {kind} labels, hardly any gradient reaches {unreached}."
            logits = predict(method, self._clip, data.images, data.space)
            costs.append(objective(kind)(logits, data.targets).item())
        return costs


def _falls(costs: list[float]) -> bool:
    return bool(costs) and costs[-1] < 0.9 * costs[0]


class CountingClip(Clip):
    """A tiny backbone with a cache of its own, which lists what its towers encode."""

    def __init__(self, family: str) -> None:
        super().__init__(*tiny_family_parts(family), batch=4)
        self.texts: list[tuple[Tensor, bool]] = []  # prompts' embeddings, and whether gradients flow
        self.images: list[bool] = []  # whether gradients flow

    def encode_text(self, prompts: Prompts, **edits: Any) -> Tensor:
        """Encode as always, and list the call."""
        features = super().encode_text(prompts, **edits)
        self.texts.append((prompts.embeddings.detach(), features.requires_grad))
        return features

    def encode_image(self, tokens: Tensor, **edits: Any) -> Encoded:
        """Encode as always, and list the call."""
        encoded = super().encode_image(tokens, **edits)
        self.images.append(encoded.tokens.requires_grad)
        return encoded
