"""What a request costs us and is billed, how large its batch was, its trace; which replicas there were and how long."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add columns and a table. Code from before this revision goes on beside it: it names none of them."""
    for column in (
        sa.Column("gpu_usd_per_hour", sa.Float, comment="What its last attempt's part of a device costs us"),
        sa.Column(
            "cost_nano_usd",
            sa.BigInteger,
            nullable=False,
            server_default="0",
            comment="What all its attempts have cost us",
        ),
        sa.Column(
            "price_nano_usd", sa.BigInteger, comment="What its success is billed; null on rows of code that did not say"
        ),
        sa.Column(
            "batch_size",
            sa.SmallInteger,
            comment="How many had the device together in its last attempt",
        ),
        sa.Column("traceparent", sa.String(55), comment="The trace that it belongs to, as W3C's header says it"),
    ):
        op.add_column("requests", column)
    op.create_table(
        "replicas",
        sa.Column("id", sa.Text, primary_key=True, comment="Of one process; its successor has another"),
        sa.Column("started_at", sa.Float, primary_key=True, comment="Of the process, or of its present price"),
        sa.Column("model", sa.Text, nullable=False, comment="The id of the endpoint that it was started for"),
        sa.Column("deployment", sa.Text, nullable=False),
        sa.Column("accelerator", sa.Text, nullable=False),
        sa.Column("gpu_fraction", sa.Float, nullable=False, comment="How much of one it has"),
        sa.Column("gpu_usd_per_hour", sa.Float, nullable=False, comment="What that costs us"),
        sa.Column("seen_at", sa.Float, nullable=False, index=True, comment="When it last said that it is there"),
    )
