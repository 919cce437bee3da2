from __future__ import annotations

import asyncio

from deployments.queue.request import Priority
from deployments.queue.store import Outcome, RequestStore
from deployments.queue.watch import Completions, Positions
from tests.queue.conftest import MODEL, new_request
from tests.queue.test_store import ONE, claim_one


class CountingStore(RequestStore):
    """A store that counts what is asked of it."""

    asked = 0

    async def waiting(self, model: str) -> list[tuple[int, int]]:
        self.asked += 1
        return await super().waiting(model)

    async def completed(self, request_ids: object) -> set[str]:
        self.asked += 1
        return await super().completed(request_ids)  # type: ignore[arg-type]


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
    completions = Completions(store, interval=0.01)
    waiters = [asyncio.create_task(completions.wait(request.id)) for _ in range(5)]
    await asyncio.sleep(0.05)
    assert not any(waiter.done() for waiter in waiters)
    await store.complete(await claim_one(store), "a", Outcome(200, {}))
    await asyncio.wait_for(asyncio.gather(*waiters), 5)


async def test_nothing_is_asked_while_nobody_waits(store: RequestStore) -> None:
    counting = CountingStore(store.database)
    request = await counting.submit(new_request())
    await counting.cancel(request.id)
    completions = Completions(counting, interval=0.01)
    await asyncio.wait_for(completions.wait(request.id), 5)
    await asyncio.sleep(0.05)
    asked = counting.asked
    await asyncio.sleep(0.05)
    assert counting.asked == asked
    await asyncio.wait_for(completions.wait(request.id), 5)  # and it wakes up again
