"""The embedded CLIP: a small transformers folder with every word of the data sets, and its pretraining."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from fedprompt.clip.model import Clip
from fedprompt.demo import weights_folder
from fedprompt.demo.concepts import SEEN, UNSEEN, load_concepts
from fedprompt.demo.drawing import Draws
from fedprompt.demo.pretraining import __main__ as pretraining
from fedprompt.demo.pretraining import captions
from fedprompt.demo.pretraining.bpe import learn
from fedprompt.demo.pretraining.evaluate import Evaluation, evaluate
from fedprompt.demo.pretraining.forward import TextEncoder, encode_images
from fedprompt.demo.pretraining.model import CONTEXT, make_model, save
from fedprompt.demo.pretraining.samples import BACKGROUND, IGNORED, draw_sample
from fedprompt.demo.pretraining.trainer import SampleBuffer, Trainer, make_targets, step_loss
from fedprompt.demo.world import pictograms, scenes
from fedprompt.seeding import stream


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(weights_folder(), local_files_only=True)


def test_the_folder_loads_in_transformers_and_is_small():
    folder = weights_folder()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8 * 2**20
    model = CLIPModel.from_pretrained(folder, local_files_only=True)
    assert model.dtype == torch.float16
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())


def test_every_name_is_one_token_and_every_sentence_round_trips(tokenizer):
    world = load_concepts()
    assert all(len(tokenizer(name).input_ids) == 3 for name in world.classes)
    for space in (pictograms(train=0, test=1).space, scenes(train=0, test=1).space):
        sentences = [sentence for own in space.attribute_texts() for sentence in own]
        for text in [*space.texts(), *sentences, *world.attributes, *world.conditions]:
            ids = tokenizer(text).input_ids
            assert len(ids) <= CONTEXT
            assert tokenizer.eos_token_id not in ids[:-1], f"{text!r} has an unknown piece"
            assert tokenizer.decode(ids[1:-1]).replace(" ", "") == text.replace(" ", "")


def test_the_same_corpus_gives_the_shipped_tokenizer(tokenizer):
    assert learn(captions.corpus(), tokens=CONTEXT).get_vocab() == tokenizer.get_vocab()


def test_zero_shot_stays_in_its_range():
    """Loose bounds around the card's figures, which a broken model or data set would leave."""
    facts = evaluate(Clip.load(weights_folder(), batch=32), test=1, scenes_test=16).results
    seen = [facts[f"zero-shot {domain}, 77 classes"] for domain in SEEN]
    unseen = [facts[f"zero-shot {domain}, 77 classes"] for domain in UNSEEN]
    assert 45 < sum(seen) / len(seen) < 95
    assert 20 < sum(unseen) / len(unseen) < sum(seen) / len(seen)
    assert 40 < facts["scenes natural mAP, patches"] < 85
    assert facts["best patch on its object, two-object scenes"] > 50


def test_the_written_out_passes_equal_those_of_transformers(tokenizer):
    model = make_model(tokenizer, seed=0).eval()
    ids = tokenizer(["a photo of a cat.", "cat"], padding=True, return_tensors="pt")
    mine = TextEncoder(tokenizer).encode(model, ["a photo of a cat.", "cat"], stream(0))
    theirs = model.get_text_features(**ids)
    theirs = theirs if isinstance(theirs, torch.Tensor) else theirs.pooler_output
    torch.testing.assert_close(mine, torch.nn.functional.normalize(theirs, dim=-1), atol=1e-5, rtol=1e-4)


def test_patch_labels_are_positions_of_candidates():
    samples = [draw_sample(0, number, progress=1.0) for number in range(8)]
    targets = make_targets(Draws(0), samples)
    patch_labels = torch.stack([torch.from_numpy(one.patch_labels) for one in samples])
    answers = targets.columns(patch_labels)
    assert (answers[patch_labels == BACKGROUND] == len(targets.candidates)).all()
    assert (answers[patch_labels == IGNORED] == IGNORED).all()
    shown = answers[patch_labels >= 0]
    assert torch.equal(torch.tensor(targets.candidates)[shown], patch_labels[patch_labels >= 0])
    assert all(targets.present[row].sum() == len({icon.concept for icon in samples[row].icons}) for row in range(8))


def test_pretraining_learns_and_resumes(tmp_path, tokenizer):
    text_encoder = TextEncoder(tokenizer)

    def new_trainer() -> Trainer:
        return Trainer(0, 8, make_model(tokenizer, 0), make_model(tokenizer, 0).bfloat16())

    buffer = SampleBuffer(0, 32, number=0, progress=0.0)

    def train(one: Trainer, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            loss, _ = step_loss(one, buffer, text_encoder)
            loss.backward()
            one.update(2e-3)
            one.step += 1
            losses.append(float(loss.detach()))
        return losses

    straight, first, second = new_trainer(), new_trainer(), new_trainer()
    losses = train(straight, 4)
    train(first, 2)
    first.save(tmp_path / "checkpoint.safetensors")
    second.restore(tmp_path / "checkpoint.safetensors")
    train(second, 2)
    assert second.step == straight.step == 4
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name
    straight.step = 0  # the samples of the first step again
    assert train(straight, 1)[0] < losses[0]


def test_dropped_patches_are_the_ones_reported(tokenizer):
    model = make_model(tokenizer, seed=0)
    pixels = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    image, patches, kept = encode_images(model.bfloat16(), pixels, stream(0))
    assert patches.shape[:2] == kept.shape and len(image) == 2
    assert all(len(set(row.tolist())) == kept.shape[1] for row in kept)


def test_the_model_card_is_written_from_its_template(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(pretraining, "evaluate", lambda clip: Evaluation({"zero-shot": 50.0}))
    trainer = Trainer(0, 8, make_model(tokenizer, 0), make_model(tokenizer, 0).bfloat16())
    schedule = pretraining.Schedule(10, math.inf, 8, 1e-3, 0, tmp_path, tmp_path / "export")
    card = pretraining.card(trainer, schedule)
    assert "0 steps of 8 images" in card and "| zero-shot | 50.0 |" in card


def test_saving_replaces_the_folder_atomically(tmp_path, tokenizer):
    save(make_model(tokenizer, 0), tokenizer, tmp_path / "weights", card="first")
    save(make_model(tokenizer, 1), tokenizer, tmp_path / "weights", card="second")
    assert (tmp_path / "weights" / "CARD.md").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
