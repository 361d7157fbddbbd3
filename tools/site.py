"""MkDocs hooks of the site: links out of docs/, and pages made of the public API, of README and of the notebooks."""

from __future__ import annotations

import ast
import posixpath
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # mkdocs loads this file as a module of no package

from tools import notebooks
from tools.markdown import ROOT, SOURCE

ROOT_PAGES = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(#[^)\s]*)?(?=\))")
NOTEBOOK = re.compile(r"(notebooks/\w+)\.ipynb")
API = "api_reference.md"
BEGINNING = "<!-- on the site: README's figure, first command and first lines of Python -->"  # in docs/index.md
ABOUT_API = """# API reference

Everything that `import fedprompt as fp` offers (made from the docstrings); the page [Python](api.md) shows it in use.
"""


def public_names() -> Mapping[str, str]:
    """Public name -> dotted path of its definition, as `fedprompt/__init__.pyi` lists them."""
    tree = ast.parse((SOURCE / "__init__.pyi").read_text(encoding="utf-8"))
    return {
        alias.name: f"fedprompt.{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def api_page() -> str:
    """The Markdown of the API reference: functions first, then classes, each in alphabetical order."""
    names = sorted(public_names().items(), key=lambda item: (item[0][0].isupper(), item[0]))
    parts = [f"::: {path}\n    options:\n      heading: fp.{name}\n" for name, path in names]
    return "\n".join((ABOUT_API, *parts))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add a page per method to the navigation."""
    pages = sorted((ROOT / "docs" / "methods").glob("*.md"))
    _section(config.nav, "Methods").extend({path.stem: f"methods/{path.name}"} for path in pages)
    return config


def _section(nav: object, title: str) -> list[object]:
    """The list of pages under a title, wherever it is in the navigation."""
    for entry in nav if isinstance(nav, list) else ():
        for name, below in entry.items() if isinstance(entry, dict) else ():
            if name == title and isinstance(below, list):
                return below
            if found := _section(below, title):
                return found
    return []


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add generated pages, and the source files that pages link to, as text."""
    for name, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=_moved((ROOT / name).read_text(encoding="utf-8"), "", page)))
    files.append(File.generated(config, API, content=api_page()))
    for path in sorted(notebooks.FOLDER.glob("*.ipynb")):
        name = f"notebooks/{path.stem}.md"
        files.append(File.generated(config, name, content=_moved(notebooks.page(path), "docs", name)))
    linked = {target for page in sorted((ROOT / "docs").rglob("*.md")) for target in _linked(page)}
    linked |= {target for name in ROOT_PAGES for target in _linked(ROOT / name)}
    for target in sorted(linked):
        if not target.startswith("docs/") and target not in ROOT_PAGES and (ROOT / target).is_file():
            files.append(File.generated(config, _place(target), content=(ROOT / target).read_text(encoding="utf-8")))
    return files


def _linked(page: Path) -> Iterator[str]:
    """The files of the repository that a page links to, relative to its root."""
    folder = page.parent.relative_to(ROOT).as_posix()
    for found in LINK.finditer(page.read_text(encoding="utf-8")):
        yield posixpath.normpath(posixpath.join(folder, found[1]))


def _place(target: str) -> str:
    """Where a file of the repository is on the site; a folder of the source is its part of the source map."""
    if target in ROOT_PAGES:
        return ROOT_PAGES[target]
    if target.startswith("docs/"):
        inner = target.removeprefix("docs/")
        folder = (ROOT / target).is_dir()
        return f"{inner}/README.md" if folder else NOTEBOOK.sub(r"\1.md", inner)
    return "source_map.md" if (ROOT / target).is_dir() else f"source/{target}.txt"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that leave docs/ to their place on the site, and begin its first page as README begins."""
    if page.file.generated_by:
        return markdown
    moved = _moved(markdown, "docs", page.file.src_uri)
    return moved.replace(BEGINNING, _moved(beginning(), "", page.file.src_uri))


def beginning() -> str:
    """README's figure, its first command and its first lines of Python."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    parts = (r"^!\[.*?\]\(.*?\)$", r"^```sh$.*?^```$", r"^```python$.*?^```$")
    return "\n\n".join(re.findall(part, readme, re.MULTILINE | re.DOTALL)[0] for part in parts)


def _moved(markdown: str, folder: str, page: str) -> str:
    """The Markdown of a page that lies in a folder of the repository, with links as the site has them."""
    here = posixpath.join(folder, posixpath.dirname(page))

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here if folder else "", link[1]))
        return posixpath.relpath(_place(target), posixpath.dirname(page) or ".") + (link[2] or "")

    return LINK.sub(moved, markdown)
