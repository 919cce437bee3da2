"""The web outside: the one way to URLs that callers gave us.

    a caller's URL ──▶ check_url ──▶ port, literal address ──▶ name ──▶ addresses ──▶ the very address that was checked
                           ▲                                                                       │
                           └───────────── a redirect, a few times at the most ◀────────────────────┘

Public addresses and the web's usual ports are reached, and what an operator has allowed beside them. Names, addresses
and what translates between the two are ssrfguard's, which nothing but this module knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import logging
import re
import ssl
import unicodedata
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TypeVar

import httpx
from ssrfguard import DEFAULT_DENIED, AddressTable, Block, Policy, SSRFGuardError
from ssrfguard import Reach as Verdict
from ssrfguard.httpx import AsyncSafeTransport

LONGEST_URL = 8192
PORTS = frozenset({80, 443, 8080, 8443})
REDIRECTS = 5
CONNECT_SECONDS = 5.0

ANSWER_BYTES = 64 * 1024
ANSWER_SECONDS = 1.0
"""So much of the answer to a POST is read, out of courtesy: only its status matters."""

_UNPACKED_AT_ONCE = 1024 * 1024
_NO_PACKINGS = frozenset({"", "aws-chunked", "binary", "identity", "none", "utf-8", "utf8"})
"""Content codings that are none, which those who upload to buckets write, and buckets give back."""

_HEADERS = {b"Accept": b"*/*", b"Accept-Encoding": b"identity", b"User-Agent": b"svd-serve"}
_NO_HEADERS: Mapping[bytes, bytes] = {}
_TIMEOUTS = httpx.Timeout(None, connect=CONNECT_SECONDS).as_dict()  # a call has its time as a whole
_LEAVE_SECONDS = 0.1  # what a call needs to close its connection

Network = IPv4Network | IPv6Network
Result = TypeVar("Result")

logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every URL, and many are signed


# ---------------------------------------------------------------- what goes wrong


class WebError(Exception):
    """Why a call failed: a few words for the caller, with nothing of the URL in them."""


class ForbiddenURL(WebError, ValueError):
    """The URL may not be called. Trying again is of no use."""


class Unreachable(WebError):
    """The call was allowed, and has failed."""


class TooLarge(WebError):
    """The answer has more bytes than were asked for."""


# ---------------------------------------------------------------- what a URL may look like

_ODD = re.compile(r"[\s\\\x00-\x1f\x7f-\x9f]")
_AUTHORITY = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
_HOST_AND_PORT = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@%]+)(:[0-9]{0,5})?", re.IGNORECASE)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LONGEST_HOST = 253


def check_url(url: str) -> httpx.URL:
    """A caller's URL, parsed as it will be fetched, where it is written so that nobody can read it in another way.

    Raises:
        ForbiddenURL: It is not http(s), is too long, has no host, one that is an address in disguise, a user name, or
            characters that some parsers drop.
    """
    if len(url) > LONGEST_URL:
        raise ForbiddenURL(f"a URL has at most {LONGEST_URL} characters")
    authority = _AUTHORITY.match(url)
    if authority is None:
        raise ForbiddenURL("it is no http or https URL")
    if _ODD.search(url):
        raise ForbiddenURL("a URL has no spaces, backslashes or control characters")
    if "@" in authority[1]:
        raise ForbiddenURL("a URL with a user name or password is not called")
    if not _HOST_AND_PORT.fullmatch(authority[1]) or _is_disguised(authority[1]):
        raise ForbiddenURL("its host or port is malformed")
    return _parse(url)


def _parse(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        host = parsed.host  # decoded here, not before
    except (httpx.InvalidURL, ValueError):
        raise ForbiddenURL("it is no http or https URL") from None
    if not host or not _is_host(parsed.raw_host.decode("ascii")) or parsed.port not in (None, *range(1, 65536)):
        raise ForbiddenURL("its host or port is malformed")
    if len(str(parsed)) > LONGEST_URL:  # what was no ASCII has become longer
        raise ForbiddenURL(f"a URL has at most {LONGEST_URL} characters")
    return parsed


def _is_disguised(authority: str) -> bool:
    """Whether some parsers would read other letters: circled digits, wide ones, an ideographic full stop."""
    return "\u3002" in authority or unicodedata.normalize("NFKC", authority).lower() != authority.lower()


def _is_host(host: str) -> bool:
    """Whether this is an address in its usual form, or a name that no resolver takes for an address."""
    labels = host.removesuffix(".").split(".")
    if ":" in host or _NUMBER.fullmatch(labels[-1]):
        return _is_address(host)
    return len(host) <= _LONGEST_HOST and all(_LABEL.fullmatch(label) for label in labels)


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(IPv6Address(host) if ":" in host else IPv4Address(host))
    return False


# ---------------------------------------------------------------- how far we go

_EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_NOWHERE = AddressTable(tuple(Block(network, "Not allowed", "", Verdict.DENIED) for network in _EVERYWHERE))
_PUBLIC = AddressTable(
    (
        *DEFAULT_DENIED.blocks,
        Block(ip_network("::/0"), "Not allocated", "RFC4291", Verdict.DENIED),  # an IPv4 address may hide in it
        Block(ip_network("2000::/3"), "Global Unicast", "RFC4291", Verdict.PERMITTED),
    )
)
_ALL_PORTS = frozenset(range(1, 65536))


def _in_house() -> tuple[Network, ...]:
    """Where a name may lead that an operator has allowed: no cloud's metadata, for which one asks by its network."""
    whole = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "::1/128")
    networks: list[Network] = [ip_network(network) for network in whole]
    networks += IPv4Network("100.64.0.0/10").address_exclude(IPv4Network("100.100.100.200/32"))
    networks += IPv6Network("fc00::/7").address_exclude(IPv6Network("fd00:ec2::254/128"))
    return tuple(networks)


_IN_HOUSE = _in_house()


@dataclass(frozen=True)
class Place:
    """An entry of an allow list: a network, a host, or all hosts below a ``.suffix``; on a port, or the usual ones."""

    network: Network | None
    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read ``10.0.0.0/8``, ``[fd00::/8]:9000``, ``minio.internal:9000`` or ``.corp.example``.

        Raises:
            ValueError: It is none of these.
        """
        match = re.fullmatch(r"(?:\[([0-9a-fA-F:./]+)\]|([^:\[\]]+))(?::([0-9]{1,5}))?", text)
        name = (match[1] or match[2]) if match else text
        port = int(match[3]) if match and match[3] else None
        if port not in (None, *_ALL_PORTS):
            raise _not_a_place(text)
        if "/" in name or ":" in name or _NUMBER.fullmatch(name.rpartition(".")[2].lower()):
            return cls(_network(name, text), "", port)
        return cls(None, _host(name, text), port)

    def opens(self, port: int) -> bool:
        """Whether it allows this port."""
        return port == self.port if self.port else port in PORTS

    def names(self, host: str) -> bool:
        """Whether it allows this host by its name."""
        host = host.removesuffix(".")
        return host.endswith(self.host) if self.host.startswith(".") else bool(self.host) and host == self.host


def parse_places(text: object) -> object:
    """An allow list, with commas between its places.

    Raises:
        ValueError: One of them is none.
    """
    if not isinstance(text, str):
        return text
    return tuple(Place.parse(part.strip()) for part in text.split(",") if part.strip())


def _network(name: str, text: str) -> Network:
    try:
        network = ip_network(name)
        Policy(allowed_networks=(network,))  # one that wraps other addresses it refuses
    except ValueError:
        raise _not_a_place(text) from None
    return network


def _host(name: str, text: str) -> str:
    below = name.startswith(".")
    try:
        host = check_url(f"http://{'any' if below else ''}{name}/").raw_host.decode("ascii").removesuffix(".")
    except ForbiddenURL:
        raise _not_a_place(text) from None
    if host == "any" and below:
        raise _not_a_place(text)
    return host.removeprefix("any") if below else host


def _not_a_place(text: str) -> ValueError:
    return ValueError(
        f"{text!r} is no place to allow; write a network (10.0.0.0/8, fd00::/8), a host (minio.internal) or all hosts "
        "below a suffix (.corp.example), with its port where that is unusual (minio.internal:9000, [fd00::/8]:9000)"
    )


@dataclass(frozen=True)
class Reach:
    """What may be called.

    Attributes:
        allow_private: Lift the lists of addresses and ports, and nothing else.
        allow: What is allowed beside public addresses and the usual ports.
    """

    allow_private: bool = False
    allow: tuple[Place, ...] = ()

    def check(self, url: str) -> httpx.URL:
        """``check_url``, and that its port and, where it names one, its address are allowed.

        Raises:
            ForbiddenURL: They are not, or the URL is malformed.
        """
        parsed = check_url(url)
        policy = self.policy(parsed)
        try:
            policy.check_url(str(parsed))
            if _is_localhost(parsed.raw_host.decode("ascii")):
                policy.check_address("127.0.0.1")
        except SSRFGuardError:
            raise _forbidden() from None
        return parsed

    def policy(self, url: httpx.URL) -> Policy:
        """The rules for the host and port of a URL.

        Raises:
            ForbiddenURL: Nothing is allowed on this port.
        """
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        if self.allow_private:
            return _policy(_ALL_PORTS, _EVERYWHERE)
        here = [place for place in self.allow if place.opens(port)]
        if any(place.names(url.raw_host.decode("ascii")) for place in here):
            return _policy(frozenset({port}), _IN_HOUSE)
        networks = tuple(place.network for place in here if place.network)
        if port not in PORTS and not networks:
            raise _forbidden()
        return _policy(frozenset({port}), networks, public=port in PORTS)


@functools.lru_cache(256)
def _policy(ports: frozenset[int], networks: tuple[Network, ...], public: bool = True) -> Policy:
    """Public addresses, where they are wanted, and these networks."""
    return Policy(
        denied_networks=_PUBLIC if public else _NOWHERE,
        allowed_networks=networks,
        allowed_ports=ports,
        max_url_length=LONGEST_URL,
    )


def _is_localhost(host: str) -> bool:
    return f".{host.removesuffix('.')}".endswith(".localhost")


def _forbidden() -> ForbiddenURL:
    return ForbiddenURL("this address is not allowed")


# ---------------------------------------------------------------- the calls


class SafeFetcher:
    """Calls callers' URLs: within its reach, for so long and so many bytes, with nothing of ours sent along.

    Each call is one request on httpx's transport. Its client would add cookies, credentials and proxies, and follow or
    refuse redirects by rules of its own.
    """

    def __init__(self, reach: Reach | None = None, is_ours: Callable[[str], bool] = lambda url: False) -> None:
        """Make a fetcher that reaches the public web, unless told otherwise.

        Args:
            reach: What may be called.
            is_ours: Whether a URL is this server's own, which never calls itself.
        """
        self._reach = reach or Reach()
        self._is_ours = is_ours
        self._doors = _Doors(self._reach)

    async def aclose(self) -> None:
        """Close what is open."""
        await self._doors.aclose()

    async def fetch(self, url: str, max_bytes: int, seconds: float) -> bytes:
        """What a URL leads to, over ``REDIRECTS`` redirects at the most.

        Args:
            url: A caller's URL.
            max_bytes: How many bytes are read, and unpacked.
            seconds: How long all of it may take.

        Raises:
            ForbiddenURL: The URL, or one that it leads to, may not be called.
            TooLarge: There are more than ``max_bytes`` bytes.
            Unreachable: It cannot be had, or not in time.
        """
        with _told():
            return await _within(seconds, self._fetch(url, max_bytes))

    async def post(self, url: str, body: bytes, headers: Mapping[bytes, bytes], seconds: float) -> int:
        """POST, and answer the status, whatever it is; where a redirect leads is not looked at.

        Raises:
            ForbiddenURL: The URL may not be called.
            Unreachable: The receiver did not answer, or not in time.
        """
        until = asyncio.get_running_loop().time() + seconds
        with _told():
            response = await _within(seconds, self._send("POST", url, content=body, headers=headers))
            try:
                await _read_a_little(response, until)
            finally:
                await response.aclose()
            return response.status_code

    async def _fetch(self, url: str, max_bytes: int) -> bytes:
        response = await self._follow(url)
        try:
            if not response.is_success:
                raise Unreachable(f"the server answered {response.status_code}")
            return await _read(response, max_bytes)
        finally:
            await response.aclose()

    async def _follow(self, url: str) -> httpx.Response:
        for _ in range(REDIRECTS + 1):
            response = await self._send("GET", url)
            if not response.has_redirect_location:
                return response
            await response.aclose()
            url = _target(response)
        raise Unreachable(f"it is redirected more than {REDIRECTS} times")

    async def _send(
        self, method: str, url: str, content: bytes | None = None, headers: Mapping[bytes, bytes] = _NO_HEADERS
    ) -> httpx.Response:
        checked = self._reach.check(url)
        if self._is_ours(str(checked)):
            raise ForbiddenURL("it is an address of this server")
        request = httpx.Request(
            method, checked, headers={**_HEADERS, **headers}, content=content, extensions={"timeout": _TIMEOUTS}
        )
        response = await self._doors.handle_async_request(request)
        response.request = request
        return response


class _Doors:
    """Sends each request by the rules for its host and port."""

    def __init__(self, reach: Reach) -> None:
        """Open nothing yet."""
        self._reach = reach
        self._tls = httpx.create_ssl_context()  # SSL_CERT_FILE counts: an operator's own authority
        self._open: dict[Policy, AsyncSafeTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request."""
        policy = self._reach.policy(request.url)
        if policy not in self._open:
            self._open[policy] = AsyncSafeTransport(policy=policy, verify=self._tls, trust_env=False)
        return await self._open[policy].handle_async_request(request)

    async def aclose(self) -> None:
        """Close what is open."""
        for transport in self._open.values():
            await transport.aclose()


def _target(response: httpx.Response) -> str:
    """Where a redirect leads; spaces are quoted, as browsers do."""
    named = response.headers.get_list("Location")
    location = named[0].replace(" ", "%20")
    try:
        if len(named) == 1 and not _ODD.search(location):
            return str(response.url.join(location))
    except (httpx.InvalidURL, ValueError):
        pass
    raise ForbiddenURL("it is redirected to what is no URL")


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    """The whole answer, held once: ``getvalue`` copies nothing."""
    if int(response.headers.get("Content-Length", 0)) > max_bytes:
        raise TooLarge
    data = io.BytesIO()
    async for piece in _unpacked(response):
        if data.tell() + len(piece) > max_bytes:
            raise TooLarge
        data.write(piece)
    return data.getvalue()


async def _unpacked(response: httpx.Response) -> AsyncIterator[bytes]:
    """The answer in small pieces. It was asked for as it is, but buckets give what they hold, and some hold gzip."""
    named = [name.strip().lower() for name in response.headers.get("Content-Encoding", "").split(",")]
    packings = [name for name in named if name not in _NO_PACKINGS]
    if not packings:
        async for piece in response.aiter_raw():
            yield piece
    elif packings in (["gzip"], ["x-gzip"]):
        async for piece in _unzipped(response):
            yield piece
    else:
        raise Unreachable("it is packed in a way that was not asked for")


async def _unzipped(response: httpx.Response) -> AsyncIterator[bytes]:
    """A few bytes may be gigabytes unpacked, so it is done a little at a time. There may be several members."""
    unpacking = _member()
    async for packed in response.aiter_raw():
        piece = b""
        while packed or len(piece) == _UNPACKED_AT_ONCE:
            if unpacking.eof:
                packed = packed.lstrip(b"\0")  # padding, between members and at the end
                if not packed:
                    break
                unpacking = _member()
            piece = unpacking.decompress(packed, _UNPACKED_AT_ONCE)
            yield piece
            packed = unpacking.unused_data if unpacking.eof else unpacking.unconsumed_tail
            await asyncio.sleep(0)  # others have their turn, and so has the clock
    if not unpacking.eof:
        raise Unreachable("the connection broke off")


def _member() -> zlib._Decompress:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


async def _read_a_little(response: httpx.Response, until: float) -> None:
    """Let a receiver finish its answer, unless it is long or slow."""
    read = 0
    until = min(until, asyncio.get_running_loop().time() + ANSWER_SECONDS)
    with contextlib.suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout_at(until):
            async for piece in response.aiter_raw():
                read += len(piece)
                if read > ANSWER_BYTES:
                    return


async def _within(seconds: float, call: Awaitable[Result]) -> Result:
    """What a call answers in time. One that looks up a name cannot be stopped, so it is not waited for long."""
    calling = asyncio.ensure_future(call)
    try:
        return await asyncio.wait_for(asyncio.shield(calling), seconds)
    except TimeoutError:
        if calling.done():  # in the same moment: what it holds open would never be closed
            return calling.result()
        raise
    finally:
        calling.cancel()
        await asyncio.wait([calling], timeout=_LEAVE_SECONDS)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Name what a call may raise. The causes are dropped: they hold URLs and addresses, and end in logs."""
    try:
        yield
    except WebError:
        raise
    except SSRFGuardError:
        raise _forbidden() from None
    except (TimeoutError, httpx.TimeoutException):
        raise Unreachable("it took too long") from None
    except httpx.ConnectError as error:
        invalid = any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))
        reason = "the server's certificate is not valid" if invalid else "the server could not be reached"
        raise Unreachable(reason) from None
    except zlib.error:
        raise Unreachable("it is not packed as it says") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
        raise Unreachable("the connection broke off") from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__
