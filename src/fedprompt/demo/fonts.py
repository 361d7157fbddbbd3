"""Glyphs of icon fonts as masks: the fonts that qtawesome ships, rendered by Pillow (qtawesome is not imported)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fedprompt.errors import UserError

FAMILIES: Mapping[str, str] = {
    "material": "materialdesignicons6-webfont",
    "fontawesome": "fontawesome6-solid-webfont",
    "remix": "remixicon",
    "phosphor": "phosphor",
}
SIDE = 96  # pixels of a full-size mask; half and quarter sizes are cached too, so that small icons are not aliased


@lru_cache(maxsize=1)
def folder() -> Path:
    """The folder of qtawesome's fonts, found without importing it, because its import needs Qt."""
    found = importlib.util.find_spec("qtawesome")
    if found is None or not found.submodule_search_locations:
        raise UserError("The demo draws with qtawesome's icon fonts; install them with `pip install qtawesome`.")
    return Path(found.submodule_search_locations[0]) / "fonts"


def _newest(pattern: str) -> Path:
    files = sorted(folder().glob(pattern))
    if not files:
        raise UserError(f"No {pattern!r} in {folder()}; this qtawesome is too old, install qtawesome>=1.4.")
    return files[-1]


@lru_cache(maxsize=len(FAMILIES))
def glyphs(family: str) -> Mapping[str, str]:
    """The character of every glyph name of a font family."""
    table = json.loads(_newest(f"{FAMILIES[family]}-charmap-*.json").read_text())
    return {name: chr(int(code, 16)) for name, code in table.items()}


@lru_cache(maxsize=len(FAMILIES))
def _font(family: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_newest(f"{FAMILIES[family]}-[0-9]*.ttf"), SIDE)


@lru_cache(maxsize=16384)
def mask(family: str, glyph: str, side: int = SIDE) -> Image.Image:
    """The glyph in white on black ("L"), `side` x `side`, its longer edge filling the square."""
    if side < SIDE:
        return mask(family, glyph).resize((side, side), Image.Resampling.BOX)
    canvas = Image.new("L", (2 * SIDE, 2 * SIDE))
    ImageDraw.Draw(canvas).text((SIDE, SIDE), glyphs(family)[glyph], 255, _font(family), anchor="mm")
    box = canvas.getbbox()
    assert box is not None, f"glyph {glyph!r} of {family} is empty"
    drawing = canvas.crop(box)
    scale = SIDE / max(drawing.size)
    drawing = drawing.resize((max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale))))
    square = Image.new("L", (SIDE, SIDE))
    square.paste(drawing, ((SIDE - drawing.width) // 2, (SIDE - drawing.height) // 2))
    return square
