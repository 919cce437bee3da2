from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any, ClassVar, Literal

import pytest
from openapi_schema_validator import OAS30Validator
from openapi_spec_validator import OpenAPIV30SpecValidator, validate
from pydantic import BaseModel, Field, ValidationError

from deployments.gateway import document_routes
from deployments.gateway.openapi import openapi_of
from deployments.gateway.sample import SAMPLE
from deployments.models.base import Endpoint, VideoConfig, VideoInput
from deployments.models.stable_video import StableVideo, StableVideoInput
from deployments.queue.store import Outcome, RequestStore
from deployments.storage import FileStorage
from tests.gateway.conftest import (
    FAST,
    INPUT,
    OUTPUT,
    OWNER,
    STABLE_VIDEO,
    SVD,
    TEXT_TO_VIDEO,
    URL,
    Gateway,
    open_gateway,
    served_endpoints,
)

IDS = list(served_endpoints())
FOREIGN = ["workflows/me/mine", "comfy/me/mine", "fal-ai/flux/dev", "fal-ai/svd/other", "123-svd", "svd"]
NAMES = {
    STABLE_VIDEO: "StableVideo",
    SVD: "SVD",
    "fal-ai/fast-svd-lcm": "FastSVDLCM",
    TEXT_TO_VIDEO: "TextToVideo",
}


async def document_of(gateway: Gateway, id: str) -> dict[str, Any]:
    reply = await gateway.client.get(
        "/api/openapi/queue/openapi.json", params={"endpoint_id": id}, headers={"authorization": ""}
    )
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def words(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a schema with its value, however deep, but for the names of fields."""
    if isinstance(value, list):
        for each in value:
            yield from words(each)
    elif isinstance(value, dict):
        for key, below in value.items():
            yield key, below
            yield from words(list(below.values()) if key == "properties" else below)


# ---------------------------------------------------------------- OpenAPI


@pytest.mark.parametrize("id", IDS)
async def test_every_endpoint_has_a_valid_openapi_document(gateway: Gateway, id: str) -> None:
    document = await document_of(gateway, id)

    validate(document, cls=OpenAPIV30SpecValidator)
    assert document["openapi"] == "3.0.4"
    assert document["info"]["title"] == f"Queue OpenAPI for {id}"
    assert document["info"]["version"] == "1.0.0"
    assert document["info"]["x-fal-metadata"] == {
        "endpointId": id,
        "category": "text-to-video" if id == TEXT_TO_VIDEO else "image-to-video",
        "thumbnailUrl": f"{URL}/playground/sample.jpg",
        "playgroundUrl": f"{URL}/models/{id}",
        "documentationUrl": f"{URL}/models/{id}/api",
    }
    assert document["servers"] == [{"url": f"{URL}/queue"}]
    assert document["security"] == [{"apiKeyAuth": []}]
    scheme = document["components"]["securitySchemes"]["apiKeyAuth"]
    assert (scheme["type"], scheme["in"], scheme["name"]) == ("apiKey", "header", "Authorization")


@pytest.mark.parametrize("id", IDS)
async def test_its_schemas_have_the_names_and_the_order_that_tools_look_for(gateway: Gateway, id: str) -> None:
    schemas = (await document_of(gateway, id))["components"]["schemas"]

    own = {"QueueStatus", f"{NAMES[id]}Input", f"{NAMES[id]}Output", "File"}
    assert set(schemas) == own | ({"ImageSize"} if id == TEXT_TO_VIDEO else set())
    for schema in schemas.values():
        assert sorted(schema["x-fal-order-properties"]) == sorted(schema["properties"])
    first = "prompt" if id == TEXT_TO_VIDEO else "image_url"
    assert schemas[f"{NAMES[id]}Input"]["required"] == schemas[f"{NAMES[id]}Input"]["x-fal-order-properties"][:1]
    assert schemas[f"{NAMES[id]}Input"]["x-fal-order-properties"][0] == first
    assert set(schemas["QueueStatus"]["properties"]) == {
        *("status", "request_id", "response_url", "status_url", "cancel_url", "logs", "metrics", "queue_position")
    }
    result = "image" if id == SVD else "video"
    assert schemas[f"{NAMES[id]}Output"]["required"] == [result, "seed"]
    assert schemas[f"{NAMES[id]}Output"]["properties"][result]["allOf"] == [{"$ref": "#/components/schemas/File"}]


@pytest.mark.parametrize("id", IDS)
async def test_its_paths_are_the_queues_with_the_full_id(gateway: Gateway, id: str) -> None:
    paths = (await document_of(gateway, id))["paths"]
    follow = f"/{id}/requests/{{request_id}}"

    def answer(path: str, method: str) -> Any:
        return paths[path][method]["responses"]["200"]["content"]["application/json"]["schema"]

    assert {(path, method) for path, methods in paths.items() for method in methods} == {
        (f"/{id}", "post"),
        (f"{follow}/status", "get"),
        (f"{follow}/cancel", "put"),
        (follow, "get"),
    }
    schemas = "#/components/schemas/"
    body = paths[f"/{id}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": f"{schemas}{NAMES[id]}Input"}
    assert answer(f"/{id}", "post") == answer(f"{follow}/status", "get") == {"$ref": f"{schemas}QueueStatus"}
    assert answer(follow, "get") == {"$ref": f"{schemas}{NAMES[id]}Output"}
    assert answer(f"{follow}/cancel", "put")["properties"] == {"success": {"type": "boolean"}}
    assert [parameter["name"] for parameter in paths[f"{follow}/status"]["get"]["parameters"]] == ["request_id", "logs"]


async def test_a_seed_may_be_left_out_and_what_has_no_default_shows_none(gateway: Gateway) -> None:
    schema = (await document_of(gateway, SVD))["components"]["schemas"]["SVDInput"]

    assert schema["required"] == ["image_url"]
    assert "default" not in schema["properties"]["seed"]
    mask = schema["properties"]["mask_image_url"]
    assert (mask["type"], mask["nullable"], "default" in mask, "anyOf" in mask) == ("string", True, False, False)


class Part(BaseModel):
    weight: float = Field(1.0, gt=0, lt=2)
    note: str | None = None


class OddInput(StableVideoInput):
    """Whatever pydantic writes that OpenAPI 3.0 does not know."""

    kind: Literal["only"] = "only"
    part: Part | None = Field(None, description="beside a reference")
    same: Part = Field(Part(), description="beside a reference")
    either: int | str | None = Field(None, examples=[3, "three"])
    parts: list[Part | None] = Field([])
    named: dict[str, int | None] = Field({})
    pair: tuple[int, str] = (1, "a")


class Odd(StableVideo):
    Input: ClassVar[type[VideoInput]] = OddInput
    title = "</script><script>alert(1)</script>"
    description = "<img src=x onerror=alert(1)> {braces}"


ODD: Endpoint = Odd("fal-ai/odd", VideoConfig(weights="none"))


def test_what_openapi_30_does_not_know_is_said_in_its_own_words() -> None:
    document = openapi_of(ODD, URL)
    fields = document["components"]["schemas"]["OddInput"]["properties"]

    validate(document, cls=OpenAPIV30SpecValidator)
    reference = {"$ref": "#/components/schemas/Part"}
    assert fields["kind"]["enum"] == ["only"]
    assert fields["part"].items() >= {"allOf": [reference], "nullable": True}.items()
    assert fields["same"]["allOf"] == [reference]
    assert fields["either"].items() >= {"nullable": True, "example": 3}.items()
    assert [choice["type"] for choice in fields["either"]["anyOf"]] == ["integer", "string"]
    assert fields["parts"]["items"] == {"allOf": [reference], "nullable": True}
    assert fields["named"]["additionalProperties"] == {"type": "integer", "nullable": True}
    weight = document["components"]["schemas"]["Part"]["properties"]["weight"]
    assert weight.items() >= {"minimum": 0, "exclusiveMinimum": True, "maximum": 2, "exclusiveMaximum": True}.items()
    found = dict(words(document))
    assert not {"const", "$defs", "examples", "prefixItems"} & set(found)
    assert not [value for word, value in words(document) if word == "type" and value == "null"]
    assert all(value is True for word, value in words(document) if word in ("exclusiveMinimum", "exclusiveMaximum"))


@pytest.mark.parametrize(
    ("endpoint", "input"),
    [
        (endpoint, good | extra)
        for endpoint, good in ((SVD, INPUT), (STABLE_VIDEO, INPUT), (TEXT_TO_VIDEO, {"prompt": "a lake"}))
        for extra in (
            {},
            {"seed": 0},
            {"seed": -1},
            {"seed": 2**63 - 1},
            {"seed": 2**63},
            {"seed": "x"},
            {"motion_bucket_id": 0},
            {"motion_bucket_id": 255},
            {"cond_aug": 10.5},
            {"fps": 9},
            {"steps": 0},
            {"image_url": ""},
            {"image_url": None},
            {"mask_image_url": None},
            {"mask_image_url": 7},
            {"prompt": ""},
            {"prompt": "x" * 10_001},
            {"video_size": "square"},
            {"video_size": "huge"},
            {"video_size": {"width": 0}},
            {"video_size": {"width": 14142, "height": 1}},
            {"video_size": {"width": 14143}},
        )
    ],
)
def test_a_document_takes_and_refuses_what_the_endpoint_takes_and_refuses(endpoint: str, input: Any) -> None:
    model = served_endpoints()[endpoint].Input
    schemas = openapi_of(served_endpoints()[endpoint], URL)["components"]["schemas"]
    document = {"$ref": f"#/components/schemas/{NAMES[endpoint]}Input", "components": {"schemas": schemas}}
    try:
        model.model_validate(input)
        takes = True
    except ValidationError:
        takes = False

    assert OAS30Validator(document).is_valid(input) is takes


async def test_the_sample_in_the_documents_is_one_that_a_starting_gateway_stores(gateway: Gateway) -> None:
    document = openapi_of(served_endpoints()[STABLE_VIDEO], URL)
    example = document["components"]["schemas"]["StableVideoInput"]["properties"]["image_url"]["example"]
    reply = await gateway.client.get(example)
    assert (reply.status_code, reply.content) == (200, SAMPLE.read_bytes())


# ---------------------------------------------------------------- llms.txt and pages


async def text_of(gateway: Gateway, path: str) -> str:
    reply = await gateway.client.get(path, headers={"authorization": ""})
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    return reply.text


def section(text: str, title: str) -> str:
    """What stands under a heading, up to the next one as high."""
    level = title.partition(" ")[0]
    found = re.search(rf"^{re.escape(title)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{title!r} is missing"
    return found[1]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("id", IDS)
async def test_llms_txt_tells_of_every_endpoint_what_fals_does(gateway: Gateway, id: str) -> None:
    endpoint = served_endpoints()[id]
    text = await text_of(gateway, f"/models/{id}/llms.txt")

    assert text.startswith(f"# {endpoint.title}\n\n> {endpoint.description}\n")
    overview = section(text, "## Overview")
    assert f"- **Endpoint**: `{URL}/{id}`\n- **Model ID**: `{id}`\n- **Category**: {endpoint.category}\n" in overview
    assert f"- **Kind**: inference\n- **Tags**: {', '.join(endpoint.tags)}\n" in overview
    for name, field in endpoint.Input.model_fields.items():
        need = "required" if field.is_required() else "optional"
        assert re.search(rf"- \*\*`{name}`\*\* \(`[^`]+`, _{need}_\):\n  {re.escape(str(field.description))}", text)
    outputs = section(text, "### Output Schema")
    assert f"**`{endpoint.result_key}`** (`File`, _required_)" in outputs and "**`seed`** (`integer`, _req" in outputs
    for language in ("cURL", "Python", "JavaScript"):
        assert id in section(text, f"### {language}")
    resources = section(text, "## Additional Resources")
    for url in re.findall(r"\((http[^)]*)\)", resources):
        assert (await gateway.client.get(url, headers={"authorization": ""})).status_code == 200


async def test_ranges_defaults_and_options_are_told(gateway: Gateway) -> None:
    text = await text_of(gateway, f"/models/{TEXT_TO_VIDEO}/llms.txt")

    assert "  - Default: `127`\n  - Range: from `1` to `255`\n" in text
    assert "  - Default: `0.02`\n  - Range: from `0` to `10`\n" in text
    assert "(`Enum | ImageSize`, _optional_)" in text
    assert '  - Options: `"square_hd"`, `"square"`, `"portrait_4_3"`' in text
    assert '  - Examples: `"A red boat on a calm lake at sunrise"`' in text


@pytest.mark.parametrize(
    ("id", "price"),
    [
        (STABLE_VIDEO, "- **Price**: 0.075 USD per video"),
        (SVD, "- **Price**: 0 USD per compute second"),
        ("fal-ai/fast-svd-lcm", "- No price is published."),
        (TEXT_TO_VIDEO, "- No price is published."),
    ],
)
async def test_the_price_is_told(gateway: Gateway, id: str, price: str) -> None:
    assert section(await text_of(gateway, f"/models/{id}/llms.txt"), "## Pricing").strip() == price


@pytest.mark.parametrize("id", IDS)
async def test_the_examples_work(gateway: Gateway, id: str) -> None:
    endpoint = served_endpoints()[id]
    text = await text_of(gateway, f"/models/{id}/llms.txt")
    required, full = map(json.loads, blocks(section(text, "### Input Schema"), "json"))

    needed = {name for name, field in endpoint.Input.model_fields.items() if field.is_required()}
    assert set(required) == needed < set(full)
    for input in (required, full):
        assert endpoint.Input.model_validate(input)
    (answer,) = map(json.loads, blocks(section(text, "### Output Schema"), "json"))
    assert set(answer) == {endpoint.result_key, "seed"}
    assert set(answer[endpoint.result_key]) == {"url", "content_type", "file_name", "file_size"}
    (program,) = blocks(text, "python")
    asked: list[Any] = []

    class FalClient:
        @staticmethod
        def subscribe(*arguments: Any, **options: Any) -> Any:
            asked.append((*arguments, options["arguments"]))
            return answer

    exec(program.replace("import fal_client", ""), {"fal_client": FalClient})
    assert asked == [(id, required)]
    (command,) = blocks(text, "bash")
    assert json.loads(shlex.split(command.replace("\\\n", " "))[-1]) == required


async def test_a_field_without_an_example_gets_something_of_its_type() -> None:
    class Needy(BaseModel):
        word: str
        count: int
        kind: Literal["a", "b"]

    schema = {"properties": Needy.model_json_schema()["properties"], "required": list(Needy.model_fields)}
    shown = document_routes._example(schema | {"x-fal-order-properties": schema["required"]}, schema["required"])
    assert Needy.model_validate(shown, strict=True)


class Page(HTMLParser):
    """The tags, headings and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("h1", "h2", "h3") and data.strip():
            self.headings.append(data)


@pytest.mark.parametrize("id", IDS)
async def test_the_api_page_says_the_same_as_llms_txt(gateway: Gateway, id: str) -> None:
    reply = await gateway.client.get(f"/models/{id}/api", headers={"authorization": ""})
    text = await text_of(gateway, f"/models/{id}/llms.txt")

    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    outside_code = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert Page(reply.text).headings == re.findall(r"^#+ (.*)$", outside_code, re.MULTILINE)
    assert (await gateway.client.get("/playground/style.css")).status_code == 200


async def test_nothing_that_an_endpoint_says_becomes_part_of_a_page(store: RequestStore, storage: FileStorage) -> None:
    async with open_gateway(store, storage, {ODD.id: ODD}) as gateway:
        page = (await gateway.client.get(f"/models/{ODD.id}/api")).text

    assert not {"script", "img"} & set(Page(page).tags)
    assert "{braces}" in page


async def test_the_indexes_lead_to_every_endpoint(gateway: Gateway) -> None:
    for path in ("/llms.txt", "/docs/llms.txt"):
        text = await text_of(gateway, path)
        assert set(re.findall(rf"\({URL}/models/(.*?)/llms.txt\)", text)) == set(IDS)
    guide = await text_of(gateway, "/docs/llms.txt")
    for title in ("Queue", "Synchronous and live", "Files", "Platform", "Documents"):
        assert URL in section(guide, f"## {title}")


# ---------------------------------------------------------------- row 48: names that are not ours


@pytest.mark.parametrize("id", FOREIGN)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/{}"),
        ("GET", "/{}"),
        ("POST", "/{}/stream"),
        ("POST", "/queue/{}"),
        ("GET", "/queue/{}/requests/00000000-0000-0000-0000-000000000000"),
        ("GET", "/queue/{}/requests/00000000-0000-0000-0000-000000000000/response"),
        ("GET", "/models/{}"),
        ("GET", "/models/{}/llms.txt"),
        ("GET", "/models/{}/api"),
        ("GET", "/api/openapi/queue/openapi.json?endpoint_id={}"),
    ],
)
async def test_a_name_that_is_not_ours_is_not_found(gateway: Gateway, id: str, method: str, path: str) -> None:
    reply = await gateway.client.request(method, path.format(id), json=INPUT if method == "POST" else None)

    assert reply.status_code == 404, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-fal-request-id"] and reply.headers["x-fal-billable-units"] == "0"
    assert (reply.headers["x-fal-error-type"], reply.json()["error_type"]) == ("not_found", "not_found")
    assert "not found" in reply.json()["detail"]


@pytest.mark.parametrize("id", FOREIGN)
@pytest.mark.parametrize(("method", "path"), [("GET", "status"), ("GET", "status/stream"), ("PUT", "cancel")])
async def test_requests_of_a_name_that_is_not_ours_are_not_found(
    gateway: Gateway, id: str, method: str, path: str
) -> None:
    reply = await gateway.client.request(method, f"/queue/{id}/requests/00000000-0000-0000-0000-000000000000/{path}")

    assert (reply.status_code, reply.json()) == (404, {"status": "NOT_FOUND"})


# ---------------------------------------------------------------- row 47: headers


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/health/live", {}),
        ("GET", "/", {}),
        ("GET", f"/models/{SVD}", {}),
        ("GET", f"/models/{SVD}/llms.txt", {}),
        ("GET", "/llms.txt", {}),
        ("GET", f"/api/openapi/queue/openapi.json?endpoint_id={SVD}", {}),
        ("GET", "/api/openapi/queue/openapi.json", {}),
        ("GET", "/playground/app.js", {}),
        ("GET", "/files/b/none/clip.mp4", {}),
        ("GET", "/v1/models", {}),
        ("GET", "/v1/meta", {}),
        ("GET", "/v1/models/usage", {}),
        ("GET", "/v1/models/usage", {"authorization": ""}),
        ("GET", "/v1/none", {}),
        ("GET", "/v1/serverless/metrics", {}),
        ("DELETE", "/v1/keys/none", {}),
        ("DELETE", "/health/live", {}),
        ("GET", "/api/fal/proxy", {}),
        ("GET", "/.well-known/jwks.json", {}),
        ("POST", f"/queue/{SVD}", {}),
        ("POST", f"/{SVD}", {}),
        ("OPTIONS", f"/queue/{SVD}", {"origin": "https://example.com", "access-control-request-method": "POST"}),
    ],
)
async def test_every_reply_has_a_request_id(gateway: Gateway, method: str, path: str, headers: dict[str, str]) -> None:
    reply = await gateway.client.request(method, path, headers=headers)

    assert re.fullmatch("[0-9a-f-]{36}", reply.headers["x-fal-request-id"])


@pytest.mark.parametrize(
    ("endpoint", "gpu_seconds", "units"),
    [(STABLE_VIDEO, 3.0, "1"), (SVD, 3.0, "3"), (SVD, 1234.56789012, "1234.56789"), (SVD, 0.0, "0"), (FAST, 9.5, "1")],
)
async def test_a_success_bills_its_units_and_says_so(
    gateway: Gateway, endpoint: str, gpu_seconds: float, units: str
) -> None:
    request_id = await gateway.submit(endpoint)
    attempt = await gateway.claim(endpoint.replace("/", "--"))
    assert await gateway.store.complete(attempt, OWNER, Outcome(200, OUTPUT, gpu_seconds=gpu_seconds))
    reply = await gateway.client.get(f"/queue/{endpoint}/requests/{request_id}")
    events = (await gateway.client.get("/v1/models/billing-events")).json()["billing_events"]

    assert (reply.headers["x-fal-request-id"], reply.headers["x-fal-billable-units"]) == (request_id, units)
    assert [event["output_units"] for event in events] == [float(units)]


async def test_a_refused_input_bills_nothing_and_says_so(gateway: Gateway) -> None:
    request_id = await gateway.submit(SVD, json={})
    reply = await gateway.client.get(f"/queue/{SVD}/requests/{request_id}")

    assert (reply.status_code, reply.headers["x-fal-billable-units"]) == (422, "0")
