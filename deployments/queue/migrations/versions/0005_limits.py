"""When a key ends, its last use, its former secret, what it may use and has uploaded; the hash of a repeated input."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add columns and indexes. Code from before this revision goes on beside it: it names none of them."""
    for column in (
        sa.Column("expires_at", sa.Float, comment="When it stops working; null for never"),
        sa.Column("last_used_at", sa.Float, comment="When it was last used, to the minute"),
        sa.Column("former_hash", sa.Text, comment="Of the secret before the last rotation"),
        sa.Column("former_until", sa.Float, comment="When that one stops working"),
        sa.Column(
            "requests_per_second", sa.Float, comment="How many calls that make work; null for any number, as below"
        ),
        sa.Column("max_waiting", sa.Integer, comment="How many of its requests may wait"),
        sa.Column("max_running", sa.Integer, comment="How many of its requests may run, of all models together"),
        sa.Column("usd_per_day", sa.Float, comment="What its requests of one day (UTC) may be billed"),
        sa.Column("upload_bytes_per_day", sa.BigInteger, comment="What it may upload in one day (UTC)"),
    ):
        op.add_column("keys", column)
    op.add_column(
        "requests", sa.Column("input_hash", sa.String(64), comment="SHA-256 of what came with that key, in hex")
    )
    waiting = sa.text("status = 'IN_QUEUE'")
    op.create_index(
        "requests_waiting_of_key",
        "requests",
        ["key_id", "no_retry"],
        sqlite_where=waiting,
        postgresql_where=waiting,
    )
    op.create_table(
        "uploaded",
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("day", sa.Integer, nullable=False, comment="The last on which it uploaded, in days since 1970 (UTC)"),
        sa.Column("bytes", sa.BigInteger, nullable=False, comment="Of that day: stored, announced or on their way"),
    )
