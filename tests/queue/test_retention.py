"""What is older than it is kept goes, and nothing else, on either store."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from sqlalchemy import func, select, text, update

from deployments.errors import NotFound
from deployments.queue.outbox import Outbox, Verdict
from deployments.queue.reports import EVER, Reports, Selection
from deployments.queue.request import LogLine, RequestStatus
from deployments.queue.retention import Retention, _Walk
from deployments.queue.store import BatchLimits, Outcome, RequestStore
from deployments.queue.tables import request_io, request_logs, requests, webhooks
from tests.queue.conftest import MODEL, new_request
from tests.queue.past import ended

DAY = 24 * 3600.0
MONTH, YEAR = 30 * DAY, 400 * DAY


def days_ago(days: float) -> float:
    return time.time() - days * DAY


async def sweep(retention: Retention, limit: int = 200) -> int:
    """Sweep until nothing is left to do; answer how many pages there were."""
    pages = 1
    while await retention.sweep(limit):
        pages += 1
        assert pages < 1000, "it never comes to an end"
    return pages


async def count(store: RequestStore, *tables: object) -> list[int]:
    async with store.database.read() as connection:
        return [
            (await connection.execute(select(func.count()).select_from(table))).scalar_one()  # type: ignore[arg-type]
            for table in tables
        ]


async def with_webhook(store: RequestStore, state: str, at: float) -> str:
    """A request that ended long ago, and whose webhook is in a state."""
    request = await store.submit(new_request(webhook="https://example.com/hook"))
    io = update(request_io).where(request_io.c.request_id == request.id).values(output="{}")
    row = update(requests).where(requests.c.id == request.id)
    hook = update(webhooks).where(webhooks.c.request_id == request.id)
    async with store.database.transaction() as connection:
        await connection.execute(io)
        await connection.execute(row.values(status=RequestStatus.COMPLETED, status_code=200, finished_at=at))
        await connection.execute(hook.values(state=state, due_at=at if state == "DUE" else None))
    return request.id


async def test_payloads_and_log_go_after_their_time_and_the_row_stays(store: RequestStore) -> None:
    old, new = await ended(store, days_ago(31)), await ended(store, days_ago(29))
    await store.log([LogLine(old, "Step 1/2", time.time()), LogLine(new, "Step 1/2", time.time())])

    await sweep(Retention(store.database, MONTH, YEAR))

    with pytest.raises(NotFound, match="deleted"):
        await store.output(old)
    assert await store.logs(old) == []
    kept = await store.get(old)
    assert kept and kept.status == RequestStatus.COMPLETED
    assert await store.output(new) == {"seed": 7}
    assert len(await store.logs(new)) == 1


async def test_reports_count_the_rows_until_they_go_as_well(store: RequestStore) -> None:
    old, older = await ended(store, days_ago(399)), await ended(store, days_ago(401))
    before = await Reports(store.database).usage(Selection(None), EVER)
    assert [used.clips for used in before] == [2]

    await sweep(Retention(store.database, MONTH, YEAR))

    (used,) = await Reports(store.database).usage(Selection(None), EVER)
    assert used.clips == 1
    (past,) = await Reports(store.database).history(Selection(None), limit=10)
    assert (past.id, past.input, past.output) == (old, None, None)
    assert await store.get(older) is None


async def test_what_belongs_to_a_row_goes_with_it(store: RequestStore) -> None:
    gone = await with_webhook(store, "DELIVERED", days_ago(401))
    await store.log([LogLine(gone, "Step 1/2", time.time())])
    assert await count(store, requests, request_io, request_logs, webhooks) == [1, 1, 1, 1]

    await sweep(Retention(store.database, 0.0, YEAR))

    assert await count(store, requests, request_io, request_logs, webhooks) == [0, 0, 0, 0]


async def test_what_has_not_ended_keeps_everything_however_old_it_is(store: RequestStore) -> None:
    waiting, running = await store.submit(new_request()), await store.submit(new_request(batch_key="steps=4"))
    async with store.database.transaction() as connection:
        await connection.execute(update(requests).values(created_at=days_ago(1000)))
    await store.heartbeat("a", 60)
    (attempt,) = await store.claim(MODEL, "a", BatchLimits())
    await store.log([LogLine(attempt.request_id, "Step 1/2", days_ago(1000))])

    await sweep(Retention(store.database, MONTH, YEAR))

    assert await count(store, requests, request_io, request_logs) == [2, 2, 1]
    assert await store.complete(attempt, "a", Outcome(200, {"seed": 1}))
    assert await store.output(attempt.request_id) == {"seed": 1}
    assert attempt.request_id in {waiting.id, running.id}


@pytest.mark.parametrize("state", ["WAITING", "DUE"])
async def test_a_request_is_kept_whole_until_its_webhook_is_dealt_with(store: RequestStore, state: str) -> None:
    held = await with_webhook(store, state, days_ago(500))
    behind = await ended(store, days_ago(450))
    retention = Retention(store.database, MONTH, YEAR)

    await sweep(retention, limit=1)
    assert await store.output(held) == {}
    assert await store.get(behind) is None, "it does not hold up those behind it"

    async with store.database.transaction() as connection:
        await connection.execute(update(webhooks).values(state="DUE", due_at=days_ago(1)))
    (delivery,) = await Outbox(store.database).claim({}, per_host=1, limit=1, lease_seconds=60)
    assert delivery.output == "{}"
    assert await Outbox(store.database).record(delivery, Verdict(200))
    await sweep(retention, limit=1)
    assert await store.get(held) is None, "the same process comes back for it"


async def test_an_undelivered_webhook_holds_nothing(store: RequestStore) -> None:
    request_id = await with_webhook(store, "UNDELIVERED", days_ago(40))
    await sweep(Retention(store.database, MONTH, YEAR))
    with pytest.raises(NotFound):
        await store.output(request_id)
    assert await count(store, webhooks) == [1]


async def test_nothing_goes_where_all_is_kept_for_ever(store: RequestStore) -> None:
    request_id = await ended(store, days_ago(10_000))
    assert await sweep(Retention(store.database)) == 1
    assert await store.output(request_id) == {"seed": 7}


async def test_a_sweep_goes_on_where_the_one_before_stopped(store: RequestStore) -> None:
    at = days_ago(40)
    same_moment = [await ended(store, at) for _ in range(5)]
    retention = Retention(store.database, MONTH)
    assert await sweep(retention, limit=2) == 3
    assert await count(store, request_io) == [0]

    later = [await ended(store, days_ago(35)), await ended(store, days_ago(20))]
    await sweep(retention, limit=2)
    async with store.database.read() as connection:
        left = set((await connection.execute(select(request_io.c.request_id))).scalars())
    assert left == {later[1]} and not left & set(same_moment)


async def test_a_page_is_bounded(store: RequestStore) -> None:
    for _ in range(5):
        await ended(store, days_ago(40))
    assert await Retention(store.database, MONTH).sweep(limit=3) is True
    assert await count(store, request_io) == [2]


async def test_several_processes_may_sweep_at_once(store: RequestStore, database_url: str) -> None:
    for _ in range(60):
        await ended(store, days_ago(500))
    kept = await ended(store, days_ago(1))
    stores = [await RequestStore.open(database_url) for _ in range(3)]
    await asyncio.gather(*(sweep(Retention(other.database, MONTH, YEAR), limit=7) for other in stores))
    assert await count(store, requests) == [1]
    assert await store.output(kept) == {"seed": 7}
    for other in stores:
        await other.close()


async def test_a_page_is_found_by_the_index_of_ends(store: RequestStore) -> None:
    for days in range(0, 300):
        await ended(store, days_ago(days))
    walk = Retention(store.database, MONTH)._walks[0]
    assert isinstance(walk, _Walk)
    walk.reached = type(walk.reached)(days_ago(200), 1)
    async with store.database.transaction() as connection:
        sqlite = connection.dialect.name == "sqlite"
        await connection.execute(text("ANALYZE"))
        if not sqlite:
            await connection.execute(text("SET LOCAL enable_seqscan = off"))
        page = str(walk.page(10).compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True}))
        explained = await connection.exec_driver_sql(f"EXPLAIN {'QUERY PLAN' if sqlite else '(FORMAT JSON)'} {page}")
        rows = explained.all()
    if sqlite:
        assert any("USING INDEX requests_ended (finished_at>? AND finished_at<?)" in row[3] for row in rows)
        return
    plan = rows[0][0] if isinstance(rows[0][0], str) else json.dumps(rows[0][0])
    assert '"requests_ended"' in plan
    assert "finished_at <=" in plan.split('"Index Cond":')[1].split('"Filter"')[0], "both ends are looked up"
