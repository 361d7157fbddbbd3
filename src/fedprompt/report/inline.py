"""Figures and pages as notebooks show them."""

from __future__ import annotations

import base64
import os
from html import escape
from pathlib import Path

HEIGHT = 640  # of a page in a notebook, in pixels


class Figure:
    """A figure as SVG: shown in a notebook, written by `save`."""

    def __init__(self, svg: str) -> None:
        self.svg = svg

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the SVG to a file."""
        Path(path).write_text(self.svg, encoding="utf-8")
        return Path(path)

    def _repr_html_(self) -> str:
        # An image, because styles of one SVG in a page would apply to all of them.
        data = base64.b64encode(self.svg.encode()).decode()
        return f'<img alt="figure" style="max-width:100%" src="data:image/svg+xml;base64,{data}">'


class Page:
    """A report as HTML: shown in a notebook, its file is `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _repr_html_(self) -> str:
        content = escape(self.path.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{content}" style="width:100%;height:{HEIGHT}px;border:0"></iframe>'

    def __repr__(self) -> str:
        return f"Report: {self.path}"
