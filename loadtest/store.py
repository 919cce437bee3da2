"""What the queue's store does in a second, with little waiting and with much: ``python -m loadtest.store [--rows N]``.

    SQLite, then PostgreSQL, both durable: a few requests wait ──▶ N wait ──▶ 100,000 wait (claims only)

Some clients work at once in one process, as in a gateway. A claim is to cost the same however many requests wait, and a
status 20 ms at the most (p99) with 10,000 waiting.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable

from deployments.models.messages import Attempt
from deployments.queue.request import NewRequest, RequestStatus
from deployments.queue.store import BatchLimits, Outcome, RequestStore
from deployments.queue.tables import request_io, requests
from deployments.queue.watch import Positions
from loadtest.postgres import Postgres, open_folder, programs

MODEL = "bench"
OWNER = "bench"
KEYS = 20
SIZES = (1, 4)
DEEPEST = 100_000
ROWS_AT_ONCE = 500


def main() -> None:
    """Print the figures of each store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="requests that wait")
    parser.add_argument("--clients", type=int, default=4, help="calls at once")
    parser.add_argument("--calls", type=int, default=400, help="calls for each figure")
    options = parser.parse_args()
    with open_folder("svd-serve-store-") as folder:
        print("SQLite")
        asyncio.run(measure(f"sqlite+aiosqlite:///{folder}/queue.db", options))
        if programs() is None:
            print("PostgreSQL is not installed")
            return
        print("PostgreSQL")
        server = Postgres(folder / "postgres")
        server.start()
        try:
            asyncio.run(measure(server.create("bench"), options))
        finally:
            server.stop()


async def measure(url: str, options: argparse.Namespace) -> None:
    """All figures of one store."""
    store = await RequestStore.open(url)
    await store.heartbeat(OWNER, 24 * 3600)
    bench = Bench(store, options.clients, options.calls)
    shallow = await bench.run("next to nothing")
    await bench.fill(options.rows)
    deep = await bench.run(f"{options.rows:,}")
    await bench.fill(DEEPEST)
    deepest = await bench.run_claims(f"{DEEPEST:,}")
    for size in SIZES:
        print(
            f"  a claim of {size} takes {deep[size] / shallow[size]:.2f} times as long where {options.rows:,} wait, "
            f"{deepest[size] / shallow[size]:.2f} times where {DEEPEST:,} do"
        )
    await store.close()


class Bench:
    """Calls of one store, and what they take."""

    def __init__(self, store: RequestStore, clients: int, calls: int) -> None:
        self._store = store
        self._clients = clients
        self._calls = calls
        self._submitted = 0
        self._attempts: list[Attempt] = []

    async def run(self, waiting: str) -> dict[int, float]:
        """Print every figure; answer a claim's median time, for each size of a batch."""
        one = await self._store.submit(self._new())
        await self._time("submit", waiting, lambda: self._store.submit(self._new()))
        await self._time("status", waiting, lambda: self._store.get(one.id))
        await self._time("positions", waiting, lambda: Positions(self._store).ahead(one))
        await self._time("is there work", waiting, lambda: self._store.models_with_work([MODEL]))
        claims = await self.run_claims(waiting)
        done = Outcome(200, {"seed": 1})
        await self._time("complete", waiting, lambda: self._store.complete(self._attempts.pop(), OWNER, done))
        return claims

    async def run_claims(self, waiting: str) -> dict[int, float]:
        """Print what claims take; answer their median times."""
        medians = {}
        for size in SIZES:
            await self.fill(self._calls * size, more=True)
            limits = BatchLimits(max_batch_size=size)

            async def claim(limits: BatchLimits = limits) -> None:
                self._attempts += await self._store.claim(MODEL, OWNER, limits, 10**6)

            medians[size] = await self._time(f"claim of {size}", waiting, claim)
        return medians

    async def fill(self, rows: int, more: bool = False) -> None:
        """Let so many requests wait, or so many more."""
        missing = rows if more else rows - len(await self._store.waiting(MODEL))
        for first in range(0, missing, ROWS_AT_ONCE):
            new = [self._new() for _ in range(min(ROWS_AT_ONCE, missing - first))]
            async with self._store.database.transaction() as connection:
                await connection.execute(requests.insert(), [_row(each) for each in new])
                await connection.execute(request_io.insert(), [{"request_id": each.id, "input": "{}"} for each in new])

    def _new(self) -> NewRequest:
        self._submitted += 1
        key_id = f"key {self._submitted % KEYS}"
        return NewRequest("fal-ai/svd", MODEL, key_id, "{}", batch_key=f"steps={self._submitted % 3}")

    async def _time(self, what: str, waiting: str, call: Callable[[], Awaitable[object]]) -> float:
        """Print how many of these calls are answered in a second, and when; answer their median time."""
        took: list[float] = []

        async def work() -> None:
            for _ in range(self._calls // self._clients):
                began = time.perf_counter()
                await call()
                took.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(self._clients)))
        rate = len(took) / (time.perf_counter() - began)
        took.sort()
        median, slow = took[len(took) // 2], took[int(len(took) * 0.99)]
        label = f"{what} ({waiting} waiting)"
        print(f"  {label:38} {rate:6.0f}/s   p50 {median * 1000:6.1f} ms   p99 {slow * 1000:6.1f} ms", flush=True)
        return median


def _row(new: NewRequest) -> dict[str, object]:
    names = ("id", "endpoint", "model", "key_id", "batch_key", "pixel_frames", "no_retry")
    row: dict[str, object] = {name: getattr(new, name) for name in names}
    times = {"created_at": 0.0, "priority": int(new.priority)}
    return row | times | {"status": RequestStatus.IN_QUEUE, "attempt": 0, "cancel_requested": False}


if __name__ == "__main__":
    main()
