"""A replica's word that it is there: what it computes on costs us, whether it works or not.

    Ray (accelerator, fraction) ──▶ Hardware ──▶ ReplicaReport, every ten seconds and at the end ──▶ a dispatcher

A report that fails is followed by the next, which says as much; what is lost is at most the time since the last.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from deployments.models.messages import CPU, Hardware, ReplicaReport

logger = logging.getLogger(__name__)

REPORT_SECONDS = 10.0
"""How often a replica says that it is there."""

PATIENCE_SECONDS = 5.0
"""How long a report may take."""

LAST_SECONDS = 1.0
"""How long the last report may take: at the end of the whole service there is nobody to hear it."""

ACCELERATOR_TYPE = "ray.io/accelerator-type"
"""The label under which Ray keeps the name of a node's accelerators."""

Tell = Callable[[ReplicaReport], Awaitable[None]]


def find_hardware() -> Hardware:
    """What Ray gave this process to compute on.

    The accelerator's name is Ray's, else torch's. Where a cluster was told of GPUs that are none, it is the CPU's.
    """
    context: Any = ray.get_runtime_context()
    fraction = float(context.get_assigned_resources().get("GPU", 0.0))
    if not fraction:
        return Hardware()
    return Hardware(context.get_node_labels().get(ACCELERATOR_TYPE) or _name_of_gpu(), fraction)


def _name_of_gpu() -> str:
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else CPU


class Presence:
    """Reports one replica."""

    def __init__(self, report: ReplicaReport, tell: Tell, report_seconds: float = REPORT_SECONDS) -> None:
        """Say nothing yet.

        Args:
            report: What is to be said; its age is that of the process now.
            tell: Takes it to a dispatcher.
            report_seconds: How often.
        """
        self._report = report
        self._began = time.monotonic() - report.age_seconds
        self._tell = tell
        self._report_seconds = report_seconds
        self._telling: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Report from now on. The event loop runs."""
        self._telling = asyncio.create_task(self._go_on())

    async def stop(self) -> None:
        """Report once more, and no more."""
        if self._telling:
            self._telling.cancel()
            await self._say(LAST_SECONDS)

    async def _go_on(self) -> None:
        while True:
            await self._say(PATIENCE_SECONDS)
            await asyncio.sleep(self._report_seconds)

    async def _say(self, patience: float) -> None:
        """Report. Whatever becomes of it, the next one follows: Serve may even cancel what we await."""
        report = replace(self._report, age_seconds=time.monotonic() - self._began)
        telling = asyncio.ensure_future(self._tell(report))
        try:
            await asyncio.wait([telling], timeout=patience)
        finally:
            is_late = telling.cancel()
        if is_late or telling.cancelled():
            logger.info("a report was not taken")
        elif error := telling.exception():
            level = logging.INFO if isinstance(error, RayError | RayServeException) else logging.ERROR
            logger.log(level, "a report was not taken: %r", error)
