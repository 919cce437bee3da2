"""What comes over a wire: bytes on a connection of the proxy, and what a decoder says, which is believed in nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from typing import Any

import h11
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from deployments.gateway.patience import MOST_HEAD_BYTES, MOST_HEADERS, PatientProtocol
from deployments.inference.decoder.pool import (
    _count_maps,
    _count_picture,
    _MapsHeader,
    _PictureHeader,
    _reader,
    _Refusal,
)
from deployments.inference.images import MAX_PIXELS
from deployments.models.size import Size
from tests.fuzz.target import finish, loop, target

ANSWERS = {200, 400, 408, 414, 431, 501, 503}
SIZES = [Size(64, 64), Size(128, 64)]
MOST_MAPS = 25

Request = tuple[bytes, bytes, bytes]
"""Method, target and body."""


@target(
    longest=4096,
    words=(
        *(
            "GET ",
            "POST ",
            "PRI * HTTP/2.0\r\n\r\n",
            " HTTP/1.1\r\n",
            " HTTP/1.0\r\n",
            "Host: x\r\n",
            "\r\n\r\n",
            "\n",
            "\r",
        ),
        *(
            "Content-Length: 5\r\n",
            "Transfer-Encoding: chunked\r\n",
            "chunked",
            "identity",
            "5\r\nhello\r\n",
            "0\r\n\r\n",
        ),
        *("Connection: close\r\n", "Connection: upgrade\r\nUpgrade: websocket\r\n", "Expect: 100-continue\r\n", ";x=y"),
        *("\x0b", "\t", " :", "+5", "0x5", "5, 5", "http://x/", "//", "?", "#"),
    ),
)
def connection(data: bytes) -> None:
    """Bytes in two pieces ──▶ requests that another parser reads alike, or refusals in HTTP; never an exception."""
    at, sent = (data[0], data[1:]) if data else (0, b"")
    wire = Wire()
    reached: list[Request] = []
    protocol = PatientProtocol(_config(_app(reached)), ServerState(), {}, loop())
    finish(_speak(protocol, wire, [sent[:at], sent[at:]]))
    statuses = _statuses(wire.written)
    assert set(statuses) <= ANSWERS, statuses
    assert len(reached) >= statuses.count(200)
    read, whole = _as_h11_reads(sent)
    both = min(len(reached), len(read))
    assert reached[:both] == read[:both] and (len(reached) <= len(read) or not whole), f"{reached}, or {read}?"


class Wire(asyncio.Transport):
    """A connection on which nothing is but what is fed, and that remembers what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 50000), "sockname": ("127.0.0.1", 8000)})
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def _speak(protocol: PatientProtocol, wire: Wire, pieces: list[bytes]) -> None:
    protocol.connection_made(wire)
    for piece in pieces:
        if piece and not wire.closed:
            protocol.data_received(piece)
        for _ in range(8):
            await asyncio.sleep(0)
    if not wire.closed:
        protocol.eof_received()
    protocol.connection_lost(None)
    for _ in range(8):
        await asyncio.sleep(0)


def _app(reached: list[Request]) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        _check_scope(scope)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        reached.append((scope["method"].encode(), _path(scope["raw_path"] + query), body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    return app


def _check_scope(scope: Scope) -> None:
    """What reaches the application has one reading."""
    names = [name for name, _ in scope["headers"]]
    assert scope["http_version"] in ("1.0", "1.1") and names.count(b"host") <= 1
    assert names.count(b"host") == 1 or scope["http_version"] == "1.0"
    assert not {b"content-length", b"transfer-encoding"} <= set(names) and names.count(b"content-length") <= 1
    assert (
        len(names) <= MOST_HEADERS
        and sum(len(name) + len(value) for name, value in scope["headers"]) <= MOST_HEAD_BYTES
    )
    assert not any(b"\r" in value or b"\n" in value or b"\0" in value for _, value in scope["headers"])
    assert scope["raw_path"].isascii() and scope["query_string"].isascii()


@cache
def _settings() -> uvicorn.Config:
    async def nothing(scope: Scope, receive: Receive, send: Send) -> None: ...

    config = uvicorn.Config(nothing, lifespan="off", access_log=False, log_level=None, log_config=None, ws="none")
    config.load()
    return config


def _config(app: Callable[..., Any]) -> uvicorn.Config:
    config = _settings()
    config.loaded_app = app
    return config


def _statuses(written: bytes) -> list[int]:
    """The statuses of the answers on a wire, which all have to be whole."""
    found = []
    while written:
        head, _, rest = written.partition(b"\r\n\r\n")
        status, *lines = head.split(b"\r\n")
        assert status.startswith(b"HTTP/1.1 "), written
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        found.append(int(status.split()[1]))
        length = int(headers.get(b"content-length", b"0"))
        if found[-1] == 100:
            length, found = 0, found[:-1]
        written = rest[length:]
    return found


def _path(target: bytes) -> bytes:
    """The path and query that a target means, which may be a whole URL."""
    if target[:7].lower() == b"http://" or target[:8].lower() == b"https://":
        _, slash, rest = target.partition(b"//")[2].partition(b"/")
        target = slash + rest
    return target.partition(b"#")[0].removesuffix(b"?") or b"/"


def _as_h11_reads(data: bytes) -> tuple[list[Request], bool]:
    """The requests that h11 reads to their ends, and whether that is all: neither an error nor half of one more."""
    reader, found = h11.Connection(h11.SERVER), list[Request]()
    reader.receive_data(data)
    request, body = h11.Request(method="GET", target="/", headers=[("host", "x")]), b""
    try:
        while True:
            match reader.next_event():
                case h11.Request() as event:
                    request, body = event, b""
                case h11.Data() as piece:
                    body += bytes(piece.data)
                case h11.EndOfMessage():
                    found.append((request.method, _path(request.target), body))
                    reader.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                    reader.send(h11.EndOfMessage())
                    if reader.our_state is not h11.DONE or reader.their_state is not h11.DONE:
                        return found, True  # it says that this is the last
                    reader.start_next_cycle()
                case _:
                    return found, not reader.trailing_data[0] and reader.their_state is h11.IDLE
    except h11.ProtocolError:
        return found, False


@target(
    words=(
        *(
            '{"size":[64,64],"original":[16,16]}',
            '{"maps":3}',
            '"error":"',
            '"message":"',
            '"ctx":{}',
            "ImageLoadError",
        ),
        *("16384", "1e400", "NaN", "-1", "9" * 30, "null", '{"error":"InvalidArchive","message":"x","ctx":{}}'),
    )
)
def decoder_answer(data: bytes) -> None:
    """What a decoder says ──▶ a size that was asked for, or a refusal that it may give, or a ValueError."""
    readers = (
        _reader(_PictureHeader, lambda header: _count_picture(SIZES, header)),
        _reader(_MapsHeader, lambda header: _count_maps(MOST_MAPS, header)),
    )
    for read in readers:
        try:
            header, count = read(data)
        except ValueError:
            continue
        if isinstance(header, _Refusal):
            assert count == 0 and len(header.message) <= 2000 and len(header.ctx) <= 10
        elif isinstance(header, _PictureHeader):
            assert count in [3 * size.width * size.height for size in SIZES]
            assert 0 < header.original[0] * header.original[1] <= MAX_PIXELS
        else:
            assert 1 <= count <= MOST_MAPS
