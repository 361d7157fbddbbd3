"""Parsing of answers, normal form of phrases, descriptions files that are safe to edit, conversion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.data.descriptions import Descriptions, Scene, read_descriptions
from fedprompt.data.labels import with_attribute
from fedprompt.descriptions.convert import convert
from fedprompt.descriptions.edits import generated, keep_edits, write_descriptions
from fedprompt.descriptions.parsing import clean, is_foreign, is_refusal, parse_list, quoted
from fedprompt.descriptions.phrases import content_stems, names_class, near_duplicates, normalise, select_phrases, unify
from fedprompt.errors import UserError

LIST = ["has four legs", "is round"]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"attributes": LIST}),
        json.dumps({"reasoning": "a {tail} [x]", "attributes": LIST}),
        "Sure!\n```json\n" + json.dumps({"attributes": LIST}, indent=2) + "\n```\nAnything else?",
        '<think>maybe {"attributes": ["no"]}</think>' + json.dumps({"attributes": LIST}),
        json.dumps({"features": LIST}),
        json.dumps([{"name": phrase} for phrase in LIST]),
        '{"reasoning": "x", "attributes": ["has four legs", "is round", "is cut o',
        '{"attributes": ["has four legs", "is round",]}',
        "1. has four legs\n2) is round",
        "Here they are:\n- has four legs\n* is round\n",
    ],
)
def test_a_list_is_found_in_whatever_is_around_it(text: str) -> None:
    assert parse_list(text, "attributes") == LIST


@given(st.text(max_size=300), st.sampled_from(["attributes", "x"]))
def test_no_answer_breaks_anything(text: str, key: str) -> None:
    for wrapped in (text, '{"attributes": [' + text, json.dumps({"attributes": [text, 3, None, [text]]})):
        for found in parse_list(wrapped, key):
            select_phrases([found], "dog")


def test_an_answer_of_any_size_or_depth_is_parsed() -> None:
    for text in (
        "[" * 100_000,
        '{"attributes": ["' + "a" * 10**6,
        "<" * 10**6,
        "-" * 10**6,
        "{" * 60_000 + "}" * 60_000,
    ):
        assert select_phrases(parse_list(text, "attributes"), "dog")[0] == ()
        clean(text, 80)


@given(st.text(max_size=400))
def test_plain_text_has_no_markup_left_and_stays_plain(text: str) -> None:
    found = clean(text, 80)
    assert len(found) <= 80 and not set(found) & set("<>[]{}`*_|\\\n\r\x00\u202e")
    assert clean(found, 80) == found


def test_markup_links_and_hidden_characters_are_removed() -> None:
    assert clean("**four** <b onclick='x()'>legs</b>&nbsp;\u202e", 80) == "four legs"
    assert clean("[a tail](javascript:alert(1)) https://evil.example/x", 80) == "a tail"
    assert clean("&lt;script&gt;x&lt;/script&gt;", 80) == "x"
    assert clean("long " * 30, 80) == ""


@pytest.mark.parametrize(
    ("raw", "form", "sentence"),
    [
        ("Four legs.", "four legs", "which has four legs"),
        ("has 4 legs", "four legs", "which has four legs"),
        ("with a tail", "has a tail", "which has a tail"),
        ("It has a tail", "has a tail", "which has a tail"),
        ("is a vehicle", "a vehicle", "which is a vehicle"),
        ("is used for writing", "used for writing", "which is used for writing"),
        ("is round", "is round", "which is round"),
        ("made of metal", "is made of metal", "which is made of metal"),
        ("is often made of metal", "is often made of metal", "which is often made of metal"),
        ("they can fly", "can fly", "which can fly"),
        ("usually worn", "typically worn", "which typically worn"),
        ("Tail: a long thing that it wags", "tail", "which has tail"),
        ("Colour: mostly brown, with some white parts", "mostly brown", "which has mostly brown"),
        ("Shape: a Small, Round Body", "a small, round body", "which is a small, round body"),
        ("RAM", "ram", "which has ram"),
        ("Surface: soft fur", "soft fur", "which has soft fur"),
        ("The dog has fur", "fur", "which has fur"),
    ],
)
def test_phrases_have_one_normal_form(raw: str, form: str, sentence: str) -> None:
    assert normalise(raw) == form and normalise(form) == form
    assert with_attribute("a photo of a dog.", form) == f"a photo of a dog, {sentence}."


def test_phrases_that_are_no_attributes_are_rejected_with_a_reason() -> None:
    raw = [
        "has fur",
        "covered in fur",
        "looks like dogs",
        "I'm sorry, I can't help",
        "quatre pattes avec des griffes",
        "四条腿",
        "",
        "furs",
        "the colour",
        "Number: 4",
    ]
    kept, rejections = select_phrases(raw, "dog")
    assert kept == ("fur", "is covered in fur")
    reasons = (
        "class name",
        "refusal",
        "not English",
        "not English",
        "empty",
        "repeats 'fur'",
        "names a property",
        "no word",
    )
    assert [reason in rejection for reason, rejection in zip(reasons, rejections, strict=True)] == [True] * 8


def test_names_are_compared_by_whole_words() -> None:
    assert names_class("two dogs", "dog") and names_class("a Golden retriever's coat", "golden_retriever")
    assert names_class("wheels of buses", "bus") and names_class("shaped like a horse", "horses")
    assert names_class("like type two", "type_2")
    assert not names_class("cathedral windows", "cat") and not names_class("golden light", "golden retriever")


def test_near_duplicates_share_most_content_words() -> None:
    assert near_duplicates("four legs", "has four leg") and near_duplicates("often made of metal", "is made of metal")
    assert not near_duplicates("four legs", "two legs") and content_stems("a tail") == content_stems("has a tail")


phrase = st.sampled_from(["a tail", "has a tail", "tails", "four legs", "wheels", "is round", "a wheel"])


@given(st.dictionaries(st.sampled_from("abcde"), st.lists(phrase, max_size=4), max_size=5))
def test_phrases_with_the_same_content_words_get_one_wording_whatever_the_order(
    attributes: dict[str, list[str]],
) -> None:
    found = unify(attributes)
    wordings = {one for phrases in found.values() for one in phrases}
    assert len({content_stems(one) for one in wordings}) == len(wordings)
    assert {name: set(map(content_stems, phrases)) for name, phrases in found.items()} == {
        name: set(map(content_stems, phrases)) for name, phrases in attributes.items()
    }
    assert unify(dict(reversed(attributes.items()))) == found


@given(st.text(max_size=200))
def test_a_name_stays_inside_its_quotation(name: str) -> None:
    line = quoted([name])
    assert "\n" not in line and len(json.loads(line)) <= 100


def test_foreign_phrases_and_refusals_are_recognised() -> None:
    assert not any(map(is_foreign, ("can pour water", "is a van", "has a den")))
    assert (
        is_foreign("mit vier Beinen")
        and is_foreign("колёса")
        and not is_foreign("a sharp tip")
        and not is_foreign("café tables")
    )
    assert (
        is_refusal("As an AI language model")
        and is_refusal("I can\u2019t help with that")
        and not is_refusal("can help to dig")
    )


WORDS = generated(
    Descriptions(
        attributes={"dog": ("four legs", "fur"), "car": ("wheels",)},
        conditions=("background",),
        scenes=(Scene(labels=("dog", "car"), sentences=("A dog sits in a car.",)),),
    )
)


def test_a_file_is_read_as_it_was_written_and_edits_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    write_descriptions(path, WORDS)
    assert read_descriptions(path) == WORDS and not WORDS.edited() and not WORDS.conditions_edited
    path.write_text(path.read_text().replace('"fur"', '"soft fur"').replace('["background"]', '["light"]'))
    old = read_descriptions(path)
    assert old.edited() == ("dog",) and old.conditions_edited
    newer = generated(Descriptions(attributes={"dog": ("legs",), "car": ("doors",)}))
    merged, kept = keep_edits(old, newer)
    assert merged.attributes == {"dog": ("four legs", "soft fur"), "car": ("doors",)}
    assert kept == ("dog",)
    assert keep_edits(merged, newer)[0].attributes == merged.attributes  # an edit outlives any number of re-runs


name = st.text(min_size=1, max_size=8)


@settings(max_examples=40)
@given(attributes=st.dictionaries(name, st.lists(st.text('abc é"\\<', min_size=1).filter(str.strip), max_size=3)))
def test_any_class_name_survives_writing_and_reading(
    attributes: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("w") / "w.json"
    words = generated(Descriptions.model_validate({"attributes": attributes}))
    write_descriptions(path, words)
    assert read_descriptions(path) == words


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a descriptions file"),
        ('{"dog": "legs, fur"}', "wrong at attributes.dog: .*describe convert"),
        ('{"fedprompt_descriptions": 1, "conditions": ["light", "pose", "Light"]}', "condition 3 repeats condition 1"),
        ('{"fedprompt_descriptions": 1, "conditions": ["light", " "]}', "wrong at conditions.1"),
        ('{"fedprompt_descriptions": 2}', "format 2"),
        ('{"fedprompt_descriptions": 1, "attributes": {"dog": "legs"}}', "wrong at attributes.dog"),
        ('{"fedprompt_descriptions": 1, "attributs": {}}', "wrong at attributs"),
        (json.dumps({"fedprompt_descriptions": 1, "attributes": {"dog": ["x" * 301]}}), "attributes.dog.0"),
    ],
)
def test_a_damaged_file_is_named_in_the_error(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_descriptions(path)


def test_a_hand_written_file_needs_only_names_and_phrases(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    path.write_text('{"dog": ["four legs"], "car": []}')
    found = read_descriptions(path)
    assert found.attributes == {"dog": ("four legs",), "car": ()} and found.edited() == ("dog", "car")
    with pytest.raises(UserError, match="does not exist"):
        read_descriptions(tmp_path / "no.json")


@pytest.mark.parametrize(
    "table",
    [
        {"Golden_Retrievers": ["has fur"], "car": ["wheels"], "Airbus": ["wings"]},
        {"car": "wheels", "a photo of a golden retriever.": "fur", "airbus ": "wings"},
        {"airbus": {"1": "wings"}, "goldenRetriever": {"attributes": ["fur"]}, "car": {"1": "wheels"}},
        [
            {"name": "airbus", "attributes": ["wings"]},
            {"name": "Car", "d": ["wheels"]},
            {"n": "golden-retriever", "x": ["fur"]},
        ],
        {"attributes": {"golden retriever": ["fur"], "car": ["wheels"], "airbus": ["wings"]}},
    ],
)
def test_attribute_files_in_any_spelling_are_converted(table: object, tmp_path: Path) -> None:
    path = tmp_path / "gpt.json"
    path.write_text(json.dumps(table))
    found = convert(path, ("golden_retriever", "airbus", "car"))
    assert list(found.descriptions.attributes.items()) == [
        ("golden_retriever", ("fur",)),
        ("airbus", ("wings",)),
        ("car", ("wheels",)),
    ]
    assert not found.missing and not found.unused and not found.descriptions.edited()


def test_the_converter_lists_what_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "gpt.json"
    path.write_text(json.dumps({"cat": ["whiskers", "is a cat", "Whisker"], "dgo": ["fur"]}))
    found = convert(path, ("cat", "dog"))
    assert found.missing == ("dog",) and found.unused == ("'dgo'; did you mean 'dog'?",)
    assert found.descriptions.attributes == {"cat": ("whiskers",)} and len(found.rejections["cat"]) == 2
    assert convert(path, ()).descriptions.attributes == {"cat": ("whiskers",), "dgo": ("fur",)}
    for text, said in (("[]", "no object"), ('{"x": []}', "No key"), ('{"Cat": [], "cats": []}', "several keys")):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            convert(path, ("cat",))
