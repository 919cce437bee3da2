"""Bodies that are read no faster than the gateway takes them, for the proxy that Ray Serve puts in front of it.

    sender ──▶ proxy: receive() ──▶ its queue ──▶ replica: queue ──▶ the gateway's routes
                         ▲             │
                         └── goes on ──┘ once enough of what was handed over has left the proxy

By itself the proxy reads as fast as a sender sends and keeps what the gateway has not fetched, a whole upload if need
be. A message that has been passed on is dropped, and that is the sign to read on. Serve loads this where its processes
find ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``; without it uploads work as well, and cost memory.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.gateway import patience
from deployments.gateway.headers import Headers
from deployments.gateway.starting import Starting
from deployments.gateway.steering import Steering

PIECE_BYTES = 48 * 1024
"""As much as goes from process to process at once. Two of them are less than what Ray sends by its shared memory."""


class Backpressure:
    """ASGI middleware that reads on when what was read before has been passed on."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand in front of Serve's proxy."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request, or anything else as it is."""
        await self._app(scope, _Body(receive).receive if scope["type"] == "http" else receive, send)


class _Body:
    """One body on its way, a piece at a time."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._rest: Message | None = None
        self._held = 0
        self._passed_on = asyncio.Event()

    async def receive(self) -> Message:
        """The next piece, once no more than the last is held: that one may still be in the hand of who asks."""
        while self._held > 1:
            self._passed_on.clear()
            await self._passed_on.wait()
        piece = _Held(self._cut(self._rest or await self._receive()))
        self._held += 1
        weakref.finalize(piece, self._drop).atexit = False
        return piece

    def _cut(self, message: Message) -> Message:
        """The first piece of a message; the rest of it is kept for the next call."""
        self._rest = None
        body = message.get("body", b"")
        if len(body) <= PIECE_BYTES:
            return message
        self._rest = {**message, "body": body[PIECE_BYTES:]}
        return {**message, "body": body[:PIECE_BYTES], "more_body": True}

    def _drop(self) -> None:
        self._held -= 1
        self._passed_on.set()


class _Held(dict[str, Any]):
    """A message whose end can be noticed. To whom it is sent it is a plain dict."""

    __slots__ = ("__weakref__",)

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


def proxy_middlewares() -> list[Middleware]:
    """What Serve's proxy is to be started with, from the innermost to the outermost; and how it is to speak."""
    patience.install()
    return [Middleware(each) for each in (Starting, Backpressure, Steering, Headers)]
