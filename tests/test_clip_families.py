"""Every family's encoders equal transformers' own forward passes, on random towers of several shapes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize, pad
from transformers import BertModel, ViTConfig, ViTModel

from fedprompt.clip import families
from fedprompt.clip.families.siglip import pool_each
from fedprompt.clip.model import Clip, Prompts
from fedprompt.data.images import Images
from fedprompt.errors import UserError
from fedprompt.testing import TinyImages
from fedprompt.testing.tiny_families import FAMILIES, tiny_backbone

TEXTS = ("a photo of a dog.", "the cat", "a photo of a zebra which has four legs.")
IMAGES = Images(TinyImages(), (3, 0, 5))
SHAPES: dict[str, dict[str, Any]] = {
    "as they are": {},
    "one block": {"text": {"num_hidden_layers": 1}, "vision": {"num_hidden_layers": 1}},
    "other sizes": {
        "text": {"hidden_size": 48, "num_attention_heads": 2, "max_position_embeddings": 45},
        "vision": {"image_size": 24, "patch_size": 4, "hidden_size": 60, "num_attention_heads": 5},
    },
    "GELU": {"text": {"hidden_act": "gelu"}, "vision": {"hidden_act": "gelu"}},
}
OTHERS = tuple(name for name in FAMILIES if name != "clip")  # which has a file of its own


def build(family: str, shape: str) -> Clip:
    sizes = copy.deepcopy(SHAPES[shape])
    if "siglip" in family and "hidden_size" in sizes.get("text", {}):
        sizes["text"]["projection_size"] = sizes["vision"]["hidden_size"]
    return Clip(*FAMILIES[family](sizes))


def padded_ids(clip: Clip) -> dict[str, torch.Tensor]:
    """What each tower's own tokenizer makes of the texts; SigLIP is given no mask, as its processor gives none."""
    own = clip.tokenizer.tokenizer
    found = own(list(TEXTS), padding="max_length", max_length=clip.context_length, truncation=True, return_tensors="pt")
    return {key: found[key] for key in ("input_ids", *["attention_mask"] * (clip.tokenizer.special.length is None))}


def reference(clip: Clip) -> dict[str, torch.Tensor]:
    """Features by the forward passes of transformers on a model of its own."""
    pixels = clip.processor(images=list(IMAGES), return_tensors="pt")["pixel_values"]
    model = type(clip.model)(clip.model.config).eval()
    model.load_state_dict(clip.model.state_dict())
    with torch.no_grad():
        if clip.model.config.model_type == "vit_bert":
            return dual_reference(model, pixels, padded_ids(clip))
        return {
            "image": model.get_image_features(pixels).pooler_output,
            "text": model.get_text_features(**padded_ids(clip)).pooler_output,
            "last": model.vision_model(pixels, output_hidden_states=True).last_hidden_state,
        }


def dual_reference(model: Any, pixels: torch.Tensor, ids: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A ViT and a BERT of transformers with the same weights, each read at its first token."""
    sizes = model.config.vision_config
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    vit = ViTModel(
        ViTConfig(**{key: getattr(sizes, key) for key in keys}, hidden_act=sizes.hidden_act, layer_norm_eps=1e-6),
        add_pooling_layer=False,
    ).eval()
    ours, table = model.vision_model, vit.embeddings
    table.cls_token.copy_(ours.embeddings.class_embedding)
    table.position_embeddings.copy_(ours.embeddings.position_embedding.weight)
    table.patch_embeddings.projection.load_state_dict(ours.embeddings.patch_embedding.state_dict())
    vit.layernorm.load_state_dict(ours.post_layernorm.state_dict())
    for theirs, block in zip(vit.layers, ours.encoder.layers, strict=True):
        theirs.layernorm_before.load_state_dict(block.layer_norm1.state_dict())
        theirs.layernorm_after.load_state_dict(block.layer_norm2.state_dict())
        theirs.mlp.load_state_dict(block.mlp.state_dict())
        renamed = {name.replace("out_proj", "o_proj"): one for name, one in block.self_attn.state_dict().items()}
        theirs.attention.load_state_dict(renamed)
    bert = BertModel(model.config.text_config, add_pooling_layer=False).eval()
    bert.load_state_dict(model.text_model.state_dict())
    last = vit(pixels).last_hidden_state
    return {
        "image": last[:, 0] @ model.visual_projection.weight.T,
        "text": model.text_projection(bert(**ids).last_hidden_state[:, 0]),
        "last": last,
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", OTHERS)
def test_features_equal_transformers_own_outputs(family: str, shape: str) -> None:
    clip = build(family, shape)
    expected = reference(clip)
    encoded = clip.encode_image(clip.image_embeddings(IMAGES))
    last = clip.image_blocks - 1
    later = clip.encode_image(clip.image_tokens(IMAGES, last), start=last) if last else encoded
    pairs = {
        "image": (encoded.image, expected["image"]),
        "image from the last block": (later.image, expected["image"]),
        "text": (clip.encode_text(clip.fill(TEXTS)), expected["text"]),
        "image features": (clip.image_features(IMAGES), normalize(expected["image"], dim=-1)),
        "text features": (clip.text_features(TEXTS), normalize(expected["text"], dim=-1)),
    }
    for name, (ours, theirs) in pairs.items():
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_siglips_logits_have_its_scale_and_bias(family: str) -> None:
    clip = tiny_backbone(family)
    pixels = clip.processor(images=list(IMAGES), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = clip.model(pixel_values=pixels, **padded_ids(clip)).logits_per_image
    assert clip.bias != 0
    ours = clip.scale * clip.image_features(IMAGES) @ clip.text_features(TEXTS).T + clip.bias
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_a_patch_of_siglip_is_what_its_pooling_head_reads_of_it_alone() -> None:
    clip = tiny_backbone("siglip")
    encoded, vision = clip.encode_image(clip.image_embeddings(IMAGES)), clip.model.vision_model
    states = vision.post_layernorm(encoded.output)  # [B, P, W]
    alone = vision.head(states.flatten(0, 1)[:, None]).view(3, clip.patches, -1)
    torch.testing.assert_close(encoded.patches, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pool_each(vision.head, states[0, 0]), alone[0, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(clip.project_image(encoded.output), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_appended_tokens_change_the_image_and_add_readings(family: str) -> None:
    clip = tiny_backbone(family)
    embeddings = clip.image_embeddings(IMAGES)
    assert embeddings.shape[1] == clip.leading + clip.patches
    added = torch.randn(3, 2, clip.image_width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    encoded = clip.encode_image(torch.cat([embeddings, added], dim=1))
    assert encoded.patches.shape == (3, clip.patches + 2, clip.dim)
    assert not torch.allclose(encoded.image, clip.encode_image(embeddings).image, atol=1e-3)
    encoded.image.sum().backward()
    assert added.grad is not None and bool((added.grad.abs().sum(dim=-1) > 0).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_context_of_words_is_the_sentence_with_those_words(family: str) -> None:
    clip = tiny_backbone(family)
    words = clip.token_embeddings("a photo of a")
    written = ("a photo of a dog.", "a photo of a horse which has four legs.")
    filled = clip.fill(["<ctx> dog.", "<ctx> horse which has four legs."], ctx=words)
    assert torch.equal(filled.embeddings, clip.fill(written).embeddings)
    expected = clip.text_features(written)
    torch.testing.assert_close(normalize(clip.encode_text(filled), dim=-1), expected, atol=1e-5, rtol=1e-5)
    together = clip.encode_shared_prefixes(filled, 2)
    torch.testing.assert_close(normalize(together, dim=-1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_learned_vectors_get_gradients_in_the_slots_of_texts_of_any_length(family: str) -> None:
    clip = tiny_backbone(family)
    vectors = torch.randn(3, clip.text_width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    prompts = clip.fill(["<ctx> dog.", "the <ctx> tree of the old photo"], ctx=vectors)
    places = prompts.embeddings[torch.arange(2)[:, None], prompts.slots["ctx"]]
    assert torch.equal(places, vectors.expand(2, -1, -1))
    clip.encode_text(prompts).square().sum().backward()
    assert vectors.grad is not None and bool((vectors.grad.abs().sum(dim=-1) > 0).all())


def test_padding_that_a_tower_does_not_see_changes_nothing() -> None:
    clip = tiny_backbone("vit_bert")
    prompts = clip.fill(TEXTS)
    longer = Prompts(pad(prompts.embeddings, (0, 0, 0, 5), value=3.0), prompts.end, prompts.slots)
    torch.testing.assert_close(clip.encode_text(longer), clip.encode_text(prompts), atol=1e-5, rtol=1e-5)


def test_siglip_is_given_whole_rows_and_reads_their_padding() -> None:
    clip = tiny_backbone("siglip")
    prompts = clip.fill(TEXTS)
    assert prompts.embeddings.shape[1] == clip.context_length and prompts.end.tolist() == [clip.context_length - 1] * 3
    assert {len(row) for row in clip.tokenizer.sentences(["dog", "a photo of a dog " * 20])} == {clip.context_length}
    other = prompts.embeddings.clone()
    other[:, -5:-1] += torch.randn(4, clip.text_width, generator=torch.Generator().manual_seed(0))
    changed = clip.encode_text(Prompts(other, prompts.end, {}))
    assert not torch.allclose(changed, clip.encode_text(prompts), atol=1e-3)


def test_padding_on_the_left_moves_the_slots() -> None:
    model, tokenizer, processor = FAMILIES["siglip"]({})
    tokenizer.padding_side = "left"
    clip = Clip(model, tokenizer, processor)
    vectors = torch.ones(2, clip.text_width)
    prompts = clip.fill(["the <ctx> dog"], ctx=vectors)
    assert torch.equal(prompts.embeddings[0, prompts.slots["ctx"][0]], vectors)
    assert prompts.slots["ctx"].tolist() == [[clip.context_length - 4, clip.context_length - 3]]


@pytest.mark.parametrize("family", ["siglip", "vit_bert"])
def test_edits_that_a_family_does_not_offer_are_refused_where_they_are_asked_for(family: str) -> None:
    clip = tiny_backbone(family)
    with pytest.raises(
        UserError, match=r"changes tokens between the blocks of the text tower, which a .* does not offer"
    ):
        clip.encode_text(clip.fill(TEXTS), edit=lambda _, tokens: tokens)


def test_siglip_has_no_value_value_attention() -> None:
    with pytest.raises(UserError, match="value-value attention, which a SigLIP backbone does not offer, since"):
        tiny_backbone("siglip").value_tokens(IMAGES, 1)


def test_a_siglip_without_pooling_head_is_refused() -> None:
    model, tokenizer, processor = FAMILIES["siglip"]({"vision": {"vision_use_head": False}})
    with pytest.raises(UserError, match="no pooling head"):
        Clip(model, tokenizer, processor)


@pytest.mark.parametrize("family", ["metaclip_2", "siglip", "vit_bert"])
@pytest.mark.parametrize("vocabulary", [20, 5000])
def test_a_tokenizer_of_another_vocabulary_is_refused(family: str, vocabulary: int) -> None:
    model, _, processor = FAMILIES[family]({"text": {"vocab_size": vocabulary, "pad_token_id": 0, "eos_token_id": 0}})
    with pytest.raises(UserError, match=f"knows {vocabulary} token ids, but the tokenizer has .* was trained with"):
        Clip(model, FAMILIES[family]({})[1], processor)


def test_metaclip_is_read_at_its_end_tokens_own_id() -> None:
    model, _, processor = FAMILIES["metaclip_2"]({"text": {"eos_token_id": 1}})
    with pytest.raises(UserError, match="is read at id 1, but the tokenizer starts a sentence with id 0"):
        Clip(model, FAMILIES["metaclip_2"]({})[1], processor)


def test_every_family_is_a_file_that_says_what_it_is() -> None:
    assert families.names() == ("clip", "metaclip_2", "siglip", "vit_bert")
    assert [families.find(name).title for name in families.names()] == ["CLIP", "MetaCLIP 2", "SigLIP", "ViT and BERT"]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("siglip2", "NaFlex kind, whose number of patches varies"),
        ("bert", "its model_type is 'bert', which is none of"),
        ("llava", "its model_type is 'llava', which is none of"),
        ("sigli", "did you mean 'siglip'"),
    ],
)
def test_other_kinds_of_models_are_refused_with_the_reason(kind: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        families.find(kind)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_backbone_has_the_same_weights_whenever_it_is_made(family: str) -> None:
    first, again = (FAMILIES[family]({})[0].state_dict() for _ in range(2))
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
