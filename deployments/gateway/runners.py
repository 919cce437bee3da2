"""How many replicas there are, as Serve counts them: fal calls them runners.

Runners ──▶ {deployment: {Serve's state: replicas}} ──▶ Census ──▶ the same, or None where nobody can tell
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

logger = logging.getLogger(__name__)

Replicas = Mapping[str, Mapping[str, int]]
"""For each deployment, how many replicas it has in each of Serve's states."""

Runners = Callable[[], Awaitable[Replicas]]

ANSWER_SECONDS = 4.0
"""How long Serve may take to count its replicas. Then the answer goes without them."""

KINDS = ("ready", "pending", "leaving")
_KIND_OF = {"RUNNING": "ready", "STARTING": "pending", "UPDATING": "pending", "RECOVERING": "pending"}
"""Serve's states of a replica; in any other one it is on its way out."""


async def no_runners() -> Replicas:
    """Where nobody counts them."""
    return {}


def by_kind(states: Mapping[str, int]) -> Counter[str]:
    """How many of a deployment's replicas take requests, are still to, and do so no longer."""
    kinds = Counter(dict.fromkeys(KINDS, 0))
    for state, replicas in states.items():
        kinds[_KIND_OF.get(state, "leaving")] += replicas
    return kinds


class Census:
    """Asks for the replicas, one question at a time: a cluster whose head has died answers none."""

    def __init__(self, runners: Runners) -> None:
        """Ask ``runners``."""
        self._runners = runners
        self._asking: asyncio.Task[Replicas] | None = None

    async def __call__(self) -> Replicas | None:
        """The replicas; None where they cannot be counted, or not soon."""
        self._asking = asking = self._asking or asyncio.create_task(self._ask())
        await asyncio.wait([asking], timeout=ANSWER_SECONDS)
        if not asking.done():
            return None
        self._asking = None
        if error := asking.exception():
            logger.warning("the replicas could not be counted", exc_info=error)
            return None
        return asking.result()

    async def _ask(self) -> Replicas:
        return await self._runners()
