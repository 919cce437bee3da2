"""The real gateway on a real store, without a network: httpx speaks ASGI to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message

from deployments.gateway.api import create_api
from deployments.models.base import Endpoint
from deployments.models.messages import Attempt
from deployments.queue.request import InferenceRequest, NewRequest
from deployments.queue.store import BatchLimits, Outcome, RequestStore
from deployments.settings import AppArgs
from deployments.storage import FileStorage
from deployments.web import Reach
from tests import tiny

KEY = "id:secret"
URL = "http://127.0.0.1:8000"
OWNER = "dispatcher"
PATIENCE = 10.0

STABLE_VIDEO = "fal-ai/stable-video"
SVD = "fal-ai/svd"
FAST = "fal-ai/fast-svd-lcm"
TEXT_TO_VIDEO = "fal-ai/fast-svd-lcm/text-to-video"
INPUT = {"image_url": "https://example.com/cat.png"}
OUTPUT = {"image": {"url": f"{URL}/files/b/0/clip.mp4"}, "seed": 7}


@dataclass(frozen=True)
class Gateway:
    """A running gateway, and the store behind it, by which a test plays the dispatcher."""

    app: ASGIApp
    client: httpx.AsyncClient
    store: RequestStore
    storage: FileStorage

    async def submit(self, endpoint: str = SVD, **options: Any) -> str:
        """Submit over HTTP; answer the request's id."""
        reply = await self.client.post(f"/queue/{endpoint}", **({"json": INPUT} | options))
        assert reply.status_code == 200, reply.text
        return str(reply.json()["request_id"])

    async def enqueue(self, **changes: Any) -> InferenceRequest:
        """Put a row into the queue directly."""
        values = {"endpoint": SVD, "model": "fal-ai--svd", "key_id": "id", "input": json.dumps(INPUT)}
        return await self.store.submit(NewRequest(**(values | changes)))

    async def claim(self, model: str = "fal-ai--svd") -> Attempt:
        """Take the next request, as the dispatcher does, waiting for one to come."""
        async with asyncio.timeout(PATIENCE):
            while not (attempts := await self.store.claim(model, OWNER, BatchLimits())):
                await asyncio.sleep(0.01)
        return attempts[0]

    async def finish(self, attempt: Attempt, output: Mapping[str, Any] = OUTPUT) -> None:
        """End an attempt well."""
        assert await self.store.complete(attempt, OWNER, Outcome(200, output, inference_seconds=3.5, gpu_seconds=3.0))

    async def waiting(self, model: str = "fal-ai--svd") -> int:
        """How many requests wait for a model."""
        return len(await self.store.waiting(model))

    async def sweep(self) -> None:
        """End what did not start in time, as the dispatcher does now and then."""
        await self.store.sweep(OWNER, [], lease_seconds=3600.0)

    async def status(self, request_id: str, endpoint: str = SVD, **query: str) -> dict[str, Any]:
        """The status of a request."""
        reply = await self.client.get(f"/queue/{endpoint}/requests/{request_id}/status", params=query)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())


class PatientTransport(httpx.ASGITransport):
    """Fails a call that does not end, rather than waiting for it forever."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        async with asyncio.timeout(PATIENCE):
            return await super().handle_async_request(request)


def served_endpoints() -> dict[str, Endpoint]:
    """What ``server`` serves."""
    return AppArgs.model_validate(tiny.document()["applications"][0]["args"]).build()


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[None]:
    """Start and stop an application by the ASGI lifespan protocol."""
    to_app: asyncio.Queue[Message] = asyncio.Queue()
    from_app: asyncio.Queue[Message] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    running = asyncio.create_task(app(scope, to_app.get, from_app.put))
    for event in ("startup", "shutdown"):
        await to_app.put({"type": f"lifespan.{event}"})
        assert await from_app.get() == {"type": f"lifespan.{event}.complete"}
        if event == "startup":
            yield
    await running


@asynccontextmanager
async def open_gateway(
    store: RequestStore,
    storage: FileStorage,
    endpoints: Mapping[str, Endpoint],
    not_ready: str | Exception | None = None,
    **options: Any,
) -> AsyncIterator[Gateway]:
    """A gateway for the time of a test. ``not_ready`` is what stands behind /health/ready; options are the API's."""

    async def open_store() -> RequestStore:
        return store

    async def readiness() -> str | None:
        if isinstance(not_ready, Exception):
            raise not_ready
        return not_ready

    in_house = {"webhook_reach": Reach(allow_private=True)}  # the receivers of tests are on this machine
    app = create_api(endpoints, open_store, storage, KEY, URL, readiness, **(in_house | options))
    transport = PatientTransport(app, raise_app_exceptions=False)
    headers = {"authorization": f"Key {KEY}"}
    async with lifespan(app), httpx.AsyncClient(transport=transport, base_url=URL, headers=headers) as client:
        yield Gateway(app, client, store, storage)


async def messages(
    app: ASGIApp, path: str, query: str = "", method: str = "GET", key: str = KEY
) -> AsyncIterator[Message]:
    """What the application sends for one request, as it sends it. The path goes in as it is."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1:8000"), (b"authorization", f"Key {key}".encode())],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    connected = asyncio.Event()

    async def receive() -> Message:
        if not connected.is_set():
            connected.set()
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    serving = asyncio.create_task(app(scope, receive, sent.put))
    serving.add_done_callback(lambda _: sent.put_nowait(None))
    try:
        async with asyncio.timeout(PATIENCE):
            while (message := await sent.get()) is not None:
                yield message
        await serving
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def sse(app: ASGIApp, path: str, query: str = "", key: str = KEY) -> AsyncIterator[dict[str, Any]]:
    """The server-sent events of one request, as they come."""
    async with aclosing(messages(app, path, query, key=key)) as sent:
        async for message in sent:
            for line in message.get("body", b"").decode().splitlines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))


class Clock:
    """Time as what is held in memory for a while reads it, moved by hand."""

    def __init__(self) -> None:
        """Begin anywhere."""
        self.now = 1000.0

    def monotonic(self) -> float:
        """The time now."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The age of rows in memory, by hand."""
    clock = Clock()
    monkeypatch.setattr("deployments.gateway.recent.time", clock)
    return clock


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    """Files in an empty directory."""
    return FileStorage(tmp_path / "files", URL)


@pytest.fixture
async def gateway(store: RequestStore, storage: FileStorage) -> AsyncIterator[Gateway]:
    """The gateway of serve_config.yaml."""
    async with open_gateway(store, storage, served_endpoints()) as gateway:
        yield gateway
