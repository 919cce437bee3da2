"""Health: whether the process lives, and whether the service can do its work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from deployments.errors import StorageUnavailable
from deployments.queue.store import RequestStore
from deployments.storage import FileStorage

NotReady = Callable[[], Awaitable[str | None]]
"""Answers why the application cannot serve yet, or None."""

STORAGE_SECONDS = 10.0
"""How long an answer about the file storage is good for."""


def health_router(store: RequestStore, storage: FileStorage, not_ready: NotReady) -> APIRouter:
    """The routes by which supervisors and load balancers ask."""
    router = APIRouter(prefix="/health")
    check = StorageCheck(storage)

    @router.get("/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @router.get("/ready")
    async def ready() -> Response:
        await store.ping()
        reason = await not_ready() or await check()
        return JSONResponse({"status": reason or "ready"}, 503 if reason else 200)

    return router


class StorageCheck:
    """Whether the file storage takes files; asked now and then, however often it is wanted."""

    def __init__(self, storage: FileStorage) -> None:
        """Know nothing yet."""
        self._storage = storage
        self._asked = -STORAGE_SECONDS
        self._reason: str | None = None
        self._lock = asyncio.Lock()

    async def __call__(self) -> str | None:
        """Why nothing can be stored, or None."""
        async with self._lock:
            if time.monotonic() - self._asked >= STORAGE_SECONDS:
                self._reason = await self._ask()
                self._asked = time.monotonic()
        return self._reason

    async def _ask(self) -> str | None:
        try:
            await self._storage.check()
        except StorageUnavailable as error:
            return error.message
        return None
