from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deployments.gateway.pace import LATELY_SECONDS, MOMENT_SECONDS
from deployments.queue.keys import Keys
from deployments.queue.store import RequestStore
from deployments.storage import FileStorage
from tests.gateway.conftest import FAST, SVD, TEXT_TO_VIDEO, Clock, Gateway, open_gateway, served_endpoints
from tests.queue.conftest import bring_back, take_away
from tests.queue.past import ended

SVD_MODEL, FAST_MODEL = "fal-ai--svd", "fal-ai--fast-svd-lcm"


class Cluster:
    """What Serve would count, and how often it was asked."""

    def __init__(self) -> None:
        self.replicas: dict[str, dict[str, int]] | Exception = {}
        self.asked = 0

    async def __call__(self) -> dict[str, dict[str, int]]:
        self.asked += 1
        if isinstance(self.replicas, Exception):
            raise self.replicas
        return self.replicas


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
async def watched(store: RequestStore, storage: FileStorage, cluster: Cluster) -> AsyncIterator[Gateway]:
    """A gateway whose replicas a test makes up."""
    async with open_gateway(store, storage, served_endpoints(), runners=cluster) as gateway:
        yield gateway


async def pace(gateway: Gateway, endpoint_id: str = SVD) -> dict[str, Any]:
    reply = await gateway.client.get("/playground/pace", params={"endpoint_id": endpoint_id})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def state(gateway: Gateway, endpoint_id: str = SVD) -> dict[str, Any]:
    reply = await gateway.client.get("/playground/state")
    assert reply.status_code == 200, reply.text
    return next(dict(each) for each in reply.json()["endpoints"] if each["id"] == endpoint_id)


async def ran(store: RequestStore, seconds: float, ago: float = 60.0, **changes: Any) -> None:
    """A request that ran so long, and ended so long ago."""
    at = time.time() - ago
    await ended(store, at, started_at=at - seconds, created_at=at - seconds - 1, **({"endpoint": SVD} | changes))


async def test_where_nothing_has_run_nobody_knows_the_pace(watched: Gateway) -> None:
    assert await pace(watched) == {"endpoint_id": SVD, "seconds": None, "running": 0, "at_once": 0}


async def test_the_pace_is_the_median_of_what_ran_well_lately(gateway: Gateway) -> None:
    for seconds in (2, 4, 30):
        await ran(gateway.store, seconds)
    await ran(gateway.store, 500, status_code=500)
    for _ in range(3):
        await ran(gateway.store, 900, ago=LATELY_SECONDS + 60)
        await ran(gateway.store, 800, endpoint=FAST)

    assert (await pace(gateway))["seconds"] == pytest.approx(4, abs=0.01)


async def test_replicas_that_are_ready_make_a_clip_each(watched: Gateway, cluster: Cluster) -> None:
    cluster.replicas = {SVD_MODEL: {"RUNNING": 3, "STARTING": 2, "STOPPING": 1}}
    assert (await pace(watched))["at_once"] == 3


async def test_what_runs_together_is_made_at_once(watched: Gateway, cluster: Cluster) -> None:
    """Requests for a picture and for a prompt wait for one model."""
    cluster.replicas = {FAST_MODEL: {"RUNNING": 1}}
    for endpoint in (FAST, TEXT_TO_VIDEO, TEXT_TO_VIDEO):
        await watched.enqueue(endpoint=endpoint, model=FAST_MODEL)
        await watched.claim(FAST_MODEL)
    await watched.enqueue()

    assert [(await pace(watched, each))["at_once"] for each in (FAST, TEXT_TO_VIDEO, SVD)] == [3, 3, 0]


async def test_what_waits_and_what_runs_are_told_apart(watched: Gateway, cluster: Cluster) -> None:
    """Who is next waits for what runs, where nothing is free."""
    cluster.replicas = {SVD_MODEL: {"RUNNING": 1}}
    for _ in range(3):
        await watched.enqueue()
    await watched.claim()

    assert (await pace(watched)).items() >= {"running": 1, "at_once": 1}.items()


async def test_nothing_ready_is_another_thing_than_nobody_knowing(watched: Gateway, cluster: Cluster) -> None:
    cluster.replicas = {SVD_MODEL: {"STARTING": 1}}
    assert (await pace(watched))["at_once"] == 0


async def test_a_cluster_that_cannot_be_asked_has_at_least_what_runs(watched: Gateway, cluster: Cluster) -> None:
    cluster.replicas = RuntimeError("the head is gone")
    await watched.enqueue(endpoint=FAST, model=FAST_MODEL)
    await watched.claim(FAST_MODEL)

    assert [(await pace(watched, each))["at_once"] for each in (FAST, SVD)] == [1, None]


async def test_a_moment_is_read_once_for_all_who_ask(watched: Gateway, cluster: Cluster, clock: Clock) -> None:
    await asyncio.gather(*(pace(watched, each) for each in (SVD, FAST, SVD, FAST)))
    await state(watched)
    assert cluster.asked == 1
    cluster.replicas = {SVD_MODEL: {"RUNNING": 1}}
    clock.now += MOMENT_SECONDS - 0.1
    assert (await pace(watched))["at_once"] == 0
    clock.now += 0.1
    assert (await pace(watched))["at_once"] == 1


async def test_an_operator_sees_what_each_endpoint_does(watched: Gateway, cluster: Cluster) -> None:
    cluster.replicas = {SVD_MODEL: {"RUNNING": 2, "UPDATING": 1, "PENDING_MIGRATION": 1}}
    for _ in range(3):
        await watched.enqueue()
    await watched.claim()

    assert await state(watched) == {
        "id": SVD,
        "title": served_endpoints()[SVD].title,
        "deployment": SVD_MODEL,
        "waiting": 2,
        "running": 1,
        "replicas": {"ready": 2, "pending": 1, "leaving": 1},
    }
    idle = await state(watched, FAST)
    assert (idle["waiting"], idle["running"], idle["replicas"]) == (0, 0, {"ready": 0, "pending": 0, "leaving": 0})


async def test_a_cluster_that_cannot_be_asked_hides_no_queue(watched: Gateway, cluster: Cluster) -> None:
    cluster.replicas = RuntimeError("the head is gone")
    await watched.enqueue()

    found = await state(watched)
    assert (found["waiting"], found["replicas"]) == (1, None)


async def test_a_database_that_comes_back_is_read_at_once(watched: Gateway) -> None:
    await take_away(watched.store)
    try:
        away = await watched.client.get("/playground/pace", params={"endpoint_id": SVD})
    finally:
        await bring_back(watched.store)

    assert away.status_code == 503
    assert "detail" in away.json()
    await pace(watched)


@pytest.mark.parametrize(
    ("query", "status"),
    [("", 422), ("endpoint_id=", 422), ("endpoint_id=%20", 422), ("endpoint_id=fal-ai/unknown", 404)],
)
async def test_a_malformed_question_is_answered_in_fals_form(gateway: Gateway, query: str, status: int) -> None:
    reply = await gateway.client.get(f"/playground/pace?{query}")

    assert reply.status_code == status
    assert "detail" in reply.json()


async def test_the_pace_wants_a_key_and_the_state_an_administrators(gateway: Gateway) -> None:
    key, secret = await Keys(gateway.store.database).create("someone")
    someone = {"authorization": f"Key {key.id}:{secret}"}

    for path in (f"/playground/pace?endpoint_id={SVD}", "/playground/state"):
        assert (await gateway.client.get(path, headers={"authorization": ""})).status_code == 401
    reply = await gateway.client.get(f"/playground/pace?endpoint_id={SVD}", headers=someone)
    assert (reply.status_code, reply.headers["cache-control"]) == (200, "no-store")
    assert (await gateway.client.get("/playground/state", headers=someone)).status_code == 403
