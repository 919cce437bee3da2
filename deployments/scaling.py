"""How many replicas a deployment gets: the policy that Serve's controller asks ten times a second.

    the queue's rows ──▶ Watch (a thread: every two seconds) ──▶ the newest Demand ◀── DemandPolicy ◀── controller

``autoscaling_config.policy`` in serve_config.yaml names it; bounds and delays are Serve's. The controller waits for
whatever a policy does, and updates no application any more while one raises, if only as it is made: so it looks at
what is there, and raises never. Serve pickles this module by value and makes one policy a deployment, in the
controller's process on the head node, which needs the database's address (``SVD_DATABASE_URL``) as the others do.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

    from deployments.queue.demand import Demand

logger = logging.getLogger(__name__)

POLICY = "deployments.scaling:DemandPolicy"
"""How ``policy_function`` in serve_config.yaml names it."""

READ_SECONDS = 2.0
"""How often the rows are read."""

STALE_SECONDS = 30.0
"""How long what was read last is believed when nothing can be read any more."""


@dataclass(frozen=True)
class Options:
    """What ``policy_kwargs`` may say.

    Attributes:
        target_seconds: How long a request may wait for its start.
        batch_seconds: How long a batch takes, until rows have told.
        max_running_per_key: As the dispatcher's ``user_config`` says it.

    Raises:
        ValueError: A number is not above zero.
    """

    target_seconds: float = 120.0
    batch_seconds: float = 60.0
    max_running_per_key: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value in vars(self).items():
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is a number above zero")


def check(deployments: Iterable[Mapping[str, Any]]) -> None:
    """See that the policies in a configuration can be made. In the controller it is too late to say so.

    Args:
        deployments: Of an application, as Serve would take them.

    Raises:
        ValueError: One cannot.
    """
    for deployment in deployments:
        policy = _policy(deployment.get("autoscaling_config"))
        try:
            Options(**policy.get("policy_kwargs", {}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{deployment['name']}: policy_kwargs: {error}") from error


def _policy(autoscaling_config: Any) -> dict[str, Any]:
    """Ours, where there is one."""
    policy = autoscaling_config.get("policy") if isinstance(autoscaling_config, dict) else None
    return policy if policy and policy.get("policy_function") == POLICY else {}


class DemandPolicy:
    """As many replicas as begin with all that waits in time; never fewer than are busy, none where there is no work."""

    def __init__(self, **options: Any) -> None:
        """Make the policy of one deployment, with ``policy_kwargs``. Where they are wrong, it leaves all as it is."""
        self._options: Options | None = None
        self._watch: Watch | None = None
        try:
            self._options = Options(**options)
        except (TypeError, ValueError) as error:
            logger.error("the number of replicas stays as it is: policy_kwargs: %s", error)

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """How many replicas there should be, and no state of ours. Where nothing is known, as many as there are.

        Of a deployment of which none runs, Serve takes any number at once, a smaller one, too. But those that start or
        are reconfigured, and all whose controller has just come back, are not said to run: there it gets no smaller,
        unless there is no work, for which Serve keeps to its delays.
        """
        wanted = self._wanted(ctx.deployment_name, ctx.current_num_replicas)
        if wanted is None or (wanted and not ctx.current_num_replicas):
            wanted = max(wanted or 0, ctx.target_num_replicas)
        return wanted, {}

    def _wanted(self, deployment: str, replicas: int) -> int | None:
        if self._options is None:
            return None
        if self._watch is None:
            self._watch = Watch(deployment, self._options.max_running_per_key)
            weakref.finalize(self, self._watch.stop)  # Serve makes another policy with each new configuration
        demand = self._watch.newest()
        if demand is None:
            return None
        return replicas_for(demand, replicas, self._options.target_seconds, self._options.batch_seconds)


def replicas_for(demand: Demand, replicas: int, target_seconds: float, batch_seconds: float) -> int:
    """How many replicas begin with all that waits within ``target_seconds``.

    Those that are busy stay, and take of what waits as much as they get to in that time; others do the rest. It is
    never fewer than are busy, and none only where nothing waits or runs.

    Args:
        demand: The work.
        replicas: How many there are.
        target_seconds: How long a request may wait for its start.
        batch_seconds: How long a batch takes, where the demand does not say.
    """
    seconds = demand.batch_seconds or batch_seconds
    batches = math.ceil(demand.waiting / demand.batch_size)
    busy = min(demand.running, max(1, replicas))  # of two batches on a replica, one waits for its device
    by_the_busy = busy * max(0.0, target_seconds - seconds)
    others = math.ceil(max(0.0, batches * seconds - by_the_busy) / target_seconds)
    return busy + min(others, batches)


class Watch:
    """The newest demand on a deployment, read in a thread of its own, which ends with its process or its policy."""

    def __init__(self, deployment: str, max_running_per_key: int | None) -> None:
        """Begin to read."""
        self._deployment = deployment
        self._max_running_per_key = max_running_per_key
        self._demand: Demand | None = None
        self._read_at = time.monotonic()
        self._is_told = False
        self._ended = threading.Event()
        threading.Thread(target=self._run, name=f"demand of {deployment}", daemon=True).start()

    def newest(self) -> Demand | None:
        """What was read last; None where that is long ago."""
        return None if self._is_stale else self._demand

    def stop(self) -> None:
        """Read no more."""
        self._ended.set()

    @property
    def _is_stale(self) -> bool:
        return time.monotonic() - self._read_at >= STALE_SECONDS

    def _run(self) -> None:
        """Read until the end. Whatever goes wrong is tried again, and told once it matters."""
        while not self._ended.is_set():
            try:
                asyncio.run(self._follow())
            except Exception as error:
                if self._is_stale and not self._is_told:
                    logger.warning("%s: the number of replicas stays as it is: %s", self._deployment, _said(error))
                    self._is_told = True
                self._ended.wait(READ_SECONDS)

    async def _follow(self) -> None:
        """Read every now and then."""
        from deployments.queue.demand import DemandReader  # not above: the controller would wait for its import
        from deployments.settings import Settings

        reader = DemandReader(Settings().database_url)
        try:
            while not self._ended.is_set():
                demand = await reader.read(self._deployment, self._max_running_per_key)
                self._demand = _with_known_batches(demand, self._demand)
                self._read_at, self._is_told = time.monotonic(), False
                await asyncio.sleep(READ_SECONDS)
        finally:
            await reader.close()


def _with_known_batches(demand: Demand, before: Demand | None) -> Demand:
    """A model whose batches are rare beside those of others keeps what is known of them from before."""
    if before is None or demand.batch_seconds is not None:
        return demand
    return replace(demand, batch_seconds=before.batch_seconds, batch_size=before.batch_size)


def _said(error: Exception) -> str:
    """What went wrong. Errors that are not ours may quote settings, which hold secrets: of them, only the kind."""
    from deployments.errors import ServingError

    return error.message if isinstance(error, ServingError) else type(error).__name__
