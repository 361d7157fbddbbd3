"""Towers in half precision: float32 at their edges, features of half the size, the same bits however they are asked."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fedprompt import methods
from fedprompt.clip.activations import blocks_that_fit, bytes_kept
from fedprompt.clip.devices import find_device
from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.hub import require_available
from fedprompt.clip.model import Clip
from fedprompt.clip.precision import DTYPES, Precision
from fedprompt.data.images import Images
from fedprompt.errors import UserError, worded
from fedprompt.federated.client import Client, TrainSettings, train_client
from fedprompt.federated.gradients import gradients
from fedprompt.federated.rounds import initial_state
from fedprompt.seeding import stream
from fedprompt.testing import FAMILIES, TinyImages
from fedprompt.testing.federation import examples
from fedprompt.testing.tiny_families import tiny_family_parts
from fedprompt.updates import Update
from test_clip_model import TEXTS, ask_everything

HALF: tuple[Precision, ...] = ("bfloat16", "float16")
INSTALLED = methods.installed()
IMAGES = Images(TinyImages(), (0, 3, 5))


def backbone(precision: Precision, family: str = "clip", **options: Any) -> Clip:
    model, tokenizer, processor = tiny_family_parts(family)
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())  # a model is rounded where it is
    return Clip(copy, tokenizer, processor, precision=precision, **options)


def trained(name: str, clip: Clip, *, kind: str = "single") -> Update:
    method = methods.load(name)(clip, generator=stream(1, "method"))
    shared, personal = initial_state(method)
    client = Client(0, "site", examples(tuple(range(6)), (0, 1, 2), kind=kind))  # type: ignore[arg-type]
    settings = TrainSettings(rounds=1, batch_size=4, lr=0.001)
    return train_client(method, clip, client, shared=shared, personal=personal, round_number=1, settings=settings)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", HALF)
def test_features_are_those_of_float32_up_to_rounding(precision: Precision, family: str) -> None:
    full, half = backbone("float32", family), backbone(precision, family)
    assert {weight.dtype for weight in half.model.parameters()} == {DTYPES[precision]}
    assert (half.scale, half.bias) == (full.scale, full.bias)
    pairs = [(getattr(one, kind)(IMAGES) for one in (half, full)) for kind in ("image_features", "patch_features")]
    for ours, theirs in (*pairs, (half.text_features(TEXTS), full.text_features(TEXTS))):
        assert ours.dtype == torch.float32
        assert 0 < float((ours - theirs).abs().max()) < (0.1 if precision == "bfloat16" else 0.01)


@pytest.mark.parametrize("precision", HALF)
def test_remembering_forgetting_and_files_give_the_same_bits(
    precision: Precision, forgetful_cache: FeatureCache, tmp_path: Path
) -> None:
    clip = backbone(precision)
    remembered = ask_everything(clip, TinyImages())
    assert {rows.dtype for rows in remembered} == {torch.float32}
    on_disk = FeatureCache(memory_bytes=0, folder=tmp_path)
    for cache in (clip.cache, FeatureCache(memory_bytes=0), forgetful_cache, on_disk, on_disk):
        clip.cache = cache
        for ours, first in zip(ask_everything(clip, TinyImages()), remembered, strict=True):
            assert torch.equal(ours, first)


def test_half_precision_takes_half_of_the_cache_in_memory_and_on_disk(tmp_path: Path) -> None:
    sizes: dict[Precision, int] = {}
    for precision in DTYPES:
        cache = FeatureCache(folder=tmp_path / precision)
        backbone(precision, cache=cache).image_tokens(IMAGES)
        table = next(iter(cache._tables.values()))
        assert {block.rows.dtype for block in table.blocks.values()} == {DTYPES[precision]}
        sizes[precision] = sum(file.stat().st_size for file in (tmp_path / precision).glob("*.rows"))
    assert sizes["float32"] == 2 * sizes["bfloat16"] == 2 * sizes["float16"] > 0


def test_precisions_share_a_folder_of_features_but_no_row(tmp_path: Path) -> None:
    for precision in (*DTYPES, *DTYPES):
        cache = FeatureCache(folder=tmp_path)
        found = backbone(precision, cache=cache).image_features(IMAGES)
        assert torch.equal(found, backbone(precision).image_features(IMAGES))
        cache.close()
    assert len(list(tmp_path.glob("image_features-*.rows"))) == len(DTYPES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backbone_is_the_same_one_in_every_precision(family: str) -> None:
    assert len({backbone(precision, family).fingerprint for precision in DTYPES}) == 1


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("name", INSTALLED)
def test_a_client_trains_float32_tensors_and_twice_the_same(name: str, precision: Precision) -> None:
    for kind in ("single", "multi"):
        full, half, again = (trained(name, backbone(one), kind=kind) for one in ("float32", precision, precision))
        assert half.loss == pytest.approx(full.loss, rel=0.2)
        for key, tensor in half.shared.items():
            assert tensor.dtype == full.shared[key].dtype
            assert torch.equal(tensor, again.shared[key])


def test_scaled_gradients_keep_what_float16_would_lose() -> None:
    weight = torch.full((3,), 1e-7, requires_grad=True)

    def through(dtype: torch.dtype) -> list[float]:
        loss = (weight.to(dtype).float() * torch.tensor([1e-9, 1.0, 2.0**-26])).sum()
        found = gradients(loss, [weight], dtype)[0]
        assert found is not None
        return found.tolist()

    assert through(torch.float32) == pytest.approx([1e-9, 1.0, 2.0**-26])
    assert through(torch.float16) == pytest.approx([1e-9, 1.0, 2.0**-26], rel=0.01)  # 1e-9 alone would round to 0


def test_a_gradient_that_overflows_is_computed_again_with_a_smaller_scale() -> None:
    weight, other = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    seen: list[torch.Tensor] = []
    halved = weight.half()
    halved.register_hook(seen.append)
    found = gradients((halved.float() * 1000).sum(), [weight, other], torch.float16)
    assert torch.equal(found[0], torch.full((2,), 1000.0)) and found[1] is None  # type: ignore[arg-type]
    assert [float(one[0]) for one in seen] == [float("inf"), float("inf"), float("inf"), 16000.0][-len(seen) :]


def test_a_gradient_that_is_infinite_at_any_scale_is_given_as_it_is() -> None:
    weight = torch.zeros(1, requires_grad=True)
    found = gradients(weight.sqrt().sum(), [weight], torch.float16)[0]
    assert found is not None and bool(found.isinf().all())


@pytest.mark.parametrize(
    ("name", "precision", "sentence"),
    [
        ("gpu", "float32", "There is no device 'gpu'; did you mean 'cpu'? (backbone.device = "),
        ("cuda:x", "float32", "There is no device 'cuda:x'"),
        ("cuda:*", "float32", 'use "cuda" and --on ray'),
        ("cpu", "float16", 'backbone.precision = "float16" is for GPUs'),
        ("cuda", "float32", 'backbone.device = "cuda" needs an NVIDIA GPU'),
        ("mps", "float32", 'backbone.device = "mps" needs a Mac'),
    ],
)
def test_a_device_that_is_not_there_is_refused_in_a_sentence(
    name: str, precision: Precision, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=re.escape(sentence)):
        find_device(name, precision)


@worded("keywords")
def test_a_python_call_is_told_its_own_keywords() -> None:
    with pytest.raises(UserError, match=r'did you mean .* \(device = "auto"'):
        find_device("gpu")
    with pytest.raises(UserError, match='give "demo" for the small embedded CLIP'):
        require_available("nobody/nothing")


@pytest.mark.parametrize(
    ("name", "precision", "capability", "sentence"),
    [
        ("cuda:2", "float32", (9, 0), 'backbone.device = "cuda:2" does not exist: this machine has 2 GPUs'),
        ("cuda:1", "bfloat16", (7, 0), "Old GPU does not compute in bfloat16"),
        ("cuda:1", "bfloat16", (8, 0), ""),
        ("auto", "float16", (7, 0), ""),
    ],
)
def test_a_gpu_is_taken_unless_it_lacks_what_is_asked(
    name: str, precision: Precision, capability: tuple[int, int], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old GPU")
    monkeypatch.setattr("fedprompt.clip.devices._make_repeatable", lambda: None)
    if sentence:
        with pytest.raises(UserError, match=sentence):
            find_device(name, precision)
    else:
        assert find_device(name, precision).type == "cuda"


def gradients_of_a_step(name: str, clip: Clip) -> dict[str, torch.Tensor]:
    method = methods.load(name)(clip, generator=stream(1, "method"))
    data = examples(tuple(range(6)), (0, 1, 2))
    method.loss(clip, data.images, data.targets, data.space, stream=stream(1, "loss")).backward()
    return {key: one.grad for key, one in method.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name", [one for one in ("fedmvp", "fedvpt", "fedlora", "fedmaple", "fedram") if one in INSTALLED]
)
def test_blocks_computed_again_give_the_same_gradients_to_the_last_bit(name: str, precision: Precision) -> None:
    plain = gradients_of_a_step(name, backbone(precision))
    for budget in (1, 30_000, 10**9):
        within = gradients_of_a_step(name, backbone(precision, activation_bytes=budget))
        assert plain.keys() == within.keys() != set()
        assert all(torch.equal(gradient, within[key]) for key, gradient in plain.items())


def test_a_budget_bounds_what_a_pass_keeps_for_its_gradient() -> None:
    def kept(budget: int) -> int:
        clip = backbone("float32", activation_bytes=budget)
        tokens = clip.image_embeddings(IMAGES).requires_grad_()
        last = clip.image_blocks - 1
        run = functools.partial(clip._run_blocks_within_budget, start=0, edit=None)
        return bytes_kept(run, tokens, clip.parameters()) if last else 0

    whole, least = kept(10**9), kept(1)
    assert 0 < 3 * least < whole


def test_activations_of_a_methods_own_network_are_not_kept_within_a_budget() -> None:
    network, x = (
        torch.nn.Sequential(torch.nn.Linear(4, 400), torch.nn.GELU(), torch.nn.Linear(400, 4)),
        torch.ones(5, 4),
    )

    def kept(budget: int) -> int:
        clip = backbone("float32", activation_bytes=budget)
        return bytes_kept(lambda row: clip.run_within_budget(network, row), x, network.parameters())

    assert kept(1) < kept(0) / 10


@pytest.mark.parametrize(("budget", "fit"), [(0, 0), (99, 0), (190, 1), (280, 2), (999, 9), (1000, 10), (5000, 10)])
def test_as_many_blocks_keep_their_activations_as_fit(budget: int, fit: int) -> None:
    assert blocks_that_fit(budget, blocks=10, kept=100, entering=10) == fit
