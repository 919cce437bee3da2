"""FileStorage: files by key, in a directory or in a bucket of an S3 service."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import glob
import hashlib
import itertools
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import obstore
from obstore.exceptions import PreconditionError
from obstore.store import LocalStore, S3Store
from pydantic import BaseModel, Field

from deployments.errors import BadRequest, FileDamaged, NotFound, StorageUnavailable
from deployments.storage.addresses import Addresses
from deployments.storage.bucket import STORE_AWAY, open_bucket, told_as_unavailable
from deployments.storage.folder import remove_drafts, remove_empty, sync_to_disk, walk
from deployments.storage.keys import FILES, MARK, PARTS, check_key, disposition_of, type_of
from deployments.storage.pieces import CHUNK, Source, file_pieces, pieces_of, too_large

if TYPE_CHECKING:
    from obstore import Attributes

CHECK_SECONDS = 5.0
"""A storage that takes longer to take, give back and delete a small file is away."""

_CLEAR_SECONDS = 1.0
_WRITTEN_AT_ONCE = 256 * 1024
_S3_PIECE = 5 * 1024 * 1024  # S3 takes no smaller ones, but for the last
_MOST_HASHES = 4096
_LISTED_AT_ONCE = 1000
_PROBE = b"svd-serve" * 100_000  # about a clip: a disk that has room for a few bytes only is full


class File(BaseModel):
    """fal's File object, as it stands in an output. The hash of its bytes goes beside it, not into it."""

    url: str
    content_type: str
    file_name: str
    file_size: int
    sha256: str | None = Field(None, exclude=True, repr=False)


@dataclass(frozen=True)
class Stat:
    """What is known of a stored file without reading it. ``size`` is in bytes, ``modified`` in Unix seconds."""

    size: int
    etag: str
    modified: float
    content_type: str


@dataclass(frozen=True)
class Stored:
    """What was stored: ``size`` in bytes, ``sha256`` in hex."""

    size: int
    sha256: str


class FileStorage:
    """Files by key, in a directory or a bucket, and the parts of those that are still coming."""

    def __init__(self, place: Path | S3Store, public_url: str) -> None:
        """Open the storage, making the directory where it is missing. A bucket has to be there."""
        self._directory = place if isinstance(place, Path) else None
        self._store: LocalStore | S3Store
        self._store = LocalStore(place, mkdir=True, automatic_cleanup=True) if isinstance(place, Path) else place
        self._addresses = Addresses(public_url)
        self._hashes: OrderedDict[tuple[str, str], asyncio.Task[str]] = OrderedDict()

    @classmethod
    def open(cls, storage_url: str, public_url: str) -> FileStorage:
        """Open the storage that a ``file:///…`` or ``s3://bucket/prefix`` URL names.

        Raises:
            ValueError: The URL has another scheme, or names no bucket; or ``public_url`` is none.
        """
        parts = urlsplit(storage_url)
        if parts.scheme == "file":
            return cls(Path(unquote(parts.path)), public_url)
        if parts.scheme == "s3" and parts.netloc:
            return cls(open_bucket(parts.netloc, unquote(parts.path).strip("/")), public_url)
        raise ValueError("SVD_STORAGE_URL must be file:///DIRECTORY or s3://BUCKET/PREFIX")

    async def check(self) -> None:
        """Write, read and delete a file that nobody sees.

        Raises:
            StorageUnavailable: The storage does not take it, or does not give it back, within ``CHECK_SECONDS``.
        """
        key = f"{PARTS}/check-{uuid4().hex}/1"
        try:
            with told_as_unavailable():
                async with asyncio.timeout(CHECK_SECONDS - _CLEAR_SECONDS):
                    await obstore.put_async(self._store, key, _PROBE)
                    found = bytes(await obstore.get_range_async(self._store, key, start=0, end=len(_PROBE)))
                    await self._delete(key)
        except BaseException:
            with contextlib.suppress(StorageUnavailable, TimeoutError):
                async with asyncio.timeout(_CLEAR_SECONDS):  # else the sweep of old parts finds it
                    await self.delete(key)
            raise
        if found != _PROBE:
            raise StorageUnavailable("The file storage does not give back what it was given")

    async def mark(self) -> str | None:
        """What ``set_mark`` wrote last; None where it never did.

        Raises:
            StorageUnavailable: The storage cannot be reached.
        """
        try:
            with told_as_unavailable(FileNotFoundError):
                got = await obstore.get_async(self._store, MARK)
                return bytes(await got.bytes_async()).decode(errors="replace")
        except FileNotFoundError:
            return None

    async def set_mark(self, mark: str) -> None:
        """Keep a short text with the files, which says whose they are.

        Raises:
            StorageUnavailable: The storage takes nothing at the moment.
        """
        await self.write(MARK, pieces_of(mark.encode()), len(mark))

    async def put(self, source: Path, key: str) -> File:
        """Store a copy of a file. On return it is on the disk, whole; else as ``write`` says.

        Raises:
            StorageUnavailable: The storage takes nothing at the moment.
        """
        content_type = type_of(key)
        with source.open("rb") as file:
            stored = await self.write(key, file_pieces(file), source.stat().st_size, content_type)
        return File(
            url=self.url_of(key),
            content_type=content_type,
            file_name=Path(key).name,
            file_size=stored.size,
            sha256=stored.sha256,
        )

    async def write(
        self, key: str, pieces: AsyncIterable[bytes], max_bytes: int, content_type: str | None = None
    ) -> Stored:
        """Store what arrives in pieces. On return it is on the disk, whole; after an error nothing is left.

        But a bucket may take what it was sent, though it did not say so in time, or its sender was cancelled. Such a
        file is whole, and has no row.

        Args:
            key: The file's key.
            pieces: Its bytes.
            max_bytes: How many may come.
            content_type: What a bucket's own address will say of it; by default, what its name says.

        Raises:
            PayloadTooLarge: There are more than ``max_bytes`` bytes; the rest was not read.
            StorageUnavailable: The storage takes nothing at the moment.
        """
        source = Source(pieces, max_bytes, _WRITTEN_AT_ONCE if self._directory else CHUNK)
        try:
            await self._put(key, source, self._attributes(key, content_type or type_of(key)))
        except BaseException:
            if self._directory:
                await asyncio.to_thread(remove_empty, (self._directory / key).parent)
            raise
        return Stored(source.size, source.sha256)

    async def write_part(self, upload: str, number: int, pieces: AsyncIterable[bytes], max_bytes: int) -> str:
        """Keep one part of an upload in place of an earlier one with its number; answer its ETag.

        Raises:
            PayloadTooLarge: The upload has more than ``max_bytes`` bytes with it.
            StorageUnavailable: The storage takes nothing at the moment.
        """
        key = _part_key(upload, number)
        await self.write(key, pieces, max_bytes - await self._size_beside(upload, number))
        if await self._size_beside(upload, 0) > max_bytes:  # others came in at the same time
            await self._delete(key)
            raise too_large(max_bytes)
        return (await self._head(key)).etag

    async def join(
        self,
        upload: str,
        parts: Sequence[tuple[int, str]],
        key: str,
        max_bytes: int,
        content_type: str | None = None,
    ) -> Stored:
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
        return await self.write(key, self._read_parts(upload, [number for number, _ in parts]), max_bytes, content_type)

    async def discard(self, upload: str) -> None:
        """Forget the parts of an upload.

        Raises:
            StorageUnavailable: The storage cannot be reached.
        """
        for meta in await self._list_parts(upload):
            await self._delete(meta["path"])
        if self._directory:
            await asyncio.to_thread(remove_drafts, self._directory / PARTS / upload, "*")

    async def delete(self, key: str) -> None:
        """Delete a file, and what was left of an attempt to write it; nothing happens where there is none.

        Raises:
            StorageUnavailable: The storage cannot be reached.
        """
        await self._delete(key)
        if self._directory:
            path = self._directory / key
            await asyncio.to_thread(remove_drafts, path.parent, glob.escape(path.name))

    async def stat(self, key: str) -> Stat:
        """Size, ETag and type of a file.

        Raises:
            NotFound: There is no such file.
            StorageUnavailable: The storage cannot be reached.
        """
        check_key(key)
        try:
            return await self._head(key)
        except (FileNotFoundError, ValueError):
            raise NotFound("No such file") from None

    async def verify(self, key: str, size: int, sha256: str | None) -> Stat:
        """Check that a file has the bytes that were recorded of it. It is read once in a process, while it stays.

        Raises:
            FileDamaged: It is gone, or has other bytes.
            StorageUnavailable: The storage cannot be reached.
        """
        try:
            stat = await self.stat(key)
        except NotFound:
            raise FileDamaged("The file is lost") from None
        if stat.size != size or (sha256 is not None and await self._hash(key, stat) != sha256):
            raise FileDamaged("The file is damaged")
        return stat

    async def read(self, key: str, start: int, end: int, etag: str | None = None) -> AsyncIterator[bytes]:
        """The bytes from ``start`` up to ``end`` (exclusive), in pieces, of the file that has this ETag.

        Raises:
            NotFound: No file can have this key.
            FileDamaged: The file is gone, or another stands in its place.
            StorageUnavailable: The storage cannot be reached.
        """
        check_key(key)
        while start < end:
            try:
                piece = await self._range(key, start, min(end, start + CHUNK), etag)
            except (FileNotFoundError, PreconditionError):
                raise FileDamaged("The file has changed while it was read") from None
            yield piece
            start += len(piece)

    async def signed_url(self, key: str, seconds: float) -> str | None:
        """An address at which a bucket gives the file to anybody for a time; None for a directory.

        Raises:
            StorageUnavailable: The credentials to sign it with cannot be had.
        """
        check_key(key)
        if not isinstance(self._store, S3Store):
            return None
        with told_as_unavailable():
            return await obstore.sign_async(self._store, "GET", key, timedelta(seconds=seconds))

    async def older_than(self, seconds: float) -> AsyncGenerator[list[str], None]:
        """Lists of keys of files that were stored so long ago, and afterwards of parts, until all have been named.

        A directory is cleared on the way of what processes that died had begun.
        """
        before = time.time() - seconds
        for prefix in (FILES, PARTS):
            if self._directory:
                found = walk(self._directory, prefix, before)
                while batch := await asyncio.to_thread(list, itertools.islice(found, _LISTED_AT_ONCE)):
                    yield [key for key in batch if key]
            else:
                with told_as_unavailable():
                    async for listed in obstore.list(self._store, prefix, chunk_size=_LISTED_AT_ONCE):
                        yield [meta["path"] for meta in listed if meta["last_modified"].timestamp() < before]

    def url_of(self, key: str) -> str:
        """The address of a file."""
        return self._addresses.url_of(key)

    def key_of(self, url: str) -> str | None:
        """The key behind a URL of ours, however it is written; None for any other, and where no file can have it."""
        return self._addresses.key_of(url)

    def owns(self, url: str) -> bool:
        """Whether a URL leads to this server, to a file or to anything else."""
        return self._addresses.owns(url)

    def _attributes(self, key: str, content_type: str) -> Attributes:
        """What a bucket is told of a file, so that its own address answers as ours does."""
        if self._directory:
            return {}
        disposition = disposition_of(key, content_type)
        return {"Content-Type": content_type} | ({"Content-Disposition": disposition} if disposition else {})

    async def _put(self, key: str, source: Source, attributes: Attributes) -> None:
        """Hand the bytes to obstore, which drops what it has begun when they end in an error.

        It would leave it when it is itself cancelled, so the source is.
        """
        piece_bytes = _WRITTEN_AT_ONCE if self._directory else _S3_PIECE
        whole = await source.whole(piece_bytes)
        given = source if whole is None else whole
        with told_as_unavailable():
            putting = asyncio.ensure_future(
                obstore.put_async(
                    self._store, key, given, attributes=attributes, chunk_size=piece_bytes, max_concurrency=1
                )
            )
            try:
                await asyncio.shield(putting)
            except asyncio.CancelledError:
                source.stop()
                await asyncio.wait([putting])
                raise
            except STORE_AWAY:
                if not source.failure:
                    raise
        if source.failure:
            raise source.failure
        if self._directory:
            with told_as_unavailable():
                await asyncio.to_thread(sync_to_disk, self._directory / key)

    async def _hash(self, key: str, stat: Stat) -> str:
        version = (key, stat.etag)
        if version not in self._hashes:
            self._hashes[version] = asyncio.create_task(self._read_hash(key, stat))
            self._hashes[version].add_done_callback(functools.partial(self._forget_failed, version))
            if len(self._hashes) > _MOST_HASHES:
                self._hashes.popitem(last=False)
        self._hashes.move_to_end(version)
        return await asyncio.shield(self._hashes[version])

    def _forget_failed(self, version: tuple[str, str], reading: asyncio.Task[str]) -> None:
        """Let the next who asks read anew; whoever waited for this one may be gone."""
        if (reading.cancelled() or reading.exception()) and self._hashes.get(version) is reading:
            del self._hashes[version]

    async def _read_hash(self, key: str, stat: Stat) -> str:
        digest = hashlib.sha256()
        async for piece in self.read(key, 0, stat.size, stat.etag):
            await asyncio.to_thread(digest.update, piece)
        return digest.hexdigest()

    async def _head(self, key: str) -> Stat:
        with told_as_unavailable(FileNotFoundError):
            meta = await obstore.head_async(self._store, key)
        etag = _bare(meta["e_tag"]) or f"{meta['size']:x}-{meta['last_modified'].timestamp():x}"
        return Stat(meta["size"], f'"{etag}"', meta["last_modified"].timestamp(), type_of(key))

    async def _range(self, key: str, start: int, end: int, etag: str | None) -> bytes:
        with told_as_unavailable(FileNotFoundError, PreconditionError):
            options: obstore.GetOptions = {"range": (start, end)}
            if etag is not None:
                options["if_match"] = etag
            got = await obstore.get_async(self._store, key, options=options)
            return bytes(await got.bytes_async())

    async def _delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError), told_as_unavailable(FileNotFoundError):
            await obstore.delete_async(self._store, key)

    async def _list_parts(self, upload: str) -> Sequence[obstore.ObjectMeta]:
        with told_as_unavailable():
            return await obstore.list(self._store, f"{PARTS}/{upload}").collect_async()

    async def _size_beside(self, upload: str, number: int) -> int:
        return sum(meta["size"] for meta in await self._list_parts(upload) if Path(meta["path"]).name != str(number))

    async def _read_parts(self, upload: str, numbers: Sequence[int]) -> AsyncIterator[bytes]:
        for number in numbers:
            key = _part_key(upload, number)
            try:
                stat = await self._head(key)
                for start in range(0, stat.size, CHUNK):
                    yield await self._range(key, start, min(stat.size, start + CHUNK), stat.etag)
            except (FileNotFoundError, PreconditionError):  # another call has joined them meanwhile
                raise _no_part(number) from None


def _part_key(upload: str, number: int) -> str:
    return f"{PARTS}/{upload}/{number}"


def _no_part(number: int) -> BadRequest:
    return BadRequest(f"Part {number} was not uploaded, or has another ETag")


def _bare(etag: str | None) -> str | None:
    return etag and etag.strip('"')
