"""The playground: a page for each endpoint, drawn from its input schema, and one for whoever operates the service.

template ──▶ title, model (what the page's script works with), links to the endpoints ──▶ HTML
FOLDER ──▶ /playground/…: scripts, style and pictures, packed for who asks and sent again only when they change
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Receive, Scope, Send

from deployments.errors import NotFound
from deployments.gateway.headers import page_headers
from deployments.gateway.service import Service
from deployments.gateway.wire import price_body
from deployments.models.base import Endpoint, VideoConfig

FOLDER = Path(__file__).parent / "playground"
ASSETS = "/playground"

SHOWN_ANYWHERE = {"cache-control": "no-cache", "cross-origin-resource-policy": "cross-origin"}
"""Headers of what any page may show, and a browser asks for again each time."""

PICTURES = {
    "boat": "A boat on a lake",
    "hills": "Hills at sunrise",
    "balloon": "A balloon over a valley",
    "tea": "A cup of tea by the window",
}
"""The pictures to try, by the name of their file (made by ``artwork``), and what they show."""

PROMPTS = {
    "boat": ("A boat at sunrise", "A red boat on a calm lake at sunrise"),
    "moon": ("The moon over mountains", "The moon over snowy mountains at night"),
    "balloon": ("A balloon by day", "A yellow balloon over green hills by day"),
    "circle": ("A circle", "A red circle on a blue background"),
}
"""The prompts to try: their name, and their title and text."""

_PLACE = re.compile(r"\{\{(\w+)\}\}")


class Assets(StaticFiles):
    """What pages are made of, and the pictures to try, which pages of others may show."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request. A head is that of the whole answer, packed or not; the server leaves out the rest."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        await super().__call__({**scope, "method": method}, receive, send)

    def file_response(self, *args: Any, **options: Any) -> Response:
        """Answer with a file, which is sent only when it has changed."""
        response = super().file_response(*args, **options)
        response.headers.update(SHOWN_ANYWHERE)
        return response


def page_router(service: Service) -> APIRouter:
    """The playground's routes. A page holds no secret; the calls it makes carry the key."""
    router = APIRouter()
    templates = {name: (FOLDER / f"{name}.html").read_text() for name in ("index", "operator", "missing")}
    picture = (FOLDER / "icon.svg").read_bytes()
    first = next(iter(service.endpoints))
    shared = {
        "endpoints": [
            {"id": each.id, "title": each.title, "description": each.description} for each in service.endpoints.values()
        ],
        "public_url": service.public_url,
    }

    links = "".join(
        f'<a href="/models/{html.escape(each.id)}">{html.escape(each.title)}</a>' for each in service.endpoints.values()
    )

    def page_of(template: str, title: str, model: Mapping[str, Any], status: int = 200) -> Response:
        text = fill(templates[template], title, {**model, **shared}, links)
        return HTMLResponse(text, status, headers=page_headers(service.public_url))

    @router.get("/")
    async def home() -> Response:
        return RedirectResponse(f"/models/{first}")

    @router.get("/operator")
    async def operator() -> Response:
        return page_of("operator", "Operator", {})

    @router.get("/favicon.ico")
    async def icon() -> Response:
        # Browsers ask for it by themselves, and for a file, which they show in a sandbox, in the name of no origin.
        return Response(picture, media_type="image/svg+xml", headers=SHOWN_ANYWHERE)

    @router.get("/models/{endpoint_id:path}")
    async def page(endpoint_id: str, request: Request) -> Response:
        endpoint = service.endpoints.get(endpoint_id)
        if endpoint is not None:
            return page_of("index", endpoint.title, _model(endpoint))
        if "text/html" in request.headers.get("accept", ""):  # a person, who may look for another
            return page_of("missing", "There is no such endpoint", {}, 404)
        raise NotFound(f"Path /models/{endpoint_id} not found")

    router.mount(ASSETS, GZipMiddleware(Assets(directory=FOLDER)))
    return router


def fill(template: str, title: str, model: Mapping[str, Any], links: str = "") -> str:
    """A page with its title, and with its model as JSON, nothing in which may end the script element that holds it."""
    parts = {"title": html.escape(title), "model": json.dumps(model).replace("<", "\\u003c"), "links": links}
    return _PLACE.sub(lambda place: parts[place[1]], template)


def _model(endpoint: Endpoint) -> dict[str, Any]:
    """What a page knows of its endpoint."""
    config = endpoint.config
    return {
        "id": endpoint.id,
        "title": endpoint.title,
        "description": endpoint.description,
        "result": endpoint.result_key,
        "schema": endpoint.Input.model_json_schema(),
        "price": price_body(endpoint),
        "sizes": [[size.width, size.height] for size in config.sizes] if isinstance(config, VideoConfig) else [],
        "fps": endpoint.default_fps,
        "examples": _examples(endpoint),
    }


def _examples(endpoint: Endpoint) -> list[dict[str, str]]:
    """What a newcomer may try: pictures, or prompts."""
    if "prompt" in endpoint.Input.model_fields:
        return [{"name": name, "title": title, "prompt": text} for name, (title, text) in PROMPTS.items()]
    return [{"name": name, "title": title, "url": f"{ASSETS}/examples/{name}.jpg"} for name, title in PICTURES.items()]
