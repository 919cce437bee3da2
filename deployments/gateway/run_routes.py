"""fal's synchronous run (``fal.run``, here the bare origin): submit, then wait on the same row."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Request, Response

from deployments.gateway.auth import Caller
from deployments.gateway.service import Service
from deployments.gateway.submission import new_request, read_json


def run_router(service: Service) -> APIRouter:
    """The catch-all route; it must be added last."""
    router = APIRouter()
    authenticated = Depends(service.authenticate)

    @router.api_route("/{path:path}", methods=["GET", "POST"])
    async def run(path: str, request: Request, caller: Caller = authenticated) -> Response:
        endpoint = service.endpoint(path)
        payload = dict(request.query_params) if request.method == "GET" else await read_json(request)
        row, refused = new_request(endpoint, caller, payload, request, retry=False)
        try:
            await service.store.submit(row, refused.failure() if refused else None)
            await service.changes.completion(row.id)
        except asyncio.CancelledError:  # a caller who goes away no longer wants the clip
            await service.store.cancel(row.id)
            raise
        ended = await service.store.get(row.id)
        assert ended is not None
        return await service.result(ended)

    return router
