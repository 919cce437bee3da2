from __future__ import annotations

import contextlib
import io
import itertools
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw, ImageFilter

from deployments.errors import (
    ImageLoadError,
    ImageTooLarge,
    ImageTooSmall,
    ModelError,
    ServingError,
    UnsupportedImageFormat,
)
from deployments.inference.images import MAX_SIDE, MIN_SIDE, fit, fit_mask, open_mask, open_picture
from deployments.models.base import Size
from tests.inference.conftest import image_bytes

PNG = image_bytes()
RED, WHITE = (255, 0, 0), (255, 255, 255)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def near(pixel: object, colour: tuple[int, int, int], tolerance: int) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, bits: int, colour: int, *chunks: bytes, rows: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return PNG[:8] + header + b"".join(chunks) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _tiff(tags: dict[int, int | tuple[int, ...]], data: bytes) -> bytes:
    """An uncompressed RGB picture of 32x32 pixels, unless its tags say otherwise."""
    wanted: dict[int, int | tuple[int, ...]] = {256: 32, 257: 32, 258: (8, 8, 8), 259: 1, 262: 2, 277: 3, 278: 32}
    wanted |= {273: 0, 279: len(data)} | tags
    behind = 8 + 2 + 12 * len(wanted) + 4
    lists = b""
    entries = b""
    for tag, value in sorted(wanted.items()):
        values = value if isinstance(value, tuple) else (value,)
        place = struct.pack("<I", behind + len(lists)) if len(values) > 1 else struct.pack("<I", *values)
        lists += struct.pack(f"<{len(values)}I", *values) if len(values) > 1 else b""
        entries += struct.pack("<HHI", tag, 4, len(values)) + place
    entries = entries.replace(struct.pack("<HHII", 273, 4, 1, 0), struct.pack("<HHII", 273, 4, 1, behind + len(lists)))
    return b"II*\0" + struct.pack("<IH", 8, len(wanted)) + entries + bytes(4) + lists + data


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_read(format: str) -> None:
    picture = open_picture(image_bytes(format=format))

    assert (picture.mode, picture.size) == ("RGB", (32, 24))
    assert near(picture.getpixel((16, 12)), RED, 6)


SVG = b"<svg xmlns='http://www.w3.org/2000/svg' xmlns:xlink='http://www.w3.org/1999/xlink'>"
FOREIGN = {
    "SVG": SVG + b"<image xlink:href='file:///etc/passwd'/></svg>",
    "SVG with a prologue": b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<svg:svg xmlns:svg='x'/>",
    "XXE": b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>"
    + SVG
    + b"<text>&e;</text></svg>",
    "PDF": image_bytes(format="PDF"),
    "EPS": image_bytes(format="EPS"),
    "PostScript": b"%!PS-Adobe-3.0\n(%pipe%id) (r) file",
    "DOS EPS": b"\xc5\xd0\xd3\xc6" + bytes(26),
    "PSD": b"8BPS\0\x01" + bytes(20),
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(18),
    "WMF without a header": b"\x01\0\x09\0\0\x03" + bytes(12),
    "EMF": b"\x01\0\0\0" + bytes(36) + b" EMF",
    "DICOM": b"\n" * 128 + b"DICM",
    "FITS": b"SIMPLE  =                    T".ljust(2880),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "HEIC of another brand": b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic",
    "JPEG 2000": image_bytes(format="JPEG2000"),
    "JPEG 2000 without a box": b"\xff\x4f\xff\x51" + bytes(40),
    "JPEG XL": b"\xff\x0a" + bytes(20),
    "JPEG XL in a box": b"\0\0\0\x0cJXL \r\n\x87\n",
    "ICO": image_bytes(format="ICO"),
    "ICNS": image_bytes(format="ICNS"),
    "OpenEXR": b"v/1\x01\x02\0\0\0",
    "PPM": image_bytes(format="PPM"),
    "MP4": b"\0\0\0\x18ftypisom\0\0\0\0",
    "WebM": b"\x1a\x45\xdf\xa3" + bytes(20),
    "AVI": b"RIFF\0\0\0\0AVI LIST",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_format_is_told_so(name: str) -> None:
    with pytest.raises(UnsupportedImageFormat, match="PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF") as caught:
        open_picture(FOREIGN[name])

    [detail] = caught.value.body()["detail"]
    assert detail["type"] == "unsupported_image_format"
    assert {".png", ".jpg", ".webp", ".gif", ".bmp", ".tif", ".avif"} <= set(detail["ctx"]["supported_formats"])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        b"\0" * 300,
        bytes(range(256)) * 2,
        b"a poem",
        b"<!doctype html><title>Log in</title><body><svg viewBox='0 0 1 1'></svg>",
        b"<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'><svg/></html>",
        b"PK\x03\x04" + bytes(30),
        b"GIF89a",
        PNG[:8],
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBP",
        b"\0\0\0\x18ftypavif\0\0\0\0",
    ],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ImageLoadError, match="PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF"):
        open_picture(data)


def test_a_file_of_nothing_but_tags_is_refused_at_once() -> None:
    data = b"<!" * 10**6
    tracemalloc.start()
    with pytest.raises(ImageLoadError):
        open_picture(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(data) // 2


def test_a_drawing_may_begin_with_some_kilobytes_of_comments() -> None:
    with pytest.raises(UnsupportedImageFormat, match="SVG"):
        open_picture(b"<?xml version='1.0'?>" + b"<!-- drawn by hand -->\n" * 150 + SVG)


@pytest.mark.parametrize("format", ["PDF", "BMP", "EPS", "TGA", "PSD"])
def test_no_other_decoder_is_called(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    Image.init()
    for name, (_, accept) in list(Image.OPEN.items()):
        if name not in FORMATS:
            monkeypatch.setitem(Image.OPEN, name, (lambda *arguments: called.append(arguments), accept))

    with contextlib.suppress(ModelError):
        open_picture(FOREIGN.get(format) or image_bytes(format=format))
    assert called == []


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF"])
def test_half_a_picture_is_refused(format: str) -> None:
    noise = Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3))
    data = image_bytes(noise, format)

    with pytest.raises(ImageLoadError):
        open_picture(data[: len(data) // 2])


def test_a_wrong_checksum_is_refused() -> None:
    data = bytearray(PNG)
    data[20] ^= 1

    with pytest.raises(ImageLoadError):
        open_picture(bytes(data))


def test_a_picture_with_something_behind_it_is_the_picture() -> None:
    assert open_picture(PNG + b"PK\x03\x04 <script>").size == (32, 24)


FRAMES = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "green")]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_the_first_frame_counts(format: str) -> None:
    picture = open_picture(image_bytes(FRAMES[0], format, save_all=True, append_images=FRAMES[1:]))

    assert near(picture.getpixel((16, 16)), RED, 6)


def test_no_more_than_the_first_frame_of_an_animation_is_decoded() -> None:
    data = image_bytes(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:])
    second = data.index(b"\x21\xf9", data.index(b"\x2c"))

    assert near(open_picture(data[:second] + b"\x21\xf9" * 1_000_000).getpixel((16, 16)), RED, 6)


def test_no_more_than_the_first_of_many_frames_of_a_png_is_decoded() -> None:
    data = image_bytes(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:])
    frame = _chunk(b"fcTL", struct.pack(">IIIIIHHBB", 1, 32, 32, 0, 0, 1, 1, 0, 0)) + _chunk(b"fdAT", b"broken")
    end = data.index(b"fcTL", data.index(b"IDAT")) - 4

    assert near(open_picture(data[:end] + frame * 10_000 + data[-12:]).getpixel((16, 16)), RED, 6)


def test_no_more_than_the_first_page_of_a_document_is_decoded() -> None:
    data = bytearray(_tiff({}, bytes([255, 0, 0] * 32 * 32)))
    [entries] = struct.unpack_from("<H", data, 8)
    pages = [10 + 12 * entries, len(data)]
    for _ in range(10_000):
        struct.pack_into("<I", data, pages[-2], pages[-1])
        data += struct.pack("<HHHIII", 1, 256, 4, 1, 2**31, 0)
        pages.append(len(data) + 14)
        pages[-2:] = [len(data) - 4, len(data)]

    assert open_picture(bytes(data)).getpixel((16, 16)) == RED


def _to_break(format: str) -> bytes:
    picture = Image.effect_mandelbrot((24, 24), (-2, -1, 1, 1), 9).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    return image_bytes(picture, format, **({} if format in ("GIF", "BMP") else {"exif": exif}))


BROKEN = {format: _to_break(format) for format in FORMATS}
TEXT_TAG = BROKEN["JPEG"].index(b"\x01\x0e\x00\x02") + 1


@given(
    format=st.sampled_from(FORMATS),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=8),
    cut=st.just(0) | st.integers(0, 2000),
)
@example(format="JPEG", changes=[(TEXT_TAG, 0)], cut=0)  # the width, as a text
@example(format="AVIF", changes=[(81, 0)], cut=0)
@settings(max_examples=300, deadline=None, derandomize=True)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_whatever_is_wrong_with_a_file_has_a_name(format: str, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(BROKEN[format])
    for place, value in changes:
        data[place % len(data)] = value
    try:
        picture = open_picture(bytes(data[: max(0, len(data) - cut)]))
    except ServingError:
        return
    assert picture.mode == "RGB"


def test_a_picture_that_turns_into_zeros_is_refused() -> None:
    data = BROKEN["AVIF"]

    with pytest.raises(ImageLoadError):
        open_picture(data[: len(data) // 2] + bytes(len(data) // 2))


# ---------------------------------------------------------------- colours


@pytest.mark.parametrize(("mode", "format"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("PA", "TIFF")])
def test_what_is_transparent_is_white(mode: str, format: str) -> None:
    alpha = Image.new("L", (32, 32), 255)
    alpha.paste(0, (16, 0, 32, 32))
    picture = Image.new("P" if mode == "PA" else "RGB", (32, 32)).convert(mode)
    picture.putalpha(alpha)

    opened = open_picture(image_bytes(picture, format, **({"lossless": True} if format == "WEBP" else {})))
    assert (opened.getpixel((0, 0)), opened.getpixel((31, 31))) == ((0, 0, 0), WHITE)


def test_what_is_half_transparent_is_half_white() -> None:
    opened = open_picture(image_bytes(Image.new("RGBA", (32, 32), (255, 0, 0, 128))))

    assert near(opened.getpixel((0, 0)), (255, 127, 127), 1)


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_is_white(format: str) -> None:
    picture = Image.new("P", (32, 32), 1)
    picture.putpalette([0, 255, 0, 255, 0, 0])
    picture.paste(0, (16, 0, 32, 32))

    opened = open_picture(image_bytes(picture, format, transparency=0))
    assert (opened.getpixel((0, 0)), opened.getpixel((31, 31))) == (RED, WHITE)


@pytest.mark.parametrize(("mode", "transparency"), [("L", 10), ("RGB", (10, 10, 10)), ("1", 0)])
def test_a_transparent_colour_without_a_palette_is_white(mode: str, transparency: object) -> None:
    picture = Image.new("RGB", (32, 32), "white" if mode == "1" else (200, 200, 200))
    picture.paste((0, 0, 0) if mode == "1" else (10, 10, 10), (16, 0, 32, 32))

    opened = open_picture(image_bytes(picture.convert(mode), transparency=transparency))
    assert opened.getpixel((31, 31)) == WHITE
    assert opened.getpixel((0, 0)) == (WHITE if mode == "1" else (200, 200, 200))


def test_sixteen_bits_are_scaled_to_eight() -> None:
    ramp = Image.frombytes("I;16", (256, 32), struct.pack("<256H", *(value * 257 for value in range(256))) * 32)

    opened = open_picture(image_bytes(ramp))
    assert [opened.getpixel((x, 0)) for x in range(256)] == [(x, x, x) for x in range(256)]


def test_a_transparent_colour_of_sixteen_bits_is_white() -> None:
    row = b"\0" + struct.pack(">2H", 0x8000, 0x8001) * 16
    opened = open_picture(_png(32, 32, 16, 0, _chunk(b"tRNS", struct.pack(">H", 0x8001)), rows=row * 32))

    assert (opened.getpixel((0, 0)), opened.getpixel((1, 0))) == ((128, 128, 128), WHITE)


def test_fractions_are_scaled() -> None:
    picture = Image.fromarray(np.tile(np.float32([0, 0.5, 1, 0.25]), (32, 8)))

    opened = open_picture(image_bytes(picture, "TIFF"))
    assert [opened.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 127, 255, 63)]


@pytest.mark.parametrize("opener", [open_picture, open_mask])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param(np.float32([0.5, 12.5]), "from 0.5 to 12.5", id="depth in metres"),
        pytest.param(np.float32([-1, 1]), "from -1.0 to 1.0", id="signed fractions"),
        pytest.param(np.float32([0, np.nan]), "from nan", id="not a number"),
        pytest.param(np.float32([0, np.inf]), "to inf", id="infinity"),
        pytest.param(np.int32([0, 255]), "8 or 16 bits", id="32 bits, as small as 8"),
        pytest.param(np.int32([0, 65535]), "8 or 16 bits", id="32 bits, as large as 16"),
    ],
)
def test_values_of_which_none_is_said_to_be_white_are_refused(
    opener: Callable[[bytes], Image.Image], values: np.ndarray, message: str
) -> None:
    picture = Image.fromarray(np.tile(values, (32, 16)))

    with pytest.raises(ImageLoadError, match=message):
        opener(image_bytes(picture, "TIFF"))


def test_signed_integers_are_refused() -> None:
    signed = {258: 16, 262: 1, 277: 1, 339: 2}

    with pytest.raises(ImageLoadError, match="signed"):
        open_picture(_tiff(signed, struct.pack("<h", 255) * 32 * 32))


def test_premultiplied_transparency_is_over_white_too() -> None:
    premultiplied = {258: (8, 8, 8, 8), 277: 4, 338: 1}

    opened = open_picture(_tiff(premultiplied, bytes([128, 0, 0, 128] * 32 * 32)))
    assert opened.getpixel((0, 0)) == (255, 127, 127)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB"])
def test_white_and_black_stay_white_and_black(mode: str) -> None:
    picture = Image.new("RGB", (32, 32), "white")
    picture.paste((0, 0, 0), (16, 0, 32, 32))

    opened = open_picture(image_bytes(picture.convert(mode)))
    assert (opened.getpixel((0, 0)), opened.getpixel((31, 31))) == (WHITE, (0, 0, 0))


def test_the_inks_of_a_cmyk_picture_become_its_colours() -> None:
    picture = Image.new("CMYK", (32, 32), (0, 255, 255, 0))

    assert near(open_picture(image_bytes(picture, "JPEG", quality=95)).getpixel((0, 0)), RED, 6)


def test_a_lab_picture_becomes_rgb() -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    picture = ImageCms.applyTransform(Image.new("RGB", (32, 32), (200, 100, 50)), to_lab)
    assert picture is not None

    assert near(open_picture(image_bytes(picture, "TIFF")).getpixel((0, 0)), (200, 100, 50), 4)


# ---------------------------------------------------------------- profiles

WHITE_POINT = (0.9642, 1.0, 0.8249)
RED_XYZ, GREEN_XYZ, BLUE_XYZ = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)


def _profile(kind: bytes, colours: bytes, connection: bytes, **tags: bytes) -> bytes:
    table, content = b"", b""
    for name, tag in tags.items():
        table += struct.pack(">4sII", name.encode(), 132 + 12 * len(tags) + len(content), len(tag))
        content += tag + bytes(-len(tag) % 4)
    length = 132 + len(table) + len(content)
    head = (length, 0x02400000, kind, colours, connection, b"acsp", struct.pack(">3i", *_fixed(WHITE_POINT)), len(tags))
    return struct.pack(">I4xI4s4s4s12x4s28x12s48xI", *head) + table + content


def _fixed(numbers: tuple[float, ...]) -> list[int]:
    return [round(number * 65536) for number in numbers]


def _xyz(place: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *_fixed(place))


def _gamma(exponent: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(exponent * 256))


def _rgb_profile(red: tuple[float, ...], green: tuple[float, ...], blue: tuple[float, ...]) -> bytes:
    curves = {name: _gamma(2.2) for name in ("rTRC", "gTRC", "bTRC")}
    places = {"wtpt": _xyz(WHITE_POINT), "rXYZ": _xyz(red), "gXYZ": _xyz(green), "bXYZ": _xyz(blue)}
    return _profile(b"mntr", b"RGB ", b"XYZ ", **places, **curves)


def _cmyk_profile() -> bytes:
    """White paper, black ink, and whatever has cyan in it is Lab (60, 56, 0), a pink."""
    white, black, pink = b"\xff\x80\x80", b"\x00\x80\x80", b"\x99\xb8\x80"
    inks = itertools.product((0, 1), repeat=4)
    nodes = b"".join(black if k else pink if c else white for c, _, _, k in inks)
    matrix = struct.pack(">9i", *_fixed((1, 0, 0, 0, 1, 0, 0, 0, 1)))
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + nodes + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", wtpt=_xyz(WHITE_POINT), A2B0=table)


P3 = _rgb_profile((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
SWAPPED = _rgb_profile(GREEN_XYZ, BLUE_XYZ, RED_XYZ)  # its red is green
LINEAR_GREY = _profile(b"mntr", b"GRAY", b"XYZ ", wtpt=_xyz(WHITE_POINT), kTRC=_gamma(1))
GREEN, PINK = (0, 255, 0), (231, 97, 147)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_a_profile_is_followed(format: str) -> None:
    picture = Image.new("RGB", (32, 32), (200, 100, 50))

    # By hand: ((r, g, b) / 255) ** 2.2 through the primaries of P3, the inverse of sRGB's, and sRGB's curve.
    assert near(open_picture(image_bytes(picture, format, icc_profile=P3)).getpixel((9, 9)), (216, 93, 24), 5)


@pytest.mark.parametrize(
    ("mode", "colour", "profile", "seen"),
    [
        ("RGB", "red", SWAPPED, GREEN),
        ("P", "red", SWAPPED, GREEN),
        ("RGBA", (255, 0, 0, 255), SWAPPED, GREEN),
        ("RGBA", (255, 0, 0, 128), SWAPPED, (127, 255, 127)),
        ("RGBA", (255, 0, 0, 0), SWAPPED, WHITE),
        ("L", 128, LINEAR_GREY, (188, 188, 188)),
        ("LA", (128, 255), LINEAR_GREY, (188, 188, 188)),
        ("LA", (128, 128), LINEAR_GREY, (221, 221, 221)),
        ("I;16", 128 * 256, LINEAR_GREY, (188, 188, 188)),
    ],
)
def test_a_profile_is_followed_whatever_the_mode(
    mode: str, colour: Any, profile: bytes, seen: tuple[int, int, int]
) -> None:
    picture = Image.new("RGB", (32, 32), colour).convert("P") if mode == "P" else Image.new(mode, (32, 32), colour)

    assert near(open_picture(image_bytes(picture, icc_profile=profile)).getpixel((9, 9)), seen, 1)


@pytest.mark.parametrize(("profile", "seen"), [(None, (0, 255, 255)), (_cmyk_profile(), PINK)])
@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_inks_are_read_with_and_without_a_profile(
    format: str, profile: bytes | None, seen: tuple[int, int, int]
) -> None:
    picture = Image.new("CMYK", (32, 32), (255, 0, 0, 0))

    assert near(open_picture(image_bytes(picture, format, icc_profile=profile)).getpixel((9, 9)), seen, 4)


@pytest.mark.parametrize(
    "profile", [b"x", b"broken" * 100, P3[:200], LINEAR_GREY, _cmyk_profile(), P3[:4] + bytes(len(P3) - 4)]
)
def test_a_profile_that_does_not_fit_is_ignored(profile: bytes) -> None:
    picture = Image.new("RGB", (32, 32), (200, 100, 50))

    assert open_picture(image_bytes(picture, icc_profile=profile)).getpixel((9, 9)) == (200, 100, 50)


def test_a_profile_that_is_no_bytes_is_ignored() -> None:
    assert open_picture(_tiff({34675: 5}, bytes([255, 0, 0] * 32 * 32))).getpixel((9, 9)) == RED


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_profile_of_other_colours_is_ignored(mode: str) -> None:
    picture = Image.new("RGB", (32, 32), (90, 90, 90)).convert(mode)

    assert open_picture(image_bytes(picture, "TIFF", icc_profile=SWAPPED)).getpixel((9, 9)) == (90, 90, 90)


# ---------------------------------------------------------------- upright

STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED_AS)
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_a_picture_stands_upright(orientation: int, format: str) -> None:
    upright = Image.new("RGB", (40, 20), "green")
    upright.paste((255, 0, 0), (0, 0, 20, 10))
    turn = STORED_AS[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation

    stored = upright if turn is None else upright.transpose(turn)
    opened = open_picture(image_bytes(stored, format, exif=exif))
    assert (opened.size, opened.tobytes()) == (upright.size, upright.tobytes())


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_means_nothing_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation

    assert open_picture(image_bytes(exif=exif)).size == (32, 24)


def test_a_picture_with_a_broken_exif_tag_is_read_and_turned() -> None:
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack(
        "<HHI4s", 0x011A, 2, 4, b"abc\0"
    )  # text as resolution
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)

    assert open_picture(buffer.getvalue()).size == (20, 40)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0nonsense" * 9, b"Exif\0\0II*\0\xff\xff\xff\xff", b"nonsense"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_picture_with_broken_exif_data_is_read(format: str, exif: bytes) -> None:
    assert open_picture(image_bytes(format=format, exif=exif)).size == (32, 24)


STORED: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "1": ("PNG", lambda picture: picture.convert("1")),
    "L": ("PNG", lambda picture: picture.convert("L")),
    "LA": ("PNG", lambda picture: picture.convert("LA")),
    "I;16": ("PNG", lambda picture: Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)),
    "I;16B": ("TIFF", lambda picture: Image.fromarray(np.asarray(picture.convert("L")).astype(">u2") * 257)),
    "F": ("TIFF", lambda picture: Image.fromarray(np.asarray(picture.convert("L")).astype(np.float32) / 255)),
    "P": ("PNG", lambda picture: picture.convert("P", palette=Image.Palette.ADAPTIVE)),
    "PA": ("TIFF", lambda picture: picture.convert("P", palette=Image.Palette.ADAPTIVE).convert("PA")),
    "RGB": ("PNG", lambda picture: picture),
    "RGBA": ("WEBP", lambda picture: picture.convert("RGBA")),
    "YCbCr": ("TIFF", lambda picture: picture.convert("YCbCr")),
    "CMYK": ("TIFF", lambda picture: picture.convert("CMYK")),
    "LAB": ("TIFF", lambda picture: _to_lab(picture)),
}


def _to_lab(picture: Image.Image) -> Image.Image:
    lab = ImageCms.profileToProfile(
        picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    return lab


@given(
    mode=st.sampled_from(sorted(STORED)),
    orientation=st.sampled_from(sorted(STORED_AS)),
    size=st.tuples(st.integers(MIN_SIDE, 90), st.integers(MIN_SIDE, 90)),
    colour=st.tuples(*[st.integers(0, 255)] * 3),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_picture_is_upright_and_of_its_colours(
    mode: str, orientation: int, size: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    if mode in ("1", "L", "LA", "I;16", "I;16B", "F"):
        level = 255 if mode == "1" else colour[0]
        colour = (level, level, level)
    upright = Image.new("RGB", size, "black")
    corner = (0, 0, size[0] // 2, size[1] // 2)
    upright.paste(colour, corner)
    exif = Image.Exif()
    exif[0x0112] = orientation
    format, store = STORED[mode]
    turn = STORED_AS[orientation]
    stored = store(upright if turn is None else upright.transpose(turn))

    options = {"lossless": True} if format == "WEBP" else {}
    opened = open_picture(image_bytes(stored, format, exif=exif, **options))
    assert (opened.mode, opened.size) == ("RGB", size)
    difference = np.abs(np.asarray(opened).astype(int) - np.asarray(upright))
    assert difference.max() <= (6 if mode in ("LAB", "YCbCr") else 1)


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", [(1, 1), (MIN_SIDE - 1, 100), (100, MIN_SIDE - 1), (10_000, 1)])
def test_a_picture_may_be_too_small(size: tuple[int, int]) -> None:
    with pytest.raises(ImageTooSmall) as caught:
        open_picture(image_bytes(Image.new("L", size)))

    [detail] = caught.value.body()["detail"]
    assert (detail["type"], detail["ctx"]) == ("image_too_small", {"min_width": MIN_SIDE, "min_height": MIN_SIDE})
    assert f"{size[0]}x{size[1]}" in detail["msg"]


def test_the_smallest_picture_is_read() -> None:
    assert open_picture(image_bytes(Image.new("L", (MIN_SIDE, MIN_SIDE)))).size == (MIN_SIDE, MIN_SIDE)


@pytest.mark.parametrize("side", [8001, 10_000, 30_000, 2**31 - 1])
def test_a_picture_may_be_too_large_by_its_header_alone(side: int) -> None:
    with pytest.raises(ImageTooLarge) as caught:
        open_picture(_png(side, side, 8, 2))
    [detail] = caught.value.body()["detail"]
    assert (detail["type"], detail["ctx"]) == ("image_too_large", {"max_width": 8000, "max_height": 8000})


@pytest.mark.parametrize("size", [(16, MAX_SIDE + 1), (MAX_SIDE + 1, 16), (16, 4_000_000)])
@pytest.mark.parametrize("opener", [open_picture, open_mask])
def test_a_picture_may_be_too_long(opener: Callable[[bytes], Image.Image], size: tuple[int, int]) -> None:
    with pytest.raises(ImageTooLarge) as caught:
        opener(_png(*size, 8, 0))

    [detail] = caught.value.body()["detail"]
    assert detail["ctx"] == {"max_width": MAX_SIDE, "max_height": MAX_SIDE}
    assert f"{size[0]}x{size[1]}" in detail["msg"]


@pytest.mark.parametrize("size", [(16, MAX_SIDE), (MAX_SIDE, 16)])
def test_the_longest_picture_is_read(size: tuple[int, int]) -> None:
    assert open_picture(image_bytes(Image.new("L", size))).size == size


@pytest.mark.parametrize("format", ["GIF", "WEBP", "BMP", "TIFF"])
def test_a_picture_of_any_format_may_be_too_large_by_its_header_alone(format: str) -> None:
    canvas = struct.pack("<I", 2) + (16_382).to_bytes(3, "little") * 2
    data = {
        "GIF": b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(6) + b"\x2c" + bytes(9) + b"\x02",
        "WEBP": _webp(VP8X=canvas, ANIM=bytes(6), ANMF=bytes(6) + b"\x1f\0\0" * 2 + bytes(4) + _webp_frame()),
        "BMP": b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "TIFF": _tiff({256: 30_000, 257: 30_000}, b""),
    }[format]

    with pytest.raises(ImageTooLarge):
        open_picture(data)


def _webp(**chunks: bytes) -> bytes:
    content = b"".join(name.encode() + struct.pack("<I", len(chunk)) + chunk for name, chunk in chunks.items())
    return b"RIFF" + struct.pack("<I", 4 + len(content)) + b"WEBP" + content


def _webp_frame() -> bytes:
    return image_bytes(Image.new("RGB", (32, 32)), "WEBP", lossless=True)[12:]


def test_a_tile_may_be_too_large() -> None:
    """Tiles are decoded whole: this one of 1 MB would take a gigabyte."""
    tiled = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 32_768, 323: 32_768, 324: 0, 325: 10}

    with pytest.raises(ImageTooLarge):
        open_picture(_tiff(tiled, b""))


def test_a_jpeg_of_countless_scans_is_refused() -> None:
    data = image_bytes(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]

    assert open_picture(data[:-2] + scan + b"\xff\xd9").size == (4000, 4000)
    with pytest.raises(ImageLoadError):
        open_picture(data[:-2] + scan * 100_000 + b"\xff\xd9")


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_bomb_beside_the_pixels_is_refused(kind: bytes) -> None:
    bomb = _chunk(kind, b"k\0\0" + zlib.compress(bytes(64 * 2**20)))

    with pytest.raises(ImageLoadError):
        open_picture(PNG[:33] + bomb + PNG[33:])


# ---------------------------------------------------------------- fit

SIZES = (Size(112, 64), Size(64, 112), Size(80, 80))


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ((1920, 1080), Size(112, 64)),
        ((1080, 1920), Size(64, 112)),
        ((500, 500), Size(80, 80)),
        ((400, 300), Size(112, 64)),
        ((300, 400), Size(64, 112)),
        ((130, 100), Size(80, 80)),
        ((3000, 20), Size(112, 64)),
        ((20, 3000), Size(64, 112)),
        ((16, 16), Size(80, 80)),
    ],
)
def test_a_picture_takes_the_size_nearest_to_its_shape(size: tuple[int, int], nearest: Size) -> None:
    fitted = fit(Image.new("RGB", size), SIZES)

    assert fitted.size == (nearest.width, nearest.height)


def test_a_picture_of_the_right_size_stays_as_it_is() -> None:
    picture = Image.frombytes("RGB", (80, 80), random.Random(0).randbytes(80 * 80 * 3))

    assert fit(picture, SIZES).tobytes() == picture.tobytes()


@pytest.mark.parametrize(("size", "box"), [((300, 100), (100, 0, 200, 100)), ((100, 300), (0, 100, 100, 200))])
def test_the_middle_of_a_picture_is_kept(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    picture = Image.new("RGB", size, "red")
    picture.paste((0, 0, 255), box)

    fitted = fit(picture, [Size(80, 80)])
    middle = fitted.crop((2, 2, 78, 78))
    assert middle.getcolors() == [(76 * 76, (0, 0, 255))]


def test_a_fitted_picture_is_not_stretched() -> None:
    disc = Image.open(io.BytesIO(image_bytes(Image.radial_gradient("L").resize((300, 300)).convert("RGB"))))
    wide = Image.new("RGB", (600, 300), "white")
    wide.paste(disc, (150, 0))

    fitted = fit(wide, [Size(100, 100)])
    assert near(fitted.getpixel((2, 50)), fitted.getpixel((50, 2)), 4)  # type: ignore[arg-type]


# ---------------------------------------------------------------- masks

WHITE_PAINT, BLACK_PAINT, NOTHING = (255, 255, 255, 255), (0, 0, 0, 255), (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("left", "right", "stays"),
    [
        pytest.param("white", "black", (True, False), id="white and black"),
        pytest.param("white", "white", (True, True), id="all white"),
        pytest.param("black", "black", (False, False), id="all black"),
        pytest.param((128, 128, 128), (127, 127, 127), (True, False), id="just bright and just dark"),
        pytest.param("yellow", "blue", (True, False), id="a bright and a dark colour"),
        pytest.param(WHITE_PAINT, NOTHING, (True, False), id="white paint on nothing"),
        pytest.param(WHITE_PAINT, (255, 255, 255, 0), (True, False), id="white paint on transparent white"),
        pytest.param(BLACK_PAINT, NOTHING, (False, True), id="black paint on nothing"),
        pytest.param(NOTHING, NOTHING, (True, True), id="nothing"),
        pytest.param(WHITE_PAINT, BLACK_PAINT, (True, False), id="paint everywhere"),
        pytest.param((255, 255, 255, 100), NOTHING, (True, True), id="a breath of white on nothing"),
        pytest.param((255, 255, 255, 200), NOTHING, (True, False), id="thin white paint on nothing"),
        pytest.param((255, 255, 255, 100), (255, 255, 255, 1), (True, True), id="thin white everywhere"),
        pytest.param((0, 0, 0, 200), NOTHING, (False, True), id="thin black paint on nothing"),
        pytest.param((128, 128, 128, 255), NOTHING, (True, False), id="just bright paint on nothing"),
        pytest.param((127, 127, 127, 255), NOTHING, (False, True), id="just dark paint on nothing"),
    ],
)
def test_white_stays_and_black_moves(left: Any, right: Any, stays: tuple[bool, bool]) -> None:
    mode = "RGBA" if isinstance(left, tuple) and len(left) == 4 else "RGB"
    picture = Image.new(mode, (32, 32), right)
    picture.paste(left, (0, 0, 16, 32))

    mask = open_mask(image_bytes(picture))
    assert (mask.mode, mask.size) == ("L", (32, 32))
    still = fit_mask(mask, Size(32, 32), Size(32, 32))
    assert (still.dtype, still.shape) == (np.bool_, (32, 32))
    assert (bool(still[:, :12].all()), bool(still[:, 20:].all())) == stays
    assert (bool(still[:, :12].any()), bool(still[:, 20:].any())) == stays


def _white_disc() -> Image.Image:
    """White paint on 18 % of nothing."""
    disc = Image.new("RGBA", (256, 144), NOTHING)
    ImageDraw.Draw(disc).ellipse((82, 26, 174, 118), fill=WHITE_PAINT)
    return disc


def _share_that_stays(data: bytes) -> float:
    return float(fit_mask(open_mask(data), Size(256, 144), Size(256, 144)).mean())


@pytest.mark.parametrize("blur", [0, 2, 8])
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("AVIF", {"quality": 75}),
        ("AVIF", {"quality": 5}),
        ("WEBP", {"quality": 30, "alpha_quality": 20}),
    ],
)
def test_white_paint_may_be_soft_and_its_file_lossy(format: str, options: dict[str, int], blur: int) -> None:
    soft = _white_disc().filter(ImageFilter.GaussianBlur(blur))

    assert _share_that_stays(image_bytes(soft, format, **options)) == pytest.approx(0.18, abs=0.04)


@pytest.mark.parametrize("place", [(128, 72), (2, 2)])
@pytest.mark.parametrize("speck", [BLACK_PAINT, (0, 0, 0, 100)])
def test_a_dark_speck_does_not_change_what_white_paint_means(place: tuple[int, int], speck: tuple[int, ...]) -> None:
    disc = _white_disc()
    disc.putpixel(place, speck)

    assert _share_that_stays(image_bytes(disc)) == pytest.approx(0.18, abs=0.01)


@pytest.mark.parametrize(("rows", "stays"), [(7, True), (8, False)])
def test_a_thousandth_of_a_mask_is_see_through_on_purpose(rows: int, stays: bool) -> None:
    picture = Image.new("RGBA", (80, 100), WHITE_PAINT)
    picture.paste(NOTHING, (0, 0, 1, rows))

    assert (open_mask(image_bytes(picture)).getpixel((0, 0)) == 255) == stays


@pytest.mark.parametrize(("dark", "stays"), [(24, False), (25, False), (26, True)])
def test_three_quarters_of_white_paint_are_bright(dark: int, stays: bool) -> None:
    picture = Image.new("RGBA", (200, 20), NOTHING)
    picture.paste(WHITE_PAINT, (0, 0, 100, 20))
    picture.paste(BLACK_PAINT, (0, 0, dark, 20))

    assert (open_mask(image_bytes(picture)).getpixel((199, 0)) == 255) == stays


def test_white_and_black_paint_on_nothing_is_over_white() -> None:
    picture = Image.new("RGBA", (32, 32), NOTHING)
    picture.paste(WHITE_PAINT, (0, 0, 8, 32))
    picture.paste(BLACK_PAINT, (8, 0, 16, 32))

    mask = open_mask(image_bytes(picture))
    assert [mask.getpixel((x, 0)) for x in (4, 12, 24)] == [255, 0, 255]


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_mask_may_be_a_palette_with_a_transparent_colour(format: str) -> None:
    picture = Image.new("P", (32, 32), 1)
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.paste(0, (16, 0, 32, 32))

    mask = open_mask(image_bytes(picture, format, transparency=0))
    assert (mask.getpixel((0, 0)), mask.getpixel((31, 31))) == (255, 0)


def test_a_mask_stands_upright() -> None:
    stored = Image.new("L", (40, 20))
    stored.paste(255, (0, 0, 40, 10))
    exif = Image.Exif()
    exif[0x0112] = 6

    mask = open_mask(image_bytes(stored, exif=exif))
    assert (mask.size, mask.getpixel((2, 20)), mask.getpixel((17, 20))) == ((20, 40), 0, 255)


def test_a_mask_may_be_as_small_as_a_pixel_but_not_as_large_as_anything() -> None:
    assert open_mask(image_bytes(Image.new("L", (1, 1), 255))).size == (1, 1)
    with pytest.raises(ImageTooLarge):
        open_mask(_png(8001, 8000, 8, 0))


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    clip=st.sampled_from([Size(64, 64), Size(112, 64), Size(64, 112)]),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_mask_is_cropped_as_its_picture_is(size: tuple[int, int], clip: Size, seed: int) -> None:
    noise = random.Random(seed).choices([0, 255], k=size[0] * size[1])
    mask = Image.frombytes("L", size, bytes(noise))

    brightness = np.asarray(fit(mask.convert("RGB"), [clip]))[:, :, 0]
    assert (fit_mask(mask, Size(*size), clip) == (brightness >= 128)).all()


@pytest.mark.parametrize("size", [(2, 1), (2, 7), (60, 20), (300, 100), (1000, 1000)])
def test_a_mask_of_another_size_is_stretched_over_its_picture(size: tuple[int, int]) -> None:
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))

    still = fit_mask(mask, Size(300, 100), Size(80, 80))
    assert still[:, :39].all()
    assert not still[:, 41:].any()


@pytest.mark.parametrize("size", [(300, 100), (30, 30), (60, 500)])
def test_what_a_crop_cuts_off_of_a_mask_is_gone(size: tuple[int, int]) -> None:
    mask = Image.new("L", size, 255)
    mask.paste(0, (size[0] // 3, 0, size[0] * 2 // 3, size[1]))

    assert not fit_mask(mask, Size(300, 100), Size(80, 80))[2:78, 2:78].any()
