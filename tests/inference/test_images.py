from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from deployments.errors import (
    ImageLoadError,
    ImageTooLarge,
    ImageTooSmall,
    ModelError,
    ServingError,
    UnsupportedImageFormat,
)
from deployments.inference.images import MAX_SIDE, MIN_SIDE, open_mask, open_picture
from tests.inference.hostile import (
    FOREIGN,
    FORMATS,
    LINEAR_GREY,
    NO_PICTURE,
    P3,
    STORED,
    STORED_AS,
    SVG,
    SWAPPED,
    animated_png,
    animation,
    bomb_beside_the_pixels,
    chunk,
    cmyk_profile,
    countless_scans,
    gif_bomb,
    halved,
    image_bytes,
    large_by_its_header,
    many_pages,
    png,
    tiff,
    tile_bomb,
    wrong_checksum,
)

PNG = image_bytes()
RED, WHITE = (255, 0, 0), (255, 255, 255)


def near(pixel: object, colour: tuple[int, int, int], tolerance: int) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_read(format: str) -> None:
    picture = open_picture(image_bytes(format=format))

    assert (picture.mode, picture.size) == ("RGB", (32, 24))
    assert near(picture.getpixel((16, 12)), RED, 6)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_format_is_told_so(name: str) -> None:
    with pytest.raises(UnsupportedImageFormat, match="PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF") as caught:
        open_picture(FOREIGN[name])

    [detail] = caught.value.body()["detail"]
    assert detail["type"] == "unsupported_image_format"
    assert {".png", ".jpg", ".webp", ".gif", ".bmp", ".tif", ".avif"} <= set(detail["ctx"]["supported_formats"])


@pytest.mark.parametrize("name", NO_PICTURE)
def test_what_is_no_picture_is_refused(name: str) -> None:
    with pytest.raises(ImageLoadError, match="PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF"):
        open_picture(NO_PICTURE[name])


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
    with pytest.raises(ImageLoadError):
        open_picture(halved(format))


def test_a_wrong_checksum_is_refused() -> None:
    with pytest.raises(ImageLoadError):
        open_picture(wrong_checksum())


def test_a_picture_with_something_behind_it_is_the_picture() -> None:
    assert open_picture(PNG + b"PK\x03\x04 <script>").size == (32, 24)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_the_first_frame_counts(format: str) -> None:
    assert near(open_picture(animation(format)).getpixel((16, 16)), RED, 6)


@pytest.mark.parametrize("many", [gif_bomb, animated_png, many_pages])
def test_no_more_than_the_first_frame_of_an_animation_is_decoded(many: Callable[[], bytes]) -> None:
    """The others are broken, or immense."""
    assert near(open_picture(many()).getpixel((16, 16)), RED, 6)


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
    opened = open_picture(png(32, 32, 16, 0, chunk(b"tRNS", struct.pack(">H", 0x8001)), rows=row * 32))

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
        open_picture(tiff(signed, struct.pack("<h", 255) * 32 * 32))


def test_premultiplied_transparency_is_over_white_too() -> None:
    premultiplied = {258: (8, 8, 8, 8), 277: 4, 338: 1}

    opened = open_picture(tiff(premultiplied, bytes([128, 0, 0, 128] * 32 * 32)))
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


@pytest.mark.parametrize(("profile", "seen"), [(None, (0, 255, 255)), (cmyk_profile(), PINK)])
@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_inks_are_read_with_and_without_a_profile(
    format: str, profile: bytes | None, seen: tuple[int, int, int]
) -> None:
    picture = Image.new("CMYK", (32, 32), (255, 0, 0, 0))

    assert near(open_picture(image_bytes(picture, format, icc_profile=profile)).getpixel((9, 9)), seen, 4)


@pytest.mark.parametrize(
    "profile", [b"x", b"broken" * 100, P3[:200], LINEAR_GREY, cmyk_profile(), P3[:4] + bytes(len(P3) - 4)]
)
def test_a_profile_that_does_not_fit_is_ignored(profile: bytes) -> None:
    picture = Image.new("RGB", (32, 32), (200, 100, 50))

    assert open_picture(image_bytes(picture, icc_profile=profile)).getpixel((9, 9)) == (200, 100, 50)


def test_a_profile_that_is_no_bytes_is_ignored() -> None:
    assert open_picture(tiff({34675: 5}, bytes([255, 0, 0] * 32 * 32))).getpixel((9, 9)) == RED


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_profile_of_other_colours_is_ignored(mode: str) -> None:
    picture = Image.new("RGB", (32, 32), (90, 90, 90)).convert(mode)

    assert open_picture(image_bytes(picture, "TIFF", icc_profile=SWAPPED)).getpixel((9, 9)) == (90, 90, 90)


# ---------------------------------------------------------------- upright


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
        open_picture(png(side, side, 8, 2))
    [detail] = caught.value.body()["detail"]
    assert (detail["type"], detail["ctx"]) == ("image_too_large", {"max_width": 8000, "max_height": 8000})


@pytest.mark.parametrize("size", [(16, MAX_SIDE + 1), (MAX_SIDE + 1, 16), (16, 4_000_000)])
@pytest.mark.parametrize("opener", [open_picture, open_mask])
def test_a_picture_may_be_too_long(opener: Callable[[bytes], Image.Image], size: tuple[int, int]) -> None:
    with pytest.raises(ImageTooLarge) as caught:
        opener(png(*size, 8, 0))

    [detail] = caught.value.body()["detail"]
    assert detail["ctx"] == {"max_width": MAX_SIDE, "max_height": MAX_SIDE}
    assert f"{size[0]}x{size[1]}" in detail["msg"]


@pytest.mark.parametrize("size", [(16, MAX_SIDE), (MAX_SIDE, 16)])
def test_the_longest_picture_is_read(size: tuple[int, int]) -> None:
    assert open_picture(image_bytes(Image.new("L", size))).size == size


@pytest.mark.parametrize("format", ["GIF", "WEBP", "BMP", "TIFF"])
def test_a_picture_of_any_format_may_be_too_large_by_its_header_alone(format: str) -> None:
    with pytest.raises(ImageTooLarge):
        open_picture(large_by_its_header(format))


def test_a_tile_may_be_too_large() -> None:
    """Tiles are decoded whole: this one of 1 MB would take a gigabyte."""
    with pytest.raises(ImageTooLarge):
        open_picture(tile_bomb())


def test_a_jpeg_of_countless_scans_is_refused() -> None:
    assert open_picture(countless_scans(1)).size == (4000, 4000)
    with pytest.raises(ImageLoadError, match="scans"):
        open_picture(countless_scans())


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_bomb_beside_the_pixels_is_refused(kind: bytes) -> None:
    with pytest.raises(ImageLoadError):
        open_picture(bomb_beside_the_pixels(kind))
