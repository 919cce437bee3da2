"""The device of a replica: the one thread that computes on it, and whose turn it is.

    batches ──▶ Turns (beside each other, or one alone) ──▶ Device.run ──▶ its thread

The thread cannot be interrupted. What it computes looks from time to time whether it is still wanted; what does not
look any more is found by the health check, and Serve replaces the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import ray

T = TypeVar("T")

STUCK_SECONDS = 30.0
"""How long the device may stay with what nobody wants. A step takes seconds; longer, and it never comes back."""


def open_device() -> str:
    """``cuda`` where Ray gave this process a share of a GPU, else ``cpu`` with as many threads as Ray gave it CPUs."""
    if ray.get_gpu_ids():
        return "cuda"
    import torch

    context: Any = ray.get_runtime_context()
    torch.set_num_threads(max(1, int(context.get_assigned_resources().get("CPU", 0))))
    return "cpu"


class Device:
    """One thread; works wait for it in order."""

    def __init__(self) -> None:
        """Nothing runs."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._is_wanted: dict[Future[Any], Callable[[], bool]] = {}
        self._unwanted_since: dict[Future[Any], float] = {}

    async def run(self, work: Callable[[], T], is_wanted: Callable[[], bool] = lambda: True) -> T:
        """What ``work`` returns. It is wanted until the caller is cancelled, or ``is_wanted`` denies it."""
        future = self._thread.submit(work)
        awaited = True
        self._is_wanted[future] = lambda: awaited and is_wanted()
        try:
            return await asyncio.wrap_future(future)
        finally:
            awaited = False

    def check_health(self) -> None:
        """Fail when the thread does not come back from what nobody wants."""
        now = time.monotonic()
        self._is_wanted = {work: is_wanted for work, is_wanted in self._is_wanted.items() if not work.done()}
        unwanted = [work for work, is_wanted in self._is_wanted.items() if work.running() and not is_wanted()]
        self._unwanted_since = {work: self._unwanted_since.get(work, now) for work in unwanted}
        if any(now - since > STUCK_SECONDS for since in self._unwanted_since.values()):
            raise RuntimeError(f"the device has been with what nobody wants for {STUCK_SECONDS:.0f} s")


class Turns:
    """Whose turn it is on a replica: many batches may run beside each other, or one alone."""

    def __init__(self) -> None:
        """Nothing runs."""
        self._running = 0
        self._alone = False
        self._changed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def turn(self, *, alone: bool) -> AsyncIterator[None]:
        """Wait for a turn and keep it. Who wants to be alone is waited for by all who come later."""
        await self._until(lambda: not self._alone)
        self._alone = alone
        self._running += 1
        try:
            await self._until(lambda: not alone or self._running == 1)
            yield
        finally:
            self._running -= 1
            self._alone = self._alone and not alone
            self._changed.set()
            self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()
