"""Files in: a URL that a caller gave becomes bytes, or an error that names the field and what is wrong with it.

http(s) URL ──▶ public addresses and web ports only ──┐
data URI ─────▶ decode ───────────────────────────────┼──▶ at most so many bytes
URL of ours ──▶ storage, never by HTTP ───────────────┘
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from urllib.parse import unquote_to_bytes

from deployments import web
from deployments.errors import FileDamaged, FileDownloadError, FileTooLarge, ImageLoadError, Loc, ModelError, NotFound
from deployments.storage import FileStorage

FETCH_SECONDS = 30.0


class FileSource:
    """Fetches what a field of an input names: http(s) URLs, data URIs, and files of this server."""

    def __init__(self, storage: FileStorage, allow_private: bool = False) -> None:
        """Fetch from the public web only, unless ``allow_private`` lifts the lists of addresses and ports."""
        self._storage = storage
        self._client = web.open_client(allow_private, FETCH_SECONDS, follow_redirects=True)

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
        if url[:5].lower() == "data:":
            return await asyncio.to_thread(_decode_data_uri, url, loc, max_bytes, broken)
        return await self._download(url, loc, max_bytes)

    async def _read_own(self, key: str, loc: Loc, max_bytes: int) -> bytes:
        try:
            stat = await self._storage.stat(key)
        except NotFound as error:
            raise FileDownloadError("There is no such file on this server", loc) from error
        _check_length(stat.size, loc, max_bytes)
        try:
            return b"".join([piece async for piece in self._storage.read(key, 0, stat.size, stat.etag)])
        except FileDamaged as error:  # deleted, or another in its place, since
            raise FileDownloadError("The file has changed while it was read", loc) from error

    async def _download(self, url: str, loc: Loc, max_bytes: int) -> bytes:
        data = bytearray()
        try:
            async with asyncio.timeout(FETCH_SECONDS), self._client.stream("GET", url) as response:
                response.raise_for_status()
                if "," in response.headers.get("Content-Encoding", ""):  # a few bytes could unpack to gigabytes at once
                    raise FileDownloadError("The file could not be downloaded: it is packed more than once", loc)
                async for piece in response.aiter_bytes():
                    data += piece
                    _check_length(len(data), loc, max_bytes)
        except web.FAILURES as error:
            raise FileDownloadError(f"The file could not be downloaded: {web.reason(error)}", loc) from error
        return bytes(data)


def _decode_data_uri(uri: str, loc: Loc, max_bytes: int, broken: type[ModelError]) -> bytes:
    header, comma, payload = uri.partition(",")
    try:
        if not comma:
            raise ValueError("no comma")
        data = unquote_to_bytes(payload)
        if header.lower().endswith(";base64"):
            data = base64.b64decode(b"".join(data.split()), validate=True)
    except (ValueError, binascii.Error) as error:
        raise broken("The data URI cannot be decoded", loc) from error
    _check_length(len(data), loc, max_bytes)
    return data


def _check_length(length: int, loc: Loc, max_bytes: int) -> None:
    if length > max_bytes:
        raise FileTooLarge(f"The file has more than {max_bytes} bytes", loc, {"max_size": max_bytes})
