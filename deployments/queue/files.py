"""Whose a stored file is, who may read it and until when. The bytes stand in the file storage under the same key.

    begin ──▶ being uploaded ── claim, finish ──▶ whole ──▶ expired ── sweep ──▶ gone, row and bytes
                     └── given up for a day ───────────────────▲

    no lifetime ── kept so long as the operator says ─────────▲

A file without a row is anybody's to read: a sample for ever, one below ``b/`` until ``Sweeper`` finds it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from sqlalchemy import ColumnElement, Row, Select, and_, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.errors import BadRequest, StorageUnavailable
from deployments.models.messages import StoredFile
from deployments.queue.database import Database, uninterrupted
from deployments.queue.secrets import Secrets
from deployments.queue.tables import files as table
from deployments.queue.tables import now, storage_settings
from deployments.storage import FileStorage

logger = logging.getLogger(__name__)

UPLOAD_SECONDS = 24 * 3600.0
"""An upload that has not ended by then has been given up."""

LONGEST_LIFE = 100 * 365 * 24 * 3600
MOST_RULES = 100
SWEEP_BATCH = 100
MOST_FAILURES = 3
"""So many files of a batch that cannot be deleted are tried, and then no others: each may take seconds."""

ORPHAN_SECONDS = UPLOAD_SECONDS + 3600.0
"""How old a file without a row is before it is deleted."""

ORPHANS_SECONDS = 6 * 3600.0
"""How often files without a row are looked for."""

CAREFUL_SECONDS = 3600.0
"""How long after its start a process first looks for them, and how often it asks whether they are still not its own."""

STORAGE_OWNER = "storage"
"""The purpose of the secrets by which a storage and its database know each other."""

Decision: TypeAlias = Literal["allow", "forbid", "hide"]
"""What a reader meets: the file, 403, or 404."""


class AclRule(BaseModel):
    """What one user meets. A user is the id of a key."""

    model_config = ConfigDict(frozen=True)

    user: str
    decision: Decision


class Acl(BaseModel):
    """Who may read a file, in fal's form."""

    model_config = ConfigDict(frozen=True)

    default: Decision = "allow"
    rules: tuple[AclRule, ...] = Field((), max_length=MOST_RULES)

    def decide(self, user: str | None) -> Decision:
        """What a user meets; None is somebody without a key."""
        return next((rule.decision for rule in self.rules if rule.user == user), self.default)


class Lifecycle(BaseModel):
    """How long files are kept, and who may read them: what ``X-Fal-Object-Lifecycle…`` says."""

    model_config = ConfigDict(frozen=True, validate_by_name=True)

    seconds: int | None = Field(None, alias="expiration_duration_seconds", strict=True, ge=0, le=LONGEST_LIFE)
    acl: Acl | None = Field(None, alias="initial_acl")

    @field_validator("seconds")
    @classmethod
    def _no_seconds_are_for_ever(cls, seconds: int | None) -> int | None:
        return seconds or None  # as on fal

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read it from JSON.

        Raises:
            BadRequest: It is malformed.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise BadRequest(
                f"The object lifecycle is malformed: {where + ': ' if where else ''}{first['msg']}"
            ) from None

    def dump(self) -> str:
        """Write it as JSON that says no more than it was told."""
        return self.model_dump_json(by_alias=True, exclude_unset=True)

    def over(self, default: Lifecycle) -> Lifecycle:
        """This, and the default where this says nothing."""
        said = {name: getattr(self, name) for name in self.model_fields_set}
        return default.model_copy(update=said)


@dataclass(frozen=True)
class FileRecord:
    """A file as its row says. Times are Unix seconds on the database's clock; ``size`` is None while it comes in.

    ``sha256`` is None until then too, and for what was stored by code that did not say.
    """

    key: str
    key_id: str
    request_id: str | None
    content_type: str
    size: int | None
    sha256: str | None
    created_at: float
    expires_at: float | None
    acl: Acl | None
    expired: bool

    @classmethod
    def from_row(cls, row: Row[Any]) -> Self:
        """The only way in from SQL."""
        values = {name: row._mapping[name] for name in cls.__dataclass_fields__}
        return cls(
            **values | {"acl": Acl.model_validate_json(row.acl) if row.acl else None, "expired": bool(row.expired)}
        )

    def decide(self, user: str | None) -> Decision:
        """What a user meets. Its owner may always read it, as long as it is there."""
        if self.size is None or self.expired:
            return "hide"
        return "allow" if self.acl is None or user == self.key_id else self.acl.decide(user)


async def insert_file(
    connection: AsyncConnection, file: StoredFile, key_id: str, lifecycle: Lifecycle, request_id: str | None = None
) -> None:
    """Record a file that is whole, within somebody else's transaction.

    Args:
        connection: In that transaction.
        file: The file.
        key_id: Whose it is.
        lifecycle: How long it is kept, from now, and who may read it.
        request_id: What made it; None for an upload.
    """
    values = _row_of(file.key, key_id, file.content_type, lifecycle)
    expires_at = None if lifecycle.seconds is None else now() + lifecycle.seconds
    row = values | {"size": file.size, "sha256": file.sha256, "request_id": request_id, "expires_at": expires_at}
    await connection.execute(insert(table).values(row))


class Files:
    """The rows of files."""

    def __init__(self, database: Database) -> None:
        """Use a database that is open."""
        self.database = database

    @uninterrupted
    async def begin(self, key: str, key_id: str, content_type: str, lifecycle: Lifecycle) -> None:
        """Record a file that is to be uploaded. Nobody can read it before it is finished."""
        row = _row_of(key, key_id, content_type, lifecycle) | {"expires_at": now() + UPLOAD_SECONDS}
        async with self.database.transaction() as connection:
            await connection.execute(insert(table).values(row))

    @uninterrupted
    async def claim(self, key: str, writer: str, seconds: float) -> bool:
        """Let one call alone write an upload, for so long; the same again to go on. False where it may not."""
        free = or_(table.c.writer.is_(None), table.c.writer == writer, table.c.writing_until <= now())
        claimed = update(table).where(_coming_in(key), free).values(writer=writer, writing_until=now() + seconds)
        async with self.database.transaction() as connection:
            return bool((await connection.execute(claimed)).rowcount)

    @uninterrupted
    async def release(self, key: str, writer: str) -> None:
        """Let others write an upload that this call had claimed."""
        mine = update(table).where(table.c.key == key, table.c.writer == writer)
        async with self.database.transaction() as connection:
            await connection.execute(mine.values(writer=None, writing_until=None))

    @uninterrupted
    async def finish(self, key: str, size: int, sha256: str, writer: str | None = None) -> bool:
        """Record that a file is whole; its life begins.

        Args:
            key: The file's key.
            size: Its length in bytes.
            sha256: Its hash.
            writer: Who has claimed it; None where nobody has.

        Returns:
            False where it is whole already, another writes it, or it has expired meanwhile: it is being swept.
        """
        mine = update(table).where(_coming_in(key), table.c.writer == writer)
        values = {"size": size, "sha256": sha256, "created_at": now(), "expires_at": now() + table.c.lifetime}
        async with self.database.transaction() as connection:
            done = await connection.execute(mine.values(values | {"writer": None, "writing_until": None}))
            return bool(done.rowcount)

    @uninterrupted
    async def get(self, key: str) -> FileRecord | None:
        """What is recorded of a file, whole or not, expired or not."""
        async with self.database.read() as connection:
            row = (await connection.execute(_files().where(table.c.key == key))).one_or_none()
        return FileRecord.from_row(row) if row else None

    @uninterrupted
    async def of_request(self, request_id: str) -> list[FileRecord]:
        """The files that a request made."""
        async with self.database.read() as connection:
            rows = await connection.execute(_files().where(table.c.request_id == request_id))
            return [FileRecord.from_row(row) for row in rows]

    @uninterrupted
    async def set_acl(self, key: str, acl: Acl) -> None:
        """Change who may read a file."""
        async with self.database.transaction() as connection:
            await connection.execute(update(table).where(table.c.key == key).values(acl=acl.model_dump_json()))

    @uninterrupted
    async def forget(self, keys: Sequence[str]) -> None:
        """Drop the rows of files whose bytes are gone."""
        async with self.database.transaction() as connection:
            await connection.execute(delete(table).where(table.c.key.in_(keys)))

    @uninterrupted
    async def expired(self, limit: int = SWEEP_BATCH) -> list[str]:
        """Keys of the files that have expired and uploads that were given up longest ago. None can be finished now."""
        oldest = select(table.c.key).where(table.c.expires_at <= now()).order_by(table.c.expires_at).limit(limit)
        # Written as they are: a ``finish`` on its way has either come first, or waits and sees that it is too late.
        found = update(table).where(table.c.key.in_(oldest.with_for_update(skip_locked=True)))
        found = found.values(expires_at=table.c.expires_at).returning(table.c.key)
        async with self.database.transaction() as connection:
            return list((await connection.execute(found)).scalars())

    @uninterrupted
    async def expire(self, keys: Sequence[str]) -> None:
        """Hide files whose bytes are about to go. What becomes of them then, the next sweep finds them."""
        async with self.database.transaction() as connection:
            await connection.execute(update(table).where(table.c.key.in_(keys)).values(expires_at=now()))

    @uninterrupted
    async def expire_older_than(self, seconds: float, limit: int = SWEEP_BATCH) -> None:
        """Let a batch of files expire that have no lifetime, the oldest first."""
        endless = and_(table.c.expires_at.is_(None), table.c.created_at <= now() - seconds)
        oldest = select(table.c.key).where(endless).order_by(table.c.created_at).limit(limit)
        expiring = update(table).where(table.c.key.in_(oldest.with_for_update(skip_locked=True)))
        async with self.database.transaction() as connection:
            await connection.execute(expiring.values(expires_at=now()))

    @uninterrupted
    async def unknown(self, keys: Sequence[str]) -> list[str]:
        """Which of these keys have no row."""
        known: set[str] = set()
        async with self.database.read() as connection:
            for start in range(0, len(keys), SWEEP_BATCH):
                rows = await connection.execute(
                    select(table.c.key).where(table.c.key.in_(keys[start : start + SWEEP_BATCH]))
                )
                known.update(rows.scalars())
        return [key for key in keys if key not in known]

    @uninterrupted
    async def defaults(self, key_id: str) -> Lifecycle:
        """The lifecycle of a key's new files where nothing else is said."""
        query = select(storage_settings.c.lifecycle).where(storage_settings.c.key_id == key_id)
        async with self.database.read() as connection:
            text = (await connection.execute(query)).scalar_one_or_none()
        return Lifecycle.parse(text) if text else Lifecycle()

    @uninterrupted
    async def set_defaults(self, key_id: str, lifecycle: Lifecycle) -> None:
        """Replace a key's defaults."""
        async with self.database.transaction() as connection:
            await connection.execute(delete(storage_settings).where(storage_settings.c.key_id == key_id))
            await connection.execute(insert(storage_settings).values(key_id=key_id, lifecycle=lifecycle.dump()))

    async def lifecycle(self, key_id: str, header: str | None) -> Lifecycle:
        """What a request's lifecycle header says for a key, over that key's defaults.

        Raises:
            BadRequest: The header is malformed.
        """
        said = Lifecycle.parse(header) if header is not None else Lifecycle()
        return said.over(await self.defaults(key_id))


class Ownership:
    """Whether a storage and a database belong together.

    Beside a wrong, empty or restored database all files would look like nobody's. So the storage holds a mark that is
    made anew now and then; the database knows all that it has made, and not one from after it was copied.
    """

    def __init__(self, database: Database, storage: FileStorage) -> None:
        """Compare the two."""
        self._marks = Secrets(database)
        self._storage = storage

    async def confirm(self) -> bool:
        """Whether they belong together for certain. A storage without a mark gets one, and belongs here from then."""
        mark = await self._storage.mark()
        known = [each.value.hex() for each in await self._marks.of(STORAGE_OWNER)]
        if mark is not None and mark not in known:
            logger.error(
                "the file storage belongs to another database, or to a newer state of this one: files without a row "
                "stay. Correct SVD_DATABASE_URL or SVD_STORAGE_URL; after restoring a copy of the database see "
                "'Restoring' in the README"
            )
            return False
        await self._storage.set_mark((await self._marks.rotate(STORAGE_OWNER)).value.hex())
        return mark is not None


class Sweeper:
    """Deletes what nobody has a right to any more, a little at a time.

    A file is nobody's that was stored more than a day ago and has no row: its attempt was lost before its result was
    recorded. Neither are parts so old anybody's. That takes a storage of which it is certain that it is the database's.
    """

    def __init__(self, files: Files, storage: FileStorage, keep_seconds: float = 0.0) -> None:
        """Sweep both.

        Args:
            files: The rows.
            storage: The bytes.
            keep_seconds: How long files are kept that have no lifetime of their own; 0 for ever.
        """
        self._files = files
        self._storage = storage
        self._keep_seconds = keep_seconds
        self._ownership = Ownership(files.database, storage)
        self._listing: AsyncGenerator[list[str], None] | None = None
        self._next_at = time.monotonic() + CAREFUL_SECONDS

    async def sweep(self) -> bool:
        """Delete a batch of each kind; answer whether there may be more that has expired."""
        if self._keep_seconds:
            await self._files.expire_older_than(self._keep_seconds)
        swept = await sweep(self._files, self._storage)
        await self._sweep_orphans()
        return swept >= SWEEP_BATCH

    async def _sweep_orphans(self) -> None:
        """Look at the next files of the list of all, which begins anew some time after its end."""
        if self._listing is None:
            if time.monotonic() < self._next_at:
                return
            self._next_at = time.monotonic() + CAREFUL_SECONDS
            if not await self._ownership.confirm():
                return
            self._next_at = time.monotonic() + ORPHANS_SECONDS
            self._listing = self._storage.older_than(ORPHAN_SECONDS)
        keys = None
        try:
            keys = await anext(self._listing, None)
        finally:
            if keys is None:
                self._listing = None
        if unknown := await self._files.unknown(keys or []):
            gone, _ = await delete_each(unknown, self._storage.delete)
            logger.warning("%d files and parts that were nobody's have been deleted", len(gone))


async def sweep(files: Files, storage: FileStorage) -> int:
    """Delete one batch of what has expired, the bytes first; answer how many files it was."""

    async def delete_with_parts(key: str) -> None:
        await storage.discard(upload_of(key))
        await storage.delete(key)

    gone, kept = await delete_each(await files.expired(), delete_with_parts)
    await files.forget(gone)
    if kept:
        logger.warning("%d expired files could not be deleted", len(kept))
        await files.expire(kept)  # anew: they stand in nobody's way
    return len(gone)


async def delete_each(keys: Sequence[str], delete_one: Callable[[str], Awaitable[None]]) -> tuple[list[str], list[str]]:
    """Delete files; answer which went, and which were tried in vain. A storage that is away is soon given up."""
    gone: list[str] = []
    kept: list[str] = []
    for key in keys:
        try:
            await delete_one(key)
            gone.append(key)
        except StorageUnavailable:
            kept.append(key)
            if len(kept) == MOST_FAILURES:
                break
    return gone, kept


def upload_of(key: str) -> str:
    """Under which name the parts of a file are kept while it comes in: the random part of its key."""
    return key.split("/")[1]


def _row_of(key: str, key_id: str, content_type: str, lifecycle: Lifecycle) -> dict[str, Any]:
    return {
        "key": key,
        "key_id": key_id,
        "content_type": content_type,
        "created_at": now(),
        "lifetime": lifecycle.seconds,
        "acl": lifecycle.acl.model_dump_json() if lifecycle.acl else None,
    }


def _coming_in(key: str) -> ColumnElement[bool]:
    return and_(
        table.c.key == key, table.c.size.is_(None), or_(table.c.expires_at.is_(None), table.c.expires_at > now())
    )


def _files() -> Select[Any]:
    expired = and_(table.c.expires_at.is_not(None), table.c.expires_at <= now())
    return select(table, expired.label("expired"))
