"""Secrets that all processes of the service share, made when first needed and kept in the database.

One serves to sign (the newest); those before it still verify what they signed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from deployments.queue.database import Database, uninterrupted
from deployments.queue.tables import now
from deployments.queue.tables import secrets as table

SECRET_BYTES = 32


@dataclass(frozen=True)
class Secret:
    """Random bytes: ``SECRET_BYTES`` of them, which is also the length of an Ed25519 seed."""

    purpose: str
    number: int
    value: bytes

    @property
    def id(self) -> str:
        """What a signature may name it by."""
        return f"{self.purpose}-{self.number}"


class Secrets:
    """The secrets of a database, by what they are for."""

    def __init__(self, database: Database) -> None:
        """Use a database that is open."""
        self._database = database

    async def of(self, purpose: str) -> Sequence[Secret]:
        """All secrets for a purpose, the newest first; the first is made if there is none."""
        found = await self._all(purpose)
        if not found:
            await self._add(purpose, 0)
            found = await self._all(purpose)
        return found

    async def rotate(self, purpose: str) -> Secret:
        """Put a new secret in front of the others. Of several processes that do so at once, one wins."""
        await self._add(purpose, (await self.of(purpose))[0].number + 1)
        return (await self._all(purpose))[0]

    @uninterrupted
    async def _all(self, purpose: str) -> Sequence[Secret]:
        query = select(table.c.purpose, table.c.number, table.c.value).where(table.c.purpose == purpose)
        async with self._database.read() as connection:
            rows = await connection.execute(query.order_by(table.c.number.desc()))
            return [Secret(**row._mapping) for row in rows]

    @uninterrupted
    async def _add(self, purpose: str, number: int) -> None:
        """Make a secret, unless somebody else has made it meanwhile."""
        values = {"purpose": purpose, "number": number, "value": os.urandom(SECRET_BYTES), "created_at": now()}
        with contextlib.suppress(IntegrityError):
            async with self._database.transaction() as connection:
                await connection.execute(insert(table).values(values))
