"""Rows 63 to 66, 78, 85 and 87: HTTP itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any

from tests.hostile.rows_of_bodies import good
from tests.hostile.table import (
    FAST,
    JSON,
    Call,
    Caller,
    Case,
    Expected,
    Raw,
    Reply,
    Script,
    parse,
    refused,
)

MEGABYTE = 1024 * 1024
TOO_LARGE = refused(413, "bad_request")
MOST_READ = 64 * MEGABYTE
"""Of a body that is refused no more may be taken than this, buffers of the network on the way included."""

HEADER_SECONDS, BODY_SECONDS = 20.0, 90.0
"""By then a request is cut whose header, or whose body, does not come."""

IDLE_CONNECTIONS = 500
SOON = 10.0
STRANGERS = 500
"""Names that nobody knows, of each kind. The table speaks of 10,000, which would take a minute."""


def _bodies() -> Iterator[Case]:
    for name, size in (("100 MB", 100 * MEGABYTE), ("2 GB", 2048 * MEGABYTE)):
        for path in (f"/{FAST}", f"/queue/{FAST}", "/v1/keys", "/tokens/", "/storage/upload/initiate", "/no/such/app"):
            yield Script(row=63, name=f"{name} to {path}", steps=_announced(path, size))
    yield Script(row=63, name="a body that comes after the answer", steps=_late)
    for path in (f"/{FAST}", f"/queue/{FAST}", "/v1/keys"):
        yield Script(row=63, name=f"chunks without an end to {path}", steps=_chunked(path))


async def _late(caller: Caller) -> None:
    """An answer that is given before the body has come: whoever is to say no more is told that the connection ends."""
    head = caller.head("POST", f"/{FAST}", "Content-Type: application/json", "Content-Length: 2", key=False)
    async with caller.world.connect() as line:
        await line.send(head)
        answer = await line.receive()
        reply = caller.look(parse(answer))
        assert reply.status == 401, reply.short
        await line.send(b"{}")
        if reply.headers.get("connection") != "close":
            await line.send(caller.head("GET", "/health/live"))
            assert (await line.receive()).startswith(b"HTTP/1.1 200"), "closed without a word"


def _announced(path: str, size: int) -> Any:
    """A body that says how large it is: it is refused before it is read."""

    async def steps(caller: Caller) -> None:
        head = caller.head("POST", path, "Content-Type: application/json", f"Content-Length: {size}")
        reply, sent = await _pour(caller, head, b"x" * 65536, size)
        _is_refused(path, reply)
        assert sent < MOST_READ, f"{sent} bytes were taken"

    return steps


def _chunked(path: str) -> Any:
    """A body that does not say how large it is."""

    async def steps(caller: Caller) -> None:
        head = caller.head("POST", path, "Content-Type: application/json", "Transfer-Encoding: chunked")
        reply, sent = await _pour(caller, head, b"10000\r\n" + b"x" * 65536 + b"\r\n", 2048 * MEGABYTE)
        _is_refused(path, reply)
        assert sent < MOST_READ, f"{sent} bytes were taken"

    return steps


def _is_refused(path: str, reply: Reply) -> None:
    if path.startswith("/v1/"):
        assert reply.status in (400, 413) and reply.json["error"]["type"] == "validation_error", reply.short
    elif path == "/no/such/app":
        assert reply.status in (404, 413), reply.short
    else:
        TOO_LARGE.compare(reply)


async def _pour(caller: Caller, head: bytes, piece: bytes, size: int) -> tuple[Reply, int]:
    """Send until the service hangs up; answer what it said, and how much it took."""
    received = bytearray()
    sent = 0
    async with caller.world.connect() as line:

        async def listen() -> None:
            while block := await line.receive():
                received.extend(block)

        listening = asyncio.create_task(listen())
        try:
            async with asyncio.timeout(60):
                with suppress(ConnectionError):
                    await line.send(head)
                    while sent < size and not listening.done():
                        await line.send(piece)
                        sent += len(piece)
                await listening
        except TimeoutError:
            raise AssertionError(f"still open after {bytes(received[:200])!r}, {sent} bytes sent") from None
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
    return caller.look(parse(bytes(received))), sent


# ---------------------------------------------------------------- slow ones


async def _slow_header(caller: Caller) -> None:
    head = caller.head("GET", "/health/live")
    await _is_cut(caller, [head[i : i + 1] for i in range(len(head))], HEADER_SECONDS)


async def _slow_body(caller: Caller) -> None:
    head = caller.head("POST", f"/{FAST}", "Content-Type: application/json", "Content-Length: 1000")
    await _is_cut(caller, [head, *[b" "] * 1000], BODY_SECONDS)


async def _silent(caller: Caller) -> None:
    await _is_cut(caller, [caller.head("GET", "/health/live")[:-2]], HEADER_SECONDS)


async def _silent_body(caller: Caller) -> None:
    head = caller.head("POST", f"/{FAST}", "Content-Type: application/json", "Content-Length: 1000")
    await _is_cut(caller, [head], BODY_SECONDS)


async def _is_cut(caller: Caller, pieces: list[bytes], seconds: float) -> None:
    reply = await caller.raw(pieces, seconds + 5, pause=1.0)
    assert reply.status in (None, 400, 408, 413), reply.short
    assert 3 < reply.seconds < seconds, f"cut after {reply.seconds:.1f} s"


async def _idle(caller: Caller) -> None:
    """Many connections that say nothing: others are served, and these are cut."""
    async with AsyncExitStack() as open_ones:
        idle = [await open_ones.enter_async_context(caller.world.connect()) for _ in range(IDLE_CONNECTIONS)]
        for path, method in (("/health/live", "GET"), (f"/queue/{FAST}", "POST")):
            reply = await caller.call(method, path, json=good() | {"steps": 0})
            assert reply.status == 200 and reply.seconds < SOON, reply.short
        async with asyncio.timeout(HEADER_SECONDS):
            await asyncio.gather(*(line.receive() for line in idle))


def _slow() -> Iterator[Case]:
    for name, steps in (
        ("a header, a byte a second", _slow_header),
        ("half a header", _silent),
        ("a body, a byte a second", _slow_body),
        ("no body", _silent_body),
        ("500 connections that say nothing", _idle),
    ):
        yield Script(row=64, name=name, steps=steps, slow=True)


# ---------------------------------------------------------------- large and malformed heads


def _heads() -> Iterator[Case]:
    large, long = refused(431, "bad_request"), refused(414, "bad_request")
    yield _raw(65, "a header of 64 KB", ["X-Large: " + "x" * 65536], large)
    yield _raw(65, "a header of 1 MB", ["X-Large: " + "x" * MEGABYTE], large)
    yield _raw(65, "1,000 headers", [f"X-{i}: y" for i in range(1000)], large)
    yield _raw(65, "100,000 headers", [f"X-{i}: y" for i in range(100_000)], large)
    yield _raw(65, "a path of 64 KB", [], long, path="/" + "x" * 65536)
    yield _raw(65, "a query of 64 KB", [], long, path="/health/live?" + "x" * 65536)
    yield _raw(65, "a query of 1 MB", [], long, path="/health/live?" + "x" * MEGABYTE)
    yield _raw(65, "a key of 32 KB", ["Authorization: Key " + "x" * 32768], large, key=False)
    yield from _smuggled()
    for name, sent in (
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)),
        ("NULs", bytes(1000)),
        ("HTTP/0.9", b"GET /health/live\r\n\r\n"),
        ("HTTP/9.9", b"GET /health/live HTTP/9.9\r\nHost: x\r\n\r\n"),
        ("a space in the path", b"GET /health live HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("no host", b"GET /health/nothing HTTP/1.1\r\n\r\n"),
        ("a NUL in a header", b"GET /health/live HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n"),
        ("a space before the colon", b"GET /health/live HTTP/1.1\r\nHost : x\r\n\r\n"),
        ("no colon", b"GET /health/live HTTP/1.1\r\nHost: x\r\nnothing\r\n\r\n"),
    ):
        expected = refused(400, "bad_request")
        yield Raw(row=66, name=name, make=lambda caller, sent=sent: sent, expected=expected, seconds=15)


def _raw(
    row: int, name: str, headers: list[str], expected: Expected, path: str = "/health/live", key: bool = True
) -> Raw:
    def make(caller: Caller) -> bytes:
        return caller.head("GET", path, *headers, "Connection: close", key=key)

    return Raw(row=row, name=name, make=make, expected=expected, seconds=20)


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


def _smuggled() -> Iterator[Case]:
    """Whatever two servers could take for different lengths is refused, and what hides behind it is not carried out."""
    body = b"0\r\n\r\n" + SMUGGLED
    length = f"Content-Length: {len(body)}"
    for name, headers in (
        ("CL and TE", [length, "Transfer-Encoding: chunked"]),
        ("TE and CL", ["Transfer-Encoding: chunked", "Content-Length: 5"]),
        ("TE: xchunked", ["Transfer-Encoding: xchunked"]),
        ("TE: chunked, identity", ["Transfer-Encoding: chunked, identity"]),
        ("TE twice", ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"]),
        ("TE with a tab", ["Transfer-Encoding:\tchunked\x0b"]),
        ("TE over two lines", ["Transfer-Encoding:\r\n chunked"]),
        ("a header over two lines", ["X-Folded: a\r\n b", length]),
        ("CL twice", ["Content-Length: 5", length]),
        ("CL with a plus", ["Content-Length: +5"]),
        ("CL below zero", ["Content-Length: -1"]),
        ("CL in words", ["Content-Length: five"]),
        ("CL with a comma", ["Content-Length: 5, 5"]),
        ("CL of 30 digits", ["Content-Length: " + "9" * 30]),
    ):
        yield Script(row=66, name=name, steps=_sends(headers, body))
    for name, chunk in (("a bad chunk", b"zz\r\n"), ("an immense chunk", b"f" * 20 + b"\r\n"), ("-1", b"-1\r\n")):
        yield Script(row=66, name=name, steps=_sends(["Transfer-Encoding: chunked"], chunk + SMUGGLED))


def _sends(headers: list[str], body: bytes) -> Any:
    async def steps(caller: Caller) -> None:
        sent = caller.head("POST", f"/{FAST}", "Content-Type: application/json", *headers) + body
        reply = await caller.raw(sent, 15)
        refused(400, "bad_request").compare(reply)
        assert reply.body.count(b"HTTP/1.1 ") == 0, f"answered twice: {reply.short}"

    return steps


# ---------------------------------------------------------------- methods and paths


def _paths() -> Iterator[Case]:
    for method in ("PUT", "PATCH", "DELETE"):
        yield _call(78, f"{method} of a submit", method, f"/queue/{FAST}", Expected((404, 405), check=_allow))
        yield _call(78, f"{method} of a run", method, f"/{FAST}", Expected((404, 405), check=_allow))
    yield _call(78, "POST of a status", "POST", f"/queue/{FAST}/requests/{'0' * 36}/status", Expected((404, 405)))
    yield _call(78, "POST of the health", "POST", "/health/live", Expected((404, 405)))
    for path in (f"/queue/{FAST}", f"/{FAST}", "/v1/keys", "/files/samples/landscape.jpg"):
        yield _call(78, f"HEAD {path}", "HEAD", path, Expected((200, 404, 405)))
    preflight = {"origin": "https://page.example", "access-control-request-method": "POST"}
    yield _call(
        78, "preflight", "OPTIONS", f"/queue/{FAST}", Expected((200, 204), check=_is_preflight), headers=preflight
    )
    yield _call(78, "OPTIONS", "OPTIONS", f"/queue/{FAST}", Expected((200, 204, 404, 405)))
    bad = preflight | {"access-control-request-method": "X" * 2000, "access-control-request-headers": "\x7f" * 100}
    yield _call(78, "a strange preflight", "OPTIONS", f"/{FAST}", Expected((200, 204, 400)), headers=bad)
    for name, path in (
        ("an unknown app", "/queue/fal-ai/no-such"), ("a slash at the end", f"/queue/{FAST}/"),
        ("the queue itself", "/queue"), ("dots", "/queue/../v1/keys/x"), ("upper case", f"/queue/{FAST.upper()}"),
    ):  # fmt: skip
        yield _call(78, name, "POST", path, Expected((404, 405)), json=good())
    for path in (
        f"//queue//{FAST}", f"//{FAST}", f"/queue//{FAST}", "//etc/passwd", "//",
        "/files/../data/admin.key", "/files/..%2fadmin.key", "/files/%2e%2e/%2e%2e/admin.key",
        "/files/%2e%2e%2fadmin.key",
        "/files//etc/passwd", "/files/%2fetc%2fpasswd", "/files/b/..%5c..%5cadmin.key", "/files/%00", "/files/.parts/x",
        "/files/b/%2e%2e/%2e%2e/svd-serve.db", "/models/../../admin.key", "/models/%2e%2e%2f%2e%2e%2fadmin.key",
        "/models/fal-ai/../../x", "/static/../api.py", "/docs/../../admin.key", "/%2e%2e/%2e%2e/etc/passwd",
        "/..;/admin.key",
    ):  # fmt: skip
        yield Script(row=78, name=path, steps=_is_no_file(path))
    yield from _protocols()


def _call(row: int, name: str, method: str, path: str, expected: Expected, **options: Any) -> Call:
    return Call(row=row, name=name, method=method, path=path, expected=expected, options=options)


def _allow(reply: Reply) -> None:
    assert reply.status == 404 or "POST" in reply.headers["allow"], reply.headers


def _is_preflight(reply: Reply) -> None:
    assert reply.headers["access-control-allow-origin"] in ("*", "https://page.example")
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in reply.headers


def _is_no_file(path: str) -> Any:
    """As it is written: a client would tidy it up."""

    async def steps(caller: Caller) -> None:
        for method in ("GET", "POST"):
            head = caller.head(method, path, "Connection: close", "Content-Length: 0", key=method == "POST")
            reply = await caller.raw(head, 15)
            assert reply.status in (400, 401, 404, 405, 422), reply.short
            assert b"SQLite" not in reply.body and b"root:" not in reply.body, reply.short

    return steps


def _protocols() -> Iterator[Case]:
    upgrade = ("Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    closed = Expected((None, 400, 401, 403, 404, 405, 426, 501))
    for name, path, headers in (
        ("WebSocket to a run", f"/{FAST}", ("Upgrade: websocket", *upgrade)),
        ("WebSocket to nothing", "/ws/nothing", ("Upgrade: websocket", *upgrade)),
        ("WebSocket of another version", f"/ws/{FAST}", ("Upgrade: websocket", "Connection: Upgrade")),
        ("an unknown upgrade", "/queue/x/requests/y/status", ("Upgrade: nonsense", "Connection: Upgrade")),
        (
            "h2c",
            "/queue/x/requests/y/status",
            ("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AA"),
        ),
    ):
        yield Raw(row=85, name=name, make=_head("GET", path, *headers, key=False), expected=closed, seconds=15)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
    yield Raw(row=85, name="HTTP/2 at once", make=lambda caller: preface, expected=closed, seconds=15)
    for method, path in (
        ("TRACE", "/health/live"),
        ("CONNECT", "private.example:80"),
        ("X" * 5000, "/"),
        ("get", "/x/y"),
    ):
        make = _head(method, path, "Connection: close", "X-Secret: of-the-caller")
        yield Raw(row=85, name=f"{method[:20]} {path}", make=make, expected=_not_echoed(closed), seconds=15)
    absolute = _head("GET", "http://private.example/x", "Connection: close", key=False)
    yield Raw(row=85, name="a proxy's request", make=absolute, expected=closed, seconds=15)
    for host in ("private.example", "127.0.0.1:6379", "queue.fal.run.private.example", "a\\b", "[::1", "x" * 3000):
        headers = {"host": host}
        yield _call(85, f"Host {host[:30]}", "GET", "/no/such/app", Expected((400, 404, 431)), headers=headers)


def _head(method: str, path: str, *headers: str, key: bool = True) -> Any:
    return lambda caller: caller.head(method, path, *headers, key=key)


def _not_echoed(expected: Expected) -> Expected:
    def check(reply: Reply) -> None:
        assert b"of-the-caller" not in reply.body, reply.short

    return Expected(expected.statuses, check=check)


# ---------------------------------------------------------------- a flood of names


async def _strangers(caller: Caller) -> None:
    """So many names that nobody knows: the gateway stays as large as it was, and what it counts has no names."""
    before = _resident(caller)
    turn = asyncio.Semaphore(16)

    async def ask(path: str, status: int) -> None:
        async with turn:
            reply = await caller.call("GET", path)
            assert reply.status == status, reply.short

    paths = [f"/queue/{FAST}/requests/{number:08d}-0000-4000-8000-000000000000/status" for number in range(STRANGERS)]
    paths += [f"/stranger-{number}/app-{number}" for number in range(STRANGERS)]
    await asyncio.gather(*(ask(path, 404) for path in paths))
    after = _resident(caller)
    assert after - before < 30_000, f"{before} kB became {after} kB"
    metrics = await caller.call("GET", "/metrics")
    assert b"stranger-" not in metrics.body and b"4000-8000" not in metrics.body


def _resident(caller: Caller) -> int:
    """What the gateway and the proxy take now, in kB."""
    now = caller.world.state()["now"]
    return int(now["gateway"]) + int(now["proxy"])


CASES = [
    *_bodies(),
    *_slow(),
    *_heads(),
    *_paths(),
    Script(row=87, name=f"{2 * STRANGERS} names", steps=_strangers),
    Call(row=78, name="JSON of nobody", method="POST", path="/x", expected=Expected((404,)), options={"headers": JSON}),
]
