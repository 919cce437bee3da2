"""An endpoint's OpenAPI 3.0 document, as fal publishes one, from the models that check its input.

    pydantic model ──▶ JSON schema (2020-12) ──▶ OpenAPI 3.0's dialect ──▶ components; four paths of the queue use them

OpenAPI 3.0 predates the JSON schema that pydantic writes: there is no null type but ``nullable``, an exclusive bound is
a flag beside the bound, there is one ``example``, and nothing may stand beside a ``$ref``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, create_model

from deployments.gateway.sample import SAMPLE_KEY
from deployments.models.base import Endpoint
from deployments.storage import File

VERSION = "3.0.4"
SAMPLE_SEED = 42
_SCHEMAS = "#/components/schemas/"
_SECURITY = "apiKeyAuth"

Schema = dict[str, Any]


def openapi_of(endpoint: Endpoint, public_url: str) -> dict[str, Any]:
    """The OpenAPI document of an endpoint's queue."""
    id, page = endpoint.id, f"{public_url}/models/{endpoint.id}"
    return {
        "openapi": VERSION,
        "info": {
            "title": f"Queue OpenAPI for {id}",
            "version": "1.0.0",
            "description": f"{endpoint.title}: {endpoint.description}",
            "x-fal-metadata": {
                "endpointId": id,
                "category": endpoint.category,
                "thumbnailUrl": f"{public_url}/playground/sample.jpg",
                "playgroundUrl": page,
                "documentationUrl": f"{page}/api",
            },
        },
        "components": {
            "securitySchemes": {
                _SECURITY: {"type": "apiKey", "in": "header", "name": "Authorization", "description": "Key ID:SECRET"}
            },
            "schemas": {
                "QueueStatus": _queue_status(),
                **input_schemas(endpoint, public_url),
                **output_schemas(endpoint),
            },
        },
        "paths": _paths(endpoint),
        "servers": [{"url": f"{public_url}/queue"}],
        "security": [{_SECURITY: []}],
    }


def input_name(endpoint: Endpoint) -> str:
    """The name of an endpoint's input schema: tools look for the suffix."""
    return endpoint.Input.__name__.removesuffix("Input") + "Input"


def output_name(endpoint: Endpoint) -> str:
    """The name of an endpoint's output schema."""
    return endpoint.Input.__name__.removesuffix("Input") + "Output"


def input_schemas(endpoint: Endpoint, public_url: str) -> dict[str, Schema]:
    """The schema of an endpoint's input, and those it refers to."""
    schemas = _schemas_of(endpoint.Input, input_name(endpoint))
    picture = schemas[input_name(endpoint)]["properties"].get("image_url")
    if picture is not None:
        picture.setdefault("example", f"{public_url}/files/{SAMPLE_KEY}")
    return schemas


def output_schemas(endpoint: Endpoint) -> dict[str, Schema]:
    """The schema of an endpoint's output, and those it refers to."""
    fields: dict[str, Any] = {
        endpoint.result_key: (File, Field(description="The generated video.")),
        "seed": (int, Field(description="The seed that was used.", examples=[SAMPLE_SEED])),
    }
    return _schemas_of(create_model(output_name(endpoint), **fields), output_name(endpoint))


def _schemas_of(model: type[BaseModel], name: str) -> dict[str, Schema]:
    schema = model.model_json_schema(ref_template=f"{_SCHEMAS}{{model}}")
    others = schema.pop("$defs", {})
    return {name: _ordered(_converted(schema)), **{each: _ordered(_converted(others[each])) for each in others}}


def _ordered(schema: Schema) -> Schema:
    """An object's schema with the order in which to show its fields: first what must be given."""
    if schema.get("type") != "object":
        return schema
    required = schema.get("required", [])
    names = sorted(schema["properties"], key=lambda name: name not in required)
    return {**schema, "x-fal-order-properties": names}


def _converted(schema: Schema) -> Schema:
    """A JSON schema in OpenAPI 3.0's dialect."""
    found: Schema = {}
    for word, value in schema.items():
        match word:
            case "properties":
                found[word] = {name: _converted(each) for name, each in value.items()}
            case "items" | "additionalProperties" if isinstance(value, dict):
                found[word] = _converted(value)
            case "prefixItems":
                found["items"] = {"anyOf": [_converted(each) for each in value]}
            case "anyOf" | "oneOf" | "allOf":
                found |= _combined(word, value)
            case "exclusiveMinimum" | "exclusiveMaximum":
                found |= {word.removeprefix("exclusive").lower(): value, word: True}
            case "const":
                found["enum"] = [value]
            case "examples":
                found["example"] = value[0]
            case "default" if value is None:
                pass  # what may be left out needs no default
            case _:
                found[word] = value
    beside = found.keys() - {"$ref"}
    return {"allOf": [{"$ref": found.pop("$ref")}], **found} if "$ref" in found and beside else found


def _combined(word: str, choices: list[Schema]) -> Schema:
    """Several schemas, of which the null type becomes a flag."""
    others = [_converted(choice) for choice in choices if choice != {"type": "null"}]
    flag = {"nullable": True} if len(others) < len(choices) else {}
    if len(others) > 1 or "$ref" in others[0]:
        return {word if len(others) > 1 else "allOf": others, **flag}
    return {**others[0], **flag}


def _queue_status() -> Schema:
    texts = ("request_id", "response_url", "status_url", "cancel_url")
    return _ordered(
        {
            "type": "object",
            "title": "QueueStatus",
            "properties": {
                "status": {"type": "string", "enum": ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]},
                **{name: {"type": "string"} for name in texts},
                "logs": {"type": "object", "additionalProperties": True, "nullable": True},
                "metrics": {"type": "object", "additionalProperties": True},
                "queue_position": {"type": "integer"},
            },
            "required": ["status", "request_id"],
        }
    )


def _paths(endpoint: Endpoint) -> dict[str, Any]:
    follow = f"/{endpoint.id}/requests/{{request_id}}"
    request_id = {
        "name": "request_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "description": "Request ID"},
    }
    logs = {
        "name": "logs",
        "in": "query",
        "required": False,
        "schema": {"type": "number", "description": "Whether to include logs (1) or not (0)."},
    }
    status = {"$ref": f"{_SCHEMAS}QueueStatus"}
    success = {"type": "object", "properties": {"success": {"type": "boolean"}}}
    output = {"$ref": _SCHEMAS + output_name(endpoint)}
    body = {"$ref": _SCHEMAS + input_name(endpoint)}
    return {
        f"/{endpoint.id}": {
            "post": {
                **_answers("The request is in the queue.", status),
                "requestBody": {"required": True, **_json(body)},
            },
        },
        f"{follow}/status": {"get": {"parameters": [request_id, logs], **_answers("The request's status.", status)}},
        f"{follow}/cancel": {"put": {"parameters": [request_id], **_answers("It is to be cancelled.", success)}},
        follow: {"get": {"parameters": [request_id], **_answers("The request's result.", output)}},
    }


def _answers(description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"responses": {"200": {"description": description, **_json(schema)}}}


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}
