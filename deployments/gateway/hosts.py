"""One origin for all of fal's hosts: which of our paths a request for one of them means.

A request says which host it is for by its Host header, or, sent to ``/api/fal/proxy``, by ``x-fal-target-url``.
"""

from __future__ import annotations

from contextlib import nullcontext
from urllib.parse import SplitResult, quote, unquote, urlsplit
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments import logs
from deployments.gateway.wire import REQUEST_ID

PROXY_PATH = "/api/fal/proxy"
PREFIXES = {
    "fal.run": "",
    "queue.fal.run": "/queue",
    "falrun.com": "",  # what the Python client falls back on when it cannot connect
    "queue.falrun.com": "/queue",
    "ws.fal.run": "/ws",
    "rest.fal.ai": "",
    "rest.alpha.fal.ai": "",
    "v3.fal.media": "",
    "v3b.fal.media": "",
    "fal.media": "",
    "api.fal.ai": "",
    "fal.ai": "",
}
"""fal's hosts, and the path prefix under which we serve each. Those without one have paths that no endpoint has."""


class FalHosts:
    """ASGI middleware that turns a request for one of fal's hosts into the one of ours that it means."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand in front of the app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request or WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["path"] == PROXY_PATH and scope["type"] == "http":
            target = _split(headers.get("x-fal-target-url", ""))
            if target is None or target.netloc not in PREFIXES:
                await JSONResponse("Invalid request", 400)(scope, receive, send)
                return
            scope = _addressed(scope, target.netloc, target.path, target.query)
        else:
            host = headers.get("host", "").lower().partition(":")[0]
            if host in PREFIXES:
                scope = _addressed(scope, host, quote(scope["path"]), scope["query_string"].decode("latin-1"))
        await self._app(scope, receive, send)


def _split(url: str) -> SplitResult | None:
    """The parts of a URL; None where it is malformed, or has letters that none can have."""
    try:
        return urlsplit(url) if url.isascii() else None
    except ValueError:
        return None


def _addressed(scope: Scope, host: str, raw_path: str, query: str) -> Scope:
    """The same request for the path of ours that stands for a path of one of fal's hosts."""
    path = PREFIXES[host] + raw_path
    return {**scope, "path": unquote(path), "raw_path": path.encode(), "query_string": query.encode("latin-1")}


class RequestIds:
    """ASGI middleware that puts ``x-fal-request-id`` on every reply that has none of its own.

    The Python client tells our answers from those of a proxy in between by this header. What is logged meanwhile has
    the same id.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Stand in front of the app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request or WebSocket."""
        request_id = str(uuid4())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault(REQUEST_ID, request_id)
            await send(message)

        with logs.request_context(request_id) if scope["type"] != "lifespan" else nullcontext():
            await self._app(scope, receive, send_with_id)
