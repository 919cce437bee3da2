"""Who is calling: ``Authorization: Key <id>:<secret>`` (or ``Bearer``) becomes a ``Caller``."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from fastapi import Request

from deployments.errors import Unauthenticated


@dataclass(frozen=True)
class Caller:
    """An authenticated caller. Requests belong to the key's id."""

    key_id: str


class Authenticator:
    """Checks keys."""

    def __init__(self, key: str) -> None:
        """Accept one key, written ``id:secret``."""
        self._key = key.encode()
        self._caller = Caller(key.partition(":")[0])

    def __call__(self, request: Request) -> Caller:
        """The caller of an HTTP request (a FastAPI dependency).

        Raises:
            Unauthenticated: No key, a key of another form, or not ours.
        """
        headers = [header for header in request.headers.getlist("authorization") if header]
        if not headers:
            raise Unauthenticated("Authorization header is required")
        if len(headers) > 1:
            raise Unauthenticated("Authorization header is given more than once")
        scheme, _, credentials = headers[0].partition(" ")
        if scheme.lower() not in ("key", "bearer") or not all(credentials.partition(":")):
            raise Unauthenticated("Invalid Authorization header format. Expected 'Key <key_id>:<key_secret>'.")
        if not hmac.compare_digest(credentials.encode(), self._key):
            raise Unauthenticated("No user found for Key ID and Secret")
        return self._caller
