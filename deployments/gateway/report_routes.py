"""What a caller's requests came to: usage, analytics, billing events, history, and the deletion of payloads.

    query ──▶ Window (buckets) ──▶ Reports ──▶ charges ──▶ time_series, summary
    query ──▶ Selection ─────────▶ Reports ──▶ pages of billing events, or of requests with their payloads

A key sees its own requests, one with the ADMIN scope everybody's, whose they are, and what they cost us: to others that
is not there.
fal calls *cost* what is billed. So what they cost us is ``gpu_cost`` beside it, and ``cost`` only in the history, which
knows no such field of fal's.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BeforeValidator, Field, StringConstraints

from deployments.costs import NANO
from deployments.errors import BadRequest, NotFound, ServingError
from deployments.gateway.auth import Caller
from deployments.gateway.platform import EndpointIds, Listed, Paged, after, split
from deployments.gateway.service import Service
from deployments.gateway.timeframes import MAX_BUCKETS, Period, Window, utc
from deployments.models.charges import CURRENCY, billed, charge
from deployments.queue.reports import PERCENTILES, Ending, Order, Past, Selection, Speed, Used
from deployments.queue.request import InferenceRequest, RequestStatus

LARGEST_HISTORY_PAGE = 100
LARGEST_SERIES_PAGE = 10_000
LONGEST_TEXT = 500
LONGEST_SHORT_PAYLOAD = 16_384
"""Characters of a payload in a list that is to be short: all but those that have a file in them."""

_COUNTS: Mapping[str, Callable[[Speed], int]] = {
    "request_count": lambda speed: speed.requests,
    "success_count": lambda speed: speed.endings[Ending.SUCCESS],
    "user_error_count": lambda speed: speed.endings[Ending.USER_ERROR],
    "cancelled_count": lambda speed: speed.endings[Ending.CANCELLED],
    "error_count": lambda speed: speed.endings[Ending.ERROR],
}
_TIMES = {
    **{f"p{percent}_duration": ("durations", percent) for percent in PERCENTILES},
    **{f"p{percent}_prepare_duration": ("waits", percent) for percent in PERCENTILES},
}
_REQUEST_ID = re.compile(r"[0-9a-f-]{36}")


def usd(nano_usd: int) -> float:
    """An amount as answers write it."""
    return nano_usd / NANO


class InBucket(Protocol):
    """A row of a report."""

    @property
    def bucket(self) -> int:
        """The number of its bucket."""


Row = TypeVar("Row", bound=InBucket)
RequestId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f-]{36}$")]


class SeriesQuery(Window, Paged):
    """What may be asked of usage and analytics. A page is one of buckets."""

    limit: int = Field(MAX_BUCKETS, ge=1, le=LARGEST_SERIES_PAGE)
    endpoint_id: EndpointIds = Field([])
    expand: Listed = Field([])


class BillingQuery(Period, Paged):
    """What may be asked of billing events."""

    endpoint_id: EndpointIds = Field([])
    request_id: Annotated[list[RequestId], Field(max_length=LARGEST_HISTORY_PAGE), BeforeValidator(split)] = Field([])


class SearchQuery(Period, Paged):
    """What may be asked of the history."""

    limit: int = Field(50, ge=1, le=LARGEST_HISTORY_PAGE)
    endpoint_id: EndpointIds = Field([])
    request_id: Annotated[list[RequestId], Field(max_length=LARGEST_HISTORY_PAGE), BeforeValidator(split)] = Field([])
    status: Ending | None = None
    sort_by: Order = Order.ENDED_AT
    expand: Listed = Field([])
    query: Annotated[str, StringConstraints(max_length=LONGEST_TEXT, pattern=r"^[^\x00]*$")] = ""
    mine: bool = Field(False, description="Only those of the caller's own key, whatever else it may see.")


class HistoryQuery(SearchQuery):
    """The history of some endpoints."""

    endpoint_id: Annotated[EndpointIds, Field(min_length=1)]


def report_router(service: Service) -> APIRouter:
    """The routes of all reports."""
    router = APIRouter()
    authenticated = Depends(service.authenticate)

    @router.get("/v1/models/usage")
    async def usage(query: Annotated[SeriesQuery, Query()], caller: Caller = authenticated) -> Response:
        return JSONResponse(await _usage(service, query, caller))

    @router.get("/v1/models/analytics")
    async def analytics(query: Annotated[SeriesQuery, Query()], caller: Caller = authenticated) -> Response:
        return JSONResponse(await _analytics(service, query, caller))

    @router.get("/v1/models/billing-events")
    async def billing_events(query: Annotated[BillingQuery, Query()], caller: Caller = authenticated) -> Response:
        selection = _selection(query, caller, request_ids=query.request_id, ending=Ending.SUCCESS)
        page = await service.reports.outline(selection, query.limit + 1, after=query.place())
        events = [_billing_event(service, past, caller) for past in page[: query.limit]]
        return JSONResponse({"billing_events": events, **_rest(page, query)})

    @router.get("/v1/models/requests/by-endpoint")
    async def by_endpoint(query: Annotated[HistoryQuery, Query()], caller: Caller = authenticated) -> Response:
        return JSONResponse(await _history(service, query, caller))

    @router.get("/v1/models/requests/search")
    async def search(query: Annotated[SearchQuery, Query()], caller: Caller = authenticated) -> Response:
        return JSONResponse(await _history(service, query, caller))

    @router.delete("/v1/models/requests/{request_id}/payloads")
    async def delete_payloads(request_id: str, caller: Caller = authenticated) -> Response:
        return JSONResponse({"cdn_delete_results": await _delete_payloads(service, request_id, caller)})

    @router.put("/requests/delete_io/{request_id}")  # the same, as it was called before
    async def delete_io(request_id: str, caller: Caller = authenticated) -> Response:
        return JSONResponse({"CDN_DELETE_RESULTS": await _delete_payloads(service, request_id, caller)})

    return router


def _selection(query: SeriesQuery | BillingQuery | SearchQuery, caller: Caller, **more: Any) -> Selection:
    start, end = query.bounds()
    return Selection(caller.sees, query.endpoint_id, start, end, **more)


def check_expand(query: SeriesQuery | SearchQuery, known: Iterable[str]) -> set[str]:
    """What an answer is to be expanded by.

    Raises:
        BadRequest: That is not known.
    """
    if unknown := set(query.expand) - set(known):
        raise BadRequest(f"expand may name {', '.join(known)}, not {', '.join(sorted(unknown))}")
    return set(query.expand)


def _rest(page: Sequence[Past], query: Paged) -> dict[str, Any]:
    """What an answer says of the next page, when one row more than fits was asked for."""
    return after(page[query.limit - 1].place if len(page) > query.limit else None)


# ---------------------------------------------------------------- series


def edges_of(query: Window) -> list[float]:
    """Where the buckets of a query begin and end.

    Raises:
        BadRequest: That makes too many of them, or none.
    """
    try:
        return query.edges(time.time())
    except ValueError as error:
        raise BadRequest(str(error)) from error


def series(
    query: SeriesQuery, edges: Sequence[float], rows: Iterable[Row], tell: Callable[[list[Row]], list[dict[str, Any]]]
) -> dict[str, Any]:
    """A page of buckets; one in which nothing ended is there too, so that a chart has no gaps."""
    grouped: dict[int, list[Row]] = {
        bucket: list(group) for bucket, group in itertools.groupby(rows, lambda row: row.bucket)
    }
    page, rest = query.cut(range(len(edges) - 1))
    buckets = [{"bucket": query.label(edges[each]), "results": tell(grouped.get(each, []))} for each in page]
    return {"time_series": buckets, **rest}


async def _usage(service: Service, query: SeriesQuery, caller: Caller) -> dict[str, Any]:
    parts = check_expand(query, ("time_series", "summary", "auth_method")) or {"time_series"}
    if parts == {"auth_method"}:
        raise BadRequest("expand must name time_series or summary")
    edges = edges_of(query)
    selection = Selection(caller.sees, query.endpoint_id)

    def tell(rows: list[Used]) -> list[dict[str, Any]]:
        return _usage_results(service, rows, caller, by_key="auth_method" in parts)

    used = await service.reports.usage(selection, edges)
    answer = series(query, edges, used, tell)
    if "time_series" not in parts:
        answer = {"next_cursor": None, "has_more": False}
    return answer | ({"summary": tell(used)} if "summary" in parts else {})


def _usage_results(service: Service, rows: Iterable[Used], caller: Caller, by_key: bool) -> list[dict[str, Any]]:
    """One line for each endpoint, or for each endpoint and key."""

    def group(row: Used) -> tuple[str, str]:
        return row.endpoint, row.key_id if by_key else ""

    lines = []
    for (endpoint, _), members in itertools.groupby(sorted(rows, key=group), group):
        used, served = list(members), service.endpoints.get(endpoint)
        due = charge(served, sum(each.clips for each in used), sum(each.gpu_micros for each in used))
        price = sum(billed(served, each) for each in used)
        line = {"endpoint_id": endpoint, "unit": due.unit, "quantity": float(due.quantity)}
        line |= {"unit_price": float(due.unit_price or 0), "cost": usd(price), "currency": CURRENCY}
        line |= _our_cost(price, sum(each.cost_nano_usd for each in used)) if caller.is_admin else {}
        lines.append(line | ({"auth_method": used[0].alias or used[0].key_id} if by_key else {}))
    return lines


def _our_cost(price: int, cost: int) -> dict[str, float]:
    """What something cost us beside what fal calls its cost, which is its price."""
    return {"gpu_cost": usd(cost), "margin": usd(price - cost)}


async def _analytics(service: Service, query: SeriesQuery, caller: Caller) -> dict[str, Any]:
    parts = check_expand(query, ("time_series", "summary", *_COUNTS, *_TIMES))
    metrics = (parts - {"time_series", "summary"}) or {"request_count"}
    edges, timed = edges_of(query), not metrics.isdisjoint(_TIMES)
    selection = Selection(caller.sees, query.endpoint_id)

    def tell(rows: list[Speed]) -> list[dict[str, Any]]:
        return [_metrics(speed, metrics) for speed in rows]

    answer = series(query, edges, await service.reports.speed(selection, edges, timed), tell)
    if "summary" in parts:
        answer["summary"] = tell(await service.reports.speed(selection, [edges[0], edges[-1]], timed))
    return answer


def _metrics(speed: Speed, asked: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"endpoint_id": speed.endpoint}
    found |= {name: count(speed) for name, count in _COUNTS.items() if name in asked}
    times = {name: getattr(speed, kind).get(percent) for name, (kind, percent) in _TIMES.items() if name in asked}
    return found | {name: seconds if seconds is None else round(seconds, 6) for name, seconds in times.items()}


# ---------------------------------------------------------------- rows


def _price(service: Service, past: Past) -> int:
    """What a request was billed, in nano dollars."""
    if past.price_nano_usd is not None:
        return past.price_nano_usd
    is_success = 200 <= past.status_code < 300
    return charge(service.endpoints.get(past.endpoint), 1, past.gpu_micros).nano_usd if is_success else 0


def _billing_event(service: Service, past: Past, caller: Caller) -> dict[str, Any]:
    due, price = charge(service.endpoints.get(past.endpoint), 1, past.gpu_micros), _price(service, past)
    event = {
        "request_id": past.id,
        "endpoint_id": past.endpoint,
        "timestamp": utc(past.finished_at),
        "output_units": float(due.quantity),
        "unit_price": None if due.unit_price is None else float(due.unit_price),
        "percent_discount": None,
        "cost_subtotal": usd(price),
        "cost_discount": 0.0,
        "cost_total": usd(price),
        "cost_estimate_nano_usd": price,
    }
    return event | (_our_cost(price, past.cost_nano_usd) if caller.is_admin else {})


async def _history(service: Service, query: SearchQuery, caller: Caller) -> dict[str, Any]:
    parts = check_expand(query, ("payloads", "short_payloads"))
    selection = _selection(query, caller, request_ids=query.request_id, ending=query.status, text=query.query or None)
    selection = replace(selection, key_id=caller.key_id) if query.mine else selection
    what = (selection, query.limit + 1, query.sort_by, query.place())
    if parts:
        longest = None if "payloads" in parts else LONGEST_SHORT_PAYLOAD
        page = await service.reports.history(*what, longest)
    else:
        page = await service.reports.outline(*what)
    items = [_item(service, past, bool(parts), caller) for past in page[: query.limit]]
    whose = {"mine": query.mine} if caller.is_admin else {}  # to others, that is no question
    return {"items": items, **whose, **_rest(page, query)}


def _item(service: Service, past: Past, payloads: bool, caller: Caller) -> dict[str, Any]:
    item = {
        "request_id": past.id,
        "endpoint_id": past.endpoint,
        "started_at": utc(past.started_at),
        "sent_at": utc(past.created_at),
        "ended_at": utc(past.finished_at),
        "status_code": past.status_code,
        "duration": None if past.duration is None else round(past.duration, 6),
    }
    if caller.is_admin:
        price, cost = _price(service, past), past.cost_nano_usd
        item |= {"cost": usd(cost), "price": usd(price), "margin": usd(price - cost)}
        item |= {"auth_method": past.alias or past.key_id, "mine": past.key_id == caller.key_id}
    return item | ({"json_input": past.input, "json_output": past.output} if payloads else {})


async def _delete_payloads(service: Service, request_id: str, caller: Caller) -> list[dict[str, Any]]:
    """Delete what a request made and what is kept of its JSON. A second time there is nothing left to delete."""
    request = await service.store.get(request_id) if _REQUEST_ID.fullmatch(request_id) else None
    if request is None or caller.sees not in (None, request.key_id):
        raise NotFound("Request not found")
    if request.status != RequestStatus.COMPLETED:
        raise BadRequest("The request has not ended; cancel it first")
    keys = await _files_of(service, request)
    await service.files.expire(keys)
    failures = {key: await _delete_file(service, key) for key in keys}
    await service.files.forget([key for key, failure in failures.items() if failure is None])
    await service.reports.erase(request_id)
    return [{"link": service.storage.url_of(key), "exception": failure} for key, failure in failures.items()]


async def _files_of(service: Service, request: InferenceRequest) -> list[str]:
    """Keys of what a request made: the recorded ones, and those in its output that nothing is recorded of.

    A file that came before files were recorded stands in the output alone.
    """
    recorded = [file.key for file in await service.files.of_request(request.id)]
    try:
        output = {} if request.error_type else await service.store.output(request.id)
    except NotFound:
        output = {}
    urls = [value["url"] for value in output.values() if isinstance(value, dict) and "url" in value]
    named = [key for url in urls if (key := service.storage.key_of(url)) and key not in recorded]
    return recorded + [key for key in named if await service.files.get(key) is None]


async def _delete_file(service: Service, key: str) -> str | None:
    try:
        await service.storage.delete(key)
    except (ServingError, OSError):
        return "The file could not be deleted"
    return None
