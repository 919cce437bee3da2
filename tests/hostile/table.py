"""What a line of the bad-input table is, and what is expected of every answer.

Input ──▶ POST /<endpoint>, the answer at once ────────────────────────┐
      └─▶ POST /queue/<endpoint>, COMPLETED, the answer of the result ─┴─▶ status, type and place of the error
Call ───▶ any HTTP request ──▶ status, type of the error, headers
Raw ────▶ bytes that no client would send ──▶ status, or the end of the connection
Script ─▶ what takes several steps
Elsewhere ▶ the test of another suite that shows it
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.conftest import ROOT
from tests.hostile.reach import Line, World
from tests.hostile.web import picture

FAST, SVD, STABLE = "fal-ai/fast-svd-lcm", "fal-ai/svd", "fal-ai/stable-video"
TEXT = "fal-ai/fast-svd-lcm/text-to-video"
PATIENCE = 90.0
LARGEST_READ = 4 * 1024 * 1024
AT_ONCE = 12
"""Requests of one row that are under way together."""

Loc = tuple[str | int, ...]
Headers = Mapping[str, str]
JSON = {"content-type": "application/json"}
IMAGE_URL: Loc = ("body", "image_url")


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """A file inside of a URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


GOOD = data_uri(picture())


@dataclass(frozen=True)
class Reply:
    """An answer. Without a status there was none: the connection ended."""

    status: int | None
    headers: httpx.Headers
    body: bytes
    seconds: float = 0.0

    @property
    def json(self) -> Any:
        """The body, which has to be JSON as the standard has it: no NaN."""
        return json.loads(self.body, parse_constant=_no_json)

    @property
    def short(self) -> str:
        """What a message tells of it."""
        return f"{self.status} {self.body[:500]!r}"


def _no_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


Check = Callable[[Reply], None]


@dataclass(frozen=True)
class Expected:
    """What an answer has to be.

    Attributes:
        statuses: Any of these; None stands for a connection that is closed without an answer.
        errors: For an error of the model's: the type and place of each; a type of None is any.
        error_type: For one of the service's own.
        check: What else has to be true.
    """

    statuses: tuple[int | None, ...]
    errors: tuple[tuple[str | None, Loc], ...] | None = None
    error_type: str | None = None
    check: Check | None = None

    def compare(self, reply: Reply) -> None:
        """Fail where the answer is another."""
        assert reply.status in self.statuses, f"expected {self.statuses}, got {reply.short}"
        if self.errors is not None:
            told = [(each["type"], tuple(each["loc"])) for each in reply.json["detail"]]
            expected = [(kind or told[index][0], loc) for index, (kind, loc) in enumerate(self.errors[: len(told)])]
            assert told == expected and len(told) == len(self.errors), f"expected {self.errors}, got {reply.short}"
        if self.error_type is not None:
            assert isinstance(reply.json["detail"], str), reply.short
            assert reply.json["error_type"] == reply.headers["x-fal-error-type"] == self.error_type, reply.short
        if self.check:
            self.check(reply)


def made() -> Expected:
    """A clip."""
    return Expected((200,), check=_is_clip)


def _is_clip(reply: Reply) -> None:
    file = reply.json.get("video") or reply.json["image"]
    assert file["file_size"] > 1000 and file["content_type"] == "video/mp4", reply.short


def model_error(kind: str | None, *loc: str | int) -> Expected:
    """An error of the model's, 422: its one detail has this type, and this place within the body."""
    return Expected((422,), errors=((kind, ("body", *loc)),))


def model_errors(*errors: tuple[str | None, Loc]) -> Expected:
    """Several at once."""
    return Expected((422,), errors=tuple((kind, ("body", *loc)) for kind, loc in errors))


def refused(status: int, kind: str) -> Expected:
    """An error of the service's own."""
    return Expected((status,), error_type=kind)


NO_DOWNLOAD = model_error("file_download_error", "image_url")


class Caller:
    """Speaks to the service, and looks at every answer, whatever else is expected of it."""

    def __init__(self, world: World) -> None:
        """Speak to this world's service, with its own key."""
        self.world = world
        self.key = world.key
        self.statuses: Counter[int | None] = Counter()
        self.client = world.client(headers={"authorization": f"Key {self.key}"})
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._secrets = [self.key.partition(":")[2], str(world.folder), str(ROOT), "Traceback (most", "site-packages"]

    async def call(self, method: str, path: str, **options: Any) -> Reply:
        """One HTTP request. ``key`` is another key to send, or None for none."""
        if "key" in options:
            key = options.pop("key")
            options["headers"] = dict(options.get("headers") or {}) | {"authorization": f"Key {key}" if key else ""}
        began = time.monotonic()
        answer = await self.client.request(method, path, **options)
        return self.look(Reply(answer.status_code, answer.headers, answer.content, time.monotonic() - began))

    async def post(self, endpoint: str, body: Any, headers: Headers = {}) -> Reply:  # noqa: B006 - nobody writes it
        """Run an endpoint at once."""
        async with self._turn:
            return await self.call("POST", f"/{endpoint}", content=_content(body), headers=JSON | dict(headers))

    async def queued(self, endpoint: str, body: Any, headers: Headers = {}) -> Reply:  # noqa: B006
        """Submit, wait, and answer what the result's address answers; or the submit's own answer, if it was refused."""
        async with self._turn:
            path = f"/queue/{endpoint}"
            submitted = await self.call("POST", path, content=_content(body), headers=JSON | dict(headers))
            if submitted.status != 200:
                return submitted
            return await self.result(endpoint, submitted.json["request_id"])

    async def result(self, endpoint: str, request_id: str) -> Reply:
        """How a request ended, once it has."""
        address = f"/queue/{'/'.join(endpoint.split('/')[:2])}/requests/{request_id}"
        async with asyncio.timeout(PATIENCE):
            while (status := (await self.call("GET", f"{address}/status")).json)["status"] != "COMPLETED":
                await asyncio.sleep(0.05)  # the service holds a poll itself, but for the first
        result = await self.call("GET", address)
        failed = result.status != 200
        assert ("error" in status) == failed, f"the status says {status}, the result {result.short}"
        return result

    async def raw(self, sent: bytes | Sequence[bytes], seconds: float = 30.0, pause: float = 0.0) -> Reply:
        """Send bytes as they are; answer what came back until the connection ended or the time was over."""
        began = time.monotonic()
        received = bytearray()
        async with self.world.connect() as line:
            pieces = [sent] if isinstance(sent, bytes) else sent
            sending = asyncio.create_task(_send(line, pieces, pause))
            try:
                async with asyncio.timeout(seconds):
                    while len(received) < LARGEST_READ and (piece := await line.receive()):
                        received += piece
            except TimeoutError:
                pass
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        return self.look(parse(bytes(received), time.monotonic() - began))

    def head(self, method: str, path: str, *headers: str, key: bool = True) -> bytes:
        """The beginning of a request, as it is written here."""
        lines = [f"{method} {path} HTTP/1.1", "Host: clips.example", *([f"Authorization: Key {self.key}"] * key)]
        return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1")

    def look(self, reply: Reply) -> Reply:
        """Fail for what no answer may have."""
        self.statuses[reply.status] += 1
        assert reply.status is None or reply.status < 500, reply.short
        text = reply.body.decode("utf-8", errors="replace")
        for secret in self._secrets:
            assert secret not in text, f"{secret!r} is in the answer: {reply.short}"
        if reply.headers.get("content-type", "").startswith("application/json") and reply.body:
            assert reply.json is not Ellipsis
        return reply


def _content(body: Any) -> bytes:
    """JSON, unless it is bytes: those are sent as they are."""
    return body if isinstance(body, bytes) else json.dumps(body).encode()


async def _send(line: Line, pieces: Sequence[bytes], pause: float) -> None:
    with suppress(ConnectionError):
        for piece in pieces:
            await line.send(piece)
            await asyncio.sleep(pause)


def parse(received: bytes, seconds: float = 0.0) -> Reply:
    """The first answer in what came back."""
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    match = re.match(r"HTTP/1\.[01] (\d{3})", first)
    if not match:
        return Reply(None, httpx.Headers(), received, seconds)
    headers = httpx.Headers([(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)])
    length = headers.get("content-length")
    return Reply(int(match[1]), headers, body[: int(length)] if length else body, seconds)


# ---------------------------------------------------------------- the kinds of lines


@dataclass(frozen=True, kw_only=True, eq=False)
class Case(ABC):
    """One line, or one variant of a line.

    Attributes:
        row: Its number in the table.
        name: What it is, in words.
        slow: Whether it mostly waits: then it begins with the first, and others go on beside it.
    """

    row: int
    name: str
    slow: bool = False

    def __str__(self) -> str:
        return f"row-{self.row:02}-{_printable(self.name)}"

    @abstractmethod
    async def run(self, caller: Caller) -> None:
        """Fail unless the answer is the expected one."""


def _printable(text: str) -> str:
    return re.sub(r"[^\x21-\x7e]+", "-", text.encode("unicode_escape").decode())[:80]


@dataclass(frozen=True, kw_only=True, eq=False)
class Input(Case):
    """An input to an endpoint.

    Attributes:
        body: JSON, or bytes, or what makes either.
        expected: The answer, in both ways of asking.
        endpoint: Who is asked.
        modes: ``run`` asks for the answer at once, ``queue`` submits and waits.
        headers: Sent too.
    """

    body: Any
    expected: Expected
    endpoint: str = FAST
    modes: tuple[str, ...] = ("run", "queue")
    headers: Mapping[str, str] = field(default_factory=dict)

    async def run(self, caller: Caller) -> None:
        """Ask."""
        body = await asyncio.to_thread(self.body) if callable(self.body) else self.body
        ways = {"run": caller.post, "queue": caller.queued}
        for reply in await asyncio.gather(*(ways[mode](self.endpoint, body, self.headers) for mode in self.modes)):
            self.expected.compare(reply)


@dataclass(frozen=True, kw_only=True, eq=False)
class Call(Case):
    """Any HTTP request."""

    method: str
    path: str
    expected: Expected
    options: Mapping[str, Any] = field(default_factory=dict)

    async def run(self, caller: Caller) -> None:
        """Ask."""
        self.expected.compare(await caller.call(self.method, self.path, **self.options))


@dataclass(frozen=True, kw_only=True, eq=False)
class Raw(Case):
    """Bytes. ``make`` gets the caller, who knows the key."""

    make: Callable[[Caller], bytes]
    expected: Expected
    seconds: float = 30.0

    async def run(self, caller: Caller) -> None:
        """Send them."""
        self.expected.compare(await caller.raw(self.make(caller), self.seconds))


@dataclass(frozen=True, kw_only=True, eq=False)
class Script(Case):
    """Several steps."""

    steps: Callable[[Caller], Awaitable[None]]

    async def run(self, caller: Caller) -> None:
        """Take them."""
        await self.steps(caller)


@dataclass(frozen=True, kw_only=True, eq=False)
class Elsewhere(Case):
    """The test of another suite, by its node id."""

    node: str

    async def run(self, caller: Caller) -> None:
        """See that it is there; it runs with its own suite."""
        path, _, name = self.node.partition("::")
        assert re.search(rf"^(async )?def {re.escape(name)}\(", (ROOT / path).read_text(), re.MULTILINE), self.node
