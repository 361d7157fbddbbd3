"""The notebooks run from top to bottom, and those saved with outputs are of the same cells."""

from __future__ import annotations

import os
import re

import pytest

jupytext = pytest.importorskip("jupytext", reason="notebooks need the extra `notebooks`")
pytest.importorskip("nbclient", reason="notebooks need the extra `notebooks`")

from tools import notebooks  # noqa: E402  (needs the packages above)

LONGEST = {"quickstart": 12, "write_a_method": 25}  # lines of code: of all cells, and of the cell with the loop


@pytest.mark.parametrize("name", notebooks.names())
def test_a_notebook_and_its_script_have_the_same_cells(name: str) -> None:
    saved = jupytext.read(notebooks.FOLDER / f"{name}.ipynb")
    assert notebooks.sources(saved) == notebooks.sources(jupytext.read(notebooks.FOLDER / f"{name}.py"))
    code = [cell for cell in saved.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), f"run it: python -m tools.notebooks {name}"
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert notebooks.FOLDER.joinpath(f"{name}.ipynb").stat().st_size < 500_000


def test_the_notebook_on_own_images_predicts_some() -> None:
    *_, last = jupytext.read(notebooks.FOLDER / "own_images.ipynb").cells
    (output,) = last.outputs
    (count,) = re.findall(r"^Predictions of (\d+) images: \w", output.data["text/plain"])
    assert int(count) == output.data["text/html"].count("<img") > 5


def lines(code: str) -> int:
    return sum(1 for line in code.splitlines() if line.strip() and not line.startswith("#"))


def test_the_quickstart_has_twelve_lines_and_a_loop_of_ones_own_has_twenty_five() -> None:
    code = {name: [text for kind, text in notebooks.sources(read(name)) if kind == "code"] for name in LONGEST}
    assert sum(map(lines, code["quickstart"])) <= LONGEST["quickstart"]
    (loop,) = [text for text in code["write_a_method"] if "fp.federate" in text]
    assert lines(loop) <= LONGEST["write_a_method"]


def read(name: str) -> object:
    return jupytext.read(notebooks.FOLDER / f"{name}.py")


@pytest.mark.slow
@pytest.mark.parametrize("name", notebooks.names())
def test_a_notebook_runs_from_top_to_bottom(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{notebooks.ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    notebook = notebooks.executed(name)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
