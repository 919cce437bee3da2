"""The TLS end point that stands in for fal's hosts, and pipes what it decrypts to our server, byte for byte.

    connection ── 0x16: TLS at once (Node, a hosts file) ─────────────────────▶ TLS as fal's host ──▶ server
               └─ CONNECT host:443 ── one of fal's hosts? ── 200 ── TLS ──────▲        │
                                   └─ another: 403 (or passed on, encrypted)           └─ no server: 502, fal's form

WebSockets, streams and uploads pass because nothing here knows of them. Memory stays small whatever passes: each
direction holds at most a few buffers, and a reader that is slow holds up the writer. A connection must say what it
wants within seconds and a few kilobytes; then it may last as long as its two ends like.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import urlsplit

import h11

MAX_CONNECTIONS = 400
"""At once; further ones wait to be accepted. Each takes two file descriptors, and 1024 is a common limit."""

HEAD_BYTES = 16 * 1024
CHUNK_BYTES = 64 * 1024
OPENING_SECONDS = 15.0
CLOSING_SECONDS = 5.0
ACCEPT_PAUSE_SECONDS = 0.2
HTTPS = 443
TLS_HANDSHAKE = b"\x16"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Upstream:
    """The server that stands for fal's."""

    url: str
    host: str
    port: int
    tls: ssl.SSLContext | None

    @classmethod
    def at(cls, url: str) -> Upstream:
        """The server behind a URL.

        Raises:
            ValueError: It is no http(s) URL, or has a path: bytes are piped unchanged, so nothing can be put before it.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ValueError(f"{url!r} is not the URL of a server: http(s)://host[:port]")
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        return cls(url.rstrip("/"), parts.hostname, parts.port or (HTTPS if tls else 80), tls)

    async def open(self) -> Streams:
        """Connect.

        Raises:
            OSError: It cannot be reached (in time).
        """
        async with asyncio.timeout(OPENING_SECONDS):
            return await asyncio.open_connection(self.host, self.port, ssl=self.tls, limit=CHUNK_BYTES)


class _Refused(Exception):
    """What was asked for is not done here. Arguments: HTTP status, reason."""


class TlsEndpoint:
    """Accepts connections for fal's hosts."""

    def __init__(
        self, hosts: Collection[str], tls: ssl.SSLContext, upstream: Upstream, allow_others: bool = False
    ) -> None:
        """Stand in for some hosts.

        Args:
            hosts: Their names.
            tls: A context that can prove to be any of them.
            upstream: Where everything for them goes.
            allow_others: Pass on CONNECT for other hosts, as they are, instead of refusing them.
        """
        self._hosts = hosts
        self._tls = tls
        self._upstream = upstream
        self._allow_others = allow_others
        self._room = asyncio.Semaphore(MAX_CONNECTIONS)

    async def serve(self, listener: socket.socket) -> NoReturn:
        """Serve until cancelled; then every connection ends."""
        listener.setblocking(False)
        async with asyncio.TaskGroup() as connections:
            while True:
                await self._room.acquire()
                connection = await _accept(listener)
                connections.create_task(self._hold(connection))

    async def _hold(self, connection: socket.socket) -> None:
        """Serve one connection from its first byte to its last."""
        try:
            with connection, contextlib.suppress(OSError):  # an end that went away: nobody is left to be told
                async with asyncio.timeout(OPENING_SECONDS):
                    other = await self._greet(connection)
                client = await _streams(connection, None if other else self._tls)
                async with _closing(client[1]):
                    await (_join(client, other) if other else self._stand_in(client))
        finally:
            self._room.release()

    async def _greet(self, connection: socket.socket) -> Streams | None:
        """Learn what a connection is for: None for one of our hosts, else a connection to the other host."""
        if await _first_byte(connection) == TLS_HANDSHAKE:
            return None
        head = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        try:
            other = await self._find(*_target(await _request(connection, head)))
            if head.trailing_data[0]:
                raise _Refused(400, "nothing may follow CONNECT before its answer")
        except _Refused as refusal:
            await _send(connection, _response(head, *refusal.args))
            raise ConnectionError(*refusal.args) from refusal
        await _send(connection, head.send(h11.Response(status_code=200, headers=[], reason=b"Connected")) or b"")
        return other

    async def _find(self, host: str, port: int) -> Streams | None:
        if host in self._hosts and port == HTTPS:
            return None
        if not self._allow_others:
            raise _Refused(403, f"{host}:{port} is none of fal's hosts")
        try:
            return await asyncio.open_connection(host, port, limit=CHUNK_BYTES)
        except (OSError, UnicodeError) as error:  # of which the second is a name that no host can have
            raise _Refused(502, f"{host}:{port} cannot be reached") from error

    async def _stand_in(self, client: Streams) -> None:
        try:
            server = await self._upstream.open()
        except OSError:
            await _explain(client, f"svd-serve connect: no server answers at {self._upstream.url}")
        else:
            await _join(client, server)


# ---------------------------------------------------------------- opening a connection


async def _accept(listener: socket.socket) -> socket.socket:
    while True:
        try:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            return connection
        except OSError:  # it is gone already, or file descriptors have run out for the moment
            await asyncio.sleep(ACCEPT_PAUSE_SECONDS)


async def _first_byte(connection: socket.socket) -> bytes:
    """The first byte, which stays to be read. Empty when there is none."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection)
    return connection.recv(1, socket.MSG_PEEK)


async def _request(connection: socket.socket, head: h11.Connection) -> h11.Request:
    try:
        while (event := head.next_event()) is h11.NEED_DATA:
            head.receive_data(await asyncio.get_running_loop().sock_recv(connection, HEAD_BYTES))
    except h11.RemoteProtocolError as error:
        raise _Refused(error.error_status_hint, "this is no HTTP request that we read") from error
    if not isinstance(event, h11.Request):
        raise ConnectionError("closed")
    return event


def _target(request: h11.Request) -> tuple[str, int]:
    """The host and port that are asked for."""
    if request.method != b"CONNECT":
        raise _Refused(405, "only CONNECT is answered here")
    try:
        parts = urlsplit(f"//{request.target.decode()}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise _Refused(400, "CONNECT wants host:port")
    return host, port


async def _send(connection: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, data)


async def _streams(connection: socket.socket, tls: ssl.SSLContext | None = None) -> Streams:
    """Streams over a connection that was accepted; with a context, once the TLS handshake is done."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(CHUNK_BYTES, loop)
    timeouts = {"ssl_handshake_timeout": OPENING_SECONDS, "ssl_shutdown_timeout": CLOSING_SECONDS} if tls else {}
    transport, protocol = await loop.connect_accepted_socket(
        lambda: asyncio.StreamReaderProtocol(reader, loop=loop), connection, ssl=tls, **timeouts
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


# ---------------------------------------------------------------- answers of our own


def _response(head: h11.Connection, status: int, reason: str, body: bytes = b"", kind: bytes = b"text/plain") -> bytes:
    body = body or f"{reason}\n".encode()
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    response = h11.Response(status_code=status, headers=headers, reason=reason.encode("ascii", "replace"))
    return b"".join(head.send(event) or b"" for event in (response, h11.Data(body), h11.EndOfMessage()))


async def _explain(client: Streams, problem: str) -> None:
    """Answer the first request by an error in fal's form, so that the client shows it."""
    reader, writer = client
    async with asyncio.timeout(OPENING_SECONDS):
        await reader.read(CHUNK_BYTES)
    body = json.dumps({"detail": problem, "error_type": "runner_connection_refused"}).encode()
    writer.write(_response(h11.Connection(h11.SERVER), 502, "Bad Gateway", body, b"application/json"))


# ---------------------------------------------------------------- pipes


async def _join(client: Streams, server: Streams) -> None:
    """Pipe both ways until one direction ends: the client left, or the server has said all."""
    async with _closing(server[1]):
        pipes = [asyncio.create_task(_pipe(client[0], server[1])), asyncio.create_task(_pipe(server[0], client[1]))]
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pipe in pipes:
                pipe.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close at the end, once what was written is delivered, within some seconds; at once after an error."""
    try:
        yield
        writer.close()
        with contextlib.suppress(OSError):
            async with asyncio.timeout(CLOSING_SECONDS):
                await writer.wait_closed()
    finally:
        with contextlib.suppress(AttributeError):  # before Python 3.11.4, TLS that was closed twice has none
            writer.transport.abort()
