"""Decoding of image files to 8-bit RGB in bounded memory: EXIF orientation, transparency, deep greys, multi-band TIFF.

Nothing is decoded before its size is known. Conversions work on `STRIP` rows at a time, so that beside the image as
decoded there is only the result.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from fedprompt.errors import UserError
from fedprompt.file_system import open_file

# An allow-list: Pillow goes by content, and its EPS reader would run Ghostscript on a file that is called photo.jpg.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
# A file of 100 kB can unpack to gigabytes. An image may have this many bytes when it is decoded; while it is decoded
# and converted there are two of it.
BUDGET = 256_000_000
MAX_PIXELS = BUDGET // 4  # Pillow keeps every pixel in 4 bytes, except greys
# Bytes per pixel, measured at the peak, of decoders that hold further copies; 8 for all others.
PEAK = MappingProxyType({"JPEG2000": 20, "WEBP": 16, "AVIF": 10, "HEIF": 10})
MAX_REDUCED = 160_000_000  # pixels of a JPEG or JPEG 2000 that is decoded at half its size, if it is too large
LARGEST_FILE = 512 << 20  # bytes; 64 million pixels of 16-bit RGB, uncompressed
JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # the others stand between coded pixels
MOST_SCANS = 100  # of a progressive JPEG, each of which walks over all pixels; programs write about ten
STRIP = 256  # rows
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
    an image, damaged, truncated or too large to be decoded within the memory budget.
    """
    try:
        with io.BytesIO(content) if content is not None else open_file(Path(path), "replace or remove it") as file:
            if file.seek(0, io.SEEK_END) > LARGEST_FILE:
                raise UserError(f"The image {path} has more than {LARGEST_FILE >> 20} MiB; scale it down.")
            file.seek(0)
            # Pillow warns of sizes, which are checked here, and of invalid EXIF blocks, which are then ignored.
            if bands is not None:
                return _from_bands(file, bands, window, str(path))
            return _from_pillow(file, window, str(path))
    except UserError:
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes; whatever it is, this file is the cause
        reason = str(error).rstrip(".") or type(error).__name__
        raise UserError(f"The image {path} cannot be read ({reason}); replace or remove the file.") from error


def _from_pillow(file: IO[bytes], window: Window | None, name: str) -> Image.Image:
    formats = (*FORMATS, "HEIF") if _opens_heif() else FORMATS
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=formats) as image:
            _check_scans(image, file, name)
            _reduce(image)
            return to_rgb(image, window=window, name=name)
    except UnidentifiedImageError as error:
        file.seek(0)
        head = file.read(16)
        file.seek(0)
        if head.startswith(TIFF_MAGIC):
            return _from_grey_tiff(file, window, name)
        if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS and not _opens_heif():
            raise UserError(
                f"The image {name} is HEIC, for which a package is needed: pip install 'fedprompt[heif]'."
            ) from error
        kinds = ", ".join(formats)
        raise UserError(f"The content of {name} is none of {kinds}; replace or remove the file.") from error


def _most_pixels(image: Image.Image) -> int:
    """The most pixels that an image of this format may have, so that decoding it stays within twice the budget."""
    return 2 * BUDGET // PEAK.get(image.format or "", 8)


def _check_scans(image: Image.Image, file: IO[bytes], name: str) -> None:
    if not image.info.get("progressive"):
        return
    place = file.tell()
    file.seek(0)
    scans = _scans(file.read())
    file.seek(place)
    if scans > MOST_SCANS:
        raise UserError(f"The image {name} is a JPEG of more than {MOST_SCANS} scans; save it again.")


def _scans(content: bytes) -> int:
    """The scans of a JPEG up to its end, after which a film may follow; not counted further than `MOST_SCANS` + 1."""
    place, scans = 2, 0
    while scans <= MOST_SCANS and (found := JPEG_MARKER.search(content, place)) and found[0] != b"\xff\xd9":
        scans += found[0] == b"\xff\xda"
        place = found.end() + int.from_bytes(content[found.end() : found.end() + 2])
    return scans


def _reduce(image: Image.Image) -> None:
    """Have a JPEG or JPEG 2000 of too many pixels decoded at half its size, which its decoder does while reading."""
    if not _most_pixels(image) < image.width * image.height <= MAX_REDUCED:
        return
    if image.format in ("JPEG", "MPO") and not image.info.get("progressive"):  # which is held at full size in any case
        image.draft("RGB", (image.width // 2, image.height // 2))
    elif isinstance(image, Jpeg2KImageFile):
        image.reduce = 1


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
    greys, which have no such range, without a window, and for an image that is too large.
    """
    _check_size(image, name)
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
        return _on_white(image)
    return image if turn is not None and image.mode == "RGB" else image.convert("RGB")


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if isinstance(image, Jpeg2KImageFile) and image.reduce == 1:  # the size as it will be
        width, height = -(-width // 2), -(-height // 2)
    if width * height > (most := _most_pixels(image)):
        form = f" as {image.format}" if most < MAX_PIXELS else ""
        raise UserError(f"The image {name} has {width} x {height} pixels, more than {most:,}{form}; scale it down.")


def _on_white(image: Image.Image) -> Image.Image:
    seen = Image.new("RGB", image.size)
    for rows in _strips(image.height):
        strip = image.crop((0, rows.start, image.width, rows.stop)).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        seen.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, rows.start))
    return seen


def _strips(height: int) -> Iterator[slice]:
    return (slice(start, min(start + STRIP, height)) for start in range(0, height, STRIP))


def _grey(image: Image.Image, window: Window | None, name: str, tags: Mapping[int, Any]) -> Image.Image:
    # Pillow's own conversion would clip everything above 255 to white; its PPM reader gives 16 bits as mode I.
    if window is None and (image.mode.startswith("I;16") or image.format == "PPM"):
        window = (0, 2.0 ** _bits(tags) - 1)
    if window is None:
        raise UserError(
            f"The grey values of the image {name} have no fixed range (mode {image.mode}); "
            "set `window` to those that are black and white."
        )
    levels = _scaled(np.asarray(image), window)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow turns 8 bits round by itself, and no others
        levels = 255 - levels
    return Image.fromarray(levels).convert("RGB")


def _bits(tags: Mapping[int, Any]) -> int:
    """Bits of a grey value as stored: 12 in a TIFF of a camera or a scanner, else the 16 that Pillow hands out."""
    bits = tags.get(BITS_PER_SAMPLE, 16)
    return int(bits[0] if isinstance(bits, tuple) else bits)


def _scaled(levels: Levels, window: Window) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Levels [..., H, W] between black and white as 0 to 255."""
    strips = [levels[..., rows, :] for rows in _strips(levels.shape[-2])]
    black, white = _extremes(strips) if window == "minmax" else window
    if window == "minmax" and black == white:  # one flat grey: no contrast to spread
        white = black + 1
    if not black < white:
        raise UserError(f"The window {window} is empty; give the grey value of black and a larger one for white.")
    seen = np.empty(levels.shape, np.uint8)
    for rows, strip in zip(_strips(levels.shape[-2]), strips, strict=True):
        shares = np.nan_to_num((strip.astype(np.float64) - black) / (white - black))
        seen[..., rows, :] = (shares.clip(0, 1) * 255).round().astype(np.uint8)
    return seen


def _extremes(strips: Sequence[Levels]) -> tuple[float, float]:
    """The lowest and highest finite level; zeros if there is none."""
    known = [own for strip in strips if (own := strip[np.isfinite(strip)]).size]
    lows, highs = [float(own.min()) for own in known], [float(own.max()) for own in known]
    return min(lows, default=0.0), max(highs, default=0.0)


def _from_bands(file: IO[bytes], bands: Bands, window: Window | None, name: str) -> Image.Image:
    levels, bits, _ = _read_tiff(file, name)
    if levels.ndim != len(bands) or not 1 <= min(bands) <= max(bands) <= levels.shape[0]:
        raise UserError(f"The image {name} has the shape {levels.shape}; it has no bands {bands} (counted from 1).")
    if window is None and np.issubdtype(levels.dtype, np.unsignedinteger):
        window = (0, 2.0**bits - 1)
    if window is None:
        raise UserError(f"The bands of {name} have no fixed range ({levels.dtype}); set `window` to black and white.")
    chosen = levels[[band - 1 for band in bands]]
    return Image.fromarray(np.moveaxis(_scaled(chosen, window), 0, -1), "RGB")


def _from_grey_tiff(file: IO[bytes], window: Window | None, name: str) -> Image.Image:
    """A grey TIFF that Pillow does not know: of 12 bits or in big-endian order where white is zero."""
    levels, bits, white_is_zero = _read_tiff(file, name)
    if levels.ndim != 2:
        raise UserError(f"The image {name} is a TIFF of the shape {levels.shape}; set `bands` if it has many bands.")
    if window is None and not np.issubdtype(levels.dtype, np.unsignedinteger):
        raise UserError(f"The grey values of {name} have no fixed range ({levels.dtype}); set `window`.")
    grey = _scaled(levels, window or (0, 2.0**bits - 1))
    return Image.fromarray(255 - grey if white_is_zero else grey).convert("RGB")


def _read_tiff(file: IO[bytes], name: str) -> tuple[Levels, int, bool]:
    """Levels as stored, bands first; bits of each, and whether white is zero."""
    try:
        import tifffile
    except ImportError as error:
        raise UserError(f"The TIFF {name} needs the package tifffile: pip install 'fedprompt[tiff]'.") from error
    with tifffile.TiffFile(file) as tiff:
        page = tiff.series[0]
        if math.prod(page.shape) * page.dtype.itemsize > BUDGET:
            raise UserError(f"The image {name} has the shape {page.shape}, too much to read; scale it down.")
        # One page per band, or interleaved bands ("YXS"): the band axis goes first.
        levels = page.asarray() if page.axes[-1] != "S" else np.moveaxis(page.asarray(), -1, 0)
        first = tiff.pages.first
        return levels, int(first.bitspersample), first.photometric == WHITE_IS_ZERO
