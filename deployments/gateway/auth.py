"""Who is calling: ``Authorization: Key <id>:<secret>`` (or ``Bearer``) becomes a ``Caller``.

    header ──▶ id:secret ──▶ the configured key? ──▶ the keys of the database, as they were a moment ago ──▶ Caller

The keys of the database are held in memory and read again when they are old, so neither a caller who polls nor one who
tries keys at random costs more than a query a second.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from deployments.errors import Forbidden, Unauthenticated
from deployments.gateway.recent import Recent
from deployments.queue.keys import Keys, Scope


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
        self._recent = Recent(keys.valid)

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
        key = await self._recent.get(key_id)
        if key is None or not key.has_secret(secret):
            raise Unauthenticated("No user found for Key ID and Secret")
        return Caller(key.id, key.scope)

    async def is_valid(self, key_id: str) -> bool:
        """Whether a key of this id may be used still: what is done in its name by other means ends with it.

        Raises:
            Unavailable: The database cannot say.
        """
        return key_id == self._owner.key_id or await self._recent.get(key_id) is not None

    def forget(self) -> None:
        """Read the keys again before the next is believed: one was made or revoked here."""
        self._recent.forget()
