"""Files in: a URL that a caller gave becomes bytes, or an error that names the field and what is wrong with it.

http(s) URL ──▶ SafeFetcher ──────────────┐
data URI ─────▶ decode ───────────────────┼──▶ at most so many bytes
URL of ours ──▶ storage, never by HTTP ───┘
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import re
from collections.abc import Iterator

from deployments.errors import FileDamaged, FileDownloadError, FileTooLarge, ImageLoadError, Loc, ModelError, NotFound
from deployments.storage import FileStorage
from deployments.web import Reach, SafeFetcher, TooLarge, WebError

FETCH_SECONDS = 30.0

PIECE = 64 * 1024
"""Characters of a data URI that are unquoted at once."""

WHITESPACE = b" \t\n\r\x0b\x0c"
"""What base64 may be broken by."""

_ESCAPES = re.compile(rb"(?:%[0-9a-fA-F]{2})+")


class FileSource:
    """Fetches what a field of an input names: http(s) URLs, data URIs, and files of this server."""

    def __init__(self, storage: FileStorage, reach: Reach | None = None) -> None:
        """Fetch from the public web, unless told what else may be reached."""
        self._storage = storage
        self._web = SafeFetcher(reach, is_ours=storage.owns)

    async def get(self, url: str, loc: Loc, max_bytes: int, broken: type[ModelError] = ImageLoadError) -> bytes:
        """The bytes behind a URL.

        Args:
            url: What the caller gave.
            loc: The field that it was given in; every error carries it.
            max_bytes: How many bytes are read.
            broken: What a data URI that cannot be decoded raises: the error for a file of this field that cannot be
                read.

        Raises:
            FileDownloadError: The file cannot be had.
            FileTooLarge: It has more than ``max_bytes`` bytes.
            StorageUnavailable: It is a file of ours, and the storage cannot be reached.
        """
        key = self._storage.key_of(url)
        if key is not None:
            return await self._read_own(key, loc, max_bytes)
        if self._storage.owns(url):
            raise FileDownloadError("There is no such file on this server", loc)
        if url[:5].lower() == "data:":
            return await asyncio.to_thread(_decode_data_uri, url, loc, max_bytes, broken)
        return await self._download(url, loc, max_bytes)

    async def _read_own(self, key: str, loc: Loc, max_bytes: int) -> bytes:
        try:
            stat = await self._storage.stat(key)
        except NotFound as error:
            raise FileDownloadError("There is no such file on this server", loc) from error
        _check_length(stat.size, loc, max_bytes)
        data = io.BytesIO()  # held once: ``getvalue`` copies nothing
        try:
            async for piece in self._storage.read(key, 0, stat.size, stat.etag):
                data.write(piece)
        except FileDamaged as error:  # deleted, or another in its place, since
            raise FileDownloadError("The file has changed while it was read", loc) from error
        return data.getvalue()

    async def _download(self, url: str, loc: Loc, max_bytes: int) -> bytes:
        try:
            return await self._web.fetch(url, max_bytes, FETCH_SECONDS)
        except TooLarge as error:
            raise _too_large(loc, max_bytes) from error
        except WebError as error:
            raise FileDownloadError(f"The file could not be downloaded: {error}", loc) from error


def _decode_data_uri(uri: str, loc: Loc, max_bytes: int, broken: type[ModelError]) -> bytes:
    try:
        comma = uri.index(",")
        if not uri[:comma].lower().endswith(";base64"):
            return _gather(_unquoted(uri, comma + 1), max_bytes)
        text = (piece.translate(None, WHITESPACE) for piece in _unquoted(uri, comma + 1))
        data = base64.b64decode(_gather(text, -(-max_bytes // 3) * 4), validate=True)
    except OverflowError as error:
        raise _too_large(loc, max_bytes) from error
    except ValueError as error:
        raise broken("The data URI cannot be decoded", loc) from error
    _check_length(len(data), loc, max_bytes)
    return data


def _gather(pieces: Iterator[bytes], most: int) -> bytes:
    data = io.BytesIO()  # held once: ``getvalue`` copies nothing
    for piece in pieces:
        data.write(piece)
        if data.tell() > most:
            raise OverflowError(f"more than {most} bytes")
    return data.getvalue()


def _unquoted(uri: str, start: int) -> Iterator[bytes]:
    """What a part of a URI stands for, piece by piece: to find its escapes takes many times the memory of a piece."""
    while start < len(uri):
        end = _end_of_piece(uri, start)
        yield _ESCAPES.sub(_unescape, uri[start:end].encode())
        start = end


def _end_of_piece(uri: str, start: int) -> int:
    """Where a piece ends that begins here: not within an escape."""
    end = start + PIECE
    escape = uri.rfind("%", end - 2, end)
    return end if escape < 0 else escape


def _unescape(escapes: re.Match[bytes]) -> bytes:
    return binascii.unhexlify(escapes[0].replace(b"%", b""))


def _check_length(length: int, loc: Loc, max_bytes: int) -> None:
    if length > max_bytes:
        raise _too_large(loc, max_bytes)


def _too_large(loc: Loc, max_bytes: int) -> FileTooLarge:
    return FileTooLarge(f"The file has more than {max_bytes} bytes", loc, {"max_size": max_bytes})
