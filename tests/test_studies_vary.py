"""Studies of settings: recipes with one setting changed, runs that groups share, and a table per figure."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedprompt.cli.compare import compare as command
from fedprompt.config.recipe import find_recipe, load_recipe, parse_recipe
from fedprompt.errors import UserError
from fedprompt.studies.compare import jobs, plan
from fedprompt.studies.sweep import check
from fedprompt.studies.tuning import at_edges
from fedprompt.studies.vary import label, with_setting

RECIPE = """
name = "tiny"
compare = [{ name = "zeroshot" }]
[data]
source = "scenes"
train = 2
test = 2
[partition]
rule = "iid"
clients = 2
[method]
name = "promptfl"
[train]
rounds = 1
batch_size = 64
[evaluate]
samples = 0
local = false
[vary]
clients = [{ "partition.clients" = 1 }, { "partition.clients" = 2 }]
rounds = [{ "train.rounds" = 1 }, { "partition.clients" = 1, "train.rounds" = 1 }]
"""


def test_a_setting_changes_the_recipe_and_its_name() -> None:
    recipe = parse_recipe(RECIPE)
    found = with_setting(recipe, {"partition.clients": 3, "annotation.form": "unknown"})
    assert found.name == "tiny-clients-3-form-unknown" and not found.vary
    assert found.partition.options == {"clients": 3} and found.annotation.form == "unknown"
    assert label({"partition.clients": 3, "annotation.form": "unknown"}) == "clients = 3, form = unknown"
    with pytest.raises(UserError, match="did you mean 'rounds'"):
        with_setting(recipe, {"train.round": 3})


def test_equal_settings_share_their_runs() -> None:
    studies = plan([parse_recipe(RECIPE)], (1, 2), Path("out"))
    assert {name: list(study) for name, study in studies.items()} == {
        "tiny-clients": ["clients = 1", "clients = 2"],
        "tiny-rounds": ["rounds = 1", "clients = 1, rounds = 1"],
    }
    assert [job.folder.name for job in jobs(studies)] == ["tiny-clients-1-1", "tiny-clients-1-2", "tiny-1", "tiny-2"]
    chosen = plan([parse_recipe(RECIPE)], (1,), Path("out"), groups=["rounds"])
    assert list(chosen) == ["tiny-rounds"]
    with pytest.raises(UserError, match="varies no 'round'; did you mean 'rounds'"):
        plan([parse_recipe(RECIPE)], (1,), Path("out"), groups=["round"])


def test_tables_have_a_row_per_setting_and_a_second_call_trains_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    for _ in range(2):
        command([str(tmp_path / "tiny.toml")], seeds="1", out=tmp_path / "out")
        times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/run.jsonl")}
    assert len(times) == 2
    table = (tmp_path / "out" / "tiny-clients.md").read_text(encoding="utf-8")
    assert table.count("| setting | Zero-shot CLIP | PromptFL |") == 3, "natural, broken, and the gap"
    assert table.count("| clients = 1 |") == table.count("| clients = 2 |") == 3
    values = (tmp_path / "out" / "tiny-rounds.csv").read_text(encoding="utf-8").splitlines()
    assert values[0] == "setting,seed,method,column,value"
    assert any(line.startswith('"clients = 1, rounds = 1",1,promptfl,natural,') for line in values)
    command([str(tmp_path / "tiny.toml")], seeds="1", out=tmp_path / "out")
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/run.jsonl")}


@pytest.mark.parametrize("name", ["settings", "multilabel_settings"])
def test_every_setting_of_the_bundled_studies_resolves(name: str) -> None:
    for job in jobs(plan([load_recipe(find_recipe(name))], (1,), Path("out"))):
        check(job)


def test_a_method_at_an_end_of_its_grid_is_named() -> None:
    grid = "tuning={grid={lr=[0.1,0.2,0.3]}}"
    tables = "compare=[{name='fedclip',train={lr=0.2}},{name='fedtpg',tune=false,train={lr=0.1}}]"
    recipe = parse_recipe(RECIPE, [grid, tables, "method.train={lr=0.3}"])
    assert at_edges(recipe) == ["promptfl is best at lr = 0.3, an end of the grid; widen it."]
