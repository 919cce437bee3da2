"""Pictures in: a URL becomes RGB pixels of a clip's size, or an error that names what is wrong with it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from collections.abc import Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import ip_network
from urllib.parse import unquote_to_bytes

import httpx
from PIL import Image, ImageOps
from PIL.ExifTags import Base
from ssrfguard import Policy, SSRFGuardError
from ssrfguard.httpx import AsyncClient

from deployments.errors import (
    FileDownloadError,
    FileTooLarge,
    ImageLoadError,
    ImageTooLarge,
    ImageTooSmall,
    NotFound,
    ServingError,
)
from deployments.models.base import Size
from deployments.storage import FileStorage

MAX_BYTES = 20 * 1024 * 1024
MAX_PIXELS = 64_000_000
MIN_SIDE = 16
FETCH_SECONDS = 30.0
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

_PUBLIC_WEB = Policy(allowed_ports=frozenset({80, 443, 8080, 8443}))
_ANYWHERE = Policy(
    allowed_networks=(ip_network("0.0.0.0/0"), ip_network("::/0")), allowed_ports=frozenset(range(1, 65536))
)


class PictureSource:
    """Fetches what ``image_url`` names: http(s) URLs, data URIs, and files of this server."""

    def __init__(self, storage: FileStorage, allow_private: bool = False) -> None:
        """Fetch from the public web only, unless ``allow_private`` lifts the lists of addresses and ports."""
        self._storage = storage
        self._client = AsyncClient(
            policy=_ANYWHERE if allow_private else _PUBLIC_WEB,
            follow_redirects=True,
            trust_env=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # one caller's host sets none for another's
            timeout=httpx.Timeout(FETCH_SECONDS, connect=5.0),
            headers={"Accept-Encoding": "identity", "User-Agent": "svd-serve"},
        )

    async def get(self, url: str) -> Image.Image:
        """The picture behind a URL, upright and in RGB.

        Raises:
            FileDownloadError: It cannot be had.
            FileTooLarge: It has more than ``MAX_BYTES`` bytes.
            ImageLoadError: It is no picture that we can open.
            ImageTooSmall: A side has fewer than ``MIN_SIDE`` pixels.
            ImageTooLarge: It has more than ``MAX_PIXELS`` pixels.
        """
        data = await self._read(url)
        return await asyncio.to_thread(open_picture, data)

    async def _read(self, url: str) -> bytes:
        key = self._storage.key_of(url)
        if key is not None:
            return await self._read_own(key)
        if url[:5].lower() == "data:":
            return _checked(_decode_data_uri(url))
        return await self._download(url)

    async def _read_own(self, key: str) -> bytes:
        try:
            stat = await self._storage.stat(key)
        except NotFound as error:
            raise FileDownloadError("There is no such file on this server", LOC) from error
        if stat.size > MAX_BYTES:
            raise _too_large()
        return b"".join([piece async for piece in self._storage.read(key, 0, stat.size)])

    async def _download(self, url: str) -> bytes:
        try:
            async with asyncio.timeout(FETCH_SECONDS), self._client.stream("GET", url) as response:
                response.raise_for_status()
                data = bytearray()
                async for piece in response.aiter_bytes():
                    data += piece
                    if len(data) > MAX_BYTES:
                        raise _too_large()
        except (httpx.HTTPError, httpx.InvalidURL, SSRFGuardError, TimeoutError, ValueError) as error:
            raise FileDownloadError(f"The file could not be downloaded: {_reason(error)}", LOC) from error
        return bytes(data)


def open_picture(data: bytes) -> Image.Image:
    """Decode a picture: first frame, upright, RGB, transparency over white.

    Raises:
        ImageLoadError: The bytes are no picture of a format in ``FORMATS``, or a broken one.
        ImageTooSmall: A side has fewer than ``MIN_SIDE`` pixels.
        ImageTooLarge: It has more than ``MAX_PIXELS`` pixels; it was not decoded.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(picture.width, picture.height)
        picture.load()  # TIFF turns itself upright here, and forgets that it was turned
        orientation = picture.getexif().get(Base.Orientation)
        return _to_rgb(picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture)
    except ServingError:
        raise
    except Exception as error:  # a decoder may raise anything at all on broken bytes
        raise ImageLoadError(f"The file is no picture that can be read ({', '.join(FORMATS)})", LOC) from error


def fit(picture: Image.Image, sizes: Sequence[Size]) -> Image.Image:
    """Crop the middle of a picture to the nearest of ``sizes`` by aspect ratio, and scale it to that size."""
    ratio = picture.width / picture.height
    size = min(sizes, key=lambda size: max(size.width / size.height / ratio, ratio * size.height / size.width))
    return ImageOps.fit(picture, (size.width, size.height), Image.Resampling.LANCZOS)


def _check_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        limits = {"min_width": MIN_SIDE, "min_height": MIN_SIDE}
        raise ImageTooSmall(f"The picture is {width}x{height}; each side needs {MIN_SIDE} pixels", LOC, limits)
    if width * height > MAX_PIXELS:
        side = int(MAX_PIXELS**0.5)
        raise ImageTooLarge(
            f"The picture is {width}x{height}; at most {MAX_PIXELS} pixels are read",
            LOC,
            {"max_width": side, "max_height": side},
        )


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits a pixel: Pillow would clip instead of scaling
        picture = picture.convert("I").point(lambda value: value / 256).convert("L")
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA"):
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def _decode_data_uri(uri: str) -> bytes:
    header, comma, payload = uri.partition(",")
    try:
        if not comma:
            raise ValueError("no comma")
        raw = unquote_to_bytes(payload)
        return base64.b64decode(b"".join(raw.split()), validate=True) if header.lower().endswith(";base64") else raw
    except (ValueError, binascii.Error) as error:
        raise ImageLoadError("The data URI cannot be decoded", LOC) from error


def _checked(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise _too_large()
    return data


def _too_large() -> FileTooLarge:
    return FileTooLarge(f"The file has more than {MAX_BYTES} bytes", LOC, {"max_size": MAX_BYTES})


def _reason(error: Exception) -> str:
    """Why a download failed, without an address or path of ours."""
    match error:
        case httpx.HTTPStatusError():
            return f"the server answered {error.response.status_code}"
        case TimeoutError() | httpx.TimeoutException():
            return "it took too long"
        case SSRFGuardError() | httpx.InvalidURL() | httpx.UnsupportedProtocol() | ValueError():
            return "this address is not allowed"
        case _:
            return "the server could not be reached"
