"""fal's synchronous run (``fal.run``, here the bare origin): submit, then wait on the same row."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from deployments.gateway.auth import Caller
from deployments.gateway.service import Service
from deployments.gateway.submission import read_input


def run_router(service: Service) -> APIRouter:
    """The catch-all route; it must be added last."""
    router = APIRouter()
    authenticated = Depends(service.authenticate)

    @router.api_route("/{path:path}", methods=["GET", "POST"])
    async def run(path: str, request: Request, caller: Caller = authenticated) -> Response:
        endpoint = await service.admit(caller, path, request)
        payload = await read_input(request)
        row, refused = await service.new_request(endpoint, caller, payload, request, retry=False)
        return await service.result(await service.run(caller, row, refused))

    return router
