"""fal's queue: submit, status, status stream, result, cancel (``queue.fal.run``, here under ``/queue``)."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from deployments.errors import BadRequest, NotFound, QueueFull, StillInProgress, Unauthenticated, Unavailable
from deployments.gateway import wire
from deployments.gateway.auth import Caller
from deployments.gateway.bodies import read_json
from deployments.gateway.polls import POSITION_SECONDS
from deployments.gateway.service import Service
from deployments.gateway.submission import webhook_of
from deployments.gateway.wire import KEEPALIVE_SECONDS
from deployments.models.base import Endpoint
from deployments.queue.request import Cancelled, InferenceRequest, RequestStatus, Version

TRUE = ("1", "true")

_CANCEL_STATUS = {Cancelled.REQUESTED: 202, Cancelled.ALREADY_COMPLETED: 400}


def queue_router(service: Service) -> APIRouter:
    """The routes of the queue, on one service."""
    router = APIRouter(prefix="/queue")
    authenticated = Depends(service.authenticate)

    @router.get("/{path:path}/requests/{request_id}/status")
    async def status(path: str, request_id: str, logs: str = "0", caller: Caller = authenticated) -> Response:
        with_logs = logs.lower() in TRUE
        who = (caller.key_id, path, request_id, with_logs)
        request = await service.polls.look(who, lambda: service.request(path, request_id, caller), with_logs)
        if request is None:
            return _unknown(request_id)
        return JSONResponse(await _status(service, request, with_logs), headers={wire.REQUEST_ID: request_id})

    @router.get("/{path:path}/requests/{request_id}/status/stream")
    async def status_stream(path: str, request_id: str, connection: Request, logs: str = "0") -> Response:
        caller = await service.caller(connection, path)
        request = await service.request(path, request_id, caller)
        if request is None:
            return _unknown(request_id)
        return StreamingResponse(
            _stream(service, connection, caller, request, logs.lower() in TRUE),
            media_type="text/event-stream",
            headers={wire.REQUEST_ID: request_id, "cache-control": "no-store"},
        )

    @router.put("/{path:path}/requests/{request_id}/cancel")
    async def cancel(path: str, request_id: str, caller: Caller = authenticated) -> Response:
        request = await service.request(path, request_id, caller)
        if request is None:
            return _unknown(request_id)
        outcome = await service.store.cancel(request_id)
        return JSONResponse({"status": outcome}, _CANCEL_STATUS[outcome], {wire.REQUEST_ID: request_id})

    @router.get("/{path:path}/requests/{request_id}/response")
    @router.get("/{path:path}/requests/{request_id}")
    async def result(path: str, request_id: str, caller: Caller = authenticated) -> Response:
        request = await service.request(path, request_id, caller)
        if request is None:
            raise NotFound("Request not found")
        if request.status != RequestStatus.COMPLETED:
            early = wire.error_response(StillInProgress("Request is still in progress"))
            early.headers[wire.REQUEST_ID] = request_id
            return early
        return await service.result(request)

    @router.post("/{path:path}")
    async def submit(path: str, request: Request, caller: Caller = authenticated) -> Response:
        endpoint = await service.admit(caller, path, request)
        await _check_depth(service, endpoint, caller, request)
        webhook = webhook_of(request, service.webhook_reach)
        row, refused = await service.new_request(endpoint, caller, await read_json(request), request, retry=True)
        accepted = await service.limiter.submit(caller, replace(row, webhook=webhook), refused, synchronous=False)
        position = 0 if refused else await service.positions.ahead(accepted)
        return JSONResponse(
            wire.status_body(accepted, service.urls(accepted), position, None),
            headers={wire.REQUEST_ID: accepted.id},
        )

    return router


async def _status(service: Service, request: InferenceRequest, with_logs: bool, skip: int = 0) -> dict[str, Any]:
    waits = request.status == RequestStatus.IN_QUEUE
    position = await service.positions.ahead(request) if waits else None
    lines = await service.store.logs(request.id, skip) if with_logs else None
    logs = None if lines is None else [wire.log_body(line, service.preview_url(line)) for line in lines]
    return wire.status_body(request, service.urls(request), position, logs)


async def _stream(
    service: Service, connection: Request, caller: Caller, request: InferenceRequest, with_logs: bool
) -> AsyncIterator[str]:
    """Server-sent events: the status now and whenever it changes, each with only the log lines that are new.

    They end with the key, or with the secret that was sent, as polls do; what a revoked key has submitted goes on.
    """
    last: dict[str, Any] = {}
    version = Version.of(request)
    seen, quiet_since = 0, time.monotonic()
    while True:
        with contextlib.suppress(Unavailable):  # the store comes back; a caller who waits is not told otherwise
            try:
                await service.same_caller(connection, caller)
            except Unauthenticated:
                return
            request = await service.store.get(request.id) or request
            body = await _status(service, request, with_logs, seen)
            if body["logs"] or {**body, "logs": None} != {**last, "logs": None}:
                yield wire.event(body)
                seen += len(body["logs"] or [])
                last, quiet_since = body, time.monotonic()
            if request.status == RequestStatus.COMPLETED:
                return
        if time.monotonic() - quiet_since > KEEPALIVE_SECONDS:
            yield wire.KEEPALIVE
            quiet_since = time.monotonic()
        version = await service.changes.since(request.id, version, POSITION_SECONDS)


async def _check_depth(service: Service, endpoint: Endpoint, caller: Caller, request: Request) -> None:
    """See that the queue is no longer than its caller accepts; who repeats a submit has accepted it already."""
    longest = request.query_params.get("fal_max_queue_length")
    if longest is None:
        return
    if not re.fullmatch("[0-9]{1,9}", longest):
        raise BadRequest("fal_max_queue_length must be a whole number")
    depth = await service.positions.depth(endpoint.model)
    idempotency_key = request.headers.get("idempotency-key")
    if depth > int(longest) and not await service.store.earlier(caller.key_id, endpoint.id, idempotency_key):
        raise QueueFull(f"{depth} requests are waiting, more than the {longest} accepted by fal_max_queue_length")


def _unknown(request_id: str) -> Response:
    return JSONResponse({"status": "NOT_FOUND"}, 404)
