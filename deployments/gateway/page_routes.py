"""The playground: a page for each endpoint, drawn from its input schema."""

from __future__ import annotations

import html
import json
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

from deployments.errors import NotFound
from deployments.gateway.service import Service

FOLDER = Path(__file__).parent / "playground"


def page_router(service: Service) -> APIRouter:
    """The playground's routes. A page holds no secret; the calls it makes carry the key."""
    router = APIRouter()
    template = (FOLDER / "index.html").read_text()
    first = next(iter(service.endpoints))

    @router.get("/")
    async def home() -> Response:
        return RedirectResponse(f"/models/{first}")

    @router.get("/models/{endpoint_id:path}")
    async def page(endpoint_id: str) -> Response:
        endpoint = service.endpoints.get(endpoint_id)
        if endpoint is None:
            raise NotFound(f"Path /models/{endpoint_id} not found")
        model = {
            "id": endpoint_id,
            "result": endpoint.result_key,
            "schema": endpoint.Input.model_json_schema(),
            "endpoints": list(service.endpoints),
        }
        embedded = json.dumps(model).replace("<", "\\u003c")  # nothing in it may end the script element
        return HTMLResponse(template.replace("{{title}}", html.escape(endpoint.title)).replace("{{model}}", embedded))

    router.mount("/playground", StaticFiles(directory=FOLDER))
    return router
