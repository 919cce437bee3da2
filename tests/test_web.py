from __future__ import annotations

import asyncio
import datetime
import gzip
import logging
import os
import socket
import ssl
import struct
import threading
import time
import traceback
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from deployments.web import (
    ANSWER_BYTES,
    LONGEST_URL,
    ForbiddenURL,
    Place,
    Reach,
    SafeFetcher,
    TooLarge,
    Unreachable,
    WebError,
    check_url,
    parse_places,
)

CAP = 4 * 2**20
SECONDS = 10.0
BODY = os.urandom(2**20)

Serve = Callable[[socket.socket], None]
SECRET = "sword" + "fish"
GZIP = "Content-Encoding: gzip"


@contextmanager
def serving(serve: Serve, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server whose every connection is a function's, once the request's head has been read; yields its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=_answer, args=(connection, serve, tls)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}/cat.png"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in (accepting, *threads):
            thread.join()


def _answer(connection: socket.socket, serve: Serve, tls: ssl.SSLContext | None) -> None:
    try:
        if tls:
            connection = tls.wrap_socket(connection, server_side=True)
        head = b""
        while b"\r\n\r\n" not in head and not head.startswith(b"\x16"):  # TLS where none was meant
            head += connection.recv(65536) or b"\r\n\r\n"
        serve(connection)
    except OSError:  # a caller who hangs up is what many tests are about
        pass
    finally:
        connection.close()


def answer(body: bytes, *headers: str, status: str = "200 OK") -> Serve:
    """An answer of these bytes, with the headers that it needs unless they are given."""

    def serve(connection: socket.socket) -> None:
        lines = [f"HTTP/1.1 {status}", *headers]
        if not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
            lines.append(f"Content-Length: {len(body)}")
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        connection.sendall(body)

    return serve


@pytest.fixture
async def web() -> AsyncIterator[SafeFetcher]:
    """A fetcher that reaches the loopback."""
    fetcher = SafeFetcher(Reach(allow_private=True))
    yield fetcher
    await fetcher.aclose()


async def fails(web: SafeFetcher, serve: Serve, error: type[WebError] = Unreachable, seconds: float = SECONDS) -> str:
    with serving(serve) as url, pytest.raises(error) as caught:
        await web.fetch(url, CAP, seconds)
    return str(caught.value)


# ---------------------------------------------------------------- what a URL may look like


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("http://example.com", "http://example.com"),
        ("HTTPS://Example.COM:443/A?b=c#d", "https://example.com:443/A?b=c#d"),
        ("http://example.com:/", "http://example.com/"),
        ("http://example.com.:8080/a/../b", "http://example.com.:8080/b"),
        ("https://bücher.example/größe.png?x=ä", "https://xn--bcher-kva.example/gr%C3%B6%C3%9Fe.png?x=%C3%A4"),
        ("http://93.184.216.34/", "http://93.184.216.34/"),
        ("http://[2606:2800:220::1]:8443/", "http://[2606:2800:220::1]:8443/"),
        ("https://example.com/a@b:c?url=http://user:pw@x/", "https://example.com/a@b:c?url=http://user:pw@x/"),
        ("https://1.2.3.example/", "https://1.2.3.example/"),
        ("http://my_bucket.example/", "http://my_bucket.example/"),
    ],
)
def test_a_url_is_parsed_as_it_will_be_called(url: str, parsed: str) -> None:
    assert str(check_url(url)) == parsed


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "ftp://example.com/",
        "http:example.com",
        "http:///cat.png",
        "http://user@example.com/",
        "http://user:password@example.com/",
        "http://:@example.com/",
        "http://@example.com/",
        "http://example.com:0/",
        "http://example.com:65536/",
        "http://example.com:8 0/",
        "http://example.com:80:80/",
        "http://exa mple.com/",
        "http://example.com/a b",
        "http://example.com/\t",
        "http://example.com/\x85",
        "http://example.com/\u2028",
        "http://example.com\\@127.0.0.1/",
        "http://example.com/\\..\\",
        "http://example.com\x00/",
        "http://ex%61mple.com/",
        "http://127.1/",
        "http://0x7f000001/",
        "http://example.0x7f/",
        "http://127.0.0.1./",
        "http://1.2.3.4.5/",
        "http://[::1%25lo]/",
        "http://[::1/",
        "http://a..b/",
        "http://.example.com/",
        "http://-example.com/",
        "http://" + "a" * 64 + ".com/",
        "http://" + "a." * 127 + "com/",
        "http://xn--/",
        "http://127。0。0。1/",
        "http://exam\u00adple.com/",
        "http://example.com/\ud800",
        "http://example.com/" + "a" * LONGEST_URL,
        "http://example.com/" + "ä" * (LONGEST_URL // 2),
    ],
)
def test_what_can_be_read_in_two_ways_is_no_url(url: str) -> None:
    with pytest.raises(ForbiddenURL) as caught:
        check_url(url)
    assert isinstance(caught.value, ValueError)
    assert "password" not in str(caught.value).replace("user name or password", "")


@given(st.text())
def test_whatever_is_written_is_refused_or_parsed(text: str) -> None:
    for url in (text, f"http://{text}", f"https://example.com{text}"):
        try:
            parsed = check_url(url)
        except ForbiddenURL:
            continue
        assert parsed.scheme in ("http", "https") and parsed.raw_host and not parsed.userinfo
        assert check_url(str(parsed)) == parsed


# ---------------------------------------------------------------- what an operator allows


@pytest.mark.parametrize(
    ("text", "network", "host", "port"),
    [
        ("10.0.0.0/8", "10.0.0.0/8", "", None),
        ("10.0.0.7", "10.0.0.7/32", "", None),
        ("10.0.0.7:9000", "10.0.0.7/32", "", 9000),
        ("10.0.0.0/8:9000", "10.0.0.0/8", "", 9000),
        ("fd00::/8", "fd00::/8", "", None),
        ("[fd00::/8]:9000", "fd00::/8", "", 9000),
        ("[::1]:9000", "::1/128", "", 9000),
        ("::1", "::1/128", "", None),
        ("MinIO.internal.", None, "minio.internal", None),
        ("minio:9000", None, "minio", 9000),
        (".Corp.example:443", None, ".corp.example", 443),
        (".bücher.example", None, ".xn--bcher-kva.example", None),
    ],
)
def test_a_place_is_a_network_a_host_or_a_suffix(text: str, network: str | None, host: str, port: int | None) -> None:
    place = Place.parse(text)

    assert (str(place.network) if place.network else None, place.host, place.port) == (network, host, port)
    assert parse_places(f" {text} ,, {text}") == (place, place)


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1/8",
        "10.0.0.0/33",
        "10.0.0",
        "0x7f.1",
        "256.0.0.1",
        "10.0.0.0/8:0",
        "10.0.0.0/8:65536",
        "10.0.0.0/8:http",
        "fd00::/8:9000x",
        "[fd00::/8]9000",
        "[minio]:9000",
        "64:ff9b::/96",
        "::ffff:10.0.0.0/104",
        "http://minio.internal",
        "minio.internal/bucket",
        "*.corp.example",
        "*",
        ".",
        "..example",
        "user@minio.internal",
        "minio internal",
        "mini\\o",
        ":9000",
    ],
)
def test_what_is_no_place_is_told_with_what_one_looks_like(text: str) -> None:
    with pytest.raises(ValueError, match="is no place to allow; write a network") as caught:
        parse_places(f"minio.internal, {text}")
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("allow", "url", "allowed"),
    [
        ("", "http://example.com/", True),
        ("", "http://example.com:9000/", False),
        ("", "http://127.0.0.1/", False),
        ("", "http://localhost/", False),
        ("", "http://a.localhost./", False),
        ("", "http://notlocalhost/", True),
        ("localhost", "http://localhost/", True),
        ("localhost", "http://127.0.0.1/", False),
        ("127.0.0.0/8", "http://localhost/", True),
        ("10.0.0.0/8", "http://10.1.2.3/", True),
        ("10.0.0.0/8", "http://10.1.2.3:9000/", False),
        ("10.0.0.0/8", "http://11.1.2.3:9000/", False),
        ("10.0.0.0/8:9000", "http://10.1.2.3:9000/", True),
        ("10.0.0.0/8:9000", "http://10.1.2.3/", False),
        ("10.0.0.0/8:9000", "http://93.184.216.34:9000/", False),
        ("10.0.0.0/8:9000", "http://93.184.216.34/", True),
        ("169.254.169.254", "http://169.254.169.254/", True),
    ],
)
def test_what_a_url_says_by_itself_is_checked_before_anything_is_looked_up(allow: str, url: str, allowed: bool) -> None:
    reach = Reach(allow=parse_places(allow))  # type: ignore[arg-type]
    if allowed:
        assert str(reach.check(url)) == url
    else:
        with pytest.raises(ForbiddenURL, match=r"^this address is not allowed$"):
            reach.check(url)


def test_with_private_addresses_the_form_of_a_url_matters_as_ever() -> None:
    everywhere = Reach(allow_private=True)

    assert everywhere.check("http://127.0.0.1:22/")
    for url in ("http://127.1/", "http://user@127.0.0.1/", "file:///etc/passwd", "http://127.0.0.1/ "):
        with pytest.raises(ForbiddenURL):
            everywhere.check(url)


# ---------------------------------------------------------------- what servers do


async def test_what_is_served_is_had(web: SafeFetcher) -> None:
    for serve in (
        answer(BODY),
        answer(b"HTTP/1.1"),
        answer(BODY, "Content-Encoding: identity"),
        answer(gzip.compress(BODY), "Content-Encoding: gzip"),
        answer(b"3\r\nabc\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
        lambda connection: connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + BODY),
    ):
        with serving(serve) as url:
            assert await web.fetch(url, CAP, SECONDS) in (BODY, b"HTTP/1.1", b"abc")


@pytest.mark.parametrize(
    "status", ["404 Not Found", "401 Unauthorized", "500 Oh", "204 No Content", "304 Not Modified"]
)
async def test_an_answer_without_a_file_is_told_by_its_status(web: SafeFetcher, status: str) -> None:
    serve = answer(b"", status=status)
    if status.startswith("204"):
        with serving(serve) as url:
            assert await web.fetch(url, CAP, SECONDS) == b""
    else:
        assert await fails(web, serve) == f"the server answered {status[:3]}"


def reset(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
    time.sleep(0.05)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


BROKEN: dict[str, Serve] = {
    "reset in the middle": reset,
    "cut in the middle": answer(b"half", "Content-Length: 1000"),
    "cut in a chunk": answer(b"ffff\r\nhalf", "Transfer-Encoding: chunked"),
    "cut in gzip": answer(gzip.compress(BODY)[:-100], "Content-Encoding: gzip"),
    "no HTTP": lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "nothing": lambda connection: None,
    "two lengths": answer(b"abc", "Content-Length: 3", "Content-Length: 4"),
    "a length that is no number": answer(b"abc", "Content-Length: 3x"),
    "a length below zero": answer(b"abc", "Content-Length: -3"),
    "headers without end": lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 2**18),
    "a header with a line feed": answer(b"abc", "X: a\nb"),
}


@pytest.mark.parametrize("serve", BROKEN.values(), ids=BROKEN)
async def test_what_breaks_off_is_told_as_such(web: SafeFetcher, serve: Serve) -> None:
    assert await fails(web, serve) == "the connection broke off"


async def test_a_packed_file_that_is_damaged_is_told_as_such(web: SafeFetcher) -> None:
    damaged = bytearray(gzip.compress(BODY))
    damaged[-6] ^= 1
    for body in (bytes(damaged), b"no gzip at all"):
        assert await fails(web, answer(body, "Content-Encoding: gzip")) == "it is not packed as it says"


@pytest.mark.parametrize("joint", [b"", bytes(700), gzip.compress(b"")], ids=["at once", "zeros", "nothing"])
@pytest.mark.parametrize("at_once", [1, 7, 2**16, 2**22])
async def test_a_packed_file_of_several_members_is_had_whole(
    web: SafeFetcher, monkeypatch: pytest.MonkeyPatch, joint: bytes, at_once: int
) -> None:
    """As bgzip writes them, and who appends to a packed file; zeros may fill up a block of a tape."""
    monkeypatch.setattr("deployments.web._UNPACKED_AT_ONCE", at_once)
    size = 50 if at_once < 10 else len(BODY)
    with serving(answer(joint.join([*map(gzip.compress, (BODY[:size], BODY[-size:])), b""]), GZIP)) as url:
        assert await web.fetch(url, CAP, SECONDS) == BODY[:size] + BODY[-size:]


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (b"no gzip at all", "it is not packed as it says"),
        (gzip.compress(BODY)[:5], "the connection broke off"),
        (gzip.compress(BODY)[:-9], "the connection broke off"),
    ],
    ids=["nothing packed", "half a head", "half a file"],
)
async def test_a_packed_file_is_never_cut_where_its_first_member_ends(
    web: SafeFetcher, second: bytes, told: str
) -> None:
    assert await fails(web, answer(gzip.compress(BODY) + second, GZIP)) == told


async def test_members_are_measured_together(web: SafeFetcher) -> None:
    await fails(web, answer(gzip.compress(bytes(CAP)) + gzip.compress(b"1"), GZIP), TooLarge)


@pytest.mark.parametrize(
    "packing", ["", "aws-chunked", "AWS-Chunked,", "utf-8", "UTF-8", "binary", "none", "identity, aws-chunked"]
)
async def test_a_packing_that_is_none_is_as_it_is(web: SafeFetcher, packing: str) -> None:
    with serving(answer(BODY, f"Content-Encoding: {packing}")) as url:
        assert await web.fetch(url, CAP, SECONDS) == BODY
    with serving(answer(gzip.compress(BODY), f"Content-Encoding: {packing}, gzip")) as url:
        assert await web.fetch(url, CAP, SECONDS) == BODY


@pytest.mark.parametrize("packing", ["br", "zstd", "deflate", "compress", "gzip, gzip", "gzip,br", "nonsense"])
async def test_what_was_not_asked_for_is_not_unpacked(web: SafeFetcher, packing: str) -> None:
    message = await fails(web, answer(zlib.compress(BODY), f"Content-Encoding: {packing}"))

    assert message == "it is packed in a way that was not asked for"


def pour(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while True:
        connection.sendall(bytes(2**20))


def pour_chunks(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + bytes(2**16) + b"\r\n")


LARGE: dict[str, Serve] = {
    "announced": answer(b"abc", f"Content-Length: {10 * 2**30}"),
    "without end": pour,
    "chunks without end": pour_chunks,
    "one byte too many": answer(bytes(CAP + 1)),
    "gzip": answer(gzip.compress(bytes(CAP + 1)), "Content-Encoding: gzip"),
    "a bomb": answer(gzip.compress(bytes(256 * 2**20)), "Content-Encoding: x-gzip"),
}


@pytest.mark.parametrize("serve", LARGE.values(), ids=LARGE)
async def test_no_more_is_read_than_was_asked_for(web: SafeFetcher, serve: Serve) -> None:
    await fails(web, serve, TooLarge)


async def test_as_much_as_was_asked_for_is_had(web: SafeFetcher) -> None:
    for serve in (answer(bytes(CAP)), answer(gzip.compress(bytes(CAP)), "Content-Encoding: gzip")):
        with serving(serve) as url:
            assert await web.fetch(url, CAP, SECONDS) == bytes(CAP)


def drip(head: bytes, drop: bytes) -> Serve:
    def serve(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(drop)
            time.sleep(0.02)

    return serve


SLOW: dict[str, Serve] = {
    "a slow body": drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
    "a slow head": drip(b"HTTP/1.1 200 OK\r\n", b"x"),
    "a slow status": drip(b"", b"H"),
    "continued without end": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("serve", SLOW.values(), ids=SLOW)
async def test_a_call_has_its_time_however_busy_its_server_is(web: SafeFetcher, serve: Serve) -> None:
    began = time.monotonic()
    if serve is SLOW["a slow status"]:  # no HTTP after all
        assert await fails(web, serve, seconds=0.5) in ("it took too long", "the connection broke off")
    else:
        assert await fails(web, serve, seconds=0.5) == "it took too long"
    assert time.monotonic() - began < 3


async def test_a_redirect_costs_time_of_the_same_call(web: SafeFetcher) -> None:
    def serve(connection: socket.socket) -> None:
        time.sleep(0.3)
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n")

    assert await fails(web, serve, seconds=0.8) == "it took too long"


async def test_a_name_that_nobody_has_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, web: SafeFetcher) -> None:
    def unknown(*arguments: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(Unreachable, match=r"^the server could not be reached$"):
        await web.fetch("http://nobody.example/", CAP, SECONDS)


async def test_a_look_up_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch, web: SafeFetcher) -> None:
    answered = threading.Event()
    look_up = socket.getaddrinfo

    def hang(host: str, *arguments: object) -> object:
        if host == "hanging.example":
            answered.wait(SECONDS)
        return look_up("127.0.0.1", *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    began = time.monotonic()
    try:
        with pytest.raises(Unreachable, match=r"^it took too long$"):
            await web.fetch("http://hanging.example/", CAP, 0.3)
        assert time.monotonic() - began < 2
        with serving(answer(b"abc")) as url:
            assert await web.fetch(url, CAP, SECONDS) == b"abc"
    finally:
        answered.set()


# ---------------------------------------------------------------- TLS


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """An authority that this process trusts, as an operator has it trust one of the house."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return authority


def tls(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


async def by_tls(certificate: trustme.LeafCert) -> bytes:
    web = SafeFetcher(Reach(allow_private=True))
    try:
        with serving(answer(BODY), tls(certificate)) as url:
            return await web.fetch(url, CAP, SECONDS)
    finally:
        await web.aclose()


async def test_a_valid_certificate_is_taken(authority: trustme.CA) -> None:
    assert await by_tls(authority.issue_cert("127.0.0.1")) == BODY


async def test_a_certificate_that_is_not_valid_is_told_as_such(authority: trustme.CA) -> None:
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    for certificate in (
        trustme.CA().issue_cert("127.0.0.1"),  # nobody's
        authority.issue_cert("127.0.0.1", not_before=yesterday - datetime.timedelta(1), not_after=yesterday),
        authority.issue_cert("example.com"),
        authority.issue_cert("127.0.0.2"),
    ):
        with pytest.raises(Unreachable, match=r"^the server's certificate is not valid$"):
            await by_tls(certificate)


async def test_a_server_without_tls_cannot_be_reached_by_it(web: SafeFetcher) -> None:
    with serving(answer(BODY)) as url, pytest.raises(Unreachable) as caught:
        await web.fetch(url.replace("http:", "https:"), CAP, SECONDS)
    assert str(caught.value) == "the server could not be reached"


# ---------------------------------------------------------------- redirects and posts


async def test_a_call_never_leads_to_ourselves() -> None:
    called = []

    def serve(connection: socket.socket) -> None:
        called.append(connection)
        answer(b"", "Location: /files/ours", status="302 Found")(connection)

    with serving(serve) as url:
        web = SafeFetcher(Reach(allow_private=True), is_ours=lambda url: "/files/" in url)
        for asked in (url, url.replace("/cat.png", "/files/x")):
            with pytest.raises(ForbiddenURL, match="it is an address of this server"):
                await web.fetch(asked, CAP, SECONDS)
        await web.aclose()
    assert len(called) == 1


@pytest.mark.parametrize("location", ["/a\tb", "/a\\b", "/a\xa0b", "/\x7f"])
async def test_a_redirect_to_what_is_no_url_is_told_as_such(web: SafeFetcher, location: str) -> None:
    moved = answer(b"", f"Location: {location}", status="302 Found")
    assert await fails(web, moved, ForbiddenURL) == "it is redirected to what is no URL"


@pytest.mark.parametrize("location", ["http://a b/", "http:// a/"])
async def test_spaces_elsewhere_make_no_host(web: SafeFetcher, location: str) -> None:
    await fails(web, answer(b"", f"Location: {location}", status="302 Found"), ForbiddenURL)


async def test_the_body_of_a_redirect_is_not_read(web: SafeFetcher) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://user@example.com/\r\n\r\n")
        while True:
            connection.sendall(bytes(2**16))

    assert "user name" in await fails(web, serve, ForbiddenURL)


async def test_a_post_is_told_its_status_and_no_more_is_read_than_a_little(web: SafeFetcher) -> None:
    sent = 0

    def serve(connection: socket.socket) -> None:
        nonlocal sent
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
        connection.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            sent += connection.send(bytes(2**16))

    with serving(serve) as url:
        assert await web.post(url, b"{}", {}, SECONDS) == 202
    assert sent < ANSWER_BYTES + 2**24  # what the sockets hold


@pytest.mark.parametrize(("seconds", "most"), [(0.3, 0.9), (SECONDS, 2.5)])
async def test_a_post_has_its_time_with_its_answer(web: SafeFetcher, seconds: float, most: float) -> None:
    began = time.monotonic()
    with serving(drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x")) as url:
        assert await web.post(url, b"{}", {}, seconds) == 200
        assert time.monotonic() - began < most


@pytest.mark.parametrize("location", ["http://127.0.0.1:1/", "/", "http:", "javascript:alert(1)", "http://[", "\x7f"])
async def test_a_post_is_not_redirected(web: SafeFetcher, location: str) -> None:
    with serving(answer(b"", f"Location: {location}", status="307 Temporary Redirect")) as url:
        assert await web.post(url, b"{}", {}, SECONDS) == 307


# ---------------------------------------------------------------- what is kept, and what is told


async def test_a_download_is_held_once(web: SafeFetcher, capsys: pytest.CaptureFixture[str]) -> None:
    size = 32 * 2**20
    peaks = {}
    plain, packed = answer(bytes(size)), answer(gzip.compress(bytes(size)), "Content-Encoding: gzip")
    for name, serve in (("as it is", plain), ("packed", packed)):
        with serving(serve) as url:
            await web.fetch(url, size, SECONDS)  # what is made once
            tracemalloc.start()
            try:
                data = await web.fetch(url, size, SECONDS * 6)
                _, peaks[name] = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert len(data) == size
        del data
    with capsys.disabled():
        told = ", ".join(f"{peak / 2**20:.1f} MiB {name}" for name, peak in peaks.items())
        print(f"\nmemory of a download of {size / 2**20:.0f} MiB: {told}")
    assert max(peaks.values()) < 1.5 * size


async def test_a_bomb_costs_little_memory(web: SafeFetcher) -> None:
    with serving(LARGE["a bomb"]) as url:
        tracemalloc.start()
        try:
            with pytest.raises(TooLarge):
                await web.fetch(url, CAP, SECONDS * 6)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 3 * CAP


async def test_a_signed_url_is_neither_logged_nor_told(web: SafeFetcher, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    errors = []
    for serve in (
        answer(BODY),
        answer(b"", status="403 Forbidden"),
        answer(b"", "Location: /?a b", status="302 Found"),
    ):
        with serving(serve) as url:
            try:
                await web.fetch(f"{url}?X-Amz-Signature={SECRET}", CAP, SECONDS)
            except WebError as error:
                errors.append(error)
    for url in (f"http://user:{SECRET}@127.0.0.1/", f"http://127.0.0.1:1/?{SECRET}", f"http://{SECRET}..example/"):
        with pytest.raises(WebError) as caught:
            await web.fetch(url, CAP, SECONDS)
        errors.append(caught.value)
    assert len(errors) == 5
    assert SECRET not in caplog.text
    assert SECRET not in "".join("".join(traceback.format_exception(error)) for error in errors)


async def test_nothing_of_one_call_is_sent_with_the_next(web: SafeFetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    heads: list[bytes] = []

    def read(connection: socket.socket) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(65536)
        return head

    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                heads.append(read(connection))
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )

    serving = asyncio.create_task(asyncio.to_thread(serve))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/cat.png?a=1#there"
    for _ in range(2):
        await web.fetch(url, CAP, SECONDS)
    await serving
    listener.close()
    host = httpx.URL(url).netloc.decode()
    assert heads[0] == heads[1]
    assert heads[0].decode().splitlines()[:-1] == [
        "GET /cat.png?a=1 HTTP/1.1",
        f"Host: {host}",
        "Accept: */*",
        "Accept-Encoding: identity",
        "User-Agent: svd-serve",
    ]
