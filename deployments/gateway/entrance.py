"""What no route has to see: a NUL in an address, which no database keeps, and a body that would have to be inflated.

    request ──▶ Entrance ──▶ routes
                   └──▶ 404, 400, 415

It stands behind whatever makes a request one of ours, so that no route is reached past it.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.errors import BadRequest, NotFound, PlatformError, UnsupportedMediaType

Answer = Callable[[str, PlatformError], Response]
"""An error in the form of the part of the API that a path belongs to."""


class Entrance:
    """ASGI middleware that refuses such requests before they are routed."""

    def __init__(self, app: ASGIApp, answer: Answer) -> None:
        """Stand in front of the app."""
        self._app = app
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request, or anything else as it is."""
        refusal = _refusal(scope) if scope["type"] == "http" else None
        app = self._answer(scope["path"], refusal) if refusal else self._app
        await app(scope, receive, send)


def _refusal(scope: Scope) -> PlatformError | None:
    if "\0" in scope["path"]:
        return NotFound("Path not found")
    if b"%00" in scope["query_string"]:
        return BadRequest("A NUL cannot be part of a query")
    coding = Headers(scope=scope).get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        return UnsupportedMediaType("A body must be sent as it is, without a Content-Encoding")
    return None
