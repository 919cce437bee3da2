"""Who is calling: ``Authorization: Key <id>:<secret>`` (or ``Bearer``) becomes a ``Caller``.

    header ──▶ id:secret ──▶ the configured key? ──▶ the keys of the database, as they were a moment ago ──▶ Caller

The keys of the database are held in memory and read again when they are old, so neither a caller who polls nor one who
tries keys at random costs more than a query a second.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from deployments.errors import Forbidden, Unauthenticated
from deployments.queue.keys import Key, Keys, Scope

VALID_SECONDS = 5.0
"""How old the keys in memory may be for one of them to be believed: a revocation takes effect within this time."""

UNKNOWN_SECONDS = 1.0
"""How old they may be for a key to be refused because it is not among them: a new key works within this time."""


@dataclass(frozen=True)
class Caller:
    """An authenticated caller. Requests belong to the key's id."""

    key_id: str
    scope: Scope = Scope.API

    @property
    def sees(self) -> str | None:
        """Whose requests it may see: its own key's, or, as None, everybody's."""
        return None if self.scope == Scope.ADMIN else self.key_id


class Authenticator:
    """Checks keys."""

    def __init__(self, key: str, keys: Keys) -> None:
        """Accept the configured key, written ``id:secret``, and those of the database."""
        self._key = key.encode()
        self._owner = Caller(key.partition(":")[0], Scope.ADMIN)
        self._keys = keys
        self._known: Mapping[str, Key] = {}
        self._read_at = self._forgotten_at = -VALID_SECONDS
        self._reading = asyncio.Lock()

    async def __call__(self, connection: HTTPConnection) -> Caller:
        """The caller of an HTTP request or WebSocket (a FastAPI dependency).

        Raises:
            Unauthenticated: No key, a key of another form, or not one of ours.
            Unavailable: The database cannot say whether it is one of ours.
        """
        headers = [header for header in connection.headers.getlist("authorization") if header]
        if not headers:
            raise Unauthenticated("Authorization header is required")
        if len(headers) > 1:
            raise Unauthenticated("Authorization header is given more than once")
        scheme, _, credentials = headers[0].partition(" ")
        if scheme.lower() not in ("key", "bearer") or not all(credentials.partition(":")):
            raise Unauthenticated("Invalid Authorization header format. Expected 'Key <key_id>:<key_secret>'.")
        return await self.caller(credentials)

    async def admin(self, connection: HTTPConnection) -> Caller:
        """The caller, who must be an administrator (a FastAPI dependency).

        Raises:
            Forbidden: The key has not the scope.
            Unauthenticated: As for any caller.
            Unavailable: As for any caller.
        """
        caller = await self(connection)
        if caller.scope != Scope.ADMIN:
            raise Forbidden("This needs a key with the ADMIN scope")
        return caller

    async def caller(self, credentials: str) -> Caller:
        """Whose ``id:secret`` this is.

        Raises:
            Unauthenticated: Nobody's.
            Unavailable: The database cannot say.
        """
        if hmac.compare_digest(credentials.encode(), self._key):
            return self._owner
        key_id, _, secret = credentials.partition(":")
        key = await self._find(key_id)
        if key is None or not key.has_secret(secret):
            raise Unauthenticated("No user found for Key ID and Secret")
        return Caller(key.id, key.scope)

    def forget(self) -> None:
        """Read the keys again before the next is believed: one was made or revoked here."""
        self._forgotten_at = time.monotonic()

    async def _find(self, key_id: str) -> Key | None:
        await self._read_if_older_than(VALID_SECONDS)
        if key_id not in self._known:
            await self._read_if_older_than(UNKNOWN_SECONDS)
        return self._known.get(key_id)

    async def _read_if_older_than(self, seconds: float) -> None:
        """One query for all who ask at the same time."""
        if self._is_older_than(seconds):
            async with self._reading:
                if self._is_older_than(seconds):
                    begun = time.monotonic()
                    self._known = {key.id: key for key in await self._keys.valid()}
                    self._read_at = begun

    def _is_older_than(self, seconds: float) -> bool:
        return self._read_at <= self._forgotten_at or time.monotonic() - self._read_at >= seconds
