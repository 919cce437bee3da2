"""The web of the hostile world: one server on every address and on many ports.

a connection ──▶ to the public address? ── yes ──▶ the media server, which does what the path says
                          └── no ──▶ recorded: nothing of ours may ever come here; and answered with a picture,
                                     so that whoever fetched from here would make a clip of it
"""

from __future__ import annotations

import asyncio
import gzip
import io
import ssl
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from tests.hostile.names import PUBLIC

PORTS = (22, 25, 80, 443, 2375, 5432, 6379, 8000, 8080, 8265, 8443, 9200, 10001, 11211)
TLS_PORTS = (443, 8443)
DRIP_SECONDS = 0.5
LONGEST_ANSWER = 120.0
GIGABYTE = 1024**3

Behaviour = Callable[["Exchange"], Awaitable[None]]
BEHAVIOURS: dict[str, Behaviour] = {}


@dataclass
class Exchange:
    """One request to the media server, and the way to answer it."""

    path: str
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter
    folder: Path

    @property
    def rest(self) -> str:
        """The path after what names the behaviour."""
        return self.path.split("/", 2)[2] if self.path.count("/") > 1 else ""

    async def answer(self, body: bytes = b"", status: str = "200 OK", **headers: str) -> None:
        """Answer as an honest server does, but for what is said otherwise."""
        said = {"content-type": "image/png", "content-length": str(len(body))}
        said |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in said.items() if value), "", ""]
        self.writer.write("\r\n".join(lines).encode() + body)
        await self.writer.drain()

    def file(self) -> bytes:
        """What the test has put into its folder under the rest of the path."""
        return (self.folder / Path(self.rest.partition("?")[0]).name).read_bytes()


@dataclass
class Web:
    """The server. ``folder`` is what tests put files into."""

    folder: Path
    tls: ssl.SSLContext
    touched: list[str] = field(default_factory=list)
    visits: list[dict[str, str]] = field(default_factory=list)

    async def listen(self) -> None:
        """Listen everywhere."""
        for port in PORTS:
            for host in ("0.0.0.0", "::"):
                await asyncio.start_server(self._serve, host, port, backlog=512)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address, port = writer.get_extra_info("sockname")[:2]
        try:
            async with asyncio.timeout(LONGEST_ANSWER):
                await (self._media if address == PUBLIC else self._honeypot)(reader, writer, f"{address} {port}")
        except (OSError, EOFError, ssl.SSLError, TimeoutError):
            pass
        finally:
            writer.close()

    async def _honeypot(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: str) -> None:
        at = len(self.touched)
        self.touched.append(f"{where}: connected")
        first = await asyncio.wait_for(reader.readline(), 5)
        self.touched[at] = f"{where}: {first!r}"
        await Exchange("/", {}, b"", writer, self.folder).answer(picture())

    async def _media(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: str) -> None:
        if int(where.split()[1]) in TLS_PORTS:
            await writer.start_tls(self.tls)
        request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        method, path, _ = request.split(" ")
        self.visits.append({"method": method, "path": path, "body": body.decode("latin-1")[:2000], **headers})
        behaviour = BEHAVIOURS.get(path.split("/")[1], _missing)
        await behaviour(Exchange(path, headers, body, writer, self.folder))


@cache
def picture(size: tuple[int, int] = (112, 64)) -> bytes:
    """A PNG that makes a clip."""
    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(out, "PNG")
    return out.getvalue()


def _behaviour(name: str) -> Callable[[Behaviour], Behaviour]:
    def add(function: Behaviour) -> Behaviour:
        BEHAVIOURS[name] = function
        return function

    return add


async def _missing(exchange: Exchange) -> None:
    await exchange.answer(status="404 Not Found")


@_behaviour("picture")
async def _picture(exchange: Exchange) -> None:
    await exchange.answer(picture())


@_behaviour("cookies")
async def _cookies(exchange: Exchange) -> None:
    await exchange.answer(picture(), set_cookie="session=of-another; Path=/", www_authenticate="Basic realm=x")


@_behaviour("file")
async def _file(exchange: Exchange) -> None:
    await exchange.answer(exchange.file())


@_behaviour("typed")
async def _typed(exchange: Exchange) -> None:
    main, sub, name = exchange.rest.split("/")
    await exchange.answer((exchange.folder / Path(name).name).read_bytes(), content_type=f"{main}/{sub}")


@_behaviour("status")
async def _status(exchange: Exchange) -> None:
    await exchange.answer(picture(), status=f"{exchange.rest} Whatever", www_authenticate="Basic realm=x")


@_behaviour("to")
async def _redirect(exchange: Exchange) -> None:
    await exchange.answer(status="302 Found", location=unquote(exchange.rest))


@_behaviour("hops")
async def _hops(exchange: Exchange) -> None:
    left = int(exchange.rest)
    await exchange.answer(status="307 Temporary Redirect", location=f"/hops/{left - 1}" if left > 1 else "/picture")


@_behaviour("around")
async def _around(exchange: Exchange) -> None:
    await exchange.answer(status="301 Moved", location=exchange.path)


@_behaviour("login")
async def _login(exchange: Exchange) -> None:
    page = b"<!doctype html><html><form>Log in <input type=password></form></html>"
    await exchange.answer(page, content_type="text/html")


@_behaviour("announces")
async def _announces(exchange: Exchange) -> None:
    """Says that it has ten gigabytes, and goes on for as long as somebody reads."""
    await exchange.answer(content_length=str(10 * GIGABYTE))
    await _pour(exchange, b"x" * 65536)


@_behaviour("endless")
async def _endless(exchange: Exchange) -> None:
    await exchange.answer(content_length="")
    await _pour(exchange, b"x" * 65536)


@_behaviour("chunks")
async def _chunks(exchange: Exchange) -> None:
    await exchange.answer(content_length="", transfer_encoding="chunked")
    await _pour(exchange, b"10000\r\n" + b"x" * 65536 + b"\r\n")


@_behaviour("headers")
async def _headers(exchange: Exchange) -> None:
    exchange.writer.write(b"HTTP/1.1 200 OK\r\n")
    await _pour(exchange, b"x-more: " + b"x" * 8000 + b"\r\n")


@_behaviour("short")
async def _short(exchange: Exchange) -> None:
    body = picture()
    await exchange.answer(body[: len(body) // 2], content_length=str(len(body)))


@_behaviour("silence")
async def _silence(exchange: Exchange) -> None:
    await asyncio.sleep(LONGEST_ANSWER)


@_behaviour("drip")
async def _drip(exchange: Exchange) -> None:
    """A byte now and then: no single wait is long."""
    await exchange.answer(content_length="1000000")
    await _pour(exchange, b"x", DRIP_SECONDS)


@_behaviour("drip-headers")
async def _drip_headers(exchange: Exchange) -> None:
    exchange.writer.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
    await _pour(exchange, b"x", DRIP_SECONDS)


@_behaviour("gzip-bomb")
async def _gzip_bomb(exchange: Exchange) -> None:
    """Ten gigabytes of nothing, packed into ten megabytes: each piece was packed once."""
    await exchange.answer(content_length="", content_encoding=exchange.rest or "gzip")
    for piece in _packed_zeros():
        exchange.writer.write(piece)
        await exchange.writer.drain()


@_behaviour("gzip-picture")
async def _gzip_picture(exchange: Exchange) -> None:
    await exchange.answer(gzip.compress(picture()), content_encoding="gzip")


@_behaviour("hook")
async def _hook(exchange: Exchange) -> None:
    await exchange.answer(b"{}", content_type="application/json")


async def _pour(exchange: Exchange, piece: bytes, pause: float = 0.0) -> None:
    """Send without an end; a reader who goes away ends it."""
    with suppress(ConnectionError):
        while not exchange.writer.is_closing():
            exchange.writer.write(piece)
            await exchange.writer.drain()
            await asyncio.sleep(pause)


def _packed_zeros() -> Iterator[bytes]:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1024 * 1024)
    head = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    yield head
    for _ in range(10 * 1024 - 2):
        yield again
    yield packer.compress(zeros) + packer.flush()
