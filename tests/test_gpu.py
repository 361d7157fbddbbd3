"""On an accelerator: the same results to rounding, the same bits for cached features, every method trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedprompt import methods
from fedprompt.clip.devices import find_device
from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.model import Clip
from fedprompt.clip.precision import DTYPES, Precision
from fedprompt.data.dataset import Examples
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.federated.client import Client, TrainSettings, train_client
from fedprompt.federated.gradients import gradients
from fedprompt.federated.rounds import initial_state
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages, tiny_model, tiny_processor, tiny_tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SPACE = LabelSpace(("cat", "dog", "cube"), attributes={"cat": ("has whiskers",), "dog": ("has four legs",)})


def clip_on(device: str, **options: Any) -> Clip:
    tokenizer = tiny_tokenizer()
    found = find_device(device, options.get("precision", "float32"))
    return Clip(tiny_model(tokenizer), tokenizer, tiny_processor(), **options).to(found)


def examples() -> Examples:
    return Examples(Images(TinyImages(), tuple(range(6))), torch.arange(6) % 3, SPACE)


def test_features_equal_those_of_the_processor() -> None:
    images = Images(TinyImages(), tuple(range(6)))
    here, there = clip_on("cpu"), clip_on("cuda", batch=4)
    for kind in ("image_features", "patch_features", "image_tokens"):
        torch.testing.assert_close(
            getattr(there, kind)(images).cpu(), getattr(here, kind)(images), rtol=1e-4, atol=1e-4
        )
    texts = there.text_features(SPACE.texts()).cpu()
    torch.testing.assert_close(texts, here.text_features(SPACE.texts()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", DTYPES)
def test_caching_changes_no_bit(precision: Precision) -> None:
    images, options = Images(TinyImages(), tuple(range(7))), {"batch": 4, "precision": precision}
    off = clip_on("cuda", cache=FeatureCache(memory_bytes=0), **options)
    for device in ("cpu", "cuda"):
        kept = clip_on("cuda", cache=FeatureCache(device=torch.device(device)), **options)
        kept.patch_features(images.take((3, 5)))
        assert torch.equal(kept.patch_features(images), off.patch_features(images))


@pytest.mark.parametrize("precision", DTYPES)
def test_a_step_gives_the_same_gradients_again_and_with_blocks_computed_again(precision: Precision) -> None:
    found = []
    for budget in (0, 0, 1):
        clip, data = clip_on("cuda", batch=4, precision=precision, activation_bytes=budget), examples()
        method = methods.load("fedmvp")(clip, generator=stream(1, "method")).to(clip.device)
        trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
        loss = method.loss(clip, data.images, data.targets.to(clip.device), SPACE, stream=stream(1, "loss"))
        found.append(gradients(loss, trained, clip.dtype))
    assert all(a is None or torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", ["promptfl", "fedtpg", "fedmvp"])
def test_a_loss_of_cached_features_does_not_wait_for_the_gpu(name: str) -> None:
    clip, data = clip_on("cuda", batch=4), examples()
    method = methods.load(name)(clip, generator=stream(1, "method")).to(clip.device)
    targets = data.targets.to(clip.device)
    method.loss(clip, data.images, targets, SPACE, stream=stream(1, "loss"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        method.loss(clip, data.images, targets, SPACE, stream=stream(1, "loss")).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", methods.names())
def test_a_round_of_training_ends_on_the_processor(name: str) -> None:
    clip = clip_on("cuda", batch=4)
    method = methods.load(name)(clip, generator=stream(1, "method")).to(clip.device)
    shared, personal = initial_state(method)
    client = Client(0, "site", examples(), None)
    update = train_client(
        method,
        clip,
        client,
        shared=shared,
        personal=personal,
        round_number=1,
        settings=TrainSettings(rounds=1, batch_size=4, lr=0.001),
    )
    assert all(tensor.device.type == "cpu" and tensor.isfinite().all() for tensor in update.shared.values())
