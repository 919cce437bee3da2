"""Alembic's entry: run the migrations on the connection that ``queue.database`` hands over."""

from alembic import context

from deployments.queue.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
