"""A picture is cropped to a clip's size, and its mask with it."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from deployments.errors import ImageTooLarge
from deployments.inference.images import fit, fit_mask, open_mask
from deployments.models.base import Size
from tests.inference.hostile import image_bytes, png


def near(pixel: object, colour: tuple[int, int, int], tolerance: int) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


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
        open_mask(png(8001, 8000, 8, 0))


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
