"""fal's streaming run (``/{endpoint}/stream``): progress as server-sent events, and last the output.

    submit ──▶ {"status": "IN_QUEUE", …} ──▶ {"status": "IN_PROGRESS", "progress": 0.2, …} … ──▶ the output object

Submit, then follow the same row. A caller who goes away cancels it, as with a synchronous run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from deployments.errors import Unavailable
from deployments.gateway import wire
from deployments.gateway.service import Service
from deployments.gateway.submission import read_input
from deployments.gateway.wire import KEEPALIVE_SECONDS
from deployments.queue.request import InferenceRequest, LogLine, RequestStatus, Version


def stream_router(service: Service) -> APIRouter:
    """The route; it must be added before the catch-all."""
    router = APIRouter()

    @router.api_route("/{path:path}/stream", methods=["GET", "POST"])
    async def stream(path: str, request: Request) -> Response:
        caller = await service.caller(request, path)
        endpoint = await service.admit(caller, path, request)
        payload = await read_input(request)
        row, refused = await service.new_request(endpoint, caller, payload, request, retry=False)
        try:
            accepted = await service.limiter.submit(caller, row, refused, synchronous=True)
            started = await service.store.get(accepted.id) or accepted  # a refused one has ended by now
        except asyncio.CancelledError:
            await service.store.cancel(row.id)
            raise
        headers = {wire.REQUEST_ID: accepted.id, "cache-control": "no-store"}
        if refused and "application/json" in request.headers.get("accept", ""):
            return JSONResponse(refused.body(), refused.status, headers)
        status = refused.status if refused else 200  # the Python client looks at the type, not at the status
        return Stream(service, row.id, _events(service, started), status, headers)

    return router


class Stream(StreamingResponse):
    """Events for as long as the caller listens; nobody wants the clip of one who has gone."""

    def __init__(
        self, service: Service, request_id: str, events: AsyncIterator[str], status: int, headers: Mapping[str, str]
    ) -> None:
        """Follow a request that this caller has submitted."""
        super().__init__(events, status, headers, media_type="text/event-stream")
        self._service = service
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send, however it ends; then cancel what has not ended."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._service.store.cancel(self._request_id)


async def _events(service: Service, request: InferenceRequest) -> AsyncIterator[str]:
    version = Version.of(request)
    seen = 0
    if request.status == RequestStatus.IN_QUEUE:
        yield wire.event(await _waiting(service, request))
    while request.status != RequestStatus.COMPLETED:
        before, version = version, await service.changes.since(request.id, version, KEEPALIVE_SECONDS)
        if version == before:
            yield wire.KEEPALIVE
            continue
        try:
            lines = await service.store.logs(request.id, seen)
            request = await service.store.get(request.id) or request
            bodies = await _progress(service, request, lines)
        except Unavailable:  # the store comes back; a caller who waits is not told otherwise
            yield wire.KEEPALIVE
            version = before
            continue
        seen += len(lines)
        for body in bodies:
            yield wire.event(body)
    yield wire.event(await _last(service, request))


async def _progress(service: Service, request: InferenceRequest, lines: list[LogLine]) -> list[dict[str, Any]]:
    """What is new: the place in the queue, or what the log tells of the work."""
    if request.status == RequestStatus.IN_QUEUE:
        return [await _waiting(service, request)]
    return [{"status": "IN_PROGRESS", **wire.progress_body(line, service.preview_url(line))} for line in lines]


async def _waiting(service: Service, request: InferenceRequest) -> dict[str, Any]:
    return {"status": request.status, "queue_position": await service.positions.ahead(request)}


async def _last(service: Service, request: InferenceRequest) -> Any:
    """The output; or the error, with one field that says that it is one."""
    output = await service.store.output(request.id)
    return output if request.error is None else {**output, "error": request.error}
