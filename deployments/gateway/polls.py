"""Polling that scales: a status that has not changed since its caller last saw it is answered late.

    poll ──▶ first, or changed? ── yes ──▶ answer now
                    └── no ──▶ wait for a change, at most a second ──▶ answer

The Python client asks ten times a second. Held, it hears of the end as soon as it comes, and asks once a second.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import NamedTuple

from deployments.queue.request import InferenceRequest, RequestStatus, Version
from deployments.queue.watch import Changes, Positions

POSITION_SECONDS = 0.5
"""How often a held poll looks whether its request has moved up in the queue."""

REMEMBERED = 20_000
"""Requests whose last answer is known; the one asked for longest ago is forgotten first."""


Find = Callable[[], Awaitable[InferenceRequest | None]]


class Told(NamedTuple):
    """What an answer said that may change, and the request as it was then."""

    version: Version
    position: int | None
    request: InferenceRequest


class Polls:
    """Remembers what each caller was told of each request, and holds the same answer back.

    A held poll asks the database nothing of its own: all of them share the query that looks for changes.
    """

    def __init__(self, changes: Changes, positions: Positions, hold_seconds: float) -> None:
        """Hold an unchanged answer for ``hold_seconds`` at the most; 0 holds none."""
        self._changes = changes
        self._positions = positions
        self._hold_seconds = hold_seconds
        self._told: OrderedDict[Hashable, Told] = OrderedDict()

    async def look(self, who: Hashable, find: Find, with_logs: bool) -> InferenceRequest | None:
        """A request, as soon as there is something new to say of it or no more patience.

        Args:
            who: Who asks for what; polls that are equal in it get the same answer.
            find: Reads the request; None if there is none.
            with_logs: Whether a new line in its log is something new.
        """
        last = self._told.pop(who, None)
        if last:
            request, version = await self._held(last, find, with_logs)
        elif request := await find():
            version = Version.of(request)
        if request and request.status != RequestStatus.COMPLETED and self._hold_seconds:
            self._remember(who, Told(version, await self._ahead(request), request))
        return request

    async def _held(self, last: Told, find: Find, with_logs: bool) -> tuple[InferenceRequest | None, Version]:
        """The request and its version: at once when there is news, else those that were told, after a while."""
        give_up = time.monotonic() + self._hold_seconds
        while (left := give_up - time.monotonic()) > 0:
            patience = min(left, POSITION_SECONDS)
            version = await self._changes.since(last.request.id, last.version, patience, lines=with_logs)
            if version != last.version or await self._ahead(last.request) != last.position:
                return await find(), version
        return last.request, last.version

    async def _ahead(self, request: InferenceRequest) -> int | None:
        return await self._positions.ahead(request) if request.status == RequestStatus.IN_QUEUE else None

    def _remember(self, who: Hashable, told: Told) -> None:
        self._told[who] = told
        while len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
