from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event, text

from deployments.errors import NotFound, Unavailable
from deployments.queue import database as database_module
from deployments.queue.database import CALL_SECONDS, POOL_SIZE, Database
from deployments.queue.request import LogLine, RequestStatus, Version
from deployments.queue.store import BatchLimits, Outcome, RequestStore
from deployments.queue.watch import Changes
from loadtest.postgres import Postgres
from tests.conftest import run_postgres
from tests.queue.conftest import MODEL, new_request

ANSWER_SECONDS = 6.5
"""A call's time, and the driver's two seconds to give a connection up."""

ONE = BatchLimits()


async def test_close_waits_for_the_connections_in_use_and_nothing_is_opened_after_it(tmp_path: Path) -> None:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/queue.db")
    async with database.read() as connection:
        closing = asyncio.create_task(database.close())
        await asyncio.sleep(0)
        assert not closing.done()
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    await closing  # a connection that was left open would be reported when it is collected
    for use in (database.read, database.transaction):
        with pytest.raises(Unavailable):
            async with use():
                pass


async def test_many_writers_of_a_process_get_their_turn_in_sqlite(tmp_path: Path) -> None:
    """Left to SQLite's own waiting, some would be overtaken for seconds, until they are told that it is locked."""
    store, ended = await RequestStore.open(f"sqlite+aiosqlite:///{tmp_path}/queue.db"), list[int]()

    async def write(number: int) -> None:
        async with store.database.transaction() as connection:
            await connection.execute(text("UPDATE dispatchers SET lease_until = 0"))
            await asyncio.sleep(0.01)
        ended.append(number)

    await asyncio.gather(*(write(number) for number in range(40)))
    assert ended == list(range(40))
    await store.close()


async def test_writers_of_a_process_do_not_wait_one_after_the_other_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "SQLITE_BUSY_SECONDS", 0.5)
    store = await RequestStore.open(f"sqlite+aiosqlite:///{tmp_path}/queue.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "queue.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answers = await asyncio.gather(*(answered(store.submit(new_request())) for _ in range(8)))
        assert not any(succeeded for succeeded, _ in answers)
        assert max(seconds for _, seconds in answers) < 2.5  # one's turn in the line, and one's wait at its head
        other.execute("ROLLBACK")
    assert (await answered(store.submit(new_request())))[0]
    await store.close()


# ---------------------------------------------------------------- a PostgreSQL that is stopped, killed, hung, set back


@pytest.fixture(scope="module")
def own_server() -> Iterator[Postgres]:
    """A durable server that tests may do anything to, as long as it runs when they end."""
    with run_postgres() as server:
        yield server


@pytest.fixture
async def queue(own_server: Postgres) -> AsyncIterator[RequestStore]:
    """An empty queue on that server, with a connection open for each place in the pool."""
    store = await RequestStore.open(own_server.create(f"test_{uuid4().hex}"))
    await asyncio.gather(*(store.submit(new_request()) for _ in range(3 * POOL_SIZE)))
    yield store
    await store.close()


async def answered(call: Coroutine[Any, Any, Any]) -> tuple[bool, float]:
    """Whether a call succeeded, or else was told that the store is away; and what it took."""
    began = time.monotonic()
    try:
        await call
    except Unavailable:
        return False, time.monotonic() - began
    return True, time.monotonic() - began


def calls(store: RequestStore) -> list[Coroutine[Any, Any, Any]]:
    return [
        store.submit(new_request()),
        store.get("unknown"),
        store.claim(MODEL, "a", ONE, 10),
        store.heartbeat("a", 10),
        store.models_with_work([MODEL]),
    ]


async def back(store: RequestStore) -> None:
    """Return when the store answers: the first call after a restart may be the one that notices it."""
    async with asyncio.timeout(10):
        while not (await answered(store.ping()))[0]:
            await asyncio.sleep(0.05)


def in_use(store: RequestStore) -> int:
    pool: Any = store.database._engine.pool
    return int(pool.checkedout())


async def test_a_postgresql_that_hangs_holds_nobody_up(own_server: Postgres, queue: RequestStore) -> None:
    tasks = len(asyncio.all_tasks())
    own_server.pause()
    began, asked = time.monotonic(), []
    while time.monotonic() - began < 8:
        asked += [asyncio.create_task(answered(call)) for call in calls(queue)]
        await asyncio.sleep(0.2)
    own_server.resume()
    answers = await asyncio.gather(*asked)
    assert max(seconds for _, seconds in answers) < ANSWER_SECONDS
    assert not all(succeeded for succeeded, _ in answers)
    assert in_use(queue) == 0
    assert len(asyncio.all_tasks()) <= tasks
    for succeeded, seconds in [await answered(call) for call in calls(queue)]:
        assert succeeded and seconds < 2
    async with queue.database.read() as connection:
        mine = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'svd-serve'"
        assert (await connection.execute(text(mine))).scalar_one() <= POOL_SIZE + 1


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_postgresql_that_ends_is_told_at_once_and_used_again_when_it_is_back(
    own_server: Postgres, queue: RequestStore, end: str
) -> None:
    request = await queue.submit(new_request())
    getattr(own_server, end)()
    for _ in range(3):
        for succeeded, seconds in await asyncio.gather(*(answered(call) for call in calls(queue))):
            assert not succeeded and seconds < 1
    assert in_use(queue) == 0
    own_server.start()
    await back(queue)
    assert await queue.get(request.id) == request
    for succeeded, seconds in await asyncio.gather(*(answered(call) for call in calls(queue))):
        assert succeeded and seconds < 2


async def test_a_store_cannot_be_opened_where_there_is_no_database() -> None:
    with pytest.raises(Unavailable):
        await RequestStore.open("postgresql+asyncpg://svd@127.0.0.1:1/nothing")


async def test_closing_does_not_wait_for_a_postgresql_that_hangs(own_server: Postgres) -> None:
    store = await RequestStore.open(own_server.create(f"test_{uuid4().hex}"))
    own_server.pause()
    try:
        await asyncio.wait_for(store.close(), ANSWER_SECONDS)
    finally:
        own_server.resume()


async def test_a_full_pool_is_told_in_time_and_serves_again(queue: RequestStore) -> None:
    holding = [await queue.database._engine.connect() for _ in range(POOL_SIZE)]
    succeeded, seconds = await answered(queue.ping())
    assert not succeeded and CALL_SECONDS - 0.5 < seconds < ANSWER_SECONDS
    for connection in holding:
        await connection.close()
    assert (await answered(queue.ping()))[0]


async def test_a_call_that_holds_its_connection_for_too_long_loses_it(
    queue: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "CALL_SECONDS", 0.1)
    with pytest.raises(Unavailable):
        async with queue.database.transaction() as connection:
            await connection.execute(text("SELECT pg_sleep(3)"))
    assert in_use(queue) == 0


class Deaf:
    """A way to a server on which, for a while, no answers come back."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.silent = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        listener = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        async with listener:
            yield listener.sockets[0].getsockname()[1]

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(self._pass_on(reader, server_writer), self._pass_on(server_reader, writer, back=True))

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, back: bool = False) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if not (back and self.silent):
                    sink.write(data)
                    await sink.drain()
        sink.close()


async def test_a_commit_whose_outcome_is_unknown_is_no_success(
    own_server: Postgres, queue: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server commits, but its answer is lost: told as a failure, and its idempotency key finds the request."""
    way = Deaf(own_server.port)
    async with way.open() as port:
        url = queue.database._engine.url.set(port=port).render_as_string(hide_password=False)
        store = await RequestStore.open(url)
        monkeypatch.setattr(database_module, "CALL_SECONDS", 0.5)
        event.listen(store.database._engine.sync_engine, "commit", lambda _: setattr(way, "silent", True), once=True)
        new = new_request(idempotency_key="once")
        assert not (await answered(store.submit(new)))[0]
        way.silent = False
        assert (await store.submit(new_request(idempotency_key="once"))).id == new.id
        await store.close()


async def test_the_server_ends_what_takes_too_long_and_transactions_of_which_it_hears_no_more(
    queue: RequestStore,
) -> None:
    """So a process that stops in the middle of a claim holds nobody's up for long."""
    async with queue.database.read() as connection:
        settings = {"statement_timeout": "5s", "idle_in_transaction_session_timeout": "5s"}
        for name, value in (settings | {"plan_cache_mode": "force_custom_plan"}).items():
            assert (await connection.execute(text(f"SHOW {name}"))).scalar_one() == value


async def test_a_parameter_that_cannot_be_sent_is_a_fault_of_ours(queue: RequestStore) -> None:
    """Told as 'away' it would be tried again for ever."""
    for bad in ("\ud800", "a\0b"):
        with pytest.raises(Exception) as raised:
            await queue.get(bad)
        assert not isinstance(raised.value, Unavailable)


async def test_the_hot_table_is_kept_ready_for_its_many_changes(queue: RequestStore) -> None:
    async with queue.database.read() as connection:
        query = text("SELECT reloptions FROM pg_class WHERE relname = 'requests'")
        options = (await connection.execute(query)).scalar_one()
    assert {"fillfactor=80", "autovacuum_vacuum_scale_factor=0.02"} <= set(options)


async def test_after_a_failover_with_a_lost_tail_only_the_tail_is_lost(
    own_server: Postgres, queue: RequestStore, tmp_path: Path
) -> None:
    """The database goes back to an older copy of itself, under a store that stays open."""
    for attempt in await queue.claim(MODEL, "a", BatchLimits(max_batch_size=100)):
        await queue.complete(attempt, "a", Outcome(200, {}))
    kept = await queue.submit(new_request())
    own_server.stop()
    copy = tmp_path / "copy"
    shutil.copytree(own_server.data, copy)
    own_server.start()
    await back(queue)
    lost = await queue.submit(new_request())
    await queue.heartbeat("a", 10)
    held = [*await queue.claim(MODEL, "a", ONE), *await queue.claim(MODEL, "a", ONE)]
    assert [attempt.request_id for attempt in held] == [kept.id, lost.id]
    changes = Changes(queue, interval=0.01)
    waiting = asyncio.create_task(changes.completion(lost.id))
    own_server.stop()
    own_server.restore(copy)
    own_server.start()
    await back(queue)

    assert await queue.get(lost.id) is None
    with pytest.raises(NotFound):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(NotFound):
        await changes.since(lost.id, Version(RequestStatus.IN_QUEUE, 0, 0), 5)
    await changes.close()
    await queue.log([LogLine(attempt.request_id, "Step 1/1", time.time()) for attempt in held])
    assert [line.message for line in await queue.logs(kept.id)] == ["Step 1/1"]
    assert await queue.abandoned({attempt.request_id: 1 for attempt in held}) == {kept.id, lost.id}
    assert [await queue.complete(attempt, "a", Outcome(200, {})) for attempt in held] == [False, False]
    assert not await queue.lose(held[1], "a", "gone")
    await queue.put_back(held, "a", "gone")
    await queue.heartbeat("a", 10)
    await queue.sweep("a", {attempt.request_id for attempt in held}, 10)
    (again,) = await queue.claim(MODEL, "a", ONE)
    assert again.request_id == kept.id
    assert await queue.complete(again, "a", Outcome(200, {}))


async def test_sqlite_has_no_deadline_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its calls run in threads that cannot be cut off, and it limits its one wait, for other writers, by itself."""
    monkeypatch.setattr(database_module, "CALL_SECONDS", 0.01)
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/queue.db")
    async with database.transaction() as connection:
        await asyncio.sleep(0.1)
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    await database.close()
