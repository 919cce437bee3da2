"""Whose turn it is, when a lost attempt may be followed by the next, what kills replicas; the hash of a file."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add columns, an index and a table. Code from before this revision goes on beside it: it names none of them."""
    for column in (
        sa.Column(
            "lane",
            sa.Text,
            nullable=False,
            server_default="",
            comment="One for each priority, key and batch_key: a queue of its own, of which a claim takes the head",
        ),
        sa.Column(
            "crashes",
            sa.SmallInteger,
            nullable=False,
            server_default="0",
            comment="Attempts under which a replica's process died; from the first on it runs alone",
        ),
        sa.Column("not_before", sa.Float, comment="When a lost attempt may be followed by the next"),
    ):
        op.add_column("requests", column)
    waiting = sa.text("status = 'IN_QUEUE'")
    op.create_index(
        "requests_in_lanes", "requests", ["model", "lane", "seq"], sqlite_where=waiting, postgresql_where=waiting
    )
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
