"""What Prometheus reads at /metrics."""

from __future__ import annotations

import asyncio
import subprocess
import time
from typing import Any

from fastapi.routing import iter_route_contexts
from prometheus_client.parser import text_string_to_metric_families

from deployments import metrics
from deployments.gateway.measured import METHODS, NO_ROUTE, OTHER_METHOD
from deployments.gateway.metrics_routes import READ_SECONDS, STATES
from deployments.queue.keys import Keys, Scope
from deployments.queue.request import Priority
from deployments.queue.store import RequestStore
from deployments.storage import FileStorage
from tests.conftest import need
from tests.gateway.conftest import SVD, Clock, Gateway, messages, open_gateway, served_endpoints
from tests.observing import Kept
from tests.queue.conftest import bring_back, take_away
from tests.queue.past import ended

HOSTILE = [
    '/a"b',
    "/%00",
    "/queue/fal-ai/svd/requests/..%2f..",
    "/models/x{y=1}",
    "/v1/\u2603",
    "/files/b/0/a.mp4",
    "//",
]


async def scrape(gateway: Gateway) -> str:
    reply = await gateway.client.get("/metrics")
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/plain; version=")
    return reply.text


async def another(gateway: Gateway, url: str) -> str:
    """What another gateway on the same database says, which has just started."""
    async with open_gateway(await RequestStore.open(url), gateway.storage, served_endpoints()) as started:
        return await scrape(started)


def samples(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Every sample by its name and labels."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(text: str, name: str, **labels: str) -> float:
    return samples(text)[name][tuple(sorted(labels.items()))]


async def lint(text: str) -> str:
    """What promtool has against it."""
    done = await asyncio.to_thread(
        subprocess.run, [need("promtool"), "check", "metrics"], input=text.encode(), capture_output=True
    )
    return (done.stdout + done.stderr).decode()


# ---------------------------------------------------------------- who may, and what comes


async def test_it_takes_a_key_of_the_scope_admin(gateway: Gateway) -> None:
    key, secret = await Keys(gateway.store.database).create("a program", Scope.API)
    assert (await gateway.client.get("/metrics", headers={"authorization": ""})).status_code == 401
    reply = await gateway.client.get("/metrics", headers={"authorization": f"Key {key.id}:{secret}"})
    assert reply.status_code == 403
    assert "svd_" not in reply.text


async def test_every_metric_is_there_from_the_first_scrape_on(gateway: Gateway) -> None:
    found = samples(await scrape(gateway))

    for metric in metrics.OF_THE_ROWS:
        suffix = {metrics.Counter: "_total", metrics.Histogram: "_count"}.get(type(metric), "")
        series = found[metric.name + suffix]
        assert {tuple(name for name, _ in labels) for labels in series} == {tuple(sorted(metric.labels))}, metric.name
        if "endpoint" in metric.labels:
            assert {dict(labels)["endpoint"] for labels in series} == served_endpoints().keys()
        if metric is not metrics.DATABASE_UP:
            assert set(series.values()) == {0.0}, metric.name
    assert len(found["svd_queue_wait_seconds_bucket"]) == len(served_endpoints()) * (len(metrics.LATENCY_SECONDS) + 1)


async def test_promtool_has_nothing_against_it(gateway: Gateway) -> None:
    assert await lint(await scrape(gateway)) == ""


async def test_a_request_is_seen_from_its_arrival_to_its_end(gateway: Gateway, sqlite_url: str) -> None:
    endpoint = {"endpoint": SVD}
    line = endpoint | {"priority": "low"}
    await gateway.store.heartbeat("dispatcher", 3600)
    await gateway.submit(headers={"x-fal-queue-priority": "low"})
    waiting = await another(gateway, sqlite_url)
    attempt = await gateway.claim()
    running = await another(gateway, sqlite_url)
    await gateway.finish(attempt)
    done = await another(gateway, sqlite_url)

    assert value(waiting, "svd_requests_waiting", **line) == 1
    assert value(waiting, "svd_requests_received_total", **endpoint) == 1
    assert value(running, "svd_requests_waiting", **line) == 0
    assert value(running, "svd_requests_running", **endpoint) == 1
    assert value(done, "svd_requests_running", **endpoint) == 0
    assert value(done, "svd_requests_received_total", **endpoint) == 1
    assert value(done, "svd_requests_ended_total", **endpoint, outcome="success") == 1
    assert value(done, "svd_gpu_seconds_total", **endpoint) == 3.0
    for histogram in ("svd_queue_wait_seconds", "svd_run_seconds", "svd_request_seconds"):
        assert value(done, f"{histogram}_count", **endpoint) == 1
        assert value(done, f"{histogram}_bucket", **endpoint, le="+Inf") == 1
    assert await lint(done) == ""


async def test_money_is_in_dollars_and_old_rows_have_todays_price(store: RequestStore, storage: FileStorage) -> None:
    at = time.time()
    video = {"endpoint": "fal-ai/stable-video"}
    await ended(store, at, **video, price_nano_usd=75_000_000, cost_nano_usd=1_500_000)
    await ended(store, at, **video, price_nano_usd=None)

    async with open_gateway(store, storage, served_endpoints()) as gateway:
        text = await scrape(gateway)

    assert value(text, "svd_cost_usd_total", **video) == 0.0015
    assert value(text, "svd_price_usd_total", **video) == 0.15


async def test_replicas_have_all_of_serves_states(store: RequestStore, storage: FileStorage) -> None:
    async def runners() -> dict[str, dict[str, int]]:
        return {"fal-ai--svd": {"RUNNING": 2, "STARTING": 1}, "Gateway": {"RUNNING": 1}}

    async with open_gateway(store, storage, served_endpoints(), runners=runners) as gateway:
        found = samples(await scrape(gateway))["svd_replicas"]

    deployments = {endpoint.deployment for endpoint in served_endpoints().values()} | {"Gateway"}
    assert len(found) == len(deployments) * len(STATES)
    assert {key: count for key, count in found.items() if count} == {
        (("deployment", "fal-ai--svd"), ("state", "RUNNING")): 2,
        (("deployment", "fal-ai--svd"), ("state", "STARTING")): 1,
        (("deployment", "Gateway"), ("state", "RUNNING")): 1,
    }


async def test_a_cluster_that_cannot_be_asked_leaves_the_rest(store: RequestStore, storage: FileStorage) -> None:
    async def runners() -> Any:
        raise RuntimeError("the head is gone")

    async with open_gateway(store, storage, served_endpoints(), runners=runners) as gateway:
        found = samples(await scrape(gateway))

    assert "svd_replicas" not in found
    assert "svd_requests_waiting" in found


async def test_without_the_database_it_says_so_and_guesses_nothing(store: RequestStore, storage: FileStorage) -> None:
    async with open_gateway(store, storage, served_endpoints()) as gateway:
        await take_away(store)
        try:
            away = samples(await scrape(gateway))
        finally:
            await bring_back(store)
    assert away.pop("svd_database_up") == {(): 0.0}
    assert away.keys() == {"svd_replicas"}


async def test_two_gateways_say_the_same(gateway: Gateway, sqlite_url: str, clock: Clock) -> None:
    """One that has counted all the while, and one that has just started."""
    at = time.time()
    await scrape(gateway)
    for number in range(50):
        spent = {"gpu_seconds": 0.1 * number, "cost_nano_usd": number}
        await ended(gateway.store, at - number, status_code=(200, 422, 500)[number % 3], **spent)
        if number % 20 == 0:
            clock.now += READ_SECONDS
            await scrape(gateway)

    clock.now += READ_SECONDS
    assert await scrape(gateway) == await another(gateway, sqlite_url)


# ---------------------------------------------------------------- calls, measured


async def test_a_call_is_measured_by_its_route(gateway: Gateway, kept: Kept) -> None:
    request_id = await gateway.submit()
    await gateway.status(request_id)

    assert kept.labels(metrics.HTTP_REQUESTS) == [
        {"route": "/queue/{path:path}", "method": "POST", "status": "200"},
        {"route": "/queue/{path:path}/requests/{request_id}/status", "method": "GET", "status": "200"},
    ]
    assert kept.labels(metrics.HTTP_SECONDS) == [
        {"route": labels["route"]} for labels in kept.labels(metrics.HTTP_REQUESTS)
    ]


async def test_what_callers_send_becomes_no_label(gateway: Gateway, kept: Kept, sqlite_url: str) -> None:
    before = samples(await scrape(gateway))
    for path in HOSTILE:
        for method in ("GET", "POST", "BREW"):
            async for _ in messages(gateway.app, path, method=method):
                pass
    for host in ("queue.fal.run", "evil.example", "127.0.0.1:99999"):
        await gateway.client.get("/fal-ai/svd/x", headers={"host": host})
    for endpoint in ("fal-ai/none", "fal-ai/svd/../x", 'fal-ai/"x"'):
        await gateway.client.post(f"/queue/{endpoint}", json={}, headers={"x-fal-queue-priority": "evil"})
    await gateway.client.post(f"/queue/{SVD}", json={"image_url": 7, "priority": "x"})

    routes = {context.path for context in iter_route_contexts(_application(gateway).routes)} | {NO_ROUTE}
    measured = kept.labels(metrics.HTTP_REQUESTS)
    assert len(measured) > len(HOSTILE) * 3
    assert {labels["route"] for labels in measured} <= routes
    assert {labels["method"] for labels in measured} <= METHODS | {OTHER_METHOD}
    assert all(len(labels["status"]) == 3 and labels["status"].isdigit() for labels in measured)
    after = samples(await another(gateway, sqlite_url))
    assert {name: series.keys() for name, series in after.items()} == {n: s.keys() for n, s in before.items()}


async def test_a_caller_who_goes_away_is_counted(gateway: Gateway, kept: Kept) -> None:
    run = asyncio.create_task(gateway.client.post(f"/{SVD}", json={"image_url": "https://example.com/cat.png"}))
    while not await gateway.waiting():
        await asyncio.sleep(0.01)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)

    assert kept.labels(metrics.HTTP_REQUESTS)[-1] == {"route": "/{path:path}", "method": "POST", "status": "499"}


def test_priorities_have_names() -> None:
    assert [priority.name.lower() for priority in Priority] == ["normal", "low"]


def _application(gateway: Gateway) -> Any:
    """The FastAPI application within its middleware."""
    app: Any = gateway.app
    while not hasattr(app, "router"):
        app = getattr(app, "_app", None) or app.app
    return app
