"""Decoding of image files to 8-bit RGB: EXIF orientation, transparency on white, 16-bit greys, multi-band TIFF."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fedprompt.errors import UserError

# An allow-list: Pillow goes by content, and its EPS reader would run Ghostscript on a file that is called photo.jpg.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 64_000_000  # a 100 kB file can unpack to gigabytes

Window = tuple[float, float] | Literal["minmax"]  # the values of black and white; "minmax": those of each image
Bands = tuple[int, int, int]  # counted from 1, for red, green and blue
Levels = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


def decode(
    path: str | Path, *, content: bytes | None = None, window: Window | None = None, bands: Bands | None = None
) -> Image.Image:
    """Read an image file and convert it with `to_rgb`; of several frames or pages the first.

    `content` are the bytes, if they are not in the file `path`. `bands` reads a TIFF of many bands and takes
    three of them. Raises UserError naming the file if it is missing, not an image, damaged, truncated or larger than
    `MAX_PIXELS`.
    """
    try:
        # Pillow warns of sizes, which `to_rgb` checks, and of invalid EXIF blocks, which are then ignored.
        if bands is not None:
            return _from_bands(path if content is None else io.BytesIO(content), bands, window, str(path))
        file = path if content is None else io.BytesIO(content)
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:
            return to_rgb(image, window=window, name=str(path))
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"The image {path} does not exist; check the path, or the link if it is one.") from error
    except UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise UserError(
            f"The content of {path} is none of {kinds}; replace or remove the file, or set `bands` if it is a TIFF of "
            "many bands."
        ) from error
    except Exception as error:  # a decoder may raise anything on damaged bytes; whatever it is, this file is the cause
        reason = str(error).rstrip(".") or type(error).__name__
        raise UserError(f"The image {path} cannot be read ({reason}); replace or remove the file.") from error


def to_rgb(image: Image.Image, *, window: Window | None = None, name: str = "in memory") -> Image.Image:
    """Apply the EXIF orientation, put transparent images on white and convert to 8-bit RGB.

    `window` are the two grey values that become black and white in images of more than 8 bits a pixel; values
    outside are clipped. "minmax" takes the lowest and highest value of each image. Without `window`, 16-bit greys
    are scaled by the full range of the format, 0 to 65535, so that nothing is clipped. Raises UserError, with `name` in
    it, for 32-bit and float greys, which have no such range, without a window, and for more than `MAX_PIXELS` pixels.
    """
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise UserError(f"The image {name} has {size} pixels, more than {MAX_PIXELS:,}; scale it down.")
    # differs: published pipelines of this field ignore the EXIF orientation of images
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey(image, window, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _grey(image: Image.Image, window: Window | None, name: str) -> Image.Image:
    # Pillow's own conversion would clip everything above 255 to white; its PPM reader gives 16 bits as mode I.
    if window is None and (image.mode.startswith("I;16") or image.format == "PPM"):
        window = (0, 65535)
    if window is None:
        raise UserError(
            f"The grey values of the image {name} have no fixed range (mode {image.mode}); "
            "set `window` to those that are black and white."
        )
    return Image.fromarray(_scaled(np.asarray(image, dtype=np.float64), window)).convert("RGB")


def _scaled(levels: Levels, window: Window) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    known = levels[np.isfinite(levels)]
    extremes = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    black, white = extremes if window == "minmax" else window
    if window == "minmax" and black == white:  # one flat grey: no contrast to spread
        white = black + 1
    if not black < white:
        raise UserError(f"The window {window} is empty; give the grey value of black and a larger one for white.")
    shares = np.nan_to_num((levels.astype(np.float64) - black) / (white - black))
    return (shares.clip(0, 1) * 255).round().astype(np.uint8)


def _from_bands(file: str | Path | io.BytesIO, bands: Bands, window: Window | None, name: str) -> Image.Image:
    try:
        import tifffile
    except ImportError as error:
        raise UserError("Reading TIFFs of many bands needs tifffile: pip install 'fedprompt[tiff]'.") from error
    with tifffile.TiffFile(file) as tiff:
        page = tiff.series[0]
        if np.prod(page.shape[-3:]) > MAX_PIXELS * max(bands):
            raise UserError(f"The image {name} has the shape {page.shape}, too much to read; scale it down.")
        # One page per band, or interleaved bands ("YXS"): the band axis goes first.
        levels = page.asarray() if page.axes[-1] != "S" else np.moveaxis(page.asarray(), -1, 0)
    if levels.ndim != len(bands) or not 1 <= min(bands) <= max(bands) <= levels.shape[0]:
        raise UserError(f"The image {name} has the shape {levels.shape}; it has no bands {bands} (counted from 1).")
    if window is None and np.issubdtype(levels.dtype, np.unsignedinteger):
        window = (0, float(np.iinfo(levels.dtype).max))
    if window is None:
        raise UserError(f"The bands of {name} have no fixed range ({levels.dtype}); set `window` to black and white.")
    chosen = levels[[band - 1 for band in bands]]
    return Image.fromarray(np.moveaxis(_scaled(chosen, window), 0, -1), "RGB")
