"""``GET /metrics``: what the rows say, for Prometheus. Who scrapes sends a key of the scope ADMIN.

    rows ──▶ Counts ──▶ Totals ─┐
    Serve ──▶ replicas ─────────┴──▶ families ──▶ text

Every gateway answers the same, so one scrape through whatever balances their load is enough. Each endpoint of the
configuration has all its series from the first scrape on, at 0: what a rate is taken of must be there before it grows.
While the database is away the answer says so, and says nothing of what it cannot know.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from deployments import metrics
from deployments.costs import MICRO, NANO
from deployments.errors import Unavailable
from deployments.gateway.auth import Caller
from deployments.gateway.recent import Lately
from deployments.gateway.runners import Census, Replicas, Runners
from deployments.gateway.service import Service
from deployments.metrics import Counter, Gauge, Histogram
from deployments.models.base import Endpoint
from deployments.models.charges import billed
from deployments.queue.reports import Ending
from deployments.queue.request import Priority
from deployments.queue.totals import NEVER, NOTHING_DONE, Counts, Distribution, Done, Line, Present, Totals

logger = logging.getLogger(__name__)

READ_SECONDS = 1.0
"""How long an answer is good for: several who scrape cost what one does."""

STATES = ("STARTING", "UPDATING", "RECOVERING", "RUNNING", "STOPPING", "PENDING_MIGRATION")
"""Serve's states of a replica."""

PRIORITIES = {priority: priority.name.lower() for priority in Priority}

Labels = TypeVar("Labels", bound=tuple[str, ...])


def metrics_router(service: Service, runners: Runners) -> APIRouter:
    """The route that Prometheus scrapes."""
    router = APIRouter()
    admin = Depends(service.authenticate.admin)
    scrape = Scrape(service, runners)

    @router.get("/metrics")
    async def metrics(caller: Caller = admin) -> Response:
        return Response(await scrape.text(), media_type=CONTENT_TYPE_LATEST)

    return router


class Scrape:
    """What Prometheus reads, made from the rows."""

    def __init__(self, service: Service, runners: Runners) -> None:
        """Count the rows of a service, and ask ``runners`` for its replicas."""
        self._endpoints = service.endpoints
        self._counts = Counts(service.store.database)
        self._census = Census(runners)
        self.text = Lately(self._read, READ_SECONDS)
        """The metrics in Prometheus' text format."""

    async def _read(self) -> bytes:
        totals, replicas = await asyncio.gather(self._totals(), self._census())
        return text(self._endpoints, totals, replicas)

    async def _totals(self) -> Totals | None:
        try:
            return await self._counts.now()
        except Unavailable as error:
            logger.warning("the rows could not be counted: %s", error)
            return None


def text(endpoints: Mapping[str, Endpoint], totals: Totals | None, replicas: Replicas | None) -> bytes:
    """All of it in Prometheus' text format.

    Args:
        endpoints: Those of the configuration.
        totals: What the rows say; None while the database is away.
        replicas: How many replicas each deployment has in each state; None where nobody can tell.
    """
    families = [_gauge(metrics.DATABASE_UP, {(): float(totals is not None)})]
    if replicas is not None:
        deployments = {endpoint.deployment for endpoint in endpoints.values()} | replicas.keys()
        counted = {(name, state): replicas.get(name, {}).get(state, 0) for name in deployments for state in STATES}
        families.append(_gauge(metrics.REPLICAS, counted))
    if totals is not None:
        families += [*_open(endpoints, totals), *_ended(endpoints, totals.done), *_present(endpoints, totals.present)]
    return generate_latest(_Families(families))


class _Families(Collector):
    """Families that have been made."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Family]:
        return iter(self._families)


def _open(endpoints: Mapping[str, Endpoint], totals: Totals) -> Iterator[Family]:
    """What there is at this moment."""
    none = Line()
    served = {(endpoint, priority) for endpoint in endpoints for priority in Priority} | totals.lines.keys()
    lines = {
        (endpoint, PRIORITIES[priority]): totals.lines.get((endpoint, priority), none) for endpoint, priority in served
    }
    running = {endpoint: totals.running.get(endpoint, 0) for endpoint in endpoints.keys() | totals.running.keys()}
    yield _gauge(metrics.WAITING, {labels: line.waiting for labels, line in lines.items()})
    yield _gauge(metrics.AGE, {labels: line.age for labels, line in lines.items()})
    yield _gauge(metrics.RUNNING, {(endpoint,): count for endpoint, count in running.items()})
    yield _gauge(metrics.WEBHOOKS_WAITING, {(): totals.webhooks})
    yield _gauge(metrics.WEBHOOK_AGE, {(): totals.overdue})
    yield _gauge(metrics.STORED_FILES, {(): totals.files})
    yield _gauge(metrics.STORED_BYTES, {(): totals.file_bytes})


def _ended(endpoints: Mapping[str, Endpoint], counted: Mapping[str, Done]) -> Iterator[Family]:
    """What the requests of this day came to."""
    done = {endpoint: counted.get(endpoint, NOTHING_DONE) for endpoint in endpoints.keys() | counted.keys()}
    prices = {endpoint: billed(endpoints.get(endpoint), each) for endpoint, each in done.items()}
    endings = {(endpoint, ending): each.endings[ending] for endpoint, each in done.items() for ending in Ending}
    yield _counter(metrics.RECEIVED, {(endpoint,): each.received for endpoint, each in done.items()})
    yield _counter(metrics.ENDED, endings)
    yield _counter(metrics.LOST, {(endpoint,): each.lost for endpoint, each in done.items()})
    yield _counter(metrics.GPU_SECONDS, {(endpoint,): each.gpu_micros / MICRO for endpoint, each in done.items()})
    yield _counter(metrics.COST, {(endpoint,): each.cost_nano_usd / NANO for endpoint, each in done.items()})
    yield _counter(metrics.PRICE, {(endpoint,): nano / NANO for endpoint, nano in prices.items()})
    yield _histogram(metrics.QUEUE_WAIT, {endpoint: each.waits for endpoint, each in done.items()})
    yield _histogram(metrics.RUN, {endpoint: each.runs for endpoint, each in done.items()})
    yield _histogram(metrics.REQUEST, {endpoint: each.times for endpoint, each in done.items()})


def _present(endpoints: Mapping[str, Endpoint], counted: Mapping[str, Present]) -> Iterator[Family]:
    """How long replicas were there on this day."""
    deployments = {endpoint.deployment for endpoint in endpoints.values()} | counted.keys()
    present = {deployment: counted.get(deployment, NEVER) for deployment in deployments}
    yield _counter(metrics.REPLICA_SECONDS, {(name,): each.micros / MICRO for name, each in present.items()})
    yield _counter(metrics.LOADED_COST, {(name,): each.cost_nano_usd / NANO for name, each in present.items()})


def _gauge(metric: Gauge, values: Mapping[Labels, float]) -> Family:
    family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels in sorted(values):
        family.add_metric(labels, values[labels])
    return family


def _counter(metric: Counter, values: Mapping[Labels, float]) -> Family:
    family = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels in sorted(values):
        family.add_metric(labels, values[labels])
    return family


def _histogram(metric: Histogram, values: Mapping[str, Distribution]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for endpoint in sorted(values):
        counted = values[endpoint]
        bounds = [*zip(map(floatToGoString, metric.buckets), counted.within, strict=True), ("+Inf", counted.count)]
        family.add_metric([endpoint], bounds, counted.micros / MICRO)
    return family
