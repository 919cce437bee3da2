"""What the metrics count is what the rows say, at any hour and in any process, on either store."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.costs import MICRO, nano_usd
from deployments.errors import Unavailable
from deployments.metrics import LATENCY_SECONDS
from deployments.queue.files import Lifecycle
from deployments.queue.outbox import WebhookState
from deployments.queue.reports import Ending, Reports, Selection
from deployments.queue.request import Priority, RequestStatus
from deployments.queue.retention import Retention
from deployments.queue.store import BatchLimits, Outcome, RequestStore
from deployments.queue.tables import now, replicas, requests, webhooks
from deployments.queue.totals import DAY_SECONDS, HOUR_SECONDS, NOTHING_DONE, Counts, Done, Totals, _fresh, _Settled
from tests.conftest import add_file
from tests.queue.conftest import MODEL, new_request
from tests.queue.past import ended
from tests.queue.test_retention import sweep

MIDNIGHT = 20_000.0 * DAY_SECONDS
NOON = MIDNIGHT + DAY_SECONDS / 2
SVD, FAST = "fal-ai/svd", "fal-ai/fast-svd-lcm"
OWNER = "dispatcher"


def flat(value: Any, name: str = "") -> dict[str, float]:
    """The numbers of a record by their paths."""
    if isinstance(value, Mapping):
        return {path: number for key, each in value.items() for path, number in flat(each, f"{name}.{key}").items()}
    if isinstance(value, tuple):
        return flat(dict(enumerate(value)), name)
    return {name: value}


async def counted(store: RequestStore, at: float) -> Mapping[str, Done]:
    """What a process says that has just started."""
    return (await Counts(store.database).at(at)).done


async def test_nothing_has_been(store: RequestStore) -> None:
    totals = await Counts(store.database).now()

    assert (totals.done, totals.lines, totals.running, totals.present) == ({}, {}, {}, {})
    assert (totals.webhooks, totals.overdue, totals.files, totals.file_bytes) == (0, 0.0, 0, 0)
    assert NOTHING_DONE.endings == dict.fromkeys(Ending, 0)


async def test_what_ended_today_is_counted_by_how(store: RequestStore) -> None:
    for status in (200, 200, 422, 499, 500, 504):
        await ended(store, NOON, status_code=status)
    await ended(store, NOON, endpoint=FAST)

    done = await counted(store, NOON + 5)

    assert done[SVD].endings == {Ending.SUCCESS: 2, Ending.USER_ERROR: 1, Ending.CANCELLED: 1, Ending.ERROR: 2}
    assert done[FAST].endings == {**dict.fromkeys(Ending, 0), Ending.SUCCESS: 1}


async def test_money_and_time_are_exact(store: RequestStore) -> None:
    for at in range(10):
        sums = {"gpu_seconds": 0.1, "cost_nano_usd": 3, "price_nano_usd": 75_000_000}
        await ended(store, NOON - 600 * at, **sums)
    await ended(store, NOON, gpu_seconds=0.000001, status_code=500, cost_nano_usd=1)
    await ended(store, NOON, gpu_seconds=2.0)  # of code that did not say its price

    done = (await counted(store, NOON + 5))[SVD]

    assert done.gpu_micros == 3_000_001
    assert (done.cost_nano_usd, done.price_nano_usd) == (31, 750_000_000)
    assert (done.unpriced_clips, done.unpriced_micros) == (1, 2_000_000)


async def test_times_fall_into_buckets_at_their_upper_bounds(store: RequestStore) -> None:
    await ended(store, NOON, created_at=NOON - 30, started_at=NOON - 20)  # waited 10 s, ran 20 s
    await ended(store, NOON, created_at=NOON - 4000, started_at=NOON - 3600.5)
    await ended(store, NOON, created_at=NOON - 0.25, started_at=None, status_code=422)  # never ran

    done = (await counted(store, NOON + 5))[SVD]

    bounds = list(LATENCY_SECONDS)
    assert [done.waits.within[bounds.index(at)] for at in (5.0, 10.0, 300.0, 600.0)] == [0, 1, 1, 2]
    assert [done.runs.within[bounds.index(at)] for at in (10.0, 20.0, 3600.0)] == [0, 1, 1]
    assert [done.times.within[bounds.index(at)] for at in (0.5, 20.0, 30.0, 3600.0)] == [1, 1, 2, 2]
    assert (done.waits.count, done.runs.count, done.times.count) == (2, 2, 3)
    assert (done.waits.micros, done.times.micros) == (409_500_000, 4_030_250_000)


async def test_attempts_that_were_followed_by_another_are_lost(store: RequestStore) -> None:
    await ended(store, NOON, attempt=1)
    await ended(store, NOON, attempt=4, unbegun=1)  # two runs before the last
    await ended(store, NOON, attempt=0, status_code=422)
    await ended(store, NOON, attempt=1, unbegun=1, status_code=499)

    assert (await counted(store, NOON + 5))[SVD].lost == 2


async def test_a_day_begins_at_nothing(store: RequestStore) -> None:
    counts = Counts(store.database)
    await ended(store, MIDNIGHT - 1, created_at=MIDNIGHT - 10)
    assert (await counts.at(MIDNIGHT - 0.5)).done[SVD].received == 1

    await ended(store, MIDNIGHT, created_at=MIDNIGHT - 10)
    await ended(store, MIDNIGHT + 0.25, created_at=MIDNIGHT + 0.1)

    today = (await counts.at(MIDNIGHT + 0.5)).done
    assert today == await counted(store, MIDNIGHT + 0.5)
    assert (today[SVD].endings[Ending.SUCCESS], today[SVD].received) == (2, 1)
    yesterday = await counted(store, MIDNIGHT - 0.25)
    assert yesterday[SVD].endings[Ending.SUCCESS] == 3, "what ends during a day's last scrape is counted, lest it falls"


async def test_every_process_says_the_same_all_day_long(store: RequestStore) -> None:
    """One that reads each minute, one that reads now and then, and one that has just started."""
    often, rarely = Counts(store.database), Counts(store.database)
    chance = random.Random(7)
    moments = [MIDNIGHT + 97.0 * step for step in range(40)]
    for step, moment in enumerate(moments):
        for _ in range(3):
            at = moment - chance.uniform(0, 55)  # committed after others that ended later
            spent = {"cost_nano_usd": chance.randrange(10**9), "gpu_seconds": chance.random()}
            code = chance.choice((200, 422, 500))
            await ended(store, at, endpoint=chance.choice((SVD, FAST)), status_code=code, **spent)
        seen = (await often.at(moment)).done
        if step % 13 == 0:
            assert (await rarely.at(moment)).done == seen
        if step % 7 == 0:
            assert await counted(store, moment) == seen


async def test_no_count_falls_whatever_happens_to_requests(store: RequestStore) -> None:
    counts, chance = Counts(store.database), random.Random(11)
    await store.heartbeat(OWNER, 3600)
    before: dict[str, float] = {}
    held = []
    for _ in range(60):
        match chance.randrange(5):
            case 0 | 1:
                await store.submit(new_request())
            case 2:
                held += await store.claim(MODEL, OWNER, BatchLimits())
            case 3 if held:
                await store.complete(held.pop(), OWNER, Outcome(chance.choice((200, 500)), {}, gpu_seconds=0.5))
            case 4 if held:
                await store.lose(held.pop(), OWNER, "by chance")
        totals = await counts.now()
        after = {path: value for id, done in totals.done.items() for path, value in flat(asdict(done), id).items()}
        assert not [path for path in before if after[path] < before[path]]
        before = after
    assert before[f"{SVD}.received"] >= before[f"{SVD}.endings.success"] > 0


async def test_what_is_committed_late_is_counted_once(store: RequestStore) -> None:
    counts = Counts(store.database)
    request = await store.submit(new_request())
    async with store.database.transaction() as connection:
        values = {"status": RequestStatus.COMPLETED, "status_code": 200, "finished_at": now()}
        await connection.execute(update(requests).where(requests.c.id == request.id).values(values))
        meanwhile = (await counts.now()).done[SVD]
    afterwards = (await counts.now()).done[SVD]

    assert (meanwhile.received, meanwhile.endings[Ending.SUCCESS]) == (1, 0)
    assert (afterwards.received, afterwards.endings[Ending.SUCCESS]) == (1, 1)


async def test_minutes_that_are_over_are_not_read_again(store: RequestStore) -> None:
    counts = Counts(store.database)
    old, new = await ended(store, NOON - 300), await ended(store, NOON - 30)
    before = (await counts.at(NOON)).done
    async with store.database.transaction() as connection:
        await connection.execute(update(requests).where(requests.c.id.in_([old, new])).values(cost_nano_usd=10))

    after = (await counts.at(NOON)).done

    assert before[SVD].cost_nano_usd == 0
    assert after[SVD].cost_nano_usd == 10, "of the last minute alone"


async def test_a_day_is_read_an_hour_at_a_time_and_no_hour_twice(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a process that starts late on a long day comes to its end, though each call may take only so long."""
    for hour in range(12):
        await ended(store, MIDNIGHT + HOUR_SECONDS * hour + 1, cost_nano_usd=10**hour)
    counts, read, reads = Counts(store.database), store.database.read, itertools.count(1)

    def read_or_fail() -> AbstractAsyncContextManager[AsyncConnection]:
        if next(reads) == 6:
            raise Unavailable("The request store cannot be read at the moment")
        return read()

    monkeypatch.setattr(store.database, "read", read_or_fail)
    with pytest.raises(Unavailable):
        await counts.at(NOON)
    done = (await counts.at(NOON)).done
    assert next(reads) == 6 + (12 - 5) + 1 + 1
    assert done[SVD].cost_nano_usd == 111_111_111_111
    assert done == await counted(store, NOON)


async def test_retention_takes_nothing_that_is_counted(store: RequestStore) -> None:
    async with store.database.read() as connection:
        at = float((await connection.execute(select(now()))).scalar_one())
    today = max(at // DAY_SECONDS * DAY_SECONDS, at - 3600)
    await ended(store, today)
    await ended(store, at - 1.5 * DAY_SECONDS)
    before = await counted(store, at)

    await sweep(Retention(store.database, 0.001, 0.001))

    assert await counted(store, at) == before
    assert before[SVD].endings[Ending.SUCCESS] == 1
    async with store.database.read() as connection:
        assert len((await connection.execute(select(requests.c.id))).all()) == 1, "the older one is gone"


async def test_counts_agree_with_the_reports(store: RequestStore) -> None:
    for at in range(20):
        status, price = ((200, 1000 + at), (500, None))[at % 2]
        spent = {"gpu_seconds": 0.1 + at / 7, "price_nano_usd": price, "cost_nano_usd": 10 + at}
        await ended(store, NOON - 60 * at, status_code=status, **spent)

    done = (await counted(store, NOON + 5))[SVD]

    edges = (MIDNIGHT, MIDNIGHT + DAY_SECONDS)
    (used,) = await Reports(store.database).usage(Selection(None), edges)
    (speed,) = await Reports(store.database).speed(Selection(None), edges)
    assert (speed.requests, speed.endings) == (20, done.endings)
    assert (used.clips, used.price_nano_usd) == (10, done.price_nano_usd)


async def test_what_waits_and_runs(store: RequestStore) -> None:
    await store.heartbeat(OWNER, 3600)
    low = await store.submit(new_request(priority=Priority.LOW))
    for _ in range(2):
        await store.submit(new_request())
    await store.submit(new_request(endpoint=FAST, model="fast"))
    await store.claim("fast", OWNER, BatchLimits())
    async with store.database.transaction() as connection:
        older = update(requests).where(requests.c.id == low.id)
        await connection.execute(older.values(created_at=requests.c.created_at - 100))

    totals = await Counts(store.database).now()

    assert {place: line.waiting for place, line in totals.lines.items()} == {
        (SVD, Priority.NORMAL): 2,
        (SVD, Priority.LOW): 1,
    }
    assert totals.running == {FAST: 1}
    assert totals.lines[SVD, Priority.LOW].age >= 100 > totals.lines[SVD, Priority.NORMAL].age >= 0


async def test_webhooks_that_are_to_be_delivered(store: RequestStore) -> None:
    states = [(WebhookState.DUE, -50.0), (WebhookState.DUE, 60.0), (WebhookState.UNDELIVERED, None)]
    for state, due in [*states, (WebhookState.WAITING, None)]:
        request = await store.submit(new_request(webhook="https://example.com/hook"))
        values = {"state": state, "due_at": None if due is None else now() + due}
        async with store.database.transaction() as connection:
            await connection.execute(update(webhooks).where(webhooks.c.request_id == request.id).values(values))

    totals = await Counts(store.database).now()

    assert totals.webhooks == 2
    assert 50 <= totals.overdue < 100

    async with store.database.transaction() as connection:
        await connection.execute(delete(webhooks).where(webhooks.c.due_at < now()))
    assert (await Counts(store.database).now()).overdue == 0.0, "what is due later is not overdue"


async def test_files_are_counted_now_and_then(store: RequestStore) -> None:
    counts = Counts(store.database)
    for key, size in (("a", 10), ("b", 2**40)):
        await add_file(store.database, key, "alice", "video/mp4", size, Lifecycle())
    first = await counts.now()
    await add_file(store.database, "c", "alice", "video/mp4", 1, Lifecycle())

    assert (first.files, first.file_bytes) == (2, 2**40 + 10)
    assert (await counts.now()).files == 2
    assert (await Counts(store.database).now()).files == 3


async def test_replicas_are_counted_from_midnight_on_whether_they_work_or_not(store: RequestStore) -> None:
    row = {"model": SVD, "deployment": MODEL, "accelerator": "H200", "gpu_fraction": 0.5, "gpu_usd_per_hour": 1.8}
    spans = {"gone": (MIDNIGHT - 900, MIDNIGHT - 800), "old": (MIDNIGHT - 900, MIDNIGHT + 100)}
    spans |= {"new": (MIDNIGHT + 50, MIDNIGHT + 60.5), "other": (MIDNIGHT, MIDNIGHT + 10)}
    async with store.database.transaction() as connection:
        for id, (started_at, seen_at) in spans.items():
            deployment = "other" if id == "other" else MODEL
            values = {**row, "id": id, "started_at": started_at, "seen_at": seen_at, "deployment": deployment}
            await connection.execute(insert(replicas).values(values))

    present = (await Counts(store.database).at(MIDNIGHT + 200)).present

    assert {name: each.micros for name, each in present.items()} == {MODEL: 110_500_000, "other": 10 * MICRO}
    assert present[MODEL].cost_nano_usd == nano_usd(100 * MICRO, 1.8) + nano_usd(10_500_000, 1.8)


async def test_a_moment_tells_its_own(store: RequestStore) -> None:
    totals = await Counts(store.database).at(NOON)
    assert isinstance(totals, Totals) and totals.at == NOON


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_no_scrape_reads_all_requests(store: RequestStore) -> None:
    dialect = sqlite.dialect()
    compiled = _fresh(_Settled(MIDNIGHT, NOON)).compile(
        dialect=dialect, compile_kwargs={"literal_binds": True, "render_postcompile": True}
    )
    async with store.database.read() as connection:
        plan = [row[3] for row in await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")]
    reads = [line for line in plan if " requests" in line]
    assert len(reads) == 3
    assert all("USING INDEX" in line or "USING COVERING INDEX" in line for line in reads), reads
