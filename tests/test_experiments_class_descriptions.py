"""Words in recipes: a data set's own, a file's, none or the wrong ones, for all of a run or for one method of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprompt.config.recipe import find_recipe, load_recipe, parse_recipe
from fedprompt.config.tables import DescriptionsTable
from fedprompt.data.descriptions import Descriptions, read_descriptions
from fedprompt.data.labels import LabelSpace
from fedprompt.data.sources.published import published
from fedprompt.demo.world import pictograms, scenes
from fedprompt.descriptions.edits import write_descriptions
from fedprompt.errors import UserError
from fedprompt.experiments import run as runs
from fedprompt.experiments.class_descriptions import describe_classes, fingerprint, shuffle_attributes
from fedprompt.experiments.experiment import assemble
from fedprompt.experiments.plan import resolve
from fedprompt.experiments.test_sets import make_test_sets
from fedprompt.records.adapter import load_adapter
from trees import TREES

SPACE = LabelSpace(("dog", "cat", "car"), attributes={"dog": ("fur",), "car": ("wheels",)}, conditions=("pose",))
RECIPE = """
name = "tiny"
compare = [
  { name = "fedmvp", label = "none", descriptions = { attributes = "none" } },
  { name = "fedmvp", label = "shuffled", descriptions = { shuffled = true } },
  { name = "fedmvp", label = "file", descriptions = { attributes = "FILE", conditions = ["a", "b"] } },
]
[data]
source = "pictograms"
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
    names = pictograms().space.names
    write_descriptions(
        path, Descriptions(attributes={name: (f"a {name[::-1]} part",) for name in names}, conditions=("x",))
    )
    return path


def test_bundled_files_are_the_data_sets_own_words() -> None:
    for dataset, table in (
        (pictograms(train=0, test=1), DescriptionsTable(attributes="pictograms")),
        (scenes(train=0, test=1), DescriptionsTable(attributes="scenes", conditions="scenes")),
    ):
        assert describe_classes(dataset.space, table, seed=0) == dataset.space


@pytest.mark.parametrize(("name", "different"), [("descriptions_attributes", 4), ("descriptions_conditions", 3)])
def test_the_studies_find_their_words_and_vary_nothing_else(name: str, different: int) -> None:
    experiment = assemble(resolve(load_recipe(find_recipe(name))))
    trials = [trial for trial in experiment.trials if trial.name != "zeroshot"]
    assert len({fingerprint(experiment.described[trial.name]) for trial in trials}) == different
    assert len({str(trial.settings) for trial in trials}) == 1
    counted = [dict(trial.options) for trial in trials]
    assert len({str({**options, "n_conditions": 0}) for options in counted}) == 1


def test_where_words_come_from(words_file: Path) -> None:
    assert describe_classes(SPACE, DescriptionsTable(), seed=0) == SPACE
    assert describe_classes(SPACE, DescriptionsTable(attributes="none", conditions="none"), seed=0) == LabelSpace(
        SPACE.names
    )
    assert describe_classes(SPACE, DescriptionsTable(conditions=("a", "b")), seed=0).conditions == ("a", "b")
    assert describe_classes(SPACE, DescriptionsTable(conditions=str(words_file)), seed=0).conditions == ("x",)


def test_words_that_do_not_fit_are_refused(words_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no descriptions file 'pictogram'; did you mean 'pictograms'"):
        describe_classes(SPACE, DescriptionsTable(attributes="pictogram"), seed=0)
    other = LabelSpace(("dogs", "unicorn"))
    with pytest.raises(UserError, match=r"'dogs'; did you mean 'dog'\? and 1 more; add them"):
        describe_classes(other, DescriptionsTable(attributes="pictograms"), seed=0)
    empty = tmp_path / "empty.json"
    write_descriptions(empty, Descriptions())
    with pytest.raises(UserError, match="has no conditions"):
        describe_classes(SPACE, DescriptionsTable(conditions=str(empty)), seed=0)
    with pytest.raises(UserError, match="two classes"):
        describe_classes(LabelSpace(("dog",), attributes={"dog": ("fur",)}), DescriptionsTable(shuffled=True), seed=0)


@given(st.sets(st.text("abc", min_size=1), min_size=2, max_size=8), st.integers(0, 9))
def test_shuffled_words_are_all_used_and_all_wrong(names: set[str], seed: int) -> None:
    attributes = {name: (f"{name} part",) for name in sorted(names)}
    found = shuffle_attributes(attributes, tuple(attributes), seed=seed)
    assert sorted(found.values()) == sorted(attributes.values())
    assert all(found[name] != attributes[name] for name in names)
    assert found == shuffle_attributes(attributes, tuple(attributes), seed=seed)


def test_every_trial_is_told_its_own_words(words_file: Path) -> None:
    experiment = assemble(resolve(parse_recipe(RECIPE.replace("FILE", str(words_file)))))
    main, none, wrong, file = (experiment.of(trial) for trial in experiment.trials)
    assert main.dataset.space == experiment.dataset.space and not none.dataset.space.attributes
    own, other = experiment.dataset.space.attributes, wrong.dataset.space.attributes
    assert sum(own[name] == other[name] for name in own) < 5  # two classes may have the same list
    client = file.clients[0].train
    assert client.space.attributes[client.space.names[0]] == (f"a {client.space.names[0][::-1]} part",)
    assert client.space.conditions == ("a", "b") and client.images.rows == experiment.clients[0].train.images.rows
    assert len({fingerprint(dataset) for dataset in experiment.described.values()}) == 4
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
    assert len({fingerprint(one.dataset) for one in (main, shuffled, without)}) == 3
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
    assert adapter.space.conditions == ("a", "b") and adapter.space.attributes["dog"] == ("a god part",)
    header = json.loads((tmp_path / "run" / "run.jsonl").read_text().splitlines()[0])
    assert sorted(header["descriptions"]) == ["file", "zeroshot"]
    write_descriptions(words_file, read_descriptions(words_file).model_copy(update={"conditions": ("y",)}))
    runs.resume(tmp_path / "run")  # the trial does not use the file's conditions
    words_file.write_text(words_file.read_text().replace("a god part", "another part"))
    with pytest.raises(UserError, match="another descriptions file"):
        runs.resume(tmp_path / "run")


@pytest.mark.parametrize("setting", ["descriptions.attribute=x", 'method.descriptions={attribute="x"}'])
def test_an_unknown_key_is_named(setting: str) -> None:
    with pytest.raises(UserError, match=re.escape("has no key 'attribute'; did you mean 'attributes'?")):
        assemble(resolve(parse_recipe(RECIPE, [setting])))
