"""Defaults for data of one's own: tuned rates where nothing is stated, one template for all, and who holds what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fedprompt import methods
from fedprompt.config.recipe import find_recipe, load_recipe, parse_recipe
from fedprompt.config.tuned import tuned_defaults
from fedprompt.data.partition.base import Partition, Shard
from fedprompt.errors import UserError
from fedprompt.experiments.experiment import assemble
from fedprompt.experiments.plan import Plan, resolve
from fedprompt.experiments.protocol import training_images
from fedprompt.testing import tiny_images

OWN = ("own_folder", "own_table")


def own(name: str, *settings: str) -> Plan:
    return resolve(load_recipe(find_recipe(name), settings), origin=name)


def lr_of(plan: Plan, name: str) -> float:
    return next(trial.settings.lr for trial in plan.trials if trial.name == name)


@pytest.mark.parametrize("kind", ["single-label", "multi-label"])
def test_tuned_defaults_are_settings_of_methods(kind: str) -> None:
    for name, table in tuned_defaults()[kind].items():
        assert name in methods.names()
        assert 1e-5 < table["train"]["lr"] < 1
        assert set(table) - {"train", "gain"} <= set(methods.options(methods.load(name)))


@pytest.mark.parametrize(("recipe", "kind"), zip(OWN, ("single-label", "multi-label"), strict=True))
def test_recipes_for_own_data_take_the_tuned_rates(recipe: str, kind: str) -> None:
    plan = own(recipe)
    for trial in plan.trials:
        tuned = tuned_defaults()[kind].get(trial.method)
        assert (tuned is None) == (trial.method == "zeroshot")
        assert tuned is None or trial.settings.lr == tuned["train"]["lr"]
        assert trial.settings.optimizer == "adamw"


def test_a_method_of_ones_choice_has_its_own_tuned_rate() -> None:
    plan = own("own_folder", "method.name=fedkgcoop")
    assert lr_of(plan, "fedkgcoop") == tuned_defaults()["single-label"]["fedkgcoop"]["train"]["lr"]
    assert plan.trials[0].options["init"] == "template"


def test_what_a_recipe_states_wins_over_tuned_defaults() -> None:
    assert {trial.settings.lr for trial in own("own_folder", "train.lr=0.123").trials} == {0.123}
    plan = own("own_folder", "method={name='fedotp',init='',train={lr=0.5}}")
    assert (plan.trials[0].settings.lr, plan.trials[0].options["init"]) == (0.5, "")


def test_a_plan_written_out_gives_the_same_plan() -> None:
    for name in OWN:
        plan = own(name)
        again = resolve(parse_recipe(plan.recipe.to_toml()), origin=name)
        assert again.recipe == plan.recipe
        assert [trial.settings for trial in again.trials] == [trial.settings for trial in plan.trials]


@pytest.mark.parametrize("name", ["demo", "study", "compare_single", "multilabel", "compare_multi"])
def test_recipes_of_papers_keep_their_settings(name: str) -> None:
    plan = own(name)
    assert plan.recipe.defaults == "paper" and not plan.recipe.minutes
    assert all(trial.options.get("init") != "template" for trial in plan.trials)


def folder(root: Path, *places: str, each: int = 4) -> Path:
    """Tiny images, `each` of them in every place."""
    for number, place in enumerate(places):
        (root / place).mkdir(parents=True)
        for one in range(each):
            tiny_images().open((number * each + one) % 12).save(root / place / f"{one}.png")
    return root


def experiment(root: Path, *settings: str):
    return assemble(own("own_folder", f"data.path={root}", "backbone.path=demo", *settings))


def test_all_classes_and_all_training_images_are_used(tmp_path: Path) -> None:
    found = experiment(folder(tmp_path, "cat", "dog", "car", "tree", each=8))
    assert len(found.dataset.base) == 4 and not found.dataset.new
    held = [row for shard in found.partition.shards for row in shard.rows]
    assert sorted(held) == found.dataset.rows(split="train").tolist()


def test_every_context_starts_from_the_template_and_says_so(tmp_path: Path) -> None:
    template = "a photo of a {} textile."
    found = experiment(folder(tmp_path, "cat", "dog"), f"data.template={template}", "method.name=fedotp")
    for trial in found.trials:
        method = trial.make_method(found.clip)
        assert method.init in (None, template)
        said = method.text_inputs(found.dataset.space)
        assert template in said or trial.name == "zeroshot-plain", said


def test_zero_shot_has_a_row_with_the_plain_template_where_the_datas_differs(tmp_path: Path) -> None:
    root = folder(tmp_path, "cat", "dog")
    names = [trial.name for trial in experiment(root, "data.template=a drawing of a {}.").trials]
    assert "zeroshot" in names and "zeroshot-plain" in names
    names = [trial.name for trial in experiment(root).trials]
    assert "zeroshot" in names and "zeroshot-plain" not in names


def test_defaults_for_another_kind_of_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='are single-label; write defaults = "single-label"'):
        experiment(folder(tmp_path, "cat", "dog"), "defaults=multi-label")


def test_the_line_before_training_names_domains(tmp_path: Path) -> None:
    places = [f"{domain}/{name}" for domain in ("art", "photo") for name in ("cat", "dog", "car")]
    found = experiment(folder(tmp_path, *places))
    sizes = {shard.name: len(shard.rows) for shard in found.partition.shards}
    total = len(found.dataset.rows(split="train"))
    low, high = sorted(sizes.values())
    each = f"{low}" if low == high else f"{low} to {high}"
    assert training_images(found) == (
        f"2 clients, one per domain (art {sizes['art']}, photo {sizes['photo']}), hold {total} of {total} training "
        f"images: {each} each, of 3 of 3 classes."
    )


def test_the_line_before_training_counts_images_that_nobody_holds_and_clients_of_one_class(tmp_path: Path) -> None:
    found = experiment(folder(tmp_path, "cat", "dog", each=8))
    cats, dogs = (found.dataset.rows(split="train", classes=(label,)).tolist() for label in (0, 1))
    shards = (Shard("one", tuple(cats[:3]), (0, 1)), Shard("two", (cats[3], *dogs[:2]), (0, 1)))
    some = replace(found, partition=Partition("mine", 1, shards))
    total = len(cats) + len(dogs)
    assert training_images(some) == (
        f"2 clients hold 6 of {total} training images: 3 each, of 1 to 2 of 2 classes. "
        "1 client has images of one class only."
    )


@pytest.mark.parametrize("each", [1, 2, 3])
def test_one_to_three_images_per_class_are_enough(tmp_path: Path, each: int) -> None:
    found = experiment(folder(tmp_path, "cat", "dog", "car", "tree", each=each))
    assert sum(len(shard.rows) for shard in found.partition.shards) == len(found.dataset.rows(split="train")) > 0
