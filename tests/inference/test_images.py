from __future__ import annotations

import io
import random
import struct
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from deployments.errors import (
    ImageLoadError,
    ImageTooLarge,
    ImageTooSmall,
    ServingError,
)
from deployments.inference.images import MIN_SIDE, fit, open_picture
from deployments.models.base import Size
from tests.inference.conftest import image_bytes

PNG = image_bytes()
RED, WHITE = (255, 0, 0), (255, 255, 255)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def near(pixel: object, colour: tuple[int, int, int], tolerance: int) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_read(format: str) -> None:
    picture = open_picture(image_bytes(format=format))

    assert (picture.mode, picture.size) == ("RGB", (32, 24))
    assert near(picture.getpixel((16, 12)), RED, 6)


@pytest.mark.parametrize("format", ["PPM", "ICO", "TGA", "PDF", "EPS", "PCX", "SGI", "DDS", "ICNS"])
def test_another_format_is_refused(format: str) -> None:
    with pytest.raises(ImageLoadError, match="PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF"):
        open_picture(image_bytes(format=format))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        b"%PDF-1.7",
        b"8BPS\0\1",
        b"GIF89a",
        PNG[:8],
        b"\xff\xd8\xff",
    ],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ImageLoadError):
        open_picture(data)


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


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_frame_counts(format: str) -> None:
    first, second = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")

    picture = open_picture(image_bytes(first, format, save_all=True, append_images=[second]))
    assert near(picture.getpixel((16, 16)), RED, 6)


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


def test_a_transparent_colour_of_sixteen_bits_is_no_obstacle() -> None:
    grey = Image.frombytes("I;16", (32, 32), struct.pack("<H", 128 * 257) * 32 * 32)
    data = image_bytes(grey)
    transparency = _chunk(b"tRNS", struct.pack(">H", 65535))

    opened = open_picture(data[:33] + transparency + data[33:])
    assert opened.getpixel((0, 0)) == (128, 128, 128)


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


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("side", [8001, 10_000, 30_000, 2**31 - 1])
def test_a_picture_may_be_too_large_by_its_header_alone(side: int) -> None:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = PNG[:8] + header + _chunk(b"IDAT", zlib.compress(b"")) + _chunk(b"IEND", b"")

    with pytest.raises(ImageTooLarge) as caught:
        open_picture(bomb)
    [detail] = caught.value.body()["detail"]
    assert (detail["type"], detail["ctx"]) == ("image_too_large", {"max_width": 8000, "max_height": 8000})


def test_a_text_bomb_in_a_picture_is_refused() -> None:
    text = _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(64 * 2**20)))

    with pytest.raises(ImageLoadError):
        open_picture(PNG[:33] + text + PNG[33:])


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


def test_a_picture_with_a_broken_exif_tag_is_read_and_turned() -> None:
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack(
        "<HHI4s", 0x011A, 2, 4, b"abc\0"
    )  # text as resolution
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)

    assert open_picture(buffer.getvalue()).size == (20, 40)
