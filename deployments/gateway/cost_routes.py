"""What the service costs its operator, beside what it bills: ``GET /v1/costs``, for administrators.

    query ──▶ Window (buckets) ──▶ Reports: requests by endpoint and model ──┐
                          └──────▶ Replicas: what each deployment cost ──────┴──▶ lines by endpoint, and their sums

*Cost* is what attempts took of devices, also those of failures, counted when their request ends. *Loaded cost* is what
the replicas took in the same time, whether they worked or waited. A deployment that serves several endpoints is shared
by the time that their requests had the device in the window; what nobody used is the endpoint's that it was made for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import JSONResponse

from deployments.costs import MICRO, share
from deployments.gateway.auth import Caller
from deployments.gateway.report_routes import SeriesQuery, check_expand, edges_of, series, usd
from deployments.gateway.service import Service
from deployments.models.charges import CURRENCY, billed
from deployments.queue.replicas import Loaded, Replicas
from deployments.queue.reports import Costs

PARTS = ("summary", "time_series", "replicas")


@dataclass(frozen=True)
class Line:
    """What the requests of one endpoint, or of all, came to in one bucket. Money is in nano dollars."""

    bucket: int
    endpoint: str = ""
    requests: int = 0
    successes: int = 0
    gpu_micros: int = 0
    cost: int = 0
    loaded: int = 0
    price: int = 0

    def body(self) -> dict[str, Any]:
        """The same as an answer says it. Where there was no video, nobody can say what one costs."""
        videos = self.successes
        return {
            "requests": self.requests,
            "successes": videos,
            "gpu_seconds": self.gpu_micros / MICRO,
            "cost_usd": usd(self.cost),
            "loaded_cost_usd": usd(self.loaded),
            "price_usd": usd(self.price),
            "margin_usd": usd(self.price - self.cost),
            "cost_per_video_usd": usd(round(self.cost / videos)) if videos else None,
            "loaded_cost_per_video_usd": usd(round(self.loaded / videos)) if videos else None,
        }


def cost_router(service: Service) -> APIRouter:
    """The route of costs."""
    router = APIRouter()
    admin = Depends(service.authenticate.admin)
    replicas = Replicas(service.store.database)

    @router.get("/v1/costs")
    async def costs(query: Annotated[SeriesQuery, Query()], caller: Caller = admin) -> Response:
        return JSONResponse(await _costs(service, replicas, query))

    return router


async def _costs(service: Service, replicas: Replicas, query: SeriesQuery) -> dict[str, Any]:
    parts = check_expand(query, PARTS) or {"summary"}
    edges = edges_of(query)
    cuts = edges if "time_series" in parts else [edges[0], edges[-1]]
    spent, loaded = await service.reports.costs(cuts), await replicas.loaded(cuts)
    in_all = _together(loaded)
    lines = _lines(service, query, [replace(each, bucket=0) for each in spent], in_all)
    answer: dict[str, Any] = {"next_cursor": None, "has_more": False}
    if "time_series" in parts:
        answer = series(query, edges, _lines(service, query, spent, loaded), _tell)
    answer |= {"summary": _tell(lines)} if "summary" in parts else {}
    answer |= {"replicas": [_of_replicas(each) for each in in_all]} if "replicas" in parts else {}
    return answer | {"totals": _sum(lines).body(), "currency": CURRENCY}


def _together(loaded: Iterable[Loaded]) -> list[Loaded]:
    """What was loaded in all buckets, in one: read once, so that it is what they add up to."""
    micros, nanos = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for each in loaded:
        micros[each.deployment, each.model] += each.micros
        nanos[each.deployment, each.model] += each.nano_usd
    return [Loaded(0, *place, micros[place], nanos[place]) for place in sorted(micros)]


def _lines(service: Service, query: SeriesQuery, spent: Sequence[Costs], loaded: Iterable[Loaded]) -> list[Line]:
    """One line for each bucket and endpoint of which anything ended or was loaded, in this order."""
    prices = [billed(service.endpoints.get(each.endpoint), each) for each in spent]
    lines = [
        Line(each.bucket, each.endpoint, each.requests, each.successes, each.gpu_micros, each.cost_nano_usd, 0, price)
        for each, price in zip(spent, prices, strict=True)
    ]
    lines += [Line(bucket, endpoint, loaded=cost) for (bucket, endpoint), cost in _by_endpoint(spent, loaded).items()]
    lines.sort(key=_place)
    sums = [_sum(list(members), *place) for place, members in groupby(lines, _place)]
    return [line for line in sums if not query.endpoint_id or line.endpoint in query.endpoint_id]


def _place(line: Line) -> tuple[int, str]:
    return line.bucket, line.endpoint


def _by_endpoint(spent: Iterable[Costs], loaded: Iterable[Loaded]) -> Mapping[tuple[int, str], int]:
    """What the replicas cost in nano dollars, by bucket and endpoint; the sum is what they cost together."""
    used: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    for each in spent:
        used[each.bucket, each.model][each.endpoint] += each.gpu_micros
    costs = Counter[tuple[int, str]]()
    for replicas in loaded:
        weights = +used[replicas.bucket, replicas.deployment] or {replicas.model: 1}
        parts = share(replicas.nano_usd, list(weights.values()))
        costs.update({(replicas.bucket, endpoint): part for endpoint, part in zip(weights, parts, strict=True)})
    return costs


def _sum(lines: Sequence[Line], bucket: int = 0, endpoint: str = "") -> Line:
    names = ("requests", "successes", "gpu_micros", "cost", "loaded", "price")
    return Line(bucket, endpoint, *(sum(getattr(line, name) for line in lines) for name in names))


def _tell(lines: Iterable[Line]) -> list[dict[str, Any]]:
    return [{"endpoint_id": line.endpoint, **line.body()} for line in lines]


def _of_replicas(loaded: Loaded) -> dict[str, Any]:
    return {
        "deployment": loaded.deployment,
        "replica_seconds": loaded.micros / MICRO,
        "loaded_cost_usd": usd(loaded.nano_usd),
    }
