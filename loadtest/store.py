"""What the queue's store does in a second, with little waiting and with much: ``python -m loadtest.store [--rows N]``.

    SQLite, then PostgreSQL, both durable: a few requests wait ──▶ N wait
                                           claims in turns from three queues: few, N, 100,000 wait

Some clients work at once in one process, as in a gateway. A status is to take 20 ms at the most (p99) with 10,000
waiting, and a claim the same however many wait. That is measured with one client that goes from queue to queue, so that
whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import statistics
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
        asyncio.run(measure(lambda name: f"sqlite+aiosqlite:///{folder}/{name}.db", options))
        if programs() is None:
            print("PostgreSQL is not installed")
            return
        print("PostgreSQL")
        server = Postgres(folder / "postgres")
        server.start()
        try:
            asyncio.run(measure(server.create, options))
        finally:
            server.stop()


async def measure(new_database: Callable[[str], str], options: argparse.Namespace) -> None:
    """All figures of one kind of store."""
    depths = {"next to nothing": 0, f"{options.rows:,}": options.rows, f"{DEEPEST:,}": DEEPEST}
    benches = []
    for number, (waiting, depth) in enumerate(depths.items()):
        bench = Bench(await RequestStore.open(new_database(f"bench{number}")), options.clients, options.calls)
        await bench.start(depth)
        benches.append(bench)
        if depth != DEEPEST:
            await bench.run(waiting)
    for size in SIZES:
        few, *more = await in_turns(benches, size, options.calls // 4)
        ratios = ", ".join(
            f"{many / few:.2f} times as long where {name} wait" for name, many in zip([*depths][1:], more, strict=True)
        )
        print(f"  claim of {size}, in turns: {few * 1000:.1f} ms (median) where few wait, {ratios}")
    for bench in benches:
        await bench.close()


async def in_turns(benches: list[Bench], size: int, calls: int) -> list[float]:
    """The median time of a claim from each queue, one after the other."""
    took: list[list[float]] = [[] for _ in benches]
    for bench in benches:
        await bench.fill(calls * size, more=True)
    for _ in range(calls):
        for bench, times in zip(benches, took, strict=True):
            began = time.perf_counter()
            await bench.claim(size)
            times.append(time.perf_counter() - began)
    return [statistics.median(times) for times in took]


class Bench:
    """Calls of one store, and what they take."""

    def __init__(self, store: RequestStore, clients: int, calls: int) -> None:
        self._store = store
        self._clients = clients
        self._calls = calls
        self._submitted = 0
        self._attempts: list[Attempt] = []

    async def start(self, rows: int) -> None:
        """Let so many requests wait, and hold the lease of all that is claimed."""
        await self._store.heartbeat(OWNER, 24 * 3600)
        await self.fill(rows)

    async def close(self) -> None:
        """Close the store."""
        await self._store.close()

    async def run(self, waiting: str) -> None:
        """Print every figure."""
        one = await self._store.submit(self._new())
        await self._time("submit", waiting, lambda: self._store.submit(self._new()))
        await self._time("status", waiting, lambda: self._store.get(one.id))
        await self._time("positions", waiting, lambda: Positions(self._store).ahead(one))
        await self._time("is there work", waiting, lambda: self._store.models_with_work([MODEL]))
        for size in SIZES:
            await self.fill(self._calls * size, more=True)
            await self._time(f"claim of {size}", waiting, functools.partial(self.claim, size))
        done = Outcome(200, {"seed": 1})
        await self._time("complete", waiting, lambda: self._store.complete(self._attempts.pop(), OWNER, done))

    async def claim(self, size: int) -> None:
        """Claim a batch of so many."""
        limits = BatchLimits(max_batch_size=size)
        self._attempts += await self._store.claim(MODEL, OWNER, limits, max_running_per_key=10**6)

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

    async def _time(self, what: str, waiting: str, call: Callable[[], Awaitable[object]]) -> None:
        """Print how many of these calls are answered in a second, and when."""
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


def _row(new: NewRequest) -> dict[str, object]:
    names = ("id", "endpoint", "model", "key_id", "batch_key", "pixel_frames", "no_retry")
    row: dict[str, object] = {name: getattr(new, name) for name in names}
    times = {"created_at": 0.0, "priority": int(new.priority)}
    return row | times | {"status": RequestStatus.IN_QUEUE, "attempt": 0, "cancel_requested": False}


if __name__ == "__main__":
    main()
