from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ray.exceptions import ActorDiedError, RayTaskError

from deployments.errors import ImageLoadError, RunnerDisconnected
from deployments.models.messages import Attempt, Dropped, Event, Failed, Finished, Progress
from deployments.queue.dispatcher import Dispatcher
from deployments.queue.request import InferenceRequest, RequestStatus
from deployments.queue.store import RequestStore
from deployments.queue.watch import Changes
from deployments.storage import FileStorage
from tests.queue.conftest import MODEL, new_request

URL = "http://127.0.0.1:8000"

Script = Callable[[list[Attempt]], AsyncIterator[Event]]


class Told:
    """What a script says, and whether somebody has put an end to it."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events
        self.cancelled = False

    def __anext__(self) -> Awaitable[Event]:
        return anext(self._events)

    def cancel(self) -> None:
        self.cancelled = True


class FakeReplicas:
    """A model's replicas with ``places`` places, which answer batches by a script."""

    def __init__(self, script: Script, places: int = 2) -> None:
        self._script = script
        self._places = asyncio.Semaphore(places)
        self.batches: list[list[Attempt]] = []
        self.told: list[Told] = []

    @asynccontextmanager
    async def choose_replica(self) -> AsyncIterator[str]:
        async with self._places:
            yield "a replica"

    def dispatch(self, selection: Any, attempts: list[Attempt]) -> Told:
        self.batches.append(attempts)
        self.told.append(Told(self._script(attempts)))
        return self.told[-1]


async def finish(attempts: list[Attempt]) -> AsyncIterator[Event]:
    yield Progress(tuple(attempt.request_id for attempt in attempts), "Step 1/1", 1.0)
    for attempt in attempts:
        yield Finished(attempt.request_id, {"ran": attempt.number}, 0.5, 0.25)


@asynccontextmanager
async def running(store: RequestStore, replicas: FakeReplicas, **options: Any) -> AsyncIterator[Dispatcher]:
    batching = options.pop("batching", {})
    config = {"batching": batching} | options.pop("config", {})
    options = {"owner": "a", "lease_seconds": 2.0, "poll_seconds": 0.01} | options
    with tempfile.TemporaryDirectory() as folder:
        storage = options.pop("storage", None) or FileStorage(Path(folder), URL)
        dispatcher = Dispatcher(store, storage, {MODEL: replicas}, **options)
        dispatcher.reconfigure(config)
        await dispatcher.start()
        try:
            yield dispatcher
        finally:
            await dispatcher.stop()


async def ended(store: RequestStore, request: InferenceRequest) -> InferenceRequest:
    async with asyncio.timeout(10):
        await Changes(store, interval=0.01).completion(request.id)
    final = await store.get(request.id)
    assert final
    return final


async def test_request_is_run_and_its_result_progress_and_cost_are_recorded(store: RequestStore) -> None:
    request = await store.submit(new_request())
    async with running(store, FakeReplicas(finish)):
        final = await ended(store, request)
    assert (final.status_code, final.inference_seconds, final.gpu_seconds) == (200, 0.5, 0.25)
    assert await store.output(request.id) == {"ran": 1}
    assert [line.message for line in await store.logs(request.id)] == ["Step 1/1"]


async def test_waiting_requests_share_a_batch_within_the_configured_limits(store: RequestStore) -> None:
    requests = [await store.submit(new_request()) for _ in range(7)]
    replicas = FakeReplicas(finish)
    async with running(store, replicas, batching={MODEL: {"max_batch_size": 3}}):
        for request in requests:
            await ended(store, request)
    assert [len(batch) for batch in replicas.batches] == [3, 3, 1]


async def test_requests_stay_in_the_queue_until_a_replica_is_free(store: RequestStore) -> None:
    release = asyncio.Event()

    async def hold(attempts: list[Attempt]) -> AsyncIterator[Event]:
        await release.wait()
        async for event in finish(attempts):
            yield event

    requests = [await store.submit(new_request()) for _ in range(5)]
    replicas = FakeReplicas(hold, places=2)
    async with running(store, replicas):
        await asyncio.sleep(0.2)
        assert len(replicas.batches) == 2
        assert len(await store.waiting(MODEL)) == 3
        release.set()
        for request in requests:
            await ended(store, request)


async def test_lost_replica_gives_one_result_from_the_second_attempt(store: RequestStore) -> None:
    async def die_once(attempts: list[Attempt]) -> AsyncIterator[Event]:
        if attempts[0].number == 1:
            yield Progress((attempts[0].request_id,), "Step 1/2", 0.5)
            raise ActorDiedError
        async for event in finish(attempts):
            yield event

    request = await store.submit(new_request())
    replicas = FakeReplicas(die_once)
    async with running(store, replicas):
        final = await ended(store, request)
    assert (final.attempt, len(replicas.batches)) == (2, 2)
    assert await store.output(request.id) == {"ran": 2}
    messages = [line.message for line in await store.logs(request.id)]
    assert "runner_disconnected: the replica was lost (ActorDiedError); retrying" in messages


async def test_members_that_ended_before_a_replica_died_are_not_run_again(store: RequestStore) -> None:
    async def die_after_first(attempts: list[Attempt]) -> AsyncIterator[Event]:
        yield Finished(attempts[0].request_id, {"ran": attempts[0].number}, 1.0, 1.0)
        if len(attempts) > 1:
            raise ActorDiedError

    first, second = [await store.submit(new_request()) for _ in range(2)]
    async with running(store, FakeReplicas(die_after_first), batching={MODEL: {"max_batch_size": 2}}):
        assert (await ended(store, first)).attempt == 1
        assert (await ended(store, second)).attempt == 2


async def test_replica_that_ends_without_a_word_about_a_member_is_retried(store: RequestStore) -> None:
    async def silent_once(attempts: list[Attempt]) -> AsyncIterator[Event]:
        if attempts[0].number > 1:
            async for event in finish(attempts):
                yield event

    request = await store.submit(new_request())
    async with running(store, FakeReplicas(silent_once)):
        assert (await ended(store, request)).attempt == 2


async def test_model_error_ends_the_request_and_a_retryable_one_does_not(store: RequestStore) -> None:
    async def refuse(attempts: list[Attempt]) -> AsyncIterator[Event]:
        for attempt in attempts:
            error = RunnerDisconnected("a painter died") if attempt.number == 1 else ImageLoadError("no picture")
            yield Failed(attempt.request_id, error.failure())

    request = await store.submit(new_request())
    async with running(store, FakeReplicas(refuse)):
        final = await ended(store, request)
    assert (final.attempt, final.status_code, final.error_type) == (2, 422, "image_load_error")


async def test_bug_in_a_replica_is_a_500_and_is_not_retried(store: RequestStore) -> None:
    async def fail(attempts: list[Attempt]) -> AsyncIterator[Event]:
        raise RayTaskError("generate", "Traceback: secret", ValueError("a bug"))
        yield

    request = await store.submit(new_request())
    async with running(store, FakeReplicas(fail)):
        final = await ended(store, request)
    assert (final.attempt, final.status_code, final.error_type) == (1, 500, "runner_server_error")
    assert "secret" not in str(await store.output(request.id))


async def test_dropped_attempt_of_a_cancelled_request_ends_it_as_cancelled(store: RequestStore) -> None:
    async def until_cancelled(attempts: list[Attempt]) -> AsyncIterator[Event]:
        numbers = {attempt.request_id: attempt.number for attempt in attempts}
        while not await store.abandoned(numbers):
            await asyncio.sleep(0.01)
        yield Dropped(attempts[0].request_id)

    request = await store.submit(new_request())
    async with running(store, FakeReplicas(until_cancelled)):
        while (await store.get(request.id)).status != RequestStatus.IN_PROGRESS:  # type: ignore[union-attr]
            await asyncio.sleep(0.01)
        await store.cancel(request.id)
        assert (await ended(store, request)).error_type == "client_cancelled"


async def test_two_dispatchers_run_every_request_once(store: RequestStore) -> None:
    requests = [await store.submit(new_request()) for _ in range(40)]
    one, two = FakeReplicas(finish), FakeReplicas(finish)
    batching = {MODEL: {"max_batch_size": 2}}
    async with running(store, one, owner="a", batching=batching), running(store, two, owner="b", batching=batching):
        for request in requests:
            assert (await ended(store, request)).attempt == 1
    ran = [attempt.request_id for batch in one.batches + two.batches for attempt in batch]
    assert sorted(ran) == sorted(request.id for request in requests)


async def test_dispatcher_that_dies_is_replaced_within_its_lease(store: RequestStore, tmp_path: Path) -> None:
    async def never(attempts: list[Attempt]) -> AsyncIterator[Event]:
        await asyncio.Event().wait()
        yield

    request = await store.submit(new_request())
    storage = FileStorage(tmp_path, URL)
    dead = Dispatcher(store, storage, {MODEL: FakeReplicas(never)}, "dead", lease_seconds=0.5, poll_seconds=0.01)
    await dead.start()
    while (await store.get(request.id)).status != RequestStatus.IN_PROGRESS:  # type: ignore[union-attr]
        await asyncio.sleep(0.01)
    for task in [*dead._loops, *dead._feeders, *dead._serving]:
        task.cancel()  # as a kill -9 would: nothing is given back
    async with running(store, FakeReplicas(finish), owner="b", lease_seconds=0.5):
        assert (await ended(store, request)).attempt == 2


async def test_stopped_dispatcher_gives_its_attempts_back_at_once(store: RequestStore) -> None:
    started = asyncio.Event()

    async def never(attempts: list[Attempt]) -> AsyncIterator[Event]:
        started.set()
        await asyncio.Event().wait()
        yield

    request = await store.submit(new_request())
    async with running(store, FakeReplicas(never), lease_seconds=60):
        await asyncio.wait_for(started.wait(), 5)
    assert await store.waiting(MODEL) == [(request.priority, request.seq)]


@pytest.mark.parametrize("lease_seconds", [2.0, 0.2])
async def test_results_are_kept_through_a_store_that_is_away_for_a_while(
    store: RequestStore, lease_seconds: float
) -> None:
    async def break_then_finish(attempts: list[Attempt]) -> AsyncIterator[Event]:
        async with store.database.transaction() as connection:
            await connection.exec_driver_sql("ALTER TABLE requests RENAME TO away")
        asyncio.get_running_loop().call_later(0.3, lambda: asyncio.ensure_future(heal()))
        async for event in finish(attempts):
            yield event

    async def heal() -> None:
        async with store.database.transaction() as connection:
            await connection.exec_driver_sql("ALTER TABLE away RENAME TO requests")

    request = await store.submit(new_request())
    async with running(store, FakeReplicas(break_then_finish), lease_seconds=lease_seconds):
        await asyncio.sleep(0.8)
        final = await ended(store, request)
    assert (final.status_code, final.attempt) == (200, 1)


async def test_request_is_run_again_after_a_fault_that_nobody_foresaw(store: RequestStore) -> None:
    class Faulty(RequestStore):
        faults = 1

        async def complete(self, *args: Any) -> bool:
            if self.faults:
                self.faults -= 1
                raise KeyError("a bug")
            return await super().complete(*args)

    request = await store.submit(new_request())
    async with running(Faulty(store.database), FakeReplicas(finish), lease_seconds=0.3):
        assert (await ended(store, request)).status_code == 200


async def test_killer_among_batch_mates_ends_alone(store: RequestStore) -> None:
    killer, *mates = [await store.submit(new_request()) for _ in range(4)]

    async def die_of_one(attempts: list[Attempt]) -> AsyncIterator[Event]:
        if any(attempt.request_id == killer.id for attempt in attempts):
            raise ActorDiedError
        async for event in finish(attempts):
            yield event

    async with running(store, FakeReplicas(die_of_one), batching={MODEL: {"max_batch_size": 4}}):
        for mate in mates:
            assert (await ended(store, mate)).status_code == 200
        assert (await ended(store, killer)).error_type == "runner_disconnected"


async def test_dead_loop_fails_the_health_check(store: RequestStore) -> None:
    async with running(store, FakeReplicas(finish)) as dispatcher:
        dispatcher.check_health()
        dispatcher._loops[0].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            dispatcher.check_health()


async def test_unknown_batching_option_is_refused(store: RequestStore, tmp_path: Path) -> None:
    dispatcher = Dispatcher(store, FileStorage(tmp_path, URL), {}, "a")
    with pytest.raises(ValidationError, match="max_size"):
        dispatcher.reconfigure({"batching": {MODEL: {"max_size": 3}}})
