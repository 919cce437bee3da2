"""Realtime connections: frames in, frames out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest
from starlette.types import Message

from deployments.gateway import realtime_routes
from tests.gateway.conftest import FAST, INPUT, KEY, OUTPUT, OWNER, PATIENCE, SVD, Gateway


class Socket:
    """A client's side of one WebSocket, by the ASGI protocol."""

    def __init__(self) -> None:
        self.to_app: asyncio.Queue[Message] = asyncio.Queue()
        self.from_app: asyncio.Queue[Message] = asyncio.Queue()

    async def receive(self) -> Message:
        return await asyncio.wait_for(self.from_app.get(), PATIENCE)

    async def frame(self) -> Any:
        """The next frame, decoded."""
        message = await self.receive()
        assert message["type"] == "websocket.send", message
        data = message.get("bytes")
        return msgpack.unpackb(data) if data is not None else json.loads(message["text"])

    def send(self, body: Any, text: bool = False) -> None:
        data = {"text": json.dumps(body)} if text else {"bytes": msgpack.packb(body)}
        self.to_app.put_nowait({"type": "websocket.receive", **data})


@asynccontextmanager
async def connect(
    gateway: Gateway,
    endpoint: str = SVD,
    query: str = "",
    key: str | None = KEY,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> AsyncIterator[Socket]:
    socket = Socket()
    path = f"/{endpoint}/realtime"
    keyed = [(b"authorization", f"Key {key}".encode())] if key else []
    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0"},
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(b"host", b"127.0.0.1:8000"), *keyed, *headers],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "subprotocols": [],
    }
    socket.to_app.put_nowait({"type": "websocket.connect"})
    serving = asyncio.create_task(gateway.app(scope, socket.to_app.get, socket.from_app.put))
    try:
        yield socket
    finally:
        socket.to_app.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait_for(asyncio.gather(serving), PATIENCE)


async def accepted(socket: Socket) -> None:
    assert (await socket.receive())["type"] == "websocket.accept"


@pytest.mark.parametrize("text", [False, True])
async def test_an_input_is_answered_by_its_output_in_a_frame_of_its_kind(gateway: Gateway, text: bool) -> None:
    async with connect(gateway) as socket:
        await accepted(socket)
        socket.send({**INPUT, "request_id": "mine"}, text)
        await gateway.finish(await gateway.claim())
        message = await socket.receive()

    assert ("text" in message and message["text"] is not None) == text
    body = json.loads(message["text"]) if text else msgpack.unpackb(message["bytes"])
    assert body == {**OUTPUT, "request_id": "mine"}


async def test_inputs_are_answered_one_after_the_other(gateway: Gateway) -> None:
    async with connect(gateway) as socket:
        await accepted(socket)
        for number in range(3):
            socket.send({**INPUT, "request_id": number})
        for number in range(3):
            attempt = await gateway.claim()
            assert await gateway.waiting() == 0
            await gateway.finish(attempt)
            assert (await socket.frame())["request_id"] == number


async def test_the_oldest_inputs_fall_out_of_a_full_buffer(gateway: Gateway) -> None:
    async with connect(gateway, query="max_buffering=2") as socket:
        await accepted(socket)
        socket.send({**INPUT, "request_id": 0})
        first = await gateway.claim()
        for number in range(1, 6):
            socket.send({**INPUT, "request_id": number})
        await asyncio.sleep(0.1)
        await gateway.finish(first)
        answered = [(await socket.frame())["request_id"]]
        for _ in range(2):
            await gateway.finish(await gateway.claim())
            answered.append((await socket.frame())["request_id"])
    assert answered == [0, 4, 5]


async def test_large_inputs_that_wait_are_bounded_in_bytes(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime_routes, "MOST_BUFFERED_BYTES", 5000)
    async with connect(gateway) as socket:
        await accepted(socket)
        socket.send({**INPUT, "request_id": 0})
        first = await gateway.claim()
        for number in range(1, 5):
            socket.send({**INPUT, "request_id": number, "ignored": "x" * 2000})
        await asyncio.sleep(0.1)
        await gateway.finish(first)
        answered = [(await socket.frame())["request_id"]]
        for _ in range(2):
            await gateway.finish(await gateway.claim())
            answered.append((await socket.frame())["request_id"])
    assert answered == [0, 3, 4]


HOSTILE = [{"a": b"\xff"}, {"a": float("nan")}, {"a": msgpack.Timestamp(1)}, {"request_id": b"x"}]
MANY = [{"a": [0] * 1001}, {"a": [[]] * 999}, {"a": [{"b": 0}] * 600}, {"a": [[0] * 400] * 3}]


@pytest.mark.parametrize(
    "data",
    [
        {"bytes": b"\xc1"},
        {"bytes": msgpack.packb([1])},
        {"text": "{"},
        {"text": "5"},
        {"text": '{"image_url": "\\ud800"}'},
        *({"bytes": msgpack.packb({**INPUT, **more})} for more in HOSTILE + MANY),
        {"text": json.dumps({**INPUT, "a": [[]] * 50_001})},
    ],
)
async def test_a_frame_that_is_no_map_is_an_error_and_the_next_is_served(
    gateway: Gateway, data: dict[str, Any]
) -> None:
    async with connect(gateway) as socket:
        await accepted(socket)
        socket.to_app.put_nowait({"type": "websocket.receive", **data})
        error = await socket.frame()
        assert (error["type"], error["error"]) == ("x-fal-error", "BAD_REQUEST")
        socket.send(INPUT)
        await gateway.finish(await gateway.claim())
        assert await socket.frame() == OUTPUT


async def test_some_values_more_than_an_input_has_are_passed_over(gateway: Gateway) -> None:
    async with connect(gateway) as socket:
        await accepted(socket)
        for text in (False, True):
            socket.send({**INPUT, "a": [[0] * 90] * 10}, text)
            await gateway.finish(await gateway.claim())
            assert await socket.frame() == OUTPUT


async def test_a_bad_input_is_a_text_frame_that_names_it(gateway: Gateway) -> None:
    async with connect(gateway) as socket:
        await accepted(socket)
        socket.send({"steps": 0, "request_id": "x"})
        error = await socket.frame()
    assert (error["type"], error["request_id"]) == ("x-fal-error", "x")
    assert "image_url" in error["reason"]


async def test_a_lost_replica_is_an_error_of_its_input(gateway: Gateway) -> None:
    async with connect(gateway) as socket:
        await accepted(socket)
        socket.send(INPUT)
        await gateway.store.lose(await gateway.claim(), OWNER, "the replica died")
        assert (await socket.frame())["error"] == "RUNNER_DISCONNECTED"


async def test_who_disconnects_cancels_what_runs(gateway: Gateway) -> None:
    async with connect(gateway) as socket:
        await accepted(socket)
        socket.send(INPUT)
        attempt = await gateway.claim()
    request = await gateway.store.get(attempt.request_id)
    assert request and request.cancel_requested


async def test_an_idle_connection_is_closed_with_a_word(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime_routes, "IDLE_SECONDS", 0.05)
    async with connect(gateway) as socket:
        await accepted(socket)
        assert (await socket.frame())["error"] == "TIMEOUT"
        closed = await socket.receive()
    assert (closed["type"], closed["code"]) == ("websocket.close", 1000)


@pytest.mark.parametrize("key", [None, "nobody:nothing"])
async def test_without_a_valid_key_the_handshake_is_refused(gateway: Gateway, key: str | None) -> None:
    async with connect(gateway, key=key) as socket:
        assert (await socket.receive())["type"] == "websocket.close"


async def test_an_unknown_endpoint_refuses_the_handshake(gateway: Gateway) -> None:
    async with connect(gateway, endpoint="fal-ai/flux") as socket:
        assert (await socket.receive())["type"] == "websocket.close"


async def test_a_token_opens_its_own_app_alone(gateway: Gateway) -> None:
    reply = await gateway.client.post("/tokens/", json={"allowed_apps": ["svd"], "token_expiration": 60})
    async with connect(gateway, query=f"fal_jwt_token={reply.json()}", key=None) as socket:
        await accepted(socket)
    async with connect(gateway, endpoint=FAST, query=f"fal_jwt_token={reply.json()}", key=None) as socket:
        assert (await socket.receive())["type"] == "websocket.close"


async def test_a_connections_idempotency_key_makes_no_two_inputs_one(gateway: Gateway) -> None:
    async with connect(gateway, headers=[(b"idempotency-key", b"abc")]) as socket:
        await accepted(socket)
        for seed in (1, 2):
            socket.send({**INPUT, "seed": seed})
            attempt = await gateway.claim()
            await gateway.finish(attempt, {"image": {}, "seed": seed})
            assert (await socket.frame())["seed"] == seed


async def test_an_unforeseen_fault_is_an_answer_and_the_next_input_is_served(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(gateway) as socket:
        await accepted(socket)
        with monkeypatch.context() as patch:
            patch.setattr(gateway.store, "submit", None)
            socket.send(INPUT)
            assert (await socket.frame())["error"] == "INTERNAL_ERROR"
        socket.send(INPUT)
        await gateway.finish(await gateway.claim())
        assert await socket.frame() == OUTPUT


async def test_a_key_that_is_revoked_sends_no_more_inputs(gateway: Gateway) -> None:
    made = (await gateway.client.post("/v1/keys", json={"alias": "brief"})).json()
    async with connect(gateway, key=made["key"]) as socket:
        await accepted(socket)
        await gateway.client.delete(f"/v1/keys/{made['key_id']}")
        socket.send(INPUT)
        assert (await socket.frame())["error"] == "UNAUTHORIZED"
    assert await gateway.waiting() == 0


async def test_a_frame_is_not_read_before_its_caller_may_send_it(gateway: Gateway) -> None:
    limits = {"requests_per_second": 0.001}
    made = (await gateway.client.post("/v1/keys", json={"alias": "slow", "limits": limits})).json()
    async with connect(gateway, key=made["key"]) as socket:
        await accepted(socket)
        errors = []
        for _ in range(2):
            socket.to_app.put_nowait({"type": "websocket.receive", "bytes": b"\xc1"})
            errors.append((await socket.frame())["error"])
        await gateway.client.delete(f"/v1/keys/{made['key_id']}")
        socket.to_app.put_nowait({"type": "websocket.receive", "bytes": b"\xc1"})
        errors.append((await socket.frame())["error"])
    assert errors == ["BAD_REQUEST", "RATE_LIMITED", "UNAUTHORIZED"]


async def test_a_secret_that_works_no_more_sends_no_more_inputs(gateway: Gateway) -> None:
    made = (await gateway.client.post("/v1/keys", json={"alias": "leaked"})).json()
    mine = {"authorization": f"Key {made['key']}"}
    token = (await gateway.client.post("/tokens/", json={"allowed_apps": [SVD]}, headers=mine)).json()
    async with (
        connect(gateway, key=made["key"]) as by_key,
        connect(gateway, key=None, query=f"fal_jwt_token={token}") as by_token,
    ):
        for socket in (by_key, by_token):
            await accepted(socket)
        await gateway.client.post(f"/v1/keys/{made['key_id']}/rotate", json={"keep_seconds": 3600})
        by_key.send(INPUT)
        await gateway.finish(await gateway.claim())
        assert await by_key.frame() == OUTPUT

        await gateway.client.post(f"/v1/keys/{made['key_id']}/rotate", json={"keep_seconds": 0})
        by_key.send(INPUT)
        assert (await by_key.frame())["error"] == "UNAUTHORIZED"
        by_token.send(INPUT)
        await gateway.finish(await gateway.claim())
        assert await by_token.frame() == OUTPUT
