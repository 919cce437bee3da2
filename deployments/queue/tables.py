"""The tables, and time as the database sees it.

``requests`` is the hot table and stays narrow; the JSON of a request stands in ``request_io`` so that a change of state
never rewrites it. ``dispatchers`` holds one lease for each dispatcher rather than one for each request. ``webhooks`` is
the outbox: a row is made with its request, and becomes due in the transaction that ends it. ``replicas`` tells which
processes held a device and how long, so that idle time has a price. Money is in whole nano dollars: sums are exact.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    true,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

metadata = MetaData()

_Serial = BigInteger().with_variant(Integer, "sqlite")

requests = Table(
    "requests",
    metadata,
    Column("seq", _Serial, primary_key=True, comment="Order of arrival; a retried request keeps its place"),
    Column("id", String(36), nullable=False, unique=True),
    Column("endpoint", Text, nullable=False),
    Column("model", Text, nullable=False, comment="The deployment that the request waits for"),
    Column("key_id", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False, comment="0 normal, 1 low: lower goes first"),
    Column("batch_key", Text, nullable=False),
    Column("pixel_frames", BigInteger, nullable=False),
    Column("no_retry", Boolean, nullable=False),
    Column("status", String(11), nullable=False),
    Column("attempt", SmallInteger, nullable=False),
    Column(
        "crashes",
        SmallInteger,
        nullable=False,
        server_default="0",
        comment="Attempts under which a replica's process died; from the first on it runs alone",
    ),
    Column(
        "unbegun",
        SmallInteger,
        nullable=False,
        server_default="0",
        comment="Attempts that were given back before they began; they are none of the ten",
    ),
    Column("not_before", Float, comment="When a lost attempt may be followed by the next"),
    Column("owner", String(36), comment="The dispatcher that holds the current attempt"),
    Column("cancel_requested", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("start_deadline", Float),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("status_code", SmallInteger),
    Column("error", Text),
    Column("error_type", Text),
    Column("inference_seconds", Float, comment="Wall time of the attempt that ended the request"),
    Column("gpu_seconds", Float, comment="This request's share of its batch's time on the device"),
    Column("idempotency_key", Text, comment="Of its caller's choice; a second submit with it is the same request"),
    Column("input_hash", String(64), comment="SHA-256 of what came with that key, in hex"),
    Column("runner_hint", Text),
    Column("store_io", Boolean, nullable=False, server_default=true(), comment="Whether its JSON is kept and shown"),
    Column("lifecycle", Text, comment="How long its files live and who may read them, as JSON; null for the default"),
    Column(
        "previews", SmallInteger, nullable=False, server_default="0", comment="A preview each so many steps; 0, none"
    ),
    Column("gpu_usd_per_hour", Float, comment="What its last attempt's part of a device costs us"),
    Column(
        "cost_nano_usd", BigInteger, nullable=False, server_default="0", comment="What all its attempts have cost us"
    ),
    Column("price_nano_usd", BigInteger, comment="What its success is billed; null on rows of code that did not say"),
    Column("batch_size", SmallInteger, comment="How many had the device together in its last attempt"),
    Column("traceparent", String(55), comment="The trace that it belongs to, as W3C's header says it"),
)
Index(
    "requests_in_lanes",
    requests.c.model,
    requests.c.priority,
    requests.c.key_id,
    requests.c.seq,
    sqlite_where=requests.c.status == "IN_QUEUE",
    postgresql_where=requests.c.status == "IN_QUEUE",
)
Index(
    "requests_alike",
    requests.c.model,
    requests.c.priority,
    requests.c.batch_key,
    requests.c.key_id,
    requests.c.seq,
    sqlite_where=requests.c.status == "IN_QUEUE",
    postgresql_where=requests.c.status == "IN_QUEUE",
)
Index(
    "requests_waiting",
    requests.c.model,
    requests.c.priority,
    requests.c.seq,
    sqlite_where=requests.c.status == "IN_QUEUE",
    postgresql_where=requests.c.status == "IN_QUEUE",
)
Index(
    "requests_running",
    requests.c.owner,
    sqlite_where=requests.c.status == "IN_PROGRESS",
    postgresql_where=requests.c.status == "IN_PROGRESS",
)
Index(
    "requests_running_of_key",
    requests.c.key_id,
    sqlite_where=requests.c.status == "IN_PROGRESS",
    postgresql_where=requests.c.status == "IN_PROGRESS",
)
Index(
    "requests_with_deadline",
    requests.c.start_deadline,
    sqlite_where=(requests.c.status == "IN_QUEUE") & requests.c.start_deadline.is_not(None),
    postgresql_where=(requests.c.status == "IN_QUEUE") & requests.c.start_deadline.is_not(None),
)
Index(
    "requests_waiting_of_key",
    requests.c.key_id,
    requests.c.no_retry,
    sqlite_where=requests.c.status == "IN_QUEUE",
    postgresql_where=requests.c.status == "IN_QUEUE",
)
Index("requests_once", requests.c.key_id, requests.c.idempotency_key, unique=True)
Index("requests_by_time", requests.c.key_id, requests.c.finished_at)
Index("requests_ended", requests.c.finished_at)

request_io = Table(
    "request_io",
    metadata,
    Column("request_id", String(36), ForeignKey("requests.id", ondelete="CASCADE"), primary_key=True),
    Column("input", Text, nullable=False),
    Column("output", Text),
)

request_logs = Table(
    "request_logs",
    metadata,
    Column("seq", _Serial, primary_key=True),
    Column("request_id", String(36), ForeignKey("requests.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("level", String(6), nullable=False),
    Column("message", Text, nullable=False),
    Column("progress", Float),
    Column("preview", Text, comment="The key of a picture of the clip so far"),
)

dispatchers = Table(
    "dispatchers",
    metadata,
    Column("owner", String(36), primary_key=True),
    Column("lease_until", Float, nullable=False),
)

replicas = Table(
    "replicas",
    metadata,
    Column("id", Text, primary_key=True, comment="Of one process; its successor has another"),
    Column("started_at", Float, primary_key=True, comment="Of the process, or of its present price"),
    Column("model", Text, nullable=False, comment="The id of the endpoint that it was started for"),
    Column("deployment", Text, nullable=False),
    Column("accelerator", Text, nullable=False),
    Column("gpu_fraction", Float, nullable=False, comment="How much of one it has"),
    Column("gpu_usd_per_hour", Float, nullable=False, comment="What that costs us"),
    Column("seen_at", Float, nullable=False, index=True, comment="When it last said that it is there"),
)

turns = Table(
    "turns",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("served_at", Float, nullable=False, comment="When a request of this key was last claimed"),
)

files = Table(
    "files",
    metadata,
    Column("key", Text, primary_key=True, comment="In the file storage"),
    Column("key_id", Text, nullable=False, comment="Whose it is"),
    Column("request_id", String(36), index=True, comment="What made it; null for an upload"),
    Column("content_type", Text, nullable=False),
    Column("size", BigInteger, comment="Null while it is being uploaded"),
    Column("sha256", String(64), comment="Of its bytes, in hex; null where it was stored by code that did not say"),
    Column("created_at", Float, nullable=False),
    Column("lifetime", Float, comment="Seconds it is kept once it is whole; null for ever"),
    Column("expires_at", Float, index=True, comment="When it, or an upload that was given up, is to be deleted"),
    Column("acl", Text, comment="Who may read it, as JSON; null for anybody"),
    Column("writer", String(36), comment="The call that is writing it"),
    Column("writing_until", Float, comment="When that call counts as dead"),
)
Index(
    "files_without_end",
    files.c.created_at,
    sqlite_where=files.c.expires_at.is_(None),
    postgresql_where=files.c.expires_at.is_(None),
)

uploaded = Table(
    "uploaded",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("day", Integer, nullable=False, comment="The last on which it uploaded, in days since 1970 (UTC)"),
    Column("bytes", BigInteger, nullable=False, comment="Of that day: stored, announced or on their way"),
)

storage_settings = Table(
    "storage_settings",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("lifecycle", Text, nullable=False, comment="Of new files of this key where nothing else is said, as JSON"),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("request_id", String(36), ForeignKey("requests.id", ondelete="CASCADE"), primary_key=True),
    Column("url", Text, nullable=False),
    Column("host", Text, nullable=False, comment="Of the URL: no receiver gets more than a few at a time"),
    Column("state", String(11), nullable=False, comment="WAITING for its request, DUE, DELIVERED or UNDELIVERED"),
    Column("attempts", SmallInteger, nullable=False),
    Column("due_at", Float, comment="When it is to be tried next; while it is being tried, when it counts as lost"),
    Column("status_code", SmallInteger, comment="The receiver's last answer"),
    Column("error", Text, comment="Why the last attempt failed"),
    Column("delivered_at", Float),
)
Index(
    "webhooks_due",
    webhooks.c.due_at,
    sqlite_where=webhooks.c.state == "DUE",
    postgresql_where=webhooks.c.state == "DUE",
)

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("hash", Text, nullable=False, comment="SHA-256 of the secret, which is random and long"),
    Column("alias", Text, nullable=False),
    Column("scope", Text, nullable=False, comment="API or ADMIN"),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
    Column("expires_at", Float, comment="When it stops working; null for never"),
    Column("last_used_at", Float, comment="When it was last used, to the minute"),
    Column("former_hash", Text, comment="Of the secret before the last rotation"),
    Column("former_until", Float, comment="When that one stops working"),
    Column("requests_per_second", Float, comment="How many calls that make work; null for any number, as below"),
    Column("max_waiting", Integer, comment="How many of its requests may wait"),
    Column("max_running", Integer, comment="How many of its requests may run, of all models together"),
    Column("usd_per_day", Float, comment="What its requests of one day (UTC) may be billed"),
    Column("upload_bytes_per_day", BigInteger, comment="What it may upload in one day (UTC)"),
)

secrets = Table(
    "secrets",
    metadata,
    Column("purpose", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False, comment="The highest is in use"),
    Column("value", LargeBinary, nullable=False),
    Column("created_at", Float, nullable=False),
)


class now(FunctionElement[float]):
    """Seconds since 1970 on the database's clock, so that leases do not depend on anybody else's."""

    type = Float()
    inherit_cache = True


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **options: Any) -> str:
    # Of the statement's start: a clock that moves within it would keep a planner from using an index.
    return "extract(epoch from statement_timestamp())::double precision"


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"
