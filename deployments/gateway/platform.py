"""What the routes under ``/v1`` share: the form of their errors, lists in queries, and pages.

{"error": {"type", "message", "docs_url", "request_id"}}    {"…": […], "next_cursor": …, "has_more": …}
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar
from uuid import uuid4

from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, Field, FiniteFloat, StringConstraints, TypeAdapter, ValidationError

from deployments import logs
from deployments.errors import BadRequest, ServingError
from deployments.gateway import wire
from deployments.queue.reports import Place

PREFIX = "/v1/"
MOST_ENDPOINTS = 50
LONGEST_CURSOR = 200
LARGEST_PAGE = 1000

_TYPES = {401: "authorization_error", 403: "authorization_error", 404: "not_found", 429: "rate_limited"}
_PLACE = TypeAdapter(tuple[FiniteFloat, Annotated[int, Field(ge=0, lt=2**63)]])
_NUMBER = TypeAdapter(Annotated[int, Field(ge=0, lt=2**31)])

T = TypeVar("T")


def error_response(error: ServingError, docs_url: str) -> JSONResponse:
    """A failure in the platform API's form; whatever is wrong with the request is a 400 there."""
    status = 400 if error.status in (413, 422) else error.status
    kind = _TYPES.get(status, "server_error" if status >= 500 else "validation_error")
    request_id = logs.request_id() or str(uuid4())
    body = {"type": kind, "message": error.message, "docs_url": docs_url, "request_id": request_id}
    headers = {wire.REQUEST_ID: request_id, wire.BILLABLE_UNITS: "0", **wire.retry_headers(error)}
    if status == 401:
        headers["www-authenticate"] = "Key"
    return JSONResponse({"error": body}, status, headers)


def split(values: Any) -> Any:
    """Values of a repeated parameter, each of which may be several with commas between them."""
    if not isinstance(values, list):
        return values
    return [part.strip() for value in values for part in str(value).split(",") if part.strip()]


EndpointId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{1,200}$")]
Listed = Annotated[list[str], BeforeValidator(split)]
EndpointIds = Annotated[list[EndpointId], Field(max_length=MOST_ENDPOINTS), BeforeValidator(split)]
Cursor = Annotated[str, StringConstraints(max_length=LONGEST_CURSOR)]


class Paged(BaseModel):
    """A query for one page of a list."""

    limit: int = Field(50, ge=1, le=LARGEST_PAGE)
    cursor: Cursor | None = None

    def number(self) -> int:
        """Which page, from 0, of a list whose pages are numbered.

        Raises:
            BadRequest: The cursor is none of ours.
        """
        return 0 if self.cursor is None else _read(self.cursor, _NUMBER)

    def place(self) -> Place | None:
        """Where the page before this one ended, of a list that grows.

        Raises:
            BadRequest: The cursor is none of ours.
        """
        return None if self.cursor is None else Place(*_read(self.cursor, _PLACE))

    def cut(self, items: Sequence[T]) -> tuple[Sequence[T], dict[str, Any]]:
        """This page of a whole list, and what its answer says of the next."""
        number = self.number()
        page = items[number * self.limit : (number + 1) * self.limit]
        more = len(items) > (number + 1) * self.limit
        return page, following(_write(number + 1, _NUMBER) if more else None)


def after(place: Place | None) -> dict[str, Any]:
    """What the answer says of the page after a place; None, there is none."""
    return following(None if place is None else _write((place.value, place.seq), _PLACE))


def following(cursor: str | None) -> dict[str, Any]:
    """What an answer says of the next page."""
    return {"next_cursor": cursor, "has_more": cursor is not None}


def _write(value: T, adapter: TypeAdapter[T]) -> str:
    return base64.urlsafe_b64encode(adapter.dump_json(value)).decode()


def _read(cursor: str, adapter: TypeAdapter[T]) -> T:
    try:
        return adapter.validate_json(base64.b64decode(cursor, altchars=b"-_", validate=True))
    except (binascii.Error, ValidationError, ValueError) as error:
        raise BadRequest("cursor must be the next_cursor of an earlier answer") from error
