"""What each call costs the gateway: how many there are, how they are answered, how long that takes.

    call ──▶ Measured ──▶ routes
                └──▶ HTTP_REQUESTS{route, method, status}, HTTP_SECONDS{route}

A route is told by its template, and a method only where it is one of HTTP's: what a caller sends becomes no label. It
stands behind whatever makes a call one of ours, for the route is written into the very scope that it hands on.
"""

from __future__ import annotations

import time

from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments import tracing
from deployments.metrics import HTTP_REQUESTS, HTTP_SECONDS

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD = "other"
NO_ROUTE = "none"
"""Of a call that was answered before it was routed."""

NO_ANSWER = 499
"""Of a call whose caller went away before its answer began."""

PROBES = ("/health/", "/metrics")
"""What asks every few seconds, and is part of no trace."""


class Measured:
    """ASGI middleware that measures calls."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand in front of the app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request, or anything else as it is."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began = NO_ANSWER, time.monotonic()

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        finally:
            _note(scope, status, time.monotonic() - began)


def _note(scope: Scope, status: int, seconds: float) -> None:
    route = getattr(scope.get("route"), "path", NO_ROUTE)
    method = scope["method"] if scope["method"] in METHODS else OTHER_METHOD
    HTTP_REQUESTS.inc(route=route, method=method, status=str(status))
    HTTP_SECONDS.observe(seconds, route=route)


def telemetry() -> TelemetryConfig:
    """What FastAPI is to make of a call: a span where somebody collects them, and none of its own metrics and logs."""
    return {
        "tracer_provider": tracing.provider(),
        "tracing": tracing.provider() is not None,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": lambda scope: scope["path"].startswith(PROBES),
    }
