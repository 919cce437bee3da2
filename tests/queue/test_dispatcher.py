from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ray.core.generated.common_pb2 import ActorDeathCause, ActorDiedErrorContext, OomContext
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import ReplicaUnavailableError

from deployments.errors import ImageLoadError, RunnerDisconnected, StorageUnavailable, Unavailable
from deployments.inference import replica as replica_module
from deployments.models.messages import Attempt, Begun, Dropped, Event, Failed, Finished, Progress, StoredFile
from deployments.queue import batch as batch_module
from deployments.queue import crashes as crashes_module
from deployments.queue import dispatcher as dispatcher_module
from deployments.queue.dispatcher import Dispatcher
from deployments.queue.request import InferenceRequest, RequestStatus
from deployments.queue.store import RequestStore
from deployments.queue.watch import Changes
from deployments.storage import FileStorage
from tests.queue.conftest import MODEL, bring_back, new_request, take_away

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


def ids_of(attempts: list[Attempt]) -> tuple[str, ...]:
    return tuple(attempt.request_id for attempt in attempts)


async def finish(attempts: list[Attempt]) -> AsyncIterator[Event]:
    yield Begun(ids_of(attempts))
    yield Begun(ids_of(attempts), on_device=True)
    yield Progress(ids_of(attempts), "Step 1/1", 1.0)
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
        async with asyncio.timeout(10):
            while len(replicas.batches) < 2:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # for a third, which does not come
        assert len(replicas.batches) == 2
        assert len(await store.waiting(MODEL)) == 3
        release.set()
        for request in requests:
            await ended(store, request)


async def test_lost_replica_gives_one_result_from_the_second_attempt(store: RequestStore) -> None:
    async def die_once(attempts: list[Attempt]) -> AsyncIterator[Event]:
        if attempts[0].number == 1:
            yield Begun(ids_of(attempts))
            yield Progress(ids_of(attempts), "Step 1/2", 0.5)
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
        yield Begun(ids_of(attempts))
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


async def test_a_replica_that_is_not_understood_loses_the_attempt_which_counts(store: RequestStore) -> None:
    async def speak_of_another_once(attempts: list[Attempt]) -> AsyncIterator[Event]:
        if attempts[0].number == 1:
            yield Begun(ids_of(attempts))
            yield Dropped("somebody else's")
        async for event in finish(attempts):
            yield event

    request = await store.submit(new_request())
    async with running(store, FakeReplicas(speak_of_another_once)):
        final = await ended(store, request)
    assert (final.attempt, final.status_code) == (2, 200)
    assert "not understood" in (await store.logs(request.id))[0].message


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
        await take_away(store)
        asyncio.get_running_loop().call_later(0.3, lambda: asyncio.ensure_future(bring_back(store)))
        async for event in finish(attempts):
            yield event

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


# ---------------------------------------------------------------- crashes


@pytest.fixture
def crashes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every replica that is lost has died by itself."""

    async def has_crashed(error: Exception) -> bool:
        return True

    monkeypatch.setattr(batch_module, "has_crashed", has_crashed)
    monkeypatch.setattr(batch_module, "REPLACED_SECONDS", 0.0)
    yield


@pytest.mark.usefixtures("crashes")
async def test_killer_among_batch_mates_ends_after_three_crashes_alone(store: RequestStore) -> None:
    """F2, at the dispatcher."""
    killer, *mates = [await store.submit(new_request()) for _ in range(4)]

    async def die_of_one(attempts: list[Attempt]) -> AsyncIterator[Event]:
        yield Begun(ids_of(attempts))
        if killer.id in ids_of(attempts):
            raise ActorDiedError
        async for event in finish(attempts):
            yield event

    replicas = FakeReplicas(die_of_one)
    async with running(store, replicas, batching={MODEL: {"max_batch_size": 4}}):
        for mate in mates:
            assert (await ended(store, mate)).status_code == 200
        final = await ended(store, killer)
    assert (final.error_type, final.status_code) == ("runner_server_error", 500)
    deaths = [batch for batch in replicas.batches if killer.id in ids_of(batch)]
    assert [(len(batch), batch[0].alone) for batch in deaths] == [(4, False), (1, True), (1, True), (1, True)]
    assert all(batch[0].alone for batch in replicas.batches[1:]), "a suspect ran beside others"


async def test_replica_that_was_ended_on_purpose_leaves_no_suspect(store: RequestStore) -> None:
    async def scaled_away_once(attempts: list[Attempt]) -> AsyncIterator[Event]:
        yield Begun(ids_of(attempts))
        if attempts[0].number == 1:
            raise ActorDiedError  # of which the cluster has no record: it is no crash
        async for event in finish(attempts):
            yield event

    requests = [await store.submit(new_request()) for _ in range(2)]
    replicas = FakeReplicas(scaled_away_once)
    async with running(store, replicas, batching={MODEL: {"max_batch_size": 2}}):
        for request in requests:
            assert (await ended(store, request)).attempt == 2
    assert not any(attempt.alone for batch in replicas.batches for attempt in batch)


@pytest.mark.usefixtures("crashes")
async def test_attempt_that_had_not_begun_is_not_to_blame_even_if_it_may_not_be_retried(store: RequestStore) -> None:
    async def die_before_the_start(attempts: list[Attempt]) -> AsyncIterator[Event]:
        if attempts[0].number == 1:
            raise ActorDiedError
        async for event in finish(attempts):
            yield event

    request = await store.submit(new_request(no_retry=True))
    replicas = FakeReplicas(die_before_the_start)
    async with running(store, replicas):
        assert (await ended(store, request)).status_code == 200
    assert not replicas.batches[1][0].alone


async def test_what_had_not_begun_waits_a_moment_before_it_goes_to_the_next_replica(store: RequestStore) -> None:
    times = []

    async def die_before_the_start(attempts: list[Attempt]) -> AsyncIterator[Event]:
        times.append(asyncio.get_running_loop().time())
        if attempts[0].number == 1:
            raise ActorDiedError
        async for event in finish(attempts):
            yield event

    request = await store.submit(new_request())
    async with running(store, FakeReplicas(die_before_the_start)):
        await ended(store, request)
    assert times[1] - times[0] >= 0.9


@pytest.mark.usefixtures("crashes")
async def test_replica_of_an_older_version_has_begun_when_it_says_anything(store: RequestStore) -> None:
    """Such a one never says Begun."""

    async def die_once(attempts: list[Attempt]) -> AsyncIterator[Event]:
        yield Progress(ids_of(attempts), "Step 1/2", 0.5)
        if attempts[0].number == 1:
            raise ActorDiedError
        yield Finished(attempts[0].request_id, {"ran": attempts[0].number}, 1.0, 1.0)

    request = await store.submit(new_request())
    replicas = FakeReplicas(die_once)
    async with running(store, replicas):
        assert (await ended(store, request)).status_code == 200
    assert [batch[0].alone for batch in replicas.batches] == [False, True]


async def test_batch_that_serve_cancels_is_run_again(store: RequestStore) -> None:
    async def give_up_once(attempts: list[Attempt]) -> AsyncIterator[Event]:
        yield Begun(ids_of(attempts))
        if attempts[0].number == 1:
            raise asyncio.CancelledError
        async for event in finish(attempts):
            yield event

    request = await store.submit(new_request())
    async with running(store, FakeReplicas(give_up_once), lease_seconds=60):
        assert (await ended(store, request)).attempt == 2


@pytest.mark.parametrize(
    ("reason", "crashed"),
    [
        ("WORKER_DIED", True),
        ("RAY_KILL", False),
        ("NODE_DIED", False),
        ("OUT_OF_SCOPE", False),
        ("UNSPECIFIED", False),
    ],
)
def test_only_a_process_that_died_by_itself_has_crashed(reason: str, crashed: bool) -> None:
    context = ActorDiedErrorContext(reason=ActorDiedErrorContext.Reason.Value(reason))
    assert crashes_module._is_crash(ActorDeathCause(actor_died_error_context=context)) is crashed


def test_process_that_was_ended_for_want_of_memory_has_crashed() -> None:
    assert crashes_module._is_crash(ActorDeathCause(oom_context=OomContext(fail_immediately=False)))


async def test_death_that_cannot_be_looked_up_is_no_crash() -> None:
    cause = ActorDiedErrorContext(actor_id=b"0" * 16)
    assert not await crashes_module.has_crashed(ActorDiedError(cause))
    assert not await crashes_module.has_crashed(ActorDiedError())
    assert not await crashes_module.has_crashed(ReplicaUnavailableError("a replica"))


# ---------------------------------------------------------------- waiting, time limits


@pytest.mark.parametrize(
    ("number", "least", "most"), [(1, 0.75, 1.25), (2, 1.5, 2.5), (4, 6, 10), (10, 60, 60), (10**6, 60, 60)]
)
def test_a_failure_that_comes_at_once_is_waited_out_longer_each_time(number: int, least: float, most: float) -> None:
    waits = [batch_module.backoff_seconds(number) for _ in range(50)]
    assert least <= min(waits) and max(waits) <= most
    assert len(set(waits)) > 1 or most == 60


async def test_retry_of_a_failed_attempt_waits(store: RequestStore) -> None:
    times = []

    async def fail_once(attempts: list[Attempt]) -> AsyncIterator[Event]:
        times.append(asyncio.get_running_loop().time())
        if attempts[0].number == 1:
            yield Failed(attempts[0].request_id, RunnerDisconnected("a painter died").failure())
        else:
            async for event in finish(attempts):
                yield event

    request = await store.submit(new_request())
    async with running(store, FakeReplicas(fail_once)):
        await ended(store, request)
    assert times[1] - times[0] >= 0.7


async def test_batch_that_has_the_device_for_too_long_ends_with_a_timeout(store: RequestStore) -> None:
    """F17, at the dispatcher."""

    async def hang(attempts: list[Attempt]) -> AsyncIterator[Event]:
        if attempts[0].number == 2:
            async for event in finish(attempts):
                yield event
            return
        yield Begun(ids_of(attempts))
        yield Begun(ids_of(attempts[:1]), on_device=True)
        await asyncio.Event().wait()

    hung, behind = [await store.submit(new_request()) for _ in range(2)]
    replicas = FakeReplicas(hang)
    limits = {"batching": {MODEL: {"max_batch_size": 2}}, "run_seconds": {MODEL: 0.3}}
    async with running(store, replicas, config=limits):
        final = await ended(store, hung)
        assert (final.status_code, final.error_type, final.attempt) == (504, "generation_timeout", 1)
        assert replicas.told[0].cancelled, "the replica was not told to stop"
        assert (await ended(store, behind)).status_code == 200
    detail = (await store.output(hung.id))["detail"][0]
    assert detail["type"] == "generation_timeout"


async def test_batch_of_an_older_replica_has_its_time_too(store: RequestStore) -> None:
    async def hang(attempts: list[Attempt]) -> AsyncIterator[Event]:
        yield Progress(ids_of(attempts), "Step 1/2", 0.5)
        await asyncio.Event().wait()

    request = await store.submit(new_request())
    async with running(store, FakeReplicas(hang), config={"run_seconds": {MODEL: 0.1}}):
        assert (await ended(store, request)).error_type == "generation_timeout"


async def test_what_never_got_the_device_is_not_to_blame(store: RequestStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "PREPARING_SECONDS", 0.1)
    monkeypatch.setattr(batch_module, "REPLACED_SECONDS", 0.0)

    async def wait_for_the_device(attempts: list[Attempt]) -> AsyncIterator[Event]:
        yield Begun(ids_of(attempts))
        if attempts[0].number == 1:
            await asyncio.Event().wait()
        async for event in finish(attempts):
            yield event

    request = await store.submit(new_request(no_retry=True))
    async with running(store, FakeReplicas(wait_for_the_device), config={"run_seconds": {MODEL: 0.1}}):
        final = await ended(store, request)
    assert (final.status_code, final.attempt) == (200, 2)


def test_dispatcher_waits_for_pictures_until_the_replica_has_given_up() -> None:
    assert batch_module.PREPARING_SECONDS > replica_module.PREPARE_SECONDS + 30


async def test_time_on_the_device_counts_from_there(store: RequestStore) -> None:
    async def wait_then_run(attempts: list[Attempt]) -> AsyncIterator[Event]:
        await asyncio.sleep(0.4)  # it waits to be alone
        yield Begun(ids_of(attempts))
        await asyncio.sleep(0.4)  # it waits for the device
        yield Begun(ids_of(attempts), on_device=True)
        await asyncio.sleep(0.4)
        async for event in finish(attempts):
            yield event

    request = await store.submit(new_request())
    async with running(store, FakeReplicas(wait_then_run), config={"run_seconds": {MODEL: 0.6}}):
        assert (await ended(store, request)).attempt == 1


# ---------------------------------------------------------------- reservations, a store that is away


class HungReplicas(FakeReplicas):
    """The first of these replicas, which is about to die, answers no reservation."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.asked = 0
        self.most_at_once = 0
        self.waiting = 0
        self.gone = asyncio.Event()

    @asynccontextmanager
    async def choose_replica(self) -> AsyncIterator[str]:
        self.asked += 1
        self.waiting += 1
        self.most_at_once = max(self.most_at_once, self.waiting)
        if self.asked == 1:
            await self.gone.wait()
        async with super().choose_replica() as selection:
            self.waiting -= 1
            yield selection


async def test_replica_that_answers_no_reservation_does_not_stop_its_model(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F22: a process that was told to end lingers."""
    monkeypatch.setattr(dispatcher_module, "RESERVE_SECONDS", 0.1)
    requests = [await store.submit(new_request()) for _ in range(4)]
    replicas = HungReplicas(finish)
    async with running(store, replicas):
        for request in requests:
            assert (await ended(store, request)).attempt == 1
        last = await store.submit(new_request())
        replicas.gone.set()
        assert (await ended(store, last)).attempt == 1
    assert len(replicas.batches) == 5


async def test_reservations_do_not_pile_up_while_every_place_is_taken(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "RESERVE_SECONDS", 0.01)
    work = Work()
    work.begin.set()
    requests = [await store.submit(new_request()) for _ in range(8)]
    replicas = HungReplicas(work)
    replicas.gone.set()
    async with running(store, replicas):
        await asyncio.sleep(0.3)
        assert (len(replicas.batches), replicas.most_at_once) == (2, dispatcher_module.MOST_RESERVATIONS)
        work.finish.set()
        for request in requests:
            assert (await ended(store, request)).attempt == 1


async def test_store_that_is_away_is_not_asked_at_every_turn_and_leaves_few_words(
    store: RequestStore, caplog: pytest.LogCaptureFixture
) -> None:
    class Away(RequestStore):
        claims = 0
        away = True

        async def claim(self, *args: Any) -> list[Attempt]:
            self.claims += 1
            if self.away:
                raise Unavailable("The database cannot be reached")
            return await super().claim(*args)

    request = await store.submit(new_request())
    away = Away(store.database)
    async with running(away, FakeReplicas(finish)):
        await asyncio.sleep(0.5)
        assert away.claims == 1
        away.away = False
        assert (await ended(store, request)).attempt == 1
    (said,) = [record for record in caplog.records if "can be claimed" in record.message]
    assert not said.exc_info and not any(record.exc_info for record in caplog.records)


async def test_outage_is_told_once_by_each_loop(store: RequestStore, caplog: pytest.LogCaptureFixture) -> None:
    async with running(store, FakeReplicas(finish)):
        await take_away(store)
        await asyncio.sleep(0.5)
        await bring_back(store)
    assert 1 <= len([record for record in caplog.records if record.name == dispatcher_module.__name__]) <= 3


async def test_what_is_claimed_while_the_lease_is_renewed_is_not_forgotten(store: RequestStore) -> None:
    class SlowToRenew(RequestStore):
        beats = 0
        go_on = asyncio.Event()

        async def heartbeat(self, *args: Any) -> None:
            self.beats += 1
            if self.beats == 2:
                await self.go_on.wait()
            await super().heartbeat(*args)

    work = Work()
    work.begin.set()
    slow = SlowToRenew(store.database)
    async with running(slow, FakeReplicas(work), lease_seconds=0.3):
        while slow.beats < 2:
            await asyncio.sleep(0.01)
        request = await store.submit(new_request())
        await asyncio.wait_for(work.begun.wait(), 5)
        await asyncio.sleep(0.4)  # longer than the lease
        slow.go_on.set()
        while slow.beats < 4:
            await asyncio.sleep(0.01)
        work.finish.set()
        assert (await ended(store, request)).attempt == 1


async def test_place_that_cannot_be_given_back_is_not_called_a_missing_replica(
    store: RequestStore, caplog: pytest.LogCaptureFixture
) -> None:
    class Sticky(FakeReplicas):
        @asynccontextmanager
        async def choose_replica(self) -> AsyncIterator[str]:
            async with super().choose_replica() as selection:
                yield selection
            if self.batches:
                raise ActorDiedError

    request = await store.submit(new_request())
    async with running(store, Sticky(finish)):
        assert (await ended(store, request)).attempt == 1
        async with asyncio.timeout(5):
            while "was not given back" not in caplog.text:
                await asyncio.sleep(0.01)
    assert "no replica can be had" not in caplog.text


# ---------------------------------------------------------------- files


class FullStorage(FileStorage):
    """A storage that is full until it is told otherwise."""

    full = True
    checks = 0

    async def check(self) -> None:
        self.checks += 1
        if self.full:
            raise StorageUnavailable("The file storage takes nothing at the moment")


async def put(storage: FileStorage, folder: Path, key: str) -> StoredFile:
    """A file as a replica stores it."""
    (folder / "draft").write_bytes(key.encode())
    file = await storage.put(folder / "draft", key)
    return StoredFile(key, file.content_type, file.file_size)


def keys(folder: Path) -> list[str]:
    """What is in a storage in this folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("b/*/*"))


async def test_nothing_is_claimed_while_the_storage_takes_nothing(
    store: RequestStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "STORAGE_CHECK_SECONDS", 0.05)
    storage = FullStorage(tmp_path, URL)

    async def store_clip(attempts: list[Attempt]) -> AsyncIterator[Event]:
        if not storage.full:
            async for event in finish(attempts):
                yield event
        for attempt in attempts:
            failure = StorageUnavailable("The file storage takes nothing").failure()
            yield Failed(attempt.request_id, failure, unstored=True)

    first = await store.submit(new_request())
    replicas = FakeReplicas(store_clip)
    async with running(store, replicas, storage=storage):
        while not storage.checks:
            await asyncio.sleep(0.01)
        later = await store.submit(new_request())
        await asyncio.sleep(0.3)
        assert (len(replicas.batches), storage.checks > 2) == (1, True)
        assert await store.waiting(MODEL) == [(0, first.seq), (0, later.seq)]
        storage.full = False
        for request in (first, later):
            assert (await ended(store, request)).status_code == 200


async def test_input_that_cannot_be_read_from_the_storage_leaves_the_others_alone(
    store: RequestStore, tmp_path: Path
) -> None:
    async def fetch(attempts: list[Attempt]) -> AsyncIterator[Event]:
        for attempt in attempts:
            yield Begun(ids_of(attempts))
            yield Failed(attempt.request_id, StorageUnavailable("The file storage cannot be reached").failure())

    storage = FullStorage(tmp_path, URL)
    requests = [await store.submit(new_request()) for _ in range(3)]
    replicas = FakeReplicas(fetch)
    async with running(store, replicas, storage=storage):
        async with asyncio.timeout(5):
            while len(replicas.batches) < len(requests):
                await asyncio.sleep(0.01)


async def test_result_that_the_store_may_hold_already_keeps_its_files(store: RequestStore, tmp_path: Path) -> None:
    """F7: the result is written, its answer is lost, and the second try is told that there is nothing to write."""
    storage = FileStorage(tmp_path / "files", URL)

    class LosesAnswers(RequestStore):
        tries = 0

        async def complete(self, *args: Any) -> bool:
            self.tries += 1
            if self.tries > 1:
                return False
            await super().complete(*args)
            raise Unavailable("The answer was lost")

    async def finish_with_a_file(attempts: list[Attempt]) -> AsyncIterator[Event]:
        file = await put(storage, tmp_path, "b/1/clip.mp4")
        yield Begun(ids_of(attempts))
        yield Finished(attempts[0].request_id, {"ran": 1}, 1.0, 1.0, (file,))

    request = await store.submit(new_request())
    faulty = LosesAnswers(store.database)
    async with running(faulty, FakeReplicas(finish_with_a_file), storage=storage):
        assert (await ended(store, request)).status_code == 200
        while faulty.tries < 2:
            await asyncio.sleep(0.01)
    assert keys(tmp_path / "files") == ["b/1/clip.mp4"]


class HungStorage(FileStorage):
    """A storage that never answers whoever deletes."""

    async def delete(self, key: str) -> None:
        await asyncio.Event().wait()


async def test_deletion_that_hangs_holds_nothing_up(
    store: RequestStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "_TIDY_SECONDS", 0.2)
    storage = HungStorage(tmp_path / "files", URL)
    held = asyncio.Event()

    async def show_late(attempts: list[Attempt]) -> AsyncIterator[Event]:
        first, second = attempts
        yield Finished(first.request_id, {"ran": 1}, 1.0, 1.0)
        for number in range(3):
            late = await put(storage, tmp_path, f"b/{number}/preview.jpg")
            yield Progress((first.request_id,), "Preview of step 1/2", 0.5, late)
            await asyncio.sleep(0.1)
        yield Progress((second.request_id,), "Step 2/2", 1.0)
        held.set()
        await asyncio.Event().wait()

    done, running_one = [await store.submit(new_request()) for _ in range(2)]
    batching = {MODEL: {"max_batch_size": 2}}
    async with asyncio.timeout(10):
        async with running(store, FakeReplicas(show_late), storage=storage, batching=batching, lease_seconds=60):
            await ended(store, done)
            await held.wait()
            while not await store.logs(running_one.id):
                await asyncio.sleep(0.01)
        assert await store.waiting(MODEL) == [(0, running_one.seq)]


async def test_files_of_a_result_that_came_too_late_are_deleted(store: RequestStore, tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "files", URL)

    async def finish_late(attempts: list[Attempt]) -> AsyncIterator[Event]:
        (attempt,) = attempts
        file = await put(storage, tmp_path, f"b/{attempt.number}/clip.mp4")
        yield Begun(ids_of(attempts))
        if attempt.number == 1:
            await store.give_back("a")  # as if its lease had lapsed
        yield Finished(attempt.request_id, {"ran": attempt.number}, 1.0, 1.0, (file,))

    request = await store.submit(new_request())
    async with running(store, FakeReplicas(finish_late), storage=storage):
        await ended(store, request)
        assert await store.output(request.id) == {"ran": 2}
    assert keys(tmp_path / "files") == ["b/2/clip.mp4"]


async def test_picture_that_comes_after_the_end_is_deleted(store: RequestStore, tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "files", URL)

    async def show_late(attempts: list[Attempt]) -> AsyncIterator[Event]:
        ids = ids_of(attempts)
        early, late = [await put(storage, tmp_path, f"b/{name}/preview.jpg") for name in ("early", "late")]
        yield Progress(ids, "Preview of step 1/2", 0.5, early)
        async for event in finish(attempts):
            yield event
        yield Progress(ids, "Preview of step 2/2", 1.0, late)

    request = await store.submit(new_request())
    async with running(store, FakeReplicas(show_late), storage=storage):
        await ended(store, request)
    assert keys(tmp_path / "files") == ["b/early/preview.jpg"]


# ---------------------------------------------------------------- draining


class Work:
    """Batches that begin, and end, when a test lets them."""

    def __init__(self) -> None:
        self.begin = asyncio.Event()
        self.finish = asyncio.Event()
        self.begun = asyncio.Event()

    async def __call__(self, attempts: list[Attempt]) -> AsyncIterator[Event]:
        await self.begin.wait()
        yield Begun(ids_of(attempts))
        self.begun.set()
        await self.finish.wait()
        async for event in finish(attempts):
            yield event


async def test_draining_claims_nothing_and_lets_what_runs_end(store: RequestStore) -> None:
    work = Work()
    work.begin.set()
    running_one = await store.submit(new_request())
    async with running(store, FakeReplicas(work), lease_seconds=2.0) as dispatcher:
        await asyncio.wait_for(work.begun.wait(), 5)
        draining = asyncio.create_task(dispatcher.drain(30))
        await asyncio.sleep(0)
        while dispatcher._claiming:  # a claim that was on its way may still take what comes now, and puts it back
            await asyncio.sleep(0.01)
        waiting = await store.submit(new_request())
        await asyncio.sleep(3.0)  # longer than its lease
        dispatcher.check_health()
        assert not draining.done()
        work.finish.set()
        await asyncio.wait_for(draining, 5)
        assert (await ended(store, running_one)).attempt == 1
    final = await store.get(waiting.id)
    assert final and (final.status, final.attempt) == (RequestStatus.IN_QUEUE, 0)


async def test_draining_gives_back_at_once_what_has_not_begun(store: RequestStore) -> None:
    work = Work()
    request = await store.submit(new_request(no_retry=True))
    replicas = FakeReplicas(work)
    async with running(store, replicas, lease_seconds=60) as dispatcher:
        while not replicas.batches:
            await asyncio.sleep(0.01)
        await asyncio.wait_for(dispatcher.drain(30), 5)
        assert await store.waiting(MODEL) == [(0, request.seq)]
        assert replicas.told[0].cancelled


async def test_grace_time_ends_and_what_still_runs_goes_back(store: RequestStore) -> None:
    work = Work()
    work.begin.set()
    request = await store.submit(new_request())
    replicas = FakeReplicas(work)
    async with running(store, replicas, lease_seconds=60) as dispatcher:
        await asyncio.wait_for(work.begun.wait(), 5)
        await asyncio.wait_for(dispatcher.drain(0.3), 5)
    assert replicas.told[0].cancelled
    assert await store.waiting(MODEL) == [(0, request.seq)]
    work.finish.set()
    async with running(store, replicas, owner="b"):
        assert (await ended(store, request)).attempt == 2


async def test_second_call_to_drain_may_shorten_the_time(store: RequestStore) -> None:
    work = Work()
    work.begin.set()
    await store.submit(new_request())
    async with running(store, FakeReplicas(work)) as dispatcher:
        await asyncio.wait_for(work.begun.wait(), 5)
        first = asyncio.create_task(dispatcher.drain(300))
        await asyncio.sleep(0.05)
        await asyncio.wait_for(dispatcher.drain(0), 5)
        await asyncio.wait_for(first, 5)


async def test_claim_that_is_on_its_way_when_draining_begins_is_put_back(store: RequestStore) -> None:
    class Slow(RequestStore):
        claiming = asyncio.Event()
        go_on = asyncio.Event()

        async def claim(self, *args: Any) -> list[Attempt]:
            attempts = await super().claim(*args)
            if attempts:
                self.claiming.set()
                await self.go_on.wait()
            return attempts

    request = await store.submit(new_request(no_retry=True))
    slow = Slow(store.database)
    replicas = FakeReplicas(finish)
    async with running(slow, replicas, lease_seconds=60) as dispatcher:
        await asyncio.wait_for(slow.claiming.wait(), 5)
        draining = asyncio.create_task(dispatcher.drain(30))
        await asyncio.sleep(0.05)
        slow.go_on.set()
        await asyncio.wait_for(draining, 5)
        assert await store.waiting(MODEL) == [(0, request.seq)]
    assert replicas.batches == []


# ---------------------------------------------------------------- scaled to zero


class Counted:
    """What Serve says of its replicas, and how often it was asked."""

    def __init__(self, *empty: str) -> None:
        self.empty: set[str] | None = set(empty)
        self.asked = 0

    async def __call__(self) -> set[str]:
        self.asked += 1
        if self.empty is None:
            raise Unavailable("Serve does not say which replicas there are")
        return self.empty

    async def again(self) -> None:
        """Return once it has been asked once more, and the answer has been heard."""
        asked = self.asked
        async with asyncio.timeout(10):
            while self.asked < asked + 2:
                await asyncio.sleep(0.01)


class Asked(FakeReplicas):
    """Replicas that count who asks for a place."""

    asked = 0

    @asynccontextmanager
    async def choose_replica(self) -> AsyncIterator[str]:
        self.asked += 1
        async with super().choose_replica() as selection:
            yield selection


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher_module, "COUNT_SECONDS", 0.02)


@pytest.mark.usefixtures("often")
async def test_no_place_is_asked_for_on_a_model_without_replicas_until_it_has_one(store: RequestStore) -> None:
    request = await store.submit(new_request())
    replicas, counted = Asked(finish), Counted(MODEL)
    async with running(store, replicas, find_empty=counted):
        await counted.again()
        await counted.again()
        assert (replicas.asked, len(await store.waiting(MODEL))) == (0, 1)
        counted.empty = set()
        assert (await ended(store, request)).status_code == 200
        await counted.again()
        counted.empty = {MODEL}
        await counted.again()
        before = replicas.asked
        second = await store.submit(new_request())
        await counted.again()
        assert replicas.asked == before
        counted.empty = set()
        assert (await ended(store, second)).status_code == 200


@pytest.mark.usefixtures("often")
async def test_where_nobody_starts_a_replica_one_is_asked_for(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "SCALING_SECONDS", 0.1)
    request = await store.submit(new_request())
    async with running(store, Asked(finish), find_empty=Counted(MODEL)):
        assert (await ended(store, request)).status_code == 200


@pytest.mark.usefixtures("often")
async def test_no_replica_is_asked_for_once_the_work_is_gone(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "SCALING_SECONDS", 0.3)
    request = await store.submit(new_request())
    replicas, counted = Asked(finish), Counted(MODEL)
    async with running(store, replicas, find_empty=counted) as dispatcher:
        await counted.again()
        await store.cancel(request.id)
        async with asyncio.timeout(10):
            while dispatcher._has_work[MODEL].is_set():
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.6)  # for a reservation, which does not come
        assert replicas.asked == 0


@pytest.mark.usefixtures("often")
async def test_what_serve_said_last_holds_while_it_says_nothing(store: RequestStore) -> None:
    replicas, counted = Asked(finish), Counted()
    async with running(store, replicas, find_empty=counted) as dispatcher:
        await counted.again()
        counted.empty = None
        await counted.again()
        request = await store.submit(new_request())
        assert (await ended(store, request)).status_code == 200
        dispatcher.check_health()
