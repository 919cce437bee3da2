"""What a scrape of ``/metrics`` weighs and takes: ``python -m loadtest.scrape [--rows N …]``.

    N requests have ended today, a tenth of them in the last minute, and N / 10 wait ──▶ first scrape, then later ones

SQLite, then PostgreSQL, both durable, through the gateway's own application. The first scrape of a process counts the
whole day; each later one the last minute and what is open.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import yaml
from sqlalchemy import insert, select

from deployments.gateway.api import create_api
from deployments.gateway.metrics_routes import READ_SECONDS
from deployments.models.base import Endpoint
from deployments.queue.request import RequestStatus
from deployments.queue.store import RequestStore
from deployments.queue.tables import now, request_io, requests
from deployments.settings import AppArgs
from deployments.storage import FileStorage
from loadtest.postgres import Postgres, open_folder, programs

CONFIG = Path(__file__).parents[1] / "serve_config.yaml"
KEY, URL = "id:secret", "http://127.0.0.1:8000"
SIZES = (10_000, 100_000)
SCRAPES = 20
ROWS_AT_ONCE = 500
MINUTE = 60.0


def main() -> None:
    """Print the figures of each store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES, help="requests that have ended today")
    options = parser.parse_args()
    with open_folder("svd-serve-scrape-") as folder:
        asyncio.run(measure("SQLite", lambda name: f"sqlite+aiosqlite:///{folder}/{name}.db", options.rows, folder))
        if programs() is None:
            print("PostgreSQL is not installed")
            return
        server = Postgres(folder / "postgres")
        server.start()
        try:
            asyncio.run(measure("PostgreSQL", server.create, options.rows, folder))
        finally:
            server.stop()


async def measure(kind: str, new_database: Callable[[str], str], sizes: list[int], folder: Path) -> None:
    """All figures of one kind of store."""
    for rows in sizes:
        url = new_database(f"rows{rows}")
        store = await RequestStore.open(url)
        await _fill(store, rows)
        await store.close()
        async with _gateway(url, folder) as client:
            first, size = await _scrape(client)
            later = []
            for _ in range(SCRAPES):
                await asyncio.sleep(READ_SECONDS)  # an answer younger than that is given again
                later.append((await _scrape(client))[0])
        print(
            f"{kind}, {rows:,} ended: {size / 1000:.0f} kB, the first in {first * 1000:.0f} ms, later ones in "
            f"{statistics.median(later) * 1000:.0f} ms ({max(later) * 1000:.0f} ms at the most)"
        )


async def _scrape(client: httpx.AsyncClient) -> tuple[float, int]:
    """How long a scrape takes, and its bytes."""
    began = time.monotonic()
    reply = await client.get("/metrics")
    reply.raise_for_status()
    return time.monotonic() - began, len(reply.content)


@asynccontextmanager
async def _gateway(url: str, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway that has just started."""

    async def ready() -> None:
        return None

    async def open_store() -> RequestStore:
        return await RequestStore.open(url)

    app: Any = create_api(_endpoints(), open_store, FileStorage(folder / "files", URL), KEY, URL, ready)
    fast_api = app
    while not hasattr(fast_api, "router"):
        fast_api = getattr(fast_api, "_app", None) or fast_api.app
    headers = {"authorization": f"Key {KEY}"}
    transport = httpx.ASGITransport(app)
    async with (
        fast_api.router.lifespan_context(fast_api),
        httpx.AsyncClient(transport=transport, base_url=URL, headers=headers, timeout=60) as client,
    ):
        yield client


def _endpoints() -> dict[str, Endpoint]:
    config = yaml.safe_load(CONFIG.read_text())
    return AppArgs.model_validate(config["applications"][0]["args"]).build()


async def _fill(store: RequestStore, rows: int) -> None:
    """Requests that have ended since 00:00 UTC, evenly but for the last minute, and some that wait."""
    async with store.database.read() as connection:
        at = float((await connection.execute(select(now()))).scalar_one())
    made = list(_rows(rows, at))
    for start in range(0, len(made), ROWS_AT_ONCE):
        page = made[start : start + ROWS_AT_ONCE]
        async with store.database.transaction() as connection:
            await connection.execute(insert(requests), page)
            await connection.execute(insert(request_io), [{"request_id": row["id"], "input": "{}"} for row in page])


def _rows(rows: int, at: float) -> Iterator[dict[str, Any]]:
    chance = random.Random(1)
    endpoints = list(_endpoints().values())
    day = at - at % 86400
    for number in range(rows + rows // 10):
        waits = number >= rows
        recent = number % 10 == 0
        ended = at - chance.random() * MINUTE if recent else day + chance.random() * (at - day)
        took = chance.expovariate(1 / 20)
        endpoint = chance.choice(endpoints)
        yield {
            "id": str(uuid4()),
            "endpoint": endpoint.id,
            "model": endpoint.model,
            "key_id": f"key-{number % 20}",
            "priority": number % 2,
            "batch_key": "",
            "pixel_frames": 1,
            "no_retry": False,
            "cancel_requested": False,
            "attempt": 0 if waits else 1,
            "created_at": ended - 2 * took,
            "started_at": None if waits else ended - took,
            "finished_at": None if waits else ended,
            "status": RequestStatus.IN_QUEUE if waits else RequestStatus.COMPLETED,
            "status_code": None if waits else chance.choice((200, 200, 200, 422, 500)),
            "gpu_seconds": None if waits else took,
            "cost_nano_usd": 0 if waits else round(took * 1e6),
            "price_nano_usd": None if waits else 75_000_000,
        }


if __name__ == "__main__":
    main()
