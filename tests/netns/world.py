"""A small world in a network namespace of its own, and what our fetcher does in it.

    every address there is ──▶ this machine ──▶ honeypots: who came to which address and port
    127.0.0.53:53 ───────────▶ names as they are scripted, by the system's own resolver

``unshare --net --mount python -m tests.netns.world`` prints as JSON, for each URL of ``urls.py`` and each road to it
(pictures, archives, webhooks), what came of it and whom it reached. Nothing leaves the namespace: it has no way out.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
from dnslib import AAAA, CNAME, QTYPE, RCODE, RR, A, DNSRecord

from deployments.errors import InvalidArchive, ModelError
from deployments.inference.archives import MAX_ARCHIVE_BYTES
from deployments.inference.fetch import FileSource
from deployments.inference.images import MAX_BYTES
from deployments.queue.outbox import WebhookState
from deployments.queue.store import RequestStore
from deployments.queue.webhooks import Sender
from deployments.storage import FileStorage
from deployments.web import Reach, SafeFetcher, Unreachable, parse_places
from tests.inference.conftest import image_bytes
from tests.netns.urls import ALLOWED, CASES, KEY, OURS, PORTS, PUBLIC, READ, WEBHOOKS, WITH_ALLOWED, Case
from tests.queue.test_webhooks import ended, settled

PNG = image_bytes()
PATIENCE = 8.0

NAMES: Mapping[str, tuple[str, ...]] = {
    "public.test": PUBLIC,
    "xn--bcher-kva.test": PUBLIC,
    "svd.test": ("93.184.216.99",),
    "v3.fal.media": ("93.184.216.98",),
    "loopback.test": ("127.0.0.1",),
    "private.test": ("10.0.0.1",),
    "link.test": ("169.254.169.254",),
    "shared.test": ("100.64.0.1",),
    "v6-loopback.test": ("::1",),
    "v6-mapped.test": ("::ffff:127.0.0.1",),
    "v6-nat64.test": ("64:ff9b::a9fe:a9fe",),
    "v6-6to4.test": ("2002:7f00:1::",),
    "v6-metadata.test": ("fd00:ec2::254",),
    "metadata.google.internal": ("169.254.169.254",),
    "mixed.test": ("10.0.0.1", PUBLIC[0]),
    "mixed-last.test": (PUBLIC[0], "127.0.0.1"),
    "mixed-families.test": (PUBLIC[0], "::1"),
    "minio.internal": ("10.2.0.5",),
    "x.minio.internal": ("10.2.0.5",),
    "not-minio.test": ("10.2.0.5",),
    "in-network.test": ("10.1.2.3",),
    "a.b.corp.test": ("192.168.5.5",),
    "corp.test": ("192.168.5.5",),
    "evilcorp.test": ("192.168.5.5",),
    "metadata.corp.test": ("169.254.169.254",),
    "cloud.corp.test": ("100.100.100.200",),
    "v6-cloud.corp.test": ("fd00:ec2::254",),
}
ALIASES = {
    "alias.test": "private.test",
    "long-alias.test": "second-alias.test",
    "second-alias.test": "third-alias.test",
    "third-alias.test": "link.test",
    "public-alias.test": "public.test",
}
REBINDING = (PUBLIC[0], "127.0.0.1")
"""Where each name below ``rebinding.test`` leads when it is asked for first, and from then on."""

SILENT = "silent.test"
"""A name whose server never answers."""


@dataclass
class Names(asyncio.DatagramProtocol):
    """A DNS server that answers as it is scripted, and counts who was asked for."""

    asked: Counter[str] = field(default_factory=Counter)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def datagram_received(self, data: bytes, client: tuple[str | Any, int]) -> None:
        query = DNSRecord.parse(data)
        name = str(query.q.qname).rstrip(".").lower()
        kind = QTYPE[query.q.qtype]
        reply = query.reply()
        if name == SILENT:
            return
        if kind == "A":
            self.asked[name] += 1
        self._answer(reply, name, kind)
        self._transport.sendto(reply.pack(), client)

    def _answer(self, reply: DNSRecord, name: str, kind: str) -> None:
        while name in ALIASES:
            reply.add_answer(RR(name, QTYPE.CNAME, rdata=CNAME(ALIASES[name]), ttl=0))
            name = ALIASES[name]
        rebinding = name.endswith(".rebinding.test")
        addresses = (REBINDING[self.asked[name] > 1],) if rebinding else NAMES.get(name)
        if addresses is None:
            reply.header.rcode = RCODE.NXDOMAIN
            return
        for address in addresses:
            if ":" in address and kind == "AAAA":
                reply.add_answer(RR(name, QTYPE.AAAA, rdata=AAAA(tuple(IPv6Address(address).packed)), ttl=0))
            elif ":" not in address and kind == "A":
                reply.add_answer(RR(name, QTYPE.A, rdata=A(address), ttl=0))


@dataclass
class Honeypots:
    """Something that answers HTTP on every address, and notes whoever connects, before a byte is read."""

    came: list[tuple[str, int]] = field(default_factory=list)

    async def open(self) -> None:
        for port in PORTS:
            for host in ("0.0.0.0", "::"):
                await asyncio.start_server(self._serve, host, port)

    def since(self, start: int) -> list[tuple[str, int]]:
        return self.came[start:]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address, port, *_ = writer.get_extra_info("sockname")
        self.came.append((address, port))
        try:
            async with asyncio.timeout(1):  # what comes may be TLS
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(_answer(head.split(b" ")[1].decode()))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass
        finally:
            writer.close()


def _answer(path: str) -> bytes:
    match path.split("/")[1:]:
        case ["to", status, target]:
            return _redirect(unquote(target).encode(), status)
        case ["raw", target, *_]:
            return _redirect(b"http://public.test" + unquote(target).encode())
        case ["two", ""]:
            return _redirect(b"/here\r\nLocation: http://127.0.0.1/")
        case ["hops", hops]:
            return _redirect(f"/hops/{int(hops) - 1}".encode()) if int(hops) else _redirect(b"/", "200")
        case ["loop"]:
            return _redirect(b"/loop")
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(PNG) + PNG


def _redirect(location: bytes, status: str = "302") -> bytes:
    head = b"HTTP/1.1 %s Moved\r\nLocation: %s\r\n" % (status.encode(), location)
    return head + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(PNG) + PNG


# ---------------------------------------------------------------- the roads


@dataclass
class World:
    """The world, and the roads into it."""

    folder: Path
    honeypots: Honeypots
    names: Names

    async def fetch(self, cases: Iterable[Case], files: FileSource, max_bytes: int, broken: Any) -> dict[str, Any]:
        """Each case as a picture or an archive."""
        results = {}
        for case in cases:
            start = len(self.honeypots.came)
            try:
                data = await files.get(
                    case.by("archive" if broken else "picture"), ("body", "image_url"), max_bytes, broken
                )
                said = {"had": data == PNG, "error": None, "body": ""}
            except ModelError as error:
                said = {"had": False, "error": error.type, "body": json.dumps(error.body())}
            results[case.name] = said | {"came": self.honeypots.since(start)}
        return results

    async def deliver(self, cases: Iterable[Case], reach: Reach) -> dict[str, Any]:
        """Each case as a webhook, whose address was not checked when it was accepted."""
        store = await RequestStore.open(f"sqlite+aiosqlite:///{self.folder}/queue.db")
        sender = Sender(store.database, reach, retry_seconds=(), poll_seconds=0.005)
        sender.start()
        results = {case.name: await self._deliver(case, store) for case in cases}
        await sender.stop()
        await store.close()
        return results

    async def _deliver(self, case: Case, store: RequestStore) -> dict[str, Any]:
        start = len(self.honeypots.came)
        try:
            row = await settled(store, await ended(store, case.by("webhook")))
        except (httpx.InvalidURL, ValueError):  # no host to remember
            return {"had": False, "error": "not accepted", "status": None, "came": self.honeypots.since(start)}
        said = {"had": row.state == WebhookState.DELIVERED, "error": row.error, "status": row.status_code}
        return said | {"came": self.honeypots.since(start)}

    async def knock(self) -> list[tuple[str, int]]:
        """Go to a few places without a guard: that they can be reached shows that nobody was there otherwise."""
        start = len(self.honeypots.came)
        for host in (
            "127.0.0.1",
            "169.254.169.254",
            "10.0.0.1",
            "::1",
            "fd00:ec2::254",
            "64:ff9b::7f00:1",
            "link.test",
        ):
            _, writer = await asyncio.open_connection(host, 80)
            writer.close()
        await asyncio.sleep(0.1)
        return self.honeypots.since(start)

    async def rebind(self) -> dict[str, Any]:
        """A name that leads elsewhere the second time it is asked for: one look-up for each call."""
        start, web = len(self.honeypots.came), SafeFetcher()
        first = await web.fetch("http://twice.rebinding.test/", MAX_BYTES, PATIENCE)
        asked = self.names.asked["twice.rebinding.test"]
        try:
            await web.fetch("http://twice.rebinding.test/", MAX_BYTES, PATIENCE)
            second = "had"
        except ValueError as error:
            second = str(error)
        await web.aclose()
        return {"first": first == PNG, "asked": asked, "second": second, "came": self.honeypots.since(start)}

    async def wait(self) -> dict[str, Any]:
        """A name whose server never answers: the time of a call is that of its look-up, too."""
        web, began = SafeFetcher(), time.monotonic()
        try:
            await web.fetch(f"http://{SILENT}/", MAX_BYTES, 1.0)
        except Unreachable as error:
            return {"error": str(error), "seconds": time.monotonic() - began}
        finally:
            await web.aclose()
        raise AssertionError("a name without an address was called")


def _make() -> None:
    """Every address is this machine's."""
    for command in (
        "ip link set lo up",
        "ip route add local 0.0.0.0/0 dev lo",
        "ip -6 route add local ::/0 dev lo",
        "ip -6 addr add fe80::1/64 dev lo nodad",
    ):
        subprocess.run(command.split(), check=True)
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write("nameserver 127.0.0.53\noptions attempts:2 timeout:3\n")
        file.flush()
        subprocess.run(["mount", "--bind", file.name, "/etc/resolv.conf"], check=True)


async def main() -> None:
    """Make the world, try everything, tell what came of it."""
    _make()
    loop = asyncio.get_running_loop()
    names = Names()
    await loop.create_datagram_endpoint(lambda: names, ("127.0.0.53", 53))
    honeypots = Honeypots()
    await honeypots.open()
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), honeypots, names)
        json.dump(await _try_everything(world), sys.stdout)


async def _try_everything(world: World) -> dict[str, Any]:
    storage = FileStorage(world.folder / "files", OURS)
    (world.folder / "cat.png").write_bytes(PNG)
    await storage.put(world.folder / "cat.png", KEY)
    files, allowed = FileSource(storage), Reach(allow=parse_places(ALLOWED))  # type: ignore[arg-type]
    read = [Case(url, url, had=True) for url in READ]
    picture = (MAX_BYTES, None)
    return {
        "picture": await world.fetch(CASES, files, *picture),
        "read": await world.fetch(read, files, *picture),
        "archive": await world.fetch(CASES, files, MAX_ARCHIVE_BYTES, InvalidArchive),
        "webhook": await world.deliver(WEBHOOKS, Reach()),
        "allowed": await world.fetch(WITH_ALLOWED, FileSource(storage, allowed), *picture),
        "allowed webhook": await world.deliver(WITH_ALLOWED, allowed),
        "rebinding": await world.rebind(),
        "silent": await world.wait(),
        "knocked": await world.knock(),
    }


if __name__ == "__main__":
    asyncio.run(main())
