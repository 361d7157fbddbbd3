"""FedMPT: the formula with POT's transport, its limits, its switches, and gradients with the plan held fixed."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import ot
import pytest
import torch
from torch import Tensor, nn

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.methods import fedmpt
from fedprompt.methods.fedmpt import PUBLISHED_CONDITIONS, FedMPT
from fedprompt.ops.layers import unit
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages

SPACE = LabelSpace(("dog", "cat", "four_legs"), "multi", conditions=("photo", "the tree", "car"))
IMAGES = Images(TinyImages(), (0, 3, 4))


def trained(clip: Clip, *, n_conditions: int = 3, **options: Any) -> FedMPT:
    """A method whose adapters and gate are no longer zero."""
    method = FedMPT(clip, n_conditions=n_conditions, rank=5, generator=stream(0, "method"), **options)
    draws = stream(0, "training")
    for parameter in method.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=draws)
    return method


def probability(method: FedMPT, clip: Clip, space: LabelSpace = SPACE) -> Tensor:
    return method.classifier(clip, space)(IMAGES).sigmoid().detach()


def close(ours: Tensor, theirs: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def test_size() -> None:
    def size(**options: Any) -> int:
        vit = SimpleNamespace(text_width=512, dim=512, scale=100.0)
        return sum(parameter.numel() for parameter in FedMPT(vit, **options).parameters())

    assert size() == 192_709
    assert size(condition_ctx=5, class_ctx=7) == 192_709 + (5 + 3) * 512
    assert size(adapters=False, gate=False) == 24 * 512
    assert size(adapters=False, gate=False, condition_ctx=0, class_ctx=0) == 0


def test_without_words_the_names_of_conditions_do_not_matter(tiny_clip: Clip) -> None:
    other = LabelSpace(SPACE.names, "multi", conditions=("legs", "a dog", "the"))
    named, learned = trained(tiny_clip), trained(tiny_clip, condition_words=False)
    assert not torch.equal(probability(named, tiny_clip), probability(named, tiny_clip, other))
    assert torch.equal(probability(learned, tiny_clip), probability(learned, tiny_clip, other))
    texts = learned.texts(tiny_clip, SPACE)
    assert not torch.allclose(texts[0], texts[1], atol=1e-3), "learned vectors tell conditions apart"
    assert learned.explain(tiny_clip, IMAGES, other).conditions == other.conditions


def test_diagnostics_are_those_of_its_gate_plans_and_conditions(tiny_clip: Clip) -> None:
    with torch.no_grad():
        found = {one.name: one.value for one in trained(tiny_clip).diagnostics(tiny_clip, IMAGES, SPACE)}
        fresh = FedMPT(tiny_clip, n_conditions=3, transport=False, generator=stream(0, "method"))
        even = fresh.diagnostics(tiny_clip, IMAGES, SPACE)[0]
    assert list(found)[:2] == ["gate entropy", "plan entropy"] and all(0 < value <= 1 for value in found.values())
    assert sum(list(found.values())[2:]) == pytest.approx(1)
    assert even.name == "gate entropy" and even.value == pytest.approx(1), "a gate starts uniform"


@pytest.mark.parametrize("transport", [True, False])
def test_it_is_the_papers_formula(tiny_clip: Clip, transport: bool) -> None:
    """Written out picture by picture, with the adapted patches made and POT's transport."""
    method = trained(tiny_clip, transport=transport, tau=2.0, entropy=0.15)
    method.gate[1].weight.data *= 10  # what tiny pictures have in common would hide their gates
    probabilities, texts = probability(method, tiny_clip), method.texts(tiny_clip, SPACE)
    for row, (patches, image) in enumerate(
        zip(tiny_clip.patch_features(IMAGES), tiny_clip.image_features(IMAGES), strict=True)
    ):
        found = []
        for text, down, up in zip(texts, method.down, method.up, strict=True):
            scores = tiny_clip.scale * unit(patches + (patches @ down) @ up) @ text.T / 2.0  # [P, C]
            shares, claims = scores.softmax(dim=1), scores.max(dim=1).values.softmax(dim=0)
            rows, cost = claims.detach().double(), (1 - shares).detach().double()
            columns = torch.full((3,), float(rows.sum()) / 3, dtype=torch.float64)
            plan = ot.sinkhorn(rows, columns, cost, 0.15) if transport else torch.outer(rows, columns)
            found.append(3 * (plan * shares).sum(dim=0))
        weights = (method.gate[1].weight @ (method.gate[0](image)) + method.gate[1].bias).softmax(dim=0)
        close(probabilities[row], (weights.double() @ torch.stack(found)).detach().float(), atol=1e-3)


def test_one_condition_and_equal_patches_are_the_pooled_feature(
    tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = trained(tiny_clip, n_conditions=1, adapters=False, gate=False, transport=False)
    pooled = tiny_clip.image_features(IMAGES)
    monkeypatch.setattr(tiny_clip, "patch_features", lambda images: pooled[:, None].expand(-1, 16, -1))
    scores = tiny_clip.scale * pooled @ method.texts(tiny_clip, SPACE)[0].T / method.tau
    close(probability(method, tiny_clip), scores.softmax(dim=1).detach())


def test_words_as_vectors_make_the_sentence(tiny_clip: Clip) -> None:
    method = FedMPT(tiny_clip, n_conditions=2, generator=stream(0))
    method.condition_ctx.data = torch.stack(
        [tiny_clip.token_embeddings("a photo of a"), tiny_clip.token_embeddings("an the is has")]
    )
    method.class_ctx.data = tiny_clip.token_embeddings("which has the four")
    sentences = [
        "a photo of a photo which has the four dog.",
        "a photo of a photo which has the four cat.",
        "a photo of a photo which has the four four legs.",
        "an the is has the tree which has the four dog.",
        "an the is has the tree which has the four cat.",
        "an the is has the tree which has the four four legs.",
    ]
    close(method.texts(tiny_clip, SPACE), tiny_clip.text_features(sentences).view(2, 3, -1))
    bare = FedMPT(tiny_clip, n_conditions=1, condition_ctx=0, class_ctx=0)
    close(bare.texts(tiny_clip, SPACE.take([1]))[0], tiny_clip.text_features(["photo cat."]))


def test_conditions_have_no_order(tiny_clip: Clip) -> None:
    method, order = trained(tiny_clip), [2, 0, 1]
    before = probability(method, tiny_clip)
    for name, parameter in method.named_parameters():
        if name in {"condition_ctx", "down", "up", "gate.1.weight", "gate.1.bias"}:
            parameter.data = parameter.data[order]
    assert not torch.allclose(probability(method, tiny_clip), before, atol=1e-3)
    shuffled = LabelSpace(SPACE.names, "multi", conditions=tuple(SPACE.conditions[place] for place in order))
    close(probability(method, tiny_clip, shuffled), before)


@pytest.mark.parametrize("evidence", ["softmax", "similarity"])
@pytest.mark.parametrize("gate_input", ["image", "patches"])
def test_the_classifier_says_what_its_explanation_shows(tiny_clip: Clip, evidence: Any, gate_input: Any) -> None:
    method = trained(tiny_clip, evidence=evidence, gate_input=gate_input)
    view = method.explain(tiny_clip, IMAGES, SPACE)
    assert view.gate.shape == (3, 3) and view.evidence.shape == (3, 3, 3) and view.plans.shape == (3, 3, 16, 3)
    assert view.evidence.min() >= 0 and view.evidence.max() <= 1 + 1e-6
    assert not (view.gate.requires_grad or view.evidence.requires_grad or view.plans.requires_grad)
    close(view.gate.sum(dim=1), torch.ones(3))
    close(view.plans.sum(dim=2), torch.full((3, 3, 3), 1 / 3))
    assert (view.plans.sum(dim=(2, 3)) - 1).abs().max() < 1e-5
    probabilities = (view.gate[..., None] * view.evidence).sum(dim=1)
    close(probability(method, tiny_clip), probabilities)
    single = LabelSpace(SPACE.names, conditions=SPACE.conditions)
    close(
        method.classifier(tiny_clip, single)(IMAGES).softmax(dim=1).detach(),
        probabilities / probabilities.sum(1, keepdim=True),
    )


def test_the_gate_may_read_the_patches(tiny_clip: Clip) -> None:
    method = trained(tiny_clip, gate_input="patches")
    weights = method.gate(tiny_clip.patch_features(IMAGES).mean(dim=1)).softmax(dim=1).detach()
    close(method.explain(tiny_clip, IMAGES, SPACE).gate, weights)


def test_a_fresh_gate_is_no_gate(tiny_clip: Clip) -> None:
    method, ungated = (FedMPT(tiny_clip, n_conditions=3, gate=gate, generator=stream(0)) for gate in (True, False))
    view = method.explain(tiny_clip, IMAGES, SPACE)
    close(view.gate, torch.full((3, 3), 1 / 3))
    close(probability(method, tiny_clip), view.evidence.mean(dim=1))
    assert torch.equal(probability(method, tiny_clip), probability(ungated, tiny_clip))


def test_similarities_count_from_a_text_about_nothing(tiny_clip: Clip) -> None:
    method = FedMPT(tiny_clip, n_conditions=1, adapters=False, evidence="similarity", transport=False)
    nothing = tiny_clip.text_features(["a photo."])
    evidence, _ = method.evidence(tiny_clip, tiny_clip.patch_features(IMAGES), nothing[None])
    close(evidence, torch.full((3, 1, 1), 0.5))


@pytest.mark.parametrize("unroll", [False, True])
def test_gradients(tiny_parts: tuple[nn.Module, Any, Any], unroll: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the evidence with respect to prompts and adapters: with the plan held fixed, or of everything."""
    clip = Clip(copy.deepcopy(tiny_parts[0]), *tiny_parts[1:])
    patches = clip.patch_features(IMAGES.take([0]))[:, :4].double()
    clip.model.double()
    method = FedMPT(clip, n_conditions=2, rank=2, condition_ctx=1, class_ctx=1, unroll=unroll, generator=stream(0))
    method.double().up.data.normal_(generator=stream(1))
    space = SPACE.take([0, 1])
    if not unroll:
        _, plans = method.evidence(clip, patches, method.texts(clip, space))
        monkeypatch.setattr(fedmpt, "sinkhorn", lambda *problem, **options: plans)

    def evidence(*parameters: Tensor) -> Tensor:  # they are the method's own, which the check changes in place
        return method.evidence(clip, patches, method.texts(clip, space))[0]

    chosen = (method.condition_ctx, method.class_ctx, method.down, method.up)
    assert torch.autograd.gradcheck(evidence, chosen, atol=1e-6)


@pytest.mark.parametrize("unroll", [False, True])
def test_holding_the_plan_fixed_leaves_it_out_of_the_gradient(tiny_clip: Clip, unroll: bool) -> None:
    method = trained(tiny_clip, unroll=unroll)
    _, plans = method.evidence(tiny_clip, tiny_clip.patch_features(IMAGES), method.texts(tiny_clip, SPACE))
    assert plans.requires_grad == unroll


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("evidence", ["softmax", "similarity"])
@pytest.mark.parametrize("tau", [0.01, 4.0])
def test_no_similarity_is_too_much(tiny_clip: Clip, dtype: torch.dtype, evidence: Any, tau: float) -> None:
    """Patches that are texts, their opposites, or all the same."""
    method = trained(tiny_clip, evidence=evidence, tau=tau).to(dtype)
    method.up.data *= 100
    text = tiny_clip.text_features(["dog", "cat", "car"])
    patches = torch.stack([torch.cat([text, -text]), text[:1].expand(6, -1)]).to(dtype)
    found, plans = method.evidence(tiny_clip, patches, text.to(dtype).expand(3, -1, -1).clone().requires_grad_())
    assert found.isfinite().all() and plans.isfinite().all() and found.min() >= 0 and found.max() <= 1.01
    found.sum().backward()
    assert method.up.grad.isfinite().all() and method.down.grad.isfinite().all()


def test_an_adapter_may_erase_the_patches(tiny_clip: Clip) -> None:
    method = FedMPT(tiny_clip, n_conditions=1, rank=tiny_clip.dim)
    method.down.data[0], method.up.data[0] = torch.eye(tiny_clip.dim), -torch.eye(tiny_clip.dim)
    text = tiny_clip.text_features(["dog", "cat", "car"])[None]
    evidence, _ = method.evidence(tiny_clip, tiny_clip.patch_features(IMAGES), text)
    close(evidence.detach(), torch.full((3, 1, 3), 1 / 3), atol=1e-2)


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("autocast", [False, True])
def test_certainty_has_a_logit(tiny_clip: Clip, kind: Any, autocast: bool) -> None:
    method, space = trained(tiny_clip, tau=1e-3), LabelSpace(SPACE.names, kind, conditions=SPACE.conditions)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = method.classifier(tiny_clip, space)(IMAGES)
        targets = torch.tensor([0, 1, 2]) if kind == "single" else torch.tensor([[1, 0, -1]] * 3)
        loss = method.loss(tiny_clip, IMAGES, targets, space, stream=stream(0))
    assert logits.isfinite().all() and logits.abs().max() > 10
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


def test_spaces_that_cannot_be_scored_are_refused(tiny_clip: Clip) -> None:
    one = SPACE.take([0])
    with pytest.raises(UserError, match=r'A softmax over one label is always 1.*evidence = "similarity"'):
        FedMPT(tiny_clip).classifier(tiny_clip, one)
    assert probability(trained(tiny_clip, evidence="similarity"), tiny_clip, one).shape == (3, 1)
    with pytest.raises(UserError, match=r"n_conditions = 4 .* only 3: photo, the tree, car"):
        FedMPT(tiny_clip, n_conditions=4).classifier(tiny_clip, SPACE)
    assert FedMPT(tiny_clip).conditions(LabelSpace(("dog", "cat"))) == PUBLISHED_CONDITIONS


@pytest.mark.parametrize("transport", [True, False])
def test_classes_that_cannot_be_told_apart_share_the_evidence(tiny_clip: Clip, transport: bool) -> None:
    """Costs are the same everywhere, so the plan is even and every label has its share."""
    method = FedMPT(tiny_clip, n_conditions=1, transport=transport)
    text = tiny_clip.text_features(["dog"]).expand(1, 4, -1)
    evidence, plans = method.evidence(tiny_clip, tiny_clip.patch_features(IMAGES), text)
    close(evidence.detach(), torch.full((3, 1, 4), 0.25))
    close(plans, plans[..., :1].expand_as(plans))
