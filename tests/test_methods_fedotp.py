"""FedOTP: alike contexts give the mean patch cosine, and the plan is the paper's scaling iteration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.federated.rounds import initial_state
from fedprompt.methods.base import prompted_texts
from fedprompt.methods.fedotp import FedOTP
from fedprompt.ops.sinkhorn import partial, sinkhorn
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages
from vit import VIT, shared_size, size

SPACE = LabelSpace(("dog", "cat", "four_legs"))
IMAGES = Images(TinyImages(), (0, 1, 2))


def test_published_sizes() -> None:
    assert (size(FedOTP(VIT)), shared_size(FedOTP(VIT))) == (16_384, 8_192)


@pytest.mark.parametrize("entropy", [0.01, 0.1, 1.0])
def test_alike_contexts_of_the_whole_mass_give_the_mean_cosine(tiny_clip: Clip, entropy: float) -> None:
    method = FedOTP(tiny_clip, mass=1.0, entropy=entropy, generator=stream(0))
    method.own.data.copy_(method.context)
    text = prompted_texts(tiny_clip, SPACE, method.context)
    expected = tiny_clip.scale * (tiny_clip.patch_features(IMAGES) @ text.T).mean(dim=1)
    logits = method.classifier(tiny_clip, SPACE)(IMAGES)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3 * tiny_clip.scale)


def scaled(cosines: Tensor, mass: float, entropy: float) -> Tensor:
    """The paper's loop for one image and class, in float64 and without logarithms: cosines [P, 2]."""
    kernel = torch.exp((cosines.double() - 1) / entropy)
    right = torch.ones(2, dtype=torch.float64)
    for _ in range(20_000):
        left = (1 / len(kernel) / (kernel @ right)).clamp(max=1)
        right = mass / 2 / (kernel.T @ left)
    return left[:, None] * kernel * right


@pytest.mark.parametrize(("mass", "entropy"), [(0.8, 0.1), (0.8, 0.01), (0.5, 0.1)])
def test_the_plan_is_the_papers_run_to_convergence(tiny_clip: Clip, mass: float, entropy: float) -> None:
    method = FedOTP(tiny_clip, mass=mass, entropy=entropy, generator=stream(0))
    texts = [prompted_texts(tiny_clip, SPACE, context) for context in (method.context, method.own)]
    cosines = torch.einsum("bpd,jcd->bcpj", tiny_clip.patch_features(IMAGES), torch.stack(texts))  # [B, C, P, 2]
    expected = torch.stack([torch.stack([scaled(one, mass, entropy) for one in image]) for image in cosines])
    torch.testing.assert_close(method.plan(cosines).double(), expected, rtol=1e-3, atol=1e-6)
    logits = (expected * cosines).sum(dim=(-1, -2))
    found = method.classifier(tiny_clip, SPACE)(IMAGES).double() / tiny_clip.scale
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)


def test_the_transport_converges_where_the_default_of_the_solver_stops_early(tiny_clip: Clip) -> None:
    """Cosines as wide as those of an untrained tower, with which a hundred iterations are not enough."""
    method = FedOTP(tiny_clip, generator=stream(0))
    cosines = torch.randn(5, 16, 2, generator=stream(1)).mul(0.3).clamp(-1, 1)
    expected = torch.stack([scaled(one, 0.8, 0.1) for one in cosines])
    assert (method.plan(cosines) - expected).abs().sum(dim=(-1, -2)).max() < 1e-5
    rows, columns = torch.full((5, 16), 1 / 16), torch.full((5, 2), 0.4)
    early = sinkhorn(1 - cosines, rows, columns, entropy=0.1, row_rule=partial)
    assert (early - expected).abs().sum(dim=(-1, -2)).max() > 1e-4


def test_a_clients_own_context_is_personal_and_starts_as_drawn(tiny_clip: Clip) -> None:
    shared, personal = initial_state(FedOTP(tiny_clip, generator=stream(3)))
    assert shared.keys() == {"context"} and personal.keys() == {"own"}
    assert abs(personal["own"].std().item() - 0.02) < 0.003
    assert torch.equal(initial_state(FedOTP(tiny_clip, generator=stream(3)))[1]["own"], personal["own"])
