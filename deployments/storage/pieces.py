"""Bytes on their way into the storage."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator
from typing import BinaryIO

from deployments.errors import PayloadTooLarge

CHUNK = 1024 * 1024


class Source:
    """A file's bytes on their way into the storage: counted, hashed, and in pieces that are not too small.

    They are pulled from tasks of obstore's, so it remembers which one waits, and what went wrong.
    """

    def __init__(self, pieces: AsyncIterable[bytes], max_bytes: int, at_once: int) -> None:
        """Take at most so many bytes, and hand on so many at once: each piece costs a way to another thread."""
        self.size = 0
        self.failure: Exception | None = None
        self._pieces = aiter(pieces)
        self._max_bytes = max_bytes
        self._at_once = at_once
        self._digest = hashlib.sha256()
        self._gathered = bytearray()
        self._first: deque[bytes] = deque()
        self._exhausted = False
        self._waiting: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def sha256(self) -> str:
        """The hash, once all has been pulled."""
        return self._digest.hexdigest()

    async def whole(self, most: int) -> bytes | None:
        """The whole file, where it has not more bytes than this; else its beginning is kept for who pulls it."""
        while not self._exhausted and self.size <= most:
            self._first.append(await self._next())
        return b"".join(self._first) if self._exhausted and self.size <= most else None

    def stop(self) -> None:
        """End with an error what pulls."""
        self._stopped = True
        if self._waiting:
            self._waiting.cancel()

    def __aiter__(self) -> Source:
        """As obstore asks for them."""
        return self

    async def __anext__(self) -> bytes:
        """As obstore asks for them."""
        self._waiting = asyncio.current_task()
        if self._stopped:
            raise asyncio.CancelledError
        try:
            piece = self._first.popleft() if self._first else await self._next()
        except Exception as error:
            self.failure = error
            raise
        if not piece:
            raise StopAsyncIteration
        return piece

    async def _next(self) -> bytes:
        """The next piece; empty at the end."""
        while len(self._gathered) < self._at_once and not self._exhausted:
            piece = await anext(self._pieces, None)
            if piece is None:
                self._exhausted = True
            else:
                self._take(piece)
        gathered = bytes(self._gathered)
        self._gathered.clear()
        return gathered

    def _take(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size > self._max_bytes:
            raise too_large(self._max_bytes)
        self._digest.update(piece)
        self._gathered += piece


async def file_pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    """A local file's bytes. Whoever opened it closes it, for nobody may pull them to their end."""
    while piece := await asyncio.to_thread(file.read, CHUNK):
        yield piece


async def pieces_of(content: bytes) -> AsyncIterator[bytes]:
    """Bytes that are there already."""
    yield content


def too_large(max_bytes: int) -> PayloadTooLarge:
    """What a file is told that has more bytes than it may."""
    return PayloadTooLarge(f"The file has more than {max_bytes} bytes")
