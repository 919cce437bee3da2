from __future__ import annotations

import asyncio
import pickle
import random
from collections import deque
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from deployments.gateway.backpressure import PIECE_BYTES, Backpressure, proxy_middlewares

HTTP = {"type": "http"}


class Sender:
    """Somebody who sends a body as fast as it is read."""

    def __init__(self, *bodies: bytes) -> None:
        last = len(bodies) - 1
        self.messages: deque[Message] = deque(
            {"type": "http.request", "body": body, "more_body": number < last} for number, body in enumerate(bodies)
        )
        self.sent = 0

    async def __call__(self) -> Message:
        message = self.messages.popleft() if self.messages else {"type": "http.disconnect"}
        self.sent += len(message.get("body", b""))
        return message


class Proxy:
    """Reads without a pause and keeps all that nobody has fetched, as Serve's does."""

    def __init__(self) -> None:
        self.queue: deque[Message] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            self.queue.append(message)
            if message["type"] == "http.disconnect":
                return

    def fetch(self) -> list[Message]:
        """What a replica gets."""
        messages = list(self.queue)
        self.queue.clear()
        fetched: list[Message] = pickle.loads(pickle.dumps(messages))
        return fetched


async def send(message: Message) -> None:
    raise AssertionError


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_what_nobody_fetches_is_not_read() -> None:
    sender, proxy = Sender(*[b"x" * PIECE_BYTES] * 100), Proxy()
    reading = asyncio.create_task(Backpressure(proxy)(HTTP, sender, send))
    await settle()
    assert sender.sent <= 2 * PIECE_BYTES

    read = 0
    for _ in range(10):
        read += sum(len(message["body"]) for message in proxy.fetch())
        await settle()
        assert read < sender.sent <= read + 3 * PIECE_BYTES
    reading.cancel()


async def test_a_body_arrives_as_it_was_sent() -> None:
    sizes = [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES + 7, 0]
    bodies = [random.Random(size).randbytes(size) for size in sizes]
    sender, proxy = Sender(*bodies), Proxy()
    reading = asyncio.create_task(Backpressure(proxy)(HTTP, sender, send))
    messages: list[Message] = []
    while not reading.done():
        await settle()
        messages += proxy.fetch()

    *pieces, end = messages
    assert end == {"type": "http.disconnect"}
    assert b"".join(piece["body"] for piece in pieces) == b"".join(bodies)
    assert max(len(piece["body"]) for piece in pieces) <= PIECE_BYTES
    assert [piece["more_body"] for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert {type(message) for message in messages} == {dict}


async def test_other_connections_pass_as_they_are() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope, receive, send))

    sender = Sender()
    await Backpressure(app)({"type": "websocket"}, sender, send)
    assert seen == [({"type": "websocket"}, sender, send)]


def test_serve_is_given_the_middleware() -> None:
    assert Backpressure in [middleware.cls for middleware in proxy_middlewares()]
