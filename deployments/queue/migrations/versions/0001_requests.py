"""Requests, their JSON, their logs, and the dispatchers' leases."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_serial = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create the first tables."""
    op.create_table(
        "requests",
        sa.Column("seq", _serial, primary_key=True, comment="Order of arrival; a retried request keeps its place"),
        sa.Column("id", sa.String(36), nullable=False, unique=True),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False, comment="The deployment that the request waits for"),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("priority", sa.SmallInteger, nullable=False, comment="0 normal, 1 low: lower goes first"),
        sa.Column("batch_key", sa.Text, nullable=False),
        sa.Column("pixel_frames", sa.BigInteger, nullable=False),
        sa.Column("no_retry", sa.Boolean, nullable=False),
        sa.Column("status", sa.String(11), nullable=False),
        sa.Column("attempt", sa.SmallInteger, nullable=False),
        sa.Column("owner", sa.String(36), comment="The dispatcher that holds the current attempt"),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("start_deadline", sa.Float),
        sa.Column("started_at", sa.Float),
        sa.Column("finished_at", sa.Float),
        sa.Column("status_code", sa.SmallInteger),
        sa.Column("error", sa.Text),
        sa.Column("error_type", sa.Text),
        sa.Column("inference_seconds", sa.Float, comment="Wall time of the attempt that ended the request"),
        sa.Column("gpu_seconds", sa.Float, comment="This request's share of its batch's time on the device"),
    )
    for name, columns, condition in (
        ("requests_waiting", ["model", "priority", "seq"], "status = 'IN_QUEUE'"),
        ("requests_running", ["owner"], "status = 'IN_PROGRESS'"),
        ("requests_with_deadline", ["start_deadline"], "status = 'IN_QUEUE' AND start_deadline IS NOT NULL"),
    ):
        where = sa.text(condition)
        op.create_index(name, "requests", columns, sqlite_where=where, postgresql_where=where)
    op.create_table(
        "request_io",
        sa.Column("request_id", sa.String(36), sa.ForeignKey("requests.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("input", sa.Text, nullable=False),
        sa.Column("output", sa.Text),
    )
    op.create_table(
        "request_logs",
        sa.Column("seq", _serial, primary_key=True),
        sa.Column(
            "request_id", sa.String(36), sa.ForeignKey("requests.id", ondelete="CASCADE"), nullable=False, index=True
        ),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("level", sa.String(6), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
    )
    op.create_table(
        "dispatchers",
        sa.Column("owner", sa.String(36), primary_key=True),
        sa.Column("lease_until", sa.Float, nullable=False),
    )
