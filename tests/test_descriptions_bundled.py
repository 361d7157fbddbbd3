"""Bundled descriptions: complete, of good quality, found by name and synonym, read by default where they are needed."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from itertools import chain
from pathlib import Path
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from fedprompt import methods
from fedprompt.cli.main import app
from fedprompt.config.recipe import parse_recipe
from fedprompt.config.recipe_tables import DescriptionsTable
from fedprompt.data.descriptions import Descriptions, Scene
from fedprompt.data.labels import LabelSpace, with_attribute
from fedprompt.data.published.catalog import catalog, descriptions_of, entry
from fedprompt.data.sources.image_folder import image_folder
from fedprompt.data.sources.published import published
from fedprompt.descriptions import bundled
from fedprompt.descriptions.bundled import quality
from fedprompt.descriptions.bundled.files import FOLDER, rules
from fedprompt.descriptions.bundled.lookup import class_in, normal_form
from fedprompt.errors import UserError
from fedprompt.experiments.class_descriptions import choose, describe_origin, with_absolute_paths, with_descriptions
from fedprompt.experiments.plan import resolve
from fedprompt.methods.fedmpt import PUBLISHED_CONDITIONS
from fedprompt.records.reading import read_run
from fedprompt.studies.published import experiment, experiments, recipe, sets
from fedprompt.studies.reproduce import jobs
from fedprompt.studies.sweep import run_all
from trees import TREES, domains

MOST_KILOBYTES = 600
MULTI = [name for name, about in catalog().items() if about.kind == "multi"]
READING = [name for name, about in experiments().items() if any(methods.load(m["name"]).reads for m in about.methods)]
MINIATURE = (
    "backbone.path=demo",
    "backbone.batch=1",
    "train.rounds=1",
    "train.batch_size=8",
    "evaluate.samples=0",
    "compare=[]",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPROMPT_CACHE", str(tmp_path / "cache"))


def command(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    return done.exit_code, done.output


# The files


@pytest.mark.parametrize("name", bundled.names())
def test_a_bundled_file_is_valid_and_says_whose_it_is_and_on_which_terms(name: str) -> None:
    known = bundled.read(name)
    assert known.licence == "CC0-1.0" and "language model" in known.provenance.sentence
    assert bool(known.conditions) == bool(known.scenes) == bool(known.conditions_source)
    assert {label for scene in known.scenes for label in scene.labels} <= known.attributes.keys()


def test_the_order_of_preference_has_every_file_once_and_exceptions_are_classes() -> None:
    assert sorted(bundled.names()) == sorted(path.stem for path in FOLDER.glob("*.json"))
    for name, excepted in rules().exceptions.items():
        assert excepted.keys() <= bundled.read(name).attributes.keys() and all(excepted.values())


@pytest.mark.parametrize("name", sorted(catalog()))
def test_a_published_data_set_has_a_file_for_all_of_its_classes(name: str, tmp_path: Path) -> None:
    counts = {len(bundled.read(file).attributes) for file in descriptions_of(name)}
    if not entry(name).descriptions or len(descriptions_of(name)) > 1:
        assert counts == {entry(name).classes}
    TREES[name](tmp_path)
    space = published(name=name, root=tmp_path, base="all").space
    assert space.descriptions == descriptions_of(name)
    assert any(set(space.names) <= bundled.read(file).attributes.keys() for file in space.descriptions)


@pytest.mark.parametrize("name", MULTI)
def test_a_multi_label_data_set_has_five_conditions(name: str) -> None:
    for file in descriptions_of(name):
        known = bundled.read(file)
        assert len(known.conditions) == 5 and 6 <= len(known.scenes) <= 10
        if "paper" in known.conditions_source:
            assert known.conditions == PUBLISHED_CONDITIONS


def test_the_files_take_little_of_the_wheel() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in FOLDER.glob("*.json"):
            wheel.write(path, path.name)
    assert len(packed.getvalue()) < MOST_KILOBYTES * 1000


# Their quality


@pytest.mark.parametrize("name", bundled.names())
def test_no_bundled_file_breaks_a_rule(name: str) -> None:
    assert quality.measure_bundled(name).flags == ()


GOOD = Descriptions(
    attributes={
        "dog": ("four legs", "wet nose", "fur"),
        "car": ("four wheels", "wide doors", "large boot"),
        "bus": ("four wheels", "wide doors", "long roof"),
    }
)


def with_cat(*phrases: str) -> dict[str, object]:
    return {"attributes": {**GOOD.attributes, "cat": phrases}}


LONG = ("quadrupedality", "impenetrability", "irregularity", "asymmetrical configuration", "indistinguishability")
WRONG = {
    "has no attributes": with_cat(),
    "leaks its own name": with_cat("four legs", "fur of cats"),
    "names the class 'bus'": with_cat("four legs", "size of buses"),
    "has the same list as 'dog'": with_cat("wet nose", "four legs", "fur"),
    "has near-duplicates": with_cat("four legs", "has four legs"),
    "is worded 'wet nose' elsewhere": with_cat("four legs", "nose is wet"),
    "begins with 'often'": with_cat("four legs", "often asleep"),
    "begins with 'a'": with_cat("four legs", "a tail"),
    "has capitals": with_cat("four legs", "T-shaped"),
    "has more than 8 words": {
        "attributes": {**GOOD.attributes, "cat": ("four legs", "two or more very big and soft red ears")}
    },
    "has the synonym 'autobus'": {"synonyms": {"car": ("autobus",), "bus": ("autobus",)}},
    "has synonyms and no attributes": {"synonyms": {"lorry": ("truck",)}},
    "names the thing 'dog'": {"conditions": ("beside the dog",)},
    "overlap": {"conditions": ("bright light", "the bright light")},
    "are empty": {"scenes": (Scene(labels=("dog",), sentences=("A dog sits.",)),)},
    "33% of the attributes are shared": {"attributes": {"dog": ("leg", "tail", "nose"), "cat": ("leg", "ear", "eye")}},
    "100% of the attributes are shared": {"attributes": {"dog": ("legs", "tail"), "cat": ("legs", "tail")}},
    "the reading grade is": with_cat(*(f"characteristic {word}" for word in LONG)),
}


@pytest.mark.parametrize("said", WRONG)
def test_a_broken_rule_is_flagged(said: str) -> None:
    said_of_good = [flag.text for flag in quality.measure(GOOD).flags]
    found = [flag.text for flag in quality.measure(GOOD.model_copy(update=WRONG[said])).flags]
    assert any(said in text for text in found), found
    assert said_of_good == []


def test_the_limit_of_tokens_counts_name_template_and_phrase() -> None:
    assert quality.measure(GOOD).tokens == quality.token_bound(with_attribute("a photo of a car.", "large boot"))
    long = "a photo that somebody took on a rather cloudy day of a {}, " * 2
    assert [flag for flag in quality.measure(GOOD, templates=(long * 2,)).flags if "tokens" in flag.text]


def test_a_class_name_in_another_meaning_can_be_excepted() -> None:
    named = Descriptions(attributes={**GOOD.attributes, "cat": ("four legs", "size of buses")})
    assert quality.measure(named, excepted=("bus",)).flags == ()
    own = Descriptions(attributes={**GOOD.attributes, "tights": ("tight fit", "four legs")})
    assert [flag.text for flag in quality.measure(own).flags] == ["leaks its own name: 'tight fit'"]
    assert quality.measure(own, excepted=("tights",)).flags == ()


def test_templates_of_a_file_are_those_of_all_data_sets_that_use_it() -> None:
    assert "a quickdraw image of a {}." in quality.templates_of("domainnet")
    assert len(quality.templates_of("imagenet")) > 1


# Lookup by name


@pytest.mark.parametrize(
    ("written", "file", "name"),
    [
        ("Pink_Primroses", "oxford_flowers", "pink primrose"),
        ("pot marigold", "oxford_flowers", "english marigold"),
        ("ApplyLipstick", "ucf101", "Apply_Lipstick"),
        ("Teddy-Bears", "imagenet", "teddy bear"),
        ("n01440764", "imagenet", "tench"),
        ("Sea or Lake", "eurosat", "Sea or Lake"),
        ("sofa", "coco2014", "couch"),
        ("Cre\u0300me Bru\u0302le\u0301e", "food101", "creme_brulee"),
        ("CR\u00c8ME-BR\u00dbL\u00c9E", "food101", "creme_brulee"),
        ("Saint  Bernards", "oxford_pets", "saint_bernard"),
    ],
)
def test_a_class_is_found_whatever_its_case_hyphens_and_plural(written: str, file: str, name: str) -> None:
    assert class_in(file, written) == name
    assert bundled.find([written], [file]).attributes == {written: bundled.read(file).attributes[name]}


def test_exact_spelling_goes_before_the_normal_form() -> None:
    assert normal_form("sunglass") == normal_form("sunglasses")
    assert [class_in("imagenet", name) for name in ("sunglass", "sunglasses")] == ["sunglass", "sunglasses"]
    names = ("Person", "Chair", "Sneakers")
    assert set(bundled.find(names, descriptions_of("objects365")).origins.values()) == {"objects365_v2"}
    names = ("human", "chair", "sneakers")
    assert set(bundled.find(names, descriptions_of("objects365")).origins.values()) == {"objects365"}


def test_a_class_of_several_files_is_from_the_one_with_most_of_the_classes_then_by_the_order() -> None:
    airplane = {name: bundled.read(name).attributes["airplane"] for name in ("mlrsnet", "coco2014")}
    from_above = bundled.find(("airplane", "baseball diamond", "bare soil"))
    assert from_above.attributes["airplane"] == airplane["mlrsnet"]
    assert from_above.counts == {"mlrsnet": 3}
    from_aside = bundled.find(("airplane", "hair drier", "sports ball", "bare soil"))
    assert from_aside.attributes["airplane"] == airplane["coco2014"]
    assert from_aside.counts == {"coco2014": 3, "mlrsnet": 1} and from_aside.missing == ()
    (first,) = bundled.find(("airplane",)).origins.values()
    assert first == next(name for name in bundled.names() if class_in(name, "airplane"))


# In recipes


def test_bundled_attributes_stand_in_only_for_methods_that_read_them_and_data_sets_without() -> None:
    space = LabelSpace(("dog", "horse"), descriptions=("pacs",))
    pacs = bundled.read("pacs").attributes
    own = {name: pacs[name] for name in space.names}
    assert with_descriptions(space, DescriptionsTable(), seed=0) == space
    assert with_descriptions(space, DescriptionsTable(), seed=0, reads=("conditions",)) == space
    assert with_descriptions(space, DescriptionsTable(), seed=0, reads=("attributes",)).attributes == own
    assert with_descriptions(space, DescriptionsTable(shuffled=True), seed=0).attributes["dog"] == pacs["horse"]
    none = DescriptionsTable(attributes="none", conditions="none")
    assert with_descriptions(space, none, seed=0, reads=("attributes", "conditions")) == space
    described = replace(space, attributes={"dog": ("fur",)}, conditions=("pose",))
    assert with_descriptions(described, DescriptionsTable(), seed=0, reads=("attributes", "conditions")) == described
    elsewhere = LabelSpace(("dog", "horse"))  # a folder of one's own may be called pacs
    assert not with_descriptions(elsewhere, DescriptionsTable(), seed=0, reads=("attributes",)).attributes


def test_a_class_that_no_file_has_is_refused_unless_it_may_go_without() -> None:
    space = LabelSpace(("labradoor_retriever", "xqzw", "tulips of Siam", "sofa"))
    with pytest.raises(UserError, match=r"have no attributes for the classes 'labradoor_retriever' \(did you mean"):
        choose(space, DescriptionsTable(attributes="bundled"), ())
    with pytest.raises(UserError, match=r"did you mean 'Labrador Retriever'\?\), 'xqzw'.*descriptions.missing"):
        choose(space, DescriptionsTable(attributes="bundled"), ())
    found = choose(space, DescriptionsTable(attributes="bundled", missing="empty"), ())
    assert list(found.attributes) == ["sofa"] and found.missing == space.names[:3]
    with pytest.raises(UserError, match=r"The bundled descriptions pacs have no attributes for the class"):
        choose(LabelSpace(("dog", "xqzw")), DescriptionsTable(attributes="pacs"), ())
    partly = LabelSpace(("dog", "xqzw"), descriptions=("pacs",))
    assert choose(partly, DescriptionsTable(), ("attributes",)).missing == ("xqzw",)


def test_a_named_file_that_lacks_classes_points_to_all_the_others() -> None:
    with pytest.raises(
        UserError, match=r'class .teapot.; set descriptions.attributes = "bundled" to search the others'
    ):
        choose(LabelSpace(("pug", "teapot")), DescriptionsTable(attributes="oxford_pets"), ())


@pytest.mark.parametrize(("written", "meant"), [("Bundled", "bundled"), ("OXFORD_PETS", "oxford_pets")])
def test_a_name_in_another_case_is_refused_with_a_suggestion(written: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"did you mean '{meant}'"):
        with_absolute_paths(DescriptionsTable(attributes=written))


def test_a_run_names_classes_that_get_the_same_attributes(tmp_path: Path) -> None:
    domains(tmp_path / "mine", ("train", "test"), ("sofa", "couch", "teapot", "xqzw"))
    dataset = image_folder(path=tmp_path / "mine")
    table = DescriptionsTable(attributes="bundled", missing="empty")
    said = describe_origin(dataset, table, ())
    assert "the same attributes for 'couch' and 'sofa'" in said and said.endswith("for 1 class, for example 'xqzw'")


def test_a_file_of_ones_own_may_lack_classes_too(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"dog": ["fur"]}')
    table = DescriptionsTable(attributes=str(tmp_path / "own.json"), missing="empty")
    assert choose(LabelSpace(("dog", "xqzw")), table, ()).attributes == {"dog": ("fur",)}
    with pytest.raises(UserError, match="'xqzw'"):
        choose(LabelSpace(("dog", "xqzw")), table.model_copy(update={"missing": "refuse"}), ())


def test_conditions_of_another_data_set_are_named_by_its_name() -> None:
    table = DescriptionsTable(conditions="mlrsnet")
    assert with_descriptions(LabelSpace(("dog",)), table, seed=0).conditions == bundled.read("mlrsnet").conditions
    with pytest.raises(UserError, match="has no conditions"):
        with_descriptions(LabelSpace(("dog",)), DescriptionsTable(conditions="pacs"), seed=0)


def test_a_recipe_keeps_the_names_of_bundled_files_for_a_run_may_move_to_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = DescriptionsTable(attributes="oxford_flowers", conditions="voc2007")
    assert with_absolute_paths(table) == table
    everything = DescriptionsTable(attributes="bundled")
    assert with_absolute_paths(everything) == everything
    monkeypatch.chdir(tmp_path)
    (tmp_path / "voc2007").write_text('{"fedprompt_descriptions": 1, "conditions": ["pose"]}')
    assert with_absolute_paths(table).conditions == str(tmp_path / "voc2007")
    assert choose(LabelSpace(("rose",)), table, ()).conditions == ("pose",)


@pytest.mark.parametrize("name", READING)
def test_every_experiment_that_reads_descriptions_finds_them_without_a_setting(name: str, tmp_path: Path) -> None:
    about = experiment(name)
    for one in sets(about):
        TREES[one](tmp_path)
    for label in about.variants:
        plan = resolve(recipe(about, label, root=tmp_path, seed=1))
        dataset = plan.source()
        for trial in plan.trials:
            for part in dataset.parts:
                space = with_descriptions(part.space, trial.descriptions, seed=1, reads=trial.reads)
                assert ("attributes" in trial.reads) == (space.attributes.keys() == set(space.names))
                assert ("conditions" in trial.reads) == (len(space.conditions) == 5)


@pytest.mark.parametrize(
    ("name", "setting", "said"),
    [
        ("fedmvp/base-to-new", "data.sets=['dtd', 'eurosat']", "attributes of dtd (3 classes), eurosat (3 classes)"),
        ("fedmpt/participation-voc2007", "partition.heterogeneity=0.1", "conditions of voc2007"),
    ],
)
def test_a_run_says_and_records_which_bundled_descriptions_it_reads(
    name: str, setting: str, said: str, tmp_path: Path
) -> None:
    for one in ("dtd", "eurosat", "voc2007"):
        TREES[one](tmp_path)
    (job, *_) = jobs(experiment(name), root=tmp_path, out=tmp_path / "out", seeds=[1], settings=[*MINIATURE, setting])
    with patch("fedprompt.experiments.run.render"):
        list(run_all([job]))
    (trial,) = read_run(job.folder).trials
    header = json.loads((job.folder / "run.jsonl").read_text().splitlines()[0])
    assert header["bundled"] == {trial.name: said} and len(header["descriptions"][trial.name]) == 32


def test_a_folder_of_ones_own_finds_its_classes_by_name(tmp_path: Path) -> None:
    domains(tmp_path / "mine", ("train", "test"), ("Golden_Retrievers", "Siamese-cat"))
    settings = [f"data={{source='image_folder', path='{tmp_path / 'mine'}'}}", "descriptions.attributes='bundled'"]
    tables = 'name = "own"\n[data]\nsource = "image_folder"\n[partition]\nrule = "iid"\nclients = 1\n'
    plan = resolve(parse_recipe(tables + '[method]\nname = "fedmvp"', settings))
    (trial,) = plan.trials
    space = with_descriptions(plan.source().space, trial.descriptions, seed=1, reads=trial.reads)
    assert space.attributes["Golden_Retrievers"] == bundled.read("imagenet").attributes["Golden Retriever"]
    assert space.attributes["Siamese-cat"] == bundled.read("imagenet").attributes["Siamese cat"]


# Commands


def test_list_and_show_print_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, listed = command("describe", "list")
    assert code == 0 and all(name in listed for name in bundled.names()) and "1,568" in listed
    code, shown = command("describe", "show", "voc2007")
    assert code == 0 and "CC0-1.0" in shown and "spatial layout" in shown
    assert all(phrase in shown for phrase in chain(*bundled.read("voc2007").attributes.values()))
    assert all(synonym in shown for synonym in chain(*bundled.read("voc2007").synonyms.values()))
    assert Descriptions.model_validate_json(command("describe", "show", "pacs", "--json")[1]) == bundled.read("pacs")
    code, refused = command("describe", "show", "oxford_flower")
    assert code == 2 and "did you mean 'oxford_flowers'" in refused


def test_find_prints_where_a_class_is_and_suggests_names() -> None:
    code, found = command("describe", "find", "sofa", "golden retriever")
    assert code == 0 and "coco2014 (couch)" in found and "golden coat" in found
    code, found = command("describe", "find", "labradoor retriever")
    assert code == 2 and "did you mean 'Labrador Retriever'" in found


def test_review_prints_the_quality_of_bundled_files_and_writes_their_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed = command("describe", "review")
    assert code == 0 and all(name in printed for name in bundled.names()) and not list(tmp_path.iterdir())
    code, printed = command("describe", "review", "pacs", "--pages", tmp_path / "pages")
    page = (tmp_path / "pages" / "pacs.md").read_text()
    assert code == 0 and "0 flag(s). By fedprompt contributors" in page and "by hand" not in page
    assert (tmp_path / "pages" / "pacs.html").exists()


def test_review_refuses_names_and_options_that_do_not_fit(tmp_path: Path) -> None:
    code, said = command("describe", "review", "oxford_pet")
    assert code == 2 and "did you mean 'oxford_pets'" in said
    code, said = command("describe", "review", "pacs", "--classes", tmp_path / "classes.txt")
    assert code == 2 and "for the review of a file of your own" in said
    own = tmp_path / "own.json"
    own.write_text('{"dog": ["fur"]}')
    code, said = command("describe", "review", own, "--pages", tmp_path)
    assert code == 2 and "written beside it" in said
    code, said = command("describe", "find", " ")
    assert code == 2 and "' ': in no bundled file" in said


def test_review_of_a_bundled_file_that_breaks_a_rule_exits_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "MOST_SHARED", 0.41)
    code, printed = command("describe", "review", "pacs")
    assert code == 2 and "of the attributes are shared" in printed
