"""The documentation site: it builds without a warning, every public name is in it, and a browser reads it offline."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import fedprompt as fp
from pages import ROOT
from test_report_browser import CHROMIUM, FLAGS, open_page

pytest.importorskip("mkdocs", reason="the documentation site needs the extra `docs`")
site = pytest.importorskip("tools.site")
pytestmark = pytest.mark.slow
FETCHED = {("img", "src"), ("script", "src"), ("link", "href"), ("iframe", "src")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (documented,) = re.findall(r"`pip install '\.\[docs\]' && (mkdocs .+?)`", contributing)
    program, *options = shlex.split(documented)
    installed = str(Path(sys.executable).with_name(program))  # as the shell finds it, without this folder on its path
    command = [installed, *options, "--quiet", "--site-dir", str(folder)]
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    finished = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return folder


class Page(HTMLParser):
    """What a page links to and fetches, and the names by which others reach its parts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: list[tuple[str, str, str]] = []
        self.names: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("id", "name") and value:
                self.names.add(value)
            elif key in ("href", "src") and value:
                self.targets.append((tag, key, value))


def problems(folder: Path) -> Iterator[str]:
    pages = {path: Page(path) for path in sorted(folder.rglob("*.html")) if path.name != "404.html"}
    for path, page in pages.items():
        for tag, key, target in page.targets:
            parts = urlsplit(target)
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if parts.scheme == "data" or (parts.scheme and (tag, key) not in FETCHED):
                continue
            if parts.scheme or parts.netloc:
                yield f"{path.name} fetches {target}"
            elif not file.exists():
                yield f"{path.name} names {target}, which is not there"
            elif parts.fragment and file in pages and parts.fragment not in pages[file].names | {"__tabbed"}:
                yield f"{path.name} names {target}, which has no such heading"


def test_no_link_is_broken_no_picture_is_missing_and_no_host_is_asked(built: Path) -> None:
    assert list(problems(built)) == []


def test_a_broken_link_would_be_noticed(tmp_path: Path) -> None:
    text = '<a href="b.html">b</a><a href="#x">x</a><img src="c.png"><img src="https://pictures.invalid/c.png">'
    (tmp_path / "a.html").write_text(text)
    assert len(list(problems(tmp_path))) == 4


def test_every_page_has_a_title_of_its_own_in_the_menu(built: Path) -> None:
    whole = (built / "index.html").read_text(encoding="utf-8")
    menu = whole.partition('<nav class="md-nav md-nav--primary')[2].partition('<div class="md-content"')[0]
    entry = r'<a href="([^"#]+)" class="md-nav__link.*?<span class="md-ellipsis">\s*(.*?)\s*</span>'
    pages = dict(re.findall(entry, menu, re.DOTALL))  # by address, as a page with a section stands twice
    assert len(pages) > 40 and len(set(pages.values())) == len(pages)


def test_the_first_page_shows_how_to_begin(built: Path) -> None:
    page = (built / "index.html").read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<[^>]*>", "", page).split())
    assert "fedprompt demo --out" in text and "import fedprompt as fp" in text and 'src="demo.svg"' in page
    assert page.index('src="demo.svg"') < page.index('<h2 id="train-on-my-own-images">')


def test_signatures_are_formatted_in_the_extra_alone() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert any(one.startswith("ruff") for one in extras["docs"])  # else mkdocstrings leaves long ones in one line


def test_every_public_name_is_in_the_reference(built: Path) -> None:
    assert set(site.public_names()) == set(fp.__all__)
    names = Page(built / "api_reference.html").names
    assert [path for path in site.public_names().values() if path not in names] == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_site_and_searches_it_without_a_network(built: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    image, asked = open_page(built / "demo.html", tmp_path)
    assert len(image.getcolors(maxcolors=1 << 24) or ()) > 50
    assert [address for address in asked if not address.startswith("file:")] == []
    shutil.rmtree(tmp_path / "profile")
    address = f"{(built / 'index.html').as_uri()}?q=dirichlet"
    command = [CHROMIUM, *FLAGS, "--allow-file-access-from-files", "--virtual-time-budget=20000", "--dump-dom"]
    found = subprocess.run([*command, address], capture_output=True, text=True, check=True, timeout=120).stdout
    assert "md-search-result__article" in found
