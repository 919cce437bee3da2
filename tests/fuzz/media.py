"""What replicas fetch: data URIs, archives of depth maps, pictures and masks.

The limits are lowered so that an input of a few bytes that breaks one shows at once.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from urllib.parse import unquote_to_bytes

from PIL import Image

from deployments.errors import FileTooLarge, ImageLoadError, ModelError
from deployments.inference import archives, fetch, images
from deployments.inference.archives import open_maps
from deployments.inference.fetch import _decode_data_uri
from deployments.inference.images import open_mask, open_picture
from tests.fuzz.target import check_error, target, text

LOC = ("body", "image_url")
MOST_MAPS = 5
MOST_BYTES = 64

fetch.PIECE = 5
archives.MAX_ARCHIVE_BYTES = 256 * 1024
archives.MAX_ENTRIES = 200
images.MAX_PIXELS = 1_000_000
images.MAX_SIDE = 4096
images.MAX_SCANNED_PIXELS = 20_000_000


@target(words=("data:", ";base64,", "data:image/png;base64,", ",", "%", "=", "charset=utf-8"))
def data_uri(data: bytes) -> None:
    """Text ──▶ bytes that are what the text says and no more of them than are read, or an error of the field."""
    uri = "data:" + text(data)
    try:
        decoded = _decode_data_uri(uri, LOC, MOST_BYTES, ImageLoadError)
    except (FileTooLarge, ImageLoadError) as error:
        check_error(error)
        assert error.body()["detail"][0]["loc"] == list(LOC)
        return
    assert len(decoded) <= MOST_BYTES
    head, _, payload = uri.partition(",")
    if not head.lower().endswith("base64"):
        assert decoded == unquote_to_bytes(payload)


@target(longest=8192, megabytes=96, words=("PK\x01\x02", "PK\x03\x04", "PK\x05\x06", "ustar", ".png"))
def archive(data: bytes) -> None:
    """Bytes ──▶ few pictures, or an error of an archive."""
    _open_all(data)


@target(longest=8192, megabytes=96)
def packed(data: bytes) -> None:
    """Names, sizes and contents ──▶ an archive that is whole but may lie ──▶ as ``archive``."""
    packers = (_zip, _tar, _tar_gz, _bomb)
    if data:
        _open_all(packers[data[0] % len(packers)](data[1:]))


@target(longest=8192, megabytes=160, words=("IHDR", "IDAT", "iCCP", "acTL", "Exif", "GIF89a", "RIFF", "WEBP", "II*"))
def picture(data: bytes) -> None:
    """Bytes ──▶ a picture and a mask of at most so many pixels, or errors."""
    for opener, mode in ((open_picture, "RGB"), (open_mask, "L")):
        try:
            found = opener(data)
        except ModelError as error:
            check_error(error)
        else:
            assert found.mode == mode
            assert found.width * found.height <= images.MAX_PIXELS and max(found.size) <= images.MAX_SIDE


def _open_all(data: bytes) -> None:
    try:
        count = sum(1 for _ in open_maps(data, MOST_MAPS))
    except ModelError as error:
        check_error(error)
        assert error.type in ("invalid_archive", *_COUNTS)
    else:
        assert 1 <= count <= MOST_MAPS


_COUNTS = ("archive_file_count_below_minimum", "archive_file_count_exceeds_maximum")
_PICTURE = io.BytesIO()
Image.new("L", (16, 16), 128).save(_PICTURE, "PNG")
_CONTENTS = (_PICTURE.getvalue(), b"", b"\0" * 300 * 1024, b"P5 1 1 255 x")


def _entries(data: bytes) -> Iterator[tuple[str, int, int, bytes]]:
    """Name, kind, by how much its size is a lie, and content of each entry that some bytes mean."""
    while len(data) >= 4:
        kind, lie, length, content = struct.unpack_from("<BbBB", data)
        name = text(data[4 : 4 + length % 64]).replace("\0", "")
        data = data[4 + length % 64 :]
        yield name + (".png" if kind & 128 else ""), kind, lie, _CONTENTS[content % len(_CONTENTS)]


def _zip(data: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, kind, lie, content in _entries(data):
            entry = zipfile.ZipInfo(name)
            entry.compress_type = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)[
                kind % 4
            ]
            archive.writestr(entry, content)
            entry.file_size = max(0, entry.file_size + lie * (kind >> 2 & 1) * 1000)  # the directory lies
            entry.header_offset = max(0, entry.header_offset + lie * (kind >> 3 & 1))
            entry.flag_bits |= kind >> 4 & 1
    return packed.getvalue()


def _tar(data: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, lie, content in _entries(data):
            entry = tarfile.TarInfo(name)
            entry.type = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)[kind % 5]
            entry.linkname = "/etc/passwd"
            entry.size = len(content)
            if kind & 64:
                entry.pax_headers = {"size": str(len(content) + lie), "GNU.sparse.realsize": str(lie * 10**9)}
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def _tar_gz(data: bytes) -> bytes:
    return gzip.compress(_tar(data), 1)


def _bomb(data: bytes) -> bytes:
    """An archive after which, or within which, nothing comes for far longer than is read."""
    return _tar_gz(data) + _nothing() if data[:1] < b"\x80" else _nothing()


@cache
def _nothing() -> bytes:
    packing = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    return b"".join([packing.compress(bytes(1024 * 1024)) for _ in range(128)]) + packing.flush()
