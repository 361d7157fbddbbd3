from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from fedprompt.data import decode as decoding
from fedprompt.data.decode import decode, to_rgb
from fedprompt.errors import UserError

RAMP = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def grey(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    assert image.mode == "RGB" and (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    # What the camera stores for an upright picture, seen upright again, is that picture.
    stored = Image.fromarray(np.arange(9 * 12 * 3, dtype=np.uint8).reshape(9, 12, 3))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    seen = decode(saved(stored, tmp_path / "a.png", exif=exif))
    turns = {
        1: lambda pixels: pixels,
        2: np.fliplr,
        3: lambda pixels: np.rot90(pixels, 2),
        4: np.flipud,
        5: lambda pixels: np.rot90(np.fliplr(pixels)),
        6: lambda pixels: np.rot90(pixels, -1),
        7: lambda pixels: np.rot90(np.fliplr(pixels), -1),
        8: np.rot90,
    }
    assert np.array_equal(np.asarray(seen), turns[orientation](np.asarray(stored)))


def test_an_exif_block_without_sense_leaves_the_image_as_it_is(tmp_path):
    path = saved(Image.new("RGB", (12, 9), "red"), tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(path).size == (12, 9)


@pytest.mark.parametrize(("suffix", "order"), [("png", "<"), ("tif", "<"), ("tif", ">")])
def test_16_bit_greys_keep_every_level(tmp_path, suffix, order):
    path = saved(Image.fromarray(RAMP.astype(f"{order}u2")), tmp_path / f"a.{suffix}")
    assert np.array_equal(grey(decode(path)).ravel(), np.arange(256))


def test_a_pgm_of_12_bits_is_scaled_by_its_own_maximum(tmp_path):
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 4 4 4095\n" + (np.arange(16) * 273).astype(">u2").tobytes())
    assert np.array_equal(grey(decode(path)).ravel(), np.arange(16) * 17)


def test_a_window_cuts_and_spreads_deep_greys(tmp_path):
    path = saved(Image.fromarray(np.array([[0, 1000, 1500, 2000, 60000]], dtype=np.uint16)), tmp_path / "a.png")
    assert grey(decode(path, window=(1000, 2000))).tolist() == [[0, 0, 128, 255, 255]]
    with pytest.raises(UserError, match=r"window .* is empty"):
        decode(path, window=(5, 5))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_greys_without_a_fixed_range_need_a_window(tmp_path, dtype):
    path = saved(Image.fromarray(np.array([[-10, 0, 10]], dtype=dtype)), tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif.*no fixed range.*set `window`"):
        decode(path)
    assert grey(decode(path, window=(-10, 10))).tolist() == [[0, 128, 255]]


def test_a_missing_float_value_is_black(tmp_path):
    path = saved(Image.fromarray(np.array([[np.nan, 1, np.inf]], dtype=np.float32)), tmp_path / "a.tif")
    assert grey(decode(path, window=(0, 1))).tolist() == [[0, 255, 255]]


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (10, 255), (10, 10, 10)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (128, 128, 128), (128, 128, 128)),
    ],
)
def test_every_mode_becomes_rgb_on_white(mode, colour, seen):
    assert to_rgb(Image.new(mode, (3, 2), colour)).getpixel((1, 1)) == seen


@pytest.mark.parametrize(("mode", "colour"), [("L", 77), ("CMYK", (0, 178, 178, 0))])
def test_grey_and_four_colour_jpegs_lie_among_photographs(tmp_path, mode, colour):
    path = saved(Image.new(mode, (16, 16), colour), tmp_path / "a.JPEG", quality=95)
    seen = decode(path)
    want = to_rgb(Image.new(mode, (1, 1), colour)).getpixel((0, 0))
    assert seen.mode == "RGB" and np.abs(np.subtract(seen.getpixel((5, 5)), want)).max() <= 3


def test_palettes_become_colours_and_their_transparent_entry_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    assert list(np.asarray(decode(saved(image, tmp_path / "a.png"))).reshape(-1, 3).tolist()) == [
        [255, 0, 0],
        [0, 255, 0],
    ]
    clear = decode(saved(image, tmp_path / "b.png", transparency=1))
    assert np.asarray(clear).reshape(-1, 3).tolist() == [[255, 0, 0], [255, 255, 255]]


def test_content_counts_and_the_suffix_does_not(tmp_path):
    path = saved(Image.new("RGB", (4, 4), "blue"), tmp_path / "really_a_gif.jpg", format="GIF")
    assert decode(path).getpixel((0, 0)) == (0, 0, 255)


def test_an_image_in_memory_is_not_changed():
    image = Image.new("RGBA", (3, 2), (255, 0, 0, 0))
    to_rgb(image)
    assert image.mode == "RGBA"


def broken(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind}.jpg"
    whole = saved(Image.effect_noise((64, 64), 50), tmp_path / "whole.jpg").read_bytes()
    content = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"not a picture",
        "script": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    }
    if kind != "missing":
        path.write_bytes(content[kind])
    return path


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "script", "missing"])
def test_what_cannot_be_read_is_named_in_a_full_sentence(tmp_path, kind):
    path = broken(tmp_path, kind)
    with pytest.raises(UserError) as caught:
        decode(path)
    assert str(path) in str(caught.value) and str(caught.value).endswith(".")


def test_a_folder_is_not_an_image(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        decode(tmp_path)


def test_a_small_file_of_too_many_pixels_is_refused_before_it_unpacks(tmp_path, monkeypatch):
    path = saved(Image.new("1", (200, 101)), tmp_path / "bomb.png")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 200 * 100)
    monkeypatch.setattr(Image.Image, "convert", None)  # nothing is unpacked or converted
    with pytest.raises(UserError, match=r"bomb\.png has 200 x 101 pixels.*scale it down"):
        decode(path)


def test_pillows_own_limit_is_a_user_error_too(tmp_path, monkeypatch):
    path = saved(Image.new("1", (200, 100)), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"bomb\.png cannot be read"):
        decode(path)


WHOLE = Image.merge("RGB", [Image.linear_gradient("L").resize((24, 20))] * 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM"])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_damaged_bytes_give_an_image_or_a_user_error(tmp_path_factory, kind, data):
    buffer = io.BytesIO()
    WHOLE.save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert decode(path).mode == "RGB"
    except UserError as error:
        assert str(path) in str(error)


def test_an_image_may_be_its_own_window(tmp_path):
    path = saved(Image.fromarray(np.array([[1000, 1500, 2000]], dtype=np.uint16)), tmp_path / "a.png")
    assert grey(decode(path, window="minmax")).tolist() == [[0, 128, 255]]
    flat = saved(Image.fromarray(np.full((1, 2), 7.0, dtype=np.float32)), tmp_path / "b.tif")
    assert grey(decode(flat, window="minmax")).tolist() == [[0, 0]]


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_bands_of_a_satellite_image_are_chosen(tmp_path, planar):
    tifffile = pytest.importorskip("tifffile")
    levels = np.arange(13, dtype=np.uint16)[:, None, None] * 5000 * np.ones((1, 4, 6), np.uint16)
    pixels = np.moveaxis(levels, 0, -1) if planar == "contig" else levels
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig=planar)
    seen = decode(tmp_path / "a.tif", bands=(4, 3, 2))
    assert seen.size == (6, 4) and seen.getpixel((0, 0)) == tuple(round(255 * n * 5000 / 65535) for n in (3, 2, 1))
    assert decode(tmp_path / "a.tif", bands=(4, 3, 2), window=(5000, 15000)).getpixel((0, 0)) == (255, 128, 0)
    with pytest.raises(UserError, match=r"no bands \(14, 1, 2\)"):
        decode(tmp_path / "a.tif", bands=(14, 1, 2))
    tifffile.imwrite(tmp_path / "b.tif", levels.astype(np.float32), photometric="minisblack")
    with pytest.raises(UserError, match="no fixed range"):
        decode(tmp_path / "b.tif", bands=(1, 2, 3))
