"""fal's synchronous run (``fal.run``, here the bare origin): submit, then wait on the same row."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from deployments.gateway.auth import Caller
from deployments.gateway.service import Service
from deployments.gateway.submission import read_json


def run_router(service: Service) -> APIRouter:
    """The catch-all route; it must be added last."""
    router = APIRouter()
    authenticated = Depends(service.authenticate)

    @router.api_route("/{path:path}", methods=["GET", "POST"])
    async def run(path: str, request: Request, caller: Caller = authenticated) -> Response:
        endpoint = service.endpoint(path)
        payload = dict(request.query_params) if request.method == "GET" else await read_json(request)
        row, refused = await service.new_request(endpoint, caller, payload, request, retry=False)
        return await service.result(await service.run(row, refused))

    return router
