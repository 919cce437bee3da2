"""Requests that have ended, at whatever moment a test wants."""

from __future__ import annotations

import json
from typing import Any

from deployments.queue.request import RequestStatus
from deployments.queue.store import RequestStore
from deployments.queue.tables import request_io, requests
from tests.queue.conftest import new_request


async def ended(store: RequestStore, at: float, **changes: Any) -> str:
    """The id of a request that ended at a moment of the past, as its row would say."""
    request = await store.submit(new_request())
    values = {"status": RequestStatus.COMPLETED, "status_code": 200, "gpu_seconds": 0.25, "finished_at": at}
    values |= {"created_at": at - 3, "started_at": at - 2} | changes
    output = values.pop("output", {"seed": 7})
    async with store.database.transaction() as connection:
        await connection.execute(requests.update().where(requests.c.id == request.id).values(values))
        io = request_io.update().where(request_io.c.request_id == request.id)
        await connection.execute(io.values(output=json.dumps(output)))
    return request.id
