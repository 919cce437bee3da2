"""A gateway without replicas behind it: for endpoints that nobody serves, and a past that nobody has waited for.

endpoints ──▶ create_api ──▶ uvicorn, in the test's own loop ◀── browser
input, status, key ──▶ a request that has ended
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from deployments.gateway.api import create_api
from deployments.inference.encode import encode_mp4
from deployments.models.base import Endpoint
from deployments.queue.store import RequestStore
from deployments.queue.tables import request_io
from deployments.storage import FileStorage
from tests.conftest import free_port
from tests.gateway.conftest import KEY, TEXT_TO_VIDEO
from tests.queue.past import ended

CLIP = "b/0/clip.mp4"


@dataclass(frozen=True)
class Light:
    """A gateway that runs, and the queue behind it."""

    url: str
    key: str
    store: RequestStore

    async def past(self, input: Mapping[str, Any], status: int = 200, **changes: Any) -> str:
        """The id of a request that ended a moment ago; its row may be changed."""
        made = {"video": {"url": f"{self.url}/files/{CLIP}"}, "seed": 7}
        values = {"endpoint": TEXT_TO_VIDEO, "key_id": "id", "status_code": status}
        values["output"] = made if status < 300 else {"detail": "It did not work"}
        id = await ended(self.store, time.time(), **(values | changes))
        async with self.store.database.transaction() as connection:
            kept = request_io.update().where(request_io.c.request_id == id)
            await connection.execute(kept.values(input=json.dumps(input)))
        return id


@asynccontextmanager
async def open_light(store: RequestStore, endpoints: Mapping[str, Endpoint], folder: Path) -> AsyncIterator[Light]:
    """A gateway for the time of a test."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    storage = FileStorage(folder / "files", url)
    clip = folder / "clip.mp4"
    frames = np.zeros((25, 64, 112, 3), np.uint8)
    frames[:, :, :, 0] = np.arange(25)[:, None, None] * 10
    await asyncio.to_thread(encode_mp4, frames, 10, clip)
    await storage.put(clip, CLIP)

    async def open_store() -> RequestStore:
        return store

    async def ready() -> None:
        return None

    app = create_api(endpoints, open_store, storage, KEY, url, ready)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.05)
        yield Light(url, KEY, store)
    finally:
        server.should_exit = True
        await serving
