"""What the rows say of the work for a deployment, on both databases."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from deployments.errors import Unavailable
from deployments.queue import demand as demand_of
from deployments.queue.demand import Demand, DemandReader
from deployments.queue.keys import Keys, Scope
from deployments.queue.request import RequestStatus
from deployments.queue.store import BatchLimits, Outcome, RequestStore
from tests.queue.conftest import MODEL, bring_back, take_away
from tests.queue.past import ended
from tests.queue.test_fairness import FOUR, _rows_read, claim, crowd, submit

PROMPT = "fal-ai/fast-svd-lcm/text-to-video"
PAINTER, ANIMATOR = "fal-ai--fast-svd-lcm--text-to-video", "fal-ai--fast-svd-lcm"


async def demand(store: RequestStore, deployment: str = MODEL, max_running_per_key: int | None = None) -> Demand:
    async with store.database.read() as connection:
        return await demand_of.read_demand(connection, deployment, max_running_per_key)


async def test_what_waits_and_what_runs_is_counted_for_its_own_deployment(store: RequestStore) -> None:
    assert await demand(store) == Demand(0, 0)
    await submit(store, 11)
    await submit(store, 2, key_id="bob", model="another", endpoint="another")
    await claim(store, FOUR)
    await claim(store, FOUR)
    assert await demand(store) == Demand(waiting=3, running=2)
    assert await demand(store, "another") == Demand(waiting=2, running=0)


async def test_what_has_ended_is_no_demand(store: RequestStore) -> None:
    first, second = await submit(store, 2)
    await store.cancel(first)
    (attempt,) = await store.claim(MODEL, "a", BatchLimits())
    assert attempt.request_id == second
    await store.complete(attempt, "a", Outcome(200, {}))
    assert await demand(store) == Demand(0, 0)


async def test_a_lost_attempt_is_demand_again_while_it_waits_for_its_next(store: RequestStore) -> None:
    await submit(store, 1)
    (attempt,) = await store.claim(MODEL, "a", BatchLimits())
    await store.lose(attempt, "a", "the replica was lost", retry_seconds=60)
    assert await demand(store) == Demand(waiting=1, running=0)


async def test_a_batch_takes_what_its_members_shared(store: RequestStore) -> None:
    """Two batches of four, thirty seconds each, and one alone in six: 22 seconds a batch of three in the mean."""
    for member in range(8):
        await ended(store, 100.0 + member, gpu_seconds=7.5, batch_size=4)
    await ended(store, 110.0, gpu_seconds=6.0, batch_size=1)
    await ended(store, 111.0, gpu_seconds=50.0, batch_size=1, model="another")
    await ended(store, 112.0, gpu_seconds=None, batch_size=None)
    found = await demand(store)
    assert found.batch_seconds == pytest.approx(22)
    assert found.batch_size == pytest.approx(3)


async def test_what_a_keys_limit_holds_back_needs_no_replica_but_the_next_does(store: RequestStore) -> None:
    key, _ = await Keys(store.database).create("limited", Scope.API)
    await Keys(store.database).change(key.id, {"max_running": 3})
    await submit(store, 20, key_id=key.id)
    assert await demand(store) == Demand(waiting=3, running=0)
    await claim(store)
    assert await demand(store) == Demand(waiting=2, running=1)
    await claim(store)
    await claim(store)
    assert await demand(store) == Demand(waiting=1, running=3)


async def test_a_key_without_a_limit_of_its_own_has_the_dispatchers(store: RequestStore) -> None:
    await submit(store, 20)
    await submit(store, 1, key_id="bob")
    assert await demand(store, max_running_per_key=2) == Demand(waiting=3, running=0)


async def test_a_painter_is_wanted_by_its_endpoints_requests(store: RequestStore) -> None:
    """Their batches are the animator's: of its seconds the painter learns nothing, and it paints each by itself."""
    await submit(store, 5, endpoint=PROMPT, model=ANIMATOR)
    await submit(store, 3, endpoint="fal-ai/fast-svd-lcm", model=ANIMATOR)
    await ended(store, 100.0, endpoint=PROMPT, model=ANIMATOR, gpu_seconds=9.0, batch_size=1)
    assert await demand(store, PAINTER) == Demand(waiting=5, running=0)
    assert (await demand(store, ANIMATOR)).waiting == 8
    await store.claim(ANIMATOR, "a", FOUR)
    assert await demand(store, PAINTER) == Demand(waiting=1, running=4)
    assert (await demand(store, ANIMATOR)).running == 1


async def test_of_what_has_ended_only_the_last_is_read(store: RequestStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand_of, "LOOK_BACK", 2)
    for at, seconds in enumerate((100.0, 4.0, 6.0)):
        await ended(store, at, gpu_seconds=seconds)
    assert (await demand(store)).batch_seconds == pytest.approx(5)


async def test_the_cost_is_that_of_what_waits_and_runs(store: RequestStore) -> None:
    """Ten thousand wait, and twice as many have ended. SQLite looks at a row in some thirty steps."""
    await crowd(store, 20_000, "alice", status=RequestStatus.COMPLETED, finished_at=1.0, gpu_seconds=1.0)
    for key_id in ("alice", "bob"):
        await crowd(store, 5_000, key_id)
    await claim(store, FOUR)
    mine = demand_of._is_for(MODEL)
    in_steps = store.database._engine.dialect.name == "sqlite"
    for _ in range(2):
        assert await _rows_read(store, demand_of.waiting_now(mine)) <= (3_500 if in_steps else 10_000)
        assert await _rows_read(store, demand_of.running_now(mine)) <= 4
        assert await _rows_read(store, demand_of.ended_lately(MODEL)) <= (300 if in_steps else 500)
        async with store.database.transaction() as connection:
            await connection.exec_driver_sql("ANALYZE")
    assert await demand(store) == Demand(9_996, 1, 1.0, 1.0)


async def test_a_database_that_is_away_is_told_and_read_again_when_it_is_back(
    store: RequestStore, database_url: str
) -> None:
    await submit(store, 1)
    reader = DemandReader(database_url)
    try:
        assert (await reader.read(MODEL)).waiting == 1
        await take_away(store)
        with pytest.raises(Unavailable):
            await reader.read(MODEL)
        await bring_back(store)
        assert (await reader.read(MODEL)).waiting == 1
    finally:
        await reader.close()


async def test_a_database_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    reader = DemandReader(f"sqlite+aiosqlite:///{tmp_path}/none.db")
    with pytest.raises(Unavailable, match="no database yet"):
        await reader.read(MODEL)
    await reader.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_request_can_be_submitted_while_the_demand_is_read(sqlite_url: str) -> None:
    """Reading takes no lock that a writer would wait for."""
    writer = sqlite3.connect(sqlite_url.removeprefix("sqlite+aiosqlite:///"), isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    reader = DemandReader(sqlite_url)
    try:
        assert (await reader.read(MODEL)).waiting == 0
    finally:
        await reader.close()
        writer.close()
