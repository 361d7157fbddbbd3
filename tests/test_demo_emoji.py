"""The data sets `emoji` and `scenes`: an image depends on its address alone; hidden conditions move label pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedprompt.data.dataset import Dataset
from fedprompt.data.labels import relative_clause
from fedprompt.demo.emoji import BASE, emoji
from fedprompt.demo.render import SIZE, SPRITE, Draws, Layer, Placement, draw_ground, paint
from fedprompt.demo.rendered import RenderedImages
from fedprompt.demo.scenes import GOES_WITH, LIGHTS, SCALES, compose, paint_scene, scenes
from fedprompt.demo.sprites import ARTISTS, DISTRACTORS, MONO, SEEN, UNSEEN, class_sprites, sheet_path
from fedprompt.errors import UserError
from fedprompt.seeding import stream


@pytest.fixture(scope="module")
def single() -> Dataset:
    return emoji(seed=0, train=1, test=1)


@pytest.fixture(scope="module")
def several() -> Dataset:
    return scenes(seed=0, train=10, test=100)


def pixels(dataset: Dataset, row: int) -> np.ndarray:
    return np.asarray(dataset.source.open(row))


@pytest.mark.parametrize("row", [0, 333, 777])
def test_an_image_depends_on_its_address_alone(single, row):
    large = emoji(seed=0, train=2, test=3)
    again = large.source.addresses.index(single.source.addresses[row])
    assert pixels(single, row).shape == (SIZE, SIZE, 3)
    assert (pixels(single, row) == pixels(large, again)).all()
    assert (pixels(single, row) != pixels(emoji(seed=1, train=1, test=1), row)).any()


def test_the_fingerprint_depends_on_seed_and_size():
    prints = {emoji(seed=seed, train=train, test=1).source.fingerprint for seed in (0, 1) for train in (0, 1)}
    assert len(prints) == 4


@pytest.mark.parametrize("wrong", [{"test": 0}, {"train": -1}])
@pytest.mark.parametrize("make", [emoji, scenes])
def test_a_data_set_without_test_images_is_a_user_error(make, wrong):
    with pytest.raises(UserError, match=f"{make.__name__} needs"):
        make(**wrong)


def test_clients_see_the_seen_artists_only(single):
    assert {single.domains[row] for row in single.rows(split="train").tolist()} == set(SEEN)
    assert {single.domains[row] for row in single.rows(split="test").tolist()} == set(ARTISTS)
    assert single.unseen_domains == UNSEEN
    assert len(single.base) == BASE == 60 and len(single.new) == 60


def test_every_class_is_drawn_by_every_artist_and_the_mono_artist_has_one_colour():
    sprites = class_sprites()
    assert sprites.pixels.shape == (len(ARTISTS) * 2 * BASE, 4, SPRITE, SPRITE)
    assert ((sprites.pixels[:, 3] > 100).flatten(1).sum(dim=1) > 30).all()
    assert int(sprites.mono.sum()) == 2 * BASE
    mono = sprites.pixels[sprites.mono].permute(0, 2, 3, 1)
    inked = mono[mono[..., 3] == 255]
    assert inked[:, :3].float().std(dim=0).max() < 2


def test_the_notice_names_every_sheet():
    folder = sheet_path(MONO).parent
    notice = (folder / "NOTICE").read_text()
    assert {path.name for path in folder.glob("*.webp")} == {f"{name}.webp" for name in (*ARTISTS, DISTRACTORS)}
    assert all(path.name in notice for path in folder.glob("*.webp"))
    assert sum(path.stat().st_size for path in Path(folder).iterdir()) < 2**20


def test_attributes_read_as_clauses_and_are_shared_by_base_and_new_classes(single):
    attributes = single.space.attributes
    assert all(4 <= len(attributes[name]) <= 6 for name in single.space.names)
    phrases = {phrase for own in attributes.values() for phrase in own}
    assert all(relative_clause(phrase).split()[1] in {"has", "is"} for phrase in phrases)
    assert not [phrase for phrase in phrases if "has has" in relative_clause(phrase)]
    base, new = (
        {phrase for label in classes for phrase in attributes[single.space.names[label]]}
        for classes in (single.base, single.new)
    )
    assert len(base & new) > len(phrases) / 3


def test_targets_are_the_objects_of_a_scene(several):
    for row in range(0, len(several.source), 97):
        scene = compose(0, several.source.addresses[row])
        assert sorted(scene.labels) == several.targets[row].nonzero().flatten().tolist()
        assert 2 <= len(scene.labels) <= 4


def test_conditions_show_in_the_image(several):
    assert isinstance(several.source, RenderedImages)
    for address in several.source.addresses[::83]:
        scene = compose(0, address)
        low, high = LIGHTS[scene.conditions.light]
        assert low <= float(scene.light) <= high
        assert address.domain == f"{scene.conditions.season}-{scene.conditions.light}"
        small, large = SCALES[scene.conditions.scale]
        assert all(small <= float(placed.size) <= large for placed in scene.places)


def test_classes_that_share_a_condition_co_occur_in_natural_scenes_only(several):
    def lift(split: str) -> tuple[float, float]:
        """How often pairs with and without a shared condition appear together, over what independence gives."""
        shown = several.targets[several.rows(split=split)].double()
        share = shown.mean(dim=0)
        ratio = (shown.T @ shown / len(shown)) / (share[:, None] * share)
        values = list(GOES_WITH.values())
        shared = torch.tensor([[bool(set(one) & set(two)) for two in values] for one in values])
        pairs = ~torch.eye(len(share), dtype=torch.bool)
        return float(ratio[shared & pairs].mean()), float(ratio[~shared & pairs].mean())

    natural, broken = lift("test"), lift("broken")
    assert natural[0] > 1.3 * natural[1]
    assert abs(broken[0] - broken[1]) < 0.15


def test_every_condition_moves_some_label_pairs():
    values = [value for own in GOES_WITH.values() for value in own]
    assert all(values.count(value) >= 2 for value in values)


def test_covers_lie_where_the_objects_were_placed(several):
    scene = compose(0, several.source.addresses[0])
    image, covers = paint_scene(scene)
    assert image.shape == (1, 3, SIZE, SIZE)
    for placed, cover in zip(scene.places, covers, strict=True):
        rows, columns = (cover > 0.3).nonzero(as_tuple=True)
        assert abs(float(columns.float().mean()) - (float(placed.x) + 1) * SIZE / 2) < 8
        assert abs(float(rows.float().mean()) - (float(placed.y) + 1) * SIZE / 2) < 8


def test_a_mirrored_drawing_is_the_mirror_image():
    draws = Draws(stream(0), 1)
    ground = draw_ground(draws)
    one, zero = torch.ones(1), torch.zeros(1)
    placed = Placement(zero, zero, 0.7 * one, zero, one, torch.tensor([False]))
    sprites = class_sprites()

    def cover(where: Placement) -> torch.Tensor:
        rows = torch.tensor([7])
        layer = Layer(sprites.premultiplied(rows), sprites.mono[rows], where, one)
        return paint(ground.pixels, layer, ground.dark)[1][0]

    mirrored = cover(replace(placed, mirrored=torch.tensor([True])))
    torch.testing.assert_close(mirrored, cover(placed).flip(1), atol=1e-4, rtol=0)


def test_a_layer_without_opacity_changes_nothing():
    draws = Draws(stream(1), 2)
    ground = draw_ground(draws)
    sprites, rows = class_sprites(), torch.tensor([3, 5])
    placed = Placement(*(torch.zeros(2) for _ in range(2)), torch.ones(2), *(torch.ones(2) for _ in range(2)), rows > 9)
    canvas, cover = paint(
        ground.pixels, Layer(sprites.premultiplied(rows), sprites.mono[rows], placed, torch.zeros(2)), ground.dark
    )
    assert torch.equal(canvas, ground.pixels) and not cover.any()
