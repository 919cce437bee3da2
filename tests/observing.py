"""What a process measures, and the spans that it sends, for tests to look at."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from deployments.metrics import Metric
from tests.receiver import Receiver

PATIENCE = 60.0
FAILED = 2
"""The status of a span that failed, as OTLP has it."""


@dataclass
class Kept:
    """A sink of measures that keeps what it gets."""

    measures: list[tuple[str, float, Mapping[str, str]]] = field(default_factory=list)

    def record(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        assert set(labels) == set(metric.labels), metric.name
        self.measures.append((metric.name, value, dict(labels)))

    def labels(self, metric: Metric) -> list[Mapping[str, str]]:
        """The labels of each measure of a metric."""
        return [labels for name, _, labels in self.measures if name == metric.name]

    def values(self, metric: Metric) -> list[float]:
        """Each measure of a metric."""
        return [value for name, value, _ in self.measures if name == metric.name]


@dataclass(frozen=True)
class SeenSpan:
    """A span as a collector gets it; ids are in hex, times in seconds since 1970."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    component: str
    service: str
    start: float
    end: float
    failed: bool
    message: str
    links: Sequence[tuple[str, str]]
    attributes: Mapping[str, Any]


def spans_of(receiver: Receiver) -> list[SeenSpan]:
    """All that a collector has got so far, decoded from OTLP's protobuf."""
    with receiver.arrived:
        posts = [post for post in receiver.posts if post.path == "/v1/traces"]
    assert {post.headers["content-type"] for post in posts} <= {"application/x-protobuf"}
    found = []
    for post in posts:
        for group in ExportTraceServiceRequest.FromString(post.body).resource_spans:
            resource = _attributes(group.resource.attributes)
            found += [_seen(span, resource) for scope in group.scope_spans for span in scope.spans]
    return found


def wait_for_spans(receiver: Receiver, trace_id: str, names: set[str]) -> list[SeenSpan]:
    """The spans of a trace, once each of these is among them."""
    give_up = time.monotonic() + PATIENCE
    while True:
        mine = [span for span in spans_of(receiver) if span.trace_id == trace_id]
        if names <= {span.name for span in mine}:
            return mine
        assert time.monotonic() < give_up, (names, mine)
        time.sleep(0.1)


def _seen(span: Any, resource: Mapping[str, Any]) -> SeenSpan:
    return SeenSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        component=resource.get("svd.component", ""),
        service=resource.get("service.name", ""),
        start=span.start_time_unix_nano / 1e9,
        end=span.end_time_unix_nano / 1e9,
        failed=span.status.code == FAILED,
        message=span.status.message,
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        attributes=_attributes(span.attributes),
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
