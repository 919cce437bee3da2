"""Pictures in: the bytes of a file become RGB pixels of a clip's size, or an error that names what is wrong with them.

bytes ──▶ open_picture (upright, RGB) ──▶ fit (cropped and scaled) ──▶ the first frame of a clip
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageOps
from PIL.ExifTags import Base

from deployments.errors import ImageLoadError, ImageTooLarge, ImageTooSmall, Loc, ServingError
from deployments.models.base import Size

MAX_BYTES = 20 * 1024 * 1024
MAX_PIXELS = 64_000_000
MIN_SIDE = 16
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
LOC = ("body", "image_url")

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns each orientation of the Exif standard upright. Pillow's own helper fails on files with a broken tag."""

Image.MAX_IMAGE_PIXELS = None  # Pillow's limit; ours is checked on the header, and names itself


def open_picture(data: bytes, loc: Loc = LOC) -> Image.Image:
    """Decode a picture: first frame, upright, RGB, transparency over white.

    Raises:
        ImageLoadError: The bytes are no picture of a format in ``FORMATS``, or a broken one.
        ImageTooSmall: A side has fewer than ``MIN_SIDE`` pixels.
        ImageTooLarge: It has more than ``MAX_PIXELS`` pixels; it was not decoded.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(picture.width, picture.height, loc)
        picture.load()  # TIFF turns itself upright here, and forgets that it was turned
        orientation = picture.getexif().get(Base.Orientation)
        return _to_rgb(picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture)
    except ServingError:
        raise
    except Exception as error:  # a decoder may raise anything at all on broken bytes
        raise ImageLoadError(f"The file is no picture that can be read ({', '.join(FORMATS)})", loc) from error


def fit(picture: Image.Image, sizes: Sequence[Size]) -> Image.Image:
    """Crop the middle of a picture to the nearest of ``sizes`` by aspect ratio, and scale it to that size."""
    ratio = picture.width / picture.height
    size = min(sizes, key=lambda size: max(size.width / size.height / ratio, ratio * size.height / size.width))
    return ImageOps.fit(picture, (size.width, size.height), Image.Resampling.LANCZOS)


def _check_size(width: int, height: int, loc: Loc) -> None:
    if min(width, height) < MIN_SIDE:
        limits = {"min_width": MIN_SIDE, "min_height": MIN_SIDE}
        raise ImageTooSmall(f"The picture is {width}x{height}; each side needs {MIN_SIDE} pixels", loc, limits)
    if width * height > MAX_PIXELS:
        side = int(MAX_PIXELS**0.5)
        raise ImageTooLarge(
            f"The picture is {width}x{height}; at most {MAX_PIXELS} pixels are read",
            loc,
            {"max_width": side, "max_height": side},
        )


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits a pixel: Pillow would clip instead of scaling
        picture = picture.convert("I").point(lambda value: value / 256).convert("L")
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA"):
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")
