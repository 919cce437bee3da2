from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.errors import InvalidInput, RunnerServerError, StartTimeout, Unavailable
from deployments.models.messages import Attempt, StoredFile
from deployments.queue import store as store_module
from deployments.queue.request import MAX_ATTEMPTS, Cancelled, LogLine, Priority, RequestStatus
from deployments.queue.store import PAGE, BatchLimits, Outcome, RequestStore
from deployments.queue.tables import dispatchers, now, request_io, requests
from tests.queue.conftest import MODEL, new_request

ONE = BatchLimits()
FOUR = BatchLimits(max_batch_size=4)


async def claim_one(store: RequestStore, owner: str = "a") -> Attempt:
    await store.heartbeat(owner, 10)
    (attempt,) = await store.claim(MODEL, owner, ONE)
    return attempt


async def test_accepted_request_waits_and_its_input_reaches_the_claimer(store: RequestStore) -> None:
    request = await store.submit(new_request(input='{"seed": 7}'))
    assert request.status == RequestStatus.IN_QUEUE
    assert (await store.get(request.id)) == request
    assert await store.claim(MODEL, "a", ONE) == [Attempt(request.id, 1, "fal-ai/svd", '{"seed": 7}')]


async def test_acknowledged_request_is_there_for_others(store: RequestStore, database_url: str) -> None:
    request = await store.submit(new_request())
    other = await RequestStore.open(database_url)
    assert await other.get(request.id) == request
    await other.close()


async def test_refused_request_is_recorded_as_completed_with_its_error(store: RequestStore) -> None:
    failure = InvalidInput([{"loc": ("fps",), "msg": "too big", "type": "less_than_equal"}]).failure()
    request = await store.submit(new_request(), failure)
    ended = await store.get(request.id)
    assert ended and (ended.status, ended.status_code) == (RequestStatus.COMPLETED, 422)
    assert await store.output(request.id) == failure.body
    assert await store.claim(MODEL, "a", ONE) == []


async def test_normal_requests_go_before_low_ones_and_older_before_newer(store: RequestStore) -> None:
    low = await store.submit(new_request(priority=Priority.LOW))
    normal = [await store.submit(new_request()) for _ in range(3)]
    order = [(await claim_one(store)).request_id for _ in range(4)]
    assert order == [*(request.id for request in normal), low.id]


async def test_batch_holds_only_compatible_requests_in_queue_order(store: RequestStore) -> None:
    first = await store.submit(new_request(batch_key="steps=20"))
    other = await store.submit(new_request(batch_key="steps=4"))
    second = await store.submit(new_request(batch_key="steps=20"))
    elsewhere = await store.submit(new_request(model="other"))
    assert [attempt.request_id for attempt in await store.claim(MODEL, "a", FOUR)] == [first.id, second.id]
    assert [attempt.request_id for attempt in await store.claim(MODEL, "a", FOUR)] == [other.id]
    assert await store.models_with_work([MODEL, elsewhere.model]) == {elsewhere.model}


@pytest.mark.parametrize(("pixel_frames", "size"), [(1000, 4), (4000, 2), (5000, 2), (9000, 1), (100_000, 1), (0, 4)])
async def test_batch_stays_within_its_budget_and_an_outsized_request_runs_alone(
    store: RequestStore, pixel_frames: int, size: int
) -> None:
    for _ in range(6):
        await store.submit(new_request(pixel_frames=pixel_frames))
    limits = BatchLimits(max_batch_size=4, max_pixel_frames=10_000)
    assert len(await store.claim(MODEL, "a", limits)) == size


async def test_concurrent_claimers_never_share_a_request(database_url: str) -> None:
    stores = [await RequestStore.open(database_url) for _ in range(4)]
    submitted = {(await stores[0].submit(new_request())).id for _ in range(60)}

    async def drain(store: RequestStore, owner: str) -> list[str]:
        taken: list[str] = []
        while batch := await store.claim(MODEL, owner, FOUR):
            taken += [attempt.request_id for attempt in batch]
        return taken

    taken = await asyncio.gather(*(drain(store, str(i)) for i, store in enumerate(stores)))
    assert sorted(chain.from_iterable(taken)) == sorted(submitted)
    for store in stores:
        await store.close()


async def test_stores_opened_at_once_migrate_once(tmp_path: Path) -> None:
    for attempt in range(20):  # a race: once proves little
        url = f"sqlite+aiosqlite:///{tmp_path}/{attempt}.db"
        stores = await asyncio.gather(*(RequestStore.open(url) for _ in range(6)))
        for store in stores:
            assert await store.models_with_work([MODEL]) == set()
            await store.close()


async def test_completion_records_the_answer_and_what_it_took(store: RequestStore) -> None:
    request = await store.submit(new_request())
    attempt = await claim_one(store)
    outcome = Outcome(200, {"video": {}}, inference_seconds=1.5, gpu_seconds=1.25)
    assert await store.complete(attempt, "a", outcome)
    ended = await store.get(request.id)
    assert ended and (ended.status_code, ended.error, ended.gpu_seconds) == (200, None, 1.25)
    assert ended.created_at <= (ended.started_at or 0) <= (ended.finished_at or 0)
    assert await store.output(request.id) == {"video": {}}


async def test_late_result_of_a_replaced_attempt_is_dropped(store: RequestStore) -> None:
    request = await store.submit(new_request())
    old = await claim_one(store, "a")
    await store.lose(old, "a", "gone")
    new = await claim_one(store, "b")
    assert new.number == 2
    assert not await store.complete(old, "a", Outcome(200, {"from": "old"}))
    assert await store.complete(new, "b", Outcome(200, {"from": "new"}))
    assert not await store.complete(new, "b", Outcome(200, {"from": "again"}))
    assert await store.output(request.id) == {"from": "new"}


CLIP = StoredFile("b/one/clip.mp4", "video/mp4", 4)
RESULTS = [Outcome(200, {"video": {}}, files=(CLIP,)), Outcome.of(RunnerServerError("The model failed").failure())]


@pytest.mark.parametrize("outcome", RESULTS, ids=["with a file", "without files"])
async def test_a_result_whose_commit_was_not_answered_counts_when_it_is_written_again(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch, outcome: Outcome
) -> None:
    """Told that it does not count, a dispatcher would delete the files of a good result."""
    request = await store.submit(new_request())
    attempt = await claim_one(store)
    transaction = store.database.transaction

    @contextlib.asynccontextmanager
    async def unanswered() -> AsyncIterator[AsyncConnection]:
        async with transaction() as connection:
            yield connection
        raise Unavailable("the answer was lost")

    with monkeypatch.context() as away:
        away.setattr(store.database, "transaction", unanswered)
        with pytest.raises(Unavailable):
            await store.complete(attempt, "a", outcome)
    ended = await store.get(request.id)
    assert ended and ended.status_code == outcome.status_code
    assert await store.complete(attempt, "a", outcome)
    assert await store.get(request.id) == ended


@pytest.mark.parametrize("outcome", RESULTS, ids=["with a file", "without files"])
async def test_a_result_does_not_count_where_another_has_ended_the_request(
    store: RequestStore, outcome: Outcome
) -> None:
    theirs = replace(outcome, body={"from": "another"}, files=(replace(CLIP, key="b/two/clip.mp4"),))
    cancelled, replaced = [await store.submit(new_request()) for _ in range(2)]
    stale = [await claim_one(store, "a"), await claim_one(store, "a")]
    await store.cancel(cancelled.id)
    await store.give_back("a")
    again = await claim_one(store, "b")
    assert not await store.complete(stale[1], "a", outcome)
    assert await store.complete(again, "b", theirs)
    for attempt in [*stale, again]:
        assert not await store.complete(attempt, "a", outcome)
    assert await store.output(replaced.id) == theirs.body


async def test_lost_attempt_keeps_its_place_and_says_so_in_the_log(store: RequestStore) -> None:
    first, second = [await store.submit(new_request()) for _ in range(2)]
    await store.lose(await claim_one(store), "a", "the replica was lost")
    assert (await store.waiting(MODEL))[0] == (first.priority, first.seq)
    assert [line.message for line in await store.logs(first.id)] == [
        "runner_disconnected: the replica was lost; retrying"
    ]
    assert (await claim_one(store)).request_id == first.id
    assert await store.logs(second.id) == []


async def test_retries_end_at_ten_attempts(store: RequestStore) -> None:
    request = await store.submit(new_request())
    for number in range(1, MAX_ATTEMPTS + 1):
        attempt = await claim_one(store)
        assert attempt.number == number
        await store.lose(attempt, "a", "gone")
    ended = await store.get(request.id)
    assert ended and (ended.status_code, ended.error_type) == (503, "runner_disconnected")
    assert ended.gateway_request_id != ended.id


async def test_no_retry_ends_with_the_first_lost_attempt(store: RequestStore) -> None:
    request = await store.submit(new_request(no_retry=True))
    await store.lose(await claim_one(store), "a", "gone")
    ended = await store.get(request.id)
    assert ended and (ended.status_code, ended.attempt) == (503, 1)


async def test_waiting_request_is_cancelled_at_once_and_never_runs(store: RequestStore) -> None:
    request = await store.submit(new_request())
    assert await store.cancel(request.id) == Cancelled.REQUESTED
    assert await store.claim(MODEL, "a", ONE) == []
    ended = await store.get(request.id)
    assert ended and (ended.status_code, ended.error_type) == (499, "client_cancelled")
    assert await store.cancel(request.id) == Cancelled.ALREADY_COMPLETED


async def test_running_request_is_flagged_for_its_replica(store: RequestStore) -> None:
    request = await store.submit(new_request())
    attempt = await claim_one(store)
    assert await store.abandoned({request.id: attempt.number}) == set()
    assert await store.cancel(request.id) == Cancelled.REQUESTED
    assert await store.abandoned({request.id: attempt.number}) == {request.id}


async def test_superseded_and_unknown_attempts_are_abandoned(store: RequestStore) -> None:
    request = await store.submit(new_request())
    old = await claim_one(store)
    await store.lose(old, "a", "gone")
    new = await claim_one(store)
    assert await store.abandoned({request.id: old.number}) == {request.id}
    assert await store.abandoned({request.id: new.number, "unknown": 1}) == {"unknown"}


async def test_cancelled_request_whose_replica_dies_ends_cancelled(store: RequestStore) -> None:
    request = await store.submit(new_request())
    attempt = await claim_one(store)
    await store.cancel(request.id)
    await store.lose(attempt, "a", "gone")
    ended = await store.get(request.id)
    assert ended and ended.error_type == "client_cancelled"


async def expire_lease(store: RequestStore, owner: str) -> None:
    async with store.database.transaction() as connection:
        past = update(dispatchers).where(dispatchers.c.owner == owner).values(lease_until=now() - 1)
        await connection.execute(past)


async def test_sweep_requeues_what_an_expired_dispatcher_held_and_nothing_else(store: RequestStore) -> None:
    held, mine = [await store.submit(new_request()) for _ in range(2)]
    stale = await claim_one(store, "dead")
    await claim_one(store, "alive")
    await expire_lease(store, "dead")
    await store.sweep("me", (), 10)
    assert await store.waiting(MODEL) == [(held.priority, held.seq)]
    still = await store.get(mine.id)
    assert still and still.status == RequestStatus.IN_PROGRESS
    assert not await store.complete(stale, "dead", Outcome(200, {}))


async def test_a_sweep_takes_nothing_from_its_owner_whose_lease_has_just_lapsed(store: RequestStore) -> None:
    await store.submit(new_request())
    held = await claim_one(store, "a")
    await expire_lease(store, "a")
    await store.sweep("a", {held.request_id}, 10)
    assert await store.complete(held, "a", Outcome(200, {}))


async def test_sweep_requeues_what_its_owner_does_not_know_of_after_a_lease(store: RequestStore) -> None:
    known, forgotten = [await store.submit(new_request()) for _ in range(2)]
    for _ in range(2):
        await claim_one(store, "a")
    await store.sweep("a", {known.id}, lease_seconds=10)
    assert await store.waiting(MODEL) == []
    await store.sweep("a", {known.id}, lease_seconds=-1)
    assert await store.waiting(MODEL) == [(forgotten.priority, forgotten.seq)]


async def test_what_its_owner_was_never_told_of_goes_back_without_blame(store: RequestStore) -> None:
    """No replica has begun it: it is none of the ten, and no reason to end what is not to be run again."""
    request = await store.submit(new_request(no_retry=True))
    await claim_one(store, "a")
    await store.sweep("a", (), lease_seconds=-1)
    assert await store.waiting(MODEL) == [(request.priority, request.seq)]


async def crowd(store: RequestStore, count: int, **values: Any) -> None:
    """So many requests of a state."""
    new = [new_request() for _ in range(count)]
    names = ("id", "endpoint", "model", "key_id", "priority", "batch_key", "pixel_frames", "no_retry")
    state = {"status": RequestStatus.IN_QUEUE, "attempt": 0, "cancel_requested": False, "created_at": 0.0} | values
    async with store.database.transaction() as connection:
        await connection.execute(
            insert(requests), [{name: getattr(each, name) for name in names} | state for each in new]
        )
        await connection.execute(insert(request_io), [{"request_id": each.id, "input": "{}"} for each in new])


async def count(store: RequestStore, **values: Any) -> int:
    async with store.database.read() as connection:
        query = select(func.count()).select_from(requests).filter_by(**values)
        return (await connection.execute(query)).scalar_one()


@contextlib.contextmanager
def recorded(store: RequestStore) -> Iterator[list[int]]:
    """The number of parameters of each statement meanwhile."""
    engine, sizes = store.database._engine.sync_engine, list[int]()

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        sizes.append(max(map(len, parameters), default=0) if executemany else len(parameters))

    event.listen(engine, "before_cursor_execute", note)
    yield sizes
    event.remove(engine, "before_cursor_execute", note)


async def test_a_sweep_of_any_number_of_requests_goes_by_pages(store: RequestStore) -> None:
    """In one statement they would be more than its time or its parameters allow, at each sweep again."""
    late, orphans, rest = 2 * PAGE + 1, PAGE + 1, 3
    await crowd(store, late, start_deadline=1.0)
    await crowd(store, rest)
    await crowd(store, orphans, status=RequestStatus.IN_PROGRESS, owner="dead", attempt=1, started_at=1.0)
    await store.heartbeat("a", 10)
    with recorded(store) as sizes:
        await store.sweep("a", (), 100)
    assert PAGE <= max(sizes) < PAGE + 20
    assert await count(store, error_type="startup_timeout") == late
    assert await count(store, status=RequestStatus.IN_QUEUE) == orphans + rest


async def test_a_sweep_does_not_go_on_for_so_long_that_its_lease_lapses(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PAGE", 2)
    await crowd(store, 5, start_deadline=1.0)
    for left in (3, 1, 0):
        await store.sweep("a", (), lease_seconds=0)
        assert await count(store, status=RequestStatus.IN_QUEUE) == left


async def test_what_a_dead_dispatcher_held_is_put_back_whatever_becomes_of_what_is_late(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = await store.submit(new_request())
    await claim_one(store, "dead")
    await expire_lease(store, "dead")
    await crowd(store, 1, start_deadline=1.0)

    def fail(message: str) -> StartTimeout:
        raise Unavailable("it takes too long")

    monkeypatch.setattr(store_module, "StartTimeout", fail)
    with pytest.raises(Unavailable):
        await store.sweep("a", (), 10)
    back = await store.get(request.id)
    assert back and back.status == RequestStatus.IN_QUEUE
    async with store.database.read() as connection:
        assert (await connection.execute(select(dispatchers))).all() == []


async def test_any_number_of_requests_is_given_back_by_pages(store: RequestStore) -> None:
    await crowd(store, PAGE + 1, status=RequestStatus.IN_PROGRESS, owner="a", attempt=1, started_at=1.0)
    with recorded(store) as sizes:
        await store.give_back("a")
    assert PAGE <= max(sizes) < PAGE + 20
    assert await count(store, status=RequestStatus.IN_QUEUE) == PAGE + 1


@pytest.mark.parametrize("way", ["lose", "put_back", "sweep", "give_back"])
async def test_a_cancel_in_the_midst_of_putting_back_is_not_overlooked(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """It is made after the look for cancelled ones: flagged then, it would wait in the queue as if nothing were."""
    request = await store.submit(new_request())
    attempt = await claim_one(store, "a")
    end, cancelling = store_module._end, list[asyncio.Task[Cancelled]]()

    async def end_and_cancel(*arguments: Any) -> list[str]:
        ended = await end(*arguments)
        if not cancelling:
            cancelling.append(asyncio.create_task(store.cancel(request.id)))
            await asyncio.wait(cancelling, timeout=0.3)
        return ended

    monkeypatch.setattr(store_module, "_end", end_and_cancel)
    match way:
        case "lose":
            assert await store.lose(attempt, "a", "gone")
        case "put_back":
            await store.put_back([attempt], "a", "gone")
        case "sweep":
            await expire_lease(store, "a")
            await store.sweep("b", (), 10)
        case "give_back":
            await store.give_back("a")
    assert await asyncio.gather(*cancelling) == [Cancelled.REQUESTED]
    ended = await store.get(request.id)
    assert ended and ended.error_type == "client_cancelled"


async def test_heartbeat_keeps_a_lease_through_a_sweep(store: RequestStore) -> None:
    await store.submit(new_request())
    attempt = await claim_one(store, "a")
    await expire_lease(store, "a")
    await store.heartbeat("a", 10)
    await store.sweep("me", (), 10)
    assert await store.complete(attempt, "a", Outcome(200, {}))


async def test_given_back_requests_wait_again_at_once(store: RequestStore) -> None:
    request = await store.submit(new_request())
    await claim_one(store, "a")
    await store.give_back("a")
    assert await store.waiting(MODEL) == [(request.priority, request.seq)]


async def test_request_that_does_not_start_in_its_callers_time_ends_with_504(store: RequestStore) -> None:
    late = await store.submit(new_request(start_timeout=-1))
    patient = await store.submit(new_request(start_timeout=100))
    assert (await claim_one(store)).request_id == patient.id
    await store.sweep("me", (), 10)
    ended = await store.get(late.id)
    assert ended and (ended.status_code, ended.error_type) == (504, "startup_timeout")


async def test_logs_come_in_order_and_can_be_skipped(store: RequestStore) -> None:
    request = await store.submit(new_request())
    await store.log([LogLine(request.id, f"line {i}", float(i)) for i in range(5)])
    assert [line.message for line in await store.logs(request.id, skip=3)] == ["line 3", "line 4"]


async def test_failure_is_stored_with_its_body(store: RequestStore) -> None:
    request = await store.submit(new_request())
    failure = RunnerServerError("The model failed").failure()
    await store.complete(await claim_one(store), "a", Outcome.of(failure))
    ended = await store.get(request.id)
    assert ended and (ended.status_code, ended.error, ended.error_type) == (500, failure.message, failure.type)
    assert await store.output(request.id) == failure.body


async def test_unreachable_database_is_unavailable_not_a_crash(tmp_path: Path) -> None:
    store = await RequestStore.open(f"sqlite+aiosqlite:///{tmp_path}/queue.db")
    async with store.database.transaction() as connection:
        await connection.exec_driver_sql("ALTER TABLE requests RENAME TO elsewhere")
    with pytest.raises(Unavailable):
        await store.submit(new_request())
    await store.close()


async def test_database_clock_agrees_with_ours(store: RequestStore) -> None:
    import time

    async with store.database.read() as connection:
        there = (await connection.execute(select(now()))).scalar_one()
    assert abs(there - time.time()) < 5


async def test_a_row_that_cannot_be_inserted_is_no_other_request_of_its_caller(store: RequestStore) -> None:
    """Only an idempotency key says that two submits are one."""
    first = await store.submit(new_request())
    with pytest.raises(IntegrityError):
        await store.submit(replace(new_request(), id=first.id))
