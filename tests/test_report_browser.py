"""Opt-in (`pytest -m browser`): headless Chromium opens the report, draws its pictures, and its net log stays empty."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from fedprompt.report import render
from test_report import whole_run, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1200,6000",
)

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


def open_page(page: Path, folder: Path) -> tuple[Image.Image, list[str]]:
    """A screenshot of a page, and the addresses outside that the page asked for."""
    assert CHROMIUM is not None
    target, log = folder / "shot.png", folder / "log.json"
    where = (f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", f"--screenshot={target}")
    subprocess.run([CHROMIUM, *FLAGS, *where, page.as_uri()], check=True, capture_output=True, timeout=120)
    requests = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # what the browser asks on its own account has no origin as its initiator
    asked = [request["url"] for request in requests if request.get("initiator", "not an origin") != "not an origin"]
    return Image.open(target).convert("RGB"), asked


def test_the_browser_draws_everything_and_fetches_nothing(tmp_path: Path) -> None:
    image, asked = open_page(render(write(tmp_path, whole_run())), tmp_path)
    colours = {colour for _, colour in image.getcolors(maxcolors=1 << 24) or []}
    assert {(0, 128, 128), (255, 0, 0)} <= colours  # the two sample pictures
    assert {(0, 114, 178), (213, 94, 0)} <= colours  # the main method's and the rival's marks in the figures
    assert asked == []


def test_a_page_that_fetches_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="http://report.invalid/picture.png">')
    assert open_page(page, tmp_path)[1] == ["http://report.invalid/picture.png"]
