"""A place in a sentence holds exactly as many tokens as vectors go in, so words in a place are the written sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fedprompt.clip.model import Clip
from fedprompt.clip.prompts import ContextSlot, plain_text
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.testing import TinyImages, tiny_model, tiny_processor, tiny_tokenizer
from fedprompt.testing.tiny import WORDS

PHRASES = st.lists(st.sampled_from([*WORDS, "zebra", "T-shirt", "dog's", "3", "über"]), min_size=1, max_size=4).map(
    " ".join
)
TAILS = st.sampled_from(["", ".", " dog.", ", which has legs.", "'s photo", "  a  cat ."])


@given(st.lists(st.tuples(PHRASES, TAILS), min_size=1, max_size=3), PHRASES, PHRASES, st.booleans())
def test_a_place_filled_with_words_is_the_sentence_with_those_words(
    tiny_clip: Clip, endings: list[tuple[str, str]], context: str, other: str, first: bool
) -> None:
    lead = "" if first else "photo of "
    texts = [f"{lead}<ctx> {name} <more>{tail}" for name, tail in endings]
    written = [f"{lead}{context} {name} {other}{tail}" for name, tail in endings]
    ids = tiny_clip.tokenizer.tokenizer(written)["input_ids"]
    assume(max(len(row) for row in ids) <= tiny_clip.context_length)
    prompts = tiny_clip.fill(texts, ctx=tiny_clip.token_embeddings(context), more=tiny_clip.token_embeddings(other))
    expected = tiny_clip.fill(written)
    assert expected.end.tolist() == prompts.end.tolist() == [len(row) - 1 for row in ids]
    for ours, theirs, row in zip(prompts.embeddings, expected.embeddings, ids, strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours[: len(row)], tiny_clip.model.text_model.embeddings.token_embedding(torch.tensor(row)))
    place = prompts.embeddings[torch.arange(len(texts))[:, None], prompts.slots["ctx"]]
    assert torch.equal(place, tiny_clip.token_embeddings(context).expand(len(texts), -1, -1))


@pytest.mark.parametrize(
    ("typeset", "plain"),
    [
        ("dog\u2019s \u201ctail\u201d", 'dog\'s "tail"'),
        ("\u2018a\u2019 \u201ab\u201b \u02bcc \u201ed\u201f", "'a' 'b' 'c \"d\""),
        ("\ufb01sh and \ufb02oor, o\ufb03ce", "fish and floor, office"),
        ("\uff44\uff4f\uff47\u3000\uff11", "dog 1"),
        ("salt &amp; pepper, &amp;lt;3, &#39; dog&rsquo;s", "salt & pepper, <3, ' dog's"),
        ("a \u2013 b \u2014 c \u2010 d \u2026 \u00ab e \u00bb \u00fcber \u5b57", None),
    ],
)
def test_typeset_texts_are_read_as_openais_tokenizer_reads_them(
    tiny_clip: Clip, typeset: str, plain: str | None
) -> None:
    """What `ftfy.fix_text` and two `html.unescape` make of them; dashes, for one, stay."""
    expected = typeset if plain is None else plain
    assert plain_text(typeset) == expected == plain_text(expected)
    tokenizer = tiny_clip.tokenizer
    assert tokenizer.pieces([typeset]) == [tokenizer.tokenizer(expected, add_special_tokens=False)["input_ids"]]
    assert torch.equal(*(tiny_clip.text_features((text,)) for text in (typeset, expected)))


def test_each_text_may_have_vectors_of_its_own(tiny_clip: Clip) -> None:
    vectors = torch.randn(2, 3, tiny_clip.text_width, requires_grad=True)
    prompts = tiny_clip.fill(["a <ctx> dog.", "a <ctx> photo of a cat."], ctx=vectors)
    assert torch.equal(prompts.embeddings[:, 2:5], vectors)
    assert prompts.slots["ctx"].tolist() == [[2, 3, 4], [2, 3, 4]]
    prompts.embeddings.sum().backward()
    assert vectors.grad is not None and bool((vectors.grad == 1).all())


def test_a_name_in_angle_brackets_is_no_place(tiny_clip: Clip) -> None:
    prompts = tiny_clip.fill(["<ctx> <dog>."], ctx=tiny_clip.token_embeddings("a photo of"))
    assert torch.equal(prompts.embeddings, tiny_clip.fill(["a photo of <dog>."]).embeddings)


@pytest.mark.parametrize("text", ["a dog.", "<ctx> and <ctx> dog."])
def test_a_text_without_the_place_or_with_two_is_refused(tiny_clip: Clip, text: str) -> None:
    with pytest.raises(UserError, match="must hold <ctx> exactly once"):
        tiny_clip.fill([text], ctx=torch.zeros(2, tiny_clip.text_width))


def test_a_prompt_that_does_not_fit_is_refused_with_its_text(tiny_clip: Clip) -> None:
    name = "dog " * 30
    fits = tiny_clip.context_length - 2 - 30
    assert len(tiny_clip.fill(["<ctx> cat", f"<ctx> {name}"], ctx=torch.zeros(fits, tiny_clip.text_width)).end) == 2
    with pytest.raises(UserError, match=r"<ctx> dog dog .* takes 41 tokens, 9 of them learned .* reads 40"):
        tiny_clip.fill(["<ctx> cat", f"<ctx> {name}"], ctx=torch.zeros(fits + 1, tiny_clip.text_width))


def test_the_historical_end_id_is_read_at_the_largest_id() -> None:
    tokenizer = tiny_tokenizer()
    new, old = (tiny_model(tokenizer, text={"eos_token_id": end}) for end in (tokenizer.eos_token_id, 2))
    texts = ["a photo of a dog.", "a zebra"]
    ids = tokenizer(texts, padding=True, return_tensors="pt")
    clip = Clip(old, tokenizer, tiny_processor())
    torch.testing.assert_close(clip.encode_text(clip.fill(texts)), old.get_text_features(**ids).pooler_output)
    torch.testing.assert_close(clip.text_features(texts), Clip(new, tokenizer, tiny_processor()).text_features(texts))


@pytest.mark.parametrize("text", [{"eos_token_id": 7}, {"vocab_size": 100}])
def test_a_tokenizer_that_does_not_belong_to_the_tower_is_refused(text: dict[str, Any]) -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(UserError, match="use the tokenizer that this backbone was trained with"):
        Clip(tiny_model(tokenizer, text=text), tokenizer, tiny_processor())


def test_text_is_only_tokenised_once(tiny_parts: Any) -> None:
    model, tokenizer, processor = tiny_parts
    clip = Clip(model, tokenizer, processor)
    clip.fill(["<ctx> dog."], ctx=torch.zeros(2, clip.text_width))
    clip.text_features(["a cat"])

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the tokenizer was asked again")

    clip.tokenizer.tokenizer = refuse
    clip.fill(["<ctx> dog."], ctx=torch.ones(3, clip.text_width))
    clip.text_features(["a cat"])
    assert clip.image_features(Images(TinyImages(), (0,))).shape == (1, clip.dim)


@pytest.mark.parametrize(
    ("init", "words", "text"),
    [
        ("", "", "<ctx> dog."),
        ("a photo of a", "a photo of a", "<ctx> dog."),
        ("a photo of a {}.", "a photo of a", "<ctx> dog."),
        ("a photo of a {} textile.", "a photo of a", "<ctx> dog textile."),
        ("{} in the wild.", "", "<ctx> dog in the wild."),
        ("{}", "", "<ctx> dog"),
        ('a photo of a "{}".', "a photo of a", '<ctx> "dog".'),
        ("a photo: {}, not a {}.", "a photo:", "<ctx> dog, not a dog."),
        ("anti{} paint", "", "<ctx> antidog paint"),
    ],
)
def test_a_context_stands_in_place_of_the_words_before_the_name(init: str, words: str, text: str) -> None:
    slot = ContextSlot.of(init)
    assert slot.words == words and slot.texts(["dog"]) == (text,)


@given(PHRASES, TAILS, st.sampled_from(["", '"', "("]))
def test_a_slot_filled_with_its_own_words_is_the_template(tiny_clip: Clip, lead: str, tail: str, quote: str) -> None:
    template = f"{lead} {quote}{{}}{tail}"
    space = LabelSpace(("dog", "four_legs"), template=template)
    slot = ContextSlot.of(template)
    written = tiny_clip.fill(space.texts())
    prompts = tiny_clip.fill(slot.texts(space.names), ctx=tiny_clip.token_embeddings(slot.words))
    assert torch.equal(prompts.embeddings, written.embeddings) and torch.equal(prompts.end, written.end)
