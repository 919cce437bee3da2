"""Where finished files live, and the addresses they have.

A file's key is a path such as ``b/<random>/clip.mp4``; its URL is ``<public URL>/files/<key>``. The key is the right to
read the file, so it holds a random part. obstore (the Rust ``object_store`` behind many databases) keeps the bytes.
"""

from __future__ import annotations

import asyncio
import mimetypes
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

import obstore
from obstore.store import LocalStore
from pydantic import BaseModel

from deployments.errors import NotFound

_CHUNK = 1024 * 1024


class File(BaseModel):
    """fal's File object, as it stands in an output."""

    url: str
    content_type: str
    file_name: str
    file_size: int


def new_key(name: str) -> str:
    """A key that nobody can guess."""
    return f"b/{uuid4().hex}/{name}"


@dataclass(frozen=True)
class Stat:
    """What is known of a stored file without reading it. ``size`` is in bytes, ``modified`` in Unix seconds."""

    size: int
    etag: str
    modified: float
    content_type: str


class FileStorage:
    """Files by key, in a directory."""

    def __init__(self, directory: Path, public_url: str) -> None:
        """Open the storage, making the directory where it is missing."""
        self._directory = directory
        self._store = LocalStore(directory, mkdir=True, automatic_cleanup=True)
        self._base = public_url.rstrip("/") + "/files/"

    @classmethod
    def open(cls, storage_url: str, public_url: str) -> FileStorage:
        """Open the storage that a ``file:///…`` URL names.

        Raises:
            ValueError: The URL has another scheme.
        """
        parts = urlsplit(storage_url)
        if parts.scheme != "file":
            raise ValueError(f"SVD_STORAGE_URL must be a file:/// URL, not {parts.scheme}://")
        return cls(Path(unquote(parts.path)), public_url)

    async def put(self, source: Path, key: str) -> File:
        """Store a copy of a file. On return it is on the disk, whole."""
        await obstore.put_async(self._store, key, source)
        await asyncio.to_thread(_sync_to_disk, self._directory / key)
        stat = await self.stat(key)
        return File(
            url=self._base + quote(key), content_type=stat.content_type, file_name=Path(key).name, file_size=stat.size
        )

    async def stat(self, key: str) -> Stat:
        """Size, ETag and type of a file.

        Raises:
            NotFound: There is no such file.
        """
        try:
            meta = await obstore.head_async(self._store, key)
        except (FileNotFoundError, obstore.exceptions.BaseError, ValueError) as error:
            raise NotFound("No such file") from error
        content_type = mimetypes.guess_type(key)[0] or "application/octet-stream"
        etag = (meta["e_tag"] or f"{meta['size']:x}-{meta['last_modified'].timestamp():x}").strip('"')
        return Stat(meta["size"], f'"{etag}"', meta["last_modified"].timestamp(), content_type)

    async def read(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from ``start`` up to ``end`` (exclusive), in pieces."""
        while start < end:
            piece = await obstore.get_range_async(self._store, key, start=start, end=min(end, start + _CHUNK))
            yield bytes(piece)
            start += len(piece)

    def key_of(self, url: str) -> str | None:
        """The key behind a URL of ours, or None for anybody else's."""
        if not url.startswith(self._base):
            return None
        return unquote(re.split("[?#]", url[len(self._base) :])[0])


def _sync_to_disk(path: Path) -> None:
    """Make a renamed file survive a power cut: its bytes first, then the directory entry."""
    for target in (path, path.parent, path.parent.parent):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
