"""schemathesis on every route: by the documents that the service publishes, and by one made of its routes.

    an endpoint's OpenAPI document ──┐
    app.routes ──▶ a document ───────┴──▶ good and bad requests ──▶ no fault of ours, an answer in form, keys asked for

What FastAPI does not know of a route stands here: the models of bodies that routes read themselves, and the headers.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import InvalidArgument, Unsatisfiable
from pydantic import BaseModel
from schemathesis import GenerationMode

from deployments.gateway.file_routes import FileAcl, Sign
from deployments.gateway.key_routes import NewKey
from deployments.gateway.platform_routes import ByCalls, ByUnits
from deployments.gateway.tokens import AppTokenRequest
from deployments.gateway.upload_routes import Complete, Initiate
from deployments.queue.files import Lifecycle
from tests.gateway.conftest import INPUT, SVD, URL, served_endpoints
from tests.gateway.played import Answer, Played, operations, playing

IDS = list(served_endpoints())
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND")
UNKNOWN = "00000000-0000-4000-8000-000000000000"
FILE = "b/00000000000000000000000000000000/cat.png"

PUBLIC = {
    *("/", "/health/live", "/health/ready", "/llms.txt", "/docs/llms.txt", "/.well-known/jwks.json", "/v1/meta"),
    "/favicon.ico",
    *("/models/{endpoint_id}", "/models/{endpoint_id}/api", "/models/{endpoint_id}/llms.txt", "/v1/models"),
    *("/api/openapi/queue/openapi.json", "/files/{key}", "/operator"),
}
"""What needs no key: documents, pages, signs of life, and files, which are read by their names and written by signed
URLs."""

NOTHING = {"/v1/{path}", "/playground/key"}
"""What is not there, whoever asks; the second is, for a browser of the service's own user (``test_same_user.py``)."""

BODIES: dict[str, type[BaseModel]] = {
    "POST /storage/upload/initiate": Initiate,
    "POST /storage/upload/initiate-multipart": Initiate,
    "POST /files/{key}/multipart/{upload_id}/complete": Complete,
    "PUT /v1/storage/files/acl": FileAcl,
    "POST /v1/storage/files/sign": Sign,
    "PUT /v1/storage/settings": Lifecycle,
    "POST /v1/keys": NewKey,
    "POST /tokens": AppTokenRequest,
    "POST /tokens/": AppTokenRequest,
    "POST /tokens/realtime": AppTokenRequest,
}
ESTIMATES = (ByCalls, ByUnits)
SENT_AS_THEY_ARE = (
    "/files/upload",
    "/files/upload/multipart",
    "/files/{key}",
    "/files/{key}/multipart/{upload_id}/{number}",
)

PATHS = {
    "path": ["fal-ai/svd", "fal-ai/fast-svd-lcm/text-to-video", "svd", "a/b/c"],
    "endpoint_id": ["fal-ai/svd", "fal-ai/fast-svd-lcm/text-to-video", "none"],
    "request_id": [UNKNOWN, "x", "../x"],
    "key": [FILE, "samples/landscape.jpg", "b/0", ".parts/0/1", "../../etc/passwd"],
    "upload_id": ["0" * 32, "x"],
}
HEADERS = {
    "x-fal-request-timeout": {"type": "number"},
    "x-fal-queue-priority": {"enum": ["low", "normal"]},
    "x-fal-object-lifecycle-preference": {"enum": ['{"expiration_duration_seconds": 60}', "{}"]},
    "x-fal-file-name": {"type": "string"},
    "idempotency-key": {"type": "string", "maxLength": 255},
    "range": {"type": "string", "pattern": "^bytes=[0-9]{1,3}-[0-9]{0,3}$"},
    "if-none-match": {"type": "string"},
}


def fuzz(examples: int) -> settings:
    """So many requests, always the same ones, however long each takes."""
    phases, checks = [Phase.generate], list(HealthCheck)
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=phases,
        suppress_health_check=checks,
    )


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    with playing(tmp_path_factory.mktemp("played")) as played:
        yield played
        print(f"requests tried by schemathesis: {played.tried} {dict(sorted(played.statuses.items()))}")


def send(played: Played, case: schemathesis.Case, prefix: str = "", **options: Any) -> Answer:
    """Send what schemathesis made up, as the requests library would."""
    prepared = requests.Request(**case.as_transport_kwargs(base_url=URL)).prepare()
    url = urlsplit(str(prepared.url))
    body = prepared.body.encode() if isinstance(prepared.body, str) else bytes(prepared.body or b"")
    headers = [
        (name.lower(), value if isinstance(value, bytes) else value.encode("latin-1", "replace"))
        for name, value in prepared.headers.items()
        if name.lower() not in ("authorization", "cookie", "host")
    ]
    return played.send(case.method, prefix + url.path, url.query.encode(), body, headers, **options)


# ---------------------------------------------------------------- the documents of endpoints


@pytest.mark.parametrize("id", IDS)
def test_nothing_that_a_document_lets_one_send_is_answered_by_a_fault_of_ours(played: Played, id: str) -> None:
    query = f"endpoint_id={id}".encode()
    document = played.send("GET", "/api/openapi/queue/openapi.json", query, key=None).json
    sent: Counter[tuple[str, int]] = Counter()
    for operation in schemathesis.openapi.from_dict(document).get_all_operations():
        for mode in GenerationMode:

            @fuzz(10)
            @given(case=operation.ok().as_strategy(generation_mode=mode))
            def check(case: schemathesis.Case) -> None:
                if case.path_parameters and sent.total() % 2:  # half of them for a request that is there
                    submitted = played.send(
                        "POST", f"/queue/{id}", body=json.dumps(INPUT | {"prompt": "a lake"}).encode()
                    )
                    case.path_parameters["request_id"] = submitted.json["request_id"]
                sent[case.method, send(played, case, "/queue").status] += 1

            check()
    assert {("POST", 200), ("GET", 200), ("GET", 404), ("PUT", 404)} <= set(sent)
    assert {("PUT", 202), ("PUT", 400)} & set(sent)


# ---------------------------------------------------------------- every route


def document(played: Played) -> dict[str, Any]:
    """An OpenAPI document of all routes that there are."""
    paths: dict[str, Any] = {}
    for (method, path), said in operations(played.gateway.app).items():
        operation = {
            "parameters": [*map(_parameter, said.get("parameters", [])), *_headers()],
            "responses": {"200": {}},
        }
        if method in ("POST", "PUT", "PATCH"):
            operation["requestBody"] = {"content": _body(method, path)}
        paths.setdefault(path, {})[method.lower()] = operation
    return {"openapi": "3.1.0", "info": {"title": "all", "version": "1"}, "paths": paths}


def _parameter(said: dict[str, Any]) -> dict[str, Any]:
    names = PATHS.get(said["name"]) if said["in"] == "path" else None
    return said | {"schema": {"anyOf": [{"enum": names}, {"type": "string", "minLength": 1}]}} if names else said


def _headers() -> list[dict[str, Any]]:
    return [{"name": name, "in": "header", "required": False, "schema": schema} for name, schema in HEADERS.items()]


def _body(method: str, path: str) -> dict[str, Any]:
    if path in SENT_AS_THEY_ARE:
        return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    if path in ("/queue/{path}", "/{path}", "/{path}/stream"):
        models = [endpoint.Input for endpoint in served_endpoints().values()]
    elif path.endswith("/estimate"):
        models = list(ESTIMATES)
    else:
        models = [BODIES[f"{method} {path}"]] if f"{method} {path}" in BODIES else []
    return {"application/json": {"schema": {"anyOf": [*map(_inlined, models)]} if models else {}}}


def _inlined(model: type[BaseModel]) -> dict[str, Any]:
    """A model's schema without references, which nothing of ours needs: no model holds itself."""
    schema = model.model_json_schema()
    others = schema.pop("$defs", {})

    def put_in(value: Any) -> Any:
        if isinstance(value, list):
            return [put_in(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return put_in(others[value["$ref"].rpartition("/")[2]])
        return {name: put_in(each) for name, each in value.items() if name != "discriminator"}

    inlined: dict[str, Any] = put_in(schema)
    return inlined


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_nothing_that_can_be_sent_to_any_route_is_answered_by_a_fault_of_ours(
    played: Played, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_dict(document(played))
    reached = set()
    for operation in schema.get_all_operations():

        @fuzz(6)
        @given(case=operation.ok().as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            reached.add((case.method, case.operation.path, send(played, case).status // 100))

        try:
            check()
        except (InvalidArgument, Unsatisfiable):  # there is nothing that could be wrong about it
            assert mode is GenerationMode.NEGATIVE, operation.ok().path
    if mode is GenerationMode.POSITIVE:
        asked = {each[:2] for each in reached}
        assert asked == set(operations(played.gateway.app))


def at(path: str) -> str:
    """A route's path for things that are there, or could be."""
    values = {name: choices[0] for name, choices in PATHS.items()} | {"number": "1"}
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], "x"), path)


def test_every_route_asks_for_a_key_but_those_that_are_public(played: Played) -> None:
    asked = 0
    for method, path in operations(played.gateway.app):
        if path in NOTHING or (path in PUBLIC and method in ("GET", "HEAD")):
            continue
        for key in (None, "id:wrong", "other:secret"):
            body = json.dumps(INPUT | {"prompt": "a lake"}).encode()
            answer = played.send(method, at(path), b"url=x", body, key=key)
            assert answer.status == 401, f"{method} {path} answers {answer.status} to the key {key}"
            assert answer.headers["www-authenticate"] == "Key"
            asked += 1
    assert asked > 100


def test_what_is_public_is_read_and_nothing_else(played: Played) -> None:
    known = {path for _, path in operations(played.gateway.app)}
    assert known >= PUBLIC | NOTHING | {each.partition(" ")[2] for each in BODIES}
    for path in PUBLIC - {"/files/{key}"}:
        query = f"endpoint_id={SVD}".encode()
        assert played.send("GET", at(path), query, key=None).status in (200, 307), path


def serves(route: tuple[str, str], method: str, path: str) -> bool:
    """Whether a route serves a path, which may be written as several routes are: /files/upload is a file's, too."""
    wide = re.sub(r"\\\{(path|key|endpoint_id)\\\}", ".+", re.escape(route[1]))
    return route[0] == method and bool(re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", wide), path))


def test_a_method_that_a_path_has_not_is_not_allowed_or_not_found(played: Played) -> None:
    known = set(operations(played.gateway.app))
    anything = {route for route in known if route[1] in ("/{path}", "/v1/{path}", "/queue/{path}")}  # and finds nothing
    asked = 0
    for path in sorted({path for _, path in known}):
        for method in METHODS:
            if (method, path) in known or any(serves(route, method, at(path)) for route in known - anything):
                continue
            answer = played.send(method, at(path), body=b"{}")
            asked += 1
            assert answer.status in (404, 405), f"{method} {path} answers {answer.status}"
            if answer.status == 405:
                assert answer.headers["allow"], f"{method} {path}"
    assert asked > 200
