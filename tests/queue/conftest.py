from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import URL

from deployments.queue.request import NewRequest
from deployments.queue.store import RequestStore
from loadtest.postgres import Postgres

MODEL = "fal-ai--svd"


def new_request(**changes: Any) -> NewRequest:
    """A request for one model, as the gateway would submit it."""
    values: dict[str, Any] = {
        "endpoint": "fal-ai/svd",
        "model": MODEL,
        "key_id": "alice",
        "input": '{"image_url": "data:,"}',
        "batch_key": "steps=20",
        "pixel_frames": 1000,
    }
    return NewRequest(**(values | changes))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Both stores keep the same contract."""
    if request.param == "sqlite":
        return str(request.getfixturevalue("sqlite_url"))
    server: Postgres = request.getfixturevalue("postgres")
    return server.create(f"test_{uuid4().hex}", template="migrated")


async def take_away(store: RequestStore) -> None:
    """Let every call of this store fail, as one does whose database is gone."""
    url = _url(store)
    if url.get_backend_name() == "sqlite":
        async with store.database.transaction() as connection:
            await connection.exec_driver_sql("ALTER TABLE requests RENAME TO away")
        return
    async with _administrator(url) as connection:
        await connection.execute(f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS false')
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", url.database
        )


async def bring_back(store: RequestStore) -> None:
    """Undo ``take_away``."""
    url = _url(store)
    if url.get_backend_name() == "sqlite":
        async with store.database.transaction() as connection:
            await connection.exec_driver_sql("ALTER TABLE away RENAME TO requests")
        return
    async with _administrator(url) as connection:
        await connection.execute(f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS true')


def _url(store: RequestStore) -> URL:
    return store.database._engine.url


@contextlib.asynccontextmanager
async def _administrator(url: URL) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(host=url.host, port=url.port, user=url.username, database="postgres")
    try:
        yield connection
    finally:
        await connection.close()
