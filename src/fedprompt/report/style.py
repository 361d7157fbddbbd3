"""Style of the figures: the colour-blind safe palette of Okabe and Ito (2008), drawing as SVG or PNG, text of sizes."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import matplotlib
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from fedprompt.errors import UserError

WIDE = 16  # from this number of columns, a grid fills its width
MANY = 1500  # above this number of squares, a grid is drawn as a raster image
HALF, FULL = 504, 1036  # widths in pixels: two beside each other, or one across the page

BACKGROUND, TEXT, MUTED, LINE, EMPTY, ALARM = "#ffffff", "#1c2128", "#5f6873", "#dfe3e8", "#f0f2f5", "#b3261e"
REFERENCE, MAIN = "#7d8590", "#0072b2"
OTHERS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
SHADES = ("#d3e5f4", "#a3c8e6", "#67a3d2", "#2f78b5", "#0a4a86")
# On the page every colour is a CSS variable, so that the dark colour scheme applies to figures too.
VARIABLES = {BACKGROUND: "background", TEXT: "text", MUTED: "muted", LINE: "line", EMPTY: "empty", ALARM: "alarm"}
VARIABLES |= {REFERENCE: "reference", MAIN: "main"}
VARIABLES |= {colour: f"other{place}" for place, colour in enumerate(OTHERS, 1)}
VARIABLES |= {colour: f"shade{place}" for place, colour in enumerate(SHADES, 1)}

_STYLE: Mapping[str, object] = {
    "svg.fonttype": "none",  # text stays text: small files, searchable, in the reader's font
    "text.parse_math": False,  # names come from clients and may contain dollar signs
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "text.color": TEXT,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": TEXT,
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "figure.facecolor": BACKGROUND,
    "figure.constrained_layout.w_pad": 0.05,
    "figure.constrained_layout.h_pad": 0.05,
    "axes.facecolor": "none",
}


def draw(
    name: str,
    size: tuple[float, float],
    paint: Callable[[Axes], None],
    *,
    form: Literal["svg", "png"] = "svg",
    cropped: bool = False,
) -> bytes:
    """Draw one figure of (width, height) pixels; equal input gives equal bytes. `name` makes ids of an SVG unique.

    With `cropped` it is only as large as what is drawn.
    """
    style = {**_STYLE, "svg.hashsalt": f"fedprompt {name}"}
    # without date and version, equal figures are equal files
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    file = io.BytesIO()
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # measured in one font, shown in the reader's
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        paint(figure.add_subplot())
        figure.savefig(file, format=form, dpi=144, metadata=metadata, bbox_inches="tight" if cropped else None)
    return file.getvalue()


@dataclass(frozen=True)
class Drawing:
    """A figure of (width, height) pixels that is not drawn yet; `name` makes ids of an SVG unique.

    Outside a page a figure that is `cropped` has no empty margin: few columns of squares do not fill the width.
    """

    name: str
    size: tuple[float, float]
    paint: Callable[[Axes], None]
    cropped: bool = False

    @property
    def svg(self) -> str:
        """The figure as an SVG document of its size, for a page."""
        return draw_svg(self.name, self.size, self.paint)

    @property
    def standalone(self) -> str:
        """The figure as an SVG document for a file."""
        return draw_svg(self.name, self.size, self.paint, cropped=self.cropped)

    def content(self, path: Path) -> bytes:
        """The content of a file: PNG for the suffix `.png`, SVG for `.svg`; UserError for another."""
        if (form := path.suffix.lower()) not in (".png", ".svg"):
            raise UserError(f"A figure is written as .png or .svg, not as {form or 'a file without suffix'} ({path}).")
        if form == ".svg":
            return self.standalone.encode()
        return draw(self.name, self.size, self.paint, form="png", cropped=self.cropped)


def draw_svg(name: str, size: tuple[float, float], paint: Callable[[Axes], None], *, cropped: bool = False) -> str:
    """Draw one figure as a standalone SVG document."""
    text = draw(name, size, paint, cropped=cropped).decode()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    return text.replace("'DejaVu Sans'", "system-ui, 'Segoe UI', Helvetica, Arial")


def inline(svg: str, label: str) -> str:
    """Prepare an SVG for an HTML page: no prologue, no clashing ids, CSS variables as colours, an ARIA label."""
    head, _, rest = svg[svg.index("<svg") :].partition(">")
    view = re.search(r'viewBox="[-\d. ]+"', head)
    assert view is not None
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)
    rest = re.sub(r"#[0-9a-f]{6}\b(?=[;\"])", lambda match: _variable(match[0]), rest)
    rest = re.sub(r"font-family: [^;\"]*;? ?", "", rest)  # the page has one
    return f'<svg {view[0]} role="img" aria-label="{escape(label)}">{rest}'


def _variable(colour: str) -> str:
    return f"var(--{VARIABLES[colour]})" if colour in VARIABLES else colour


def draw_grid(axes: Axes, levels: Sequence[Sequence[int]], *, gap: float = 0.12) -> None:
    """Draw a grid of squares, `levels` [rows, columns], row 0 on top: 0 is empty, k the k-th of `SHADES`, -1 absent."""
    axes.set(xlim=(-0.5, len(levels[0]) - 0.5), ylim=(len(levels) - 0.5, -0.5))
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    if len(levels) * len(levels[0]) > MANY:
        _raster(axes, levels)
        return
    for level, colour in enumerate((EMPTY, *SHADES)):
        centres = [(x, y) for y, row in enumerate(levels) for x, found in enumerate(row) if found == level]
        if centres:  # one outline per shade keeps the file small
            axes.add_patch(PathPatch(_squares(centres, 0.5 - gap / 2), facecolor=colour, linewidth=0))
    if len(levels[0]) < WIDE:  # few columns would be stretched into bars
        axes.set_aspect("equal", anchor="W")


def _raster(axes: Axes, levels: Sequence[Sequence[int]]) -> None:
    """The same as one raster image; it cannot use CSS variables, so it is transparent to the page's background."""
    opacity = {-1: 0.0, 0: 0.08} | {shade: 0.2 * shade for shade in range(1, len(SHADES) + 1)}
    axes.imshow(
        [[to_rgba(MAIN, opacity[found]) for found in row] for row in levels], aspect="auto", interpolation="none"
    )


def _squares(centres: Sequence[tuple[int, int]], half: float) -> Outline:
    corners = ((-half, -half), (half, -half), (half, half), (-half, half), (-half, -half))
    points = [(x + dx, y + dy) for x, y in centres for dx, dy in corners]
    codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY] * len(centres)
    return Outline(points, codes)


def separate(positions: Sequence[float], gap: float) -> list[float]:
    """Move label positions apart, keeping their order, until neighbours are about `gap` away."""
    order = sorted(range(len(positions)), key=lambda place: positions[place])
    moved = list(positions)
    for _ in range(50):
        for low, high in pairwise(order):
            overlap = max(0.0, gap - (moved[high] - moved[low]))
            moved[low] -= overlap / 2
            moved[high] += overlap / 2
    return moved


def shorten(name: str, most: int = 24) -> str:
    """A name cut to the length that fits beside a figure."""
    return name if len(name) <= most else name[: most - 1] + "…"


def size_text(count: float) -> str:
    """A number of bytes in decimal units (1 kB is 1,000 bytes): 512 B, 3.1 kB, 147 kB, 1.6 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.{int(unit != 'B' and count < 9.95)}f}\N{NO-BREAK SPACE}{unit}"
        count /= 1000
    return f"{count:.1f}\N{NO-BREAK SPACE}GB"
