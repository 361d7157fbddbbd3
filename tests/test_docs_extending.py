"""The package that docs/extending.md shows, copied as printed: lint, types, batteries and a run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r"^`([\w/.]+)`:\n\n(?:<!--[^\n]*-->\n\n)?```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILES: Mapping[str, str] = dict(BLOCK.findall(PAGE.read_text(encoding="utf-8")))
MODULES = {name: text for name, text in FILES.items() if name.startswith("my_package/")}
LONGEST = 40  # lines of an example


def run(*words: str, folder: Path, source: Path = ROOT / "src") -> str:
    """Run Python on these words in a folder from which packages are imported too; AssertionError with what it said."""
    finished = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the page's package, tests and recipe, and the images that its script draws."""
    folder = tmp_path_factory.mktemp("scratch")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "my_package" / "__init__.py").write_text('"""My additions to fedprompt."""\n', encoding="utf-8")
    run("draw_images.py", folder=folder)
    yield folder
    shutil.rmtree(folder)


def test_the_page_shows_four_examples_their_tests_and_a_recipe() -> None:
    assert len(MODULES) == 4 and "my_recipe.toml" in FILES
    assert sum(name.startswith("tests/test_") for name in FILES) == 4
    for name, text in FILES.items():
        assert len(text.splitlines()) < LONGEST, f"{name} is too long for an example"


def test_the_examples_pass_lint(scratch: Path) -> None:
    # Imports are ordered as in this repository, so that a file may also be moved into it.
    config = ("--config", str(ROOT / "pyproject.toml"), "--config", 'lint.isort.known-first-party=["fedprompt"]')
    for words in (("check",), ("format", "--check")):
        run("-m", "ruff", *words, *config, "--no-cache", "my_package", "tests", folder=scratch)


@pytest.mark.slow
def test_the_examples_pass_strict_types(scratch: Path) -> None:
    config = ("--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache"))
    run("-m", "mypy", "--strict", *config, "my_package", "tests", folder=scratch)


@pytest.mark.slow
def test_the_examples_pass_their_batteries(scratch: Path) -> None:
    said = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests", folder=scratch)
    assert int(re.search(r"(\d+) passed", said)[1]) > 40


@pytest.mark.slow
def test_the_recipe_runs(scratch: Path) -> None:
    said = run("-m", "fedprompt", "run", "my_recipe.toml", "--out", "out", "--trust-code", "my_package", folder=scratch)
    assert "TextShift: 1 round" in said
    assert '"client-2"' in (scratch / "out" / "run.jsonl").read_text(encoding="utf-8")


# Inside fedprompt


def inside() -> dict[str, Path]:
    """Where the page's table puts each file: my_package/x.py -> src/fedprompt/..."""
    rows = re.findall(
        r"`[^`]*my_package\.(\w+)[^`]*` \| `(src/fedprompt/[\w/]+\.py)`", PAGE.read_text(encoding="utf-8")
    )
    return {f"my_package/{module}.py": Path(path) for module, path in rows}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, scratch: Path) -> Iterator[Path]:
    """A copy of this repository with the page's files in the places of the table, and one test file: of the source."""
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    for name, path in inside().items():
        (folder / path).write_text(MODULES[name], encoding="utf-8")
    test = FILES["tests/test_sources.py"].replace("my_package.sources:", "")
    (folder / "tests" / "test_data_sources_name_prefix.py").write_text(test, encoding="utf-8")
    yield folder
    shutil.rmtree(folder)


def test_the_table_says_where_each_file_goes() -> None:
    assert inside().keys() == MODULES.keys()


@pytest.mark.slow
def test_a_file_inside_the_package_is_found_and_passes_the_batteries_and_the_rules_of_the_source(copy: Path) -> None:
    names = " or ".join(path.stem for path in inside().values())
    files = ("test_conformance.py", "test_architecture.py", "test_data_sources_name_prefix.py")
    words = ("-vv", "-n", "0", "-p", "no:cacheprovider", "-k", names, *(f"tests/{file}" for file in files))
    said = run("-m", "pytest", *words, folder=copy, source=copy / "src")
    for name in ("Method_text_shift", "PartitionRule_quantity_skew", "AggregationRule_winsorised_mean", "NamePrefix"):
        assert len(re.findall(rf"::Test{name}::test_\w+ PASSED", said)) > 8, f"{name} was not found by its registry"


@pytest.mark.slow
def test_a_recipe_key_is_one_line_and_its_use(copy: Path, scratch: Path) -> None:
    field, use = KEY.findall(PAGE.read_text(encoding="utf-8"))
    _insert(copy / "src/fedprompt/config/recipe_tables.py", field, indent=4, above="\n\nclass SecureTable")
    _insert(copy / "src/fedprompt/federated/client.py", use, indent=12, above="            optimizer.step()\n")
    tries = {"free": (), "clipped": ("--set", "train.clip_norm=1e-3"), "refused": ("--set", "train.clip_norm=-1")}
    free, clipped, refused = _run_recipe(copy, scratch, tries)
    assert (free[0], clipped[0]) == (0, 0), free[1] + clipped[1]
    assert _tensors(scratch / "free") != _tensors(scratch / "clipped")
    assert refused[0] != 0 and "clip_norm" in refused[1]


KEY = re.compile(r"<!-- not run: [^\n]* -->\n\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


CALLS = """
import json, sys
from typer.testing import CliRunner
from fedprompt.cli.main import app

for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, words)
    print(json.dumps([done.exit_code, done.output]))
"""


def _run_recipe(copy: Path, scratch: Path, tries: Mapping[str, tuple[str, ...]]) -> list[tuple[int, str]]:
    """Run the page's recipe on the copy of fedprompt with the short names of the parts, once per output folder.

    Returns exit codes and outputs. All runs are of one process, because most of the time goes to imports.
    """
    recipe = re.sub(r'"my_package\.(?:\w+:)?(\w+)"', r'"\1"', FILES["my_recipe.toml"])
    assert "my_package" not in recipe
    (scratch / "own.toml").write_text(recipe, encoding="utf-8")
    calls = [("run", "own.toml", "--out", out, *words) for out, words in tries.items()]
    said = run("-c", CALLS, json.dumps(calls), folder=scratch, source=copy / "src")
    return [tuple(json.loads(line)) for line in said.splitlines()]


def _tensors(out: Path) -> bytes:
    (adapter,) = out.rglob("adapter*.safetensors")
    return adapter.read_bytes()


def _insert(path: Path, lines: str, *, indent: int, above: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(above) == 1, f"the page says where to add a line to {path.name}, but that is not one place"
    path.write_text(text.replace(above, textwrap.indent(lines, " " * indent) + above), encoding="utf-8")
