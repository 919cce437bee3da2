"""Whose turn it is, when a lost attempt may be followed by the next, what kills replicas; the hash of a file."""

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
    op.create_table(
        "turns",
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("served_at", sa.Float, nullable=False, comment="When a request of this key was last claimed"),
    )
    op.add_column(
        "files",
        sa.Column(
            "sha256", sa.String(64), comment="Of its bytes, in hex; null where it was stored by code that did not say"
        ),
    )
