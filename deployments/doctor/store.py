"""The database, as it is, and the queue in it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from pathlib import Path

import psutil

from deployments.doctor.findings import SECONDS, Finding, fail, ok, warn
from deployments.errors import Unavailable
from deployments.queue.diagnosis import Diagnosis, Postgres, Queue, Schema, Tables, Waiting, shown, sqlite_file
from deployments.words import duration, many

Clock = Callable[[], float]

SKEW_WARN, SKEW_FAIL = 2.0, 60.0
"""Seconds between two clocks. Receivers of webhooks refuse signatures that are 300 s off."""

READ_PER_SECOND = 20 * 1024**2
LONGEST_READING_SECONDS = 120.0
OLDEST_POSTGRES = 13
MOST_DEAD = 10_000
LONG_TRANSACTION_SECONDS = 60.0
LONG_WAIT_SECONDS = 600.0
LONG_RUN_SECONDS = 3600.0

_NETWORK = "nfs nfs4 cifs smb3 smbfs afs 9p ceph glusterfs lustre beegfs"
_FUSE = "glusterfs sshfs s3fs rclone gcsfuse blobfuse2 juicefs ceph ceph-fuse smbnetfs"
NETWORK_FILE_SYSTEMS = {*_NETWORK.split(), *(f"fuse.{name}" for name in _FUSE.split())}

_ADVICE = {
    "password": "correct the password in SVD_DATABASE_URL",
    "role": "correct the user in SVD_DATABASE_URL, or make that role",
    "does not exist": "make it (createdb), or correct the name in SVD_DATABASE_URL",
    "no such table": "stop the service and restore a backup: tables have been dropped",
    "too many": "raise PostgreSQL's max_connections, or end idle connections",
    "permission denied": "grant the user of SVD_DATABASE_URL its rights on the tables",
    "not a database": "stop the service, keep a copy of the file, and restore a backup",
    "malformed": "stop the service, keep a copy of the file, and restore a backup (or try sqlite3's .recover)",
    "locked": "another process holds a transaction open: find it with fuser, and end it",
    "readonly": "make the file and its directory writable for this user, and the disk as well",
    "read-only": "make PostgreSQL writable: is it a standby, or has default_transaction_read_only been set?",
    "unable to open": "make the file and its directory readable and writable for this user",
    "i/o error": "see disk space, below: a full disk does this, and a failing one (dmesg says so)",
    "full": "free some space on its disk; what was accepted is safe, and the service goes on by itself",
    "space": "free some space on its disk; what was accepted is safe, and the service goes on by itself",
}
"""A word of the driver's → what to do."""


def advice_for(reason: str, file: Path | None) -> str:
    """What to do about something that a driver says. ``file`` is SQLite's."""
    unknown = (
        f"look at {file} and its disk" if file else "start PostgreSQL, or correct host and port in SVD_DATABASE_URL"
    )
    return next((advice for word, advice in _ADVICE.items() if word in reason.lower()), unknown)


async def check_database(url: str, clock: Clock = time.time) -> AsyncIterator[Finding]:
    """Whether the database is there, is what this code expects, takes writes and keeps them."""
    file = sqlite_file(url)
    if file is not None:
        if not file.exists():
            yield warn("database", f"there is none at {file}", "svd-serve serve makes it, or set SVD_DATA_DIR to yours")
            return
        yield file_system(file, [(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)])
    try:
        async with Diagnosis.of(url) as diagnosis:
            async for finding in _look(diagnosis, url, clock):
                yield finding
    except Unavailable as error:
        yield fail("database", f"{shown(url)}: {error.message}", advice_for(error.message, file))


async def _look(diagnosis: Diagnosis, url: str, clock: Clock) -> AsyncIterator[Finding]:
    tables = await diagnosis.tables()
    yield ok("database", f"{shown(url)} answers")
    yield _schema(tables)
    yield skew("database clock", await diagnosis.clock_skew(clock))
    if tables.schema != Schema.EMPTY and not tables.missing:
        await diagnosis.write()
        yield ok("database writes", "it takes them")
    if diagnosis.is_sqlite:
        async for finding in _sqlite(diagnosis):
            yield finding
    else:
        for finding in _postgres(await diagnosis.postgres()):
            yield finding


def file_system(file: Path, mounts: Collection[tuple[str, str]]) -> Finding:
    """Whether a SQLite file is where SQLite's locks work. Each mount is a directory and the type of what is there."""
    place = file.resolve()
    holding = [(len(Path(point).parts), kind) for point, kind in mounts if place.is_relative_to(point)]
    kind = max(holding, default=(0, "unknown"))[1]
    if kind in NETWORK_FILE_SYSTEMS:
        advice = "move SVD_DATA_DIR to a local disk, or use PostgreSQL: locks over a network lose requests"
        return fail("database file", f"{file} is on a network file system ({kind})", advice)
    return ok("database file", f"on a local file system ({kind})")


def _schema(tables: Tables) -> Finding:
    name = "database schema"
    if tables.missing:
        advice = "restore a backup, or correct SVD_DATABASE_URL: these tables are not as svd-serve left them"
        return fail(name, f"it says {tables.revision}, but lacks {', '.join(tables.missing[:5])}", advice)
    match tables.schema:
        case Schema.EMPTY:
            return warn(name, "the database is empty", "svd-serve migrate, or start the service")
        case Schema.OLDER:
            advice = "svd-serve migrate, or start this version of the service: it does so by itself"
            return warn(name, f"revision {tables.revision} is older than this code", advice)
        case Schema.NEWER:
            advice = "finish the upgrade: install the version that migrated it here too"
            return warn(name, f"revision {tables.revision} is newer than this code knows", advice)
    return ok(name, f"revision {tables.revision} is current")


def skew(name: str, seconds: float) -> Finding:
    """Whether another clock goes like ours. ``seconds`` is by how much it is ahead."""
    if abs(seconds) < SKEW_WARN:
        return ok(name, "goes like this machine's")
    says = f"{duration(abs(seconds))} {'ahead of' if seconds > 0 else 'behind'} this machine's"
    advice = "set both machines' clocks by NTP (chronyc tracking shows how far each is off)"
    return (fail if abs(seconds) >= SKEW_FAIL else warn)(name, says, advice)


async def _sqlite(diagnosis: Diagnosis) -> AsyncIterator[Finding]:
    version, journal = await diagnosis.sqlite_mode()
    if journal == "wal":
        yield ok("SQLite", f"{version}, in WAL mode")
    else:
        yield warn(
            "SQLite", f"its journal is {journal}, not WAL", "restart the service, which sets it: readers block writers"
        )


async def check_file(url: str) -> AsyncIterator[Finding]:
    """Whether SQLite's file is whole. All of it is read."""
    file = sqlite_file(url)
    if file is None or not file.exists():
        return
    try:
        async with Diagnosis.of(url) as diagnosis:
            damage = await diagnosis.sqlite_damage()
    except Unavailable as error:
        yield fail("SQLite", f"the file cannot be read: {error.message}", advice_for(error.message, file))
        return
    if damage:
        yield fail("SQLite", f"the file is damaged: {damage}", _ADVICE["malformed"])
    else:
        yield ok("SQLite", "the file is whole")


def reading_seconds(file: Path | None) -> float:
    """How long it may take to read a file, within reason."""
    size = file.stat().st_size if file and file.exists() else 0
    return min(SECONDS + size / READ_PER_SECOND, LONGEST_READING_SECONDS)


def _postgres(found: Postgres) -> Iterator[Finding]:
    major = int(found.version.split(".")[0])
    if major < OLDEST_POSTGRES:
        yield warn("PostgreSQL", f"version {found.version} gets no repairs any more", "upgrade PostgreSQL")
    else:
        yield ok("PostgreSQL", f"version {found.version}")
    for setting in found.unsafe:
        advice = f"set {setting} = on in postgresql.conf: a crash may now lose what was acknowledged"
        yield fail("PostgreSQL", f"{setting} is off", advice)
    yield _vacuum(found)
    yield _transactions(found)
    if found.connections > 0.9 * found.most_connections:
        says = f"{found.connections} of {found.most_connections} connections are in use"
        yield warn("PostgreSQL", says, _ADVICE["too many"])


def _vacuum(found: Postgres) -> Finding:
    name = "vacuum"
    if not found.autovacuum:
        advice = "set autovacuum = on (and autovacuum_enabled on the table requests): without it claims slow down"
        return fail(name, "autovacuum is off", advice)
    says = f"{found.dead:,} dead and {found.live:,} living rows of requests"
    if found.dead > max(MOST_DEAD, found.live):
        return warn(name, says, "VACUUM requests; if they stay, end the oldest transaction")
    return ok(name, says)


def _transactions(found: Postgres) -> Finding:
    oldest = found.oldest_transaction
    if oldest is None or oldest < LONG_TRANSACTION_SECONDS:
        return ok("transactions", "none is old")
    advice = "end it: pid and query stand in pg_stat_activity (or pg_prepared_xacts); vacuum waits for it"
    return warn("transactions", f"the oldest is open since {duration(oldest)}", advice)


# ---------------------------------------------------------------- the queue


async def check_queue(url: str, served: Collection[str]) -> AsyncIterator[Finding]:
    """What waits, what hangs, what failed. ``served`` are the models of the configuration; none where it is unknown."""
    file = sqlite_file(url)
    if file is not None and not file.exists():
        return
    try:
        async with Diagnosis.of(url) as diagnosis:
            tables = await diagnosis.tables()
            if tables.missing or tables.schema in (Schema.EMPTY, Schema.OLDER):
                yield warn("queue", "not looked at: the schema is not this code's", "see database schema, above")
                return
            for finding in read_queue(await diagnosis.queue(), served):
                yield finding
    except Unavailable:
        yield warn("queue", "not looked at: the database does not answer", "see database, above")


def read_queue(queue: Queue, served: Collection[str]) -> Iterator[Finding]:
    """What the figures of a queue mean."""
    yield _work(queue)
    for waiting in queue.waiting:
        yield _waits(waiting, served)
    if queue.dispatchers and queue.orphaned:
        says = f"{many(queue.orphaned, 'request')} run under a dispatcher that is gone"
        yield warn("queue", says, "look again in ten seconds: a living dispatcher puts them back by itself")
    if (queue.longest_running or 0.0) > LONG_RUN_SECONDS:
        says = f"a request has been running for {duration(queue.longest_running)}"
        yield warn("queue", says, "svd-serve requests list --status IN_PROGRESS, and cancel it if it is stuck")
    if queue.suspects:
        says = f"replicas have died under {', '.join(queue.suspects)}"
        yield warn(
            "queue", says, f"svd-serve requests show {queue.suspects[0]}; it runs alone, and ends if they die on"
        )
    yield from _webhooks(queue)
    yield _failures(queue)


def _work(queue: Queue) -> Finding:
    waiting = sum(each.count for each in queue.waiting)
    says = f"{waiting:,} waiting, {queue.running:,} running, {many(queue.dispatchers, 'dispatcher')} alive"
    if queue.dispatchers or not waiting + queue.running:
        return ok("queue", says)
    return fail("queue", says, "start the service (svd-serve serve): all of them go on by themselves")


def _waits(waiting: Waiting, served: Collection[str]) -> Finding:
    paused = f", {waiting.pausing} of them lost and paused" if waiting.pausing else ""
    says = f"{waiting.model}: {waiting.count:,} waiting{paused}, the oldest for {duration(waiting.oldest_seconds)}"
    if served and waiting.model not in served:
        return fail("queue", f"{says}; nothing serves it", "serve that model again, or svd-serve requests cancel each")
    if waiting.pausing:
        return warn(
            "queue", says, "svd-serve requests list --status IN_QUEUE, then show: the log says why they were lost"
        )
    if waiting.oldest_seconds > LONG_WAIT_SECONDS:
        return warn("queue", says, "look at the replicas, below; more of them (num_replicas) work the queue off")
    return ok("queue", says)


def _webhooks(queue: Queue) -> Iterator[Finding]:
    if queue.overdue:
        says = f"{many(queue.overdue, 'webhook')} overdue, the first by {duration(queue.overdue_seconds)}"
        yield warn("webhooks", says, "is the service running? svd-serve webhooks list --state DUE shows their hosts")
    if queue.undelivered:
        says = f"{many(queue.undelivered, 'webhook')} of the last hour could not be delivered"
        advice = "svd-serve webhooks list --state UNDELIVERED says why; then webhooks redeliver --undelivered"
        yield warn("webhooks", says, advice)
    if not queue.overdue + queue.undelivered:
        yield ok("webhooks", "none is overdue")


def _failures(queue: Queue) -> Finding:
    failed = sum(queue.failures.values())
    says = f"{failed:,} of {many(queue.ended, 'request')} failed in the last hour"
    if not failed:
        return ok("failures", says)
    kinds = ", ".join(f"{count} {kind}" for kind, count in queue.failures.items())
    return warn("failures", f"{says} ({kinds})", "svd-serve requests list --failed --since 1h; then requests retry")
