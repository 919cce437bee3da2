"""From an HTTP request to a row: the one road that submit and run share."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.requests import HTTPConnection

from deployments import tracing
from deployments.errors import BadRequest, InvalidInput, InvalidParameter, ServingError
from deployments.gateway.auth import Caller
from deployments.gateway.bodies import read_json
from deployments.models.base import Endpoint
from deployments.queue.files import Lifecycle
from deployments.queue.request import NewRequest, Priority
from deployments.web import ForbiddenURL, Reach

MAX_KEPT_BYTES = 64 * 1024
"""Of a refused input, no more is kept than this."""

NO_INPUT = {"fal_jwt_token", "fal_max_queue_length", "fal_webhook", "previews"}
"""Parameters by which a call says how it is to be served, and by whose leave. Inputs are kept and shown again."""

LONGEST_HEADER = 255
FALSE = ("0", "false", "no")

SHORTEST_START_TIMEOUT = 0.1
LONGEST_START_TIMEOUT = 30 * 24 * 3600.0


async def read_input(request: Request) -> Any:
    """The input of a call: its body; or, of a GET, its query without what is no input.

    Raises:
        ClientCancelled: As ``read_json``.
        InvalidInput: As ``read_json``.
        PayloadTooLarge: As ``read_json``.
        RequestTimeout: As ``read_json``.
    """
    if request.method != "GET":
        return await read_json(request)
    return {name: value for name, value in request.query_params.items() if name not in NO_INPUT}


def new_request(
    endpoint: Endpoint, caller: Caller, payload: Any, request: HTTPConnection, lifecycle: Lifecycle, *, retry: bool
) -> tuple[NewRequest, ServingError | None]:
    """Check an input and describe the row to insert.

    A bad input is no error here: on fal it becomes a request that has failed, and only a synchronous run says so at
    once. So it comes back beside the row.

    Raises:
        BadRequest: A header is malformed.
    """
    idempotency_key = _short(request, "idempotency-key")
    common: dict[str, Any] = {
        "endpoint": endpoint.id,
        "model": endpoint.model,
        "key_id": caller.key_id,
        "priority": Priority.LOW if request.headers.get("x-fal-queue-priority") == "low" else Priority.NORMAL,
        "no_retry": not retry or request.headers.get("x-fal-no-retry", "").lower() in ("1", "true", "yes"),
        "start_timeout": _start_timeout(request),
        "idempotency_key": idempotency_key,
        "input_hash": _hash(payload) if idempotency_key else None,
        "runner_hint": _short(request, "x-fal-runner-hint"),
        "store_io": request.headers.get("x-fal-store-io", "").lower() not in FALSE,
        "previews": _whole_number(request, "previews"),
        "lifecycle": lifecycle.dump() if lifecycle.model_fields_set else None,
        "traceparent": tracing.current(),
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


def webhook_of(request: Request, reach: Reach) -> str | None:
    """Where a caller wants to hear how the request ended (``fal_webhook``), as it was written.

    Whether a name may be called shows when it is: it leads elsewhere by then.

    Raises:
        InvalidParameter: It is no http(s) URL, or one that may not be called whatever its name leads to.
    """
    text = request.query_params.get("fal_webhook")
    if text is None:
        return None
    try:
        reach.check(text)
    except ForbiddenURL as error:
        wrong = {"loc": ("query", "fal_webhook"), "msg": f"It cannot be called: {error}", "type": "value_error"}
        raise InvalidParameter([wrong]) from error
    return text


def _hash(payload: Any) -> str:
    """The same for the same JSON, however it is written."""
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


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
