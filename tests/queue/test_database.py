from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import text

from deployments.errors import Unavailable
from deployments.queue.database import Database


async def test_close_waits_for_the_connections_in_use_and_nothing_is_opened_after_it(tmp_path: Path) -> None:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/queue.db")
    async with database.read() as connection:
        closing = asyncio.create_task(database.close())
        await asyncio.sleep(0)
        assert not closing.done()
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    await closing  # a connection that was left open would be reported when it is collected
    for use in (database.read, database.transaction):
        with pytest.raises(Unavailable):
            async with use():
                pass
