"""What the whole of fal's API needs: idempotency, lifecycles, previews, files, webhooks, keys, shared secrets."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add columns and tables. Code from before this revision goes on beside it: it names none of them."""
    for column in (
        sa.Column(
            "idempotency_key", sa.Text, comment="Of its caller's choice; a second submit with it is the same request"
        ),
        sa.Column("runner_hint", sa.Text),
        sa.Column(
            "store_io",
            sa.Boolean,
            nullable=False,
            server_default=sa.true(),
            comment="Whether its JSON is kept and shown",
        ),
        sa.Column(
            "lifecycle", sa.Text, comment="How long its files live and who may read them, as JSON; null for the default"
        ),
        sa.Column(
            "previews",
            sa.SmallInteger,
            nullable=False,
            server_default="0",
            comment="A preview each so many steps; 0, none",
        ),
    ):
        op.add_column("requests", column)
    op.create_index("requests_once", "requests", ["key_id", "idempotency_key"], unique=True)
    op.create_index("requests_by_time", "requests", ["key_id", "finished_at"])
    op.create_index("requests_ended", "requests", ["finished_at"])
    op.add_column("request_logs", sa.Column("preview", sa.Text, comment="The key of a picture of the clip so far"))
    op.create_table(
        "files",
        sa.Column("key", sa.Text, primary_key=True, comment="In the file storage"),
        sa.Column("key_id", sa.Text, nullable=False, comment="Whose it is"),
        sa.Column("request_id", sa.String(36), index=True, comment="What made it; null for an upload"),
        sa.Column("content_type", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, comment="Null while it is being uploaded"),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("lifetime", sa.Float, comment="Seconds it is kept once it is whole; null for ever"),
        sa.Column(
            "expires_at", sa.Float, index=True, comment="When it, or an upload that was given up, is to be deleted"
        ),
        sa.Column("acl", sa.Text, comment="Who may read it, as JSON; null for anybody"),
    )
    op.create_table(
        "storage_settings",
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column(
            "lifecycle",
            sa.Text,
            nullable=False,
            comment="Of new files of this key where nothing else is said, as JSON",
        ),
    )
    op.create_table(
        "webhooks",
        sa.Column("request_id", sa.String(36), sa.ForeignKey("requests.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False, comment="Of the URL: no receiver gets more than a few at a time"),
        sa.Column(
            "state", sa.String(11), nullable=False, comment="WAITING for its request, DUE, DELIVERED or UNDELIVERED"
        ),
        sa.Column("attempts", sa.SmallInteger, nullable=False),
        sa.Column(
            "due_at", sa.Float, comment="When it is to be tried next; while it is being tried, when it counts as lost"
        ),
        sa.Column("status_code", sa.SmallInteger, comment="The receiver's last answer"),
        sa.Column("error", sa.Text, comment="Why the last attempt failed"),
        sa.Column("delivered_at", sa.Float),
    )
    due = sa.text("state = 'DUE'")
    op.create_index("webhooks_due", "webhooks", ["due_at"], sqlite_where=due, postgresql_where=due)
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("hash", sa.Text, nullable=False, comment="SHA-256 of the secret, which is random and long"),
        sa.Column("alias", sa.Text, nullable=False),
        sa.Column("scope", sa.Text, nullable=False, comment="API or ADMIN"),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("revoked_at", sa.Float),
    )
    op.create_table(
        "secrets",
        sa.Column("purpose", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False, comment="The highest is in use"),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
