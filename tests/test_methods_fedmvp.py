"""FedMVP: published sizes, the paper's formula on PyTorch's own parts, exact symmetries, and the LoRA phase."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Examples
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.federated.client import Client, TrainSettings, train_client
from fedprompt.federated.rounds import initial_state
from fedprompt.methods.fedmvp import FedMVP
from fedprompt.ops.layers import unit
from fedprompt.ops.losses import objective
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages
from fedprompt.updates import Update, weighted_mean

SPACE = LabelSpace(
    ("dog", "cat", "car", "tree"),
    attributes={
        "dog": ("four legs", "a round photo"),
        "cat": ("four legs",),
        "car": ("round", "is a photo", "the legs"),
    },
)
ROWS = (0, 3, 4, 7, 8)
TARGETS = torch.tensor([0, 1, 2, 3, 0])


def build(clip: Clip, **options: object) -> FedMVP:
    """A method whose LoRA factors have left zero, so that every tensor takes part."""
    method = FedMVP(clip, generator=stream(0, "method"), **options)
    if method.lora is not None:
        nn.init.normal_(method.lora.up, std=0.3, generator=stream(0, "up"))
    return method


def logits(method: FedMVP, clip: Clip, space: LabelSpace = SPACE, rows: tuple[int, ...] = ROWS) -> Tensor:
    with torch.no_grad():
        return method.classifier(clip, space)(Images(TinyImages(), rows))


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-4)  # 1e-5 of the scale, 20


def test_published_sizes() -> None:
    vit = SimpleNamespace(image_width=768, dim=512)
    sizes = {name: parameter.numel() for name, parameter in FedMVP(vit).named_parameters()}
    assert sum(size for name, size in sizes.items() if name.startswith("lora")) == 36_864
    assert sum(sizes.values()) - 36_864 == 9_845_760


@pytest.mark.parametrize("attribute_text", ["bare", "sentence"])
@pytest.mark.parametrize("n_tokens", [1, 3, 16])
def test_logits_are_the_papers_formula(tiny_clip: Clip, attribute_text: str, n_tokens: int) -> None:
    """With PyTorch's own attention and pooling, and the mean of cosines written out."""
    method = build(tiny_clip, attribute_text=attribute_text, n_tokens=n_tokens, heads=3)
    former, attention = method.promptformer, method.promptformer.attention
    theirs = nn.MultiheadAttention(tiny_clip.image_width, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": attention.in_weight,
            "in_proj_bias": attention.in_bias,
            "out_proj.weight": attention.out.weight,
            "out_proj.bias": attention.out.bias,
        }
    )
    sentences = [
        ["a photo of a dog, which has four legs.", "a photo of a dog, which is a round photo."],
        ["a photo of a cat, which has four legs."],
        [
            "a photo of a car, which has round.",
            "a photo of a car, which is a photo.",
            "a photo of a car, which has the legs.",
        ],
        ["a photo of a tree."],
    ]
    bare = ["four legs", "a round photo", "four legs", "round", "is a photo", "the legs", "a photo of a tree."]
    texts = bare if attribute_text == "bare" else [sentence for group in sentences for sentence in group]
    embeddings = tiny_clip.image_embeddings(Images(TinyImages(), ROWS))
    keys = former.norm_context(method.project(tiny_clip.text_features(texts))).expand(len(ROWS), -1, -1)
    queries = former.norm_queries(embeddings[:, 1:])
    q, k, v = (x + x @ method.lora.down[part] @ method.lora.up[part] for part, x in enumerate((queries, keys, keys)))
    attended, weights = theirs(q, k, v)
    mixed = attended + former.feed_forward(attended)
    prompts = F.adaptive_avg_pool1d(mixed.transpose(1, 2), n_tokens).transpose(1, 2)
    image = unit(tiny_clip.encode_image(torch.cat([embeddings, prompts], dim=1)).image)
    cosines = [(image @ tiny_clip.text_features(group).T).mean(dim=1) for group in sentences]
    same(logits(method, tiny_clip), (tiny_clip.scale * torch.stack(cosines, dim=1)).detach())
    seen = method.attention(tiny_clip, Images(TinyImages(), ROWS), SPACE)
    columns = sorted(range(len(texts)), key=lambda column: texts[column])
    assert [text for text, _ in seen.attributes] == sorted(texts)
    torch.testing.assert_close(seen.weights.mean(dim=0), weights[..., columns])


def test_orders_do_not_matter(tiny_clip: Clip) -> None:
    method, order = build(tiny_clip), (2, 0, 3, 1)
    same(logits(method, tiny_clip, SPACE.take(order)), logits(method, tiny_clip)[:, order])
    backwards = {name: phrases[::-1] for name, phrases in reversed(SPACE.attributes.items())}
    same(logits(method, tiny_clip, replace(SPACE, attributes=backwards)), logits(method, tiny_clip))


def test_prompts_follow_attributes_and_candidates(tiny_clip: Clip) -> None:
    method = build(tiny_clip)
    fewer = logits(method, tiny_clip, SPACE.take((0, 1)))
    assert not torch.allclose(fewer, logits(method, tiny_clip)[:, :2], atol=1e-3)
    plain = replace(SPACE, attributes={})
    sentence = build(tiny_clip, attribute_text="sentence")
    same(logits(method, tiny_clip, plain), logits(sentence, tiny_clip, plain))  # both fall back to the template


def test_what_conditions_the_prompts(tiny_clip: Clip) -> None:
    renamed = replace(SPACE, attributes={})
    image, text = (build(tiny_clip, conditioning=word) for word in ("image", "text"))
    contexts = (image._context(tiny_clip, space) for space in (SPACE, renamed))
    first, second = (image._encode(tiny_clip, Images(TinyImages(), ROWS), own).tokens for own in contexts)
    assert torch.equal(first, second)
    seen: list[Tensor] = []
    text.promptformer.register_forward_hook(lambda _, inputs, output: seen.append(output))
    logits(text, tiny_clip), logits(text, tiny_clip, rows=(1, 2)), logits(text, tiny_clip, renamed)
    assert torch.equal(seen[0], seen[1]) and not torch.allclose(seen[0], seen[2])
    for method in (image, text):
        assert method.attention(tiny_clip, Images(TinyImages(), ROWS), SPACE) is None


def test_diagnostics_are_those_of_its_prompts_and_features(tiny_clip: Clip) -> None:
    images = Images(TinyImages(), ROWS)
    with torch.no_grad():
        found = {one.name: one.value for one in build(tiny_clip).diagnostics(tiny_clip, images, SPACE)}
        text = build(tiny_clip, conditioning="text").diagnostics(tiny_clip, images, SPACE)
    assert 0 < found["attention entropy"] < 1
    assert 0 < found["prompt spread over images"] < 1 and 0 < found["prompt spread over positions"] < 1
    assert -1 < found["cosine to the frozen feature"] < 1
    assert [one.name for one in text] == list(found)[1:], "without patches there is no attention"
    assert text[0].value == pytest.approx(0, abs=1e-6), "prompts from texts alone are the same for all images"


def test_fresh_lora_changes_nothing(tiny_clip: Clip) -> None:
    with_lora = FedMVP(tiny_clip, lora_rank=3, generator=stream(0, "method"))
    without = FedMVP(tiny_clip, lora=False, generator=stream(0, "method"))
    assert with_lora.lora.down.shape == (3, tiny_clip.image_width, 3)
    assert torch.equal(logits(with_lora, tiny_clip), logits(without, tiny_clip))


@pytest.mark.parametrize("flip", ["image", "batch"])
def test_the_loss_pulls_towards_frozen_clip(tiny_clip: Clip, flip: str) -> None:
    images = Images(TinyImages(), ROWS)
    method, plain = build(tiny_clip, flip=flip, consistency=2.5), build(tiny_clip, consistency=0.0)
    task = plain.loss(tiny_clip, images, TARGETS, SPACE, stream=stream(1))
    torch.testing.assert_close(task, F.cross_entropy(logits(plain, tiny_clip), TARGETS), rtol=1e-4, atol=1e-5)
    features = unit(method._encode(tiny_clip, images, method._context(tiny_clip, SPACE)).image)
    for seed in range(6):
        coins = torch.rand(len(ROWS) if flip == "image" else 1, generator=stream(seed)) < 0.5
        frozen = tiny_clip.image_features(images.flipped(coins.expand(len(ROWS))))
        expected = task + 2.5 * (1 - F.cosine_similarity(features, frozen).mean())
        torch.testing.assert_close(method.loss(tiny_clip, images, TARGETS, SPACE, stream=stream(seed)), expected)


def train(clip: Clip, method: FedMVP, *, epochs: int = 1, round_number: int = 1, state: Update | None = None) -> Update:
    shared, personal = initial_state(method)
    if state is not None:
        shared, personal = shared | state.shared, state.personal
    client = Client(0, "zero", Examples(Images(TinyImages(), ROWS), TARGETS, SPACE))
    settings = TrainSettings(rounds=9, local_epochs=epochs, batch_size=2, lr=1e-3)
    return train_client(
        method, clip, client, shared=shared, personal=personal, round_number=round_number, settings=settings
    )


def test_a_client_that_has_learned_enough_sends_only_lora(tiny_clip: Clip) -> None:
    method = FedMVP(tiny_clip, sigma=1e3, generator=stream(0, "method"))
    first = train(tiny_clip, method)
    assert first.personal["phase"] and not first.personal["cross_entropy_sum"].any()
    assert not any(name.startswith("lora") for name in first.shared)
    fresh = FedMVP(tiny_clip, sigma=1e3, generator=stream(0, "method"))
    second = train(tiny_clip, fresh, round_number=2, state=first)
    assert set(second.shared) == {"lora.down", "lora.up"} and second.bytes * 4 < first.bytes
    assert second.shared["lora.up"].any()
    averaged = weighted_mean({**initial_state(method)[0], **first.shared}, [second], [1.0])
    assert all(torch.equal(averaged[name], tensor) for name, tensor in first.shared.items())


def test_the_phase_is_decided_by_cross_entropy_on_the_first_pass(tiny_clip: Clip) -> None:
    """A mean over images, so a small last batch counts little; neither later epochs nor consistency count."""
    method = FedMVP(tiny_clip, generator=stream(0, "method"))
    parameters = dict(method.named_parameters())
    optimizer = torch.optim.SGD(
        [parameters[name] for name in method.trainable()], lr=1e-3, momentum=0.9, weight_decay=1e-5
    )
    draws = stream(0, "loss", 0, 1, 0)
    entropies: list[float] = []
    for positions in torch.randperm(len(ROWS), generator=stream(0, "client", 0, 1, 0)).split(2):
        images, targets = Images(TinyImages(), ROWS).take(positions), TARGETS[positions]
        entropies += F.cross_entropy(method.classifier(tiny_clip, SPACE)(images), targets, reduction="none").tolist()
        optimizer.zero_grad()
        method.loss(tiny_clip, images, targets, SPACE, stream=draws).backward()
        optimizer.step()
    mean = sum(entropies) / len(entropies)
    above, below = (
        train(tiny_clip, FedMVP(tiny_clip, sigma=sigma, generator=stream(0, "method")), epochs=2)
        for sigma in (mean * 1.0001, mean * 0.9999)
    )
    assert above.personal["phase"] and {"lora.up", "project.weight"} <= set(above.shared)
    assert not below.personal["phase"] and "lora.up" not in below.shared


def test_without_lora_there_is_no_second_phase(tiny_clip: Clip) -> None:
    update = train(tiny_clip, FedMVP(tiny_clip, lora=False, sigma=1e3, generator=stream(0, "method")))
    assert not update.personal["phase"] and set(update.shared) == set(initial_state(FedMVP(tiny_clip, lora=False))[0])


def test_lora_gradients_reach_both_factors_and_nothing_else(tiny_clip: Clip) -> None:
    method = build(tiny_clip)
    method.phase.fill_(1)
    assert method.trainable() == ("lora.down", "lora.up")
    parameters = dict(method.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in method.trainable())
    method.loss(tiny_clip, Images(TinyImages(), ROWS), TARGETS, SPACE, stream=stream(0)).backward()
    for name, parameter in parameters.items():
        assert (parameter.grad is not None) == name.startswith("lora")
        assert parameter.grad is None or all(part.any() for part in parameter.grad)


def test_multi_label_compares_every_token(tiny_clip: Clip) -> None:
    method, space, images = build(tiny_clip, consistency=0.0), replace(SPACE, kind="multi"), Images(TinyImages(), ROWS)
    encoded = method._encode(tiny_clip, images, method._context(tiny_clip, space))
    tokens = unit(torch.cat([encoded.image[:, None], encoded.patches], dim=1))
    assert tokens.shape[1] == 1 + tiny_clip.patches + 4
    groups = space.attribute_texts()
    text = torch.stack([unit(tiny_clip.text_features(group).mean(dim=0)) for group in groups])
    present, absent = 20 * tokens @ text.T, 20 * tokens @ tiny_clip.text_features(["a photo."]).T
    expected = 5 * (present.softmax(dim=1) * (present - absent)).sum(dim=1)
    same(logits(method, tiny_clip, space), expected.detach())
    targets = F.one_hot(TARGETS, 4)
    targets[0, 1] = -1
    loss = method.loss(tiny_clip, images, targets, space, stream=stream(0))
    torch.testing.assert_close(loss, objective("multi")(expected, targets), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n_tokens": 0}, "n_tokens = 0 is too small; give at least 1"),
        ({"consistency": -1.0}, r"consistency = -1.0 is too small; give at least 0"),
        ({"sigma": float("nan")}, "sigma = nan is too small"),
        ({"flip": "bath"}, "flip = 'bath' is unknown; choose one of 'image', 'batch'"),
        ({"heads": 5}, "heads = 5 does not divide the width 48"),
    ],
)
def test_options_that_make_no_sense_are_refused(tiny_clip: Clip, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        FedMVP(tiny_clip, **options)


def test_only_its_lora_phase_is_no_part_of_a_privacy_budget(tiny_clip: Clip) -> None:
    assert "set method.lora = false" in FedMVP(tiny_clip).unaccounted
    assert not FedMVP(tiny_clip, lora=False).unaccounted and not FedMVP(tiny_clip, sigma=0.0).unaccounted
