"""``GET /v1/costs``: what the service costs its operator; and that nobody else sees any of it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from deployments.models.messages import ReplicaReport
from deployments.queue.keys import Keys, Scope
from deployments.queue.replicas import Loaded, Replicas
from deployments.queue.reports import Costs, Reports
from deployments.queue.store import Outcome
from deployments.queue.tables import replicas
from tests.gateway.conftest import FAST, OUTPUT, OWNER, STABLE_VIDEO, SVD, TEXT_TO_VIDEO, Gateway
from tests.gateway.test_platform_routes import DAY, NOON
from tests.queue.past import ended

FAST_MODEL = FAST.replace("/", "--")
MONEY = ("cost_usd", "loaded_cost_usd", "price_usd", "margin_usd")


async def costs(gateway: Gateway, **query: Any) -> Any:
    reply = await gateway.client.get("/v1/costs", params=DAY | query)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def was_there(gateway: Gateway, model: str, start: float, end: float, rate: float) -> None:
    """A replica for an endpoint, from a moment of the past until another."""
    report = ReplicaReport(f"{model} {start}", model, model.replace("/", "--"), "H100", 1.0, 0.0)
    await Replicas(gateway.store.database).note(report, rate)
    this = replicas.update().where(replicas.c.id == report.replica_id).values(started_at=start, seen_at=end)
    async with gateway.store.database.transaction() as connection:
        await connection.execute(this)


async def a_day(gateway: Gateway) -> None:
    """Successes, a failure and idle replicas of three models, one of which serves two endpoints."""
    of = {"gpu_seconds": 2.0, "price_nano_usd": 75_000_000, "cost_nano_usd": 2_000_000}
    for endpoint, at, changes in (
        (STABLE_VIDEO, NOON, of),
        (STABLE_VIDEO, NOON + 3600, of | {"cost_nano_usd": 3_000_001}),
        (STABLE_VIDEO, NOON, of | {"status_code": 500, "price_nano_usd": None}),
        (FAST, NOON, {"gpu_seconds": 3.0, "cost_nano_usd": 3_000_000, "price_nano_usd": 0}),
        (TEXT_TO_VIDEO, NOON, {"gpu_seconds": 1.0, "cost_nano_usd": 1_000_001, "price_nano_usd": 0}),
        (STABLE_VIDEO, NOON - 86400, of),
    ):
        model = FAST if endpoint == TEXT_TO_VIDEO else endpoint
        await ended(gateway.store, at, endpoint=endpoint, model=model.replace("/", "--"), **changes)
    for model, rate in ((STABLE_VIDEO, 3.6), (FAST, 0.36), (TEXT_TO_VIDEO, 0.036), (SVD, 3.6)):
        await was_there(gateway, model, NOON - 30, NOON + 30.5, rate)


async def test_costs_are_told_by_endpoint_with_their_sums(gateway: Gateway) -> None:
    await a_day(gateway)
    answer = await costs(gateway)
    lines = {line["endpoint_id"]: line for line in answer["summary"]}

    assert lines[STABLE_VIDEO] == {
        "endpoint_id": STABLE_VIDEO,
        "requests": 3,
        "successes": 2,
        "gpu_seconds": 6.0,
        "cost_usd": 0.007000001,
        "loaded_cost_usd": 0.0605,
        "price_usd": 0.15,
        "margin_usd": 0.142999999,
        "cost_per_video_usd": 0.0035,
        "loaded_cost_per_video_usd": 0.03025,
    }
    assert (lines[SVD]["requests"], lines[SVD]["loaded_cost_usd"]) == (0, 0.0605), "it was there, and nobody came"
    assert lines[SVD]["cost_per_video_usd"] is None
    assert lines[FAST]["loaded_cost_usd"] == 0.0045375, "three quarters of the time on its model were its own"
    assert lines[TEXT_TO_VIDEO]["loaded_cost_usd"] == 0.0015125 + 0.000605, "a quarter, and all of what paints"
    assert answer["currency"] == "USD"
    for name in (*MONEY, "requests", "successes", "gpu_seconds"):
        assert round(sum(line[name] for line in lines.values()), 9) == answer["totals"][name], name
    print(f"costs of a day: {answer['totals']}")


@pytest.mark.parametrize("timeframe", ["minute", "hour", "day"])
async def test_the_same_time_in_other_buckets_costs_the_same(gateway: Gateway, timeframe: str) -> None:
    await a_day(gateway)
    window = {"start": "2025-06-01T06:00", "end": "2025-06-01T18:00", "timeframe": timeframe, "limit": 1500}
    answer = await costs(gateway, expand="time_series,summary", **window)

    found: dict[str, int] = dict.fromkeys(MONEY, 0)
    for line in itertools.chain.from_iterable(bucket["results"] for bucket in answer["time_series"]):
        found = {name: nanos + round(line[name] * 10**9) for name, nanos in found.items()}
    assert found == {name: round(answer["totals"][name] * 10**9) for name in MONEY}
    assert found["price_usd"] == 150_000_000
    assert found["loaded_cost_usd"] == 60_500_000 * 2 + 6_050_000 + 605_000


async def test_buckets_and_sums_are_of_one_moment(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends, and however long replicas are there, while the answer is made."""
    await a_day(gateway)
    read_costs, read_loaded = Reports.costs, Replicas.loaded

    async def costs_and_an_end(self: Reports, edges: Sequence[float]) -> list[Costs]:
        found = await read_costs(self, edges)
        await ended(gateway.store, NOON, endpoint=STABLE_VIDEO, cost_nano_usd=1_000_000_000)
        return found

    async def loaded_and_more(self: Replicas, edges: Sequence[float]) -> list[Loaded]:
        found = await read_loaded(self, edges)
        async with gateway.store.database.transaction() as connection:
            await connection.execute(replicas.update().values(seen_at=replicas.c.seen_at + 3600))
        return found

    monkeypatch.setattr(Reports, "costs", costs_and_an_end)
    monkeypatch.setattr(Replicas, "loaded", loaded_and_more)
    answer = await costs(gateway, expand="time_series,summary,replicas", timeframe="hour")

    lines = list(itertools.chain.from_iterable(bucket["results"] for bucket in answer["time_series"]))
    for name in MONEY:
        for told in (lines, answer["summary"]):
            assert round(sum(line[name] for line in told), 9) == answer["totals"][name], name
    loaded = round(sum(each["loaded_cost_usd"] for each in answer["replicas"]), 9)
    assert loaded == answer["totals"]["loaded_cost_usd"]


async def test_some_endpoints_alone_are_told_as_among_all(gateway: Gateway) -> None:
    await a_day(gateway)
    everything = (await costs(gateway))["summary"]
    some = await costs(gateway, endpoint_id=[FAST, STABLE_VIDEO])

    assert some["summary"] == [line for line in everything if line["endpoint_id"] in (FAST, STABLE_VIDEO)]
    assert some["totals"]["requests"] == 4


async def test_replicas_are_told_by_deployment(gateway: Gateway) -> None:
    await a_day(gateway)
    answer = await costs(gateway, expand="replicas")

    assert {"deployment": FAST_MODEL, "replica_seconds": 60.5, "loaded_cost_usd": 0.00605} in answer["replicas"]
    assert "summary" not in answer
    reply = await gateway.client.get("/v1/costs", params={"expand": "everything"})
    assert reply.status_code == 400


async def test_what_a_request_costs_is_what_the_sums_say(gateway: Gateway) -> None:
    """From the dispatcher's words to each answer that tells of it."""
    request_id = await gateway.submit(STABLE_VIDEO)
    outcome = Outcome(200, OUTPUT, gpu_seconds=2.0, cost_nano_usd=1_234_567, price_nano_usd=75_000_000)
    assert await gateway.store.complete(await gateway.claim("fal-ai--stable-video"), OWNER, outcome)
    [item] = (await gateway.client.get("/v1/models/requests/search")).json()["items"]
    [event] = (await gateway.client.get("/v1/models/billing-events")).json()["billing_events"]
    [line] = (await gateway.client.get("/v1/models/usage", params={"expand": "summary"})).json()["summary"]
    [of_all] = (await gateway.client.get("/v1/costs")).json()["summary"]

    money = (0.001234567, 0.075, 0.073765433)
    assert (item["request_id"], item["cost"], item["price"], item["margin"]) == (request_id, *money)
    assert (event["gpu_cost"], event["cost_total"], event["margin"]) == money
    assert (line["gpu_cost"], line["cost"], line["margin"]) == money
    assert (of_all["cost_usd"], of_all["price_usd"], of_all["margin_usd"]) == money
    reply = await gateway.client.get(f"/queue/{STABLE_VIDEO}/requests/{request_id}")
    assert reply.headers["x-fal-billable-units"] == "1"


async def test_a_failure_costs_us_and_bills_nothing(gateway: Gateway) -> None:
    await gateway.submit(STABLE_VIDEO)
    outcome = Outcome(500, {"detail": "no"}, "no", "runner_server_error", gpu_seconds=2.0, cost_nano_usd=5_000)
    assert await gateway.store.complete(await gateway.claim("fal-ai--stable-video"), OWNER, outcome)
    [item] = (await gateway.client.get("/v1/models/requests/search")).json()["items"]
    totals = (await gateway.client.get("/v1/costs")).json()["totals"]

    assert (item["cost"], item["price"], item["margin"]) == (0.000005, 0.0, -0.000005)
    assert (totals["cost_usd"], totals["price_usd"], totals["margin_usd"]) == (0.000005, 0.0, -0.000005)
    assert (await gateway.client.get("/v1/models/billing-events")).json()["billing_events"] == []


# ---------------------------------------------------------------- who sees it


async def headers_of(gateway: Gateway, scope: Scope) -> dict[str, str]:
    key, secret = await Keys(gateway.store.database).create("program", scope)
    return {"authorization": f"Key {key.id}:{secret}"}


async def told(gateway: Gateway, headers: dict[str, str]) -> dict[str, httpx.Response]:
    """All that a key is told of a request of its own that has cost something, by where it asks."""
    request_id = await gateway.submit(STABLE_VIDEO, headers=headers)
    outcome = Outcome(
        200, OUTPUT, gpu_seconds=2.0, gpu_usd_per_hour=3.1415, cost_nano_usd=271_828, price_nano_usd=75_000_000
    )
    assert await gateway.store.complete(await gateway.claim("fal-ai--stable-video"), OWNER, outcome)
    paths = (
        f"/queue/{STABLE_VIDEO}/requests/{request_id}/status?logs=1",
        f"/queue/{STABLE_VIDEO}/requests/{request_id}",
        "/v1/models/usage?expand=summary,time_series,auth_method",
        f"/v1/models/analytics?endpoint_id={STABLE_VIDEO}&expand=summary",
        "/v1/models/billing-events",
        f"/v1/models/requests/by-endpoint?endpoint_id={STABLE_VIDEO}&expand=payloads",
        "/v1/models/requests/search?expand=payloads",
        "/v1/models/pricing",
    )
    return {path: await gateway.client.get(path, headers=headers) for path in paths}


async def test_only_an_administrator_sees_what_anything_costs(gateway: Gateway) -> None:
    mine, admin = [await headers_of(gateway, scope) for scope in (Scope.API, Scope.ADMIN)]
    for path, reply in (await told(gateway, mine)).items():
        assert reply.status_code == 200, path
        said = reply.text + str(reply.headers)
        assert not re.search('gpu_cost|margin|271828|3.1415|0.000271|_nano_usd"?: ?271', said), path
        assert not re.search('"(cost|price)":', said) or "usage" in path, path  # fal's word for what is billed
    seen = await told(gateway, admin)
    assert sum("0.000271828" in reply.text for reply in seen.values()) == 4


async def test_no_other_key_is_told_costs(gateway: Gateway) -> None:
    headers = await headers_of(gateway, Scope.API)
    for query in ("", "?expand=replicas", f"?endpoint_id={SVD}"):
        reply = await gateway.client.get(f"/v1/costs{query}", headers=headers)
        assert reply.status_code == 403
        assert "usd" not in reply.text
    assert (await gateway.client.get("/v1/costs", headers={"authorization": ""})).status_code == 401
