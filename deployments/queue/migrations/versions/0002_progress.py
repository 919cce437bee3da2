"""A line of a log may tell how far its request is."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column, empty: code from before this revision writes and reads the table as it did."""
    op.add_column("request_logs", sa.Column("progress", sa.Float))
