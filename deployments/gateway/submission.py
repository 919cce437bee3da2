"""From an HTTP request to a row: the one road that submit and run share."""

from __future__ import annotations

import json
import math
import re
from typing import Any, TypeVar

import httpx
from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import HTTPConnection

from deployments.errors import BadRequest, InvalidInput, PayloadTooLarge, ServingError
from deployments.gateway.auth import Caller
from deployments.models.base import Endpoint
from deployments.queue.files import Lifecycle
from deployments.queue.request import NewRequest, Priority

MAX_BODY_BYTES = 28 * 1024 * 1024
"""Room for the largest picture that is read, as a data URI."""

MAX_KEPT_BYTES = 64 * 1024
"""Of a refused input, no more is kept than this."""

Model = TypeVar("Model", bound=BaseModel)

LONGEST_HEADER = 255
FALSE = ("0", "false", "no")

LONGEST_URL = 4096
SHORTEST_START_TIMEOUT = 0.1
LONGEST_START_TIMEOUT = 30 * 24 * 3600.0


async def read_json(request: Request) -> Any:
    """The body as JSON.

    Raises:
        InvalidInput: It is empty, or no JSON.
        PayloadTooLarge: It has more than ``MAX_BODY_BYTES`` bytes; the rest was not read.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"The body has more than {MAX_BODY_BYTES} bytes")
    if not body.strip():
        raise InvalidInput([{"loc": (), "msg": "Field required", "type": "missing"}])
    try:
        return from_json(bytes(body), allow_inf_nan=False)
    except ValueError as error:
        message = f"JSON decode error: {error}"
        raise InvalidInput([{"loc": (), "msg": message, "type": "json_invalid"}]) from error


async def read_model(request: Request, model: type[Model]) -> Model:
    """The body as a model.

    Raises:
        InvalidInput: It is empty, no JSON, or not what the model wants.
        PayloadTooLarge: As ``read_json``.
    """
    try:
        return model.model_validate(await read_json(request))
    except ValidationError as error:
        raise InvalidInput(error.errors()) from None


def new_request(
    endpoint: Endpoint, caller: Caller, payload: Any, request: HTTPConnection, lifecycle: Lifecycle, *, retry: bool
) -> tuple[NewRequest, ServingError | None]:
    """Check an input and describe the row to insert.

    A bad input is no error here: on fal it becomes a request that has failed, and only a synchronous run says so at
    once. So it comes back beside the row.

    Raises:
        BadRequest: A header is malformed.
    """
    common: dict[str, Any] = {
        "endpoint": endpoint.id,
        "model": endpoint.model,
        "key_id": caller.key_id,
        "priority": Priority.LOW if request.headers.get("x-fal-queue-priority") == "low" else Priority.NORMAL,
        "no_retry": not retry or request.headers.get("x-fal-no-retry", "").lower() in ("1", "true", "yes"),
        "start_timeout": _start_timeout(request),
        "idempotency_key": _short(request, "idempotency-key"),
        "runner_hint": _short(request, "x-fal-runner-hint"),
        "store_io": request.headers.get("x-fal-store-io", "").lower() not in FALSE,
        "previews": _whole_number(request, "previews"),
        "lifecycle": lifecycle.dump() if lifecycle.model_fields_set else None,
    }
    try:
        input = endpoint.Input.model_validate(payload)
        plan = endpoint.plan(input)
    except ValidationError as error:
        return NewRequest(**common, input=_kept(payload)), InvalidInput(error.errors())
    except ServingError as error:
        return NewRequest(**common, input=_kept(payload)), error
    row = NewRequest(**common, input=input.model_dump_json(), batch_key=plan.batch_key, pixel_frames=plan.pixel_frames)
    return row, None


def _short(request: HTTPConnection, header: str) -> str | None:
    text = request.headers.get(header) or None
    if text and len(text) > LONGEST_HEADER:
        raise BadRequest(f"{header} has more than {LONGEST_HEADER} characters")
    return text


def _whole_number(request: HTTPConnection, parameter: str) -> int:
    text = request.query_params.get(parameter, "0")
    if not re.fullmatch("[0-9]{1,4}", text):
        raise BadRequest(f"{parameter} must be a whole number")
    return int(text)


def webhook_of(request: Request) -> str | None:
    """Where a caller wants to hear how the request ended (``fal_webhook``), as it was written.

    Whether that address may be called shows when it is: names lead elsewhere by then.

    Raises:
        BadRequest: It is no http(s) URL.
    """
    text = request.query_params.get("fal_webhook")
    if text is None:
        return None
    try:
        url = httpx.URL(text)
        host = url.host  # decoded here, not before
    except (httpx.InvalidURL, ValueError) as error:
        raise BadRequest("fal_webhook is no URL") from error
    if url.scheme not in ("http", "https") or not host or url.userinfo:
        raise BadRequest("fal_webhook must be an http or https URL without a user name or password")
    if len(text) > LONGEST_URL:
        raise BadRequest(f"fal_webhook has more than {LONGEST_URL} characters")
    return text


def _kept(payload: Any) -> str:
    try:
        text = json.dumps(payload, allow_nan=False, ensure_ascii=False)
        return text if len(text.encode()) <= MAX_KEPT_BYTES else "null"
    except ValueError:  # infinity, or half a character: nobody could be shown it
        return "null"


def _start_timeout(request: HTTPConnection) -> float | None:
    header = request.headers.get("x-fal-request-timeout")
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not SHORTEST_START_TIMEOUT < seconds <= LONGEST_START_TIMEOUT:
        raise BadRequest(
            f"X-Fal-Request-Timeout must be a number of seconds between {SHORTEST_START_TIMEOUT} and "
            f"{LONGEST_START_TIMEOUT:.0f}"
        )
    return seconds
