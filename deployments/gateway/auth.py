"""Who is calling: ``Authorization: Key <id>:<secret>`` (or ``Bearer``) becomes a ``Caller``.

    header ──▶ id:secret ──▶ the configured key? ──▶ the keys of the database, as they were a moment ago ──▶ Caller
                                                                                         └──▶ last use, once a minute

The keys of the database are held in memory and read again when they are old, so neither a caller who polls nor one who
tries keys at random costs more than a query a second. While the database is away, those in memory are believed as long
as ever (``VALID_SECONDS``); then it is a 503 for every key but the configured one, since any may have been revoked.

Whatever is wrong with a key, the same is done before it is refused: nothing tells an unknown id from a wrong secret.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from deployments.errors import Forbidden, ServingError, Unauthenticated
from deployments.gateway.recent import Recent
from deployments.queue.keys import MOST_NOTED, NO_LIMITS, NOBODY, Key, Keys, KeyState, Limits, Scope
from deployments.words import many

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """An authenticated caller. Requests belong to the key's id."""

    key_id: str
    scope: Scope = Scope.API
    limits: Limits = NO_LIMITS

    @property
    def sees(self) -> str | None:
        """Whose requests it may see: its own key's, or, as None, everybody's."""
        return None if self.is_admin else self.key_id

    @property
    def is_admin(self) -> bool:
        """Whether it is an administrator, who sees what things cost, too."""
        return self.scope == Scope.ADMIN


class Authenticator:
    """Checks keys."""

    def __init__(self, key: str, keys: Keys) -> None:
        """Accept the configured key, written ``id:secret``, and those of the database."""
        self._hash = _hash(key)
        self._owner = Caller(key.partition(":")[0], Scope.ADMIN)
        self._keys = keys
        self._recent = Recent(keys.valid)
        self._used: set[str] = set()

    @property
    def configured_id(self) -> str:
        """The id of the configured key, which is not in the database."""
        return self._owner.key_id

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
        if not caller.is_admin:
            raise Forbidden("This needs a key with the ADMIN scope")
        return caller

    async def caller(self, credentials: str) -> Caller:
        """Whose ``id:secret`` this is.

        Raises:
            Unauthenticated: Nobody's.
            Unavailable: The database cannot say.
        """
        if hmac.compare_digest(self._hash, _hash(credentials)):
            return self._owner
        key_id, _, secret = credentials.partition(":")
        key = await self._find(key_id, secret)
        if key is None:
            await self._recent.renew()  # it may have been made or given this secret just now, by another process
            key = await self._find(key_id, secret)
        if key is None:
            raise Unauthenticated("No user found for Key ID and Secret")
        self._used.add(key.id)
        return Caller(key.id, key.scope, key.limits)

    async def bearer(self, key_id: str) -> Caller:
        """Who acts for a key without sending it (by a token, say): within its limits, and as no administrator.

        Raises:
            Unauthenticated: The key has been revoked, or has expired.
            Unavailable: The database cannot say.
        """
        if key_id == self.configured_id:
            return Caller(key_id)
        key = await self._valid(key_id)
        if key is None:
            raise Unauthenticated("The key has been revoked or has expired")
        self._used.add(key_id)
        return Caller(key_id, limits=key.limits)

    async def is_valid(self, key_id: str) -> bool:
        """Whether a key of this id may be used still: what is done in its name by other means ends with it.

        Raises:
            Unavailable: The database cannot say.
        """
        return key_id == self.configured_id or await self._valid(key_id) is not None

    def forget(self) -> None:
        """Read the keys again before the next is believed: one was made or changed here."""
        self._recent.forget()

    async def note_uses(self) -> None:
        """Keep which keys were used since this was last called. Where that fails, nothing but the note is lost."""
        used, self._used = list(self._used), set()
        try:
            for start in range(0, len(used), MOST_NOTED):
                await self._keys.note_use(used[start : start + MOST_NOTED])
        except ServingError as error:  # the database is away, and says so itself
            logger.warning("the last use of %s could not be noted: %s", many(len(used), "key"), error)
        except Exception:
            logger.warning("the last use of %s could not be noted", many(len(used), "key"), exc_info=True)

    async def _find(self, key_id: str, secret: str) -> Key | None:
        key = await self._recent.get(key_id)
        at = self._now(key or NOBODY)
        is_its = (key or NOBODY).has_secret(secret, at)
        return key if key and is_its and key.state(at) == KeyState.VALID else None

    async def _valid(self, key_id: str) -> Key | None:
        key = await self._recent.get(key_id)
        return key if key and key.state(self._now(key)) == KeyState.VALID else None

    def _now(self, key: Key) -> float:
        """The database's time. A key in memory ends at its own, however lately it was read."""
        return key.as_of + self._recent.age


def _hash(credentials: str) -> str:
    return hashlib.sha256(credentials.encode(errors="replace")).hexdigest()
