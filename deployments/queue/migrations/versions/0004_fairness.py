"""Whose turn it is, when a lost attempt may be followed by the next, what kills replicas; a file's hash and writer."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add columns, indexes and a table. Code from before this revision goes on beside it: it names none of them."""
    for column in (
        sa.Column(
            "crashes",
            sa.SmallInteger,
            nullable=False,
            server_default="0",
            comment="Attempts under which a replica's process died; from the first on it runs alone",
        ),
        sa.Column(
            "unbegun",
            sa.SmallInteger,
            nullable=False,
            server_default="0",
            comment="Attempts that were given back before they began; they are none of the ten",
        ),
        sa.Column("not_before", sa.Float, comment="When a lost attempt may be followed by the next"),
    ):
        op.add_column("requests", column)
    for name, status, columns in (
        ("requests_in_lanes", "IN_QUEUE", ["model", "priority", "key_id", "seq"]),
        ("requests_alike", "IN_QUEUE", ["model", "priority", "batch_key", "key_id", "seq"]),
        ("requests_running_of_key", "IN_PROGRESS", ["key_id"]),
    ):
        where = sa.text(f"status = '{status}'")
        op.create_index(name, "requests", columns, sqlite_where=where, postgresql_where=where)
    if op.get_context().dialect.name == "postgresql":
        # Each request is written some five times. Dead rows are to go, and statistics to follow, while a queue drains.
        op.execute(
            "ALTER TABLE requests SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, "
            "autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05)"
        )
    op.create_table(
        "turns",
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("served_at", sa.Float, nullable=False, comment="When a request of this key was last claimed"),
    )
    for column in (
        sa.Column(
            "sha256", sa.String(64), comment="Of its bytes, in hex; null where it was stored by code that did not say"
        ),
        sa.Column("writer", sa.String(36), comment="The call that is writing it"),
        sa.Column("writing_until", sa.Float, comment="When that call counts as dead"),
    ):
        op.add_column("files", column)
    endless = sa.text("expires_at IS NULL")
    op.create_index("files_without_end", "files", ["created_at"], sqlite_where=endless, postgresql_where=endless)
    _record_files(op.get_bind())


def _record_files(connection: sa.Connection) -> None:
    """Make rows for results from before there were rows of files: from now on what has none is nobody's, and goes."""
    unrecorded = sa.text(
        "SELECT seq, requests.id AS request_id, key_id, finished_at AS created_at, output FROM requests "
        "JOIN request_io ON request_io.request_id = requests.id WHERE seq > :reached AND output LIKE '%/files/b/%' "
        "AND NOT EXISTS (SELECT 1 FROM files WHERE files.request_id = requests.id) ORDER BY seq LIMIT 1000"
    )
    reached = 0
    while rows := connection.execute(unrecorded, {"reached": reached}).mappings().all():
        for row in rows:
            _record(connection, row)
        reached = rows[-1]["seq"]


def _record(connection: sa.Connection, row: sa.RowMapping) -> None:
    columns: list[sa.ColumnClause[Any]] = [
        sa.column(name) for name in ("key", "key_id", "request_id", "content_type", "size", "created_at")
    ]
    files = sa.table("files", *columns)
    owner = {name: row[name] for name in ("key_id", "request_id", "created_at")}
    for file in _files_in(json.loads(row["output"])):
        if connection.execute(sa.select(files.c.key).where(files.c.key == file["key"])).first() is None:
            connection.execute(sa.insert(files).values(owner | file))


def _files_in(output: Any) -> Iterator[dict[str, Any]]:
    """Key, type and size of the files that a result names."""
    for value in output.values() if isinstance(output, dict) else ():
        named = re.search("/files/(b/[^?#]+)", str(value.get("url"))) if isinstance(value, dict) else None
        if named and "content_type" in value and "file_size" in value:
            yield {"key": unquote(named[1]), "content_type": value["content_type"], "size": value["file_size"]}
