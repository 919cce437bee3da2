"""Whose turn it is: keys beside each other, limits, priorities, backoff, and what kills replicas."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import and_, func, select, update

from deployments.errors import ConcurrentRequestsLimit, QueueFull
from deployments.models.messages import Attempt
from deployments.queue import turns as turns_of
from deployments.queue.keys import Keys, Limits
from deployments.queue.request import MAX_ATTEMPTS, MAX_UNBEGUN, InferenceRequest, Priority, RequestStatus
from deployments.queue.store import BatchLimits, Outcome, RequestStore
from deployments.queue.tables import now, request_io, requests, turns
from deployments.queue.watch import Positions
from tests.queue.conftest import MODEL, new_request

ONE = BatchLimits()
FOUR = BatchLimits(max_batch_size=4)
DONE = Outcome(200, {})


async def submit(store: RequestStore, count: int, **changes: Any) -> list[str]:
    return [(await store.submit(new_request(**changes))).id for _ in range(count)]


async def claim(store: RequestStore, limits: BatchLimits = ONE, limit: int | None = None) -> list[str]:
    return [attempt.request_id for attempt in await store.claim(MODEL, "a", limits, limit)]


async def row(store: RequestStore, request_id: str) -> InferenceRequest:
    request = await store.get(request_id)
    assert request
    return request


async def crowd(store: RequestStore, count: int, key_id: str, **changes: Any) -> None:
    """So many requests of a key, with these changes to their rows."""
    new = [new_request(key_id=key_id) for _ in range(count)]
    common = {"status": RequestStatus.IN_QUEUE, "attempt": 0, "cancel_requested": False, "created_at": 0.0}
    common |= changes
    names = ("id", "endpoint", "model", "key_id", "priority", "batch_key", "pixel_frames", "no_retry")
    rows = [{name: getattr(each, name) for name in names} | common for each in new]
    inputs = [{"request_id": each.id, "input": "{}"} for each in new]
    for some in (slice(start, start + 1000) for start in range(0, count, 1000)):  # a call has four seconds
        async with store.database.transaction() as connection:
            await connection.execute(requests.insert(), rows[some])
            await connection.execute(request_io.insert(), inputs[some])


# ---------------------------------------------------------------- turns


async def test_a_burst_from_one_key_does_not_hold_up_another(store: RequestStore) -> None:
    await crowd(store, 500, "alice")
    (bobs,) = await submit(store, 1, key_id="bob")
    assert bobs in [*await claim(store), *await claim(store)]
    (again,) = await submit(store, 1, key_id="bob")
    assert again in [*await claim(store), *await claim(store)]


async def test_keys_go_round_and_each_keys_requests_first_come_first_served(store: RequestStore) -> None:
    alices, bobs, carols = [await submit(store, 3, key_id=key) for key in ("alice", "bob", "carol")]
    taken = [request_id for _ in range(9) for request_id in await claim(store)]
    assert taken == [each for three in zip(alices, bobs, carols, strict=True) for each in three]


async def test_a_batch_is_filled_from_as_many_keys_as_wait(store: RequestStore) -> None:
    alices = await submit(store, 5, key_id="alice")
    bobs = await submit(store, 2, key_id="bob")
    assert await claim(store, FOUR) == [alices[0], bobs[0], alices[1], bobs[1]]
    assert await claim(store, FOUR) == alices[2:]


async def test_a_batch_is_filled_where_more_keys_wait_than_are_looked_at_twice(store: RequestStore) -> None:
    for number in range(turns_of.LOOKS // 3):
        await crowd(store, 1, f"key {number}")
    await crowd(store, 3, "alice")
    assert len(await claim(store, BatchLimits(max_batch_size=8))) == 8


async def test_normal_and_low_requests_share_no_batch(store: RequestStore) -> None:
    low = await submit(store, 2, priority=Priority.LOW)
    normal = await submit(store, 2)
    assert await claim(store, FOUR) == normal
    assert await claim(store, FOUR) == low


async def test_what_a_claim_looks_at_does_not_grow_with_the_queue(store: RequestStore) -> None:
    """No statement of a claim reads more than a few rows for each key that waits, with old statistics or with new.

    A table that is smaller than this PostgreSQL may read whole: that is quicker, and bounded.
    """
    await crowd(store, 12000, "alice")
    await crowd(store, 20, "bob")
    queries = [
        select(turns_of.has_work(MODEL, 2)),
        turns_of._locked(turns_of._in_turn(turns_of._firsts(MODEL, Priority.NORMAL), 2), 1),
        turns_of._locked(turns_of._in_turn(turns_of._firsts(MODEL, Priority.NORMAL, "steps=20", 4), 2), 4),
    ]
    for _ in range(2):
        for query in queries:
            assert await _rows_read(store, query) < 40
        async with store.database.transaction() as connection:
            await connection.exec_driver_sql("ANALYZE")


async def _rows_read(store: RequestStore, query: Any) -> int:
    """By PostgreSQL's account. SQLite counts steps of its virtual machine, at most a hundred for a row."""
    dialect = store.database._engine.dialect
    text = str(query.compile(dialect=dialect, compile_kwargs={"literal_binds": True})).replace("%", "%%")
    async with store.database.transaction() as connection:
        if dialect.name == "sqlite":
            steps = itertools.count()
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await driver.set_progress_handler(lambda: next(steps) and None, 100)
            await connection.exec_driver_sql(text)
            await driver.set_progress_handler(None, 100)
            return next(steps)
        plan = (await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}")).scalar_one()
    return max(_read(json.loads(plan)[0]["Plan"] if isinstance(plan, str) else plan[0]["Plan"]))


def _read(node: dict[str, Any]) -> Iterator[int]:
    yield node["Actual Rows"] * node["Actual Loops"] + node.get("Rows Removed by Filter", 0)
    for child in node.get("Plans", ()):
        yield from _read(child)


@pytest.mark.parametrize("seed", range(4))
async def test_a_random_schedule_keeps_the_promises(store: RequestStore, seed: int) -> None:
    """Nothing twice, normal before low, the key served longest ago, first come first served in each key."""
    chance = random.Random(seed)
    waiting: list[InferenceRequest] = []
    running: list[Attempt] = []
    seen: Counter[str] = Counter()
    batch_keys: dict[str, str] = {}

    async def arrive() -> None:
        new = new_request(
            key_id=chance.choice("abc"), priority=chance.choice(list(Priority)), batch_key=chance.choice("xy")
        )
        batch_keys[new.id] = new.batch_key
        waiting.append(await store.submit(new))

    async def take() -> None:
        async with store.database.read() as connection:
            served = {each.key_id: each.served_at for each in await connection.execute(select(turns))}
        batch = await store.claim(MODEL, "a", BatchLimits(max_batch_size=chance.randint(1, 5)))
        taken = [next(each for each in waiting if each.id == attempt.request_id) for attempt in batch]
        assert bool(taken) == bool(waiting)
        if not taken:
            return
        first = min(each.priority for each in waiting)
        assert {each.priority for each in taken} == {first}
        rivals = {each.key_id for each in waiting if each.priority == first}
        assert served.get(taken[0].key_id, 0.0) == min(served.get(key, 0.0) for key in rivals)
        assert taken[0].seq == min(each.seq for each in waiting if _lane(each) == _lane(taken[0]))
        assert len({batch_keys[each.id] for each in taken}) == 1
        for lane in {_lane(each) for each in taken}:
            alike = [each for each in waiting if _lane(each) == lane and batch_keys[each.id] == batch_keys[taken[0].id]]
            mine = [each for each in taken if _lane(each) == lane]
            assert mine == sorted(alike, key=lambda each: each.seq)[: len(mine)]
        for attempt, request in zip(batch, taken, strict=True):
            seen[request.id] += 1
            assert attempt.number == seen[request.id]
            waiting.remove(request)
        running.extend(batch)

    async def end() -> None:
        if running:
            attempt = running.pop(chance.randrange(len(running)))
            if chance.random() < 0.3:
                assert await store.lose(attempt, "a", "gone")
                waiting.append(await row(store, attempt.request_id))
            else:
                assert await store.complete(attempt, "a", DONE)

    for _ in range(60):
        await chance.choice([arrive, arrive, take, end])()
    while waiting:
        await take()
    assert set(seen) == set(batch_keys)


def _lane(request: InferenceRequest) -> tuple[int, str]:
    return request.priority, request.key_id


# ---------------------------------------------------------------- limits


async def test_no_key_runs_more_than_it_may_however_many_claim_at_once(database_url: str) -> None:
    stores = [await RequestStore.open(database_url) for _ in range(4)]
    for key in ("alice", "bob"):
        await crowd(stores[0], 10, key)
    for free in range(3):  # after each round one of each key ends
        batches = await asyncio.gather(*(store.claim(MODEL, "a", FOUR, 3) for store in stores for _ in range(3)))
        async with stores[0].database.read() as connection:
            query = select(requests.c.key_id, requests.c.id).where(requests.c.status == "IN_PROGRESS")
            held = (await connection.execute(query)).all()
        assert Counter(each.key_id for each in held) == {"alice": 3, "bob": 3}, free
        ending = {each.key_id: each.id for each in held}.values()
        async with stores[0].database.transaction() as connection:
            ended = update(requests).where(requests.c.id.in_(ending)).values(status="COMPLETED")
            await connection.execute(ended)
        assert any(batches)
    for store in stores:
        await store.close()


async def test_a_limit_counts_over_all_models(store: RequestStore) -> None:
    await submit(store, 2, model="another")
    await store.claim("another", "a", FOUR, 2)
    mine = await submit(store, 1)
    assert await claim(store, FOUR, 2) == []
    assert await claim(store, FOUR, 3) == mine


async def test_a_key_at_its_limit_lets_others_past_and_low_ones_too(store: RequestStore) -> None:
    await submit(store, 5, key_id="alice")
    low = await submit(store, 1, key_id="bob", priority=Priority.LOW)
    assert len(await claim(store, FOUR, 2)) == 2
    assert await claim(store, FOUR, 2) == low


async def test_there_is_no_work_where_all_that_waits_has_to_wait(store: RequestStore) -> None:
    """Else a dispatcher would claim in vain, again and again."""
    await submit(store, 3)
    assert await store.models_with_work([MODEL, "another"], 2) == {MODEL}
    (attempt, _) = await store.claim(MODEL, "a", FOUR, 2)
    assert await store.models_with_work([MODEL], 2) == set()
    assert await store.models_with_work([MODEL]) == {MODEL}
    await store.lose(attempt, "a", "gone", retry_seconds=60)
    assert await store.models_with_work([MODEL], 2) == {MODEL}
    await claim(store, FOUR, 2)
    assert await store.models_with_work([MODEL]) == set()


async def test_a_keys_own_limit_goes_before_everybodys(store: RequestStore) -> None:
    """Whether it is lower or higher; and what may start is what is claimed."""
    keys = Keys(store.database)
    low, _ = await keys.create("low", limits=Limits(max_running=1))
    high, _ = await keys.create("high", limits=Limits(max_running=3))
    plain, _ = await keys.create("plain", limits=Limits(max_waiting=9))
    expected = {None: {low.id: 1, high.id: 3, plain.id: 4}, 2: {low.id: 1, high.id: 3, plain.id: 2}}
    for limit, most in expected.items():
        for key in most:
            await submit(store, 4, key_id=key)
        batch = await store.claim(MODEL, "a", BatchLimits(max_batch_size=20), limit)
        assert Counter([(await row(store, attempt.request_id)).key_id for attempt in batch]) == most
        assert await store.models_with_work([MODEL], limit) == set()
        assert await store.claim(MODEL, "a", FOUR, limit) == []
        assert [await store.complete(attempt, "a", DONE) for attempt in batch]
        while rest := await store.claim(MODEL, "a", BatchLimits(max_batch_size=20)):
            for attempt in rest:
                await store.complete(attempt, "a", DONE)


async def test_two_dispatchers_never_run_more_of_a_key_than_it_may(database_url: str) -> None:
    """Over models, batches, lost and ended attempts; and once all may start, all have run."""
    stores = [await RequestStore.open(database_url) for _ in range(2)]
    keys = Keys(stores[0].database)
    most = {(await keys.create(str(limit), limits=Limits(max_running=limit)))[0].id: limit for limit in (1, 2, 3)}
    for key in most:
        for model in (MODEL, "another"):
            await submit(stores[0], 5, key_id=key, model=model)
    chance = random.Random(6)
    done: set[str] = set()

    async def dispatch(store: RequestStore, owner: str) -> None:
        while len(done) < 30:
            batch = await store.claim(chance.choice([MODEL, "another"]), owner, FOUR)
            async with store.database.read() as connection:
                query = select(requests.c.key_id).where(requests.c.status == "IN_PROGRESS")
                running = Counter((await connection.execute(query)).scalars())
            assert all(running[key] <= limit for key, limit in most.items()), running
            for attempt in batch:
                if chance.random() < 0.2:
                    await store.lose(attempt, owner, "gone")
                else:
                    await store.complete(attempt, owner, DONE)
                    done.add(attempt.request_id)

    async with asyncio.timeout(60):
        await asyncio.gather(*(dispatch(store, f"owner {number}") for number, store in enumerate(stores)))
    for store in stores:
        await store.close()


async def test_no_more_of_a_key_wait_than_may_however_many_submit_at_once(database_url: str) -> None:
    """From two processes' pools, for several keys; the refused leave nothing behind."""
    stores = [await RequestStore.open(database_url) for _ in range(2)]
    most = {"alice": 1, "bob": 4, "carol": None}
    calls = [
        store.submit(new_request(key_id=key), limits=Limits(max_waiting=limit))
        for _ in range(6)
        for store in stores
        for key, limit in most.items()
    ]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    refused = [end for end in ends if isinstance(end, Exception)]
    assert {type(end) for end in refused} == {QueueFull}
    async with stores[0].database.read() as connection:
        stored = Counter((await connection.execute(select(requests.c.key_id))).scalars())
        inputs = len((await connection.execute(select(request_io.c.request_id))).all())
    assert stored == {"alice": 1, "bob": 4, "carol": 12}
    assert inputs == 17 == len(ends) - len(refused)
    for store in stores:
        await store.close()


async def test_of_synchronous_runs_at_once_no_more_are_accepted_than_may_run(store: RequestStore) -> None:
    """Those that run count, whoever waits for them; of those that wait, only the ones that are about to run."""
    await submit(store, 1)
    await claim(store)
    await submit(store, 5)
    limits = Limits(max_running=3)
    calls = [store.submit(new_request(no_retry=True), limits=limits, synchronous=True) for _ in range(6)]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert Counter(type(end) for end in ends) == {InferenceRequest: 2, ConcurrentRequestsLimit: 4}
    assert await store.submit(new_request(), limits=limits)


async def test_what_a_submit_looks_at_does_not_grow_with_the_queue(store: RequestStore) -> None:
    """Beyond what may wait of its own key."""
    await crowd(store, 12000, "alice")
    await crowd(store, 20, "bob")
    of = requests.c
    for mine, rows in ((and_(of.key_id == "bob", turns_of.in_queue()), 20), (_synchronous("alice"), 0)):
        query = select(func.count()).select_from(select(of.seq).where(mine).limit(50).subquery())
        for _ in range(2):
            assert await _rows_read(store, query) <= rows + 20
            async with store.database.transaction() as connection:
                await connection.exec_driver_sql("ANALYZE")


def _synchronous(key_id: str) -> Any:
    return and_(requests.c.key_id == key_id, turns_of.in_queue(), requests.c.no_retry)


# ---------------------------------------------------------------- lost attempts


async def test_a_lost_attempt_is_followed_by_the_next_after_a_while(store: RequestStore) -> None:
    (late,) = await submit(store, 1)
    (attempt,) = await store.claim(MODEL, "a", ONE)
    await store.lose(attempt, "a", "the file storage is full", retry_seconds=60)
    assert await store.models_with_work([MODEL]) == set()
    assert await claim(store) == []
    others = await submit(store, 1)
    assert await claim(store) == others
    async with store.database.transaction() as connection:
        await connection.execute(update(requests).where(requests.c.id == late).values(not_before=now() - 1))
    assert await claim(store) == [late]


async def test_a_request_under_which_a_replica_died_runs_alone(store: RequestStore) -> None:
    suspect, *others = await submit(store, 4)
    (attempt,) = await store.claim(MODEL, "a", ONE)
    assert not attempt.alone
    await store.lose(attempt, "a", "the replica died", crashed=True)
    (again,) = await store.claim(MODEL, "a", FOUR)
    assert (again.request_id, again.number, again.alone) == (suspect, 2, True)
    assert await claim(store, FOUR) == others


async def test_a_request_under_which_a_replica_died_joins_nobody(store: RequestStore) -> None:
    (suspect,) = await submit(store, 1, key_id="bob")
    (attempt,) = await store.claim(MODEL, "a", ONE)
    await store.lose(attempt, "a", "the replica died", crashed=True)
    fresh = await submit(store, 2, key_id="alice")
    assert await claim(store, FOUR) == fresh
    assert await claim(store, FOUR) == [suspect]


async def test_a_request_that_was_lost_without_a_crash_may_join_others(store: RequestStore) -> None:
    first = await submit(store, 1)
    (attempt,) = await store.claim(MODEL, "a", ONE)
    await store.lose(attempt, "a", "the replica was scaled down")
    assert await claim(store, FOUR) == first + await submit(store, 0)


async def test_three_crashes_alone_end_a_request_and_its_neighbours_go_on(store: RequestStore) -> None:
    poison, mate = await submit(store, 2)
    for attempt in await store.claim(MODEL, "a", FOUR):
        await store.lose(attempt, "a", "the replica died", crashed=True)  # both were there: both are suspects
    for _ in range(3):
        assert (await row(store, poison)).status == RequestStatus.IN_QUEUE
        for attempt in [*await store.claim(MODEL, "a", FOUR), *await store.claim(MODEL, "a", FOUR)]:
            assert attempt.alone
            if attempt.request_id == poison:
                await store.lose(attempt, "a", "the replica died", crashed=True)
            else:
                assert await store.complete(attempt, "a", DONE)
    ended = await row(store, poison)
    assert (ended.status_code, ended.error_type, ended.attempt) == (500, "runner_server_error", 4)
    assert (await row(store, mate)).status_code == 200


async def test_a_dispatcher_that_stops_gives_back_unblamed_what_had_not_begun(store: RequestStore) -> None:
    begun, unbegun = await submit(store, 2, no_retry=True)
    (cancelled,) = await submit(store, 1)
    await store.heartbeat("a", 10)
    assert len(await claim(store, FOUR)) == 3
    await store.cancel(cancelled)
    await store.give_back("a", {unbegun, cancelled})
    assert (await row(store, begun)).error_type == "runner_disconnected"
    assert (await row(store, cancelled)).error_type == "client_cancelled"
    assert await claim(store, FOUR) == [unbegun]


async def test_attempts_that_had_not_begun_are_none_of_the_ten(store: RequestStore) -> None:
    (request_id,) = await submit(store, 1)
    for _ in range(MAX_ATTEMPTS + 2):
        await store.put_back(await store.claim(MODEL, "a", ONE), "a", "the replica was lost before it began")
    for _ in range(MAX_ATTEMPTS):
        assert (await row(store, request_id)).status == RequestStatus.IN_QUEUE
        (attempt,) = await store.claim(MODEL, "a", ONE)
        await store.lose(attempt, "a", "gone")
    ended = await row(store, request_id)
    assert (ended.error_type, ended.attempt) == ("runner_disconnected", 2 * MAX_ATTEMPTS + 2)
    assert not await store.complete(attempt, "a", DONE)


async def test_what_comes_back_before_it_began_may_have_to_wait(store: RequestStore) -> None:
    await submit(store, 1)
    await store.put_back(await store.claim(MODEL, "a", ONE), "a", "the replica was lost", retry_seconds=60)
    assert await claim(store) == []


async def test_what_never_begins_ends_some_time(store: RequestStore) -> None:
    """Before the number of its attempt is more than its column, or a power of two, can hold."""
    (request_id,) = await submit(store, 1)
    often = update(requests).values(attempt=MAX_UNBEGUN, unbegun=MAX_UNBEGUN)
    async with store.database.transaction() as connection:
        await connection.execute(often)
    for _ in range(MAX_ATTEMPTS):
        assert (await row(store, request_id)).status == RequestStatus.IN_QUEUE
        await store.put_back(await store.claim(MODEL, "a", ONE), "a", "the replica was lost")
    ended = await row(store, request_id)
    assert (ended.error_type, ended.attempt) == ("runner_disconnected", MAX_UNBEGUN + MAX_ATTEMPTS)
    assert 2.0**ended.attempt < float("inf")


async def test_only_its_owner_puts_an_attempt_back(store: RequestStore) -> None:
    await submit(store, 1)
    batch = await store.claim(MODEL, "a", ONE)
    await store.put_back(batch, "b", "not mine")
    assert await claim(store) == []


# ---------------------------------------------------------------- positions


async def test_positions_follow_the_turns(store: RequestStore) -> None:
    alices = [await store.submit(new_request(key_id="alice")) for _ in range(4)]
    bob = await store.submit(new_request(key_id="bob"))
    low = await store.submit(new_request(key_id="bob", priority=Priority.LOW))
    positions = Positions(store, max_age=0)
    line = [alices[0], bob, *alices[1:], low]
    assert [await positions.ahead(request) for request in line] == [0, 1, 2, 3, 4, 5]
    assert await store.waiting(MODEL) == [(request.priority, request.seq) for request in line]
    assert await claim(store) == [alices[0].id]
    line = [bob, *alices[1:], low]
    assert [await positions.ahead(request) for request in line] == [0, 1, 2, 3, 4]
    assert await positions.depth(MODEL) == 5


async def test_a_request_newer_than_the_snapshot_has_the_place_that_it_will_have(store: RequestStore) -> None:
    for _ in range(3):
        await store.submit(new_request(key_id="alice"))
    positions = Positions(store, max_age=60)
    assert await positions.depth(MODEL) == 3
    fourth, first = [await store.submit(new_request(key_id=key)) for key in ("alice", "bob")]
    assert [await positions.ahead(request) for request in (fourth, first)] == [3, 1]
