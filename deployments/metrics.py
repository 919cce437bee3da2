"""Every metric of the service, declared once: its name, what it says, its labels and buckets.

    rows ──▶ totals ──▶ OF_THE_ROWS ──▶ GET /metrics of the gateway: the same from every gateway, whatever restarts
    code ──▶ BATCH_SIZE.observe(…) ──▶ a sink: Ray's agent on this node ──▶ its metrics port, with ``ray_`` before it

What one process alone can know is of the second kind; it begins anew with its process. A label's value comes from the
configuration or from a fixed list, never from a caller: there are as many series as there are endpoints, however many
requests. A process that has no sink (a command, a test) measures nothing, and pays nothing for it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

logger = logging.getLogger(__name__)

LATENCY_SECONDS = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0)
"""Upper bounds of the buckets of whole requests: videos take from a second to an hour."""

_STAGE_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_STEP_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_HTTP_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_BATCH_SIZES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)


@dataclass(frozen=True)
class Metric:
    """What is measured.

    Attributes:
        name: As Prometheus knows it, with its unit; a counter's without ``_total``.
        help: One line for whoever reads it there.
        labels: The names of its labels.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()


class Sink(Protocol):
    """Where this process's measures go."""

    def record(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Take one."""


_sink: Sink | None = None


def send_to(sink: Sink | None) -> Sink | None:
    """Let this process's measures go there from now on, or nowhere; answer where they went before."""
    global _sink
    former, _sink = _sink, sink
    return former


def _record(metric: Metric, value: float, labels: Mapping[str, str]) -> None:
    if _sink is not None:
        _sink.record(metric, value, labels)


@dataclass(frozen=True)
class Counter(Metric):
    """What only grows."""

    def inc(self, value: float = 1.0, **labels: str) -> None:
        """It has grown by so much. By nothing, it begins at 0: a rate is seen from the first time that it grows."""
        _record(self, value, labels)


@dataclass(frozen=True)
class Gauge(Metric):
    """What goes up and down."""

    def set(self, value: float, **labels: str) -> None:
        """It is so much now."""
        _record(self, value, labels)


@dataclass(frozen=True)
class Histogram(Metric):
    """How often something was how much; ``buckets`` are the upper bounds, without the infinite one."""

    buckets: tuple[float, ...] = LATENCY_SECONDS

    def observe(self, value: float, **labels: str) -> None:
        """It was so much this time."""
        _record(self, value, labels)

    @contextlib.contextmanager
    def timed(self, **labels: str) -> Iterator[None]:
        """How long what is inside takes, in seconds, unless it fails."""
        began = time.monotonic()
        yield
        self.observe(time.monotonic() - began, **labels)


_ENDPOINT, _MODEL, _DEPLOYMENT = ("endpoint",), ("model",), ("deployment",)

# ---------------------------------------------------------------- from the rows

WAITING = Gauge("svd_requests_waiting", "Requests that wait in the queue.", ("endpoint", "priority"))
AGE = Gauge("svd_request_age_seconds", "Age of the oldest request that waits; 0 without one.", ("endpoint", "priority"))
RUNNING = Gauge("svd_requests_running", "Requests that a dispatcher has taken to a replica.", _ENDPOINT)
REPLICAS = Gauge("svd_replicas", "Replicas of a deployment in each of Serve's states.", ("deployment", "state"))
WEBHOOKS_WAITING = Gauge("svd_webhooks_waiting", "Webhooks that are to be delivered, now or again later.")
WEBHOOK_AGE = Gauge("svd_webhook_age_seconds", "For how long the delivery is overdue that was due first; 0 for none.")
STORED_FILES = Gauge("svd_stored_files", "Whole files in the file storage that have a record.")
STORED_BYTES = Gauge("svd_stored_bytes", "Their bytes.")
DATABASE_UP = Gauge("svd_database_up", "Whether the database answered this scrape.")

RECEIVED = Counter("svd_requests_received", "Requests accepted since 00:00 UTC.", _ENDPOINT)
ENDED = Counter("svd_requests_ended", "Requests that ended since 00:00 UTC, by how.", ("endpoint", "outcome"))
LOST = Counter(
    "svd_attempts_lost", "Attempts that had begun and were followed by another, of requests that ended.", _ENDPOINT
)
GPU_SECONDS = Counter("svd_gpu_seconds", "Seconds on the device of requests that ended since 00:00 UTC.", _ENDPOINT)
COST = Counter("svd_cost_usd", "What requests that ended since 00:00 UTC have cost us.", _ENDPOINT)
PRICE = Counter("svd_price_usd", "What requests that ended since 00:00 UTC are billed.", _ENDPOINT)
REPLICA_SECONDS = Counter("svd_replica_seconds", "Seconds that replicas were there since 00:00 UTC.", _DEPLOYMENT)
LOADED_COST = Counter("svd_loaded_cost_usd", "What replicas have cost us since 00:00 UTC, busy or idle.", _DEPLOYMENT)

QUEUE_WAIT = Histogram("svd_queue_wait_seconds", "From arrival to the start of the last attempt.", _ENDPOINT)
RUN = Histogram("svd_run_seconds", "From the start of the last attempt to the end.", _ENDPOINT)
REQUEST = Histogram("svd_request_seconds", "From arrival to the end.", _ENDPOINT)

OF_THE_ROWS: tuple[Metric, ...] = (
    *(WAITING, AGE, RUNNING, REPLICAS, WEBHOOKS_WAITING, WEBHOOK_AGE, STORED_FILES, STORED_BYTES, DATABASE_UP),
    *(RECEIVED, ENDED, LOST, GPU_SECONDS, COST, PRICE, REPLICA_SECONDS, LOADED_COST),
    *(QUEUE_WAIT, RUN, REQUEST),
)

# ---------------------------------------------------------------- of one process

BATCH_SIZE = Histogram("svd_batch_size", "Clips that went through the networks together.", _MODEL, _BATCH_SIZES)
STEP_SECONDS = Histogram("svd_step_seconds", "One step of the sampler, of a whole batch.", _MODEL, _STEP_SECONDS)
DEVICE_BUSY = Counter("svd_device_busy_seconds", "Seconds for which the device was at work.", _MODEL)
GPU_MEMORY = Gauge(
    "svd_gpu_memory_bytes", "Memory of the device: allocated, reserved, and allowed to this process.", ("model", "kind")
)
PREPARE_SECONDS = Histogram("svd_prepare_seconds", "Fetching or painting a clip's picture.", _MODEL, _STAGE_SECONDS)
ENCODE_SECONDS = Histogram("svd_encode_seconds", "Encoding a clip.", _MODEL, _STAGE_SECONDS)
STORE_SECONDS = Histogram("svd_store_seconds", "Putting a clip into the file storage.", _MODEL, _STAGE_SECONDS)
OUT_OF_MEMORY = Counter("svd_out_of_memory", "How often the device had too little memory.", _MODEL)
DISPATCH_SECONDS = Histogram(
    "svd_dispatch_seconds", "From the claim of a batch to its beginning on a replica.", _MODEL, _STAGE_SECONDS
)
HTTP_REQUESTS = Counter("svd_http_requests", "Calls that the gateway has answered.", ("route", "method", "status"))
HTTP_SECONDS = Histogram("svd_http_seconds", "From a call to the end of its answer.", ("route",), _HTTP_SECONDS)

OF_A_PROCESS: tuple[Metric, ...] = (
    *(BATCH_SIZE, STEP_SECONDS, DEVICE_BUSY, GPU_MEMORY, PREPARE_SECONDS, ENCODE_SECONDS, STORE_SECONDS),
    *(OUT_OF_MEMORY, DISPATCH_SECONDS, HTTP_REQUESTS, HTTP_SECONDS),
)


class RaySink:
    """Sends measures to Ray, which adds ``deployment``, ``replica`` and ``application`` in a replica of Serve."""

    def __init__(self) -> None:
        """Register nothing yet: a metric is there once it was measured."""
        self._instruments: dict[str, Any] = {}
        self._told: set[str] = set()

    def record(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Hand a measure to Ray. It may come from any thread. One that Ray does not take costs no clip: it is told."""
        try:
            self._hand_over(metric, value, labels)
        except Exception:
            if metric.name not in self._told:  # once, however often it fails
                logger.exception("%s could not be measured", metric.name)
            self._told.add(metric.name)

    def _hand_over(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        if metric.name not in self._instruments:
            self._instruments[metric.name] = _open(metric)
        # Of every kind the same: what Ray's Counter offers beside it refuses the 0 with which a series begins.
        self._instruments[metric.name]._record(float(value), dict(labels))


def _open(metric: Metric) -> Any:
    from ray.serve import metrics as of_serve

    labels: Any = metric.labels  # Ray says that it wants exactly one
    if isinstance(metric, Histogram):
        return of_serve.Histogram(metric.name, metric.help, list(metric.buckets), labels)
    kind = of_serve.Counter if isinstance(metric, Counter) else of_serve.Gauge
    return kind(metric.name, metric.help, labels)
