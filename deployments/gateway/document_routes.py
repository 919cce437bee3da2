"""Documents for programs and their authors, public as fal's are (``fal.ai``): OpenAPI, llms.txt, and a page of it.

    endpoint ──▶ OpenAPI schemas ──▶ /api/openapi/queue/openapi.json
                        └──▶ Markdown ──▶ /models/<id>/llms.txt ──▶ HTML ──▶ /models/<id>/api

All of it is made from the models that check the input, so that it cannot say anything else than they do.
"""

from __future__ import annotations

import html
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from markdown_it import MarkdownIt

from deployments.gateway.headers import page_headers
from deployments.gateway.openapi import SAMPLE_SEED, input_name, input_schemas, openapi_of, output_name, output_schemas
from deployments.gateway.service import Service
from deployments.models.base import Endpoint
from deployments.models.charges import CURRENCY

SAMPLE_BYTES = 1_048_576

PAGE = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>{title} · API · svd-serve</title>
  <link rel="icon" href="data:,">
  <link rel="stylesheet" href="/playground/style.css">
</head>
<body>
  <header><nav aria-label="Endpoints">{links}</nav></header>
  <main>
    <article>
{content}
    </article>
  </main>
</body>
</html>
"""


def document_router(service: Service) -> APIRouter:
    """The routes of documents. They come before the playground's, which takes every path below ``/models``."""
    router = APIRouter()
    markdown = MarkdownIt("commonmark", {"html": False})

    @router.get("/api/openapi/queue/openapi.json")
    async def openapi(endpoint_id: str = "") -> Response:
        return JSONResponse(openapi_of(service.endpoint(endpoint_id), service.public_url))

    @router.get("/models/{endpoint_id:path}/llms.txt")
    async def llms(endpoint_id: str) -> Response:
        return PlainTextResponse(endpoint_text(service.endpoint(endpoint_id), service.public_url))

    @router.get("/models/{endpoint_id:path}/api")
    async def page(endpoint_id: str) -> Response:
        endpoint = service.endpoint(endpoint_id)
        links = "".join(f'<a href="/models/{html.escape(id)}/api">{html.escape(id)}</a>' for id in service.endpoints)
        content = markdown.render(endpoint_text(endpoint, service.public_url))
        return HTMLResponse(
            PAGE.format(title=html.escape(endpoint.title), links=links, content=content),
            headers=page_headers(service.public_url),
        )

    @router.get("/llms.txt")
    async def index() -> Response:
        return PlainTextResponse("\n".join(_index(service)))

    @router.get("/docs/llms.txt")
    async def guide() -> Response:
        return PlainTextResponse("\n".join(_guide(service)))

    return router


def endpoint_text(endpoint: Endpoint, public_url: str) -> str:
    """What there is to know of an endpoint, as Markdown."""
    inputs, outputs = input_schemas(endpoint, public_url), output_schemas(endpoint)
    input, output = inputs[input_name(endpoint)], outputs[output_name(endpoint)]
    required = _example(input, input.get("required", []))
    lines = [
        *_overview(endpoint, public_url),
        *_pricing(endpoint),
        "## API Information",
        "",
        "Call it over HTTP, or through fal's client libraries, which do the waiting.",
        "",
        "### Input Schema",
        "",
        *_fields(input, inputs),
        "**Required Parameters Example**:",
        "",
        *_code("json", _json(required)),
        "**Full Example**:",
        "",
        *_code("json", _json(_example(input, input["properties"]))),
        "### Output Schema",
        "",
        *_fields(output, outputs),
        "**Example Response**:",
        "",
        *_code("json", _json(_answer(endpoint, public_url))),
        *_usage(endpoint, public_url, required),
        *_resources(endpoint, public_url),
    ]
    return "\n".join(lines)


def _overview(endpoint: Endpoint, public_url: str) -> Iterator[str]:
    yield from (f"# {endpoint.title}", "", f"> {endpoint.description}", "", "## Overview", "")
    yield f"- **Endpoint**: `{public_url}/{endpoint.id}`"
    yield f"- **Model ID**: `{endpoint.id}`"
    yield f"- **Category**: {endpoint.category}"
    yield "- **Kind**: inference"
    yield from (f"- **Tags**: {', '.join(endpoint.tags) or 'none'}", "")


def _pricing(endpoint: Endpoint) -> Iterator[str]:
    price = endpoint.unit_price
    told = "No price is published." if price is None else f"**Price**: {price} {CURRENCY} per {endpoint.unit}"
    yield from ("## Pricing", "", f"- {told}", "")


def _fields(schema: Mapping[str, Any], others: Mapping[str, Any]) -> Iterator[str]:
    """A list of an object's fields, each with what may stand in it."""
    required = schema.get("required", [])
    for name in schema["x-fal-order-properties"]:
        field = schema["properties"][name]
        need = "required" if name in required else "optional"
        yield f"- **`{name}`** (`{_type(field)}`, _{need}_):"
        if text := field.get("description"):
            yield f"  {text}"
        yield from (f"  - {limit}" for limit in _limits(field, others))
        yield ""


def _limits(field: Mapping[str, Any], others: Mapping[str, Any]) -> Iterator[str]:
    if "default" in field:
        yield f"Default: `{json.dumps(field['default'])}`"
    if "minimum" in field or "maximum" in field:
        yield f"Range: {_bound(field, 'minimum', 'from')}{_bound(field, 'maximum', ' to')}".rstrip()
    if lengths := [
        f"{word} {field[key]}" for key, word in (("minLength", "from"), ("maxLength", "to")) if key in field
    ]:
        yield f"Length: {' '.join(lengths)} characters"
    for choice in _choices(field):
        if "enum" in choice:
            yield f"Options: {', '.join(f'`{json.dumps(option)}`' for option in choice['enum'])}"
        if "$ref" in choice:
            yield f"Fields of `{_name(choice)}`: {_object_fields(others[_name(choice)])}"
    if "example" in field:
        yield f"Examples: `{json.dumps(field['example'])}`"


def _bound(field: Mapping[str, Any], key: str, word: str) -> str:
    if key not in field:
        return ""
    outside = " (excluded)" if field.get(f"exclusive{key.capitalize()}") else ""
    return f"{word} `{field[key]}`{outside}"


def _object_fields(schema: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}` ({_type(schema['properties'][name])})" for name in schema["x-fal-order-properties"])


def _choices(field: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choices: list[Mapping[str, Any]] = field.get("anyOf") or field.get("allOf") or [field]
    return choices


def _type(field: Mapping[str, Any]) -> str:
    return " | ".join(
        _name(choice) if "$ref" in choice else "Enum" if "enum" in choice else str(choice.get("type", "any"))
        for choice in _choices(field)
    )


def _name(reference: Mapping[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _example(schema: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """An input with these fields, as far as they have a value to show; a required one is shown anyhow."""
    required = schema.get("required", [])
    fields = {name: schema["properties"][name] for name in schema["x-fal-order-properties"] if name in names}
    shown = {name: field.get("example", field.get("default")) for name, field in fields.items()}
    return {
        name: _filler(fields[name]) if value is None else value
        for name, value in shown.items()
        if value is not None or name in required
    }


def _filler(field: Mapping[str, Any]) -> Any:
    """A value for a field of which no example is given."""
    choice = _choices(field)[0]
    if "enum" in choice:
        return choice["enum"][0]
    return {"integer": 1, "number": 1.0, "boolean": True, "array": [], "object": {}}.get(choice.get("type", ""), "…")


def _answer(endpoint: Endpoint, public_url: str) -> dict[str, Any]:
    file = {
        "url": f"{public_url}/files/b/3f0c9a52d7e84b1c/clip.mp4",
        "content_type": "video/mp4",
        "file_name": "clip.mp4",
        "file_size": SAMPLE_BYTES,
    }
    return {endpoint.result_key: file, "seed": SAMPLE_SEED}


def _usage(endpoint: Endpoint, public_url: str, input: Mapping[str, Any]) -> Iterator[str]:
    body = json.dumps(input).replace("'", "'\\''")
    yield from ("## Usage Examples", "", "### cURL", "")
    yield from _code(
        "bash",
        f"curl --request POST \\\n  --url {public_url}/{endpoint.id} \\\n"
        f'  --header "Authorization: Key $FAL_KEY" \\\n  --header "Content-Type: application/json" \\\n'
        f"  --data '{body}'",
    )
    yield from ("### Python", "", "`pip install fal-client`, then `svd-serve connect -- python program.py`:", "")
    yield from _code(
        "python",
        f"import fal_client\n\nresult = fal_client.subscribe(\n    {json.dumps(endpoint.id)},\n"
        f"    arguments={_indented(_python(input))},\n    with_logs=True,\n)\n"
        f'print(result["{endpoint.result_key}"]["url"])',
    )
    yield from ("### JavaScript", "", "`npm install --save @fal-ai/client`, then:", "")
    proxy = f'{{ url: "{public_url}/api/fal/proxy", when: "always" }}'
    yield from _code(
        "javascript",
        f'import {{ fal }} from "@fal-ai/client";\n\nfal.config({{\n  credentials: process.env.FAL_KEY,\n'
        f"  proxyUrl: {proxy},\n}});\nconst {{ data }} = await fal.subscribe({json.dumps(endpoint.id)}, {{\n"
        f"  input: {_indented(_json(input), 2)},\n  logs: true,\n}});\nconsole.log(data.{endpoint.result_key}.url);",
    )


def _resources(endpoint: Endpoint, public_url: str) -> Iterator[str]:
    yield from ("## Additional Resources", "")
    yield f"- [Playground]({public_url}/models/{endpoint.id})"
    yield f"- [API documentation]({public_url}/models/{endpoint.id}/api)"
    yield f"- [OpenAPI schema]({public_url}/api/openapi/queue/openapi.json?endpoint_id={endpoint.id})"
    yield f"- [All endpoints]({public_url}/llms.txt)"
    yield from (f"- [The whole API]({public_url}/docs/llms.txt)", "")


def _code(language: str, text: str) -> Iterator[str]:
    yield from (f"```{language}", text, "```", "")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2)


def _python(value: Mapping[str, Any]) -> str:
    texts = {name: json.dumps(field) if isinstance(field, str) else repr(field) for name, field in value.items()}
    fields = "".join(f"    {json.dumps(name)}: {text},\n" for name, text in texts.items())
    return f"{{\n{fields}}}"


def _indented(text: str, by: int = 4) -> str:
    return text.replace("\n", "\n" + " " * by)


# ---------------------------------------------------------------- the indexes


def _index(service: Service) -> Iterator[str]:
    yield from ("# svd-serve", "", "> Short video clips from pictures and prompts, behind the fal.ai model API.", "")
    yield from ("## Models", "")
    for endpoint in service.endpoints.values():
        url = f"{service.public_url}/models/{endpoint.id}/llms.txt"
        yield f"- [{endpoint.title}]({url}): `{endpoint.id}`, {endpoint.category}. {endpoint.description}"
    yield from ("", "## Docs", "", f"- [The API]({service.public_url}/docs/llms.txt): queue, runs, files, platform", "")


def _guide(service: Service) -> Iterator[str]:
    url = service.public_url
    yield from ("# svd-serve: the API", "", f"> One origin, {url}, stands for all of fal's hosts.", "")
    yield from ("Callers send `Authorization: Key <id>:<secret>`. `<id>` below is an endpoint's id.", "")
    for title, lines in _GUIDE.items():
        yield from (f"## {title}", "", *(line.replace("{url}", url) for line in lines), "")
    yield from ("## Models", "")
    for id in service.endpoints:
        yield f"- [{id}]({url}/models/{id}/llms.txt)"
    yield ""


_GUIDE = {
    "Queue": (
        "- `POST {url}/queue/<id>`: submit; answers `request_id`, `status_url`, `response_url` and `cancel_url`",
        "- `GET {url}/queue/<owner>/<alias>/requests/<request_id>/status?logs=1`: how far it is",
        "- `GET {url}/queue/<owner>/<alias>/requests/<request_id>/status/stream`: the same as server-sent events",
        "- `GET {url}/queue/<owner>/<alias>/requests/<request_id>`: the result",
        "- `PUT {url}/queue/<owner>/<alias>/requests/<request_id>/cancel`: give it up",
    ),
    "Synchronous and live": (
        "- `POST {url}/<id>`: one connection, one answer",
        "- `POST {url}/<id>/stream`: progress as server-sent events; the last one is the output",
        "- `{url}/<id>/realtime`: a WebSocket",
    ),
    "Files": (
        "- `POST {url}/storage/upload/initiate`: an address to upload to, and the one that the file will have",
        "- `GET {url}/files/…`: a file",
    ),
    "Platform": (
        "- `GET {url}/v1/models`, `GET {url}/v1/models/pricing`, `POST {url}/v1/models/pricing/estimate`",
        "- `GET {url}/v1/models/usage`, `/analytics`, `/billing-events`: what was used, how fast, at what cost",
        "- `GET {url}/v1/models/requests/by-endpoint`, `/search`; `DELETE {url}/v1/models/requests/<id>/payloads`",
        "- `GET`, `POST {url}/v1/keys`, `DELETE {url}/v1/keys/<key_id>`: keys, for administrators",
        "- `GET {url}/metrics`: Prometheus, for administrators",
        "- `GET {url}/v1/serverless/metrics`: fal's gauges; `/v1/serverless/apps/<owner>/<alias>/queue`: queue size",
    ),
    "Documents": (
        "- `GET {url}/api/openapi/queue/openapi.json?endpoint_id=<id>`: OpenAPI 3.0",
        "- `GET {url}/models/<id>/llms.txt`, `GET {url}/models/<id>/api`: the same for readers",
        "- `GET {url}/models/<id>`: the playground",
    ),
}
