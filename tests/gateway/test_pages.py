from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from io import BytesIO
from typing import Any, ClassVar

import pytest
from PIL import Image
from pydantic import Field

from artwork.canvas import MOST_BYTES
from deployments.gateway.page_routes import fill
from deployments.models.base import Endpoint, VideoConfig, VideoInput
from deployments.models.stable_video import StableVideo, StableVideoInput
from deployments.queue.store import RequestStore
from deployments.storage import FileStorage
from tests.gateway.conftest import (
    STABLE_VIDEO,
    SVD,
    TEXT_TO_VIDEO,
    URL,
    Gateway,
    open_gateway,
    served_endpoints,
)

HOSTILE = "</script></h1><script>alert(1)</script><!--"


class HostileInput(StableVideoInput):
    other: str = Field("", description=HOSTILE)


class Hostile(StableVideo):
    Input: ClassVar[type[VideoInput]] = HostileInput
    title = HOSTILE


class Page(HTMLParser):
    """A page as a browser reads it: its scripts, all that it loads, its title and its embedded model."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.assets: list[str] = []
        self.title = self._embedded = ""
        self._inside: str | None = None
        self.feed(text)
        self.model: dict[str, Any] = json.loads(self._embedded)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append(dict(attrs))
        if tag in ("script", "link", "img"):
            self.assets += [value for name, value in attrs if name in ("src", "href") and value]
        self._inside = dict(attrs).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "model":
            self._embedded += data
        if self._inside == "title":
            self.title += data


@pytest.mark.parametrize("id", served_endpoints())
async def test_every_endpoint_has_a_page_that_holds_what_it_takes(gateway: Gateway, id: str) -> None:
    endpoint = served_endpoints()[id]
    reply = await gateway.client.get(f"/models/{id}", headers={"authorization": ""})

    model = Page(reply.text).model
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/html")
    assert endpoint.title in reply.text
    assert model["schema"] == endpoint.Input.model_json_schema()
    told = {"id": id, "title": endpoint.title, "description": endpoint.description}
    told |= {"result": endpoint.result_key, "fps": endpoint.default_fps, "public_url": URL}
    assert told.items() <= model.items()
    assert model["endpoints"] == [
        {"id": each.id, "title": each.title, "description": each.description} for each in served_endpoints().values()
    ]


async def test_a_page_knows_the_price_and_the_sizes(gateway: Gateway) -> None:
    stable_video, svd, painter = [
        Page((await gateway.client.get(f"/models/{id}")).text).model for id in (STABLE_VIDEO, SVD, TEXT_TO_VIDEO)
    ]

    assert stable_video["price"] == {"unit_price": 0.075, "unit": "video", "currency": "USD"}
    assert svd["price"] == {"unit_price": 0.0, "unit": "compute second", "currency": "USD"}
    assert painter["price"] is None
    assert svd["sizes"] == [[112, 64], [64, 112], [80, 80]]
    assert painter["sizes"] == []


async def test_a_newcomer_finds_pictures_to_try(gateway: Gateway) -> None:
    model = Page((await gateway.client.get(f"/models/{SVD}")).text).model

    assert len(model["examples"]) >= 3
    for example in model["examples"]:
        assert example["title"]
        reply = await gateway.client.get(example["url"], headers={"authorization": ""})
        assert (reply.status_code, reply.headers["content-type"]) == (200, "image/jpeg")
        assert len(reply.content) <= MOST_BYTES
        with Image.open(BytesIO(reply.content)) as picture:
            assert max(picture.size) == 640


async def test_a_newcomer_finds_prompts_to_try(gateway: Gateway) -> None:
    model = Page((await gateway.client.get(f"/models/{TEXT_TO_VIDEO}")).text).model

    assert len(model["examples"]) >= 3
    for example in model["examples"]:
        assert example.keys() == {"name", "title", "prompt"}
        served_endpoints()[TEXT_TO_VIDEO].Input.model_validate({"prompt": example["prompt"]})


async def test_the_operators_page_holds_the_endpoints_and_no_secret(gateway: Gateway) -> None:
    reply = await gateway.client.get("/operator", headers={"authorization": ""})

    model = Page(reply.text).model
    assert reply.status_code == 200
    assert model.keys() == {"endpoints", "public_url"}
    assert [each["id"] for each in model["endpoints"]] == list(served_endpoints())


@pytest.mark.parametrize("path", [f"/models/{STABLE_VIDEO}", "/operator"])
async def test_a_page_needs_nothing_but_what_is_served_beside_it(gateway: Gateway, path: str) -> None:
    reply = await gateway.client.get(path)
    page = Page(reply.text)

    assert page.assets
    assert not [asset for asset in page.assets if not re.match(r"/[a-z]", asset)]
    for asset in page.assets:
        assert (await gateway.client.get(asset)).status_code == 200, asset
    inline = [script for script in page.scripts if "src" not in script]
    assert inline == [{"id": "model", "type": "application/json"}]


async def test_a_page_may_run_and_call_nothing_else(gateway: Gateway) -> None:
    headers = (await gateway.client.get(f"/models/{STABLE_VIDEO}")).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))

    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": f"'self' {URL}/",
        "img-src": "'self' data: blob: https: http:",
        "media-src": "'self' blob: https: http:",
        "form-action": "'none'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }


async def test_a_script_is_packed_and_sent_again_only_when_it_changes(gateway: Gateway) -> None:
    packed = await gateway.client.get("/playground/app.js", headers={"accept-encoding": "gzip"})
    plain = await gateway.client.get("/playground/app.js", headers={"accept-encoding": "identity"})

    assert packed.headers["content-encoding"] == "gzip"
    assert "Accept-Encoding" in packed.headers["vary"]
    assert packed.text == plain.text
    assert packed.headers["cache-control"] == "no-cache"
    known = {"if-none-match": packed.headers["etag"], "accept-encoding": "gzip"}
    again = await gateway.client.get("/playground/app.js", headers=known)
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["cache-control"] == "no-cache"
    other = await gateway.client.get("/playground/app.js", headers={"if-none-match": '"another"'})
    assert other.status_code == 200


async def test_a_picture_is_not_packed_again(gateway: Gateway) -> None:
    reply = await gateway.client.get("/playground/sample.jpg", headers={"accept-encoding": "gzip"})
    assert (reply.status_code, "content-encoding" in reply.headers) == (200, False)


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
    assert len([script for script in page.scripts if "src" not in script]) == 1
    assert page.title.startswith(HOSTILE)
    assert page.model["title"] == HOSTILE
    assert page.model["schema"]["properties"]["other"]["description"] == HOSTILE


def test_a_title_that_looks_like_a_place_in_a_template_is_a_title() -> None:
    assert fill("<h1>{{title}}</h1>{{model}}", "{{model}}", {"a": 1}) == '<h1>{{model}}</h1>{"a": 1}'


@pytest.mark.parametrize("id", ["fal-ai/unknown", "", "fal-ai/svd/", "%3Cscript%3E"])
async def test_an_unknown_page_is_not_found(gateway: Gateway, id: str) -> None:
    reply = await gateway.client.get(f"/models/{id}")

    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize("id", ["fal-ai/unknown", "%3Cscript%3E"])
async def test_a_person_who_mistypes_a_page_is_shown_what_there_is(gateway: Gateway, id: str) -> None:
    reply = await gateway.client.get(f"/models/{id}", headers={"accept": "text/html,*/*;q=0.8", "authorization": ""})

    assert (reply.status_code, reply.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "'self'" in reply.headers["content-security-policy"]
    assert "script" not in reply.text
    for endpoint in served_endpoints().values():
        assert f'<a href="/models/{endpoint.id}">{endpoint.title}</a>' in reply.text


@pytest.mark.parametrize("path", ["none.js", "%2e%2e/api.py", "..%2fapi.py", ""])
async def test_the_playgrounds_folder_gives_nothing_else(gateway: Gateway, path: str) -> None:
    reply = await gateway.client.get(f"/playground/{path}")

    assert reply.status_code in (401, 404)
    assert "FastAPI" not in reply.text


async def test_the_home_page_is_the_first_endpoints(gateway: Gateway) -> None:
    reply = await gateway.client.get("/", headers={"authorization": ""})

    assert reply.status_code == 307
    assert reply.headers["location"] == f"/models/{STABLE_VIDEO}"
