"""What every answer tells a browser: to guess nothing, to tell nobody, to run nothing, and to keep nothing.

    route ──▶ headers of its own ──▶ Headers: those that are missing ──▶ CORS ──▶ caller

An answer is data for a program, unless its route says otherwise. Two kinds do: a page, which runs its own scripts and
shows what its user made, wherever that is stored; and a file, which may be shown by any page and is none itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY: Mapping[str, str] = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every answer that says nothing else."""

FILE_HEADERS: Mapping[str, str] = {
    "x-content-type-options": "nosniff",
    "content-security-policy": (
        "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; frame-ancestors *; sandbox"
    ),
    "cross-origin-resource-policy": "cross-origin",
}
"""Of a file that somebody sent or had made. A browser shows a picture or a clip in a page of its own with a style."""


def page_headers(public_url: str) -> dict[str, str]:
    """Of a page, which may call us, by whatever name it was opened.

    What it shows may be anywhere: a picture where its user found it, a clip in a bucket, both in its own memory.
    """
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": f"'self' {public_url}/",
        "img-src": "'self' data: blob: https: http:",
        "media-src": "'self' blob: https: http:",
        "form-action": "'none'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {sources}" for name, sources in policy.items()),
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-cache",
    }


_ENCODED = [(name.encode(), value.encode()) for name, value in SECURITY.items()]


class Headers:
    """ASGI middleware that adds to an answer what it lacks of ``SECURITY``."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand in front of the app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request, or anything else as it is."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                given = {bytes(name) for name, _ in headers}
                message["headers"] = headers + [each for each in _ENCODED if each[0] not in given]
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)
