"""FedRAM: undone, its image is CLIP's; its texts, patches and transport are the paper's, written out."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods import fedram
from fedprompt.methods.fedram import FedRAM
from fedprompt.ops.layers import unit
from fedprompt.ops.losses import pair_contrastive_loss
from fedprompt.ops.regions import RegionAdapter
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages
from vit import VIT, size

SPACE = LabelSpace(("dog", "cat", "four_legs"), "multi")
IMAGES = Images(TinyImages(), (0, 1, 2))


def test_published_sizes() -> None:
    assert size(RegionAdapter(768, 512, generator=None)) == 4_330_532
    assert size(FedRAM(VIT)) == 13_022_316 + 2


def test_without_tokens_and_adapters_it_is_clip(tiny_clip: Clip) -> None:
    method = FedRAM(tiny_clip, generator=stream(0))
    method.image_tokens = nn.Parameter(method.image_tokens.detach()[:, :0])
    method.text_tokens = nn.Parameter(method.text_tokens.detach()[:, :0])
    for adapter in method.adapters:
        nn.init.zeros_(adapter.out.weight)
    text = method._texts(tiny_clip, SPACE)
    torch.testing.assert_close(unit(text), tiny_clip.text_features(SPACE.texts()))
    image, patches = method._views(tiny_clip, IMAGES, text)
    torch.testing.assert_close(image, tiny_clip.image_features(IMAGES))
    values = tiny_clip.value_tokens(IMAGES, tiny_clip.image_blocks)
    torch.testing.assert_close(patches, unit(tiny_clip.project_image(values))[:, 1:], rtol=1e-4, atol=1e-5)


def views(method: FedRAM, clip: Clip, text: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's two streams, block by block from the embeddings on; all but the first block are adapted."""
    vision, seen = clip.model.vision_model, 1 + clip.patches
    main = local = vision.pre_layrnorm(clip.image_embeddings(IMAGES))
    for number, block in enumerate(vision.encoder.layers):
        local = local + clip.value_attention(number, main)
        if not number:
            main = block(main, None)
            continue
        main = torch.cat([main, method.image_tokens[number - 1].expand(3, -1, -1)], dim=1)
        main = block(main, None)[:, :seen]  # attention and MLP, after which the learned tokens go
        local = local + F.pad(method.adapters[number - 1](main[:, 1:], text), (0, 0, 1, 0))
    return unit(clip.project_image(main[:, 0])), unit(clip.project_image(local[:, 1:]))


def test_views_and_their_gradients_are_the_papers(tiny_clip: Clip, monkeypatch) -> None:
    """The adapters read each block's output and the texts as the tower gives them, not scaled to length one."""
    monkeypatch.setattr(fedram, "ADAPTED", 2)
    method = FedRAM(tiny_clip, n_image=2, n_text=2, generator=stream(0))
    prompted = method._texts(tiny_clip, SPACE)
    assert (prompted.norm(dim=1) - 1).abs().min() > 0.01
    for adapter in method.adapters:  # as if the texts were attended to with a large gain
        nn.init.constant_(adapter.keys.weight, 3.0)
    found, gradients = [], []
    for view in (method._views(tiny_clip, IMAGES, prompted), views(method, tiny_clip, prompted)):
        score = sum((part * torch.randn(part.shape, generator=stream(1))).sum() for part in view)
        used = [value for name, value in method.named_parameters() if name != "temperatures"]
        found.append(view)
        gradients.append(torch.autograd.grad(score, used, retain_graph=True))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_scores_divide_by_the_temperatures_themselves(tiny_clip: Clip) -> None:
    method = FedRAM(tiny_clip, tau=0.01, generator=stream(0))
    torch.testing.assert_close(method.temperatures.detach(), torch.tensor([1 / tiny_clip.scale, 0.01]))
    text = method._texts(tiny_clip, SPACE)
    image, _ = method._views(tiny_clip, IMAGES, text)
    scores = method._scores(tiny_clip, IMAGES, text)[0]
    torch.testing.assert_close(scores, tiny_clip.scale * image @ unit(text).T)
    slope = torch.autograd.grad(scores.sum(), method.temperatures)[0]
    torch.testing.assert_close(slope[0], -(scores.sum() * tiny_clip.scale))  # d (x / tau) = -x / tau^2


def test_a_temperature_never_counts_as_less_than_a_tenth_of_its_start(tiny_clip: Clip) -> None:
    method = FedRAM(tiny_clip, tau=0.01, generator=stream(0))
    method.temperatures.data.copy_(torch.tensor([-1.0, 0.02]))
    torch.testing.assert_close(method._taus(), torch.tensor([0.1 / tiny_clip.scale, 0.02]))
    assert torch.autograd.grad(method._taus().sum(), method.temperatures)[0].tolist() == [1.0, 1.0]  # it can come back


def test_text_tokens_stand_for_one_block_only(tiny_clip: Clip) -> None:
    method = FedRAM(tiny_clip, n_text=2, text_depth=2, generator=stream(0))
    tower = tiny_clip.model.text_model
    prompts = tiny_clip.fill(["a photo of a dog."])
    states = prompts.embeddings + tower.embeddings.position_embedding.weight[: prompts.embeddings.shape[1]]
    for number, block in enumerate(tower.encoder.layers):
        if not number:
            states = block(states, None, is_causal=True)
            continue
        longer = torch.cat([states[:, :1], method.text_tokens[number - 1][None], states[:, 1:]], dim=1)
        longer = block(longer, None, is_causal=True)
        states = torch.cat([longer[:, :1], longer[:, 3:]], dim=1)
    expected = tiny_clip.model.text_projection(tower.final_layer_norm(states[:, -1]))
    found = method._texts(tiny_clip, LabelSpace(("dog",)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_plans_meet_their_marginals(tiny_clip: Clip, monkeypatch) -> None:
    plans = []
    solve = fedram.sinkhorn

    def watched(cost, rows, columns, **options):
        plans.append((solve(cost, rows, columns, **options), rows, columns))
        return plans[-1][0]

    monkeypatch.setattr(fedram, "sinkhorn", watched)
    method = FedRAM(tiny_clip, generator=stream(0))
    method.classifier(tiny_clip, SPACE)(IMAGES)
    method.loss(tiny_clip, IMAGES, torch.eye(3, dtype=torch.int8), SPACE, stream=stream(0))
    for plan, rows, columns in plans:
        assert not plan.requires_grad
        torch.testing.assert_close(plan.sum(dim=1), columns, rtol=1e-4, atol=1e-6)
        assert (plan.sum(dim=2) - rows).abs().sum(dim=1).max() < 1e-3
        torch.testing.assert_close(rows.sum(dim=1), torch.ones(3))
    assert len(plans) == 2


def test_probabilities_are_a_distribution(tiny_clip: Clip) -> None:
    logits = FedRAM(tiny_clip, generator=stream(0)).classifier(tiny_clip, SPACE)(IMAGES)
    torch.testing.assert_close(logits.sigmoid().sum(dim=1), torch.ones(3), rtol=1e-4, atol=1e-4)


def test_the_teacher_knows_nothing_of_absent_labels(tiny_clip: Clip) -> None:
    present = torch.tensor([[1, 0, -1], [0, 1, 1], [1, 1, 1]])
    teacher = FedRAM(tiny_clip)._teacher(tiny_clip, IMAGES, SPACE, present)
    all_there = FedRAM(tiny_clip)._teacher(tiny_clip, IMAGES, SPACE, torch.ones(3, 3))
    torch.testing.assert_close(all_there.exp().sum(dim=1), torch.ones(3, 3))
    absent = (present == 0)[:, None].expand_as(teacher)
    assert torch.equal(teacher[absent], all_there.min().expand(int(absent.sum())))
    assert torch.equal(teacher[~absent], all_there[~absent])


def test_matching_compares_true_pairs_with_the_batch() -> None:
    scores, targets = torch.tensor([[1.0, 2.0], [0.5, -1.0]]), torch.tensor([[1, 0], [-1, 1]])
    total = torch.tensor([1.0, 2.0, -1.0]).exp().sum().log()
    torch.testing.assert_close(pair_contrastive_loss(scores, targets), ((total - 1.0) + (total + 1.0)) / 2)
    assert pair_contrastive_loss(scores, torch.zeros(2, 2)) == 0
