"""Words in recipes: a data set's own, a file's, none or the wrong ones, for all of a run or for one method of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedprompt.config.recipe import find_recipe, load_recipe, parse_recipe
from fedprompt.config.recipe_tables import BackboneTable, DescriptionsTable
from fedprompt.data.descriptions import Descriptions, read_descriptions
from fedprompt.data.labels import LabelSpace
from fedprompt.data.sources.published import published
from fedprompt.demo.emoji import emoji
from fedprompt.demo.scenes import scenes
from fedprompt.descriptions.edits import write_descriptions
from fedprompt.errors import UserError
from fedprompt.experiments import run as runs
from fedprompt.experiments.class_descriptions import (
    check_distinct_texts,
    foreign_attributes,
    shuffle_attributes,
    text_fingerprint,
    with_descriptions,
)
from fedprompt.experiments.experiment import assemble, load_backbone
from fedprompt.experiments.plan import resolve
from fedprompt.experiments.test_sets import make_test_sets
from fedprompt.records.adapter import load_adapter
from trees import TREES

pytestmark = pytest.mark.usefixtures("kept_backbone", "undrawn")

SPACE = LabelSpace(("dog", "cat", "car"), attributes={"dog": ("fur",), "car": ("wheels",)}, conditions=("pose",))
RECIPE = """
name = "tiny"
compare = [
  { name = "fedmvp", label = "none", descriptions = { attributes = "none" } },
  { name = "fedmvp", label = "shuffled", descriptions = { shuffled = true } },
  { name = "fedmvp", label = "file", descriptions = { attributes = "FILE", conditions = ["a", "b"] } },
]
[data]
source = "emoji"
train = 1
test = 1
[partition]
rule = "class_chunks"
classes_per_client = 20
[method]
name = "fedmvp"
[train]
rounds = 1
batch_size = 64
lr = 0.01
[evaluate]
samples = 0
"""


@pytest.fixture
def words_file(tmp_path: Path) -> Path:
    path = tmp_path / "own.json"
    names = emoji().space.names
    write_descriptions(
        path, Descriptions(attributes={name: (f"a {name[::-1]} part",) for name in names}, conditions=("x",))
    )
    return path


def test_bundled_files_are_the_data_sets_own_words() -> None:
    for dataset, table in (
        (emoji(train=0, test=1), DescriptionsTable(attributes="emoji")),
        (scenes(train=0, test=1), DescriptionsTable(attributes="scenes", conditions="scenes")),
    ):
        assert with_descriptions(dataset.space, table, seed=0) == dataset.space


@pytest.mark.parametrize(("name", "different"), [("descriptions_attributes", 4), ("descriptions_conditions", 2)])
def test_the_studies_find_their_words_and_vary_nothing_else(name: str, different: int) -> None:
    experiment = assemble(resolve(load_recipe(find_recipe(name))))
    main, *others = experiment.trials
    trials = [main, *(trial for trial in others if trial.method == main.method)]
    assert len({text_fingerprint(experiment.described[trial.name]) for trial in trials}) == different
    assert len({str(trial.settings) for trial in trials}) == 1
    counted = [dict(trial.options) for trial in trials]
    assert len({str({**options, "n_conditions": 0, "condition_words": True}) for options in counted}) == 1


def test_where_words_come_from(words_file: Path) -> None:
    assert with_descriptions(SPACE, DescriptionsTable(), seed=0) == SPACE
    assert with_descriptions(SPACE, DescriptionsTable(attributes="none", conditions="none"), seed=0) == LabelSpace(
        SPACE.names
    )
    assert with_descriptions(SPACE, DescriptionsTable(conditions=("a", "b")), seed=0).conditions == ("a", "b")
    assert with_descriptions(SPACE, DescriptionsTable(conditions=str(words_file)), seed=0).conditions == ("x",)


def test_words_that_do_not_fit_are_refused(words_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no descriptions file 'emojis'; did you mean 'emoji'"):
        with_descriptions(SPACE, DescriptionsTable(attributes="emojis"), seed=0)
    other = LabelSpace(("pigs", "xyzzy"))
    with pytest.raises(UserError, match=r"the classes 'pigs' \(did you mean 'pig'\?\), 'xyzzy'; write them"):
        with_descriptions(other, DescriptionsTable(attributes="emoji"), seed=0)
    empty = tmp_path / "empty.json"
    write_descriptions(empty, Descriptions())
    with pytest.raises(UserError, match="has no conditions"):
        with_descriptions(SPACE, DescriptionsTable(conditions=str(empty)), seed=0)
    with pytest.raises(UserError, match="two classes"):
        with_descriptions(LabelSpace(("dog",), attributes={"dog": ("fur",)}), DescriptionsTable(shuffled=True), seed=0)


@given(st.sets(st.text("abc", min_size=1), min_size=2, max_size=8), st.integers(0, 9))
def test_shuffled_words_are_all_used_and_all_wrong(names: set[str], seed: int) -> None:
    attributes = {name: (f"{name} part",) for name in sorted(names)}
    found = shuffle_attributes(attributes, tuple(attributes), seed=seed)
    assert sorted(found.values()) == sorted(attributes.values())
    assert all(found[name] != attributes[name] for name in names)
    assert found == shuffle_attributes(attributes, tuple(attributes), seed=seed)


@given(st.integers(0, 9))
def test_foreign_words_are_none_of_the_data_sets_own(seed: int) -> None:
    own = {"dog": ("four legs", "has a tail"), "oak tree": ("leaves",), "rock": ()}
    others = [("four wheels", "a door"), ("Oaks", "a red roof", "windows"), ("has two legs", "wings", "a beak")]
    found = foreign_attributes(own, ("dog", "oak tree", "rock"), others, seed=seed)
    assert {name: len(phrases) for name, phrases in found.items()} == {"dog": 2, "oak tree": 1, "rock": 0}
    assert len(set(found["dog"])) == 2
    usable = {"a door", "a red roof", "windows", "wings", "a beak"}  # no "four", "legs", "oak"
    assert {phrase for phrases in found.values() for phrase in phrases} <= usable
    assert found == foreign_attributes(own, ("dog", "oak tree", "rock"), others, seed=seed)


def test_foreign_words_come_from_a_file_or_from_all_bundled_ones() -> None:
    space = emoji(train=0, test=1).space
    every = [phrase for phrases in space.attributes.values() for phrase in phrases]
    for name in ("other-emoji", "bundled"):
        found = with_descriptions(space, DescriptionsTable(foreign=name), seed=1).attributes
        assert [len(found[name]) for name in space.names] == [len(space.attributes[name]) for name in space.names]
        assert not {phrase for phrases in found.values() for phrase in phrases} & set(every)
        assert found != with_descriptions(space, DescriptionsTable(foreign=name), seed=2).attributes
    with pytest.raises(UserError, match="without a word of the data set's own"):
        with_descriptions(space, DescriptionsTable(foreign="emoji"), seed=1)
    with pytest.raises(UserError, match="no descriptions file 'bundle'; did you mean 'bundled'"):
        assemble(resolve(parse_recipe(RECIPE, ["compare=[]", "descriptions.foreign=bundle"])))


def test_every_trial_is_told_its_own_words(words_file: Path) -> None:
    experiment = assemble(resolve(parse_recipe(RECIPE.replace("FILE", str(words_file)))))
    main, none, wrong, file = (experiment.of(trial) for trial in experiment.trials)
    assert main.dataset.space == experiment.dataset.space and not none.dataset.space.attributes
    own, other = experiment.dataset.space.attributes, wrong.dataset.space.attributes
    assert sum(own[name] == other[name] for name in own) < 5  # two classes may have the same list
    client = file.clients[0].train
    assert client.space.attributes[client.space.names[0]] == (f"a {client.space.names[0][::-1]} part",)
    assert client.space.conditions == ("a", "b") and client.images.rows == experiment.clients[0].train.images.rows
    assert len({text_fingerprint(dataset) for dataset in experiment.described.values()}) == 4
    assert experiment.recipe.compare[2].descriptions == {"attributes": str(words_file), "conditions": ["a", "b"]}
    assert experiment.recipe.compare[1].descriptions == {"shuffled": True}


def test_every_part_of_a_suite_is_told_its_own_words(words_file: Path, tmp_path: Path) -> None:
    for name in ("dtd", "eurosat"):
        TREES[name](tmp_path)
    names = {name: published(name=name, root=tmp_path).space.names for name in ("dtd", "eurosat")}
    write_descriptions(
        words_file, Descriptions(attributes={one: (f"a {one[::-1]} part",) for own in names.values() for one in own})
    )
    data = f"data={{source='suite', root='{tmp_path}', sets=['dtd'], targets=['eurosat']}}"
    told = f"descriptions={{attributes='{words_file}'}}"
    others = (
        f"{{name='zeroshot', label='{key[0]}', descriptions={{{key}}}}}"
        for key in ("shuffled=true", "attributes='none'")
    )
    experiment = assemble(resolve(parse_recipe(RECIPE, [data, told, f"compare=[{','.join(others)}]"])))
    main, shuffled, without = (experiment.of(trial) for trial in experiment.trials)
    first = main.clients[0].train.space
    assert first.attributes == {name: (f"a {name[::-1]} part",) for name in first.names}
    for question in make_test_sets(main.dataset):
        assert question.examples.space.attributes.keys() == set(question.examples.space.names)
    for part, own in zip(shuffled.dataset.parts, names.values(), strict=True):
        assert all(part.space.attributes[name] != (f"a {name[::-1]} part",) for name in own)
        assert {reverse for (reverse,) in part.space.attributes.values()} == {f"a {name[::-1]} part" for name in own}
    assert not any(part.space.attributes for part in without.dataset.parts)
    assert len({text_fingerprint(one.dataset) for one in (main, shuffled, without)}) == 3
    write_descriptions(words_file, Descriptions(attributes=dict.fromkeys(names["dtd"], ())))
    with pytest.raises(UserError, match="no attributes for the class"):
        assemble(resolve(parse_recipe(RECIPE, [data, told, "compare=[]"])))


def test_a_runs_words_are_recorded_travel_with_the_adapter_and_may_not_change(words_file: Path, tmp_path: Path) -> None:
    names = scenes(train=0, test=1).space.names
    write_descriptions(
        words_file, Descriptions(attributes={name: (f"a {name[::-1]} part",) for name in names}, conditions=("x",))
    )
    own = f'{{ attributes = "{words_file}", conditions = ["a", "b"] }}'
    told = f'{{ name = "promptfl", label = "file", descriptions = {own} }}'
    recipe = re.sub(r"compare = \[.*?\n\]", f"compare = [{told}]", RECIPE, flags=re.DOTALL)
    few = ("data.source=scenes", "partition.rule=iid", "partition.clients=1", "method.name=zeroshot")
    recipe = recipe.replace("classes_per_client = 20\n", "")
    runs.start(resolve(parse_recipe(recipe, few)), tmp_path / "run")
    adapter = load_adapter(tmp_path / "run" / "adapters" / "file")
    assert adapter.space.conditions == ("a", "b") and adapter.space.attributes["pig"] == ("a gip part",)
    header = json.loads((tmp_path / "run" / "run.jsonl").read_text().splitlines()[0])
    assert sorted(header["descriptions"]) == ["file", "zeroshot"]
    write_descriptions(words_file, read_descriptions(words_file).model_copy(update={"conditions": ("y",)}))
    log = tmp_path / "run" / "run.jsonl"
    unfinished = b"".join(log.read_bytes().splitlines(keepends=True)[:-1])  # as if killed before its end was recorded
    log.write_bytes(unfinished)
    runs.resume(tmp_path / "run")  # the trial does not use the file's conditions
    log.write_bytes(unfinished)
    words_file.write_text(words_file.read_text().replace("a gip part", "another part"))
    with pytest.raises(UserError, match="another descriptions file"):
        runs.resume(tmp_path / "run")


@pytest.mark.parametrize("setting", ["descriptions.attribute=x", 'method.descriptions={attribute="x"}'])
def test_an_unknown_key_is_named(setting: str) -> None:
    with pytest.raises(UserError, match=re.escape("has no key 'attribute'; did you mean 'attributes'?")):
        assemble(resolve(parse_recipe(RECIPE, [setting])))


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            ("Road", "sea", "road"),
            r"The classes 'Road' and 'road' are one to the backbone: of 'a photo of a Road\.' and 'a photo of a "
            r"road\.' it reads the same tokens; rename one of the classes, or make them one\.",
        ),
        (("hot_dog", "hot dog"), "The classes 'hot_dog' and 'hot dog' are one to the backbone"),
        (
            (f"a {'very ' * 90}old cat", f"a {'very ' * 90}old dog"),
            r"ver.*\.\.\.' it reads 32 tokens, which are the same; shorten the names, or the template, so that what",
        ),
    ],
)
def test_two_classes_with_the_same_tokens_are_refused(names: tuple[str, ...], sentence: str) -> None:
    clip = load_backbone(BackboneTable(path="demo"))
    check_distinct_texts(clip, LabelSpace(("road", "roads", "hot dogs", "hot dog")))
    with pytest.raises(UserError, match=sentence):
        check_distinct_texts(clip, LabelSpace(names))


def test_a_run_with_two_such_classes_stops_before_it_writes(tmp_path: Path) -> None:
    for number, name in enumerate(("Road", "road", "sea")):
        for shade in range(2):
            path = tmp_path / "images" / name / f"{shade}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (80 * number, 40 * shade, 0)).save(path)
    recipe = f"""
name = "tiny"
[data]
source = "image_folder"
path = "{tmp_path / "images"}"
[partition]
rule = "iid"
clients = 2
[method]
name = "promptfl"
"""
    with pytest.raises(UserError, match="The classes 'Road' and 'road'"):
        assemble(resolve(parse_recipe(recipe)))
