"""Pretraining of the embedded CLIP, on a vocabulary of a dozen coloured shapes instead of fetched drawings."""

from __future__ import annotations

import math
import tomllib
from importlib.resources import files

import pytest
import torch
from transformers import CLIPTokenizer

from fedprompt.demo.pretraining import __main__ as pretraining
from fedprompt.demo.pretraining.bpe import learn
from fedprompt.demo.pretraining.captions import NAMED_HEAD, NAMED_TAIL, Chooser, Shown, caption, clause, corpus
from fedprompt.demo.pretraining.evaluate import Target, table
from fedprompt.demo.pretraining.forward import TextEncoder, encode_images
from fedprompt.demo.pretraining.measure import measured_attributes
from fedprompt.demo.pretraining.model import CONTEXT, make_model, save
from fedprompt.demo.pretraining.rasters import ARTISTS, Rasters, fetch
from fedprompt.demo.pretraining.samples import BACKGROUND, IGNORED, SEVERAL, SINGLE, Sampler
from fedprompt.demo.pretraining.trainer import Schedule, Trainer
from fedprompt.demo.pretraining.vocabulary import HEAD, Concept, Vocabulary
from fedprompt.demo.render import COLOURS, SPRITE
from fedprompt.errors import UserError
from fedprompt.seeding import stream


def shape(colour: str, *, height: int = 40, width: int = 40) -> torch.Tensor:
    drawing = torch.zeros(4, SPRITE, SPRITE, dtype=torch.uint8)
    drawing[:3] = torch.tensor(COLOURS[colour], dtype=torch.uint8)[:, None, None]
    top, left = (SPRITE - height) // 2, (SPRITE - width) // 2
    drawing[3, top : top + height, left : left + width] = 255
    return drawing


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    names = list(COLOURS)
    concepts = tuple(
        Concept(f"{name} block", "a shape", ("corners", "has a rim"), (f"is mostly {name}",), ("game",), row)
        for row, name in enumerate(names)
    )
    pixels = torch.stack([shape(name) for name in names])
    ranks = (*range(len(names) - 1), HEAD + 5)
    return Vocabulary(concepts, (len(names) - 1,), ranks, Rasters((), dict.fromkeys(ARTISTS, pixels)))


@pytest.fixture(scope="module")
def tokenizer(vocabulary) -> CLIPTokenizer:
    return learn(corpus(vocabulary), tokens=CONTEXT)


@pytest.fixture(scope="module")
def sampler(vocabulary) -> Sampler:
    return Sampler(vocabulary, seed=0, groups=1)


def test_a_batch_is_a_function_of_seed_and_step(sampler, vocabulary):
    first, again = sampler.batch(700), Sampler(vocabulary, seed=0, groups=1).batch(700)
    assert torch.equal(first.pixels, again.pixels) and first.texts == again.texts
    assert len(first.pixels) == SINGLE + SEVERAL == sampler.images
    assert not torch.equal(first.pixels, sampler.batch(701).pixels)


def test_patch_labels_are_concepts_of_the_image(sampler):
    batch = sampler.batch(800)
    shares = batch.shares(12)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(len(shares)))
    for row, labels in enumerate(batch.patches):
        shown = set(labels.tolist()) - {BACKGROUND, IGNORED}
        assert shown <= set(shares[row].nonzero().flatten().tolist())
    assert (batch.patches[:SINGLE] >= 0).any(dim=1).float().mean() > 0.9


def test_no_downstream_class_is_shown_by_the_single_colour_artist(vocabulary):
    _, rows = vocabulary.sprites()
    assert (rows[list(vocabulary.classes), 3] == -1).all()
    assert (rows[:, :3] >= 0).all() and (rows[:-1, 3] >= 0).all()


def test_frequent_concepts_are_named_more_often_than_rare_ones(vocabulary):
    def rate(concept: int) -> float:
        shown = Shown(concept, 0, true_colours=True, x=0, y=0, size=0.5, ground=0, pattern=0, light=1.0, other=-1)
        choose = Chooser(0, "rate")
        texts = [caption(choose, vocabulary, shown) for _ in range(1500)]
        return sum(vocabulary.concepts[concept].name in text for text in texts) / len(texts)

    assert abs(rate(0) - NAMED_HEAD) < 0.05
    assert abs(rate(11) - NAMED_TAIL) < 0.04


def test_captions_of_recoloured_drawings_say_no_colour(vocabulary):
    shown = Shown(0, 0, true_colours=False, x=0, y=0, size=0.5, ground=8, pattern=0, light=1.0, other=-1)
    choose = Chooser(0, "colours")
    texts = [caption(choose, vocabulary, shown) for _ in range(300)]
    assert not [text for text in texts if "mostly" in text]


def test_clauses_have_one_verb():
    assert [clause(phrase) for phrase in ("wings", "a bird", "is round", "has a beak")] == [
        "has wings",
        "is a bird",
        "is round",
        "has a beak",
    ]


def test_training_learns_and_resumes_bit_for_bit(tmp_path, tokenizer, sampler):
    def new_trainer() -> Trainer:
        return Trainer(0, tokenizer, torch.device("cpu"), 12, 16)

    def train(one: Trainer, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            loss, facts = one.loss(sampler.batch(one.step))
            loss.backward()
            one.update(2e-3)
            one.step += 1
            losses.append(facts["image"])
        return losses

    straight, first, second = new_trainer(), new_trainer(), new_trainer()
    losses = train(straight, 4)
    train(first, 2)
    first.save(tmp_path / "checkpoint.safetensors")
    second.restore(tmp_path / "checkpoint.safetensors")
    train(second, 2)
    assert second.step == straight.step == 4
    assert torch.equal(straight.prototypes, second.prototypes)
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name
    straight.step = 0  # the images of the first step again
    assert train(straight, 1)[0] < losses[0]


def test_the_rate_before_the_decay_does_not_depend_on_the_length():
    short, long = Schedule(steps=2000, decay=500), Schedule(steps=9000, decay=500)
    assert [short.rate(step) for step in range(1500)] == [long.rate(step) for step in range(1500)]
    assert short.rate(0) < short.rate(1000) == short.lr
    assert short.rate(1999) < 0.01 * short.lr


def test_the_written_out_passes_equal_those_of_transformers(tokenizer):
    model = make_model(tokenizer, seed=0).eval()
    texts = ["a photo of a red block.", "block"]
    ids = tokenizer(texts, padding=True, return_tensors="pt")
    theirs = model.get_text_features(**ids)
    theirs = theirs if isinstance(theirs, torch.Tensor) else theirs.pooler_output
    mine = TextEncoder(tokenizer).encode(model, texts)
    torch.testing.assert_close(mine, torch.nn.functional.normalize(theirs, dim=-1), atol=1e-5, rtol=1e-4)


def test_dropped_patches_are_the_ones_reported(tokenizer):
    pixels = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    image, patches, kept = encode_images(make_model(tokenizer, seed=0), pixels, stream(0))
    assert patches.shape[:2] == kept.shape and len(image) == 2
    assert all(len(set(row.tolist())) == kept.shape[1] for row in kept)


def test_colours_and_shapes_are_measured_from_pixels():
    assert measured_attributes([shape("red")] * 3)[:2] == ("is mostly red", "is square")
    assert "is wide" in measured_attributes([shape("blue", height=12)] * 3)
    half = shape("green")
    half[:3, :, SPRITE // 2 :] = torch.tensor(COLOURS["white"], dtype=torch.uint8)[:, None, None]
    assert {"green parts", "white parts"} <= set(measured_attributes([half]))


def test_parts_are_written_for_all_concepts_in_one_vocabulary():
    tables = tomllib.loads((files("fedprompt.demo.pretraining") / "parts.toml").read_text())
    lists = [parts.split(", ") for entries in tables.values() for parts in entries.values()]
    assert len(lists) == 1192
    counts = {part: sum(part in own for own in lists) for own in lists for part in own}
    assert len([part for part, count in counts.items() if count < 3]) < 8
    assert sum(map(len, lists)) / len(lists) > 2.2


def test_a_changed_archive_is_refused(tmp_path):
    package = ARTISTS["noto"]
    (tmp_path / package.archive).write_bytes(b"something else")
    with pytest.raises(UserError, match="SHA-512"):
        fetch(package, tmp_path)


def test_the_card_shows_which_targets_hold():
    rows = table(
        [Target("A1", "accuracy", 70.0, 60, 76), Target("A6", "mono artist", 4.0, low=20), Target("", "seen", 1)]
    )
    assert "| A1 | accuracy | 70.0 | 60 to 76 | yes |" in rows
    assert "| A6 | mono artist | 4.0 | at least 20 | **no** |" in rows
    assert Target("A2", "gain", -math.inf, high=2).holds


def test_the_model_card_is_written_from_its_template(tokenizer, vocabulary):
    trainer = Trainer(0, tokenizer, torch.device("cpu"), 12, 16)
    text = pretraining.card(trainer, Schedule(10, 5), vocabulary, "| measured |")
    assert "12 concepts (1 of them" in text and text.rstrip().endswith("| measured |")


def test_saving_replaces_the_folder_atomically(tmp_path, tokenizer):
    save(make_model(tokenizer, 0), tokenizer, tmp_path / "weights", card="first")
    save(make_model(tokenizer, 1), tokenizer, tmp_path / "weights", card="second")
    assert (tmp_path / "weights" / "CARD.md").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
