"""The device of a replica: its share of a GPU, the one thread that computes on it, and whose turn it is.

    batches ──▶ Turns (beside each other, or one alone) ──▶ Device.run ──▶ its thread

The thread cannot be interrupted. What it computes looks from time to time whether it is still wanted; what does not
look any more is found by the health check, and Serve replaces the process.

Ray books a share of a GPU (``num_gpus: 0.45``) and does not enforce it. So each process limits its own memory there to
that share, before it loads anything, and the health check tells when somebody else has taken of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import ray

logger = logging.getLogger(__name__)

T = TypeVar("T")

STUCK_SECONDS = 30.0
"""How long the device may stay with what nobody wants. A step takes seconds; longer, and it never comes back."""


BESIDE_BYTES = 2 * 1024**3
"""What CUDA itself takes of a GPU beside the memory that processes ask for, some hundred megabytes in each of them."""

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
_KEPT_BYTES = {_MMAP_THRESHOLD: 32 * 1024**2, _TOP_PAD: 64 * 1024**2, _TRIM_THRESHOLD: 256 * 1024**2}
"""What the C library keeps of freed memory rather than give it back and fetch it anew, zeroed and page by page.

Decoding a clip at 112x64 took 0.36 s of a CPU so and 0.55 s before, and about 100 MB more stayed in the process
(medians, each run in turn). 32 MB is the most that glibc takes for the first.
"""


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next tensors, where the C library is glibc."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for option, size in _KEPT_BYTES.items():
            mallopt(option, size)


def open_device() -> str:
    """``cuda`` where Ray gave this process a share of a GPU, else ``cpu`` with as many threads as Ray gave it CPUs.

    It is ``cpu``, too, where torch finds no GPU: a cluster may be told of GPUs that its machines do not have, to try on
    which of them replicas would be placed. With a driver that does not work it looks the same, so it is told.
    """
    import torch

    if ray.get_gpu_ids() and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpu_share())
        return "cuda"
    if ray.get_gpu_ids():
        logger.warning("torch finds no GPU where Ray gave this process one: it computes on the CPU")
    torch.set_num_threads(max(1, int(_assigned("CPU"))))
    keep_freed_memory()
    return "cpu"


def gpu_share() -> float:
    """How much of a GPU Ray gave this process: the one that it computes on, where it was given several."""
    return min(1.0, _assigned("GPU"))


def _assigned(resource: str) -> float:
    context: Any = ray.get_runtime_context()
    return float(context.get_assigned_resources().get(resource, 0.0))


def taken_by_others() -> int:
    """How many bytes of this process's share of its GPU others have taken; 0 on a CPU.

    Raises:
        RuntimeError: The GPU does not answer, or has failed under this process, which then has to be replaced.
    """
    import torch

    cuda: Any = torch.cuda
    if not cuda.is_initialized():
        return 0
    free, total = cuda.mem_get_info()
    return missing_bytes(total, free, cuda.memory_reserved(), gpu_share())


def memory() -> dict[str, int]:
    """Bytes of its GPU that this process uses, keeps, and may have; 0 on a CPU."""
    import torch

    cuda: Any = torch.cuda
    if not cuda.is_initialized():
        return {"allocated": 0, "reserved": 0, "allowed": 0}
    total = cuda.get_device_properties(cuda.current_device()).total_memory
    reserved = cuda.memory_reserved()
    return {"allocated": cuda.memory_allocated(), "reserved": reserved, "allowed": int(gpu_share() * total)}


def missing_bytes(total: int, free: int, reserved: int, share: float) -> int:
    """How many bytes of a share of a GPU its owner, which has ``reserved`` some, could not get any more."""
    return max(0, int(share * total) - reserved - free - BESIDE_BYTES)


class Device:
    """One thread; works wait for it in order."""

    def __init__(self) -> None:
        """Nothing runs."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._is_wanted: dict[Future[Any], Callable[[], bool]] = {}
        self._unwanted_since: dict[Future[Any], float] = {}
        self._is_crowded = False

    def begin(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, which is run in the thread before anybody waits for anything else."""
        return self._thread.submit(work).result()

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
        """Fail when the thread does not come back from what nobody wants, or a GPU has failed."""
        self._check_thread()
        missing = taken_by_others()
        if missing and not self._is_crowded:
            logger.warning("other processes have taken %d MB of this replica's share of its GPU", missing // 10**6)
        self._is_crowded = bool(missing)

    def _check_thread(self) -> None:
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
