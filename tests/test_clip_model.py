"""The encoders equal transformers' own outputs; frozen features are the same bits whatever was requested or evicted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity, pad
from transformers import CLIPModel
from transformers.activations import QuickGELUActivation

from fedprompt.clip import encoders
from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.model import Clip, Prompts
from fedprompt.clip.towers import LeanQuickGELU
from fedprompt.data.images import Images
from fedprompt.errors import UserError
from fedprompt.ops.layers import recomputed
from fedprompt.testing import TinyImages, tiny_model, tiny_processor, tiny_tokenizer

TEXTS = ("a photo of a dog.", "the cat", "a photo of a zebra which has four legs.")
WIDE: dict[str, Any] = {
    "text": {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_hidden_layers": 2},
    "vision": {"hidden_size": 768, "intermediate_size": 1536, "num_attention_heads": 12, "num_hidden_layers": 2},
}
REAL: dict[str, Any] = {
    "text": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 12}
    | {"max_position_embeddings": 77},
    "vision": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
    | {"image_size": 224, "patch_size": 16},
    "dim": 512,
}
SHAPES: list[dict[str, Any]] = [
    {},
    {"text": {"num_hidden_layers": 1, "hidden_act": "gelu"}, "vision": {"num_hidden_layers": 1, "hidden_act": "gelu"}},
    {"text": {"hidden_size": 48, "num_attention_heads": 2}, "vision": {"image_size": 24, "patch_size": 4}, "dim": 7},
]


def build(sizes: dict[str, Any], **options: Any) -> Clip:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, **sizes)
    return Clip(model, tokenizer, tiny_processor(model.config.vision_config.image_size), **options)


def reference(clip: Clip, images: Images, texts: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """What transformers' own forward passes say, on a model of its own, with texts padded to the whole context."""
    model = CLIPModel(clip.model.config).eval()
    model.load_state_dict(clip.model.state_dict())
    with torch.no_grad():
        pixels = clip.processor(images=list(images), return_tensors="pt")["pixel_values"]
        vision = model.vision_model(pixels, output_hidden_states=True)
        ids = clip.tokenizer.tokenizer(
            list(texts), padding="max_length", max_length=clip.context_length, truncation=True, return_tensors="pt"
        )
        return {
            "image": model.get_image_features(pixels).pooler_output,
            "text": model.get_text_features(**ids).pooler_output,
            "tokens": vision.hidden_states[0],
            "last": vision.hidden_states[-2],
            "patches": model.visual_projection(model.vision_model.post_layernorm(vision.last_hidden_state[:, 1:])),
        }


def assert_equals_reference(clip: Clip, images: Images) -> None:
    expected = reference(clip, images, TEXTS)
    encoded = clip.encode_image(clip.image_embeddings(images))
    last = len(clip.model.vision_model.encoder.layers) - 1
    later = clip.encode_image(clip.image_tokens(images, last), start=last) if last else encoded
    pairs = {
        "image": (encoded.image, expected["image"]),
        "patches": (encoded.patches, expected["patches"]),
        "image from the last block": (later.image, expected["image"]),
        "tokens": (clip.image_tokens(images), expected["tokens"]),
        "last tokens": (clip.image_tokens(images, last), expected["last"]),
        "text": (clip.encode_text(clip.fill(TEXTS)), expected["text"]),
        "image features": (clip.image_features(images), torch.nn.functional.normalize(expected["image"], dim=-1)),
        "patch features": (clip.patch_features(images), torch.nn.functional.normalize(expected["patches"], dim=-1)),
        "text features": (clip.text_features(TEXTS), torch.nn.functional.normalize(expected["text"], dim=-1)),
    }
    for name, (ours, theirs) in pairs.items():
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("sizes", SHAPES)
def test_encoders_and_features_equal_transformers_own_outputs(sizes: dict[str, Any], tiny_images: TinyImages) -> None:
    clip = build(sizes)
    assert (
        clip.patches == (clip.model.config.vision_config.image_size // clip.model.config.vision_config.patch_size) ** 2
    )
    assert clip.scale == pytest.approx(20.0855, abs=1e-3)
    assert_equals_reference(clip, Images(tiny_images, (3, 0, 5)))


@pytest.mark.large
def test_real_dimensions_equal_transformers_own_outputs(tiny_images: TinyImages) -> None:
    clip = build(REAL)
    assert (clip.image_width, clip.text_width, clip.dim, clip.patches, clip.context_length) == (768, 512, 512, 196, 77)
    assert_equals_reference(clip, Images(tiny_images, (1, 2)))


def test_a_sentence_longer_than_the_context_is_cut_in_tokens_and_keeps_its_end(tiny_clip: Clip) -> None:
    long = ("a photo of a dog " * 20,)
    expected = reference(tiny_clip, Images(TinyImages(), (0,)), long)["text"]
    assert float(cosine_similarity(tiny_clip.text_features(long), expected)) == pytest.approx(1, abs=1e-6)


def test_a_cut_sequence_equals_a_padded_one(tiny_clip: Clip) -> None:
    prompts = tiny_clip.fill(TEXTS)
    assert prompts.embeddings.shape[1] == int(prompts.end.max()) + 1 < tiny_clip.context_length
    room = tiny_clip.context_length - prompts.embeddings.shape[1]
    padded = Prompts(pad(prompts.embeddings, (0, 0, 0, room), value=3.0), prompts.end, prompts.slots)
    torch.testing.assert_close(tiny_clip.encode_text(padded), tiny_clip.encode_text(prompts), atol=1e-5, rtol=1e-5)


def ask_everything(clip: Clip, source: TinyImages) -> list[torch.Tensor]:
    """Overlapping requests in which each image and text comes with different others and at different positions."""
    groups = [Images(source, rows) for rows in ((0, 1, 2, 3, 4, 5, 6), (5, 2, 2, 9), (9,), (6, 1, 3, 0, 8, 9))]
    groups.append(groups[0].flipped(torch.arange(7) % 2 == 0))
    features = (
        clip.image_features,
        clip.image_embeddings,
        clip.patch_features,
        lambda images: clip.image_tokens(images, 1),
    )
    results = [feature(images) for images in groups for feature in features]
    return [*results, clip.text_features(TEXTS), clip.text_features(TEXTS[1:]), clip.text_features(TEXTS[2:])]


@pytest.mark.parametrize("sizes", [{}, WIDE])
def test_remembering_forgetting_and_not_remembering_give_the_same_bits(
    sizes: dict[str, Any], forgetful_cache: FeatureCache
) -> None:
    clip = build(sizes)
    remembered = ask_everything(clip, TinyImages())
    for cache in (clip.cache, FeatureCache(memory_bytes=0), forgetful_cache, FeatureCache(memory_bytes=40_000)):
        clip.cache = cache
        for ours, first in zip(ask_everything(clip, TinyImages()), remembered, strict=True):
            assert torch.equal(ours, first)


def test_larger_batches_are_padded_and_say_the_same(tiny_parts: Any) -> None:
    alone, padded = Clip(*tiny_parts), Clip(*tiny_parts, batch=4)
    for ours, theirs in zip(ask_everything(padded, TinyImages()), ask_everything(alone, TinyImages()), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_row_does_not_depend_on_what_is_asked_with_it() -> None:
    clip = build(WIDE, cache=FeatureCache(memory_bytes=0))
    together = clip.image_features(Images(TinyImages(), (4, 1, 7)))
    assert torch.equal(together[1], clip.image_features(Images(TinyImages(), (1,)))[0])
    texts = clip.text_features([*TEXTS, "a dog", "a cat"])
    assert torch.equal(texts[3], clip.text_features(["a dog"])[0])


def test_a_picture_is_decoded_once(tiny_images: TinyImages, tiny_parts: Any) -> None:
    clip, images = Clip(*tiny_parts), Images(tiny_images, (0, 1, 2))
    clip.image_embeddings(images)
    clip.image_features(images.take([2, 0]))
    clip.patch_features(images)
    clip.image_features(images)
    assert tiny_images.opened == [0, 1, 2]
    clip.image_features(images.flipped())
    assert tiny_images.opened == [0, 1, 2, 0, 1, 2]


def test_gradients_flow_to_inputs_and_never_to_the_backbone(tiny_clip: Clip, tiny_images: TinyImages) -> None:
    before = {name: weight.clone() for name, weight in tiny_clip.state_dict().items()}
    context = torch.randn(2, tiny_clip.text_width, requires_grad=True)
    tokens = tiny_clip.image_embeddings(Images(tiny_images, (0, 1))).requires_grad_()
    encoded = tiny_clip.train().encode_image(tokens)
    text = tiny_clip.encode_text(tiny_clip.fill(["<ctx> dog.", "<ctx> horse."], ctx=context))
    (encoded.image @ text.T + encoded.patches.mean(dim=1) @ text.T).sum().backward()
    assert context.grad is not None and tokens.grad is not None
    assert bool((context.grad.abs().sum(dim=-1) > 0).all()) and bool((tokens.grad.abs().sum(dim=-1) > 0).all())
    assert not any(module.training for module in tiny_clip.modules())
    assert all(weight.grad is None and not weight.requires_grad for weight in tiny_clip.parameters())
    assert all(torch.equal(before[name], weight) for name, weight in tiny_clip.state_dict().items())


def test_features_asked_in_inference_mode_can_be_trained_on_later(tiny_parts: Any, tiny_images: TinyImages) -> None:
    clip, images = Clip(*tiny_parts), Images(tiny_images, (0, 1))
    with torch.inference_mode():
        clip.image_embeddings(images)
    weight = torch.ones(clip.image_width, requires_grad=True)
    clip.encode_image(clip.image_embeddings(images) * weight).image.sum().backward()
    assert weight.grad is not None


def test_what_a_caller_does_to_a_result_is_not_remembered(tiny_parts: Any, tiny_images: TinyImages) -> None:
    clip, images = Clip(*tiny_parts), Images(tiny_images, (0, 1))
    first = clip.image_features(images).clone()
    for _ in range(2):
        clip.image_features(images).zero_()
    assert torch.equal(clip.image_features(images), first)


def test_edits_see_every_block_and_may_change_the_number_of_tokens(tiny_clip: Clip, tiny_images: TinyImages) -> None:
    images = Images(tiny_images, (0, 1))
    tokens, extra = tiny_clip.image_embeddings(images), torch.zeros(2, 3, tiny_clip.image_width)
    seen: list[tuple[int, int]] = []

    def add_for_one_block(number: int, entering: torch.Tensor) -> torch.Tensor:
        seen.append((number, entering.shape[1]))
        return torch.cat([entering, extra], dim=1) if number == 1 else entering[:, :17]

    encoded = tiny_clip.encode_image(tokens, edit=add_for_one_block)
    assert seen == [(0, 17), (1, 17), (2, 20)]
    assert encoded.patches.shape == (2, 16, tiny_clip.dim)
    assert not torch.allclose(encoded.image, tiny_clip.encode_image(tokens).image)


def test_the_end_is_found_behind_tokens_that_an_edit_inserted_into_the_last_block(tiny_clip: Clip) -> None:
    prompts = tiny_clip.fill(TEXTS)

    def insert(number: int, tokens: torch.Tensor) -> torch.Tensor:
        start = tokens[:, :1]
        return torch.cat([start, start, start, tokens[:, 1:]], dim=1) if number == 2 else tokens

    ends: list[torch.Tensor] = []

    def record(number: int, tokens: torch.Tensor) -> torch.Tensor:
        # The end token of each row is made to stand out: the reading must follow it.
        if number == 2:
            tokens = insert(2, tokens)
            marked = tokens.clone()
            marked[torch.arange(3), prompts.end + 2] = 5.0
            ends.append(marked)
            return marked
        return tokens

    features = tiny_clip.encode_text(prompts, edit=record)
    block, tower = tiny_clip.model.text_model.encoder.layers[2], tiny_clip.model.text_model
    whole = block(ends[0], None, is_causal=True)[torch.arange(3), prompts.end + 2]
    expected = tiny_clip.model.text_projection(tower.final_layer_norm(whole))
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_nothing_asked_is_an_empty_answer(tiny_clip: Clip, tiny_images: TinyImages) -> None:
    assert tiny_clip.image_features(Images(tiny_images, ())).shape == (0, tiny_clip.dim)
    assert tiny_clip.text_features([]).shape == (0, tiny_clip.dim)


def test_preprocessing_of_another_size_is_refused(tiny_parts: Any) -> None:
    model, tokenizer, _ = tiny_parts
    with pytest.raises(UserError, match="the image tower reads 32x32 pixels"):
        Clip(model, tokenizer, tiny_processor(48))


def test_projections_are_features_of_their_own_length(tiny_clip: Clip, tiny_images: TinyImages) -> None:
    images = Images(tiny_images, (0, 1))
    projections = tiny_clip.image_projections(images)
    torch.testing.assert_close(torch.nn.functional.normalize(projections, dim=1), tiny_clip.image_features(images))
    assert (projections.norm(dim=1) - 1).abs().min() > 0.1


def test_value_tokens_keep_patches_to_themselves(tiny_parts: tuple[Any, ...], tiny_images: TinyImages) -> None:
    """What the values say, written out with transformers' attention given values for queries and keys."""
    clip, images = Clip(*tiny_parts), Images(tiny_images, (0, 1))
    vision = clip.model.vision_model
    tokens = values = vision.pre_layrnorm(clip.image_embeddings(images))
    for number, block in enumerate(vision.encoder.layers):
        attention = copy.deepcopy(block.self_attn)
        attention.q_proj, attention.k_proj = attention.v_proj, attention.v_proj
        values = values + attention(block.layer_norm1(tokens))[0]
        torch.testing.assert_close(values, clip.value_tokens(images, number + 1), rtol=1e-4, atol=1e-5)
        tokens = block(tokens, None)
    torch.testing.assert_close(clip.value_tokens(images, 2), Clip(*tiny_parts, batch=4).value_tokens(images, 2))
    assert torch.equal(clip.image_tokens(images, 2), Clip(*tiny_parts).image_tokens(images, 2))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_texts_with_a_shared_prefix_are_encoded_as_texts(tiny_clip: Clip, size: int) -> None:
    """Features and gradients, whatever the members have in common: words, one of them all, or the start alone."""
    names = ("dog", "cat which is a car", "dog of the tree", "the", "a photo", "four legs")
    texts = [f"<own> {'photo' if place < 3 else 'the car'} <common> {name}." for place, name in enumerate(names)]
    draws = torch.Generator().manual_seed(0)
    own = torch.randn(6 // size, 3, tiny_clip.text_width, generator=draws)
    common = torch.randn(2, tiny_clip.text_width, generator=draws)
    results = []
    for encode in (tiny_clip.encode_text, lambda prompts: tiny_clip.encode_shared_prefixes(prompts, size)):
        first, second = own.clone().requires_grad_(), common.clone().requires_grad_()
        features = encode(tiny_clip.fill(texts, own=first.repeat_interleave(size, dim=0), common=second))
        features.square().sum().backward()
        results.append((features.detach(), first.grad, second.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    for words in (["dog"] * 6, ["dog", "cat"] * 3):
        prompts = tiny_clip.fill(words)
        torch.testing.assert_close(tiny_clip.encode_shared_prefixes(prompts, 2), tiny_clip.encode_text(prompts))


def test_the_lean_activation_keeps_one_tensor_for_its_gradient() -> None:
    """Same values and gradients as transformers' own, which keeps two tensors of the feed-forward's width."""
    x, kept = torch.linspace(-9, 9, 400, dtype=torch.float64, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        lean = LeanQuickGELU()(x)
    assert sum(count for count in kept if count > 1) == x.numel()
    whole = QuickGELUActivation()(x)
    torch.testing.assert_close(lean, whole)
    torch.testing.assert_close(torch.autograd.grad(lean.sum(), x), torch.autograd.grad(whole.sum(), x))


def test_many_texts_are_encoded_in_parts_with_the_same_features_and_gradients(
    tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"<ctx> a {name}." for name in ("cat", "dog", "house", "tree house", "sea")]
    vectors = tiny_clip.token_embeddings("a photo of")

    def encoded() -> tuple[torch.Tensor, torch.Tensor]:
        context = vectors.clone().requires_grad_()
        features = tiny_clip.encode_text(tiny_clip.fill(texts, ctx=context))
        features.square().sum().backward()
        assert context.grad is not None
        return features.detach(), context.grad

    whole = encoded()
    monkeypatch.setattr(encoders, "MOST_TEXTS", 4)
    monkeypatch.setattr(encoders, "TEXTS", 2)
    sizes: list[int] = []

    def count(run: Callable[[torch.Tensor, slice], torch.Tensor], x: torch.Tensor, *, size: int) -> torch.Tensor:
        return recomputed(lambda part, rows: sizes.append(len(part)) or run(part, rows), x, size=size)

    monkeypatch.setattr(encoders, "recomputed", count)
    for mine, theirs in zip(encoded(), whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert sizes == [2, 2, 1] * 2, "once forward, and once more for the gradient"
