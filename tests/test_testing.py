"""Every property of the batteries can fail: subjects that break one, and the sentence that says so."""

from __future__ import annotations

import dataclasses
import inspect
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Dataset
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.data.partition.base import Partition, Shard
from fedprompt.errors import UserError
from fedprompt.methods.base import Method, at_least, class_texts, cosine_classifier
from fedprompt.ops.layers import unit
from fedprompt.seeding import stream
from fedprompt.testing import (
    AggregationRuleTests,
    MethodTests,
    PartitionRuleTests,
    ServerOptimizerTests,
    SourceTests,
    TinyImages,
    check_aggregation_rule,
    check_method,
    check_partition_rule,
    check_source,
    tiny_clip,
    tiny_dataset,
    tiny_images,
)
from fedprompt.updates import weighted_mean

ROOT = Path(__file__).resolve().parent.parent


def property_of(battery: type, name: str, **subject: object) -> None:
    """Check one property of a subject."""
    attributes = {key: staticmethod(one) if inspect.isfunction(one) else one for key, one in subject.items()}
    getattr(type("Tested", (battery,), attributes)(), name)()


class Shift(Method):
    """Right in all respects: a learned shift of the texts' features."""

    reads = ("template", "attributes")

    def __init__(self, clip, *, decay: float = 0.1, generator=None) -> None:
        super().__init__()
        at_least(0, decay=decay)
        self.decay = decay
        self.shift = nn.Parameter(torch.zeros(clip.dim))

    def text(self, clip, space):
        return unit(class_texts(clip, space) + self.shift)

    def classifier(self, clip, space):
        return cosine_classifier(clip, self.text(clip, space), space.kind)

    def loss(self, clip, images, targets, space, *, stream):
        return super().loss(clip, images, targets, space, stream=stream) + self.decay * self.shift.square().sum()


def test_a_right_method_passes() -> None:
    check_method(Shift)
    check_method(Shift, {"decay": 0.5})


class KeepsClip(Shift):
    def __init__(self, clip, *, decay: float = 0.1, generator=None) -> None:
        super().__init__(clip, decay=decay, generator=generator)
        self.__dict__["backbone"] = clip


class DrawsGlobally(Shift):
    def loss(self, clip, images, targets, space, *, stream):
        return super().loss(clip, images, targets, space, stream=stream) * (1 + 0.01 * torch.rand(()))


class CountsInAnAttribute(Shift):
    steps = 0

    def loss(self, clip, images, targets, space, *, stream):
        self.steps += 1
        return super().loss(clip, images, targets, space, stream=stream) * self.steps


class CountsClasses(Shift):
    """One row per position of a class, whatever its name."""

    def text(self, clip, space):
        return super().text(clip, space) * torch.arange(1, len(space) + 1)[:, None]


class ReadsWithoutDeclaring(Shift):
    reads = ("template", "conditions")


class DeclaresWithoutReading(Shift):
    def text(self, clip, space):
        return unit(clip.text_features(space.names) + self.shift)


class AveragesTheBatch(Shift):
    def classifier(self, clip, space):
        inner = super().classifier(clip, space)

        def classify(images):
            logits = inner(images)
            return logits - logits.mean(dim=0, keepdim=True)

        return classify


class RefusesTersely(Shift):
    def text(self, clip, space):
        if "horse" in space.names:
            raise UserError("unknown class")
        return super().text(clip, space)


class HasADeadTensor(Shift):
    def __init__(self, clip, *, decay: float = 0.1, generator=None) -> None:
        super().__init__(clip, decay=decay, generator=generator)
        self.dead = nn.Parameter(torch.ones(3))


class ClimbsTheLoss(Shift):
    def loss(self, clip, images, targets, space, *, stream):
        return -super().loss(clip, images, targets, space, stream=stream)


class HidesState(Shift):
    def __init__(self, clip, *, decay: float = 0.1, generator=None) -> None:
        super().__init__(clip, decay=decay, generator=generator)
        self.noise = torch.randn(clip.dim, generator=generator)

    def text(self, clip, space):
        return super().text(clip, space) + self.noise


class DrawsInItsConstructor(Shift):
    def __init__(self, clip, *, decay: float = 0.1, generator=None) -> None:
        super().__init__(clip, decay=decay, generator=generator)
        self.shift = nn.Parameter(0.01 * torch.randn(clip.dim))


class EncodesFrozenTexts(Shift):
    def text(self, clip, space):
        frozen = clip.encode_text(clip.fill(space.texts())).detach()
        return unit(frozen + self.shift)


class EncodesFrozenImages(Shift):
    def classifier(self, clip, space):
        text = self.text(clip, space)
        return lambda images: clip.scale * unit(clip.encode_image(clip.image_embeddings(images)).image) @ text.T


class IgnoresItsOption(Shift):
    def loss(self, clip, images, targets, space, *, stream):
        return Method.loss(self, clip, images, targets, space, stream=stream)


class AcceptsNonsense(Shift):
    def __init__(self, clip, *, decay: float = 0.1, generator=None) -> None:
        super().__init__(clip, generator=generator)
        self.decay = decay


class TakesOptionsByPosition(Shift):
    def __init__(self, clip, decay: float = 0.1, *, generator=None) -> None:
        super().__init__(clip, decay=decay, generator=generator)


@pytest.mark.parametrize(
    ("method", "name", "sentence"),
    [
        (KeepsClip, "test_the_backbone_stays_frozen", "keeps the backbone|views of the backbone"),
        (DrawsGlobally, "test_global_generators_are_untouched", "global generator of torch"),
        (DrawsGlobally, "test_resuming_gives_the_same_bits", "other bits than one that never stopped"),
        (CountsInAnAttribute, "test_a_fresh_object_per_client_gives_the_same_bits", "other bits than one per client"),
        (CountsClasses, "test_permuting_classes_permutes_logits", "logits change by .* reordered"),
        (
            ReadsWithoutDeclaring,
            "test_it_declares_what_it_reads_besides_class_names",
            "add 'attributes' to its `reads`",
        ),
        (DeclaresWithoutReading, "test_it_reads_the_template_that_it_declares", "its loss does not depend on it"),
        (AveragesTheBatch, "test_the_rest_of_the_batch_does_not_matter", "logits change by .* beside it"),
        (RefusesTersely, "test_foreign_classes_are_scored_or_refused", "without a reason"),
        (HasADeadTensor, "test_gradients_reach_every_tensor_and_the_loss_falls", r"hardly any gradient.*dead"),
        (ClimbsTheLoss, "test_gradients_reach_every_tensor_and_the_loss_falls", "does not fall"),
        (HidesState, "test_the_state_survives_a_file", "predicts otherwise"),
        (EncodesFrozenTexts, "test_frozen_texts_are_encoded_once", "frozen texts again"),
        (EncodesFrozenImages, "test_frozen_images_are_encoded_once", "encodes images .* without gradients"),
        (IgnoresItsOption, "test_every_option_does_something", "decay changes neither"),
        (AcceptsNonsense, "test_impossible_options_are_refused", r"decay = -1\.0 makes no sense"),
        (TakesOptionsByPosition, "test_options_are_keywords_with_defaults", "must be keyword-only"),
    ],
)
def test_a_broken_method_is_explained(method: type[Method], name: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        property_of(MethodTests, name, method=method)


def test_a_constructor_that_draws_from_the_global_generator_is_the_first_thing_said() -> None:
    with pytest.raises(AssertionError, match=r"built with equal generators differ in \['shift'\]; draw initial values"):
        check_method(DrawsInItsConstructor)


def right_rule(dataset: Dataset, *, clients: int = 3, seed: int = 1) -> Partition:
    """Deals every training image out at random."""
    rows = dataset.rows(split="train", domains=dataset.seen_domains)
    if dataset.space.kind == "single":
        rows = rows[torch.isin(dataset.targets[rows], torch.tensor(dataset.base))]
    if not 1 <= clients <= len(rows):
        raise UserError(f"clients = {clients} cannot share {len(rows)} images.")
    order = torch.randperm(len(rows), generator=stream(seed, "deal"))
    parts = rows[order].tensor_split(clients)
    shards = (Shard(f"client-{number}", tuple(part.tolist()), dataset.base) for number, part in enumerate(parts))
    return Partition("right_rule", seed, tuple(shards))


def test_a_right_partition_rule_passes() -> None:
    check_partition_rule(right_rule)
    check_partition_rule(right_rule, {"clients": 5})


def draws_globally(dataset: Dataset, *, seed: int = 1) -> Partition:
    return right_rule(dataset, clients=2, seed=int(torch.randint(1000, ())))


def assigns_everything(dataset: Dataset, *, seed: int = 1) -> Partition:
    return Partition("all", seed, (Shard("client", tuple(range(len(dataset.source))), dataset.base),))


def assigns_twice(dataset: Dataset, *, seed: int = 1) -> Partition:
    shard = right_rule(dataset, clients=1).shards[0]
    return Partition("twice", seed, (shard, dataclasses.replace(shard, name="other")))


def leaves_one_empty(dataset: Dataset, *, seed: int = 1) -> Partition:
    return Partition("empty", seed, (*right_rule(dataset, clients=1).shards, Shard("poor", (), dataset.base)))


def forgets_its_seed(dataset: Dataset, *, seed: int = 1) -> Partition:
    return dataclasses.replace(right_rule(dataset, seed=seed), seed=0)


def keeps_lists(dataset: Dataset, *, seed: int = 1) -> Partition:
    shards = right_rule(dataset, seed=seed).shards
    return Partition("lists", seed, tuple(dataclasses.replace(shard, rows=list(shard.rows)) for shard in shards))


def ignores_exclusion(dataset: Dataset, *, seed: int = 1) -> Partition:
    return right_rule(dataclasses.replace(dataset, excluded=frozenset()), seed=seed)


def accepts_any_number(dataset: Dataset, *, clients: int = 3, seed: int = 1) -> Partition:
    return right_rule(dataset, clients=max(1, min(clients, 5)), seed=seed)


def takes_base_classes_twice(dataset: Dataset, *, seed: int = 1) -> Partition:
    rows = tuple(dataset.rows(split="train", classes=dataset.base, domains=dataset.seen_domains).tolist())
    return Partition("base", seed, (Shard("one", rows, dataset.base), Shard("two", rows, dataset.base)))


def refuses_all(dataset: Dataset, *, seed: int = 1) -> Partition:
    raise UserError("This rule accepts no data set at all.")


@pytest.mark.parametrize(
    ("rule", "name", "sentence"),
    [
        (draws_globally, "test_the_seed_alone_decides", "global generator of torch|to other clients"),
        (
            assigns_everything,
            "test_only_training_images_of_base_classes_in_seen_domains_are_assigned",
            "not of the train",
        ),
        (assigns_twice, "test_clients_are_disjoint", "images twice"),
        (takes_base_classes_twice, "test_clients_are_disjoint", "takes_base_classes_twice assigns .* images twice"),
        (leaves_one_empty, "test_clients_are_disjoint", r"leaves \['poor'\] clients without"),
        (forgets_its_seed, "test_the_seed_is_recorded", "seed 77 but records 0"),
        (keeps_lists, "test_a_partition_survives_json", "reads back as another one"),
        (ignores_exclusion, "test_excluded_images_are_not_assigned", "which the data set excludes"),
        (accepts_any_number, "test_impossible_options_are_refused", "clients = -1 makes no sense"),
        (refuses_all, "test_clients_are_disjoint", "accepts neither kind"),
    ],
)
def test_a_broken_partition_rule_is_explained(rule: Callable[..., Partition], name: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        property_of(PartitionRuleTests, name, rule=rule)


def right_source(*, seed: int = 0) -> Dataset:
    """The tiny data set with other images for each seed."""
    dataset = tiny_dataset()
    return dataclasses.replace(dataset, source=TinyImages(range(seed, seed + len(dataset.source))))


def test_a_right_source_passes() -> None:
    check_source(right_source)
    check_source(right_source, {"seed": 0}, changed={"seed": 5})
    with pytest.raises(AssertionError, match="the same fingerprint"):
        check_source(right_source, {"seed": 0}, changed={"seed": 0})


class Grey(TinyImages):
    def open(self, row: int) -> Image.Image:
        return super().open(row).convert("L")


class Moving(TinyImages):
    def take(self, rows):
        return tiny_images(len(rows))


def greys(*, seed: int = 0) -> Dataset:
    return dataclasses.replace(right_source(), source=Grey(range(180)))


def takes_others(*, seed: int = 0) -> Dataset:
    return dataclasses.replace(right_source(), source=Moving(range(180)))


def splits_anew(*, seed: int = 0) -> Dataset:
    words = ("train", "test")
    return dataclasses.replace(right_source(), splits=[words[int(draw > 0.5)] for draw in torch.rand(180)])


def has_no_test(*, seed: int = 0) -> Dataset:
    return dataclasses.replace(right_source(), splits=["train"] * 180)


def has_wide_targets(*, seed: int = 0) -> Dataset:
    return dataclasses.replace(right_source(), targets=right_source().targets.int())


@pytest.mark.parametrize(
    ("source", "name", "sentence"),
    [
        (greys, "test_images_are_rgb_and_the_same_each_time", "in mode L, not RGB"),
        (takes_others, "test_rows_can_be_taken_elsewhere", "other images for the rows"),
        (splits_anew, "test_reading_again_gives_the_same_data_set", "global generator of torch|other splits"),
        (has_no_test, "test_splits_are_valid", "no image in the split test"),
        (has_wide_targets, "test_targets_are_valid", "torch.int32"),
    ],
)
def test_a_broken_source_is_explained(source: Callable[..., Dataset], name: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        property_of(SourceTests, name, source=source)


def test_a_source_that_fails_on_a_missing_path_is_explained() -> None:
    def reads(*, path: Path) -> Dataset:
        Path(path).read_text()
        return right_source()

    def ignores(*, path: Path) -> Dataset:
        return right_source()

    for source, sentence in ((reads, "raises FileNotFoundError"), (ignores, "accepts the path")):
        with pytest.raises(AssertionError, match=sentence):
            check_source(source, {"path": ROOT / "README.md"})


def right_mean():
    """The weighted mean."""
    return lambda shared, updates, weights, memory: (weighted_mean(shared, updates, weights), {})


def first_client():
    """Unweighted."""
    return lambda shared, updates, weights, memory: ({**shared, **updates[0].shared}, {})


def plain_mean():
    """The mean whatever the weights."""
    return lambda shared, updates, weights, memory: (
        weighted_mean(shared, updates, [1 / len(updates)] * len(updates)),
        {},
    )


def shrinks():
    """The weighted mean of the updates themselves, not of their changes, a little smaller."""
    return lambda shared, updates, weights, memory: (
        {name: 0.9 * tensor for name, tensor in weighted_mean(shared, updates, weights).items()},
        {},
    )


def mean_of_senders():
    """Divides by the weights of those who sent a tensor. Unweighted."""

    def combine(shared, updates, weights, memory):
        sent = {name: [update.shared[name] for update in updates if name in update.shared] for name in shared}
        return {name: torch.stack(tensors).mean(dim=0) for name, tensors in sent.items()}, {}

    return combine


def writes_in_place():
    """The weighted mean, into the shared state."""

    def combine(shared, updates, weights, memory):
        for name, tensor in weighted_mean(shared, updates, weights).items():
            shared[name].copy_(tensor)
        return dict(shared), {}

    return combine


def remembers_privately():
    """The weighted mean with momentum that lives in the function."""
    last = {}

    def combine(shared, updates, weights, memory):
        new = weighted_mean(shared, updates, weights)
        moved = {name: new[name] + 0.5 * last.get(name, torch.zeros_like(new[name])) for name in new}
        last.update({name: new[name] - shared[name] for name in new})
        return moved, {}

    return combine


def takes_any_share(*, share: float = 0.1):
    """The weighted mean."""
    return right_mean()


def test_a_right_aggregation_rule_passes() -> None:
    check_aggregation_rule(right_mean)


@pytest.mark.parametrize(
    ("rule", "name", "sentence"),
    [
        (first_client, "test_the_order_of_clients_does_not_matter", "when clients change places"),
        (plain_mean, "test_weights_count", "ignores the weights"),
        (shrinks, "test_only_changes_count", "not translation equivariant"),
        (shrinks, "test_equal_updates_are_returned", "9 equal updates"),
        (mean_of_senders, "test_a_missing_tensor_is_unchanged", "leave a tensor out"),
        (writes_in_place, "test_the_result_has_the_form_of_the_shared_state", "belong to the caller"),
        (remembers_privately, "test_the_memory_survives_a_checkpoint", "gives another result"),
        (takes_any_share, "test_impossible_options_are_refused", r"share = -1\.0 makes no sense"),
    ],
)
def test_a_broken_aggregation_rule_is_explained(rule: Callable, name: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        property_of(AggregationRuleTests, name, rule=rule)


def backwards():
    return lambda shared, target, memory: ({name: 2 * shared[name] - target[name] for name in shared}, {})


def test_an_optimiser_that_steps_backwards_is_explained() -> None:
    name = "test_the_first_step_goes_the_way_of_the_change"
    with pytest.raises(AssertionError, match="against the change in 4 of 4"):
        property_of(ServerOptimizerTests, name, optimizer=backwards)


def test_names_work_as_in_a_recipe() -> None:
    with pytest.raises(UserError, match="there is no partition rule"):
        check_partition_rule("no_such_rule")
    with pytest.raises(UserError, match="cannot be imported"):
        check_aggregation_rule("no_such_package.module:rule")


def test_the_tiny_clip_is_the_same_everywhere() -> None:
    first, again = tiny_clip(), tiny_clip(batch=4)
    assert first.fingerprint == again.fingerprint
    rows = Images(tiny_images(), (0, 1))
    assert torch.allclose(first.image_features(rows), again.image_features(rows), atol=1e-5)


def test_the_pytest_plugin_gives_fixtures_and_loads_torch_only_when_asked(tmp_path: Path) -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]["pytest11"]
    assert table == {"fedprompt": "fedprompt.testing.pytest_plugin"}
    import_module(table["fedprompt"])
    (tmp_path / "test_lazy.py").write_text(
        "import sys\n"
        "def test_first_nothing_is_loaded():\n    assert 'torch' not in sys.modules\n"
        "def test_then_fixtures_work(tiny_clip, tiny_images, tiny_dataset, tiny_multilabel_dataset, forgetful_cache):\n"
        "    assert tiny_clip.dim == 24 and len(tiny_images) == 12 and len(tiny_dataset.source) == 180\n"
        "    assert tiny_multilabel_dataset.space.kind == 'multi' and forgetful_cache is not None\n"
    )
    # Whether the entry point is installed or not, the plugin is loaded once.
    plugin = ["-p", "no:fedprompt", "-p", "fedprompt.testing.pytest_plugin", "-p", "no:cacheprovider"]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--rootdir", str(tmp_path), *plugin, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0 and "2 passed" in finished.stdout, finished.stdout + finished.stderr


class Abstract(Method):
    """Defines nothing."""


class WithoutClassifier(Method):
    """Its classifier is none."""

    def __init__(self, clip: Clip, *, generator: torch.Generator | None = None) -> None:
        super().__init__()

    def classifier(self, clip: Clip, space: LabelSpace) -> Any:
        return None


class Untyped(WithoutClassifier):
    """Has an option without a type."""

    def __init__(self, clip: Clip, *, classes=(), generator: torch.Generator | None = None) -> None:
        super().__init__(clip)


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (Abstract, "Abstract does not define classifier, which every method must define."),
        (WithoutClassifier, "`classifier` of WithoutClassifier returned None; return a function"),
        (Untyped, "The options ['classes'] of Untyped have no type, so values cannot be checked; annotate them."),
        (3, "A method is a name, a class derived from fedprompt.Method, or a table, not 3."),
    ],
)
def test_what_is_no_method_is_a_sentence(method: Any, sentence: str) -> None:
    with pytest.raises((AssertionError, UserError)) as caught:
        check_method(method)
    assert str(caught.value).startswith(sentence)


def test_an_error_of_a_rules_own_says_what_could_not_be_checked() -> None:
    def broken(dataset: Dataset) -> Any:
        return 1 / 0

    with pytest.raises(AssertionError, match="cannot be checked: ZeroDivisionError: division by zero"):
        check_partition_rule(broken)
