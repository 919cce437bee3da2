"""Keys that callers send, beside the one that the environment names.

    create ──▶ id:secret, told once ──▶ a row with the secret's SHA-256 ──▶ valid ──▶ revoke

A secret is 256 random bits, so its plain SHA-256 tells nobody what it is.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import uuid4

from sqlalchemy import Row, insert, select, update

from deployments.queue.database import Database, uninterrupted
from deployments.queue.tables import keys as table
from deployments.queue.tables import now

SECRET_BYTES = 32


class Scope(StrEnum):
    """What a key may do: API calls endpoints and sees its own requests; ADMIN also sees everybody's and makes keys."""

    API = "API"
    ADMIN = "ADMIN"


@dataclass(frozen=True)
class Key:
    """A key, without its secret."""

    id: str
    alias: str
    scope: Scope
    created_at: float
    hash: str

    @classmethod
    def from_row(cls, row: Row[Any]) -> Key:
        """The only way in from SQL."""
        return cls(row.id, row.alias, Scope(row.scope), row.created_at, row.hash)

    def has_secret(self, secret: str) -> bool:
        """Whether this is the secret; takes equally long for every wrong one."""
        return hmac.compare_digest(self.hash, _hash(secret))


class Keys:
    """The keys of a database."""

    def __init__(self, database: Database) -> None:
        """Use a database that is open."""
        self._database = database

    @uninterrupted
    async def create(self, alias: str, scope: Scope = Scope.API) -> tuple[Key, str]:
        """Make a key; answer it with its secret, which nobody can ask for again."""
        secret = secrets.token_hex(SECRET_BYTES)
        values = {"id": str(uuid4()), "hash": _hash(secret), "alias": alias, "scope": scope, "created_at": now()}
        async with self._database.transaction() as connection:
            row = (await connection.execute(insert(table).values(values).returning(table))).one()
        return Key.from_row(row), secret

    @uninterrupted
    async def valid(self) -> Sequence[Key]:
        """Every key that has not been revoked, the oldest first."""
        query = select(table).where(table.c.revoked_at.is_(None)).order_by(table.c.created_at, table.c.id)
        async with self._database.read() as connection:
            return [Key.from_row(row) for row in await connection.execute(query)]

    @uninterrupted
    async def revoke(self, key_id: str) -> None:
        """Make a key invalid. Nothing happens where there is no such key, or no longer."""
        mine = table.c.id == key_id, table.c.revoked_at.is_(None)
        async with self._database.transaction() as connection:
            await connection.execute(update(table).where(*mine).values(revoked_at=now()))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
