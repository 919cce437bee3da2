"""The proxy's protocol by itself: a real uvicorn, started as Serve starts it, and callers who speak as they like."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import config as uvicorn_config

from deployments.gateway import patience
from deployments.gateway.patience import PatientProtocol

PATIENCE = 20.0
SOON = 0.3
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
OK = b'{"read":'


@dataclass
class App:
    """Answers how many bytes it has read, once it has read so many or all."""

    enough: int = 10**12
    answer_bytes: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[Message] = field(default_factory=list)
    holds: bool = False
    """Whether it begins to read only when told."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.holds:
            await self.gate.wait()
        read, more = 0, True
        while more and read < self.enough:
            message = await receive()
            self.seen.append({**message, "body": len(message.get("body", b""))})
            if message["type"] == "http.disconnect":
                return
            read, more = read + len(message["body"]), message["more_body"]
        body = OK + str(read).encode() + b"}" + b" " * self.answer_bytes
        length = str(len(body)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})


@dataclass
class Running:
    """A server, and ways to talk to it."""

    port: int
    server: uvicorn.Server
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new connection, which ends with the server at the latest."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return reader, writer

    async def hang_up(self) -> None:
        """End all connections."""
        for writer in self.writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def say(self, data: bytes) -> bytes:
        """Send some bytes; answer all that comes until the server closes."""
        reader, writer = await self.connect()
        writer.write(data)
        async with asyncio.timeout(PATIENCE):
            return await reader.read()

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self.server.server_state.connections)


@asynccontextmanager
async def serving(app: ASGIApp, ws: Literal["auto", "none"] = "none") -> AsyncIterator[Running]:
    """uvicorn with the arguments that Serve gives it."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        lambda: app, factory=True, lifespan="off", access_log=False, log_level=None, log_config=None, ws=ws
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server._serve([bound]))
    talk = Running(bound.getsockname()[1], server)
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield talk
    finally:
        await talk.hang_up()
        server.should_exit = server.force_exit = True
        await running


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every clock goes a hundred times as fast; what is installed ends with the test."""
    for table in (uvicorn_config.HTTP_PROTOCOLS, uvicorn_config.WS_PROTOCOLS):
        monkeypatch.setitem(table, "auto", table["auto"])  # type: ignore[arg-type]
    patience.install()
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "STUCK_SECONDS", "PARTING_SECONDS"):
        monkeypatch.setattr(patience, name, SOON)


@pytest.fixture
async def app() -> App:
    return App()


@pytest.fixture
async def running(app: App) -> AsyncIterator[Running]:
    async with serving(app) as running:
        yield running


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has to come."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def test_uvicorn_takes_the_protocol_where_serve_names_none(running: Running) -> None:
    assert running.server.config.http_protocol_class is PatientProtocol


async def test_a_request_is_answered_without_a_banner_and_another_may_follow(running: Running) -> None:
    reader, writer = await running.connect()
    for _ in range(3):
        writer.write(GET)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"server:" not in head.lower()
        assert await reader.readexactly(len(OK) + 2) == OK + b"0}"


async def test_requests_may_be_sent_at_once(running: Running) -> None:
    assert (await running.say(GET * 30 + LAST)).count(b"HTTP/1.1 200 OK") == 31


async def test_requests_do_not_pile_up() -> None:
    app = App(holds=True)
    async with serving(app) as running:
        assert await running.say(GET * 1000) == b""
        app.gate.set()
        await until(lambda: not running.server.server_state.tasks)
    assert len(app.seen) == 1


# ---------------------------------------------------------------- clocks


async def test_who_never_speaks_is_cut_off(running: Running) -> None:
    began = time.monotonic()
    assert await running.say(b"") == b""
    assert time.monotonic() - began >= SOON


@pytest.mark.parametrize("beginning", [b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b", GET + b"GET / HT"])
async def test_half_a_head_is_told_so_and_cut_off(running: Running, beginning: bytes) -> None:
    answer = await running.say(beginning)
    *earlier, last = answer.split(b"HTTP/1.1 ")[1:]
    assert last.startswith(b"408 Request Timeout")
    assert b"connection: close" in last
    assert len(earlier) == beginning.count(b"\r\n\r\n")


async def test_a_head_that_drips_is_cut_off(running: Running) -> None:
    reader, writer = await running.connect()
    for byte in b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 1000:
        writer.write(bytes([byte]))
        await asyncio.sleep(SOON / 30)
        if reader.at_eof() or reader._buffer:  # type: ignore[attr-defined]
            break
    assert (await reader.read()).startswith(b"HTTP/1.1 408")


async def test_empty_lines_are_no_sign_of_life(running: Running) -> None:
    reader, writer = await running.connect()
    writer.write(GET)
    await reader.readuntil(b"}")
    with pytest.raises(ConnectionError):
        for _ in range(300):
            writer.write(b"\r\n")
            await writer.drain()
            await asyncio.sleep(SOON / 30)
            if reader.at_eof():
                raise ConnectionResetError


@pytest.mark.parametrize(
    "length", [b"Content-Length: 1000000\r\n\r\nx", b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"]
)
async def test_a_body_that_stops_coming_is_told_so_and_cut_off(app: App, running: Running, length: bytes) -> None:
    answer = await running.say(HEAD + length)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"error_type":"bad_request"' in answer
    await until(lambda: app.seen[-1]["type"] == "http.disconnect")


async def test_a_body_that_drips_is_cut_off(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LEAST_BODY_BYTES", 100)
    reader, writer = await running.connect()
    writer.write(HEAD + b"Content-Length: 1000000\r\n\r\n")
    while not reader._buffer and not reader.at_eof():  # type: ignore[attr-defined]
        writer.write(b"x")
        await asyncio.sleep(SOON / 10)
    assert (await reader.read()).startswith(b"HTTP/1.1 408")


async def test_a_slow_body_that_brings_enough_is_read_to_its_end(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "LEAST_BODY_BYTES", 100)
    reader, writer = await running.connect()
    writer.write(HEAD + b"Content-Length: 2000\r\n\r\n")
    for _ in range(20):
        writer.write(b"x" * 100)
        await asyncio.sleep(SOON / 4)
    assert (await reader.readuntil(b"}")).endswith(OK + b"2000}")


async def test_a_body_that_we_do_not_read_is_waited_for() -> None:
    app = App(holds=True)
    async with serving(app) as running:
        reader, writer = await running.connect()
        size = 300_000
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
        await asyncio.sleep(3 * SOON)
        assert running.open == 1
        app.gate.set()
        assert (await reader.readuntil(b"}")).endswith(OK + b"%d}" % size)


async def test_a_long_answer_to_a_whole_request_is_waited_for() -> None:
    app = App(holds=True)
    async with serving(app) as running:
        reader, writer = await running.connect()
        writer.write(GET)
        await asyncio.sleep(3 * SOON)
        app.gate.set()
        assert (await reader.readuntil(b"}")).endswith(OK + b"0}")


@pytest.mark.parametrize("request_", [GET, LAST], ids=["more may follow", "the last"])
async def test_who_does_not_read_the_answer_is_cut_off(request_: bytes) -> None:
    async with serving(App(answer_bytes=50_000_000)) as running:
        with socket.create_connection(("127.0.0.1", running.port)) as deaf:
            deaf.sendall(request_)
            await until(lambda: running.open == 1)
            await until(lambda: running.open == 0)


async def test_who_has_gone_is_missed_by_the_request_that_runs(app: App, running: Running) -> None:
    _, writer = await running.connect()
    writer.write(HEAD + b"Content-Length: 10\r\n\r\n" + b"x" * 10 + GET)
    app.holds = True
    await until(lambda: len(running.server.server_state.tasks) == 1)
    writer.close()
    await until(lambda: running.open == 0)
    app.gate.set()
    await until(lambda: bool(app.seen))
    assert [message["type"] for message in app.seen] == ["http.disconnect"]


async def test_an_early_answer_is_heard_and_the_rest_of_the_body_is_not() -> None:
    async with serving(App(enough=1)) as running:
        reader, writer = await running.connect()
        writer.write(HEAD + b"Content-Length: 1000000000\r\n\r\n")
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(send(), PATIENCE)
        assert sent < patience.PARTING_BYTES * 8  # what the sockets of both sides hold comes on top
        await until(lambda: running.open == 0)
        assert OK in bytes(reader._buffer)  # type: ignore[attr-defined]


async def test_a_caller_who_ends_its_body_after_an_early_answer_sees_it() -> None:
    async with serving(App(enough=1)) as running:
        answer = await running.say(HEAD + b"Content-Length: 1000\r\n\r\nx")
        assert OK in answer
        assert b"\r\nconnection: close\r\n" in answer.lower()


# ---------------------------------------------------------------- measures


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /?" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /" + b"a" * 1_000_000, 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(1000)) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 1_000_000, 431),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 1_000_000, 431),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-A: " + b"a" * 1_000_000, 431),
    ],
)
async def test_what_is_too_long_is_refused(running: Running, head: bytes, status: int) -> None:
    assert (await running.say(head)).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    "request_",
    [
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: identity\r\n\r\n",
        HEAD + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        HEAD + b"Content-Length: +1\r\n\r\nx",
        HEAD + b"Content-Length: 0x1\r\n\r\nx",
        HEAD + b"Content-Length: 1, 1\r\n\r\nx",
        HEAD + b"X-A: b\r\n c\r\n\r\n",
        HEAD + b"X-A: b\rc\r\n\r\n",
        HEAD + b"X-A: b\0c\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET file:///etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 9\r\n\r\nGET /x HT",
    ],
)
async def test_what_may_be_read_in_two_ways_is_read_in_none(app: App, running: Running, request_: bytes) -> None:
    answer = await running.say(request_ + GET)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1  # what follows is no request
    for header in (b"connection: close", b"x-content-type-options: nosniff", b"x-fal-request-id: ", b"date: "):
        assert header in answer
    assert answer.endswith(b'"error_type":"bad_request"}')
    assert not [message for message in app.seen if message["type"] == "http.request" and not message["more_body"]]


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET http://x/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        HEAD + b"Transfer-Encoding: Chunked\r\nConnection: close\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    ],
)
async def test_what_is_unusual_and_clear_is_served(running: Running, request_: bytes) -> None:
    assert (await running.say(request_)).startswith(b"HTTP/1.1 200 OK\r\n")


# ---------------------------------------------------------------- connections


async def test_the_longest_idle_connection_makes_room(
    running: Running, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(patience, "HEAD_SECONDS", PATIENCE)
    first, second = await running.connect(), await running.connect()
    await until(lambda: running.open == 2)
    third = await running.connect()
    third[1].write(GET)
    assert await third[0].readuntil(b"}")
    assert await asyncio.wait_for(first[0].read(), PATIENCE) == b""
    second[1].write(GET)
    assert await second[0].readuntil(b"}")


async def test_who_does_not_read_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "MOST_CONNECTIONS", 1)
    monkeypatch.setattr(patience, "STUCK_SECONDS", 10 * PATIENCE)
    app = App(answer_bytes=50_000_000)
    async with serving(app) as running:
        with socket.create_connection(("127.0.0.1", running.port)) as deaf:
            deaf.sendall(GET)
            await until(lambda: bool(app.seen))
            app.answer_bytes = 0
            assert (await running.say(LAST)).startswith(b"HTTP/1.1 200 OK")


async def test_where_all_are_busy_one_more_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "MOST_CONNECTIONS", 2)
    app = App(holds=True)
    async with serving(app) as running:
        busy = [await running.connect() for _ in range(2)]
        for _, writer in busy:
            writer.write(GET)
        await until(lambda: len(running.server.server_state.tasks) == 2)
        refused = await running.say(GET)
        assert refused.startswith(b"HTTP/1.1 503 Service Unavailable")
        assert b"retry-after: " in refused
        app.gate.set()
        for reader, _ in busy:
            assert await reader.readuntil(b"}")


# ---------------------------------------------------------------- WebSockets


async def listen(scope: Scope, receive: Receive, send: Send) -> None:
    """Take every frame."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def test_no_frame_is_inflated() -> None:
    async with serving(listen, ws="auto") as running:
        reader, writer = await running.connect()
        writer.write(UPGRADE + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    assert head.startswith(b"HTTP/1.1 101")
    assert b"sec-websocket-extensions" not in head.lower()


@pytest.mark.parametrize(
    "more",
    [b"Cookie: " + b"a" * 9000 + b"\r\n", b"".join(b"X-%d: a\r\n" % n for n in range(150))],
    ids=["long", "many"],
)
async def test_a_head_that_opens_no_websocket_is_told_so(more: bytes) -> None:
    async with serving(listen, ws="auto") as running:
        assert (await running.say(UPGRADE + more + b"\r\n")).startswith(b"HTTP/1.1 431 ")
        assert running.open == 0


async def test_who_reads_no_pongs_sends_no_more_pings() -> None:
    ping = b"\x89\xfd\0\0\0\0" + b"x" * 125
    async with serving(listen, ws="auto") as running:
        reader, writer = await running.connect()
        writer.write(UPGRADE + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        sent = 0
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(PATIENCE):
                while True:
                    writer.write(ping * 500)
                    await writer.drain()
                    sent += 500 * len(ping)
        assert sent < 40_000_000  # what the sockets of both sides hold
        await until(lambda: running.open == 0)
