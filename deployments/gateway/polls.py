"""Polling that scales: a status that has not changed since its caller last saw it is answered late.

    poll ──▶ first, or changed? ── yes ──▶ answer now
                    └── no ──▶ wait for a change, at most a second ──▶ answer

The Python client asks ten times a second. Held, it hears of the end as soon as it comes, and asks once a second.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import NamedTuple

from deployments.queue.request import InferenceRequest, RequestStatus, Version
from deployments.queue.store import RequestStore
from deployments.queue.watch import Changes, Positions

POSITION_SECONDS = 0.5
"""How often a held poll looks whether its request has moved up in the queue."""

REMEMBERED = 20_000
"""Requests whose last answer is known; the one asked for longest ago is forgotten first."""


class Told(NamedTuple):
    """What an answer says that may change."""

    version: Version
    position: int | None


class Polls:
    """Remembers what each caller was told of each request, and holds the same answer back."""

    def __init__(self, store: RequestStore, changes: Changes, positions: Positions, hold_seconds: float) -> None:
        """Hold an unchanged answer for ``hold_seconds`` at the most; 0 holds none."""
        self._store = store
        self._changes = changes
        self._positions = positions
        self._hold_seconds = hold_seconds
        self._told: OrderedDict[tuple[str, bool], Told] = OrderedDict()

    async def hold(self, request: InferenceRequest, with_logs: bool) -> InferenceRequest:
        """Return the request as it is when there is something new to say of it, or no more patience."""
        if not self._hold_seconds or request.status == RequestStatus.COMPLETED:
            self._told.pop((request.id, with_logs), None)
            return request
        last = self._told.get((request.id, with_logs))
        give_up = time.monotonic() + self._hold_seconds
        version = (await self._store.versions([request.id]))[request.id]
        told = await self._tell(request, version, with_logs)
        while told == last and (left := give_up - time.monotonic()) > 0:
            patience = min(left, POSITION_SECONDS)
            version = await self._changes.since(request.id, version, patience) or version
            told = await self._tell(request, version, with_logs)
        self._remember((request.id, with_logs), told)
        return await self._store.get(request.id) or request if told != last else request

    async def _tell(self, request: InferenceRequest, version: Version, with_logs: bool) -> Told:
        waits = version.status == RequestStatus.IN_QUEUE
        position = await self._positions.ahead(request) if waits else None
        return Told(version if with_logs else version._replace(last_line=0), position)

    def _remember(self, key: tuple[str, bool], told: Told) -> None:
        self._told[key] = told
        self._told.move_to_end(key)
        while len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
