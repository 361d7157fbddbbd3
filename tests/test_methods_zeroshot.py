"""Zero-shot CLIP is its formula, on both kinds of task, and has nothing to train."""

from __future__ import annotations

import pytest
import torch

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.methods.zeroshot import ZeroShot
from fedprompt.testing import TinyImages

NAMES = ("dog", "cat", "four_legs")


def test_logits_are_scaled_cosines_with_the_templates(tiny_clip: Clip, tiny_images: TinyImages) -> None:
    images = Images(tiny_images, (0, 5, 7))
    text = tiny_clip.text_features(["the dog!", "the cat!", "the four legs!"])
    logits = ZeroShot(tiny_clip).classifier(tiny_clip, LabelSpace(NAMES, template="the {}!"))(images)
    torch.testing.assert_close(logits, tiny_clip.scale * tiny_clip.image_features(images) @ text.T)


def test_multi_label_logits_are_a_pair_of_region_scores(tiny_clip: Clip, tiny_images: TinyImages) -> None:
    images, space = Images(tiny_images, (2, 3)), LabelSpace(NAMES, "multi")
    logits = ZeroShot(tiny_clip).classifier(tiny_clip, space)(images)
    tokens = torch.cat([tiny_clip.image_features(images)[:, None], tiny_clip.patch_features(images)], dim=1)
    nothing = tiny_clip.text_features(["a photo."])[0]
    for image in range(2):
        for label, text in enumerate(tiny_clip.text_features(space.texts())):
            present, absent = 20 * tokens[image] @ text, 20 * tokens[image] @ nothing
            looks = present.softmax(dim=0)
            torch.testing.assert_close(logits[image, label], 5 * looks @ present - 5 * looks @ absent)


def test_there_is_nothing_to_train(tiny_clip: Clip) -> None:
    method = ZeroShot(tiny_clip)
    assert method.trainable() == () and not method.state_dict()


def test_a_template_of_its_own_replaces_that_of_the_data_set(tiny_clip: Clip, tiny_images: TinyImages) -> None:
    images = Images(tiny_images, (0, 1))
    data, own = LabelSpace(("dog", "cat"), template="the {} tree."), LabelSpace(("dog", "cat"), template="a {}.")
    plain = ZeroShot(tiny_clip, template="a {}.")
    assert torch.equal(
        plain.classifier(tiny_clip, data)(images), ZeroShot(tiny_clip).classifier(tiny_clip, own)(images)
    )
    assert plain.text_inputs(data) == 'the template "a {}."'
    assert ZeroShot(tiny_clip).text_inputs(data) == 'the template "the {} tree."'


def test_a_template_without_a_place_for_the_name_is_refused(tiny_clip: Clip) -> None:
    with pytest.raises(UserError, match=r'template = "a photo" has no \{\}'):
        ZeroShot(tiny_clip, template="a photo")
