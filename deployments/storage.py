"""Where finished files live, and the addresses they have.

    a local file ──────────── put ───────▶┐
    pieces as they arrive ─── write ─────▶├── key ── stat, read ──▶ pieces
    pieces of part n ── write_part ─ join ▶┘

A file's key is a path such as ``b/<random>/clip.mp4``; its URL is ``<public URL>/files/<key>``. The key is the right to
read the file, so it holds a random part. obstore (the Rust ``object_store`` behind many databases) keeps the bytes.
Nothing is seen under a key before it is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import mimetypes
import os
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore
from pydantic import BaseModel

from deployments.errors import BadRequest, NotFound, PayloadTooLarge, StorageUnavailable

_CHUNK = 1024 * 1024
_WRITTEN_AT_ONCE = 256 * 1024
_PARTS = ".parts"
_PROBE = b"svd-serve" * 100_000  # about a clip: a disk that has room for a few bytes only is full

CHECK_SECONDS = 5.0
"""A storage that takes longer to answer is away."""

_STORE_AWAY = (BaseError, OSError)


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
    """Files by key, in a directory, and the parts of those that are still coming."""

    def __init__(self, directory: Path, public_url: str) -> None:
        """Open the storage, making the directory where it is missing."""
        self._directory = directory
        self._store = LocalStore(directory, mkdir=True, automatic_cleanup=True)
        self._parts = LocalStore(directory / _PARTS, mkdir=True, automatic_cleanup=True)
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

    async def check(self) -> None:
        """Write, read and delete a file that nobody sees.

        Raises:
            StorageUnavailable: The storage does not take it, or does not give it back, within ``CHECK_SECONDS``.
        """
        key = f"check-{uuid4().hex}/1"
        with _told_as_unavailable():
            async with asyncio.timeout(CHECK_SECONDS):
                try:
                    await obstore.put_async(self._parts, key, _PROBE)
                    if bytes(await obstore.get_range_async(self._parts, key, start=0, end=len(_PROBE))) != _PROBE:
                        raise StorageUnavailable("The file storage does not give back what it was given")
                finally:
                    await obstore.delete_async(self._parts, key)

    async def put(self, source: Path, key: str) -> File:
        """Store a copy of a file. On return it is on the disk, whole; after any error nothing is left.

        Raises:
            StorageUnavailable: The storage takes nothing at the moment.
        """
        with _told_as_unavailable():
            await obstore.put_async(self._store, key, source)
            await asyncio.to_thread(_sync_to_disk, self._directory / key)
        stat = await self.stat(key)
        return File(url=self.url_of(key), content_type=stat.content_type, file_name=Path(key).name, file_size=stat.size)

    async def write(self, key: str, pieces: AsyncIterable[bytes], max_bytes: int) -> Stat:
        """Store what arrives in pieces. On return it is on the disk, whole; after any error nothing is left.

        Raises:
            PayloadTooLarge: There are more than ``max_bytes`` bytes; the rest was not read.
            StorageUnavailable: The storage takes nothing at the moment.
        """
        await _write(self._store, key, pieces, max_bytes)
        await asyncio.to_thread(_sync_to_disk, self._directory / key)
        return await self.stat(key)

    async def write_part(self, upload: str, number: int, pieces: AsyncIterable[bytes], max_bytes: int) -> str:
        """Keep one part of an upload in place of an earlier one with its number; answer its ETag.

        Raises:
            PayloadTooLarge: The upload has more than ``max_bytes`` bytes with it.
            StorageUnavailable: The storage takes nothing at the moment.
        """
        key = f"{upload}/{number}"
        await _write(self._parts, key, pieces, max_bytes - await self._size_beside(upload, number))
        if await self._size_beside(upload, 0) > max_bytes:  # others came in at the same time
            await obstore.delete_async(self._parts, key)
            raise _too_large(max_bytes)
        etag = (await obstore.head_async(self._parts, key))["e_tag"]
        assert etag
        return etag

    async def join(self, upload: str, parts: Sequence[tuple[int, str]], key: str, max_bytes: int) -> Stat:
        """Store the parts of an upload, named by number and ETag, as one file. They stay until they are discarded.

        Raises:
            BadRequest: A part is missing, or is not the one that was meant.
            PayloadTooLarge: Together they have more than ``max_bytes`` bytes.
            StorageUnavailable: The storage takes nothing at the moment.
        """
        present = {(Path(meta["path"]).name, _bare(meta["e_tag"])) for meta in await self._list_parts(upload)}
        for number, etag in parts:
            if (str(number), _bare(etag)) not in present:
                raise _no_part(number)
        return await self.write(key, self._read_parts(upload, [number for number, _ in parts]), max_bytes)

    async def discard(self, upload: str) -> None:
        """Forget the parts of an upload."""
        for meta in await self._list_parts(upload):
            with contextlib.suppress(FileNotFoundError):
                await obstore.delete_async(self._parts, meta["path"])
        await asyncio.to_thread(_remove_drafts, self._directory / _PARTS / upload, "*")

    async def delete(self, key: str) -> None:
        """Delete a file, and what was left of an attempt to write it; nothing happens where there is none."""
        with contextlib.suppress(FileNotFoundError):
            await obstore.delete_async(self._store, key)
        path = self._directory / key
        await asyncio.to_thread(_remove_drafts, path.parent, glob.escape(path.name))

    async def stat(self, key: str) -> Stat:
        """Size, ETag and type of a file.

        Raises:
            NotFound: There is no such file.
        """
        _check_key(key)
        try:
            meta = await obstore.head_async(self._store, key)
        except (FileNotFoundError, BaseError, ValueError) as error:
            raise NotFound("No such file") from error
        content_type = mimetypes.guess_type(key)[0] or "application/octet-stream"
        etag = (meta["e_tag"] or f"{meta['size']:x}-{meta['last_modified'].timestamp():x}").strip('"')
        return Stat(meta["size"], f'"{etag}"', meta["last_modified"].timestamp(), content_type)

    async def read(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from ``start`` up to ``end`` (exclusive), in pieces.

        Raises:
            NotFound: No file can have this key.
        """
        _check_key(key)
        async for piece in _read(self._store, key, start, end):
            yield piece

    def url_of(self, key: str) -> str:
        """The address of a file."""
        return self._base + quote(key)

    def key_of(self, url: str) -> str | None:
        """The key behind a URL of ours, or None for anybody else's and where no file can have it."""
        if not url.startswith(self._base):
            return None
        key = unquote(re.split("[?#]", url[len(self._base) :])[0])
        return key if _is_key(key) else None

    async def _list_parts(self, upload: str) -> Sequence[obstore.ObjectMeta]:
        return await obstore.list(self._parts, upload).collect_async()

    async def _size_beside(self, upload: str, number: int) -> int:
        return sum(meta["size"] for meta in await self._list_parts(upload) if Path(meta["path"]).name != str(number))

    async def _read_parts(self, upload: str, numbers: Sequence[int]) -> AsyncIterator[bytes]:
        for number in numbers:
            key = f"{upload}/{number}"
            try:
                size = (await obstore.head_async(self._parts, key))["size"]
                async for piece in _read(self._parts, key, 0, size):
                    yield piece
            except FileNotFoundError:  # another call has joined them meanwhile
                raise _no_part(number) from None


def _is_key(key: str) -> bool:
    """Whether a file can have this key, and the key is the only way to write it.

    obstore reads ``/b/1/clip.mp4`` and ``b/1/clip.mp4/`` as ``b/1/clip.mp4``, whose row then nobody would find.
    """
    segments = key.split("/")
    return segments[0] != _PARTS and not {"", ".", ".."}.intersection(segments)


def _check_key(key: str) -> None:
    if not _is_key(key):
        raise NotFound("No such file")


async def _write(store: LocalStore, key: str, pieces: AsyncIterable[bytes], max_bytes: int) -> None:
    """Write pieces to a draft that becomes the file when it is closed, and is removed when it is dropped."""
    draft = obstore.open_writer_async(store, key, buffer_size=_WRITTEN_AT_ONCE, max_concurrency=1)
    try:
        async for piece in _gathered(_counted(pieces, max_bytes)):
            with _told_as_unavailable():
                await draft.write(piece)
        with _told_as_unavailable():
            await draft.close()
    finally:
        del draft  # a traceback would keep it


async def _counted(pieces: AsyncIterable[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    counted = 0
    async for piece in pieces:
        counted += len(piece)
        if counted > max_bytes:
            raise _too_large(max_bytes)
        yield piece


async def _gathered(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in fewer pieces: each costs a way to another thread and back."""
    gathered = bytearray()
    async for piece in pieces:
        gathered += piece
        if len(gathered) >= _WRITTEN_AT_ONCE:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


async def _read(store: LocalStore, key: str, start: int, end: int) -> AsyncIterator[bytes]:
    while start < end:
        piece = await obstore.get_range_async(store, key, start=start, end=min(end, start + _CHUNK))
        yield bytes(piece)
        start += len(piece)


@contextlib.contextmanager
def _told_as_unavailable() -> Iterator[None]:
    try:
        yield
    except _STORE_AWAY as error:
        raise StorageUnavailable("The file storage takes nothing at the moment") from error


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The file has more than {max_bytes} bytes")


def _no_part(number: int) -> BadRequest:
    return BadRequest(f"Part {number} was not uploaded, or has another ETag")


def _bare(etag: str | None) -> str | None:
    return etag and etag.strip('"')


def _remove_drafts(folder: Path, name: str) -> None:
    """Remove what a process that died had begun to write. obstore numbers its drafts: ``clip.mp4#1``."""
    for draft in folder.glob(f"{name}#*"):
        draft.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it is gone already, or not empty
        folder.rmdir()


def _sync_to_disk(path: Path) -> None:
    """Make a renamed file survive a power cut: its bytes first, then the directory entry."""
    for target in (path, path.parent, path.parent.parent):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
