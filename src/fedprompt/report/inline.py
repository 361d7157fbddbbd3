"""Figures and pages as notebooks show them."""

from __future__ import annotations

import base64
import os
from functools import cached_property
from html import escape
from pathlib import Path

from fedprompt.arguments import as_path
from fedprompt.records.atomic_files import write_atomic
from fedprompt.report.style import Drawing

HEIGHT = 640  # of a page in a notebook, in pixels


class Figure:
    """A figure: shown in a notebook, written by `save`; `svg` is its text."""

    def __init__(self, drawing: Drawing) -> None:
        self._drawing = drawing

    @cached_property
    def svg(self) -> str:
        """The figure as a standalone SVG document."""
        return self._drawing.standalone

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the figure to a file, as its suffix says, `.png` or `.svg`, and make its folder if there is none.

        Raises UserError for another suffix and for a file that cannot be written.
        """
        place = as_path(path, "path")
        write_atomic(place, self._drawing.content(place))
        return place

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
