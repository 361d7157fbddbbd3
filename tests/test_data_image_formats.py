from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from fedprompt.data import image_formats
from fedprompt.data.image_formats import decode, to_rgb
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
    with pytest.raises(UserError, match="is a folder; replace or remove it"):
        decode(tmp_path)


def test_a_small_file_of_too_many_pixels_is_refused_before_it_unpacks(tmp_path, monkeypatch):
    path = saved(Image.new("1", (200, 101)), tmp_path / "bomb.png")
    monkeypatch.setattr(image_formats, "BUDGET", 4 * 200 * 100)
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
@settings(max_examples=25)
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


def tiff(levels: np.ndarray, *, bits: int, white_is_zero: bool, order: str = "<", text: str = "") -> bytes:
    """A TIFF of one strip, byte by byte; `text` is written where a resolution in numbers belongs."""
    height, width = levels.shape
    rows = ["".join(f"{level:0{bits}b}" for level in row) for row in levels.tolist()]
    packed = b"".join(int(row + "0" * (-len(row) % 8), 2).to_bytes(-(-len(row) // 8), "big") for row in rows)
    data = levels.astype(f"{order}u2").tobytes() if bits == 16 else packed
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 8, 277: 1, 278: height}
    entries = [struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items()]
    entries.append(struct.pack(f"{order}HHII", 279, 4, 1, len(data)))
    if text:
        words = text.encode() + b"\0"
        place = 8 + len(data) + 2 + 12 * (len(entries) + 1) + 4
        entries.append(struct.pack(f"{order}HHII", 282, 2, len(words), place))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    end = b"\0\0\0\0" + (text.encode() + b"\0" if text else b"")
    return head + data + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + end


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_where_white_is_zero_is_seen_as_it_is_meant(bits, order):
    pytest.importorskip("tifffile")
    levels = np.linspace(0, 2**bits - 1, 16).round().astype(int).reshape(4, 4)
    seen = {
        turned: grey(decode("a.tif", content=tiff(levels, bits=bits, white_is_zero=turned, order=order))).ravel()
        for turned in (False, True)
    }
    assert np.array_equal(seen[False], np.arange(16) * 17) and np.array_equal(seen[True], 255 - np.arange(16) * 17)


def test_a_tiff_of_12_bits_is_scaled_by_its_own_bits():
    levels = (np.arange(16) * 273).reshape(4, 4)
    assert np.array_equal(
        grey(decode("a.tif", content=tiff(levels, bits=12, white_is_zero=False))).ravel(), np.arange(16) * 17
    )


def test_a_window_counts_stored_values_also_where_white_is_zero():
    levels = np.array([[0, 1000, 1500, 2000, 60000]])
    content = tiff(levels, bits=16, white_is_zero=True)
    assert grey(decode("a.tif", content=content, window=(1000, 2000))).tolist() == [[255, 255, 127, 0, 0]]


def test_a_resolution_written_as_text_does_not_hide_a_tiff():
    levels = (np.arange(16) * 4369).reshape(4, 4)
    content = tiff(levels, bits=16, white_is_zero=False, text="300 dpi")
    assert np.array_equal(grey(decode("a.tif", content=content)).ravel(), np.arange(16) * 17)


def test_a_resolution_written_as_text_does_not_hide_a_photo_that_must_be_turned():
    entries = struct.pack("<HHIHH", 274, 3, 1, 6, 0) + struct.pack("<HHII", 282, 2, 8, 38)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + b"\0\0\0\0" + b"300 dpi\0"
    stored = io.BytesIO()
    Image.new("RGB", (12, 9), "red").save(stored, "JPEG", exif=exif)
    assert decode("a.jpg", content=stored.getvalue()).size == (9, 12)


@pytest.mark.parametrize("name", ["a.jpe", "a.jfif", "a", "a.jp2", "a.avif"])
def test_the_content_decides_whatever_a_file_is_called(tmp_path, name):
    form = {".jp2": "JPEG2000", ".avif": "AVIF"}.get(Path(name).suffix, "JPEG")
    Image.new("RGB", (12, 9), "red").save(tmp_path / name, form)
    red, green, blue = np.asarray(decode(tmp_path / name)).reshape(-1, 3).mean(axis=0)
    assert red > 240 and green < 15 and blue < 15


def test_a_heic_photo_without_the_package_names_the_fix(tmp_path, monkeypatch):
    monkeypatch.setattr(image_formats, "_opens_heif", lambda: False)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(UserError, match=r"a\.heic is HEIC.*pip install 'fedprompt\[heif\]'"):
        decode(tmp_path / "a.heic")


def test_a_pipe_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg is a pipe, not a regular file"):
        decode(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"b\.jpg is a device, not a regular file"):
        decode(tmp_path / "b.jpg")


@pytest.mark.parametrize(("suffix", "options"), [("jpg", {}), ("jp2", {})])
def test_an_image_above_the_budget_is_decoded_at_half_its_size_where_the_format_can(
    tmp_path, monkeypatch, suffix, options
):
    path = saved(Image.linear_gradient("L").convert("RGB"), tmp_path / f"a.{suffix}", **options)
    whole = decode(path)
    monkeypatch.setattr(image_formats, "BUDGET", 20 * 128 * 128 // 2)
    half = decode(path)
    assert half.size == (128, 128) and half.mode == "RGB"
    assert np.abs(np.asarray(whole.reduce(2)).astype(int) - np.asarray(half)).max() <= 3
    monkeypatch.setattr(image_formats, "MAX_REDUCED", 256 * 256 - 1)
    with pytest.raises(UserError, match=rf"a\.{suffix} has 256 x 256 pixels.*scale it down"):
        decode(path)


@pytest.mark.parametrize("suffix", ["webp", "avif", "png", "gif", "bmp", "tif", "ppm"])
def test_an_image_above_the_budget_is_refused_where_the_format_cannot_reduce(tmp_path, monkeypatch, suffix):
    path = saved(Image.new("RGB", (64, 64), "red"), tmp_path / f"a.{suffix}")
    assert decode(path).size == (64, 64)
    monkeypatch.setattr(image_formats, "BUDGET", 4 * 64 * 63)
    monkeypatch.setattr(Image.Image, "load", None)
    monkeypatch.setattr(Image.Image, "convert", None)
    with pytest.raises(UserError, match=rf"a\.{suffix} has 64 x 64 pixels.*scale it down"):
        decode(path)


def test_a_jpeg_of_many_scans_is_refused(tmp_path):
    path = saved(Image.effect_noise((64, 64), 50), tmp_path / "a.jpg", progressive=True)
    content = path.read_bytes()
    path.write_bytes(content + b"\xff\xda\0\x02" * 200)  # a film after the end, as phones write it
    assert decode(path).size == (64, 64)
    last = content.rindex(b"\xff\xda")
    path.write_bytes(content[:-2] + content[last:-2] * 200 + content[-2:])
    with pytest.raises(UserError, match=r"a\.jpg is a JPEG of more than 100 scans; save it again"):
        decode(path)


def test_a_file_of_too_many_bytes_is_not_decoded(tmp_path):
    path = saved(Image.new("RGB", (4, 4)), tmp_path / "a.webp")
    os.truncate(path, image_formats.LARGEST_FILE + 1)
    with pytest.raises(UserError, match=r"a\.webp has more than 512 MiB; scale it down"):
        decode(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "I", "F"])
def test_images_of_more_than_one_strip_are_converted_as_a_whole(mode, monkeypatch):
    ramp = np.arange(40 * 7).reshape(40, 7)
    image = Image.fromarray(ramp.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}.get(mode, np.uint8)))
    if mode in ("RGBA", "LA", "P"):
        image = image.convert(mode)
        image.putalpha(77) if mode != "P" else image.info.update(transparency=5)
    monkeypatch.setattr(image_formats, "STRIP", 1000)
    whole = np.asarray(to_rgb(image, window="minmax"))
    monkeypatch.setattr(image_formats, "STRIP", 16)
    assert np.array_equal(whole, np.asarray(to_rgb(image, window="minmax")))
