"""The embedded CLIP: a usual folder, small, that knows every word of its world and recognises pictures it never saw."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from fedprompt.clip.model import Clip
from fedprompt.demo import weights_folder
from fedprompt.demo.concepts import SEEN, UNSEEN, lexicon
from fedprompt.demo.drawing import Dice
from fedprompt.demo.pretraining import captions
from fedprompt.demo.pretraining.bpe import learn
from fedprompt.demo.pretraining.evaluate import examine
from fedprompt.demo.pretraining.forward import Reader, see
from fedprompt.demo.pretraining.model import CONTEXT, make_model, save
from fedprompt.demo.pretraining.samples import BACKGROUND, UNSURE, lesson
from fedprompt.demo.pretraining.trainer import Pool, Trainer, lesson_loss, quiz
from fedprompt.demo.world import pictograms, scenes
from fedprompt.seeding import stream


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(weights_folder(), local_files_only=True)


def test_the_folder_is_a_usual_one_and_small():
    folder = weights_folder()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8 * 2**20
    model = CLIPModel.from_pretrained(folder, local_files_only=True)
    assert model.dtype == torch.float16
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())


def test_every_name_is_one_token_and_every_sentence_comes_back(tokenizer):
    world = lexicon()
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
    """Loose bounds around the card's figures: a broken tower or world falls out of them."""
    facts = examine(Clip.load(weights_folder(), batch=32), test=1, scenes_test=16).facts
    seen = [facts[f"zero-shot {domain}, 77 classes"] for domain in SEEN]
    unseen = [facts[f"zero-shot {domain}, 77 classes"] for domain in UNSEEN]
    assert 45 < sum(seen) / len(seen) < 95
    assert 20 < sum(unseen) / len(unseen) < sum(seen) / len(seen)
    assert 40 < facts["scenes natural mAP, patches"] < 85
    assert facts["best patch on its object, two-object scenes"] > 50


def test_the_written_out_passes_are_transformers_own(tokenizer):
    model = make_model(tokenizer, seed=0).eval()
    ids = tokenizer(["a photo of a cat.", "cat"], padding=True, return_tensors="pt")
    mine = Reader(tokenizer).read(model, ["a photo of a cat.", "cat"], stream(0))
    theirs = model.get_text_features(**ids)
    theirs = theirs if isinstance(theirs, torch.Tensor) else theirs.pooler_output
    torch.testing.assert_close(mine, torch.nn.functional.normalize(theirs, dim=-1), atol=1e-5, rtol=1e-4)


def test_patch_labels_answer_for_candidates():
    lessons = [lesson(0, number, progress=1.0) for number in range(8)]
    ask = quiz(Dice(0), lessons)
    cells = torch.stack([torch.from_numpy(one.cells) for one in lessons])
    answers = ask.columns(cells)
    assert (answers[cells == BACKGROUND] == len(ask.candidates)).all()
    assert (answers[cells == UNSURE] == UNSURE).all()
    shown = answers[cells >= 0]
    assert torch.equal(torch.tensor(ask.candidates)[shown], cells[cells >= 0])
    assert all(ask.present[row].sum() == len({thing.concept for thing in lessons[row].things}) for row in range(8))


def test_a_course_learns_and_resumes(tmp_path, tokenizer):
    reader = Reader(tokenizer)

    def course() -> Trainer:
        return Trainer(0, 8, make_model(tokenizer, 0), make_model(tokenizer, 0).bfloat16())

    pool = Pool(0, 32, number=0, progress=0.0)

    def study(one: Trainer, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            loss, _ = lesson_loss(one, pool, reader)
            loss.backward()
            one.update(2e-3)
            one.step += 1
            losses.append(float(loss.detach()))
        return losses

    straight, first, second = course(), course(), course()
    losses = study(straight, 4)
    study(first, 2)
    first.save(tmp_path / "course.safetensors")
    second.restore(tmp_path / "course.safetensors")
    study(second, 2)
    assert second.step == straight.step == 4
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name
    straight.step = 0  # the first step's test_sets again
    assert study(straight, 1)[0] < losses[0]


def test_dropped_patches_are_the_ones_reported(tokenizer):
    model = make_model(tokenizer, seed=0)
    pixels = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    image, patches, kept = see(model.bfloat16(), pixels, stream(0))
    assert patches.shape[:2] == kept.shape and len(image) == 2
    assert all(len(set(row.tolist())) == kept.shape[1] for row in kept)


def test_saving_replaces_the_folder_whole(tmp_path, tokenizer):
    save(make_model(tokenizer, 0), tokenizer, tmp_path / "weights", card="first")
    save(make_model(tokenizer, 1), tokenizer, tmp_path / "weights", card="second")
    assert (tmp_path / "weights" / "CARD.md").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
