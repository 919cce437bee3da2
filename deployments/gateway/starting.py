"""An answer while there is nobody to answer: Serve's proxy listens before it knows of an application.

    request ──▶ proxy ── has it a route? ── yes ──▶ the gateway
                              └── no ──▶ 404 in plain text ──▶ 503, so that whoever polls through a restart goes on

The application has every path, so a 404 of the proxy's own says only that it is too early. Told so, a client of a
request that was accepted would give it up.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import Unavailable
from deployments.gateway.wire import error_response

_PROXYS_OWN = b"text/plain; charset=utf-8"
"""What the proxy says is text. The gateway's 404 is JSON."""


class Starting:
    """ASGI middleware that says 503 where the proxy would say that there is no such path."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand in front of Serve's proxy."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request, or anything else as it is."""
        early = False

        async def pass_on(message: Message) -> None:
            nonlocal early
            early = early or _is_proxys_404(message)
            if not early:
                await send(message)

        await self._app(scope, receive, pass_on if scope["type"] == "http" else send)
        if early:
            await error_response(Unavailable("The service is starting"))(scope, receive, send)


def _is_proxys_404(message: Message) -> bool:
    if message["type"] != "http.response.start" or message["status"] != 404:
        return False
    return (b"content-type", _PROXYS_OWN) in {(bytes(name), bytes(value)) for name, value in message["headers"]}
