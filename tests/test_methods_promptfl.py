"""PromptFL: started from words it is zero-shot CLIP, and identical clients average to any one of them."""

from __future__ import annotations

import pytest
import torch

from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Examples
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.federated.client import Client, TrainSettings, train_client
from fedprompt.methods.promptfl import PromptFL
from fedprompt.methods.zeroshot import ZeroShot
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages
from fedprompt.updates import weighted_mean

NAMES = ("dog", "cat", "four_legs")


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize(("n_ctx", "init"), [(4, "a photo of a"), (1, "the"), (7, "a photo of a dog which is")])
def test_words_as_context_are_the_template(
    tiny_clip: Clip, tiny_images: TinyImages, kind: str, n_ctx: int, init: str
) -> None:
    images, space = Images(tiny_images, (0, 1, 2)), LabelSpace(NAMES, kind, template=init + " {}.")
    method = PromptFL(tiny_clip, n_ctx=n_ctx, init=init)
    ours, theirs = (m.classifier(tiny_clip, space)(images) for m in (method, ZeroShot(tiny_clip)))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_a_random_context_is_drawn_from_the_generator(tiny_clip: Clip) -> None:
    first, same, other = (
        PromptFL(tiny_clip, n_ctx=200, init="", generator=stream(seed, "method")).context for seed in (1, 1, 2)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert first.shape == (200, tiny_clip.text_width) and abs(first.std().item() - 0.02) < 0.002


def test_words_that_do_not_fill_the_context_are_refused(tiny_clip: Clip) -> None:
    with pytest.raises(UserError, match=r'init = "a photo" has 2 tokens but n_ctx = 4'):
        PromptFL(tiny_clip, init="a photo")


def test_identical_clients_average_to_one_of_them(tiny_clip: Clip, tiny_images: TinyImages) -> None:
    train = Examples(Images(tiny_images, (0, 1, 2)), torch.tensor([0, 1, 2]), LabelSpace(NAMES))
    method = PromptFL(tiny_clip)
    start = {name: tensor.detach().clone() for name, tensor in method.state_dict().items()}
    updates = [
        train_client(
            method,
            tiny_clip,
            Client(7, "one", train),
            shared=start,
            personal={},
            round_number=1,
            settings=TrainSettings(rounds=1),
        )
        for _ in range(3)
    ]
    averaged = weighted_mean(start, updates, [1 / 3] * 3)
    assert not torch.equal(averaged["context"], start["context"])
    torch.testing.assert_close(averaged["context"], updates[0].shared["context"])


@pytest.mark.parametrize("template", ["a photo of the {} tree.", 'the "{}", which has four legs.'])
@pytest.mark.parametrize("kind", ["single", "multi"])
def test_a_context_from_the_template_is_zero_shot_before_training(
    tiny_clip: Clip, tiny_images: TinyImages, kind: str, template: str
) -> None:
    images, space = Images(tiny_images, (0, 1, 2)), LabelSpace(NAMES, kind, template=template)
    plain = LabelSpace(NAMES, kind)  # what the classifier is given does not matter, what the context starts from does
    ours = PromptFL(tiny_clip, init=template).classifier(tiny_clip, plain)(images)
    theirs = ZeroShot(tiny_clip).classifier(tiny_clip, space)(images)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_a_template_gives_the_number_of_vectors(tiny_clip: Clip) -> None:
    assert len(PromptFL(tiny_clip, n_ctx=4, init="a photo of the tree {}.").context) == 5
    assert len(PromptFL(tiny_clip, n_ctx=4, init="{} tree.").context) == 4  # no words before the name: a random start


def test_a_template_that_no_run_has_filled_in_is_refused(tiny_clip: Clip) -> None:
    with pytest.raises(UserError, match='init = "template" stands for the template of the data set'):
        PromptFL(tiny_clip, n_ctx=1, init="template")
