"""What attempts cost us and what successes are billed: on the rows, and as sums over any window."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError
from sqlalchemy import insert, select

from deployments.costs import MICRO, Cost, nano_usd, share
from deployments.errors import RunnerDisconnected, RunnerServerError
from deployments.models.charges import billed
from deployments.models.messages import Attempt, Begun, Dropped, Event, Failed, Finished, ReplicaReport
from deployments.queue.replicas import Replicas
from deployments.queue.reports import EVER, Reports, Selection
from deployments.queue.request import RequestStatus
from deployments.queue.retention import Retention
from deployments.queue.store import BatchLimits, Outcome, RequestStore
from deployments.queue.tables import now, replicas, requests
from deployments.queue.tariff import Tariff
from tests.gateway.conftest import STABLE_VIDEO, SVD, served_endpoints
from tests.gateway.test_properties import fuzz
from tests.queue.conftest import MODEL, new_request
from tests.queue.past import ended
from tests.queue.test_dispatcher import FakeReplicas, finish, ids_of, running
from tests.queue.test_dispatcher import ended as end_of

RATES = {"H100": 3.6, "T4": 0.36}
"""USD an hour: a microsecond of an H100 costs a nano dollar, one of a T4 a tenth."""

REPORT = ReplicaReport("one", "fal-ai/svd", MODEL, "H100", 0.5, age_seconds=30.0)


async def row_of(store: RequestStore, request_id: str) -> Any:
    async with store.database.read() as connection:
        return (await connection.execute(select(requests).where(requests.c.id == request_id))).one()


async def take(store: RequestStore) -> Attempt:
    [attempt] = await store.claim(MODEL, "a", BatchLimits())
    return attempt


# ---------------------------------------------------------------- on the row


async def test_a_retried_request_has_cost_the_sum_of_its_attempts(store: RequestStore) -> None:
    request = await store.submit(new_request())
    await store.lose(await take(store), "a", "gone", cost=Cost(100, 3.6))
    await store.lose(await take(store), "a", "gone again", cost=Cost(20, 1.8))
    assert (await row_of(store, request.id)).gpu_usd_per_hour == 1.8
    outcome = Outcome(200, {}, gpu_seconds=0.5, gpu_usd_per_hour=0.36, cost_nano_usd=3, price_nano_usd=75, batch_size=2)
    assert await store.complete(await take(store), "a", outcome)

    row = await row_of(store, request.id)
    assert (row.cost_nano_usd, row.price_nano_usd, row.gpu_usd_per_hour, row.batch_size) == (123, 75, 0.36, 2)


async def test_what_is_written_twice_counts_once(store: RequestStore) -> None:
    """As where an answer of the store was lost, and it is told once more."""
    request = await store.submit(new_request())
    first = await take(store)
    for _ in range(3):
        await store.lose(first, "a", "gone", cost=Cost(100))
    second = await take(store)
    for _ in range(3):
        assert await store.complete(second, "a", Outcome(200, {}, cost_nano_usd=7))
    await store.lose(second, "a", "late", cost=Cost(1000))

    assert (await row_of(store, request.id)).cost_nano_usd == 107


@pytest.mark.parametrize("no_retry", [True, False])
async def test_a_request_that_ends_without_a_success_has_cost_what_it_took(store: RequestStore, no_retry: bool) -> None:
    request = await store.submit(new_request(no_retry=no_retry))
    await store.lose(await take(store), "a", "gone", cost=Cost(100, 3.6))
    if not no_retry:
        await store.cancel(request.id)  # while it waits for its next attempt

    row = await row_of(store, request.id)
    assert (row.status, row.cost_nano_usd, row.price_nano_usd) == (RequestStatus.COMPLETED, 100, None)
    assert row.gpu_usd_per_hour == 3.6


async def test_a_stopped_dispatcher_writes_down_what_it_gives_back_has_cost(store: RequestStore) -> None:
    begun, waiting = [await store.submit(new_request()) for _ in range(2)]
    held = [(await take(store)).request_id for _ in range(2)]
    assert held == [begun.id, waiting.id]
    await store.give_back("a", unbegun=[waiting.id], costs={begun.id: Cost(40, 3.6)})

    rows = [await row_of(store, request.id) for request in (begun, waiting)]
    assert [(row.status, row.cost_nano_usd) for row in rows] == [("IN_QUEUE", 40), ("IN_QUEUE", 0)]


# ---------------------------------------------------------------- by the dispatcher


async def dispatched(
    store: RequestStore, script: Any, count: int = 1, endpoint: str = SVD, **options: Any
) -> list[Any]:
    """The rows of requests that one batch of a scripted replica has ended."""
    submitted = [await store.submit(new_request(endpoint=endpoint)) for _ in range(count)]
    tariff = options.pop("tariff", None) or Tariff(served_endpoints())
    config = {"gpu_usd_per_hour": RATES} | options.pop("config", {})
    batching = {MODEL: {"max_batch_size": count}}
    async with running(
        store, FakeReplicas(script), tariff=tariff, config=config, batching=batching, lease_seconds=60.0, **options
    ):
        for request in submitted:
            await end_of(store, request)
    return [await row_of(store, request.id) for request in submitted]


async def test_a_batch_of_all_kinds_of_ends_is_paid_to_the_microsecond(store: RequestStore) -> None:
    """A success, a failure and a drop of one batch, and the painting of the first on another device."""
    shares = share(1_000_001, [2, 1, 1])
    seconds = [(shares[0] + MICRO // 2) / MICRO, shares[1] / MICRO, shares[2] / MICRO]

    async def play(attempts: list[Attempt]) -> AsyncIterator[Event]:
        done, failed, dropped = ids_of(attempts)
        yield Begun(ids_of(attempts), on_device=True, device=("H100", 0.5))
        times = [("H100", 0.5, micros) for micros in shares]
        yield Finished(done, {}, 2.0, seconds[0], (), (times[0], ("T4", 1.0, MICRO // 2)), 3)
        yield Failed(failed, RunnerServerError("no").failure(), False, (times[1],), 3)
        yield Dropped(dropped, (times[2],), 3)

    rows = await dispatched(store, play, 3, STABLE_VIDEO)
    assert [row.status_code for row in rows] == [200, 500, 499]
    assert [row.gpu_seconds for row in rows] == seconds
    assert [row.cost_nano_usd for row in rows] == [250_001 + 50_000, 125_000, 125_000]
    assert [row.price_nano_usd for row in rows] == [75_000_000, None, None]
    assert [(row.gpu_usd_per_hour, row.batch_size) for row in rows] == [(1.8, 3)] * 3
    print(
        f"a batch of 3 on half an H100 at 3.60 USD/h: {sum(shares)} µs shared as {shares}, costs "
        f"{[row.cost_nano_usd for row in rows]} nano USD (with 0.5 s of painting on a T4), billed 0.075 USD"
    )


async def test_an_attempt_that_is_tried_again_is_paid_too(store: RequestStore) -> None:
    async def play(attempts: list[Attempt]) -> AsyncIterator[Event]:
        [attempt] = attempts
        if attempt.number == 1:
            failure = RunnerDisconnected("gone").failure()
            yield Failed(attempt.request_id, failure, False, (("H100", 1.0, 300),), 1)
        else:
            yield Finished(attempt.request_id, {}, 1.0, 0.0005, (), (("H100", 1.0, 500),), 1)

    [row] = await dispatched(store, play)
    assert (row.attempt, row.cost_nano_usd, row.gpu_seconds) == (2, 800, 0.0005)


@pytest.mark.parametrize("on_device", [True, False])
async def test_a_lost_replica_costs_from_the_first_word_of_the_device(store: RequestStore, on_device: bool) -> None:
    lost: list[str] = []
    begun: list[float] = []

    async def play(attempts: list[Attempt]) -> AsyncIterator[Event]:
        if any(attempt.number == 1 for attempt in attempts):
            lost.extend(ids_of(attempts))
            begun.append(asyncio.get_running_loop().time())
            yield Begun(ids_of(attempts), on_device=on_device, device=("H100", 0.5) if on_device else None)
            await asyncio.sleep(0.05)
            begun.append(asyncio.get_running_loop().time())
            raise ActorDiedError
        async for event in finish(attempts):
            yield event

    rows = await dispatched(store, play, 2)
    spent = sum(row.cost_nano_usd for row in rows)
    if not on_device:
        assert spent == 0
        return
    assert spent >= (begun[1] - begun[0]) * 0.5 * MICRO * 0.99
    assert abs(rows[0].cost_nano_usd - rows[1].cost_nano_usd) <= 1


async def test_a_run_that_is_ended_for_its_length_costs_what_it_took(store: RequestStore) -> None:
    async def hang(attempts: list[Attempt]) -> AsyncIterator[Event]:
        yield Begun(ids_of(attempts), on_device=True, device=("H100", 0.5))
        await asyncio.Event().wait()

    rows = await dispatched(store, hang, 2, config={"run_seconds": {MODEL: 0.1}})
    assert [row.status_code for row in rows] == [504, 504]
    assert sum(row.gpu_seconds for row in rows) >= 0.099
    assert [row.cost_nano_usd for row in rows] == [nano_usd(round(row.gpu_seconds * MICRO), 1.8) for row in rows]
    assert [row.price_nano_usd for row in rows] == [None, None]


async def test_a_dispatcher_that_stops_tells_what_its_runs_have_cost(store: RequestStore) -> None:
    begun = asyncio.Event()

    async def hang(attempts: list[Attempt]) -> AsyncIterator[Event]:
        yield Begun(ids_of(attempts), on_device=True, device=("H100", 1.0))
        begun.set()
        await asyncio.Event().wait()

    request = await store.submit(new_request())
    async with running(store, FakeReplicas(hang), config={"gpu_usd_per_hour": RATES}, lease_seconds=60.0):
        await begun.wait()
    row = await row_of(store, request.id)
    assert (row.status, row.gpu_usd_per_hour) == (RequestStatus.IN_QUEUE, 3.6)
    assert row.cost_nano_usd > 0


def of_version_before(event: Event) -> Event:
    """The event as a replica of the version before would have sent it: what is new is not in its pickle."""
    old = copy.copy(event)
    for name in ("gpu_time", "batch_size", "device"):
        old.__dict__.pop(name, None)
    return pickle.loads(pickle.dumps(old))


async def test_a_replica_of_the_version_before_is_understood(store: RequestStore) -> None:
    async def play(attempts: list[Attempt]) -> AsyncIterator[Event]:
        one, two, three = ids_of(attempts)
        yield of_version_before(Begun(ids_of(attempts), on_device=True))
        yield of_version_before(Finished(one, {}, 1.0, 0.25))
        yield of_version_before(Failed(two, RunnerServerError("no").failure()))
        yield of_version_before(Dropped(three))

    rows = await dispatched(store, play, 3, STABLE_VIDEO)
    assert [(row.status_code, row.cost_nano_usd, row.batch_size) for row in rows] == [
        (200, 0, None),
        (500, 0, None),
        (499, 0, None),
    ]
    assert (rows[0].gpu_seconds, rows[0].price_nano_usd) == (0.25, 75_000_000)


# ---------------------------------------------------------------- rates and prices


def test_an_accelerator_is_known_by_its_name_or_a_word_of_it(caplog: pytest.LogCaptureFixture) -> None:
    tariff = Tariff()
    tariff.set_rates({"H100": 3.0, "L4": 0.8, "L40S": 1.2, "A100-80G": 2.0, "A100": 1.8})

    for name, rate in {
        "H100": 3.0,
        "NVIDIA H100 80GB HBM3": 3.0,
        "NVIDIA L4": 0.8,
        "NVIDIA L40S": 1.2,
        "A100-80G": 2.0,
        "NVIDIA A100-SXM4-40GB": 1.8,
    }.items():
        assert tariff.usd_per_hour(name, 0.5) == rate / 2, name
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert [tariff.usd_per_hour("B300", 1.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert [record.message for record in caplog.records] == [
        "nobody has said what an hour of B300 costs: it counts as nothing"
    ]
    assert Tariff(usd_per_hour=2.0).usd_per_hour("B300", 0.25) == 0.5


async def test_prices_that_change_later_leave_the_past_alone(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    [row] = await dispatched(store, finish, 1, STABLE_VIDEO)
    await ended(store, 100.0, endpoint=STABLE_VIDEO)  # from before rows kept a price
    stable_video = served_endpoints()[STABLE_VIDEO]
    monkeypatch.setattr(type(stable_video), "unit_price", Decimal("0.15"))
    sums = [billed(stable_video, used) for used in await Reports(store.database).usage(Selection(None), EVER)]

    assert row.price_nano_usd == 75_000_000
    assert sums == [75_000_000 + 150_000_000]


# ---------------------------------------------------------------- replicas


async def rows_of_replicas(store: RequestStore) -> list[Any]:
    async with store.database.read() as connection:
        return list((await connection.execute(select(replicas).order_by(replicas.c.started_at))).all())


async def test_a_replica_is_there_from_its_start_until_its_last_report(store: RequestStore) -> None:
    reports = Replicas(store.database)
    await asyncio.gather(*(reports.note(REPORT, 1.8) for _ in range(5)))  # the same, as where answers were lost

    [row] = await rows_of_replicas(store)
    assert 30.0 <= row.seen_at - row.started_at < 40.0
    assert (row.deployment, row.model, row.accelerator, row.gpu_fraction) == (MODEL, "fal-ai/svd", "H100", 0.5)
    await reports.note(REPORT, 1.8)
    [again] = await rows_of_replicas(store)
    assert (again.started_at, again.seen_at > row.seen_at) == (row.started_at, True)


async def test_a_clock_that_is_set_back_takes_no_time_from_a_replica(store: RequestStore) -> None:
    """As where a database has moved to another machine: what has been counted stays."""
    reports = Replicas(store.database)
    await reports.note(REPORT, 3.6)
    async with store.database.transaction() as connection:
        await connection.execute(replicas.update().values(seen_at=now() + 100))
    [before] = await reports.loaded(EVER)
    for rate in (3.6, 7.2, 7.2):
        await reports.note(REPORT, rate)
        assert await reports.loaded(EVER) == [before]


async def test_a_replica_whose_rate_changes_costs_the_former_until_then(store: RequestStore) -> None:
    reports = Replicas(store.database)
    for rate in (3.6, 7.2, 7.2, 3.6):
        await reports.note(REPORT, rate)

    rows = await rows_of_replicas(store)
    assert [row.gpu_usd_per_hour for row in rows] == [3.6, 7.2, 3.6]
    assert [(one.seen_at, two.started_at) for one, two in pairwise(rows)] == [
        (row.seen_at, row.seen_at) for row in rows[:-1]
    ]
    [loaded] = await reports.loaded(EVER)
    seconds = [row.seen_at - row.started_at for row in rows]
    assert abs(loaded.micros - sum(seconds) * MICRO) <= 3
    assert abs(loaded.nano_usd - MICRO * (seconds[0] + 2 * seconds[1] + seconds[2])) <= 6


async def test_a_replica_reports_through_the_dispatcher_at_its_rate(store: RequestStore) -> None:
    config = {"gpu_usd_per_hour": {"H100": 3.0}}
    async with running(store, FakeReplicas(finish), config=config) as dispatcher:
        await dispatcher.note_replica(REPORT)
    [row] = await rows_of_replicas(store)
    assert row.gpu_usd_per_hour == 1.5


@pytest.mark.parametrize(("kept_days", "left"), [(1e-6, ["today"]), (2.0, ["yesterday", "today"])])
async def test_replicas_are_forgotten_with_the_requests_of_their_time(
    store: RequestStore, kept_days: float, left: list[str]
) -> None:
    """Which is never within a day: what is counted by the day counts them."""
    for name, hours_ago in (("last week", 170), ("yesterday", 30), ("today", 23)):
        await Replicas(store.database).note(replace(REPORT, replica_id=name), 1.0)
        seen = {"started_at": now() - 3600 * (hours_ago + 1), "seen_at": now() - 3600 * hours_ago}
        async with store.database.transaction() as connection:
            await connection.execute(replicas.update().where(replicas.c.id == name).values(seen))
    while await Retention(store.database, request_seconds=kept_days * 86400).sweep():
        pass
    assert [row.id for row in await rows_of_replicas(store)] == left


# ---------------------------------------------------------------- sums


async def fill(store: RequestStore, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Batches of all sizes that ended within 1000 s, and replicas that were there: as rows."""
    chance = random.Random(seed)
    rows = [row for _ in range(120) for row in _batch(chance)]
    there = [_replica(chance, number) for number in range(40)]
    async with store.database.transaction() as connection:
        await connection.execute(insert(requests), rows)
        await connection.execute(insert(replicas), there)
    return rows, there


def _batch(chance: random.Random) -> list[dict[str, Any]]:
    members, rate, endpoint = chance.randint(1, 8), chance.choice([0.0, 0.35, 1.7999, 3.0]), chance.choice("pqr")
    parts = share(chance.randint(0, 10**8), [chance.randint(0, 10**9) for _ in range(members)])
    at = chance.uniform(0, 1000)
    return [_request(chance, endpoint, at + chance.random(), micros, rate) for micros in parts]


def _request(chance: random.Random, endpoint: str, at: float, micros: int, rate: float) -> dict[str, Any]:
    status = chance.choice([200, 200, 200, 422, 499, 500])
    price = chance.choice([None, 0, 75_000_000, chance.randint(1, 10**9)]) if status == 200 else None
    return {
        "id": str(uuid4()),
        "endpoint": endpoint,
        "model": f"model-{endpoint}",
        "key_id": "alice",
        "priority": 0,
        "batch_key": "",
        "pixel_frames": 1,
        "no_retry": False,
        "status": RequestStatus.COMPLETED,
        "attempt": 1,
        "cancel_requested": False,
        "created_at": at - 5,
        "started_at": at - 4,
        "finished_at": at,
        "status_code": status,
        "gpu_seconds": micros / MICRO,
        "gpu_usd_per_hour": rate,
        "cost_nano_usd": nano_usd(micros, rate),
        "price_nano_usd": price,
    }


def _replica(chance: random.Random, number: int) -> dict[str, Any]:
    started = chance.uniform(-100, 900)
    return {
        "id": str(number),
        "model": "p",
        "deployment": chance.choice("xy"),
        "accelerator": "H100",
        "gpu_fraction": 1.0,
        "gpu_usd_per_hour": chance.choice([0.7, 1.23456, 3.99]),
        "started_at": started,
        "seen_at": started + chance.uniform(0, 400),
    }


edges_of_windows = st.lists(st.floats(-200, 1500, width=32), min_size=1, max_size=7, unique=True).map(sorted)


def test_sums_over_any_windows_agree_to_the_nano_dollar(database_url: str) -> None:
    """However time is cut into windows: they add up to what the rows say, and failures are billed nothing."""
    with start_blocking_portal() as portal:
        store = portal.call(RequestStore.open, database_url)
        rows, _ = portal.call(fill, store, 7)
        reports, loads = Reports(store.database), Replicas(store.database)
        everything = portal.call(loads.loaded, [-1e6, 1e6])

        @fuzz(25)
        @given(edges_of_windows)
        def check(cuts: list[float]) -> None:
            edges = [-1e6, *cuts, 1e6]
            spent = portal.call(reports.costs, edges)
            for bucket, (since, until) in enumerate(pairwise(edges)):
                inside = [row for row in rows if since <= row["finished_at"] < until]
                _agree([each for each in spent if each.bucket == bucket], inside)
            loaded = portal.call(loads.loaded, edges)
            for of_all in everything:
                mine = [each for each in loaded if each.deployment == of_all.deployment]
                assert sum(each.nano_usd for each in mine) == of_all.nano_usd
                assert sum(each.micros for each in mine) == of_all.micros

        check()
        portal.call(store.close)
    costs = sum(row["cost_nano_usd"] for row in rows)
    print(
        f"{len(rows)} requests cost {costs / 1e9:.9f} USD, their replicas "
        f"{sum(each.nano_usd for each in everything) / 1e9:.9f} USD, in any windows"
    )


def _agree(spent: Sequence[Any], rows: Sequence[dict[str, Any]]) -> None:
    done = [row for row in rows if row["status_code"] == 200]
    assert sum(each.requests for each in spent) == len(rows)
    assert sum(each.successes for each in spent) == len(done)
    assert sum(each.cost_nano_usd for each in spent) == sum(row["cost_nano_usd"] for row in rows)
    assert sum(each.gpu_micros for each in spent) == sum(round(row["gpu_seconds"] * MICRO) for row in rows)
    assert sum(each.price_nano_usd for each in spent) == sum(row["price_nano_usd"] or 0 for row in done)
    assert sum(each.unpriced_clips for each in spent) == sum(row["price_nano_usd"] is None for row in done)
