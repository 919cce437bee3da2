"""Traces: what became of one call, across gateway, dispatcher and replica, for whoever collects OpenTelemetry.

    caller's traceparent ──▶ gateway ──▶ requests.traceparent ──▶ dispatcher: queue wait, run
                                                                       └──▶ Attempt ──▶ replica: prepare, denoise, …

Off unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or ``…_TRACES_ENDPOINT``) names a collector that speaks OTLP over HTTP: then
the tracer is the one of OpenTelemetry's API that does nothing, and neither an exporter nor a thread is made. The SDK
reads the rest of its variables by itself: headers, sampler, time-outs, resource.

A trace crosses processes as the text of W3C's ``traceparent`` header. Spans tell of sizes and times, never of inputs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NoOpTracerProvider, Span, StatusCode, Tracer, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

SERVICE = "svd-serve"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
NANO = 10**9
LAST_SECONDS = 1.0
"""How long the end of a process may wait for the collector."""

About = Mapping[str, str | int | float]
"""Attributes of a span, by their names."""

_SENT = frozenset({"url.path", "url.query", "http.request.method_original"})
"""Attributes of a server's span that may hold tokens, or the keys of files."""

_HEADER = "traceparent"
_W3C = TraceContextTextMapPropagator()
_OFF = NoOpTracerProvider()
_provider: TracerProvider = _OFF


def is_wanted() -> bool:
    """Whether the environment names a collector."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    silent = os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
    return not (disabled or silent) and any(os.environ.get(name) for name in ENDPOINTS)


def start(component: str) -> None:
    """Send this process's spans to the collector, if there is one, from now on and until its end.

    Args:
        component: What this process is, for instance ``gateway``; every span of it says so.
    """
    global _provider
    if not is_wanted() or _provider is not _OFF:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace import TracerProvider as ExportingProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    class Discreet(SpanProcessor):
        """Keeps what callers sent out of the spans of libraries: the route is told by its template."""

        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            for name in _SENT.intersection(getattr(span, "attributes", None) or ()):
                span.set_attribute(name, "…")

    exporting = ExportingProvider(resource=Resource.create(_resource(component)))
    exporting.add_span_processor(Discreet())
    exporting.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _provider = exporting


def _resource(component: str) -> dict[str, str]:
    """What tells this process from others. A name in the environment goes before ours."""
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return {"svd.component": component} | ({} if named else {"service.name": SERVICE})


def stop() -> None:
    """Send what has not been sent, and no more. It may take as long as the collector."""
    global _provider
    former, _provider = _provider, _OFF
    if former is not _OFF:
        former.shutdown()  # type: ignore[attr-defined]  # the SDK's has it


async def end_with_process() -> None:
    """Send what has not been sent as this process ends, without waiting long for a collector that is away."""
    if _provider is not _OFF:
        stopping = threading.Thread(target=stop, name="last spans", daemon=True)
        stopping.start()
        await asyncio.to_thread(stopping.join, LAST_SECONDS)


def provider() -> TracerProvider | None:
    """What makes this process's spans, for a library that makes some of its own; None where nobody collects them."""
    return None if _provider is _OFF else _provider


def tracer() -> Tracer:
    """What makes this process's spans, or none."""
    return _provider.get_tracer(SERVICE)


def begin(
    name: str,
    parent: str | None,
    about: About | None = None,
    *,
    at: float | None = None,
    links: Sequence[str | None] = (),
) -> Span:
    """A span that has begun; whoever has it ends it.

    Args:
        name: From a fixed list.
        parent: The traceparent of the span that it is part of.
        about: Its attributes, by their names without ``svd.``.
        at: When it began, in Unix seconds; now, where nothing is said.
        links: The traceparents of others that it concerns as well.
    """
    others = [trace.get_current_span(context_of(each)).get_span_context() for each in links]
    return tracer().start_span(
        name,
        context_of(parent),
        start_time=None if at is None else int(at * NANO),
        links=[Link(other) for other in others if other.is_valid],
        attributes=_named(about or {}),
    )


def end(span: Span, error: str | None = None, at: float | None = None) -> None:
    """A span has ended; with an error, where one is told."""
    if error is not None:
        span.set_status(StatusCode.ERROR, error)
    span.end(None if at is None else int(at * NANO))


def _named(about: About) -> About:
    return {f"svd.{name}": value for name, value in about.items()}


@contextlib.contextmanager
def span(name: str, **attributes: str | int | float) -> Iterator[None]:
    """A span around what is inside, part of the current one; it tells the kind of the error with which that fails."""
    begun = begin(name, current(), attributes)
    with trace.use_span(begun, record_exception=False, set_status_on_exception=False), _ended([begun]):
        yield


@contextlib.contextmanager
def together(name: str, parents: Sequence[str | None], **attributes: str | int | float) -> Iterator[None]:
    """The same around what is done for several at once: a span in the trace of each, with links to the others."""
    others = [[*parents[:at], *parents[at + 1 :]] for at in range(len(parents))]
    begun = [begin(name, parent, attributes, links=links) for parent, links in zip(parents, others, strict=True)]
    with _ended(begun):
        yield


@contextlib.contextmanager
def _ended(spans: Sequence[Span]) -> Iterator[None]:
    error: str | None = None
    try:
        yield
    except Exception as failure:
        error = type(failure).__name__  # its message may hold what a caller sent
        raise
    finally:
        for each in spans:
            end(each, error)


def context_of(traceparent: str | None) -> Context:
    """A context in which the span of this traceparent is the current one; without it, none is."""
    return _W3C.extract({_HEADER: traceparent} if traceparent else {}, Context())


def traceparent_of(span: Span) -> str | None:
    """A span as a traceparent; None for one that is part of no trace."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier.get(_HEADER)


def describe(**attributes: str) -> None:
    """Say what the current span is about."""
    trace.get_current_span().set_attributes(_named(attributes))


def current() -> str | None:
    """The traceparent of the current span; None outside of one."""
    return traceparent_of(trace.get_current_span())


def trace_id() -> str | None:
    """The id of the trace that is being served, in hex; None outside of one."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None
