"""Who is given the key without asking for more: real sockets of each kind, at a server like the one in front of us."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from deployments.errors import NotFound
from deployments.gateway import same_user, wire
from deployments.gateway.same_user import PATH, End, is_own_page, is_own_user, own_key_router
from tests.gateway.conftest import KEY, URL, Gateway

OWN_PAGE = {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}
"""What a browser sends with a page's own ``fetch``."""

NOBODYS_USER = 12345
CALL = """
import encodings.idna, http.client, json, os, sys  # all that another user may not read
port, path, headers, user = sys.argv[1:]
if user:
    os.setuid(int(user))
connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
connection.request("GET", path, headers=json.loads(headers))
print(connection.getresponse().status)
"""
"""A program that asks as a browser would, as some user of this machine."""


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, 0), family=family, dualstack_ipv6=address == "::")
    except OSError as error:
        pytest.skip(f"cannot listen on {address}: {error}")
    with listener:
        yield listener


@asynccontextmanager
async def open_door(address: str = "127.0.0.1") -> AsyncIterator[int]:
    """The port of a server that gives the key away, started as Serve starts its proxy."""

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, NotFound)
        return wire.error_response(error)

    with listening(address) as listener:
        port = listener.getsockname()[1]
        app = FastAPI(exception_handlers={NotFound: refuse})
        app.include_router(own_key_router(KEY, f"http://127.0.0.1:{port}"))
        server = uvicorn.Server(uvicorn.Config(lambda: app, factory=True, lifespan="off", log_config=None))
        running = asyncio.create_task(server._serve([listener]))
        try:
            yield port
        finally:
            server.should_exit = True
            await running


async def ask(url: str, headers: dict[str, str] = OWN_PAGE) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(f"{url}{PATH}", headers=headers)


async def status_for(user: str, port: int) -> str:
    """What a program is answered that another process runs, for some user or, by default, for ours."""
    command = [sys.executable, "-c", CALL, str(port), PATH, json.dumps(OWN_PAGE), user]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    return said.decode().strip()


@contextmanager
def connected(address: str = "127.0.0.1") -> Iterator[tuple[Scope, socket.socket]]:
    """A connection of this process's to itself, as the server's scope tells of it, and the client's end."""
    with listening(address) as listener, socket.create_connection(listener.getsockname()[:2]) as client:
        server, _ = listener.accept()
        with server:
            yield {"client": server.getpeername()[:2], "server": server.getsockname()[:2]}, client


def call(headers: dict[str, str] | None = None, **changes: Any) -> Scope:
    """A call by a page of ours at ``URL``, but for some changes; a header that is empty is not there."""
    given = {"host": "127.0.0.1:8000", **OWN_PAGE, **(headers or {})}
    sent = [(name.encode(), value.encode()) for name, value in given.items() if value]
    ends = {"client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8000)}
    return {"type": "http", "method": "GET", "path": PATH, "headers": sent, **ends, **changes}


# ---------------------------------------------------------------- the route


async def test_a_page_of_the_same_user_is_given_the_key() -> None:
    async with open_door() as port:
        reply = await ask(f"http://127.0.0.1:{port}")

    assert (reply.status_code, reply.json()) == (200, {"key": KEY})
    assert reply.headers["cache-control"] == "no-store"


async def test_localhost_is_this_machine_too() -> None:
    async with open_door() as port:
        assert (await ask(f"http://127.0.0.1:{port}", OWN_PAGE | {"host": f"localhost:{port}"})).status_code == 200


@pytest.mark.parametrize("address", ["::1", "::"])
async def test_so_is_its_address_in_ipv6(address: str) -> None:
    async with open_door(address) as port:
        assert (await ask(f"http://[::1]:{port}")).status_code == 200


async def test_a_server_of_both_kinds_knows_a_caller_of_either() -> None:
    async with open_door("::") as port:
        assert (await ask(f"http://127.0.0.1:{port}")).status_code == 200


async def test_another_process_of_the_same_user_is_given_it() -> None:
    async with open_door() as port:
        assert await status_for("", port) == "200"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_is_not() -> None:
    async with open_door() as port:
        assert await status_for(str(NOBODYS_USER), port) == "404"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_nor_is_one_who_has_closed_his_end_meanwhile() -> None:
    """Linux then says that it is root's."""
    source = CALL.replace("print(connection.getresponse().status)", "connection.sock.close()")
    found: list[bool] = []
    accepted = asyncio.Event()

    async def look(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until his end is closed
        ends = {"client": writer.get_extra_info("peername"), "server": writer.get_extra_info("sockname")}
        found.append(is_own_user(ends))
        writer.close()
        accepted.set()

    server = await asyncio.start_server(look, "127.0.0.1", 0)
    async with server, asyncio.timeout(20):
        port = server.sockets[0].getsockname()[1]
        command = [sys.executable, "-c", source, str(port), PATH, "{}", str(NOBODYS_USER)]
        process = await asyncio.create_subprocess_exec(*command)
        await asyncio.gather(process.wait(), accepted.wait())

    assert found == [False]


async def test_whoever_is_not_given_it_is_told_that_there_is_no_such_path() -> None:
    async with open_door() as port:
        reply = await ask(f"http://127.0.0.1:{port}", {})

    assert (reply.status_code, reply.json()) == (404, {"detail": f"Path {PATH} not found", "error_type": "not_found"})
    assert KEY not in reply.text


async def test_the_gateway_gives_its_own_key(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {**OWN_PAGE, "authorization": ""}
    refused = await gateway.client.get(PATH, headers=headers)  # of a connection that nobody has
    monkeypatch.setattr(same_user, "is_own_user", lambda scope: True)
    given = await gateway.client.get(PATH, headers=headers)

    assert (refused.status_code, "detail" in refused.json()) == (404, True)
    assert (given.status_code, given.json()) == (200, {"key": KEY})
    assert given.headers["cache-control"] == "no-store"
    assert given.headers["cross-origin-resource-policy"] == "same-origin"


async def test_no_other_method_is_for_it(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_user, "is_own_user", lambda scope: True)
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert KEY not in (await gateway.client.request(method, PATH, headers=OWN_PAGE)).text


# ---------------------------------------------------------------- a page of ours


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-mode": "same-origin"},
        {"host": "localhost:8000"},
        {"host": "[::1]:8000"},
        {"host": "127.8.9.10:8000"},
        {"accept-language": "en", "user-agent": "Mozilla/5.0"},
    ],
)
def test_a_page_of_ours_is_known(headers: dict[str, str]) -> None:
    assert is_own_page(call(headers), URL)


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "same-site"},  # a page of another server on this machine
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "none"},  # typed into the address bar
        {"sec-fetch-site": ""},  # no browser, or an old one
        {"sec-fetch-mode": "navigate"},
        {"sec-fetch-mode": "no-cors"},  # as a script's or a picture's source
        {"sec-fetch-mode": "websocket"},
        {"sec-fetch-mode": ""},
        {"sec-fetch-dest": "document"},
        {"sec-fetch-dest": "iframe"},
        {"sec-fetch-dest": ""},
    ],
)
def test_what_no_page_of_ours_would_send_is_refused(headers: dict[str, str]) -> None:
    assert not is_own_page(call(headers), URL)


@pytest.mark.parametrize(
    "host",
    [
        "rebound.example.com:8000",
        "localhost.example.com:8000",
        "app.localhost:8000",
        "192.168.1.5:8000",
        "0.0.0.0:8000",
        "127.1:8000",
        "2130706433:8000",
        "fal.run",
        "127.0.0.1:3000",  # another server here, which passes calls on
        "127.0.0.1",
        "127.0.0.1:8000x",
        "[::1",
        ":8000",
        "",
    ],
)
def test_a_name_that_leads_here_is_not_enough(host: str) -> None:
    assert not is_own_page(call({"host": host}), URL)


@pytest.mark.parametrize(
    "name",
    [
        "forwarded",
        "via",
        "x-forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-forwarded-server",
        "x-original-forwarded-for",
        "x-real-ip",
        "x-client-ip",
        "cf-connecting-ip",
        "true-client-ip",
    ],
)
def test_what_came_by_a_proxy_is_refused(name: str) -> None:
    assert not is_own_page(call({name: "127.0.0.1"}), URL)


def test_a_header_that_is_there_twice_must_say_the_same() -> None:
    scope = call()
    scope["headers"].append((b"sec-fetch-site", b"cross-site"))
    assert not is_own_page(scope, URL)


@pytest.mark.parametrize("server", [("127.0.0.1", 30000), None])
def test_what_does_not_come_to_our_own_address_came_by_a_proxy(server: tuple[str, int] | None) -> None:
    """Serve can be told to put a balancer of the same user before its replicas, which says nothing of who calls."""
    assert not is_own_page(call(server=server), URL)


@pytest.mark.parametrize(
    "url",
    ["https://video.example.com", "http://10.0.0.7:8000", "http://video.example.com:8000", "http://[2001:db8::1]:8000"],
)
def test_a_service_for_others_gives_no_key_away(url: str) -> None:
    assert not is_own_page(call(), url)


def test_a_port_that_is_not_written_is_that_of_http() -> None:
    assert is_own_page(call({"host": "localhost"}, server=("127.0.0.1", 80)), "http://localhost")


# ---------------------------------------------------------------- whose connection it is


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_both_ends_of_a_connection_to_oneself_are_ones_own(address: str) -> None:
    with connected(address) as (scope, _):
        assert is_own_user(scope)


def test_a_connection_that_there_is_not_is_nobodys() -> None:
    with connected() as (scope, _):
        host, port = scope["server"]
        assert not is_own_user({**scope, "server": (host, port + 1)})
    assert not is_own_user(call())


def test_another_users_connection_is_not_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: NOBODYS_USER)
    with connected() as (scope, _):
        assert not is_own_user(scope)


def test_one_end_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who listens where a call ends, or calls, is another user."""
    with connected() as (scope, _):
        client, server = End.at(*scope["client"]), End.at(*scope["server"])
        for mine in ([(client, server)], [(server, client)]):
            monkeypatch.setattr(same_user, "_connections", lambda mine=mine: iter(mine))
            assert not is_own_user(scope)


def test_a_connection_that_is_closed_on_one_side_is_nobodys() -> None:
    with connected() as (scope, client):
        assert is_own_user(scope)
        client.shutdown(socket.SHUT_WR)
        assert not is_own_user(scope)


def test_users_whom_a_container_does_not_know_are_not_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflow = tmp_path / "overflowuid"
    overflow.write_text(f"{os.geteuid()}\n")
    monkeypatch.setattr(same_user, "_OVERFLOW", overflow)
    with connected() as (scope, _):
        assert not is_own_user(scope)


@pytest.mark.parametrize(
    "ends",
    [
        {"client": ("192.168.1.5", 50000)},
        {"server": ("192.168.1.4", 8000)},
        {"client": ("2001:db8::5", 50000), "server": ("2001:db8::4", 8000)},
    ],
)
def test_who_comes_from_elsewhere_is_refused(ends: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    scope = call(**ends)
    client, server = End.at(*scope["client"]), End.at(*scope["server"])
    monkeypatch.setattr(same_user, "_connections", lambda: iter([(client, server), (server, client)]))
    assert not is_own_user(scope)


@pytest.mark.parametrize("ends", [{"client": None}, {"server": ("/run/gateway.sock", None)}, {"client": ("", 0)}])
def test_a_socket_of_another_kind_is_nobodys(ends: dict[str, Any]) -> None:
    assert not is_own_user(call(**ends))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_where_there_are_no_tables_the_users_processes_tell(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_user, "_TABLES", (Path("/none"),))
    with connected(address) as (scope, client):
        assert is_own_user(scope)
        client.shutdown(socket.SHUT_WR)
        assert not is_own_user(scope)
