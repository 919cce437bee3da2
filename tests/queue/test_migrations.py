from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from deployments.queue.database import migrate, open_engine, revisions
from deployments.queue.request import RequestStatus
from deployments.queue.store import BatchLimits, Outcome, RequestStore
from deployments.queue.tables import metadata, requests
from loadtest.postgres import Postgres
from tests.conftest import ROOT
from tests.queue.conftest import MODEL, new_request

BEFORE = "0003"
"""The newest revision of the version that was released before this one."""


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/queue.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.create(f"test_{uuid4().hex}")


async def migrate_to(engine: AsyncEngine, revision: str) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: command.upgrade(revisions(sync), revision))


async def test_migrations_make_exactly_the_tables_of_the_code(empty_url: str) -> None:
    engine = open_engine(empty_url)
    await migrate(engine)
    await migrate(engine)  # a second run finds nothing to do

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


async def test_sqlite_is_opened_durable_and_in_wal_mode(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite+aiosqlite:///{tmp_path}/deep/er/queue.db")
    await migrate(engine)
    async with engine.connect() as connection:
        for pragma, value in {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}.items():
            assert (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar_one() == value
    await engine.dispose()


async def test_several_processes_migrate_one_empty_database(empty_url: str) -> None:
    environment = os.environ | {"SVD_DATABASE_URL": empty_url}
    program = [sys.executable, "-m", "deployments.cli", "migrate"]
    started = [
        await asyncio.create_subprocess_exec(
            *program, cwd=ROOT, env=environment, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        for _ in range(3)
    ]
    for process in started:
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
    store = await RequestStore.open(empty_url)
    request = await store.submit(new_request())
    assert [attempt.request_id for attempt in await store.claim(MODEL, "a", BatchLimits())] == [request.id]
    await store.close()


async def test_a_schema_that_is_newer_than_the_code_is_used_as_it_is(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A process of the old version that starts late in a rolling upgrade."""
    store = await RequestStore.open(database_url)
    async with store.database.transaction() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        await connection.execute(text("ALTER TABLE requests ADD COLUMN new_thing TEXT"))
    await store.close()
    with caplog.at_level(logging.WARNING):
        store = await RequestStore.open(database_url)
    assert "9999" in caplog.text
    request = await store.submit(new_request())
    (attempt,) = await store.claim(MODEL, "a", BatchLimits())
    assert await store.complete(attempt, "a", Outcome(200, {}))
    ended = await store.get(request.id)
    assert ended and ended.status_code == 200
    async with store.database.read() as connection:
        assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one() == "9999"
    await store.close()


# ---------------------------------------------------------------- the version before, as its statements


class Before:
    """What the version before says to the database, word for word but for the time, which it is told."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._skip = "" if engine.dialect.name == "sqlite" else "FOR UPDATE SKIP LOCKED"

    async def submit(self, key_id: str, **changes: Any) -> str:
        values = {"id": str(uuid4()), "key_id": key_id, "status": "IN_QUEUE", "attempt": 0, "owner": None} | changes
        async with self._engine.begin() as connection:
            await _run(
                connection,
                """INSERT INTO requests (id, endpoint, model, key_id, priority, batch_key, pixel_frames, no_retry,
                    status, attempt, owner, cancel_requested, created_at, store_io, previews)
                VALUES (:id, 'fal-ai/svd', :model, :key_id, 0, 'steps=20', 1000, false, :status, :attempt, :owner,
                    false, 1.0, true, 0)""",
                model=MODEL,
                **values,
            )
            io = "INSERT INTO request_io (request_id, input) VALUES (:id, '{}')"
            await _run(connection, io, id=values["id"])
        return str(values["id"])

    async def claim(self, owner: str) -> list[tuple[str, int]]:
        async with self._engine.begin() as connection:
            head = await _run(
                connection,
                f"""SELECT seq, batch_key, pixel_frames, attempt FROM requests WHERE model = :model
                    AND status = 'IN_QUEUE' AND (start_deadline IS NULL OR start_deadline > 2.0)
                    ORDER BY priority, seq LIMIT 1 {self._skip}""",
                model=MODEL,
            )
            if not head:
                return []
            taken = await _run(
                connection,
                f"""WITH members AS (SELECT seq FROM requests WHERE model = :model AND status = 'IN_QUEUE'
                    AND (start_deadline IS NULL OR start_deadline > 2.0) AND batch_key = :batch_key AND attempt = 0
                    ORDER BY priority, seq LIMIT 2 {self._skip})
                UPDATE requests SET status = 'IN_PROGRESS', attempt = attempt + 1, owner = :owner, started_at = 2.0
                    WHERE seq IN (SELECT seq FROM members) RETURNING id, attempt""",
                model=MODEL,
                batch_key=head[0].batch_key,
                owner=owner,
            )
        return [(row.id, row.attempt) for row in taken]

    async def complete(self, request_id: str, attempt: int, owner: str) -> bool:
        async with self._engine.begin() as connection:
            ended = await _run(
                connection,
                """UPDATE requests SET status = 'COMPLETED', owner = NULL, finished_at = 3.0, status_code = 200
                    WHERE id = :id AND attempt = :attempt AND owner = :owner AND status = 'IN_PROGRESS' RETURNING id""",
                id=request_id,
                attempt=attempt,
                owner=owner,
            )
            body = "UPDATE request_io SET output = :output WHERE request_id = :id"
            await _run(connection, body, id=request_id, output=json.dumps({"by": "before"}))
        return bool(ended)

    async def requeue(self, owner: str) -> None:
        async with self._engine.begin() as connection:
            await _run(
                connection,
                """UPDATE requests SET status = 'IN_QUEUE', owner = NULL
                    WHERE status = 'IN_PROGRESS' AND owner = :owner RETURNING id""",
                owner=owner,
            )


async def _run(connection: AsyncConnection, statement: str, **values: Any) -> list[Any]:
    result = await connection.execute(text(statement), values)
    return list(result) if result.returns_rows else []


@pytest.mark.parametrize("revision", [BEFORE, "0005"])
async def test_rows_of_versions_before_are_migrated_and_go_on(empty_url: str, revision: str) -> None:
    engine = open_engine(empty_url)
    await migrate_to(engine, revision)
    before = Before(engine)
    waiting = [await before.submit(key) for key in ("alice", "alice", "bob")]
    running = await before.submit("alice", status="IN_PROGRESS", attempt=1, owner="gone")
    done = await before.submit("alice", status="COMPLETED", attempt=1)
    await engine.dispose()

    store = await RequestStore.open(empty_url)
    await store.heartbeat("a", 10)
    taken = [attempt.request_id for _ in range(3) for attempt in await store.claim(MODEL, "a", BatchLimits())]
    assert taken == [waiting[0], waiting[2], waiting[1]]
    await store.sweep("a", taken, 10)
    (again,) = await store.claim(MODEL, "a", BatchLimits())
    assert (again.request_id, again.number, again.alone) == (running, 2, False)
    ended = await store.get(done)
    assert ended and ended.status == RequestStatus.COMPLETED
    money = select(requests.c.cost_nano_usd, requests.c.price_nano_usd).where(requests.c.id == done)
    async with store.database.read() as connection:
        assert tuple((await connection.execute(money)).one()) == (0, None)
    await store.close()


async def test_the_version_before_works_beside_this_one_on_the_new_schema(database_url: str) -> None:
    """As in a rolling upgrade: both submit, claim, lose and complete; nothing is lost, nothing is taken twice."""
    store, engine = await RequestStore.open(database_url), open_engine(database_url)
    before, taken = Before(engine), Counter[tuple[str, int]]()

    async def submit() -> list[str]:
        return [
            await before.submit("alice") if each % 2 else (await store.submit(new_request())).id for each in range(30)
        ]

    async def take_before(owner: str) -> None:
        first = True
        while batch := await before.claim(owner):
            taken.update(batch)
            if first:  # it stops, and its rows are anybody's again
                await before.requeue(owner)
            else:
                assert all([await before.complete(*attempt, owner) for attempt in batch])
            first = False

    async def take(owner: str) -> None:
        while batch := await store.claim(MODEL, owner, BatchLimits(max_batch_size=2)):
            taken.update((attempt.request_id, attempt.number) for attempt in batch)
            for attempt in batch:
                assert await store.complete(attempt, owner, Outcome(200, {"by": "now"}))

    submitted = await submit()
    batch = await before.claim("x")
    taken.update(batch)
    assert all([await before.complete(*attempt, "x") for attempt in batch])
    await asyncio.gather(take_before("x"), take("y"), take_before("z"), take("w"))
    await take("y")  # what was given back last
    assert set(taken.values()) == {1}
    async with store.database.read() as connection:
        query = select(requests.c.id, requests.c.status, requests.c.attempt)
        rows = {row.id: row for row in await connection.execute(query)}
    assert rows.keys() == set(submitted)
    assert {row.status for row in rows.values()} == {RequestStatus.COMPLETED}
    assert sum(row.attempt for row in rows.values()) == len(taken)
    by = Counter([(await store.output(request_id))["by"] for request_id in submitted])
    assert by["now"] and by["before"]
    await store.close()
    await engine.dispose()
