from __future__ import annotations

import json
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, select, text

from deployments.queue import database
from deployments.queue.database import migrate, open_engine
from deployments.queue.tables import files, metadata


async def test_migrations_make_exactly_the_tables_of_the_code(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite+aiosqlite:///{tmp_path}/queue.db")
    await migrate(engine)
    await migrate(engine)  # a second run finds nothing to do

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


async def test_sqlite_is_opened_durable_and_in_wal_mode(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite+aiosqlite:///{tmp_path}/deep/er/queue.db")
    await migrate(engine)
    async with engine.connect() as connection:
        for pragma, value in {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}.items():
            assert (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar_one() == value
    await engine.dispose()


async def test_results_from_before_there_were_rows_of_files_get_theirs(database_url: str) -> None:
    engine = open_engine(database_url)
    named = "http://127.0.0.1:8000/files/b/0123/a%20clip.mp4?x=1"
    video = {"url": named, "content_type": "video/mp4", "file_name": "a clip.mp4", "file_size": 7}
    outputs = [
        {"video": video, "seed": 1},
        {"video": video | {"url": "http://127.0.0.1:8000/files/b/4567/known.mp4"}, "seed": 1},
        {"detail": "no such file: /files/b/1/clip.mp4"},
        [1],
    ]

    def go_back(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE IF EXISTS alembic_version")
        command.upgrade(config, "0003")

    async with engine.begin() as connection:
        await connection.run_sync(go_back)
        for number, output in enumerate(outputs):
            await connection.execute(
                text(
                    "INSERT INTO requests (id, endpoint, model, key_id, priority, batch_key, pixel_frames, no_retry, "
                    "status, attempt, cancel_requested, created_at, finished_at) VALUES "
                    "(:id, 'e', 'm', 'alice', 0, '', 1, false, 'COMPLETED', 1, false, 1, 5)"
                ),
                {"id": str(number)},
            )
            await connection.execute(
                text("INSERT INTO request_io (request_id, input, output) VALUES (:id, '{}', :output)"),
                {"id": str(number), "output": json.dumps(output)},
            )
        await connection.execute(
            text(
                "INSERT INTO files (key, key_id, request_id, content_type, size, created_at) "
                "VALUES ('b/4567/known.mp4', 'bob', '1', 'video/mp4', 3, 1)"
            )
        )
    await migrate(engine)

    async with engine.connect() as connection:
        rows = await connection.execute(select(files.c.key, files.c.key_id, files.c.request_id, files.c.size))
        assert sorted(map(tuple, rows)) == [
            ("b/0123/a clip.mp4", "alice", "0", 7),
            ("b/4567/known.mp4", "bob", "1", 3),
        ]
    await engine.dispose()
