"""Whether a replica's process died by itself, or was ended on purpose.

    RayActorError ── actor id ──▶ the cluster's record of the actor ──▶ its cause of death

The exception carries the cause as a sentence only; the record has it as fields. A request under which replicas die is
one to be careful with; one whose replica was scaled away, drained or lost with its node is not.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ray.exceptions import RayActorError

logger = logging.getLogger(__name__)

RECORD_SECONDS = 5.0
"""How long the cluster may take to notice a death. The connection to the process breaks at once."""

_POLL_SECONDS = 0.2


async def has_crashed(error: Exception) -> bool:
    """Whether this error of a call to a replica means that its process died by itself."""
    if not isinstance(error, RayActorError) or not error.actor_id or error.preempted or error.actor_init_failed:
        return False
    try:
        cause = await _cause_of_death(str(error.actor_id))
    except Exception as trouble:  # the cluster's head is away, or a release of Ray has moved the record
        logger.warning("why a replica died cannot be found out: %s", trouble)
        return False
    return cause is not None and _is_crash(cause)


async def _cause_of_death(actor_id: str) -> Any:
    from ray._private.state import state as cluster  # the public way to this record needs a dashboard

    give_up = asyncio.get_running_loop().time() + RECORD_SECONDS
    while True:
        record: dict[str, Any] = await asyncio.to_thread(cluster.actor_table, actor_id)
        cause = record.get("DeathCause")
        if cause is not None and cause.WhichOneof("context"):
            return cause
        if asyncio.get_running_loop().time() > give_up:
            return None
        await asyncio.sleep(_POLL_SECONDS)


def _is_crash(cause: Any) -> bool:
    if cause.WhichOneof("context") == "oom_context":
        return True
    died = cause.actor_died_error_context
    return bool(died.reason == died.WORKER_DIED)
