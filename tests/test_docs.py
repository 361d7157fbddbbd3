from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _collect():
    spec = importlib.util.spec_from_file_location("collect", ROOT / "docs" / "collect.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_say_what_the_code_says():
    assert _collect().stale() == []


def test_remarks_join_continuation_lines_and_end_at_code():
    source = "x = 1  # differs: one\n# more of it\ny = 2\n# an ordinary comment\n"
    assert _collect().remarks(source) == ["one more of it"]


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
