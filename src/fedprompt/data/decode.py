"""The one way from a file to an RGB picture: upright, on white, with every grey level kept in its place."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fedprompt.errors import UserError

# An allow-list: Pillow goes by content, and its EPS reader would run Ghostscript on a file that is called photo.jpg.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 64_000_000  # a 100 kB file can unpack to gigabytes

Window = tuple[float, float]


def decode(path: str | Path, *, window: Window | None = None) -> Image.Image:
    """Read a picture as `to_rgb` sees it; of several frames or pages the first.

    Raises UserError naming the file if it is missing, no picture, damaged, cut off or larger than `MAX_PIXELS`.
    """
    try:
        # Pillow warns of sizes, which `to_rgb` decides, and of EXIF blocks that make no sense, which then say nothing.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            return to_rgb(image, window=window, name=str(path))
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"The picture {path} does not exist; check the path, or the link if it is one.") from error
    except UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise UserError(f"The content of {path} is none of {kinds}; replace or remove the file.") from error
    except Exception as error:  # a decoder may raise anything on damaged bytes; whatever it is, this file is the cause
        reason = str(error).rstrip(".") or type(error).__name__
        raise UserError(f"The picture {path} cannot be read ({reason}); replace or remove the file.") from error


def to_rgb(image: Image.Image, *, window: Window | None = None, name: str = "in memory") -> Image.Image:
    """Turn a picture upright (EXIF), lay it on white where it is transparent and convert it to 8-bit RGB.

    `window` are the two grey values that become black and white in pictures of more than 8 bits a pixel; values
    outside are cut to them. Without it, 16-bit greys are scaled by the full range of the format, 0 to 65535, so that
    nothing is cut. Raises UserError, with `name` in it, for 32-bit and float greys, which have no such range, without
    a window, and for more than `MAX_PIXELS` pixels.
    """
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise UserError(f"The picture {name} has {size} pixels, more than {MAX_PIXELS:,}; scale it down.")
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey(image, window, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _grey(image: Image.Image, window: Window | None, name: str) -> Image.Image:
    # Pillow's own conversion would cut everything above 255 to white; its PPM reader gives 16 bits as mode I.
    if window is None and (image.mode.startswith("I;16") or image.format == "PPM"):
        window = (0, 65535)
    if window is None:
        raise UserError(
            f"The grey values of the picture {name} have no fixed range (mode {image.mode}); "
            "set `window` to those that are black and white."
        )
    black, white = window
    if not black < white:
        raise UserError(f"The window {window} is empty; give the grey value of black and a larger one for white.")
    levels = np.nan_to_num((np.asarray(image, dtype=np.float64) - black) / (white - black))
    return Image.fromarray((levels.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")
