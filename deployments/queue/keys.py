"""Keys that callers send, beside the one that the environment names.

    create ──▶ id:secret, told once ──▶ a row with the secret's SHA-256 ──▶ valid ──▶ revoked, or past its time
                                          │      ▲
                                          └ rotate ┘  another secret; the former one works for a while beside it

A secret is 256 random bits, so its plain SHA-256 tells nobody what it is.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Annotated, Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Row, and_, func, insert, or_, select, update

from deployments.errors import NotFound
from deployments.queue.database import Database, uninterrupted
from deployments.queue.tables import keys as table
from deployments.queue.tables import now

SECRET_BYTES = 32

KEEP_SECONDS = 24 * 3600.0
"""How long a secret works on beside the one that has taken its place, where nothing else is said."""

LONGEST_KEEP_SECONDS = 30 * 24 * 3600.0

NOTE_SECONDS = 60.0
"""How exactly it is kept when a key was last used."""

MOST_NOTED = 10_000
"""How many keys' last use one statement notes: drivers take some thirty thousand parameters."""

_NO_HASH = hashlib.sha256(secrets.token_bytes(SECRET_BYTES)).hexdigest()
"""What a secret is compared with where there is nothing to compare it with. Nobody knows a secret that fits."""

_columns = table.c


class Scope(StrEnum):
    """What a key may do: API calls endpoints and sees its own requests; ADMIN also sees everybody's and makes keys."""

    API = "API"
    ADMIN = "ADMIN"


class KeyState(StrEnum):
    """Whether a key works."""

    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True)
class Limits:
    """What a key may use; None for as much as there is.

    Attributes:
        requests_per_second: Calls that make work.
        max_waiting: Requests in the queue.
        max_running: Requests that run, of all models together.
        usd_per_day: What its requests of one day (UTC) are billed.
        upload_bytes_per_day: What it uploads in one day (UTC).
    """

    requests_per_second: float | None = None
    max_waiting: int | None = None
    max_running: int | None = None
    usd_per_day: float | None = None
    upload_bytes_per_day: int | None = None


NO_LIMITS = Limits()

_Count = Annotated[int, Field(ge=1, lt=2**31)]


class LimitChanges(BaseModel):
    """Some of the limits, as people write them: None lifts one, and one that is not named stays as it is."""

    model_config = ConfigDict(extra="forbid")

    requests_per_second: Annotated[float, Field(ge=0.001, le=1e6, allow_inf_nan=False)] | None = None
    max_waiting: _Count | None = None
    max_running: _Count | None = None
    usd_per_day: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = None
    upload_bytes_per_day: Annotated[int, Field(ge=0, lt=2**60)] | None = None

    def named(self) -> Mapping[str, float | None]:
        """Those that are named, by name."""
        return self.model_dump(exclude_unset=True)

    def limits(self) -> Limits:
        """The limits of a key that had none before."""
        return Limits(**self.model_dump())


@dataclass(frozen=True)
class Key:
    """A key, without its secret.

    Attributes:
        expires_at: When it stops working; None for never.
        last_used_at: When it was last used, to the minute; None where it was not.
        former_hash: Of its secret before the last rotation.
        former_until: When that secret stops working.
        as_of: What the database's clock said when this was read.
    """

    id: str
    alias: str
    scope: Scope
    created_at: float
    hash: str
    limits: Limits = NO_LIMITS
    expires_at: float | None = None
    last_used_at: float | None = None
    revoked_at: float | None = None
    former_hash: str | None = None
    former_until: float | None = None
    as_of: float = field(default=0.0, compare=False)

    @classmethod
    def from_row(cls, row: Row[Any]) -> Key:
        """The only way in from SQL."""
        values = dict(row._mapping)
        limits = Limits(**{each.name: values.pop(each.name) for each in fields(Limits)})
        return cls(**values | {"scope": Scope(row.scope), "limits": limits})

    def state(self, at: float) -> KeyState:
        """Whether it works at a moment of the database's clock, as far as was known when it was read."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        return KeyState.EXPIRED if self.expires_at is not None and self.expires_at <= at else KeyState.VALID

    def has_secret(self, secret: str, at: float) -> bool:
        """Whether this is its secret at a moment, or its former one; takes equally long whatever the answer."""
        given = _hash(secret)
        is_secret = hmac.compare_digest(self.hash, given)
        was_secret = hmac.compare_digest(self.former_hash or _NO_HASH, given)
        return is_secret or (was_secret and self.former_until is not None and at < self.former_until)


NOBODY = Key("", "", Scope.API, 0.0, _NO_HASH)
"""A key that nobody has: a secret is held against it where there is none with its id."""


class Keys:
    """The keys of a database."""

    def __init__(self, database: Database) -> None:
        """Use a database that is open."""
        self._database = database

    @uninterrupted
    async def now(self) -> float:
        """What the database's clock says."""
        async with self._database.read() as connection:
            return float((await connection.execute(select(now()))).scalar_one())

    @uninterrupted
    async def create(
        self, alias: str, scope: Scope = Scope.API, limits: Limits = NO_LIMITS, expires_at: float | None = None
    ) -> tuple[Key, str]:
        """Make a key; answer it with its secret, which nobody can ask for again."""
        secret = secrets.token_hex(SECRET_BYTES)
        values = {"id": str(uuid4()), "hash": _hash(secret), "alias": alias, "scope": scope, "expires_at": expires_at}
        made = insert(table).values(**values, **asdict(limits), created_at=now()).returning(table, _as_of())
        async with self._database.transaction() as connection:
            row = (await connection.execute(made)).one()
        return Key.from_row(row), secret

    async def valid(self) -> Sequence[Key]:
        """Every key that works now, the oldest first."""
        return await self._read(_works())

    async def all(self) -> Sequence[Key]:
        """Every key that there ever was, the oldest first."""
        return await self._read()

    @uninterrupted
    async def rotate(self, key_id: str, keep_seconds: float = KEEP_SECONDS) -> tuple[Key, str]:
        """Give a key another secret; answer both.

        Args:
            key_id: The key's.
            keep_seconds: How long the secret that it has now works on. One from before that works no more.

        Raises:
            NotFound: No valid key has this id.
        """
        secret = secrets.token_hex(SECRET_BYTES)
        kept = {"former_hash": _columns.hash, "former_until": now() + keep_seconds}
        former = kept if keep_seconds > 0 else dict.fromkeys(kept)
        return await self._change(key_id, {"hash": _hash(secret), **former}), secret

    @uninterrupted
    async def change(self, key_id: str, limits: Mapping[str, float | None], alias: str | None = None) -> Key:
        """Change limits of a key, by name, and what it is called; what is not named stays as it is.

        Raises:
            NotFound: No valid key has this id.
        """
        values = {each.name: limits[each.name] for each in fields(Limits) if each.name in limits}
        return await self._change(key_id, values | ({} if alias is None else {"alias": alias}))

    @uninterrupted
    async def revoke(self, key_id: str) -> bool:
        """Make a key invalid; answer whether there was one with this id that was not so already."""
        mine = _columns.id == key_id, _columns.revoked_at.is_(None)
        async with self._database.transaction() as connection:
            done = await connection.execute(update(table).where(*mine).values(revoked_at=now()).returning(_columns.id))
            return done.one_or_none() is not None

    @uninterrupted
    async def note_use(self, key_ids: Collection[str]) -> None:
        """Keep that these were used just now. One that another gateway notes meanwhile is left to it."""
        minute = func.round(now() / NOTE_SECONDS - 0.5) * NOTE_SECONDS  # not every SQLite has floor()
        older = or_(_columns.last_used_at.is_(None), _columns.last_used_at < minute)
        due = select(_columns.id).where(_columns.id.in_(key_ids), older).order_by(_columns.id)
        due = due.with_for_update(skip_locked=True)
        async with self._database.transaction() as connection:
            await connection.execute(update(table).where(_columns.id.in_(due)).values(last_used_at=minute))

    @uninterrupted
    async def _read(self, *conditions: ColumnElement[bool]) -> Sequence[Key]:
        query = select(table, _as_of()).where(*conditions).order_by(_columns.created_at, _columns.id)
        async with self._database.read() as connection:
            return [Key.from_row(row) for row in await connection.execute(query)]

    async def _change(self, key_id: str, values: Mapping[str, Any]) -> Key:
        changed = {"alias": _columns.alias} | dict(values)  # a statement that sets nothing is none
        statement = update(table).where(_columns.id == key_id, _works()).values(changed).returning(table, _as_of())
        async with self._database.transaction() as connection:
            row = (await connection.execute(statement)).one_or_none()
        if row is None:
            raise NotFound("There is no valid key with this id")
        return Key.from_row(row)


def _works() -> ColumnElement[bool]:
    """What a row says of a key that works now. Whatever else depends on the time is compared where it is used."""
    return and_(_columns.revoked_at.is_(None), or_(_columns.expires_at.is_(None), _columns.expires_at > now()))


def _as_of() -> ColumnElement[float]:
    return now().label("as_of")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
