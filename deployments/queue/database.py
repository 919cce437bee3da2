"""The database: how it is opened, brought to the schema that this code expects, read and written.

    store, files, webhooks, … ──▶ Database.read() | Database.transaction() ──▶ SQLite or PostgreSQL

What the drivers raise when it cannot be reached leaves here as ``Unavailable``. So does what takes too long: a
PostgreSQL that hangs holds up nobody for more than about six seconds, and its connections are given up with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, func, make_url, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from deployments.errors import Unavailable

logger = logging.getLogger(__name__)

SQLITE_BUSY_SECONDS = 10
MIGRATION_LOCK = 0x5BD5E47E
"""Any number, as long as nobody else's lock has it."""

CALL_SECONDS = 4.0
"""How long a call may take, from waiting for a connection to the commit. A driver takes two more to give one up."""

SERVER_SECONDS = 5
"""When PostgreSQL itself ends a statement, a wait for a lock, or a transaction of which it hears no more."""

POOL_SIZE = 12
"""Connections to PostgreSQL of one process."""

_SESSION = {
    "application_name": "svd-serve",
    "statement_timeout": f"{SERVER_SECONDS}s",
    "idle_in_transaction_session_timeout": f"{SERVER_SECONDS}s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    # A plan that is kept from when a table was small reads it whole when it is not: planning anew takes less.
    "plan_cache_mode": "force_custom_plan",
    "jit": "off",  # our statements are short, and compiling one takes longer than running it
}
_AWAY = (OperationalError, InterfaceError, PoolTimeoutError, OSError)
_AWAY_STATES = ("08", "25006", "40", "53", "55", "57", "58", "0A000")
"""PostgreSQL's codes, or what they begin with, for: connection, read only, rolled back, resources, not in the state for
it, stopped by an operator or a time-out, system; and a prepared statement that a migration has made stale."""

P = ParamSpec("P")
T = TypeVar("T")


def uninterrupted(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let a database call end before its caller's cancellation takes effect.

    Callers are cancelled all the time (a client goes away, a dispatcher stops). Cut off in the middle, a call would
    leave its connection in an unknown state, and its caller in doubt about the commit.
    """

    @functools.wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        task = asyncio.create_task(method(*args, **kwargs))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            while not task.done():  # some frameworks cancel again and again until they are obeyed
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
            raise

    return call


class Database:
    """A pool of connections to a database of the newest schema."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Use an engine from ``open_engine``."""
        self._engine = engine
        self._reader = engine.execution_options(isolation_level="AUTOCOMMIT")
        # SQLite writes one transaction at a time, and lets who waits try again and again, in no order: in a process
        # that has many, some would wait for seconds.
        writers = 1 if engine.dialect.name == "sqlite" else POOL_SIZE
        self._in_line = asyncio.Semaphore(writers)
        self._closed = False
        self._users = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @classmethod
    async def open(cls, url: str) -> Self:
        """Open a database by its URL, migrated to the newest schema.

        Raises:
            Unavailable: It cannot be reached.
        """
        engine = open_engine(url)
        with _away_is("The request store cannot be opened"):
            await migrate(engine)
        return cls(engine)

    async def close(self) -> None:
        """Close every connection, once those in use have been given back. Nothing is read or written any more."""
        self._closed = True
        await self._idle.wait()
        with contextlib.suppress(TimeoutError):  # what hangs is dropped
            async with self._in_time():
                await self._engine.dispose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A connection whose statements are committed together at the end, or not at all.

        Raises:
            Unavailable: The database cannot be written.
        """
        with _away_is("The request store cannot be written at the moment"):
            async with self._in_use(), self._in_time(), self._turn(), self._engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading.

        Raises:
            Unavailable: The database cannot be read.
        """
        with _away_is("The request store cannot be read at the moment"):
            async with self._in_use(), self._in_time(), self._reader.connect() as connection:
                yield connection

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """A place among the writers. Who is at the head may wait for another process: not all, one after the other."""
        async with asyncio.timeout(SQLITE_BUSY_SECONDS):
            await self._in_line.acquire()
        try:
            yield
        finally:
            self._in_line.release()

    def _in_time(self) -> asyncio.Timeout:
        """SQLite waits for nobody but its other writers, and that it limits by itself."""
        return asyncio.timeout(None if self._engine.dialect.name == "sqlite" else CALL_SECONDS)

    @asynccontextmanager
    async def _in_use(self) -> AsyncIterator[None]:
        """Keep ``close`` waiting: a connection that came back after it would never be closed."""
        if self._closed:
            raise Unavailable("The request store is closed")
        self._users += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._idle.set()


async def serialise(connection: AsyncConnection, lock: int) -> None:
    """Let one transaction at a time go on from here. SQLite's are so from their beginning."""
    if connection.dialect.name == "postgresql":
        await connection.execute(select(func.pg_advisory_xact_lock(lock)))


async def serialise_by(connection: AsyncConnection, name: str) -> None:
    """Let one transaction at a time go on from here of those that say this name."""
    await serialise(connection, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True))


def open_engine(url: str) -> AsyncEngine:
    """Open a database by its SQLAlchemy URL; nothing is connected yet."""
    parsed = make_url(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    # Parameters are the callers' pictures and prompts: they have no place in an error that is logged.
    engine = create_async_engine(parsed, hide_parameters=True, **({} if sqlite else _postgresql_options()))
    if sqlite:
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
    else:
        event.listen(engine.sync_engine, "checkout", _check_open)
    return engine


def _postgresql_options() -> dict[str, Any]:
    return {
        "pool_size": POOL_SIZE,
        "max_overflow": 0,
        "pool_timeout": CALL_SECONDS,
        "pool_recycle": 1800,
        "connect_args": {"timeout": CALL_SECONDS, "server_settings": _SESSION},
    }


def _check_open(connection: DBAPIConnection, entry: ConnectionPoolEntry, fairy: PoolProxiedConnection) -> None:
    # Tells what a ping of each connection before its use would tell, and costs no way to the server and back.
    driver: Any = connection.driver_connection
    if driver.is_closed():
        raise DisconnectionError("the server has closed this connection")


@contextlib.contextmanager
def _away_is(message: str) -> Iterator[None]:
    """Say so where a database cannot be used; other errors are ours."""
    try:
        yield
    except Exception as error:
        if not _is_away(error):
            raise
        raise Unavailable(message) from error


def _is_away(error: Exception) -> bool:
    """Whether a driver says that its database cannot be reached, is full, is read only or takes too long."""
    raised = error.orig if isinstance(error, DBAPIError) else error
    if raised is not None and isinstance(raised.__cause__, ValueError):  # asyncpg: it cannot encode a parameter
        return False
    state = getattr(raised, "sqlstate", None) or ""
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    return lost or isinstance(error, _AWAY) or state.startswith(_AWAY_STATES)


def refuse_out_of_reach(url: str, nodes: int) -> None:
    """Tell a database that is a file of one machine from one that several machines can use.

    Args:
        url: The database's.
        nodes: How many machines may want it.

    Raises:
        ValueError: It is such a file, and there are several.
    """
    if nodes > 1 and make_url(url).get_backend_name() == "sqlite":
        raise ValueError(
            f"SQLite is a file of one machine, and this Ray cluster has {nodes} nodes: "
            "name a PostgreSQL in SVD_DATABASE_URL (postgresql+asyncpg://…)"
        )


async def migrate(engine: AsyncEngine) -> None:
    """Bring the schema to the newest version. Safe to call from several processes at once.

    A schema that is newer than this code stays as it is.
    """
    if engine.dialect.name == "sqlite":
        await asyncio.to_thread(_switch_to_wal, str(engine.url.database))
    async with engine.begin() as connection:
        await connection.run_sync(_upgrade)


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # another process may be at it for long
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
        connection.exec_driver_sql(
            f"SET LOCAL lock_timeout = '{SERVER_SECONDS}s'"
        )  # who waits for a table holds up all
    config = revisions(connection)
    current = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is None or current in known:
        command.upgrade(config, "head")
    else:  # in a rolling upgrade, what began before goes on: revisions only add
        logger.warning("A newer version has migrated the database, to revision %s; it is used as it is", current)


def revisions(connection: Connection) -> Config:
    """The schema's history, as Alembic wants to know it."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def _switch_to_wal(database: str) -> None:
    """Let readers and a writer work side by side. The file remembers it.

    Of several processes that do so at once one may be told at once that the database is locked, whatever its timeout.
    """
    give_up = time.monotonic() + SQLITE_BUSY_SECONDS
    with contextlib.closing(sqlite3.connect(database, timeout=SQLITE_BUSY_SECONDS)) as connection:
        while True:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > give_up:
                    raise
            time.sleep(0.02)


def _prepare_sqlite(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
    # The driver would begin transactions by itself and too late; _begin_sqlite does it instead.
    raw: Any = connection
    raw.isolation_level = None
    for pragma in (f"busy_timeout={SQLITE_BUSY_SECONDS * 1000}", "synchronous=FULL", "foreign_keys=ON"):
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA {pragma}")
        cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later cannot wait for another writer: take the lock at once.
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
