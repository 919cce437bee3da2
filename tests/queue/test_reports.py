from __future__ import annotations

import json
from collections import Counter

import pytest

from deployments.errors import NotFound
from deployments.queue.keys import Keys
from deployments.queue.reports import (
    LATENCY_SECONDS,
    Ending,
    Order,
    Place,
    Reports,
    Selection,
    Speed,
    Used,
)
from deployments.queue.store import BatchLimits, RequestStore
from deployments.queue.tables import now, request_io, requests
from tests.queue.conftest import MODEL, new_request
from tests.queue.past import ended

SVD, STABLE = "fal-ai/svd", "fal-ai/stable-video"
EVERYBODY = Selection(None)
ALICE = Selection("alice")


def unpriced(clips: int, micros: int) -> dict[str, int]:
    """The money of rows that keep none."""
    return {"cost_nano_usd": 0, "price_nano_usd": 0, "unpriced_clips": clips, "unpriced_micros": micros}


async def test_usage_counts_successes_in_the_bucket_in_which_they_ended(store: RequestStore) -> None:
    for at in (99.9, 100.0, 149.9, 150.0, 199.9, 200.0):
        await ended(store, at)
    await ended(store, 160.0, endpoint=STABLE, gpu_seconds=1.0)
    await store.submit(new_request())

    assert await Reports(store.database).usage(EVERYBODY, [100.0, 150.0, 200.0]) == [
        Used(0, SVD, "alice", None, clips=2, gpu_micros=500_000, **unpriced(2, 500_000)),
        Used(1, STABLE, "alice", None, clips=1, gpu_micros=1_000_000, **unpriced(1, 1_000_000)),
        Used(1, SVD, "alice", None, clips=2, gpu_micros=500_000, **unpriced(2, 500_000)),
    ]


async def test_what_failed_is_never_usage(store: RequestStore) -> None:
    for status_code in (422, 499, 400, 500, 503, 504):
        await ended(store, 100.0, status_code=status_code)

    assert await Reports(store.database).usage(EVERYBODY, [0.0, 200.0]) == []


async def test_sums_of_seconds_are_exact(store: RequestStore) -> None:
    for _ in range(10):
        await ended(store, 100.0, gpu_seconds=0.1)
    await ended(store, 100.0, gpu_seconds=None)

    (used,) = await Reports(store.database).usage(EVERYBODY, [0.0, 200.0])
    assert sum([0.1] * 10) != 1.0
    assert (used.clips, used.gpu_micros) == (11, 1_000_000)


async def test_usage_names_the_key_that_it_belongs_to(store: RequestStore) -> None:
    key, _ = await Keys(store.database).create("production")
    await ended(store, 100.0, key_id=key.id)
    await ended(store, 100.0)

    used = await Reports(store.database).usage(EVERYBODY, [0.0, 200.0])
    assert {(each.key_id, each.alias) for each in used} == {(key.id, "production"), ("alice", None)}


async def test_a_selection_is_obeyed_everywhere(store: RequestStore) -> None:
    reports = Reports(store.database)
    mine = await ended(store, 100.0)
    await ended(store, 100.0, key_id="bob")
    await ended(store, 100.0, endpoint=STABLE)
    await ended(store, 50.0)
    await ended(store, 150.0)

    selection = Selection("alice", [SVD], 100.0, 150.0)
    assert [past.id for past in await reports.outline(selection, 10)] == [mine]
    assert [used.clips for used in await reports.usage(selection, [0.0, 200.0])] == [1]
    assert [speed.requests for speed in await reports.speed(selection, [0.0, 200.0])] == [1]


async def test_speed_counts_how_requests_ended(store: RequestStore) -> None:
    for status_code in (200, 200, 422, 499, 500, 503, 504):
        await ended(store, 100.0, status_code=status_code)

    (speed,) = await Reports(store.database).speed(EVERYBODY, [0.0, 200.0])
    assert speed.requests == 7
    assert speed.endings == {Ending.SUCCESS: 2, Ending.USER_ERROR: 1, Ending.CANCELLED: 1, Ending.ERROR: 3}


async def test_percentiles_are_times_that_some_request_took(store: RequestStore) -> None:
    for seconds in range(1, 11):
        await ended(store, 100.0, started_at=100.0 - seconds, created_at=100.0 - 3 * seconds)
    await ended(store, 100.0, started_at=None, created_at=0.0, status_code=422)
    await ended(store, 300.0, started_at=299.0, created_at=298.0)

    first, second = await Reports(store.database).speed(EVERYBODY, [0.0, 200.0, 400.0])
    assert (first.durations, first.waits) == ({50: 5.0, 75: 8.0, 90: 9.0}, {50: 10.0, 75: 16.0, 90: 18.0})
    assert (second.bucket, second.durations) == (1, {50: 1.0, 75: 1.0, 90: 1.0})


async def test_what_never_ran_has_no_percentiles(store: RequestStore) -> None:
    await ended(store, 100.0, started_at=None, status_code=422)

    assert await Reports(store.database).speed(EVERYBODY, [0.0, 200.0]) == [
        Speed(0, SVD, 1, {**dict.fromkeys(Ending, 0), Ending.USER_ERROR: 1}, {}, {})
    ]


async def test_pages_follow_each_other_without_a_gap_or_a_double(store: RequestStore) -> None:
    reports = Reports(store.database)
    ids = [await ended(store, at) for at in (100.0, 100.0, 100.0, 101.0, 102.0)]
    seen: list[str] = []
    after: Place | None = None
    while page := await reports.outline(ALICE, 2, after=after):
        seen += [past.id for past in page]
        after = page[-1].place
        await ended(store, 200.0)  # what comes meanwhile goes before what has been read

    assert seen == ids[:2:-1] + ids[2::-1]


async def test_the_longest_run_comes_first_where_that_is_asked(store: RequestStore) -> None:
    reports = Reports(store.database)
    short, long, never = [await ended(store, 100.0, started_at=at) for at in (99.0, 90.0, None)]

    first = await reports.outline(ALICE, 2, Order.DURATION)
    second = await reports.outline(ALICE, 2, Order.DURATION, first[-1].place)
    assert [(past.id, past.duration) for past in first + second] == [(long, 10.0), (short, 1.0), (never, None)]


async def test_payloads_are_shown_where_they_are_asked_for_and_kept(store: RequestStore) -> None:
    reports = Reports(store.database)
    await ended(store, 100.0)
    await ended(store, 101.0, store_io=False)

    unkept, kept = await reports.history(ALICE, 10)
    assert (kept.input, kept.output) == ({"image_url": "data:,"}, {"seed": 7})
    assert (unkept.input, unkept.output) == (None, None)
    assert [past.input for past in await reports.outline(ALICE, 10)] == [None, None]


async def test_text_is_found_in_the_inputs_that_are_kept(store: RequestStore) -> None:
    reports = Reports(store.database)
    boat = await ended(store, 100.0)
    await ended(store, 100.0)
    for prompt, id in (("a Red boat, 100%", boat),):
        async with store.database.transaction() as connection:
            io = request_io.update().where(request_io.c.request_id == id)
            await connection.execute(io.values(input=json.dumps({"prompt": prompt})))

    found = [[past.id for past in await reports.outline(Selection("alice", text=text), 10)] for text in ("red", "0%")]
    assert found == [[boat], [boat]]
    assert await reports.outline(Selection("alice", text="r_d"), 10) == []
    async with store.database.transaction() as connection:
        await connection.execute(requests.update().values(store_io=False))
    assert await reports.outline(Selection("alice", text="red"), 10) == []


async def test_endings_select(store: RequestStore) -> None:
    ids = {
        ending: await ended(store, 100.0, status_code=code)
        for ending, code in zip(Ending, (200, 422, 499, 500), strict=True)
    }

    for ending, id in ids.items():
        (past,) = await Reports(store.database).outline(Selection("alice", ending=ending), 10)
        assert past.id == id


async def test_load_is_what_waits_runs_and_ended_just_now(store: RequestStore) -> None:
    for _ in range(3):
        await store.submit(new_request())
    await ended(store, 100.0)
    for status_code, took in ((200, 3.0), (200, 0.1), (422, 20.0)):
        await ended(store, 0, status_code=status_code, finished_at=now(), created_at=now() - took)
    async with store.database.transaction() as connection:
        running = requests.update().where(requests.c.seq == 1)
        await connection.execute(running.values(status="IN_PROGRESS", created_at=now() - 3600))

    (load,) = (await Reports(store.database).load()).values()
    assert (load.waiting, load.running, load.received) == (2, 1, 5)
    assert load.completed == {200: 2, 422: 1}
    assert dict(zip((*LATENCY_SECONDS, None), load.latencies, strict=True)) == dict.fromkeys((0.5, 1.0, 2.5), 1) | {
        5.0: 2,
        10.0: 2,
        **dict.fromkeys((*LATENCY_SECONDS[5:], None), 3),
    }
    assert await Reports(store.database).waiting([SVD]) == 2
    assert await Reports(store.database).waiting([STABLE]) == 0


async def test_erasing_forgets_the_payloads_and_nothing_else(store: RequestStore) -> None:
    reports = Reports(store.database)
    mine, other = await ended(store, 100.0), await ended(store, 101.0)
    await reports.erase(mine)

    past = {each.id: (each.input, each.output) for each in await reports.history(ALICE, 10)}
    assert past == {mine: (None, None), other: ({"image_url": "data:,"}, {"seed": 7})}
    with pytest.raises(NotFound, match="deleted"):
        await store.output(mine)


async def test_spending_tells_what_a_day_took_and_what_is_open(store: RequestStore) -> None:
    """Of one key: what its successes since a moment are billed, and what waits or runs."""
    for at, changes in (
        (99.0, {}),
        (100.0, {"gpu_seconds": 0.5}),
        (100.0, {"gpu_seconds": 1.5, "price_nano_usd": 75}),
        (101.0, {"gpu_seconds": None, "endpoint": STABLE}),
        (101.0, {"status_code": 500}),
        (101.0, {"key_id": "bob"}),
    ):
        await ended(store, at, **changes)
    for changes in ({}, {}, {"key_id": "bob"}, {"endpoint": STABLE}):
        await store.submit(new_request(**changes))
    await store.claim(MODEL, "owner", BatchLimits())
    told: Counter[tuple[str, str]] = Counter()
    for spent in await Reports(store.database).spending("alice", 100.0):
        told[spent.endpoint, "clips"] += spent.unpriced_clips
        told[spent.endpoint, "micros"] += spent.unpriced_micros
        told[spent.endpoint, "price"] += spent.price_nano_usd
        told[spent.endpoint, "open"] += spent.open
    of_svd = {(SVD, "clips"): 1, (SVD, "micros"): 500_000, (SVD, "price"): 75, (SVD, "open"): 2}
    of_stable = {(STABLE, "clips"): 1, (STABLE, "micros"): 0, (STABLE, "price"): 0, (STABLE, "open"): 1}
    assert told == of_svd | of_stable
    assert await Reports(store.database).spending("nobody", 100.0) == []
