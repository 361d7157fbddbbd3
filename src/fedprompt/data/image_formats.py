"""Decoding of image files to 8-bit RGB: EXIF orientation, transparency, greys of 12 and 16 bits, multi-band TIFF."""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from fedprompt.errors import UserError

# An allow-list: Pillow goes by content, and its EPS reader would run Ghostscript on a file that is called photo.jpg.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 64_000_000  # a 100 kB file can unpack to gigabytes
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of a TIFF
WHITE_IS_ZERO = 0  # a value of the second
# What turns the stored image upright, by the value of its EXIF orientation.
TURNS = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)

Window = tuple[float, float] | Literal["minmax"]  # the values of black and white; "minmax": those of each image
Bands = tuple[int, int, int]  # counted from 1, for red, green and blue
Levels = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


def decode(
    path: str | Path, *, content: bytes | None = None, window: Window | None = None, bands: Bands | None = None
) -> Image.Image:
    """Read an image file and convert it with `to_rgb`; of several frames or pages the first.

    `content` are the bytes, if they are not in the file `path`. `bands` reads a TIFF of many bands and takes
    three of them. Raises UserError naming the file if it is missing, not a regular file (a pipe would never end), not
    an image, damaged, truncated or larger than `MAX_PIXELS`.
    """
    try:
        if content is None and not stat.S_ISREG(Path(path).stat().st_mode):
            raise UserError(f"The image {path} cannot be read: it is not a regular file; replace or remove it.")
        # Pillow warns of sizes, which `to_rgb` checks, and of invalid EXIF blocks, which are then ignored.
        if bands is not None:
            return _from_bands(path if content is None else io.BytesIO(content), bands, window, str(path))
        return _from_pillow(path, content, window)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"The image {path} does not exist; check the path, or the link if it is one.") from error
    except Exception as error:  # a decoder may raise anything on damaged bytes; whatever it is, this file is the cause
        reason = str(error).rstrip(".") or type(error).__name__
        raise UserError(f"The image {path} cannot be read ({reason}); replace or remove the file.") from error


def _from_pillow(path: str | Path, content: bytes | None, window: Window | None) -> Image.Image:
    file = path if content is None else io.BytesIO(content)
    formats = (*FORMATS, "HEIF") if _opens_heif() else FORMATS
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=formats) as image:
            return to_rgb(image, window=window, name=str(path))
    except UnidentifiedImageError as error:
        head = _head(path) if content is None else content[:16]
        if head.startswith(TIFF_MAGIC):
            return _from_grey_tiff(path if content is None else io.BytesIO(content), window, str(path))
        if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS and not _opens_heif():
            raise UserError(
                f"The image {path} is HEIC, for which a package is needed: pip install 'fedprompt[heif]'."
            ) from error
        kinds = ", ".join(formats)
        raise UserError(f"The content of {path} is none of {kinds}; replace or remove the file.") from error


def _head(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(16)


@cache
def _opens_heif() -> bool:
    """Whether pillow-heif is installed; Pillow is told of it once in a process."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def to_rgb(image: Image.Image, *, window: Window | None = None, name: str = "in memory") -> Image.Image:
    """Apply the EXIF orientation, put transparent images on white and convert to 8-bit RGB.

    `window` are the two grey values that become black and white in images of more than 8 bits a pixel; values
    outside are clipped. "minmax" takes the lowest and highest value of each image. Without `window`, greys of 16 or 12
    bits are scaled by the full range of the format, 0 to 65535 or 4095, so that nothing is clipped. A TIFF of the
    photometric interpretation "white is zero" is inverted. Raises UserError, with `name` in it, for 32-bit and float
    greys, which have no such range, without a window, and for more than `MAX_PIXELS` pixels.
    """
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise UserError(f"The image {name} has {size} pixels, more than {MAX_PIXELS:,}; scale it down.")
    # differs: published pipelines of this field ignore the EXIF orientation of images
    # By our own table: Pillow's function writes the EXIF block anew, and fails where a tag in it is of another type.
    image.load()  # a TIFF is turned by loading it, and then has no orientation any more
    tags = getattr(image, "tag_v2", {})  # those of a TIFF; turning the image loses them
    turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey(image, window, name, tags)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _grey(image: Image.Image, window: Window | None, name: str, tags: Mapping[int, Any]) -> Image.Image:
    # Pillow's own conversion would clip everything above 255 to white; its PPM reader gives 16 bits as mode I.
    if window is None and (image.mode.startswith("I;16") or image.format == "PPM"):
        window = (0, 2.0 ** _bits(tags) - 1)
    if window is None:
        raise UserError(
            f"The grey values of the image {name} have no fixed range (mode {image.mode}); "
            "set `window` to those that are black and white."
        )
    levels = _scaled(np.asarray(image, dtype=np.float64), window)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow turns 8 bits round by itself, and no others
        levels = 255 - levels
    return Image.fromarray(levels).convert("RGB")


def _bits(tags: Mapping[int, Any]) -> int:
    """Bits of a grey value as stored: 12 in a TIFF of a camera or a scanner, else the 16 that Pillow hands out."""
    bits = tags.get(BITS_PER_SAMPLE, 16)
    return int(bits[0] if isinstance(bits, tuple) else bits)


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
    levels, bits, _ = _read_tiff(file, name, most=max(bands))
    if levels.ndim != len(bands) or not 1 <= min(bands) <= max(bands) <= levels.shape[0]:
        raise UserError(f"The image {name} has the shape {levels.shape}; it has no bands {bands} (counted from 1).")
    if window is None and np.issubdtype(levels.dtype, np.unsignedinteger):
        window = (0, 2.0**bits - 1)
    if window is None:
        raise UserError(f"The bands of {name} have no fixed range ({levels.dtype}); set `window` to black and white.")
    chosen = levels[[band - 1 for band in bands]]
    return Image.fromarray(np.moveaxis(_scaled(chosen, window), 0, -1), "RGB")


def _from_grey_tiff(file: str | Path | io.BytesIO, window: Window | None, name: str) -> Image.Image:
    """A grey TIFF that Pillow does not know: of 12 bits or in big-endian order where white is zero."""
    levels, bits, white_is_zero = _read_tiff(file, name, most=1)
    if levels.ndim != 2:
        raise UserError(f"The image {name} is a TIFF of the shape {levels.shape}; set `bands` if it has many bands.")
    if window is None and not np.issubdtype(levels.dtype, np.unsignedinteger):
        raise UserError(f"The grey values of {name} have no fixed range ({levels.dtype}); set `window`.")
    grey = _scaled(levels, window or (0, 2.0**bits - 1))
    return Image.fromarray(255 - grey if white_is_zero else grey).convert("RGB")


def _read_tiff(file: str | Path | io.BytesIO, name: str, *, most: int) -> tuple[Levels, int, bool]:
    """Levels as stored, bands first; bits of each, and whether white is zero."""
    try:
        import tifffile
    except ImportError as error:
        raise UserError(f"The TIFF {name} needs the package tifffile: pip install 'fedprompt[tiff]'.") from error
    with tifffile.TiffFile(file) as tiff:
        page = tiff.series[0]
        if np.prod(page.shape[-3:]) > MAX_PIXELS * most:
            raise UserError(f"The image {name} has the shape {page.shape}, too much to read; scale it down.")
        # One page per band, or interleaved bands ("YXS"): the band axis goes first.
        levels = page.asarray() if page.axes[-1] != "S" else np.moveaxis(page.asarray(), -1, 0)
        first = tiff.pages.first
        return levels, int(first.bitspersample), first.photometric == WHITE_IS_ZERO
