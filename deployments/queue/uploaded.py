"""How many bytes each key has uploaded today: what is stored, and what is announced or on its way.

    a body is announced, or comes ──▶ add ──▶ does it fit? ── yes ──▶ counted ──▶ discarded? ──▶ take_back
                                                └── no ──▶ nothing changes

One row a key, of one day (UTC). A day's first call begins with what the key's files of that day say. After that, what
the key uploads while it has no limit is not counted: such uploads ask nothing of this table.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.queue.database import Database, serialise_by, uninterrupted
from deployments.queue.tables import files
from deployments.queue.tables import uploaded as table

DAY_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Room:
    """What is left of a key's day, in bytes; less than none where the bytes asked for were not added."""

    day: int
    left: int


class Uploaded:
    """The rows of all keys."""

    def __init__(self, database: Database) -> None:
        """Use a database that is open."""
        self._database = database

    @uninterrupted
    async def add(self, key_id: str, size: int, most: int) -> Room:
        """Count so many bytes more, if the key then has no more than ``most``: exactly so, whoever else adds some."""
        mine = update(table).where(table.c.key_id == key_id)
        async with self._database.transaction() as connection:
            await serialise_by(connection, f"uploads of {key_id}")
            day, so_far = await _so_far(connection, key_id)
            room = Room(day, most - so_far - size)
            if size and room.left >= 0:
                # Not so_far + size: what is taken back meanwhile waits for nobody.
                await connection.execute(mine.values(bytes=table.c.bytes + size))
        return room

    @uninterrupted
    async def take_back(self, key_id: str, size: int, day: int) -> None:
        """Count so many bytes less of a day, if that is still the key's last: they have been discarded."""
        mine = update(table).where(table.c.key_id == key_id, table.c.day == day)
        async with self._database.transaction() as connection:
            await connection.execute(mine.values(bytes=table.c.bytes - size))


async def _so_far(connection: AsyncConnection, key_id: str) -> tuple[int, int]:
    """A key's day and what it has uploaded in it. Another process's clock may be in the next day already."""
    row = (await connection.execute(select(table).where(table.c.key_id == key_id))).one_or_none()
    today = int(time.time() // DAY_SECONDS)
    if row and row.day >= today:
        return row.day, row.bytes
    stored = await _stored(connection, key_id, today * DAY_SECONDS)
    await connection.execute(delete(table).where(table.c.key_id == key_id))
    await connection.execute(insert(table).values(key_id=key_id, day=today, bytes=stored))
    return today, stored


async def _stored(connection: AsyncConnection, key_id: str, since: float) -> int:
    of = files.c
    query = select(func.coalesce(func.sum(of.size), 0))
    query = query.where(of.key_id == key_id, of.created_at >= since, of.request_id.is_(None))
    return int((await connection.execute(query)).scalar_one())
