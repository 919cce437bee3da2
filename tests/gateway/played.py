"""The gateway for generators of inputs, which are no coroutines: in a thread, with somebody who finishes what waits.

hypothesis, schemathesis ──▶ send (ASGI, byte for byte) ──▶ gateway ──▶ queue ──▶ a worker: at once, with its seed
                               └──▶ what every answer must be, whatever was sent
"""

from __future__ import annotations

import asyncio
import json
import re
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.types import ASGIApp, Message

from deployments.queue.store import BatchLimits, Outcome, RequestStore
from deployments.storage import FileStorage
from tests.gateway.conftest import KEY, OWNER, URL, Gateway, open_gateway, served_endpoints

PATIENCE = 60.0
"""How long one answer may take on a busy machine."""

PLATFORM = "/v1/"
EMPTY = (304, 416)

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class Answer:
    """What came back, as it was sent."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which has to be JSON as RFC 8259 has it: no NaN, and UTF-8."""
        return json.loads(self.body.decode(), parse_constant=_no_constant)


@dataclass
class Played:
    """A gateway that answers calls from another thread, and counts them."""

    gateway: Gateway
    portal: BlockingPortal
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def tried(self) -> int:
        """How many requests were made."""
        return self.statuses.total()

    def send(
        self,
        method: str,
        path: str,
        query: bytes = b"",
        body: bytes = b"",
        headers: Headers = (),
        key: str | None = KEY,
    ) -> Answer:
        """One HTTP request with a key, unless there is to be none. The path is one as it stands in a request line."""
        sent = [*headers, *([("authorization", f"Key {key}".encode())] if key else [])]
        answer = self.portal.call(call, self.gateway.app, method, path, query, body, sent)
        self.statuses[answer.status] += 1
        check(answer, method, unquote(path))
        return answer


@contextmanager
def playing(folder: Path) -> Iterator[Played]:
    """A gateway with all endpoints of serve_config.yaml, whose requests end at once."""
    with start_blocking_portal() as portal:
        store = portal.call(RequestStore.open, f"sqlite+aiosqlite:///{folder}/queue.db")
        with portal.wrap_async_context_manager(_open(store, FileStorage(folder / "files", URL))) as gateway:
            yield Played(gateway, portal)


@asynccontextmanager
async def _open(store: RequestStore, storage: FileStorage) -> AsyncIterator[Gateway]:
    endpoints = served_endpoints()
    async with open_gateway(store, storage, endpoints, poll_hold_seconds=0.0) as gateway:
        working = asyncio.create_task(_work(store, {each.model for each in endpoints.values()}))
        yield gateway
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def _work(store: RequestStore, models: set[str]) -> None:
    """End whatever waits with the seed that its row says, as a replica does."""
    while True:
        for model in models:
            for attempt in await store.claim(model, OWNER, BatchLimits()):
                output = {"video": {"url": f"{URL}/files/b/0/clip.mp4"}, "seed": json.loads(attempt.input)["seed"]}
                await store.complete(attempt, OWNER, Outcome(200, output, inference_seconds=0.1, gpu_seconds=0.1))
        await asyncio.sleep(0.01)


async def call(app: ASGIApp, method: str, path: str, query: bytes, body: bytes, headers: Headers) -> Answer:
    """Speak ASGI to an application as an HTTP server does; the caller stays until the answer has ended."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1:8000"), *((name.encode(), value) for name, value in headers)],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }
    sent: list[Message] = []
    told = False

    async def receive() -> Message:
        nonlocal told
        if told:
            await asyncio.Event().wait()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    async with asyncio.timeout(PATIENCE):
        await app(scope, receive, send)
    start = sent[0]
    answered = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
    return Answer(start["status"], answered, b"".join(each.get("body", b"") for each in sent[1:]))


def check(answer: Answer, method: str, path: str) -> None:
    """Assert what every answer must be: none of our faults, whole, and told in fal's or the platform's form."""
    assert answer.status < 500, answer
    assert not [value for value in answer.headers.values() if "\r" in value or "\n" in value], answer.headers
    assert re.fullmatch("[0-9a-f-]{36}", answer.headers["x-fal-request-id"]), answer.headers
    is_json = answer.headers.get("content-type", "").startswith("application/json")
    if is_json and answer.body:
        assert answer.json is not Ellipsis
    if answer.status >= 400 and method != "HEAD" and answer.status not in EMPTY:
        assert "Traceback" not in answer.body.decode() and "/site-packages/" not in answer.body.decode()
        _check_form(answer, path) if is_json else _check_stream(answer)


def _check_form(answer: Answer, path: str) -> None:
    """{"error": {…}} below /v1, else {"detail": …}; a request that is not there, or has ended, has a status only."""
    body = answer.json
    if path.startswith(PLATFORM):
        assert set(body["error"]) >= {"type", "message", "docs_url", "request_id"}, body
    elif "detail" not in body:
        assert body.get("status") in ("NOT_FOUND", "ALREADY_COMPLETED"), body
    elif answer.status == 422:
        assert all(each["loc"] and each["msg"] and each["type"] for each in body["detail"]), body
    else:
        assert isinstance(body["detail"], str) and body["detail"], body


def _check_stream(answer: Answer) -> None:
    """A refused input is told as an event of a stream where a stream was asked for."""
    assert answer.headers["content-type"].startswith("text/event-stream"), answer
    assert json.loads(answer.body.decode().removeprefix("data: "), parse_constant=_no_constant)["detail"]


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def fastapi_of(app: Any) -> FastAPI:
    """The application behind its middleware."""
    while not isinstance(app, FastAPI):
        app = getattr(app, "_app", None) or app.app
    return app


def operations(app: ASGIApp) -> dict[tuple[str, str], dict[str, Any]]:
    """Every method of every route that an application has, with what OpenAPI says of its parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one function may serve several methods
        paths = get_openapi(title="all", version="1", routes=fastapi_of(app).routes)["paths"]
    return {(method.upper(), path): said for path, methods in paths.items() for method, said in methods.items()}
