"""Ten thousand requests that wait while their callers look: what that costs in memory, descriptors and time.

    store ◀── N submits ──┘      gateway ◀── status, so many a second ──┘      /proc ── RSS, descriptors ──▶ slopes

The model takes an hour for a batch, so the queue stays as long as it is. The rows are inserted by the gateway's own
``RequestStore.submit``, because thousands of them by HTTP would take longer than the hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil

from deployments.queue.request import NewRequest, Priority
from deployments.queue.store import RequestStore
from loadtest.chaos.history import Limits
from loadtest.chaos.payload import Payload
from loadtest.chaos.service import ENDPOINT, MODEL, Service

AN_HOUR = 3600.0
READY_SECONDS = 120.0
SAMPLE_SECONDS = 5.0
SUBMITTED_AT_ONCE = 16


@dataclass(frozen=True)
class Sample:
    """What a process has at a moment."""

    at: float
    megabytes: float
    descriptors: int


async def hold(folder: Path, count: int, minutes: float, rate: float) -> bool:
    """Hold so many requests for so many minutes and print the figures; whether all of them were there in the end."""
    # A poll that has no news is answered at once: how long an answer takes is the question here.
    service = Service(folder, 9, replicas=1, limits=Limits(), seconds=AN_HOUR, SVD_POLL_HOLD_SECONDS="0")
    try:
        await service.prepare()
        service.start()
        if not await service.until_ready(READY_SECONDS):
            print("the service did not start: see", service.log)
            return False
        ids = await _fill(service, count)
        samples, latencies, refused = await _watch(service, ids, minutes * 60, rate)
        (row,) = await service.query("SELECT count(*) AS held FROM requests WHERE status <> 'COMPLETED'")
    finally:
        await asyncio.to_thread(service.close)
    print(f"held             {row['held']:6d}  of {count}, for {minutes:g} minutes")
    print(_latency(latencies, refused))
    for name, series in samples.items():
        print(_slopes(name, series))
    return int(row["held"]) == count


async def _fill(service: Service, count: int) -> list[str]:
    """Insert the requests; answer their ids."""
    began = time.perf_counter()
    store = await RequestStore.open(service.database_url)
    key_id = service.key.partition(":")[0]
    numbers, ids = iter(range(count)), []

    async def submit() -> None:
        for number in numbers:
            payload = Payload(number, 2, 0.0, (0, 0, 0))
            input = httpx.Request("POST", "http://x", json=payload.body).content.decode()
            new = NewRequest(ENDPOINT, MODEL, key_id, input, "steps=3 size=as the picture", 4096)
            ids.append((await store.submit(replace(new, priority=Priority(number % 2)))).id)

    try:
        await asyncio.gather(*(submit() for _ in range(SUBMITTED_AT_ONCE)))
    finally:
        await store.close()
    print(
        f"submitted        {count:6d}  to the store, {count / (time.perf_counter() - began):.0f} a second", flush=True
    )
    return ids


async def _watch(
    service: Service, ids: Sequence[str], seconds: float, rate: float
) -> tuple[dict[str, list[Sample]], list[float], int]:
    """Look at requests, and at the processes meanwhile."""
    processes = {"gateway": service.find("ServeReplica:svd-serve:Gateway")[0], "dispatcher": service.dispatchers()[0]}
    samples: dict[str, list[Sample]] = {name: [] for name in processes}
    latencies: list[float] = []
    refused = 0
    give_up = time.monotonic() + seconds

    async def sample() -> None:
        while time.monotonic() < give_up:
            for name, process in processes.items():
                samples[name].append(Sample(time.monotonic(), process.memory_info().rss / 1e6, process.num_fds()))
            await asyncio.sleep(SAMPLE_SECONDS)

    async def poll(http: httpx.AsyncClient) -> None:
        nonlocal refused
        began = time.perf_counter()
        with contextlib.suppress(httpx.HTTPError):
            answer = await http.get(f"/queue/{ENDPOINT}/requests/{random.choice(ids)}/status")
            if answer.status_code == 200:
                latencies.append(time.perf_counter() - began)
                return
        refused += 1

    async def poll_all() -> None:
        headers = {"authorization": f"Key {service.key}"}
        polls: set[asyncio.Task[None]] = set()
        async with httpx.AsyncClient(base_url=service.url, headers=headers, trust_env=False, timeout=30) as http:
            while time.monotonic() < give_up:
                polls = {each for each in polls if not each.done()} | {asyncio.create_task(poll(http))}
                await asyncio.sleep(1 / rate)
            await asyncio.gather(*polls)

    try:
        await asyncio.gather(sample(), poll_all())
    except psutil.NoSuchProcess as error:
        print(f"a process ended meanwhile: {error}")
    return samples, latencies, refused


def _latency(latencies: Sequence[float], refused: int) -> str:
    if len(latencies) < 2:
        return f"status           {len(latencies):6d}  polls, {refused} without an answer"
    ranks = statistics.quantiles(latencies, n=100)
    return (
        f"status           {len(latencies):6d}  polls, {refused} without an answer: p50 {ranks[49] * 1000:.1f} ms, "
        f"p99 {ranks[98] * 1000:.1f} ms"
    )


def _slopes(name: str, samples: Sequence[Sample]) -> str:
    """How a process grew in the second half: in the first its caches fill."""
    late = samples[len(samples) // 2 :]
    if len(late) < 2:
        return f"{name}: too few samples"
    hours = [each.at / 3600 for each in late]
    memory = statistics.linear_regression(hours, [each.megabytes for each in late]).slope
    descriptors = statistics.linear_regression(hours, [each.descriptors for each in late]).slope
    first, middle, last = samples[0], late[0], samples[-1]
    return (
        f"{name:16} {first.megabytes:.1f}, {middle.megabytes:.1f}, {last.megabytes:.1f} MB at first, half-way, at last "
        f"({memory:+.1f} MB an hour in the second half); {first.descriptors}, {middle.descriptors}, "
        f"{last.descriptors} descriptors ({descriptors:+.1f} an hour)"
    )
