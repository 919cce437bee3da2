from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any, ClassVar

import pytest
from pydantic import Field

from deployments.models.base import Endpoint, VideoConfig, VideoInput
from deployments.models.stable_video import StableVideo, StableVideoInput
from deployments.queue.store import RequestStore
from deployments.storage import FileStorage
from tests.gateway.conftest import STABLE_VIDEO, Gateway, open_gateway, served_endpoints

HOSTILE = "</script></h1><script>alert(1)</script><!--"


class HostileInput(StableVideoInput):
    other: str = Field("", description=HOSTILE)


class Hostile(StableVideo):
    Input: ClassVar[type[VideoInput]] = HostileInput
    title = HOSTILE


class Page(HTMLParser):
    """A page as a browser reads it: its scripts, its heading and its embedded model."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.heading = self._embedded = ""
        self._inside: str | None = None
        self.feed(text)
        self.model: dict[str, Any] = json.loads(self._embedded)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append(dict(attrs))
        self._inside = dict(attrs).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "model":
            self._embedded += data
        if self._inside == "h1":
            self.heading += data


@pytest.mark.parametrize("id", served_endpoints())
async def test_every_endpoint_has_a_page_that_holds_its_schema(gateway: Gateway, id: str) -> None:
    endpoint = served_endpoints()[id]
    reply = await gateway.client.get(f"/models/{id}", headers={"authorization": ""})

    page = Page(reply.text)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/html")
    assert page.heading == endpoint.title
    assert page.model == {
        "id": id,
        "result": endpoint.result_key,
        "schema": endpoint.Input.model_json_schema(),
        "endpoints": list(served_endpoints()),
    }


async def test_a_page_needs_nothing_but_what_is_served_beside_it(gateway: Gateway) -> None:
    page = Page((await gateway.client.get(f"/models/{STABLE_VIDEO}")).text)

    assert [script.get("src") for script in page.scripts] == [None, "/playground/app.js"]
    for name, content_type in (("app.js", "javascript"), ("style.css", "text/css")):
        reply = await gateway.client.get(f"/playground/{name}")
        assert (reply.status_code, content_type in reply.headers["content-type"]) == (200, True)


async def test_a_browser_that_shows_a_file_in_a_sandbox_may_have_the_icon(gateway: Gateway) -> None:
    reply = await gateway.client.get("/favicon.ico", headers={"authorization": ""})
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/svg+xml")
    assert reply.headers["cross-origin-resource-policy"] == "cross-origin"
    assert reply.headers["x-content-type-options"] == "nosniff"


async def test_nothing_in_a_schema_or_title_becomes_part_of_the_page(store: RequestStore, storage: FileStorage) -> None:
    endpoints: dict[str, Endpoint] = {"fal-ai/hostile": Hostile("fal-ai/hostile", VideoConfig(weights="none"))}
    async with open_gateway(store, storage, endpoints) as gateway:
        text = (await gateway.client.get("/models/fal-ai/hostile")).text

    page = Page(text)
    assert "<script>alert" not in text
    assert len(page.scripts) == 2
    assert page.heading == HOSTILE
    assert page.model["schema"]["properties"]["other"]["description"] == HOSTILE


@pytest.mark.parametrize("id", ["fal-ai/unknown", "", "fal-ai/svd/", "%3Cscript%3E"])
async def test_an_unknown_page_is_not_found(gateway: Gateway, id: str) -> None:
    reply = await gateway.client.get(f"/models/{id}")

    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["none.js", "%2e%2e/api.py", "..%2fapi.py", ""])
async def test_the_playgrounds_folder_gives_nothing_else(gateway: Gateway, path: str) -> None:
    reply = await gateway.client.get(f"/playground/{path}")

    assert reply.status_code in (401, 404)
    assert "FastAPI" not in reply.text


async def test_the_home_page_is_the_first_endpoints(gateway: Gateway) -> None:
    reply = await gateway.client.get("/", headers={"authorization": ""})

    assert reply.status_code == 307
    assert reply.headers["location"] == f"/models/{STABLE_VIDEO}"
