"""How fast it goes just now: what the playground tells who waits, and its operator.

rows ──▶ Reports: open requests, and those that ended lately ─┐
Serve ──▶ Census: replicas ───────────────────────────────────┴──▶ Moment ──▶ /playground/pace, /playground/state

A moment is read for all who ask, so a page that polls costs no query of its own. Who waits behind so many others waits
for about so many runs and for those that run already, as many of them at once as run now: a run that shares its replica
with another takes longer, and there are more at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import JSONResponse

from deployments.gateway.auth import Caller
from deployments.gateway.platform import EndpointId
from deployments.gateway.recent import Lately
from deployments.gateway.runners import KINDS, Census, Replicas, Runners, by_kind
from deployments.gateway.service import Service
from deployments.models.base import Endpoint
from deployments.queue.reports import Ending, Load, Selection

MOMENT_SECONDS = 5.0
"""How long a moment is good for."""

LATELY_SECONDS = 3600.0
"""Whose runs tell how long the next one takes: the successes of so long."""

MEDIAN = 50


@dataclass(frozen=True)
class Moment:
    """What all endpoints do just now.

    Attributes:
        loads: Of each endpoint that does anything.
        seconds: How long half of the runs took at the most that ended well lately, where there was one.
        replicas: None where nobody can tell.
    """

    loads: Mapping[str, Load]
    seconds: Mapping[str, float]
    replicas: Replicas | None

    def waiting(self, endpoint: Endpoint) -> int:
        """How many requests wait for an endpoint."""
        load = self.loads.get(endpoint.id)
        return load.waiting if load else 0

    def running(self, endpoint: Endpoint) -> int:
        """How many of its requests run."""
        load = self.loads.get(endpoint.id)
        return load.running if load else 0

    def kinds(self, deployment: str) -> Counter[str] | None:
        """The replicas of a deployment by kind; None where nobody can tell."""
        return None if self.replicas is None else by_kind(self.replicas.get(deployment, {}))


def pace_router(service: Service, runners: Runners) -> APIRouter:
    """The routes of the playground's numbers. They come before its files, which take every path beside them."""
    router = APIRouter(prefix="/playground")
    authenticated, admin = Depends(service.authenticate), Depends(service.authenticate.admin)
    census = Census(runners)

    async def read() -> Moment:
        now = time.time()
        successes = Selection(None, ending=Ending.SUCCESS)
        loads, speeds, replicas = await asyncio.gather(
            service.reports.load(), service.reports.speed(successes, [now - LATELY_SECONDS, now]), census()
        )
        seconds = {speed.endpoint: speed.durations[MEDIAN] for speed in speeds if speed.durations}
        return Moment(loads, seconds, replicas)

    moment = Lately(read, MOMENT_SECONDS)

    @router.get("/pace")
    async def pace(endpoint_id: Annotated[EndpointId, Query()], caller: Caller = authenticated) -> Response:
        return JSONResponse(_pace(service, service.endpoint(endpoint_id), await moment()))

    @router.get("/state")
    async def state(caller: Caller = admin) -> Response:
        now = await moment()
        return JSONResponse({"endpoints": [_state(endpoint, now) for endpoint in service.endpoints.values()]})

    return router


def _pace(service: Service, endpoint: Endpoint, now: Moment) -> dict[str, Any]:
    """How fast its model goes, which other endpoints may have, too."""
    running = sum(now.running(each) for each in service.endpoints.values() if each.model == endpoint.model)
    return {
        "endpoint_id": endpoint.id,
        "seconds": now.seconds.get(endpoint.id),
        "running": running,
        "at_once": _at_once(running, now.kinds(endpoint.model)),
    }


def _at_once(running: int, kinds: Counter[str] | None) -> int | None:
    """How many clips a model makes at once: 0 where no replica does, None where nobody can tell.

    A replica works on several requests of a batch, and one that waits for its first has one to make.
    """
    if kinds is None:
        return running or None
    return max(running, kinds["ready"])


def _state(endpoint: Endpoint, now: Moment) -> dict[str, Any]:
    kinds = now.kinds(endpoint.deployment)
    return {
        "id": endpoint.id,
        "title": endpoint.title,
        "deployment": endpoint.deployment,
        "waiting": now.waiting(endpoint),
        "running": now.running(endpoint),
        "replicas": None if kinds is None else {kind: kinds[kind] for kind in KINDS},
    }
