"""On an accelerator: the same figures to rounding, the same bits for remembered features, every method trains."""

from __future__ import annotations

import pytest
import torch

from fedprompt import methods
from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Examples
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.federated.client import Client, TrainSettings, train_client
from fedprompt.federated.rounds import initial_state
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages, tiny_model, tiny_processor, tiny_tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SPACE = LabelSpace(("cat", "dog", "cube"), attributes={"cat": ("has whiskers",), "dog": ("has four legs",)})


def clip_on(device: str, **options: object) -> Clip:
    tokenizer = tiny_tokenizer()
    return Clip(tiny_model(tokenizer), tokenizer, tiny_processor(), **options).to(device)


def test_nouns_equal_those_of_the_processor() -> None:
    images = Images(TinyImages(), tuple(range(6)))
    here, there = clip_on("cpu"), clip_on("cuda", batch=4)
    for noun in ("image_features", "patch_features", "image_tokens"):
        torch.testing.assert_close(
            getattr(there, noun)(images).cpu(), getattr(here, noun)(images), rtol=1e-3, atol=1e-4
        )
    texts = there.text_features(SPACE.texts()).cpu()
    torch.testing.assert_close(texts, here.text_features(SPACE.texts()), rtol=1e-3, atol=1e-4)


def test_remembering_changes_no_bit() -> None:
    images = Images(TinyImages(), tuple(range(7)))
    kept, off = clip_on("cuda", batch=4), clip_on("cuda", batch=4, cache=FeatureCache(memory_bytes=0))
    kept.patch_features(images.take((3, 5)))
    assert torch.equal(kept.patch_features(images), off.patch_features(images))


@pytest.mark.parametrize("name", methods.names())
def test_a_round_of_training_ends_on_the_processor(name: str) -> None:
    clip = clip_on("cuda", batch=4)
    method = methods.load(name)(clip, generator=stream(1, "method")).to(clip.device)
    shared, personal = initial_state(method)
    client = Client(0, "site", Examples(Images(TinyImages(), tuple(range(6))), torch.arange(6) % 3, SPACE), None)
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
