from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import pytest
from sqlalchemy import delete

from deployments.errors import NotFound
from deployments.queue.request import LogLine, Priority, RequestStatus, Version
from deployments.queue.store import Outcome, RequestStore
from deployments.queue.tables import request_io, requests
from deployments.queue.turns import Lane
from deployments.queue.watch import Changes, Positions
from tests.queue.conftest import MODEL, new_request
from tests.queue.test_store import ONE, claim_one


class CountingStore(RequestStore):
    """A store that counts what is asked of it."""

    asked = 0

    async def lanes(self, model: str) -> list[Lane]:
        self.asked += 1
        return await super().lanes(model)

    async def versions(self, request_ids: Iterable[str]) -> dict[str, Version]:
        self.asked += 1
        return await super().versions(request_ids)


async def test_position_is_the_number_of_requests_ahead(store: RequestStore) -> None:
    low = await store.submit(new_request(priority=Priority.LOW))
    first, second = [await store.submit(new_request()) for _ in range(2)]
    positions = Positions(store, max_age=0)
    assert [await positions.ahead(request) for request in (first, second, low)] == [0, 1, 2]
    await store.claim(MODEL, "a", ONE)
    assert [await positions.ahead(request) for request in (second, low)] == [0, 1]
    assert await positions.depth(MODEL) == 2


async def test_many_polls_cost_one_query(store: RequestStore) -> None:
    counting = CountingStore(store.database)
    request = await counting.submit(new_request())
    positions = Positions(counting, max_age=60)
    await asyncio.gather(*(positions.ahead(request) for _ in range(100)))
    assert counting.asked == 1


async def test_all_waiters_hear_of_a_completion(store: RequestStore) -> None:
    request = await store.submit(new_request())
    changes = Changes(store, interval=0.01)
    waiters = [asyncio.create_task(changes.completion(request.id)) for _ in range(5)]
    await asyncio.sleep(0.05)
    assert not any(waiter.done() for waiter in waiters)
    await store.complete(await claim_one(store), "a", Outcome(200, {}))
    await asyncio.wait_for(asyncio.gather(*waiters), 5)


async def test_nothing_is_asked_while_nobody_waits(store: RequestStore) -> None:
    counting = CountingStore(store.database)
    request = await counting.submit(new_request())
    await counting.cancel(request.id)
    changes = Changes(counting, interval=0.01)
    await asyncio.wait_for(changes.completion(request.id), 5)
    await asyncio.sleep(0.05)
    asked = counting.asked
    await asyncio.sleep(0.05)
    assert counting.asked == asked
    await asyncio.wait_for(changes.completion(request.id), 5)  # and it wakes up again


async def test_a_waiter_hears_of_a_start_a_log_line_and_the_end(store: RequestStore) -> None:
    request = await store.submit(new_request())
    changes = Changes(store, interval=0.01)
    seen = Version.of(request)
    assert seen == Version(RequestStatus.IN_QUEUE, 0, 0)

    waiter = asyncio.create_task(changes.since(request.id, seen, 5))
    attempt = await claim_one(store)
    assert await waiter == Version(RequestStatus.IN_PROGRESS, 1, 0)

    waiter = asyncio.create_task(changes.since(request.id, await waiter, 5))
    await store.log([LogLine(request.id, "Step 1/2", time.time())])
    assert (await waiter) == Version(RequestStatus.IN_PROGRESS, 1, 1)

    waiter = asyncio.create_task(changes.since(request.id, await waiter, 5))
    await store.complete(attempt, "a", Outcome(200, {}))
    assert (await waiter).status == RequestStatus.COMPLETED


async def test_a_waiter_hears_nothing_of_what_stays(store: RequestStore) -> None:
    request, other = [await store.submit(new_request()) for _ in range(2)]
    changes = Changes(store, interval=0.01)
    seen = Version.of(request)

    waiter = asyncio.create_task(changes.since(request.id, seen, 0.2))
    await store.cancel(other.id)
    began = time.monotonic()
    assert await waiter == seen
    assert time.monotonic() - began > 0.1


async def test_who_waits_for_a_request_that_is_deleted_is_told(store: RequestStore) -> None:
    request, other = [await store.submit(new_request()) for _ in range(2)]
    changes = Changes(store, interval=0.01)
    waiting = [
        asyncio.create_task(changes.completion(request.id)),
        asyncio.create_task(changes.since(request.id, Version.of(request), 10)),
    ]
    still = asyncio.create_task(changes.completion(other.id))
    await asyncio.sleep(0.05)
    async with store.database.transaction() as connection:
        await connection.execute(delete(request_io).where(request_io.c.request_id == request.id))
        await connection.execute(delete(requests).where(requests.c.id == request.id))
    for waiter in waiting:
        with pytest.raises(NotFound):
            await asyncio.wait_for(waiter, 5)
    assert not still.done()
    await store.cancel(other.id)
    await asyncio.wait_for(still, 5)
