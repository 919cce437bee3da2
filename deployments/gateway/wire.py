"""Bodies and headers exactly as fal's clients read them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi.responses import JSONResponse

from deployments.errors import ConcurrentRequestsLimit, PlatformError, ServingError, StartTimeout
from deployments.models.base import Endpoint
from deployments.models.charges import CURRENCY
from deployments.queue.request import InferenceRequest, LogLine, RequestStatus

REQUEST_ID = "x-fal-request-id"
ERROR_TYPE = "x-fal-error-type"
BILLABLE_UNITS = "x-fal-billable-units"
TIMEOUT_TYPE = "x-fal-request-timeout-type"
RETRY_AFTER = "retry-after"

KEEPALIVE = ": keepalive\n\n"
"""A comment in a stream of events, which both clients pass over."""

KEEPALIVE_SECONDS = 15.0


def request_urls(base: str, app: str, request_id: str) -> dict[str, str]:
    """Where to follow a request. Clients use only ``owner/alias`` here, whatever they submitted to."""
    url = f"{base}/queue/{app}/requests/{request_id}"
    return {"response_url": url, "status_url": f"{url}/status", "cancel_url": f"{url}/cancel"}


def status_body(
    request: InferenceRequest, urls: Mapping[str, str], position: int | None, logs: Sequence[Mapping[str, Any]] | None
) -> dict[str, Any]:
    """The status of a request.

    Args:
        request: The request.
        urls: From ``request_urls``.
        position: How many go before it; read only while it waits.
        logs: Its log (``log_body``), or None where it was not asked for. The key is there all the same: clients insist.
    """
    body: dict[str, Any] = {
        "status": request.status,
        "request_id": request.id,
        "gateway_request_id": request.gateway_request_id,
        **urls,
        "logs": logs,
    }
    if request.status == RequestStatus.IN_QUEUE:
        body["queue_position"] = position
    if request.status == RequestStatus.COMPLETED:
        body["metrics"] = {"inference_time": request.inference_seconds}
        if request.error is not None:
            body |= {"error": request.error, "error_type": request.error_type}
    return body


def result_response(request: InferenceRequest, body: Any, units: float) -> JSONResponse:
    """The result of a completed request: the model's output with what it bills, or the error that ended it."""
    if request.error_type:
        headers = _error_headers(request.error_type if "error_type" in body else None)
    else:
        headers = {BILLABLE_UNITS: f"{units:.6f}".rstrip("0").rstrip(".")}
    return JSONResponse(body, request.status_code or 200, {REQUEST_ID: request.id, **headers})


def error_response(error: ServingError) -> JSONResponse:
    """A failure of this HTTP request itself."""
    headers = _error_headers(error.type if isinstance(error, PlatformError) else None)
    if error.status == 401:
        headers["www-authenticate"] = "Key"
    return JSONResponse(error.body(), error.status, headers | retry_headers(error))


def retry_headers(error: ServingError) -> dict[str, str]:
    """When the call that failed so may succeed, in whole seconds, where that can be said."""
    return {} if error.retry_after is None else {RETRY_AFTER: str(max(1, math.ceil(error.retry_after)))}


def event(body: Any) -> str:
    """A server-sent event. Both clients parse every one as JSON."""
    return f"data: {json.dumps(body)}\n\n"


def progress_body(line: LogLine, preview_url: str | None) -> dict[str, Any]:
    """What a line of the log tells of the work, and a picture of it where there is one."""
    body: dict[str, Any] = {"message": line.message, "progress": line.progress}
    return body | _preview(preview_url)


def log_body(line: LogLine, preview_url: str | None) -> dict[str, Any]:
    """A line of the log in a status, with how far the work was, and a picture of it, where it tells so."""
    timestamp = datetime.fromtimestamp(line.at, UTC).isoformat(timespec="microseconds")
    body: dict[str, Any] = {
        "message": line.message,
        "level": line.level,
        "source": "USER",
        "timestamp": timestamp.replace("+00:00", "Z"),
    }
    return body | ({} if line.progress is None else {"progress": line.progress}) | _preview(preview_url)


def price_body(endpoint: Endpoint) -> dict[str, Any] | None:
    """What a unit of an endpoint costs; None where no price is published."""
    if endpoint.unit_price is None:
        return None
    return {"unit_price": float(endpoint.unit_price), "unit": endpoint.unit, "currency": CURRENCY}


def _preview(url: str | None) -> dict[str, Any]:
    return {} if url is None else {"preview": {"url": url, "content_type": "image/jpeg"}}


def _error_headers(error_type: str | None) -> dict[str, str]:
    """Headers of a failure: the platform's with its type, or, without, a model's own, which no retry mends."""
    headers = {BILLABLE_UNITS: "0"}
    if error_type is None:
        return headers | {"x-fal-needs-retry": "0", "x-fal-retryable": "false"}
    headers[ERROR_TYPE] = error_type
    if error_type == StartTimeout.type:
        headers[TIMEOUT_TYPE] = "user"  # the clients do not retry a deadline that their caller set
    if error_type == ConcurrentRequestsLimit.type:
        headers["x-fal-needs-retry"] = "1"
    return headers
