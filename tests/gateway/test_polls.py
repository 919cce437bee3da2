"""Polls that would be told nothing new are held; all others are answered at once."""

from __future__ import annotations

import asyncio
import time

import pytest

from deployments.gateway import polls as polls_module
from deployments.queue.request import LogLine
from deployments.queue.store import RequestStore
from deployments.storage import FileStorage
from tests.gateway.conftest import Gateway, open_gateway, served_endpoints

AT_ONCE = 0.6
"""Seconds: far below a held second, far above what an answer takes on a busy machine."""


async def seconds_of(gateway: Gateway, request_id: str, **query: str) -> float:
    began = time.monotonic()
    await gateway.status(request_id, **query)
    return time.monotonic() - began


async def test_the_first_poll_is_answered_at_once_and_the_second_is_held(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    assert await seconds_of(gateway, request_id) < AT_ONCE
    assert await seconds_of(gateway, request_id) > 0.95


async def test_each_request_has_a_first_poll(gateway: Gateway) -> None:
    for request_id in [await gateway.submit() for _ in range(3)]:
        assert await seconds_of(gateway, request_id) < AT_ONCE


async def test_a_held_poll_hears_of_the_start_and_of_the_end(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    await gateway.status(request_id)

    held = asyncio.create_task(gateway.status(request_id))
    await asyncio.sleep(0.1)
    attempt = await gateway.claim()
    assert (await asyncio.wait_for(held, AT_ONCE))["status"] == "IN_PROGRESS"

    held = asyncio.create_task(gateway.status(request_id))
    await asyncio.sleep(0.1)
    await gateway.finish(attempt)
    assert (await asyncio.wait_for(held, AT_ONCE))["status"] == "COMPLETED"


async def test_a_log_line_ends_the_wait_only_of_who_asked_for_logs(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    await gateway.claim()
    await gateway.status(request_id, logs="1")
    await gateway.status(request_id, logs="0")

    with_logs = asyncio.create_task(gateway.status(request_id, logs="1"))
    without = asyncio.create_task(gateway.status(request_id, logs="0"))
    await asyncio.sleep(0.1)
    await gateway.store.log([LogLine(request_id, "Step 1/2", time.time())])

    assert len((await asyncio.wait_for(with_logs, AT_ONCE))["logs"]) == 1
    assert not without.done()
    assert (await without)["logs"] is None


async def test_a_held_poll_hears_that_it_moved_up(store: RequestStore, storage: FileStorage) -> None:
    async with open_gateway(store, storage, served_endpoints(), poll_hold_seconds=60.0) as gateway:
        await gateway.submit()
        second = await gateway.submit()
        assert (await gateway.status(second))["queue_position"] == 1

        held = asyncio.create_task(gateway.status(second))
        await asyncio.sleep(0.1)
        await gateway.claim()
        assert (await asyncio.wait_for(held, 30.0))["queue_position"] == 0


async def test_what_has_ended_is_never_held(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    await gateway.finish(await gateway.claim())
    for _ in range(3):
        assert await seconds_of(gateway, request_id) < AT_ONCE


async def test_no_more_is_remembered_than_there_is_room_for(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polls_module, "REMEMBERED", 2)
    first, *others = [await gateway.submit() for _ in range(3)]
    await asyncio.sleep(0.6)  # until positions are read anew, so that none changes below
    for request_id in (first, *others):
        await gateway.status(request_id)

    assert await seconds_of(gateway, first) < AT_ONCE  # forgotten, so it is a first poll again
    assert await seconds_of(gateway, others[1]) > 0.95
