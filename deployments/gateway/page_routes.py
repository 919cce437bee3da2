"""The playground: a page for each endpoint, drawn from its input schema."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

from deployments.errors import NotFound
from deployments.gateway.headers import page_headers
from deployments.gateway.service import Service

FOLDER = Path(__file__).parent / "playground"


SHOWN_ANYWHERE = {"cache-control": "no-cache", "cross-origin-resource-policy": "cross-origin"}
"""Headers of what any page may show, and a browser asks for again each time."""


class Assets(StaticFiles):
    """What pages are made of, and the sample picture, which pages of others may show."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        """Answer with a file, which is sent only when it has changed."""
        response = super().file_response(*args, **options)
        response.headers.update(SHOWN_ANYWHERE)
        return response


def page_router(service: Service) -> APIRouter:
    """The playground's routes. A page holds no secret; the calls it makes carry the key."""
    router = APIRouter()
    template = (FOLDER / "index.html").read_text()
    picture = (FOLDER / "icon.svg").read_bytes()
    first = next(iter(service.endpoints))

    @router.get("/")
    async def home() -> Response:
        return RedirectResponse(f"/models/{first}")

    @router.get("/favicon.ico")
    async def icon() -> Response:
        # Browsers ask for it by themselves, and for a file, which they show in a sandbox, in the name of no origin.
        return Response(picture, media_type="image/svg+xml", headers=SHOWN_ANYWHERE)

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
        text = template.replace("{{title}}", html.escape(endpoint.title)).replace("{{model}}", embedded)
        return HTMLResponse(text, headers=page_headers(service.public_url))

    router.mount("/playground", Assets(directory=FOLDER))
    return router
