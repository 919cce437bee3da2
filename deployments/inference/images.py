"""Pictures in: the bytes of a file become pixels of a clip's size, or an error that names what is wrong with them.

    bytes ──▶ open_picture (upright, sRGB, over white) ──▶ fit (cropped, scaled) ──▶ the first frame of a clip
    bytes ──▶ open_mask    (upright, white stays)      ──▶ fit_mask (likewise)   ──▶ True where a pixel stays

Only the decoders of ``FORMATS`` ever see the bytes. They decode the first frame, once its size has been read from the
header. Any other file is recognised by how it begins, and refused.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageCms, ImageOps
from PIL.ExifTags import Base

from deployments.errors import ImageLoadError, ImageTooLarge, ImageTooSmall, ServingError, UnsupportedImageFormat
from deployments.models.size import Size

MAX_BYTES = 20 * 1024 * 1024
MAX_PIXELS = 64_000_000
MAX_SIDE = 16_384
"""Of a picture and a mask. To decode, and to stretch, a line of a million pixels takes far more than its pixels do."""

MIN_SIDE = 16
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
EXTENSIONS = [".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"]
STAYS = 128
"""A mask's pixel stays from this brightness on. It is opaque, and not see-through, from as much alpha on."""

SEE_THROUGH = 1 / 1000
"""The share of a mask that is see-through on purpose. Less, as noise or a mask's round corners have it, is a spot of 24
pixels in a clip of 1024x576: no more than the sampler blends over, 12 pixels from each side."""

BRIGHT = 3 / 4
"""The share of a mask's opaque part that makes it white paint. Soft paint in a lossy file may be dark on a sixth of
it, along the edge. A mask with more dark paint than that says in white and in black what it means."""

MAX_SCANNED_PIXELS = 10_000_000_000
"""Pixels times scans, of a picture or of all in an archive. A JPEG's scan takes some bytes, and as long as the whole
picture: 20 MB hold hours of them. It is enough for 25 grey maps of 64 million pixels in six scans each, as they are
saved."""

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

FOREIGN = {
    "an SVG drawing": rb"(\xef\xbb\xbf)?\s*(<[?!][^<]*)*<(\w+:)?svg[\s/>]",
    "a PDF document": rb"%PDF-",
    "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "a Photoshop file": rb"8BP[SB]",
    "a HEIC picture": rb".{4}ftyp(hei|hev|mif1|msf1)",
    "a JPEG 2000 picture": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "a JPEG XL picture": rb"\0\0\0\x0cJXL |\xff\x0a",
    "a DICOM picture": rb".{128}DICM",
    "a FITS picture": rb"SIMPLE  =",
    "a Windows metafile": rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF|\x01\0\x09\0\0[\x01\x03]",
    "an icon": rb"\0\0[\x01\x02]\0[^\0]|icns",
    "an OpenEXR picture": rb"v/1\x01",
    "a Netpbm picture": rb"P[1-7fF]\s",
    "a video": rb".{4}ftyp(?!avi[fs])|\x1a\x45\xdf\xa3|RIFF.{4}AVI ",
}
"""Files that people take for pictures and that we do not read, by how they begin."""

BEGINNING = 4096
"""Bytes of a file that may tell its kind. An SVG drawing has comments and a document type before its first tag."""

Image.MAX_IMAGE_PIXELS = None  # Pillow's limit; ours is checked on the header, and names itself


class Budget:
    """How many pixels times scans may still be decoded."""

    def __init__(self) -> None:
        """Nothing has been decoded yet."""
        self._left = MAX_SCANNED_PIXELS

    def spend(self, picture: Image.Image, data: bytes) -> None:
        """Take off what a picture, whose header has been read, will take.

        Raises:
            ImageLoadError: It is more than is left.
        """
        scans = data.count(b"\xff\xda") if picture.format in ("JPEG", "MPO") else 1
        self._left -= picture.width * picture.height * scans
        if self._left < 0:
            raise ImageLoadError(f"At most {MAX_SCANNED_PIXELS} pixels times scans are read, of an archive in all")


def open_picture(data: bytes, budget: Budget | None = None) -> Image.Image:
    """Decode a picture: first frame, upright, sRGB, transparency over white.

    White is 65535 where values have 16 bits, and 1 where they are fractions. Fractions beyond 0 and 1, and integers
    that are signed or have 32 bits, are refused: nothing says which of them is white, and a guess would differ from one
    depth map of a clip to the next.

    Args:
        data: A file.
        budget: What it shares with other pictures; one of its own otherwise.

    Raises:
        ImageLoadError: The bytes are no picture, a broken one, one without a white, or one of too many scans.
        UnsupportedImageFormat: They are a file of a format that is not in ``FORMATS``.
        ImageTooSmall: A side has fewer than ``MIN_SIDE`` pixels.
        ImageTooLarge: It has more than ``MAX_PIXELS`` pixels, or a side more than ``MAX_SIDE``; it was not decoded.
    """
    return _over(_decode(data, MIN_SIDE, budget or Budget()), "white")


def open_mask(data: bytes) -> Image.Image:
    """Decode a mask: the brightness of a picture, where black moves and white stays.

    It is read as a picture is, over white, with one exception: white paint on nothing. A mask is that if at least
    ``SEE_THROUGH`` of it has less alpha than ``STAYS``, and at least ``BRIGHT`` of the rest is as bright as ``STAYS``.
    It is put over black, so that what was painted stays and what can be seen through moves. Black paint on nothing
    moves, and all around it stays, over white too. A mask without any opaque paint is white: everything stays.

    Raises:
        ImageLoadError: The bytes are no picture, a broken one, one without a white, or one of too many scans.
        UnsupportedImageFormat: They are a file of a format that is not in ``FORMATS``.
        ImageTooLarge: It has more than ``MAX_PIXELS`` pixels, or a side more than ``MAX_SIDE``; it was not decoded.
    """
    mask = _decode(data, 1, Budget())
    return _over(mask, "black" if _is_white_paint(mask) else "white").convert("L")


def fit(picture: Image.Image, sizes: Sequence[Size]) -> Image.Image:
    """Crop the middle of a picture to the nearest of ``sizes`` by aspect ratio, and scale it to that size."""
    ratio = picture.width / picture.height
    size = min(sizes, key=lambda size: max(size.width / size.height / ratio, ratio * size.height / size.width))
    return ImageOps.fit(picture, (size.width, size.height), Image.Resampling.LANCZOS)


def fit_mask(mask: Image.Image, picture: Size, size: Size) -> np.ndarray:
    """Lay a mask over its picture, and do to it what ``fit`` did to the picture.

    Args:
        mask: Of any size; it is stretched to the picture's.
        picture: The picture's own size.
        size: The clip's.

    Returns:
        One boolean for each pixel of the clip, [height, width]: True where it stays.
    """
    stretched = mask.resize((picture.width, picture.height), Image.Resampling.LANCZOS)
    return np.asarray(fit(stretched, [size])) >= STAYS


def _decode(data: bytes, min_side: int, budget: Budget) -> Image.Image:
    """The first frame, upright, in sRGB: RGB, or RGBA where it has transparency."""
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(picture, min_side)
        budget.spend(picture, data)
        picture.load()  # TIFF turns itself upright here, and forgets that it was turned
        return _to_srgb(_turn_upright(picture))
    except (ServingError, MemoryError):
        raise
    except Exception as error:  # a decoder may raise anything at all on broken bytes
        raise _refusal(data) from error


def _refusal(data: bytes) -> ServingError:
    readable = ", ".join(FORMATS)
    for kind, beginning in FOREIGN.items():
        if re.match(beginning, data[:BEGINNING], re.DOTALL):
            ctx = {"supported_formats": EXTENSIONS}
            return UnsupportedImageFormat(f"The file is {kind}, not {readable}", ctx=ctx)
    return ImageLoadError(f"The file is no picture that can be read ({readable})")


def _check_size(picture: Image.Image, min_side: int) -> None:
    width, height = picture.size
    if min(width, height) < min_side:
        limits = {"min_width": min_side, "min_height": min_side}
        raise ImageTooSmall(f"The picture is {width}x{height}; each side needs {min_side} pixels", ctx=limits)
    tags = getattr(picture, "tag_v2", {})  # a TIFF's tiles are decoded whole, and may be larger than the picture
    width, height = max(width, tags.get(Base.TileWidth, 0)), max(height, tags.get(Base.TileLength, 0))
    if width * height > MAX_PIXELS:
        raise _too_large(f"The picture is {width}x{height}; at most {MAX_PIXELS} pixels are read", int(MAX_PIXELS**0.5))
    if max(width, height) > MAX_SIDE:
        raise _too_large(f"The picture is {width}x{height}; a side has at most {MAX_SIDE} pixels", MAX_SIDE)


def _too_large(message: str, side: int) -> ImageTooLarge:
    return ImageTooLarge(message, ctx={"max_width": side, "max_height": side})


def _turn_upright(picture: Image.Image) -> Image.Image:
    try:
        orientation = picture.getexif().get(Base.Orientation)
    except Exception:  # broken Exif data says nothing, and need not stop a good picture
        return picture
    return picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture


def _to_srgb(picture: Image.Image) -> Image.Image:
    """RGB through the embedded profile, if there is one; RGBA where there is transparency."""
    profile = picture.info.get("icc_profile")
    picture = _to_eight_bits(picture)
    mode = "CMYK" if picture.mode == "CMYK" else "L" if Image.getmodebase(picture.mode) == "L" else "RGB"
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
    colours = _through(profile, picture.convert(mode))
    if picture.mode == "RGBA":
        colours.putalpha(picture.getchannel("A"))
    return colours


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """Pillow would clip 16 bits and fractions instead of scaling them."""
    if picture.mode == "I":
        raise ImageLoadError("Its values are signed or 32-bit integers, none of them white; save it with 8 or 16 bits")
    if picture.mode == "F":
        return _from_fractions(picture)
    if not picture.mode.startswith("I;16"):
        return picture
    values = np.asarray(picture)
    grey = Image.fromarray((values // 256).astype(np.uint8))
    if "transparency" in picture.info:
        grey.putalpha(Image.fromarray(values != picture.info["transparency"]).convert("L"))
    return grey


def _from_fractions(picture: Image.Image) -> Image.Image:
    low, high = np.asarray(picture).min(), np.asarray(picture).max()
    if not (low >= 0 and high <= 1):  # as NaN is not, either
        raise ImageLoadError(f"Its values go from {low} to {high}; fractions must be from 0 (black) to 1 (white)")
    return picture.point(lambda value: value * 255).convert("L")


def _through(profile: bytes | None, colours: Image.Image) -> Image.Image:
    """Colours that a profile defines, as sRGB. A broken profile, or one of other colours than these, is ignored."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            assert converted is not None
            return converted
        except (ImageCms.PyCMSError, OSError, TypeError):
            pass
    return colours.convert("RGB")


def _over(picture: Image.Image, colour: str) -> Image.Image:
    if picture.mode == "RGB":
        return picture
    backdrop = Image.new("RGB", picture.size, colour)
    backdrop.paste(picture, mask=picture.getchannel("A"))
    return backdrop


def _is_white_paint(mask: Image.Image) -> bool:
    """Whether enough of a mask is see-through, and most of the rest bright."""
    if mask.mode == "RGB":
        return False
    opaque = np.asarray(mask.getchannel("A")) >= STAYS
    bright = np.asarray(mask.convert("L")) >= STAYS
    return bool(opaque.any() and 1 - opaque.mean() >= SEE_THROUGH and bright[opaque].mean() >= BRIGHT)
