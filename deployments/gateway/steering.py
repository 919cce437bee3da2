"""Headers by which Serve lets its callers steer it, which are none of theirs.

    caller ──▶ uvicorn ──▶ Steering: without them ──▶ Serve's proxy ──▶ the gateway

By them a caller could choose a replica, end a call by a clock of its own, or keep a run going that nobody waits for;
and Serve decodes them as UTF-8 or fails. The id that it gives each call goes into its logs, so one of a caller's is
taken only if it looks like one. Nor is anybody told which applications there are: the proxy has a path for that.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.errors import NotFound
from deployments.gateway.wire import error_response

_SERVES_OWN = {
    b"serve_multiplexed_model_id",
    b"x_session_id",
    b"x_request_timeout_seconds",
    b"x_request_disconnect_disabled",
}
_REQUEST_ID = b"x_request_id"
_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_ROUTES = "/-/routes"


class Steering:
    """ASGI middleware that takes Serve's own headers from a request."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand in front of Serve's proxy."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request or WebSocket, or anything else as it is."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif scope["path"] == _ROUTES and scope["type"] == "http":
            await error_response(NotFound(f"Path {_ROUTES} not found"))(scope, receive, send)
        else:
            headers = [header for header in scope["headers"] if _is_callers(*header)]
            await self._app({**scope, "headers": headers}, receive, send)


def _is_callers(name: bytes, value: bytes) -> bool:
    plain = name.lower().replace(b"-", b"_")
    return plain not in _SERVES_OWN and (plain != _REQUEST_ID or _ID.fullmatch(value) is not None)
