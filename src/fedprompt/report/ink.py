"""How figures are drawn: one palette (Okabe and Ito, 2008, safe for colour-blind readers), one style, the same bytes each time."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

INK, MUTED, RULE, EMPTY, ALARM = "#1c2128", "#5f6873", "#dfe3e8", "#f0f2f5", "#b3261e"
REFERENCE, MAIN = "#7d8590", "#0072b2"
OTHERS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
SHADES = ("#d3e5f4", "#a3c8e6", "#67a3d2", "#2f78b5", "#0a4a86")
MARKERS = "osD^vPX*"
# on the page every colour is a variable, so that the style sheet can turn the figures dark
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", EMPTY: "empty", ALARM: "alarm", REFERENCE: "reference", MAIN: "main"}
VARIABLES |= {colour: f"other{place}" for place, colour in enumerate(OTHERS, 1)}
VARIABLES |= {colour: f"shade{place}" for place, colour in enumerate(SHADES, 1)}

_STYLE: Mapping[str, object] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's own font
    "text.parse_math": False,  # names come from clients: a dollar sign is a dollar sign
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.titlesize": 13,
    "axes.titleweight": "semibold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def draw(name: str, size: tuple[float, float], paint: Callable[[Axes], None], *, form: str = "svg") -> bytes:
    """Paint one figure of (width, height) pixels; `name` makes the ids inside it its own. `form` is `svg` or `png`."""
    style = {**_STYLE, "svg.hashsalt": f"fedprompt {name}"}
    if form == "png":
        style |= {"figure.facecolor": "white"}
    file = io.BytesIO()
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # measured in one font, shown in the reader's
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
        paint(figure.add_subplot())
        # a date or a version in the file would change it without any change of the figure
        figure.savefig(file, format=form, dpi=144, metadata={"Date": None, "Creator": None} if form == "svg" else {"Software": None})
    return file.getvalue()


def draw_svg(name: str, size: tuple[float, float], paint: Callable[[Axes], None]) -> str:
    """Paint one figure as an SVG document that stands alone."""
    text = draw(name, size, paint).decode()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    return text.replace("'DejaVu Sans'", "system-ui, 'Segoe UI', Helvetica, Arial")


def inline(svg: str, label: str) -> str:
    """Make a stand-alone SVG a part of a page: no prologue, no ids that clash, colours as variables, a name for listeners."""
    body = svg[svg.index("<svg") :]
    head, _, rest = body.partition(">")
    view = re.search(r'viewBox="[-\d. ]+"', head)
    assert view is not None
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)
    rest = re.sub(r"#[0-9a-f]{6}\b(?=[;\"'])", lambda match: _variable(match[0]), rest)
    rest = re.sub(r"font: ([^;\"]*?)px [^;\"]*", r"font: \1px var(--sans)", rest)
    return f'<svg {view[0]} role="img" aria-label="{_attribute(label)}" xmlns:xlink="http://www.w3.org/1999/xlink">{rest}'


def _variable(colour: str) -> str:
    return f"var(--{VARIABLES[colour]})" if colour in VARIABLES else colour


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def cells(axes: Axes, levels: Sequence[Sequence[int]], *, gap: float = 0.12) -> None:
    """A grid of squares, one per entry of `levels` [rows, columns]: 0 is empty, k takes the k-th of `SHADES`; row 0 on top."""
    rows, columns = len(levels), max((len(row) for row in levels), default=0)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    for level, colour in enumerate((EMPTY, *SHADES)):
        corners = [(x, y) for y, row in enumerate(levels) for x, found in enumerate(row) if found == level]
        if corners:  # one outline a shade keeps the file small
            axes.add_patch(PathPatch(_squares(corners, 0.5 - gap / 2), facecolor=colour, linewidth=0))
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)


def _squares(centres: Sequence[tuple[int, int]], half: float) -> Outline:
    corners = ((-half, -half), (half, -half), (half, half), (-half, half), (-half, -half))
    points = [(x + dx, y + dy) for x, y in centres for dx, dy in corners]
    codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY] * len(centres)
    return Outline(points, codes)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move label positions apart, keeping their order, until neighbours are `gap` away."""
    order = sorted(range(len(positions)), key=lambda place: positions[place])
    moved = list(positions)
    for _ in range(50):
        for low, high in zip(order, order[1:], strict=False):
            overlap = gap - (moved[high] - moved[low])
            if overlap > 0:
                moved[low] -= overlap / 2
                moved[high] += overlap / 2
    return moved


def size_text(count: float) -> str:
    """A number of bytes for people: 512 B, 147 kB, 1.6 MB (decimal units)."""
    if count < 1000:
        return f"{count:.0f} B"
    power = min(int(math.log10(count) // 3), 3)
    value = count / 1000**power
    return f"{value:.{0 if value >= 99.5 else 1}f} {('', 'kB', 'MB', 'GB')[power]}"
