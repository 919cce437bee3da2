"""How busy the service is: the length of an application's queue, and fal's gauges for Prometheus.

An application is ``owner/alias``; the endpoints below it count together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from deployments.errors import NotFound
from deployments.gateway.auth import Caller
from deployments.gateway.recent import Lately
from deployments.gateway.runners import Runners, by_kind
from deployments.gateway.service import Service, app_id
from deployments.queue.reports import LATENCY_SECONDS, Load

SCRAPE_SECONDS = 10.0
"""How long an answer to Prometheus is good for, as on fal."""

SUBMIT = "POST"


def load_router(service: Service, runners: Runners) -> APIRouter:
    """The routes that tell the load."""
    router = APIRouter(prefix="/v1/serverless")
    authenticated, admin = Depends(service.authenticate), Depends(service.authenticate.admin)
    metrics = Metrics(service, runners)

    @router.get("/metrics")
    async def scrape(caller: Caller = admin) -> Response:
        return Response(await metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/apps/{owner}/{name}/queue")
    async def queue(owner: str, name: str, caller: Caller = authenticated) -> Response:
        endpoints = [id for id in service.endpoints if app_id(id) == f"{owner}/{name}"]
        if not endpoints:
            raise NotFound(f"Application {owner}/{name} not found")
        return JSONResponse({"queue_size": await service.reports.waiting(endpoints)})

    return router


class Metrics:
    """What Prometheus reads, made from the rows at most once in ten seconds."""

    def __init__(self, service: Service, runners: Runners) -> None:
        """Read the rows of a service, and ask ``runners`` for its replicas."""
        self._service = service
        self._runners = runners
        self.text = Lately(self._read, SCRAPE_SECONDS)
        """The metrics in Prometheus' text format."""

    async def _read(self) -> bytes:
        return generate_latest(_registry(await self._loads(), await self._replicas()))

    async def _loads(self) -> dict[str, list[Load]]:
        """What every application does, one that does nothing included."""
        loads: dict[str, list[Load]] = {app_id(id): [] for id in self._service.endpoints}
        for endpoint, load in (await self._service.reports.load()).items():
            loads.setdefault(app_id(endpoint), []).append(load)
        return loads

    async def _replicas(self) -> dict[str, Counter[str]]:
        """For every application, its replicas that run, and those that are still to."""
        counts = await self._runners()
        found: dict[str, Counter[str]] = {}
        for endpoint in self._service.endpoints.values():
            found.setdefault(app_id(endpoint.id), Counter()).update(by_kind(counts.get(endpoint.deployment, {})))
        return found


def _registry(loads: Mapping[str, list[Load]], replicas: Mapping[str, Counter[str]]) -> CollectorRegistry:
    registry = CollectorRegistry()

    def gauge(name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"fal_app_{name}", help, ["application", *labels], registry=registry)

    runners = gauge("runners", "Number of runners currently allocated", "state")
    waiting = gauge("queue_size", "Requests waiting in queue")
    running = gauge("concurrent_requests", "Requests being actively processed")
    completed = gauge("requests_completed", "Requests completed in the last minute", "method", "status")
    received = gauge("requests_received", "Requests received in the last minute", "method")
    latency = gauge("request_latency", "Requests completed in the last minute, by latency in seconds", "le")
    bounds = [*(f"{limit:g}" for limit in LATENCY_SECONDS), "+Inf"]
    for app, members in loads.items():
        busy = sum(load.running for load in members)
        for state, count in _states(replicas.get(app, Counter()), busy).items():
            runners.labels(app, state).set(count)
        waiting.labels(app).set(sum(load.waiting for load in members))
        running.labels(app).set(busy)
        received.labels(app, SUBMIT).set(sum(load.received for load in members))
        for status, count in sum((Counter(load.completed) for load in members), Counter[int]()).items():
            completed.labels(app, SUBMIT, status).set(count)
        for at, bound in enumerate(bounds):
            latency.labels(app, bound).set(sum(load.latencies[at] for load in members))
    return registry


def _states(replicas: Counter[str], busy: int) -> dict[str, int]:
    """Fal's states. A replica is taken to be at work as long as there are requests enough for it."""
    running = min(replicas["ready"], busy)
    return {"idle": replicas["ready"] - running, "running": running, "pending": replicas["pending"]}
