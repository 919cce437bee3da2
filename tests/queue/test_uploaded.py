"""How many bytes a key has uploaded in a day: exactly, whoever counts at the same time."""

from __future__ import annotations

import asyncio
import time

import pytest

from deployments.queue import uploaded
from deployments.queue.files import Lifecycle
from deployments.queue.store import RequestStore
from deployments.queue.uploaded import DAY_SECONDS, Uploaded
from tests.conftest import add_file


async def test_no_two_calls_get_the_same_bytes(database_url: str) -> None:
    stores = [await RequestStore.open(database_url) for _ in range(2)]
    counts = [Uploaded(store.database) for store in stores]
    rooms = await asyncio.gather(*(each.add("alice", 30, 100) for _ in range(4) for each in counts))
    assert sorted(room.left for room in rooms if room.left >= 0) == [10, 40, 70]
    assert (await counts[0].add("alice", 10, 100)).left == 0
    assert (await counts[1].add("alice", 0, 100)).left == 0
    assert (await counts[1].add("bob", 100, 100)).left == 0
    for store in stores:
        await store.close()


async def test_what_is_taken_back_may_be_uploaded_again(store: RequestStore) -> None:
    count = Uploaded(store.database)
    room = await count.add("alice", 80, 100)
    await count.add("alice", 20, 100)
    await count.take_back("alice", 80, room.day)
    assert (await count.add("alice", 79, 100)).left == 1
    await count.take_back("alice", 79, room.day - 1)
    assert (await count.add("alice", 2, 100)).left == -1


async def test_what_is_taken_back_while_others_add_is_not_forgotten(database_url: str) -> None:
    stores = [await RequestStore.open(database_url) for _ in range(2)]
    counts = [Uploaded(store.database) for store in stores]

    async def give_up(count: Uploaded) -> None:
        await count.take_back("alice", 100, (await count.add("alice", 100, 10**6)).day)

    for _ in range(4):
        await asyncio.gather(*(call for each in counts * 4 for call in (give_up(each), each.add("alice", 1, 10**6))))
    assert (await counts[0].add("alice", 0, 32)).left == 0
    for store in stores:
        await store.close()


async def test_a_day_begins_with_what_its_files_say(store: RequestStore, monkeypatch: pytest.MonkeyPatch) -> None:
    count, now = Uploaded(store.database), time.time()
    for key, owner, size, request_id in (
        ("b/1/a", "alice", 5, None),
        ("b/2/a", "alice", 7, None),
        ("b/3/a", "alice", 100, "a request"),
        ("b/4/a", "bob", 1000, None),
    ):
        await add_file(store.database, key, owner, "text/plain", size, Lifecycle(), request_id)
    assert (await count.add("alice", 1, 50)).left == 37
    monkeypatch.setattr(uploaded.time, "time", lambda: now + DAY_SECONDS)
    tomorrow = await count.add("alice", 1, 50)
    assert tomorrow.left == 49
    monkeypatch.setattr(uploaded.time, "time", lambda: now)
    assert await count.add("alice", 1, 50) == uploaded.Room(tomorrow.day, 48), "another clock is behind"
