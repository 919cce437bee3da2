"""What becomes of a dispatcher's attempts, written down however long the store is away.

    outcome, loss, progress ──▶ store
    files that nobody will name ──▶ kept in mind ──▶ deleted from the file storage, beside all else

The store's fence decides whether an attempt is still this dispatcher's. A result that it turns away is dropped with its
files: somebody else's is the one that counts. But where the store was away meanwhile, this very result may be what it
holds already: then nothing is deleted, and whoever sweeps the storage decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from deployments import logs
from deployments.costs import NOTHING, Cost
from deployments.errors import StorageUnavailable, Unavailable
from deployments.models.messages import Attempt, Progress, StoredFile
from deployments.queue.request import LogLine
from deployments.queue.store import Outcome, RequestStore
from deployments.storage import FileStorage

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_UNWANTED = 10_000
"""How many files are kept in mind that are to be deleted. Whoever sweeps the storage finds the others later."""


class Recorder:
    """Writes for one dispatcher."""

    def __init__(self, store: RequestStore, storage: FileStorage, owner: str, retry_seconds: float) -> None:
        """Write in the name of ``owner``; where the store is away, again each ``retry_seconds``."""
        self._store = store
        self._storage = storage
        self._owner = owner
        self._retry_seconds = retry_seconds
        self._lines: list[LogLine] = []
        self._previews: list[tuple[str, StoredFile]] = []
        self._unwanted: deque[StoredFile] = deque(maxlen=MOST_UNWANTED)
        self._writing = asyncio.Lock()

    def note(self, event: Progress, request_ids: Sequence[str]) -> None:
        """Keep a line for the logs of these requests, those of the event's that still run."""
        preview = event.preview.key if event.preview else None
        at = time.time()
        self._lines += [LogLine(each, event.message, at, "INFO", event.fraction, preview) for each in request_ids]
        if event.preview:
            self._previews += [(each, event.preview) for each in request_ids]
            self._unwanted += [] if request_ids else [event.preview]  # it came too late

    async def write_logs(self) -> None:
        """Write the lines kept so far.

        Raises:
            Unavailable: The store is away; the lines are gone.
        """
        async with self._writing:
            lines, self._lines = self._lines, []
            previews, self._previews = self._previews, []
            if lines:
                await self._store.log(lines, previews)

    async def delete_unwanted(self) -> None:
        """Delete the files that nobody will name."""
        while self._unwanted:
            file = self._unwanted.popleft()
            try:
                await self._storage.delete(file.key)
            except (StorageUnavailable, OSError) as error:  # whoever sweeps the storage finds it later
                logger.warning("a file that nobody wants stays: %s", error)

    async def end(self, attempt: Attempt, outcome: Outcome) -> None:
        """Write how an attempt ended."""
        ours, in_doubt = await self._persist(lambda: self._store.complete(attempt, self._owner, outcome))
        if not ours:
            logger.warning("attempt %s of %s was not ours any more", attempt.number, attempt.request_id)
            self._unwanted += [] if in_doubt else outcome.files

    async def lose(
        self,
        attempt: Attempt,
        reason: str,
        *,
        crashed: bool = False,
        retry_seconds: float = 0.0,
        cost: Cost = NOTHING,
    ) -> None:
        """Write that an attempt was lost; ``crashed``, with its replica's process."""
        with logs.request_context(attempt.request_id, attempt.traceparent):
            logger.warning("attempt %s was lost: %s", attempt.number, reason)
        await self._persist(
            lambda: self._store.lose(
                attempt, self._owner, reason, crashed=crashed, retry_seconds=retry_seconds, cost=cost
            )
        )

    async def put_back(self, attempts: Sequence[Attempt], reason: str, retry_seconds: float = 0.0) -> None:
        """Give back what no replica has begun."""
        if attempts:
            await self._persist(
                lambda: self._store.put_back(attempts, self._owner, reason, retry_seconds=retry_seconds)
            )

    async def _persist(self, write: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """What the store answers, and whether an earlier answer was lost: it may have been written then."""
        in_doubt = False
        while True:
            try:
                return await write(), in_doubt
            except Unavailable as error:
                logger.warning("%s: %s", error, error.__cause__)
            in_doubt = True
            await asyncio.sleep(self._retry_seconds)
