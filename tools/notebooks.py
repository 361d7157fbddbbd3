"""Run the notebooks of docs/ and save them with outputs: `python -m tools.notebooks [NAME ...]`."""

from __future__ import annotations

import base64
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from tools.markdown import ROOT

FOLDER = ROOT / "docs" / "notebooks"
SECONDS = 1200  # for a cell


def names() -> tuple[str, ...]:
    """The notebooks, as their files are named."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.py")))


def executed(name: str) -> NotebookNode:
    """The notebook of a script, run in an empty folder (extra `notebooks`, which the site does without)."""
    import jupytext
    from nbclient import NotebookClient

    notebook = jupytext.read(FOLDER / f"{name}.py")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        NotebookClient(
            notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
    return notebook


def sources(notebook: NotebookNode) -> list[tuple[str, str]]:
    """Kind and text of every cell."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def write(name: str) -> None:
    """Run a notebook whole and save it beside its script."""
    notebook = executed(name)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{name}-{number}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":  # warnings of packages are about this machine
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")


def page(path: Path) -> str:
    """A notebook with its outputs as Markdown."""
    notebook = nbformat.read(path, as_version=4)
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        parts += [text for output in cell.outputs for text in _shown(output)]
    return "\n\n".join((*parts, f'<a href="{path.name}">This notebook</a>\n'))


def _shown(output: NotebookNode) -> Iterator[str]:
    """An output as Markdown: HTML, a picture or text, the first that it has."""
    if output.output_type == "stream":
        yield f"```text\n{output.text.rstrip()}\n```"
        return
    data = output.get("data", {})
    if "text/html" in data:
        html = "\n".join(line for line in data["text/html"].splitlines() if line.strip())
        yield f'<div class="output">\n{html}\n</div>'
    elif "image/png" in data:
        yield f'<img alt="output" src="data:image/png;base64,{data["image/png"].strip()}">'
    elif "image/svg+xml" in data:
        coded = base64.b64encode(data["image/svg+xml"].encode()).decode()
        yield f'<img alt="output" src="data:image/svg+xml;base64,{coded}">'
    elif "text/plain" in data:
        yield f"```text\n{data['text/plain'].rstrip()}\n```"


def main() -> None:
    """Write the named notebooks, or all."""
    for name in sys.argv[1:] or names():
        write(name)
        print(f"docs/notebooks/{name}.ipynb")


if __name__ == "__main__":
    main()
