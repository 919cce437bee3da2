"""A painter is told when nobody waits for its picture any more."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.app import paint


class Painting:
    """As a call to a painter's replica: to stop waiting for it does not end it."""

    def __init__(self) -> None:
        self.picture = asyncio.get_running_loop().create_future()
        self.cancelled = False

    def __await__(self) -> Generator[Any, None, Any]:
        return (yield from asyncio.shield(self.picture).__await__())

    def cancel(self) -> None:
        self.cancelled = True


def painter_of(painting: Painting) -> Any:
    return SimpleNamespace(paint=SimpleNamespace(remote=lambda input: painting))


async def test_painting_that_nobody_waits_for_is_ended() -> None:
    painting = Painting()
    waiting = asyncio.create_task(paint(painter_of(painting), "{}"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert painting.cancelled


async def test_picture_that_is_there_is_handed_over() -> None:
    painting = Painting()
    painting.picture.set_result("a picture")
    assert await paint(painter_of(painting), "{}") == "a picture"
    assert not painting.cancelled
