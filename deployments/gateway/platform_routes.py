"""fal's platform API (``api.fal.ai/v1``, here ``/v1``): which models there are, and what they cost.

    platform_router ──▶ models, pricing (here) · usage, history (report_routes) · costs (cost_routes)
                       keys (key_routes) · load (load_routes)

Its errors have a form of their own (``platform.error_response``).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError

from deployments.costs import MICRO
from deployments.errors import InvalidInput, NotFound
from deployments.gateway.auth import Caller
from deployments.gateway.bodies import MOST_BYTES_OF_A_FORM, read_json
from deployments.gateway.cost_routes import cost_router
from deployments.gateway.key_routes import key_router
from deployments.gateway.load_routes import load_router
from deployments.gateway.openapi import openapi_of
from deployments.gateway.platform import MOST_ENDPOINTS, EndpointId, EndpointIds, Listed, Paged
from deployments.gateway.report_routes import report_router
from deployments.gateway.runners import Runners
from deployments.gateway.service import Service, app_id
from deployments.gateway.wire import price_body
from deployments.models.base import Endpoint
from deployments.models.charges import CURRENCY, charge
from deployments.queue.reports import EVER, Selection

MOST_CALLS = 10**9


class ModelsQuery(Paged):
    """What may be asked of the list of models."""

    endpoint_id: EndpointIds = Field([])
    q: str | None = None
    category: str | None = None
    status: Literal["active", "deprecated"] | None = None
    expand: Listed = Field([])

    def wants(self, endpoint: Endpoint) -> bool:
        """Whether an endpoint is asked for. All that are served are active."""
        told = f"{endpoint.id} {endpoint.title} {endpoint.description} {' '.join(endpoint.tags)}".lower()
        return (
            (not self.endpoint_id or endpoint.id in self.endpoint_id)
            and self.category in (None, endpoint.category)
            and self.status in (None, "active")
            and all(word in told for word in (self.q or "").lower().split())
        )


class PricingQuery(Paged):
    """What may be asked of the price list."""

    endpoint_id: EndpointIds = Field([])


class Calls(BaseModel):
    """How often an endpoint is to be called."""

    call_quantity: int = Field(ge=1, le=MOST_CALLS)


class Units(BaseModel):
    """How many of its units an endpoint is to make."""

    unit_quantity: Decimal = Field(gt=0, le=MOST_CALLS, allow_inf_nan=False)


class ByCalls(BaseModel):
    """An estimate from what calls have taken so far."""

    estimate_type: Literal["historical_api_price"]
    endpoints: dict[EndpointId, Calls] = Field(min_length=1, max_length=MOST_ENDPOINTS)


class ByUnits(BaseModel):
    """An estimate from the price list."""

    estimate_type: Literal["unit_price"]
    endpoints: dict[EndpointId, Units] = Field(min_length=1, max_length=MOST_ENDPOINTS)


class Estimate(BaseModel):
    """Either of them."""

    asked: ByCalls | ByUnits = Field(discriminator="estimate_type")


def platform_router(service: Service, webhook_ip_ranges: Sequence[str], runners: Runners) -> APIRouter:
    """Every route under ``/v1`` but the files'.

    Args:
        service: The gateway's tools.
        webhook_ip_ranges: Where webhooks come from, in CIDR notation, as far as the operator has said.
        runners: Counts the replicas.
    """
    router = APIRouter()
    router.include_router(_model_router(service))
    router.include_router(report_router(service))
    router.include_router(cost_router(service))
    router.include_router(key_router(service))
    router.include_router(load_router(service, runners))

    @router.get("/v1/meta")
    async def meta() -> Response:
        return JSONResponse({"webhook_ip_ranges": list(webhook_ip_ranges)})

    @router.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def unknown(path: str, request: Request) -> Response:
        raise NotFound(f"{request.method} /v1/{path} is not part of the platform API")

    return router


def _model_router(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1/models")
    authenticated = Depends(service.authenticate)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")

    @router.get("")
    async def models(query: Annotated[ModelsQuery, Query()], request: Request) -> Response:
        if request.headers.get("authorization"):  # it is optional here, not ignored
            await service.authenticate(request)
        found = [endpoint for endpoint in service.endpoints.values() if query.wants(endpoint)]
        page, rest = query.cut(found)
        return JSONResponse({"models": [_model(service, each, query.expand, started_at) for each in page], **rest})

    @router.get("/pricing")
    async def pricing(query: Annotated[PricingQuery, Query()], caller: Caller = authenticated) -> Response:
        asked = [_known(service, id) for id in query.endpoint_id] or list(service.endpoints.values())
        page, rest = query.cut([{"endpoint_id": each.id, **price} for each in asked if (price := price_body(each))])
        return JSONResponse({"prices": page, **rest})

    @router.post("/pricing/estimate")
    async def estimate(request: Request, caller: Caller = authenticated) -> Response:
        try:
            asked = Estimate.model_validate({"asked": await read_json(request, MOST_BYTES_OF_A_FORM)}).asked
        except ValidationError as error:
            raise InvalidInput(error.errors()) from error
        costs = [await _cost(service, caller, _known(service, id), of) for id, of in asked.endpoints.items()]
        total = float(sum(costs, Decimal(0)))
        return JSONResponse({"estimate_type": asked.estimate_type, "total_cost": total, "currency": CURRENCY})

    return router


def _model(service: Service, endpoint: Endpoint, expand: Sequence[str], started_at: str) -> dict[str, Any]:
    model = {"endpoint_id": endpoint.id, "metadata": _metadata(service, endpoint, started_at)}
    if "openapi-3.0" in expand:
        model["openapi"] = openapi_of(endpoint, service.public_url)
    if "enterprise_status" in expand:
        model["enterprise_status"] = "ready"  # everything here runs on the operator's own machines
    return model


def _metadata(service: Service, endpoint: Endpoint, started_at: str) -> dict[str, Any]:
    url = service.public_url
    family = app_id(endpoint.id)
    return {
        "display_name": endpoint.title,
        "category": endpoint.category,
        "description": endpoint.description,
        "status": "active",
        "tags": list(endpoint.tags),
        "updated_at": started_at,
        "is_favorited": None,
        "thumbnail_url": f"{url}/playground/sample.jpg",
        "model_url": f"{url}/{endpoint.id}",
        "date": started_at,
        "group": {"key": family, "label": service.endpoints.get(family, endpoint).title},
        "highlighted": False,
        "kind": "inference",
        "training_endpoint_ids": [],
        "inference_endpoint_ids": [],
        "stream_url": f"{url}/{endpoint.id}/stream",
        "pinned": False,
    }


def _known(service: Service, endpoint_id: str) -> Endpoint:
    if endpoint_id not in service.endpoints:
        raise NotFound(f"Endpoint {endpoint_id} not found")
    return service.endpoints[endpoint_id]


async def _cost(service: Service, caller: Caller, endpoint: Endpoint, asked: Calls | Units) -> Decimal:
    """What an endpoint is expected to cost."""
    if endpoint.unit_price is None:
        raise NotFound(f"Endpoint {endpoint.id} has no published price")
    if isinstance(asked, Units):
        return asked.unit_quantity * endpoint.unit_price
    return asked.call_quantity * await _cost_of_a_call(service, caller, endpoint)


async def _cost_of_a_call(service: Service, caller: Caller, endpoint: Endpoint) -> Decimal:
    """The mean of the caller's calls so far; before the first one, of a call that takes a second."""
    used = await service.reports.usage(Selection(caller.sees, [endpoint.id]), EVER)
    clips = sum(each.clips for each in used)
    total = charge(endpoint, clips or 1, sum(each.gpu_micros for each in used) if clips else MICRO)
    return total.cost / (clips or 1)
