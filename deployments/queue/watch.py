"""What many waiters share, so that each costs the store nothing: positions, and news of changes.

Both ask the database only while somebody asks them, and at most once an interval.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

from deployments.errors import NotFound, Unavailable
from deployments.queue.request import InferenceRequest, RequestStatus, Version
from deployments.queue.store import RequestStore
from deployments.queue.turns import Lane, ahead


class Positions:
    """Places in the queue, from a snapshot of each model's lanes."""

    def __init__(self, store: RequestStore, max_age: float = 0.5) -> None:
        """Snapshots are renewed when older than ``max_age`` seconds."""
        self._store = store
        self._max_age = max_age
        self._snapshots: dict[str, tuple[float, list[Lane]]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def ahead(self, request: InferenceRequest) -> int:
        """How many requests go before this one, if every key has its turn and nothing new comes."""
        return ahead(await self._lanes(request.model), request.priority, request.key_id, request.seq)

    async def depth(self, model: str) -> int:
        """How many requests wait for a model."""
        return sum(len(lane.seqs) for lane in await self._lanes(model))

    async def _lanes(self, model: str) -> list[Lane]:
        async with self._locks.setdefault(model, asyncio.Lock()):
            taken, lanes = self._snapshots.get(model, (-self._max_age, []))
            if time.monotonic() - taken >= self._max_age:
                lanes = await self._store.lanes(model)
                self._snapshots[model] = (time.monotonic(), lanes)
        return lanes


class Changes:
    """Waiting for requests to change: one query an interval for all who wait in this process."""

    def __init__(self, store: RequestStore, interval: float = 0.05) -> None:
        """Look every ``interval`` seconds while anybody waits."""
        self._store = store
        self._interval = interval
        self._watched: Counter[str] = Counter()
        self._changed = asyncio.Condition()
        self._versions: dict[str, Version] = {}
        self._gone: set[str] = set()
        self._watcher: asyncio.Task[None] | None = None

    async def completion(self, request_id: str) -> None:
        """Return when the request has ended.

        Raises:
            NotFound: It was deleted meanwhile, or lost: the database was replaced by an older copy of itself.
        """
        await self._wait_for(request_id, lambda version: version.status == RequestStatus.COMPLETED)

    async def since(self, request_id: str, seen: Version, seconds: float, *, lines: bool = True) -> Version:
        """Return the request's version as soon as it differs from ``seen``, or ``seen`` after so many seconds.

        Without ``lines``, a new line in its log makes no difference.

        Raises:
            NotFound: As for ``completion``.
        """
        old = seen if lines else seen._replace(last_line=0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._wait_for(
                    request_id, lambda version: (version if lines else version._replace(last_line=0)) != old
                )
        return seen

    async def close(self) -> None:
        """Look no more, before the store is closed."""
        if self._watcher:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)

    async def _wait_for(self, request_id: str, is_it: Callable[[Version], bool]) -> Version:
        async with self._watching(request_id), self._changed:
            await self._changed.wait_for(lambda: self._has_news(request_id, is_it))
            if request_id in self._gone:
                raise NotFound("There is no such request any more")
            return self._versions[request_id]

    def _has_news(self, request_id: str, is_it: Callable[[Version], bool]) -> bool:
        version = self._versions.get(request_id)
        return request_id in self._gone or (version is not None and is_it(version))

    @contextlib.asynccontextmanager
    async def _watching(self, request_id: str) -> AsyncIterator[None]:
        self._watched[request_id] += 1
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self._watched[request_id] -= 1
            if not self._watched[request_id]:
                del self._watched[request_id]
                self._versions.pop(request_id, None)
                self._gone.discard(request_id)

    async def _watch(self) -> None:
        while self._watched:
            with contextlib.suppress(Unavailable):  # the store comes back; nobody who waits is told otherwise
                asked = set(self._watched)
                versions = await self._store.versions(asked)
                async with self._changed:
                    self._versions = {id: version for id, version in versions.items() if id in self._watched}
                    self._gone = {id for id in asked - versions.keys() if id in self._watched}
                    self._changed.notify_all()
            await asyncio.sleep(self._interval)
