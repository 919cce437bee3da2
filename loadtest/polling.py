"""What polling costs, held and not: ``python -m loadtest.polling [--callers 200] [--seconds 3]``.

    callers: AsyncClient.subscribe ──▶ the gateway, in a process of its own ──▶ SQLite ◀── dispatcher, fake model

The fake model takes ``--seconds`` for a clip and any number at once, so that callers wait rather than compute. Each run
starts from an empty data directory, once with polls held as they are by default and once with every poll answered at
once. The delay is from the end as the row has it to the moment the caller's ``subscribe`` returns.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fal_client
import httpx
import uvicorn
import yaml

from deployments.cli import point_fal_client_at
from deployments.gateway.api import create_api
from deployments.models.messages import Attempt, Event, Finished, Progress
from deployments.queue.dispatcher import Dispatcher
from deployments.queue.store import RequestStore
from deployments.settings import AppArgs
from deployments.storage import FileStorage

KEY = "bench:bench"
ENDPOINT = "fal-ai/svd"
MODEL = "fal-ai--svd"


def main() -> None:
    """Print the figures of both runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--serve", nargs=4, metavar=("PORT", "DIR", "HOLD", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        port, folder, hold, seconds = options.serve
        asyncio.run(serve(int(port), Path(folder), float(hold), float(seconds)))
        return
    for hold in (1.0, 0.0):
        print(f"polls {'held for up to a second' if hold else 'answered at once'}:")
        asyncio.run(measure(hold, options.callers, options.seconds))


# ---------------------------------------------------------------- the gateway's process


class Told:
    """What a replica says; nobody cancels it."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events

    def __anext__(self) -> Awaitable[Event]:
        """The next of it."""
        return anext(self._events)

    def cancel(self) -> None:
        """It goes on."""


class FakeReplicas:
    """Takes any number of attempts at once, and a while for each."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    @asynccontextmanager
    async def choose_replica(self) -> AsyncIterator[None]:
        """There is always one."""
        yield

    def dispatch(self, selection: Any, attempts: list[Attempt]) -> Told:
        """Four steps, then a clip."""
        return Told(self._tell(attempts))

    async def _tell(self, attempts: list[Attempt]) -> AsyncIterator[Event]:
        for step in range(4):
            await asyncio.sleep(self._seconds / 4)
            yield Progress(tuple(attempt.request_id for attempt in attempts), f"Step {step + 1}/4", (step + 1) / 4)
        for attempt in attempts:
            yield Finished(attempt.request_id, {"image": {"url": "none"}, "seed": 1}, self._seconds, self._seconds)


async def serve(port: int, folder: Path, hold: float, seconds: float) -> None:
    """The gateway and a dispatcher, on one store."""
    url = f"sqlite+aiosqlite:///{folder}/bench.db"
    store = await RequestStore.open(url)
    config = yaml.safe_load(Path("serve_config.yaml").read_text())
    endpoints = AppArgs.model_validate(config["applications"][0]["args"]).build()
    storage = FileStorage(folder / "files", f"http://127.0.0.1:{port}")

    async def open_store() -> RequestStore:
        return await RequestStore.open(url)

    async def not_ready() -> None:
        return None

    dispatcher = Dispatcher(store, storage, {MODEL: FakeReplicas(seconds)}, owner="bench")
    dispatcher.reconfigure({"batching": {MODEL: {"max_batch_size": 8, "max_pixel_frames": 10**12}}})
    await dispatcher.start()
    api = create_api(endpoints, open_store, storage, KEY, f"http://127.0.0.1:{port}", not_ready, poll_hold_seconds=hold)
    await uvicorn.Server(uvicorn.Config(api, port=port, log_level="error", access_log=False)).serve()
    await dispatcher.stop()


# ---------------------------------------------------------------- the callers


@dataclass
class Seen:
    """What the callers met."""

    polls: list[float] = field(default_factory=list)
    ended: dict[str, float] = field(default_factory=dict)


async def measure(hold: float, callers: int, seconds: float) -> None:
    """One run; prints its figures."""
    with tempfile.TemporaryDirectory(prefix="svd-serve-bench-") as name:
        port = free_port()
        command = [sys.executable, "-m", "loadtest.polling", "--serve", str(port), name, str(hold), str(seconds)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            await until_ready(f"http://127.0.0.1:{port}")
            seen, took = await subscribe_all(f"http://127.0.0.1:{port}", callers)
            delays = await delays_of(Path(name), seen)
        finally:
            server.terminate()
            server.wait()
    share = len(seen.polls) / took
    print(f"  {callers} callers done in {took:.1f} s; {len(seen.polls)} status polls, {share:.0f} a second")
    print(f"  poll to answer     {quantile(seen.polls, 0.5):.3f} s (median), {quantile(seen.polls, 0.99):.3f} s (p99)")
    print(f"  end to its notice  {statistics.median(delays):.3f} s (median), {quantile(delays, 0.99):.3f} s (p99)")


async def subscribe_all(url: str, callers: int) -> tuple[Seen, float]:
    """All callers at once, as the official client polls by default."""
    point_fal_client_at(url)
    seen = Seen()
    client = fal_client.AsyncClient(key=KEY)
    http: httpx.AsyncClient = await client._client
    watch(http, seen)
    began = time.monotonic()

    async def call(number: int) -> None:
        ids: list[str] = []
        arguments = {"image_url": "https://example.com/a.png", "seed": number}
        await client.subscribe(ENDPOINT, arguments=arguments, on_enqueue=ids.append)
        seen.ended[ids[0]] = time.time()

    await asyncio.gather(*(call(number) for number in range(callers)))
    took = time.monotonic() - began
    await http.aclose()
    return seen, took


def watch(http: httpx.AsyncClient, seen: Seen) -> None:
    """Note how long each status poll takes."""

    async def begin(request: httpx.Request) -> None:
        request.extensions["began"] = time.monotonic()

    async def end(response: httpx.Response) -> None:
        if response.request.url.path.endswith("/status"):
            seen.polls.append(time.monotonic() - response.request.extensions["began"])

    http.event_hooks = {
        "request": [*http.event_hooks["request"], begin],
        "response": [*http.event_hooks["response"], end],
    }


async def delays_of(folder: Path, seen: Seen) -> list[float]:
    """From each request's end as its row has it to its caller's."""
    store = await RequestStore.open(f"sqlite+aiosqlite:///{folder}/bench.db")
    rows = [await store.get(request_id) for request_id in seen.ended]
    await store.close()
    return [seen.ended[row.id] - (row.finished_at or 0.0) for row in rows if row]


def quantile(values: list[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until_ready(url: str) -> None:
    """Return when the gateway answers."""
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            try:
                await client.get(f"{url}/health/live")
                return
            except httpx.TransportError:
                await asyncio.sleep(0.1)


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main()
