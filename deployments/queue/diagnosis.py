"""What a database says of its own health, and of the queue in it.

open_existing ──▶ Database, of the newest schema                         for the operator's commands
Diagnosis ──▶ schema, clock, a write ──▶ Postgres | SQLite ──▶ Queue     for ``svd-serve doctor``, which mends nothing
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import uuid4

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    Connection,
    String,
    and_,
    case,
    delete,
    func,
    insert,
    inspect,
    literal,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.errors import BadRequest, NotFound, Unavailable
from deployments.queue.database import Database, open_engine, revisions
from deployments.queue.outbox import WebhookState
from deployments.queue.tables import dispatchers, metadata, now, requests, webhooks
from deployments.queue.turns import in_progress, in_queue

PATIENCE_MS = 3000
"""How long SQLite waits for another writer here: less than a check may take, so that it is told what was waited for."""

OVERDUE_SECONDS = 60.0
RECENT_SECONDS = 3600.0
MOST_NAMED = 3

_columns = requests.c


class Schema(StrEnum):
    """A database's tables beside those that this code was written for."""

    EMPTY = "empty"
    OLDER = "older"
    CURRENT = "current"
    NEWER = "newer"


@dataclass(frozen=True)
class Tables:
    """What was found of the schema: its revision, and what is missing though the revision says that it is there."""

    schema: Schema
    revision: str | None
    missing: Sequence[str] = ()


@dataclass(frozen=True)
class Postgres:
    """What a PostgreSQL server says of itself, and of the hot table.

    Attributes:
        version: Its number, such as ``15.6``.
        unsafe: Settings that are off, though without them a crash may lose what was acknowledged.
        autovacuum: Whether the server, and the table, are vacuumed.
        dead, live: Rows of ``requests``, as the statistics have them.
        oldest_transaction: Seconds for which the oldest transaction has kept vacuum from its work; None without one.
        connections, most_connections: In use, and allowed.
    """

    version: str
    unsafe: Sequence[str]
    autovacuum: bool
    dead: int
    live: int
    oldest_transaction: float | None
    connections: int
    most_connections: int


@dataclass(frozen=True)
class Waiting:
    """What waits for one model. ``pausing`` of them were lost and wait for their next attempt."""

    model: str
    count: int
    oldest_seconds: float
    pausing: int


@dataclass(frozen=True)
class Queue:
    """What the rows say of the work.

    Attributes:
        waiting: By model.
        running: Requests in progress.
        longest_running: Seconds of the longest of them; None without any.
        dispatchers: Those whose lease is good.
        orphaned: Requests in progress that no living dispatcher holds.
        suspects: Some requests that wait, and under which a replica has died.
        overdue, overdue_seconds: Webhooks that should have been sent, and for how long the first has been waiting.
        undelivered: Webhooks of the last hour's requests that could not be delivered.
        failures: Error type → requests that ended by a failure of ours in the last hour.
        ended: Requests that ended in the last hour.
    """

    waiting: Sequence[Waiting]
    running: int
    longest_running: float | None
    dispatchers: int
    orphaned: int
    suspects: Sequence[str]
    overdue: int
    overdue_seconds: float | None
    undelivered: int
    failures: Mapping[str, int]
    ended: int


def sqlite_file(url: str) -> Path | None:
    """Where a SQLite database is; None for any other.

    Raises:
        BadRequest: It is no URL of a database.
    """
    parsed = _parse(url)
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


def shown(url: str) -> str:
    """A URL of a database without its password, and without the parameters, which may hold another.

    Raises:
        BadRequest: It is no URL of a database.
    """
    return str(_parse(url).set(query={}).render_as_string(hide_password=True))


def secrets_of(url: str) -> list[str]:
    """What must not be shown of a URL.

    Raises:
        BadRequest: It is no URL of a database.
    """
    parsed = _parse(url)
    found = [str(parsed.password or ""), *(str(value) for value in parsed.query.values())]
    return [each for each in found if each]


def _parse(url: str) -> Any:
    try:
        return make_url(url)
    except ArgumentError:
        raise BadRequest("SVD_DATABASE_URL is no URL of a database") from None  # it may hold a password


async def open_existing(url: str) -> Database:
    """Open a database of ours that is there, migrated to the newest schema.

    Raises:
        NotFound: There is none, or it is empty, and it is not made here: the environment may name the wrong one.
        Unavailable: It cannot be opened.
    """
    file = sqlite_file(url)
    if file and not file.exists():
        raise NotFound(f"there is no database at {file}: is SVD_DATA_DIR or SVD_DATABASE_URL the service's?")
    async with Diagnosis.of(url) as diagnosis:
        if await diagnosis.revision() is None:
            raise NotFound(
                f"{shown(url)} is no database of svd-serve: is SVD_DATA_DIR or SVD_DATABASE_URL the service's?"
            )
    try:
        return await Database.open(url)
    except Unavailable as error:
        raise Unavailable(_reason(error)) from error
    except Exception as error:  # drivers raise classes of their own where they are refused
        raise Unavailable(f"the database cannot be opened: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What went wrong, in the words of whoever knows best, on one line."""
    while error.__cause__ and not str(getattr(error, "orig", "")):
        error = error.__cause__
    return " ".join(str(getattr(error, "orig", error)).split()) or type(error).__name__


class Diagnosis:
    """One connection to a database, as it is."""

    def __init__(self, connection: AsyncConnection) -> None:
        """Use a connection in autocommit mode."""
        self._connection = connection
        self.is_sqlite = connection.dialect.name == "sqlite"

    @classmethod
    @asynccontextmanager
    async def of(cls, url: str) -> AsyncIterator[Diagnosis]:
        """Look at a database; it must be there.

        Raises:
            Unavailable: It cannot be reached, or something in it is not as it should be, in the driver's words.
        """
        engine = open_engine(url)
        try:
            async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                if connection.dialect.name == "sqlite":
                    await connection.exec_driver_sql(f"PRAGMA busy_timeout={PATIENCE_MS}")
                yield cls(connection)
        except (SQLAlchemyError, OSError) as error:
            raise Unavailable(_reason(error)) from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] == "asyncpg":  # what it raises while it connects
                raise Unavailable(_reason(error)) from error
            raise
        finally:
            await engine.dispose()

    async def tables(self) -> Tables:
        """The schema."""
        return await self._connection.run_sync(_tables)

    async def revision(self) -> str | None:
        """The schema's revision; None in a database that is not ours, or not yet."""
        return await self._connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())

    async def clock_skew(self, clock: Any = time.time) -> float:
        """By how many seconds the database's clock is ahead of ours; what the question took is not counted."""
        before = clock()
        theirs = (await self._connection.execute(select(now()))).scalar_one()
        after = clock()
        return float(theirs - min(max(theirs, before), after))

    async def write(self) -> None:
        """Write something, durably, and remove it: the lease of a dispatcher that has ended already."""
        owner = str(uuid4())
        await self._connection.execute(insert(dispatchers).values(owner=owner, lease_until=0.0))
        await self._connection.execute(delete(dispatchers).where(dispatchers.c.owner == owner))

    async def sqlite_mode(self) -> tuple[str, str]:
        """SQLite's version and how it keeps its journal."""
        version = (await self._connection.exec_driver_sql("SELECT sqlite_version()")).scalar_one()
        return version, str((await self._connection.exec_driver_sql("PRAGMA journal_mode")).scalar_one())

    async def sqlite_damage(self) -> str | None:
        """The first damage that SQLite finds in its file. It reads all of it."""
        found = str((await self._connection.exec_driver_sql("PRAGMA quick_check(1)")).scalar_one())
        return None if found == "ok" else " ".join(found.split())

    async def postgres(self) -> Postgres:
        """What PostgreSQL says of itself."""
        names = ("server_version", "fsync", "full_page_writes", "synchronous_commit", "autovacuum", "max_connections")
        settings = {name: await self._scalar(f"SHOW {name}") for name in names}
        table = (await self._connection.exec_driver_sql(_HOT_TABLE)).one()
        return Postgres(
            version=settings["server_version"].split()[0],
            unsafe=[name for name in ("fsync", "full_page_writes", "synchronous_commit") if settings[name] == "off"],
            autovacuum=settings["autovacuum"] == "on" and not table.excluded,
            dead=table.dead,
            live=table.live,
            oldest_transaction=await self._scalar(_OLDEST_TRANSACTION),
            connections=await self._scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            ),
            most_connections=int(settings["max_connections"]),
        )

    async def _scalar(self, statement: str) -> Any:
        return (await self._connection.exec_driver_sql(statement)).scalar_one()

    async def queue(self) -> Queue:
        """What the rows say of the work."""
        run = self._connection.execute
        at = float((await run(select(now()))).scalar_one())
        alive = list((await run(select(dispatchers.c.owner).where(dispatchers.c.lease_until > at))).scalars())
        running = (await run(_running(alive))).one()
        overdue = (await run(_overdue(at))).one()
        suspects = select(_columns.id).where(in_queue(), _columns.crashes > 0).limit(MOST_NAMED)
        failures = {row.error_type or "-": row.total for row in await run(_failures(at))}
        return Queue(
            waiting=[
                Waiting(row.model, row.total, at - row.oldest, int(row.pausing)) for row in await run(_waiting(at))
            ],
            running=running.total,
            longest_running=None if running.first is None else at - running.first,
            dispatchers=len(alive),
            orphaned=int(running.orphaned or 0),
            suspects=list((await run(suspects)).scalars()),
            overdue=overdue.total,
            overdue_seconds=None if overdue.first is None else at - overdue.first,
            undelivered=(await run(_undelivered(at))).scalar_one(),
            failures=failures,
            ended=(await run(select(func.count()).where(_columns.finished_at >= at - RECENT_SECONDS))).scalar_one(),
        )


_HOT_TABLE = """
    SELECT coalesce(s.n_dead_tup, 0) AS dead, coalesce(s.n_live_tup, 0) AS live,
           coalesce('autovacuum_enabled=false' = ANY(c.reloptions), false) AS excluded
    FROM pg_class c LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid
    WHERE c.oid = to_regclass('requests')
"""
_OLDEST_TRANSACTION = """
    SELECT extract(epoch FROM max(clock_timestamp() - since))::double precision FROM (
        SELECT xact_start AS since FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
        UNION ALL SELECT prepared FROM pg_prepared_xacts WHERE database = current_database()
    ) AS transactions
"""


def _tables(connection: Connection) -> Tables:
    context = MigrationContext.configure(connection)
    revision = context.get_current_revision()
    scripts = ScriptDirectory.from_config(revisions(connection))
    if revision is None:
        return Tables(Schema.EMPTY, None, [] if not inspect(connection).has_table("requests") else ["alembic_version"])
    known = {script.revision for script in scripts.walk_revisions()}
    schema = (
        Schema.CURRENT
        if revision == scripts.get_current_head()
        else Schema.OLDER
        if revision in known
        else Schema.NEWER
    )
    return Tables(schema, revision, [] if schema == Schema.OLDER else _missing(context))


def _missing(context: MigrationContext) -> list[str]:
    """Tables and columns that the code wants and the database has not."""
    found: list[str] = []
    for difference in compare_metadata(context, metadata):
        match difference:
            case ("add_table", table):
                found.append(table.name)
            case ("add_column", _, table, column):
                found.append(f"{table}.{column.name}")
    return found


def _waiting(at: float) -> Any:
    pausing = func.sum(case((_columns.not_before > at, 1), else_=0)).label("pausing")
    sums = (func.count().label("total"), func.min(_columns.created_at).label("oldest"), pausing)
    mine = select(_columns.model, *sums).where(in_queue())
    return mine.group_by(_columns.model).order_by(_columns.model)


def _running(alive: Sequence[str]) -> Any:
    orphaned = func.sum(case((_columns.owner.in_(alive), 0), else_=1)).label("orphaned")
    sums = (func.count().label("total"), func.min(_columns.started_at).label("first"), orphaned)
    return select(*sums).where(in_progress())


def _overdue(at: float) -> Any:
    due = and_(
        webhooks.c.state == literal(WebhookState.DUE, String, literal_execute=True),
        webhooks.c.due_at < at - OVERDUE_SECONDS,
    )
    return select(func.count().label("total"), func.min(webhooks.c.due_at).label("first")).where(due)


def _undelivered(at: float) -> Any:
    recent = and_(_columns.finished_at >= at - RECENT_SECONDS, webhooks.c.state == WebhookState.UNDELIVERED)
    return select(func.count()).select_from(requests.join(webhooks)).where(recent)


def _failures(at: float) -> Any:
    ours = and_(_columns.finished_at >= at - RECENT_SECONDS, _columns.status_code >= 500)
    total = func.count().label("total")
    return select(_columns.error_type, total).where(ours).group_by(_columns.error_type).order_by(total.desc())
