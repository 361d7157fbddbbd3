"""The demo data sets: an image depends on its address alone, and `broken` scenes break the co-occurrence."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.data.dataset import Dataset
from fedprompt.demo import fonts
from fedprompt.demo.concepts import DOMAINS, SEEN, UNSEEN, glyph_names, load_concepts
from fedprompt.demo.drawing import SIZE, Draws, Icon, coverage, rgb
from fedprompt.demo.pretraining.samples import BACKGROUND, draw_sample, label_patches
from fedprompt.demo.world import BASE, Drawings, compose_scene, pictograms, scenes
from fedprompt.errors import UserError


@pytest.fixture(scope="module")
def icons() -> Dataset:
    return pictograms(train=2, test=1)


@pytest.fixture(scope="module")
def scene_data() -> Dataset:
    return scenes(train=100, test=100)


def pixels(dataset: Dataset, row: int) -> np.ndarray:
    return np.asarray(dataset.source.open(row))


@given(st.integers(0, 900))
@settings(max_examples=15)
def test_an_image_depends_on_its_address_alone(row):
    small, large = pictograms(train=2, test=1), pictograms(train=3, test=2)
    address = small.source.addresses[row]
    again = large.source.addresses.index(address)
    assert pixels(small, row).shape == (SIZE, SIZE, 3)
    assert (pixels(small, row) == pixels(large, again)).all()


def test_different_addresses_give_different_images(icons):
    rows = [icons.rows(split=split, classes=[5], domains=["material"]).tolist() for split in ("train", "test")]
    drawn = {pixels(icons, row).tobytes() for row in [*rows[0], *rows[1]]}
    other = pictograms(seed=1, train=2, test=1)
    drawn |= {pixels(other, row).tobytes() for row in rows[0]}
    assert len(drawn) == 5


def test_the_fingerprint_depends_on_seed_and_size():
    prints = {pictograms(seed=seed, train=train, test=1).source.fingerprint for seed in (0, 1) for train in (0, 1)}
    assert len(prints) == 4
    assert pictograms(train=0, test=1).source.fingerprint in prints


@pytest.mark.parametrize("wrong", [{"test": 0}, {"train": -1}])
@pytest.mark.parametrize("make", [pictograms, scenes])
def test_a_data_set_without_test_images_is_a_user_error(make, wrong):
    with pytest.raises(UserError, match=f"{make.__name__} needs"):
        make(**wrong)


def test_pictograms_train_in_seen_styles_only(icons):
    train = icons.rows(split="train").tolist()
    assert {icons.domains[row] for row in train} == set(SEEN)
    assert set(icons.unseen_domains) == set(UNSEEN)
    assert len(icons.base) == BASE == 39 and len(icons.new) == 38
    assert sorted(icons.space.names) != list(icons.space.names)


def test_every_class_has_glyphs_in_every_style_but_remix():
    lacking = {domain: sum(not glyph_names(name, domain) for name in load_concepts().classes) for domain in DOMAINS}
    assert lacking.pop("remix") < 15
    assert not any(lacking.values())


def test_pretraining_touches_no_phosphor_glyph(monkeypatch):
    touched = set()
    real = fonts.mask.__wrapped__

    def spy(family: str, glyph: str, side: int = fonts.SIDE):
        touched.add(family)
        return real(family, glyph, side)

    monkeypatch.setattr(fonts, "mask", spy)
    for number in range(60):
        draw_sample(0, number, progress=1.0)
    assert touched == set(SEEN)


def test_pretraining_draws_every_concept_in_a_seen_style():
    assert all(any(glyph_names(concept, domain) for domain in SEEN) for concept in load_concepts().concepts)


def test_attributes_are_shared_and_every_class_has_some(icons):
    counts = [len(icons.space.attributes[name]) for name in icons.space.names]
    assert min(counts) >= 3 and max(counts) <= 5
    owners = load_concepts().attributes
    assert all(len(concepts) >= 2 for concepts in owners.values())
    base, new = (set(icons.space.names[:BASE]), set(icons.space.names[BASE:]))
    both = [phrase for phrase, concepts in owners.items() if base & set(concepts) and new & set(concepts)]
    assert len(both) > len(owners) / 2


def test_targets_are_the_icons_of_a_scene(scene_data):
    for row in range(0, len(scene_data.source), 37):
        shown = {icon.concept for icon in compose_scene(0, scene_data.source.addresses[row])[0]}
        targets = {scene_data.space.names[label] for label in scene_data.targets[row].nonzero().flatten()}
        assert shown == targets and 2 <= len(targets) <= 4


def test_natural_scenes_show_objects_of_their_context_and_broken_ones_do_not(scene_data):
    names = scene_data.space.names
    for split, usual in (("train", True), ("test", True), ("broken", False)):
        outsiders = [
            names[label] not in load_concepts().contexts[scene_data.domains[row]].objects
            for row in scene_data.rows(split=split).tolist()
            for label in scene_data.targets[row].nonzero().flatten().tolist()
        ]
        assert (np.mean(outsiders) == 0) == usual
        assert usual or np.mean(outsiders) > 0.5


def test_labels_are_independent_in_broken_scenes(scene_data):
    def dependence(split: str) -> float:
        shown = scene_data.targets[scene_data.rows(split=split)].double()
        correlation = torch.corrcoef(shown.T)
        return float(correlation.fill_diagonal_(0).abs().mean())

    assert dependence("test") > 2 * dependence("broken")


def test_a_context_keeps_its_background_and_sizes(scene_data):
    source = scene_data.source
    assert isinstance(source, Drawings)
    for row in range(0, len(source), 29):
        icons, background, light, _ = compose_scene(0, source.addresses[row])
        context = load_concepts().contexts[scene_data.domains[row]]
        assert background in context.background
        assert context.light[0] <= light <= context.light[1]
        assert all(context.size[0] <= icon.size <= context.size[1] for icon in icons)


def test_patch_labels_lie_on_the_icon():
    icon = Icon("heart", "material", "heart", "red", x=0.25, y=0.25, size=0.4)
    patch_labels = label_patches([icon]).reshape(8, 8)
    number = load_concepts().concepts.index("heart")
    assert number in patch_labels[:4, :4]
    assert (patch_labels[5:] == BACKGROUND).all() and (patch_labels[:, 5:] == BACKGROUND).all()
    assert coverage(icon)[40:].max() == 0


def test_stretching_and_turning_keep_an_icon_in_place():
    icon = Icon("star", "fontawesome", "star", "red", x=0.5, y=0.5, size=0.5)
    turned = replace(icon, angle=0.7, stretch=1.2)
    for one in (icon, turned):
        rows, columns = np.nonzero(coverage(one) > 0.5)
        assert abs(rows.mean() - 31.5) < 2 and abs(columns.mean() - 31.5) < 2


def test_a_mirrored_icon_is_the_mirror_image():
    icon = Icon("flag", "material", "flag", "red", x=0.5, y=0.5, size=0.7)
    mirrored = coverage(replace(icon, mirrored=True))
    assert np.abs(coverage(icon)[:, ::-1] - mirrored).mean() < 0.02 < np.abs(coverage(icon) - mirrored).mean()


def test_draws_are_fair_and_depend_on_their_address():
    first, again, other = Draws(0, "a"), Draws(0, "a"), Draws(0, "b")
    throws = [first.weighted([1, 0, 3]) for _ in range(400)]
    assert throws == [again.weighted([1, 0, 3]) for _ in range(400)]
    assert throws != [other.weighted([1, 0, 3]) for _ in range(400)]
    assert 1 not in throws and 0.65 < throws.count(2) / 400 < 0.85
    assert sorted(first.sample("abcd", 4)) == list("abcd")


def test_colours_can_be_told_apart():
    colours = list(load_concepts().colours)
    assert len(colours) == 12
    apart = [math.dist(rgb(one), rgb(two)) for one in colours for two in colours if one != two]
    assert min(apart) > 50
