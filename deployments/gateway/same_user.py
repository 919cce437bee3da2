"""The key for a page that the very user has opened who runs the service, on the same machine: ``GET /playground/key``.

    call ──▶ asked by a page of ours? ──▶ by no proxy, at our own address? ──▶ both ends of its connection this user's?
                                                                                         └──▶ the key, else 404

That user may read the key's file anyhow, so nobody is told what he could not know. All else looks like a path that is
not there: a call from elsewhere, another user's, another page's in the same browser, one by a name that only resolves
to this machine, and everything once ``SVD_PUBLIC_URL`` says that others are served.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import Scope

from deployments.errors import NotFound

PATH = "/playground/key"
HTTP_PORT = 80
OWN_PAGES = {
    "sec-fetch-site": {"same-origin"},
    "sec-fetch-mode": {"cors", "same-origin"},
    "sec-fetch-dest": {"empty"},
}
"""What a browser says of a ``fetch`` by a page of the origin that it asks. No page can make it say so of another."""

_FORWARDED = re.compile(r"x-forwarded|x-original|x-real-ip|x-client-ip|forwarded$|via$|cf-|true-client-ip")
"""Headers of a call that comes by a proxy: who is at the other end of the connection is not who asks."""

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_ESTABLISHED = "01"
"""A connection both of whose ends are there. Of one that its program has closed, Linux no longer knows the user."""

_OVERFLOW = Path("/proc/sys/kernel/overflowuid")


class End(NamedTuple):
    """One end of a connection."""

    address: IPv4Address | IPv6Address
    port: int

    @classmethod
    def at(cls, address: str, port: int) -> End:
        """The same, of an address as it is written; one of IPv4 that is written as IPv6 is of IPv4."""
        found = ip_address(address)
        return cls(getattr(found, "ipv4_mapped", None) or found, port)


Connection = tuple[End, End]
"""The end that a program holds, and the other one."""


def own_key_router(key: str, public_url: str) -> APIRouter:
    """The route that gives the key away. It comes before the playground's files, which take every path beside it."""
    router = APIRouter()

    @router.get(PATH)
    async def own_key(request: Request) -> Response:
        if not (is_own_page(request.scope, public_url) and await asyncio.to_thread(is_own_user, request.scope)):
            raise NotFound(f"Path {PATH} not found")
        return JSONResponse({"key": key}, headers={"cache-control": "no-store"})

    return router


def is_own_page(scope: Scope, public_url: str) -> bool:
    """Whether a call is a browser's, for a page that was opened at our own address, which is of this machine alone."""
    headers, url = Headers(scope=scope), urlsplit(public_url)
    port = url.port or HTTP_PORT
    return (
        _is_loopback(url.hostname)
        and _names(headers.get("host", ""), port)
        and (scope["server"] or ("", 0))[1] == port  # what listens elsewhere stands behind a proxy
        and all(set(headers.getlist(name)) <= said and name in headers for name, said in OWN_PAGES.items())
        and not any(_FORWARDED.match(name) for name in headers)
    )


def is_own_user(scope: Scope) -> bool:
    """Whether both ends of the connection by which a call came are on this machine, and this process's user's."""
    try:
        client, server = End.at(*scope["client"]), End.at(*scope["server"])
    except (TypeError, ValueError):  # there is none, or it is a socket of another kind
        return False
    if not (client.address.is_loopback and server.address.is_loopback):
        return False
    mine = set(_connections())
    return (client, server) in mine and (server, client) in mine


def _names(host: str, port: int) -> bool:
    """Whether a Host header names this machine as only its own programs do: no name that somebody else can resolve."""
    try:
        named = urlsplit(f"//{host}")
        return _is_loopback(named.hostname) and (named.port or HTTP_PORT) == port
    except ValueError:
        return False


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


def _connections() -> Iterator[Connection]:
    """The open TCP connections of this process's user, seen from the end that he holds."""
    return _by_tables() if _TABLES[0].exists() else _by_processes()


def _by_tables() -> Iterator[Connection]:
    """As Linux lists them."""
    user = str(os.geteuid())
    if user == _OVERFLOW.read_text().strip():  # which stands for every user whom this container does not know
        return
    for table in filter(Path.exists, _TABLES):
        for line in table.read_text().splitlines()[1:]:
            _, local, remote, state, _, _, _, owner, *_ = line.split()
            if (state, owner) == (_ESTABLISHED, user):
                yield _end(local), _end(remote)


def _end(text: str) -> End:
    """``0100007F:1F90`` is 127.0.0.1:8000: Linux writes addresses in words of the machine's order of bytes."""
    address, _, port = text.partition(":")
    words = [bytes.fromhex(address[at : at + 8]) for at in range(0, len(address), 8)]
    network = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return End.at(str(ip_address(network)), int(port, 16))


def _by_processes() -> Iterator[Connection]:
    """As the processes of this user hold them, where the system lets one user look at his own."""
    user = psutil.Process().username()
    for process in psutil.process_iter():
        try:
            held = process.net_connections("tcp") if process.username() == user else []
        except psutil.Error:
            continue
        for each in held:
            if each.status == psutil.CONN_ESTABLISHED:
                yield End.at(*each.laddr), End.at(*each.raddr)
