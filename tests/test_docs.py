"""What the pages show is run: Python is executed, commands, recipes and JSON are checked by the real parsers."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from pydantic import BaseModel, ValidationError
from tools import collect, recipe_reference

from fedprompt import methods
from fedprompt.cli.main import app
from fedprompt.config.recipe import Recipe, find_recipe, load_recipe, parse_recipe
from fedprompt.deploy.settings import Deployment, SiteFile
from fedprompt.errors import UserError
from fedprompt.experiments.plan import resolve
from pages import PAGES, ROOT, SHELL, Block, Command, anchors, blocks, commands, prose, text_outside_blocks

BLOCKS = tuple(block for page in PAGES for block in blocks(page))
COMMANDS = tuple(command for page in PAGES for command in commands(page))
LANGUAGES = (*SHELL, "python", "toml", "json", "text")
BUNDLED = tuple(path.stem for path in (ROOT / "src" / "fedprompt" / "recipes").glob("*.toml"))
LONGEST = 160


def _shown(language: str) -> Iterator[Block]:
    """The blocks in a language that no comment leaves out."""
    return (block for block in BLOCKS if block.language == language and not block.mark[0])


def pages_with_python() -> list[Path]:
    return list(dict.fromkeys(block.page for block in _shown("python")))


def _is_made_of_docstrings(page: Path) -> bool:
    """Whether a page repeats the source, whose words are tested where they stand."""
    return page.stem in {"source_map", "recipes", "deviations", "methods"} or page.parent.name == "methods"


def _name(thing: object) -> str:
    return thing.relative_to(ROOT).as_posix() if isinstance(thing, Path) else str(thing)


def test_generated_pages_say_what_the_code_says() -> None:
    assert collect.stale() == []


def test_remarks_join_continuation_lines_and_end_at_code() -> None:
    source = "x = 1  # differs: one\n# more of it\ny = 2\n# an ordinary comment\n"
    assert collect.remarks(source) == ["one more of it"]


def test_every_recipe_key_is_explained() -> None:
    lines = recipe_reference.page().partition("## Data sources")[0].splitlines()
    empty = [line for line in lines if line.startswith("| `") and line.endswith("|  |")]
    assert empty == [], "give these keys a description"


# Python


@pytest.mark.parametrize("page", pages_with_python(), ids=_name)
def test_python_on_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks run one after another in one namespace, so that later ones may use what earlier ones define."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in _shown("python"):
        if block.page == page:
            exec(compile("\n" * block.line + block.text, str(page), "exec", dont_inherit=True), names)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_python_that_is_not_run_compiles(block: Block) -> None:
    compile(block.text, str(block.page), "exec")


# Commands


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.words[0] == "fedprompt"], ids=str)
def test_a_command_on_a_page_is_one_that_fedprompt_takes(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"=(\w+\.json)", " ".join(command.words)):
        Path(name).write_text("{}", encoding="utf-8")
    check_command(list(command.words[1:]), whole=command.whole)


def check_command(words: list[str], *, whole: bool) -> None:
    """Walk down to the subcommand, then parse its options; a mention in prose may leave arguments out."""
    found: click.Command = typer.main.get_command(app)
    context = click.Context(found, info_name="fedprompt")
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        assert name in found.commands, f"there is no command {name!r}"
        found = found.commands[name]
        context = click.Context(found, info_name=name, parent=context)
    known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        option = word.partition("=")[0]
        assert not option.startswith("-") or option in known | {"--help"}, f"there is no option {option}"
    _check_settings(words)
    if whole and not isinstance(found, click.Group):
        values = found.make_context(found.name, words, parent=context.parent).params
        _check_recipe(values)


def _check_settings(words: list[str]) -> None:
    for option, setting in pairwise(words):
        if option in ("--set", "-s"):
            check_key(setting)


def check_key(setting: str) -> None:
    """A `--set` key must be one of the recipe's; one of [[compare]] is one of [method] of the same name."""
    if setting == "key=value":
        return
    key = re.sub(r"^compare\.\d+", "method", setting.partition("=")[0])
    key = re.sub(r"^method\.(train|descriptions)\.", r"\1.", key)
    known = recipe_reference.dotted_keys()
    tables = {name.rpartition(".")[0] for name in known}
    open_table = any(key.startswith(f"{table}.") for table in ("data.options", "data.columns", "tuning.grid"))
    assert key in known | tables or open_table, f"no recipe has the key {key!r}"


def _check_recipe(values: Mapping[str, Any]) -> None:
    """A recipe that comes with fedprompt must exist and take the command's settings; a user's own is not here."""
    data = values.get("data")
    names = values.get("recipes") or (data if isinstance(data, list) else [values.get("recipe") or data])
    for name in names:
        if isinstance(name, str) and name in BUNDLED:
            resolve(load_recipe(find_recipe(name), values.get("settings") or ()))
        elif isinstance(name, str):
            assert "/" in name or name.endswith(".toml") or name.isupper(), f"no recipe {name!r} comes with fedprompt"


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.words[:2] == ("python", "-m")], ids=str)
def test_a_module_on_a_page_can_be_run(command: Command) -> None:
    module = command.words[2]
    assert module in {"pytest", "venv"} or find_spec(module) is not None


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.words[:2] == ("pip", "install")], ids=str)
def test_an_extra_on_a_page_exists(command: Command) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for extras in re.findall(r"(?:fedprompt|\.)\[([^\]]+)\]", " ".join(command.words)):
        assert set(extras.split(",")) <= set(known)


@pytest.mark.parametrize("command", [one for one in COMMANDS if "pytest" in one.words and "-m" in one.words], ids=str)
def test_a_pytest_marker_on_a_page_exists(command: Command, pytestconfig: pytest.Config) -> None:
    known = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    expression = command.words[-1] if "-m" in command.words[-2:] else ""
    assert set(re.findall(r"\w+", expression)) - {"or", "not", "and", "pytest"} <= known


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_set_mentioned_in_prose_names_a_key(page: Path) -> None:
    for setting in re.findall(r"`--set ([^`\s]+)", text_outside_blocks(page)):
        check_key(setting.strip("'"))


# Recipes and other data


@pytest.mark.parametrize("block", list(_shown("toml")), ids=str)
def test_toml_on_a_page_is_a_recipe_or_a_part_of_one(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r'= "(\w+\.json)"', block.text):
        Path(name).write_text("{}", encoding="utf-8")
    check_toml(tomllib.loads(block.text))


def check_toml(tables: dict[str, Any]) -> None:
    """Whole recipes are resolved; parts are put into the recipe `demo` first; site and deployment files have models."""
    if set(tables) <= set(Recipe.model_fields):
        base = tomllib.loads(find_recipe("demo").read_text(encoding="utf-8"))
        whole = tables if {"name", "data", "method"} <= set(tables) else _merged(base, tables)
        resolve(parse_recipe(_toml(whole)))
        return
    errors = [problem for problem in (_problem(SiteFile, SITE | tables), _problem(Deployment, tables)) if problem]
    assert len(errors) < 2, f"neither a recipe nor a site nor a deployment: {errors}"


SITE = {"name": "east", "superlink": "localhost:1"}


def _merged(base: Mapping[str, Any], tables: Mapping[str, Any]) -> dict[str, Any]:
    """Tables key by key; a table that names another part replaces the old one, whose options it does not have."""
    found = dict(base)
    for key, value in tables.items():
        old = found.get(key)
        named = isinstance(value, Mapping) and {"name", "source", "rule"} & set(value)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        found[key] = _merged(old, value) if both and not named else value
    return found


def _toml(tables: Mapping[str, Any]) -> str:
    import tomli_w

    return tomli_w.dumps(tables)


def _problem(model: type[BaseModel], tables: Mapping[str, Any]) -> str:
    try:
        model.model_validate(tables)
    except ValidationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("block", list(_shown("json")), ids=str)
def test_json_on_a_page_is_json(block: Block) -> None:
    json.loads(block.text)


# Pages


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_says_in_a_known_word_what_it_is(block: Block) -> None:
    assert block.language in LANGUAGES


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_outside_blocks(page)):
        name, _, heading = target.partition("#")
        if "://" in target:
            continue
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        assert not heading or heading in anchors(file), f"{page.name} links to {target}, which has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_lines_of_prose_are_short_enough_to_read(page: Path) -> None:
    long = [number for number, line in prose(page) if len(line) > LONGEST]
    assert long == [], f"wrap these lines at {LONGEST} characters or fewer"


def test_names_in_the_glossary_are_in_the_code() -> None:
    page = ROOT / "docs" / "glossary.md"
    entries = re.findall(r"Code:\s(.+?)(?=\n\n|\Z)", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(entries) == page.read_text(encoding="utf-8").count("\n### ")
    for entry in entries:
        paths = [page.parent / target for target in re.findall(r"\]\(([^)]+)\)", entry)]
        files = [file for path in paths for file in (sorted(path.glob("*.py")) if path.is_dir() else [path])]
        source = "".join(file.read_text(encoding="utf-8") for file in files)
        for name in re.findall(r"`(\w+)`", entry):
            assert re.search(rf"\b{name}\b", source), f"{name} is in none of {[path.name for path in paths]}"


def test_every_page_is_reached_from_the_index() -> None:
    reached, new = set(), [ROOT / "docs" / "index.md"]
    while new:
        page = new.pop()
        reached.add(page)
        links = re.findall(r"\]\(([^)#\s]+\.md)[^)]*\)", text_outside_blocks(page))
        targets = {(page.parent / link).resolve() for link in links if "://" not in link}
        new += [target for target in targets if target.is_relative_to(ROOT / "docs") and target not in reached]
    assert {page for page in PAGES if page.parent == ROOT / "docs"} <= reached


def test_the_readme_is_short_and_shows_every_method() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 130
    assert [name for name in methods.names() if f"(docs/methods/{name}.md)" not in readme] == []


def test_pages_count_the_methods_right() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert f"It has {len(methods.names())} methods" in index
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (named, more) = re.findall(r"\*\*One file per method\.\*\* (.+) and (\d+) more", readme)[0]
    assert len(named.split(", ")) + int(more) == len(methods.names())


OLD_WORDS = (
    r"words? files?",
    r"liars?",
    r"\bcompany\b",
    r"\bnouns?\b",
    r"\bverbs?\b",
    r"lexicon",
    r"shel(f|ves)\b",
    r"mailbox",
    r"\bdesks?\b(?!, kitchen)",
    r"parcels?",
    r"lessons?\b",
    r"(seen|unseen|different|three|four) hands\b",
    r"by the company",
    r"the doors?\b",
    r"\ba (method|class|client|picture|image|site|data set|trial|round) (has|a) row\b",
)


@pytest.mark.parametrize("page", [page for page in PAGES if not _is_made_of_docstrings(page)], ids=_name)
def test_pages_use_the_words_of_the_field(page: Path) -> None:
    text = text_outside_blocks(page)
    found = {word: match[0] for word in OLD_WORDS if (match := re.search(rf"(?i)\b(?:{word})", text))}
    assert found == {}


def test_a_wrong_command_option_or_key_on_a_page_is_found() -> None:
    for words in ("trian demo", "run demo --sett seed=2", "run demo --set train.round=2", "run dmeo", "predict"):
        with pytest.raises((AssertionError, UserError, click.UsageError)):
            check_command(words.split(), whole=True)
    with pytest.raises(UserError):
        check_toml({"train": {"round": 3}})
    with pytest.raises(AssertionError):
        check_toml({"policy": {"minimum_image": 3}})
