"""Rows of the database as they were a moment ago: what is asked with every call, without a query for every call.

get(id) ──▶ in memory, and not old? ──▶ the row
              └─ no ──▶ read all of them again, once for all who wait ──▶ the row, or None
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from deployments.errors import Unavailable

VALID_SECONDS = 5.0
"""How old the rows in memory may be for one of them to be believed: a removal takes effect within this time."""

UNKNOWN_SECONDS = 1.0
"""How old they may be for something to be refused because it is not among them: what is new works within this time."""


class Named(Protocol):
    """What has an id."""

    @property
    def id(self) -> str:
        """Its id."""


Row = TypeVar("Row", bound=Named)
Value = TypeVar("Value")


class Recent(Generic[Row]):
    """A few rows, read again when they are old: neither polls nor ids made up at random cost more than that."""

    def __init__(self, read: Callable[[], Awaitable[Sequence[Row]]]) -> None:
        """Hold what this reads. Nothing is read yet."""
        self._read = read
        self._known: Mapping[str, Row] = {}
        self._read_at = self._forgotten_at = -VALID_SECONDS
        self._failure: Unavailable | None = None
        self._failed_at = 0.0
        self._reading = asyncio.Lock()

    async def all(self) -> Sequence[Row]:
        """All of them, in the order in which they were read."""
        await self._read_if_older_than(VALID_SECONDS)
        return list(self._known.values())

    async def get(self, id: str) -> Row | None:
        """The row of this id; None where there is none."""
        await self._read_if_older_than(VALID_SECONDS)
        if id not in self._known:
            await self.renew()
        return self._known.get(id)

    async def renew(self) -> None:
        """Read them again before something is refused for what they say, unless they are new."""
        await self._read_if_older_than(UNKNOWN_SECONDS)

    @property
    def age(self) -> float:
        """For how many seconds what they say may have been so no longer."""
        return time.monotonic() - self._read_at

    def forget(self) -> None:
        """Read them again before the next is believed: this process has changed one."""
        self._forgotten_at = time.monotonic()

    async def _read_if_older_than(self, seconds: float) -> None:
        came = time.monotonic()
        if self._is_older_than(seconds):
            async with self._reading:
                if self._failure and self._failed_at > came:  # for whoever waited: not one after the other
                    raise Unavailable(self._failure.message) from self._failure
                if self._is_older_than(seconds):
                    await self._read_now()

    async def _read_now(self) -> None:
        begun = time.monotonic()
        try:
            self._known, self._failure = {row.id: row for row in await self._read()}, None
            self._read_at = begun
        except Unavailable as failure:
            self._failure, self._failed_at = failure, begun
            raise

    def _is_older_than(self, seconds: float) -> bool:
        return self._read_at <= self._forgotten_at or time.monotonic() - self._read_at >= seconds


class Lately(Generic[Value]):
    """What is read for all who ask, and no more often than once in so many seconds."""

    def __init__(self, read: Callable[[], Awaitable[Value]], seconds: float) -> None:
        """Hold what this reads. Nothing is read yet."""
        self._read = read
        self._seconds = seconds
        self._reading: asyncio.Future[Value] | None = None
        self._begun = 0.0

    async def __call__(self) -> Value:
        """What was read lately. A failure is that of all who waited for it, and of nobody who comes later."""
        if self._reading is None or self._is_over(self._reading):
            self._begun = time.monotonic()
            self._reading = asyncio.ensure_future(self._read())
        return await asyncio.shield(self._reading)

    def _is_over(self, reading: asyncio.Future[Value]) -> bool:
        if not reading.done():
            return False
        failed = reading.cancelled() or reading.exception() is not None
        return failed or time.monotonic() - self._begun >= self._seconds
