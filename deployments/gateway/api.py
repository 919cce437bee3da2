"""The FastAPI application: routes, middleware, and the one place that turns errors into responses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp

from deployments import tracing
from deployments.errors import (
    BadRequest,
    InternalError,
    InvalidInput,
    InvalidParameter,
    MethodNotAllowed,
    NotFound,
    PlatformError,
    ServingError,
)
from deployments.gateway import platform, wire
from deployments.gateway.auth import Authenticator
from deployments.gateway.document_routes import document_router
from deployments.gateway.entrance import Entrance
from deployments.gateway.file_routes import access_router, file_router
from deployments.gateway.headers import Headers
from deployments.gateway.health_routes import NotReady, health_router
from deployments.gateway.hosts import FalHosts, RequestIds
from deployments.gateway.limits import Limiter
from deployments.gateway.measured import Measured, telemetry
from deployments.gateway.metrics_routes import metrics_router
from deployments.gateway.pace import pace_router
from deployments.gateway.page_routes import page_router
from deployments.gateway.platform_routes import platform_router
from deployments.gateway.polls import Polls
from deployments.gateway.queue_routes import queue_router
from deployments.gateway.realtime_routes import realtime_router
from deployments.gateway.run_routes import run_router
from deployments.gateway.runners import Runners, no_runners
from deployments.gateway.same_user import own_key_router
from deployments.gateway.sample import keep_sample
from deployments.gateway.service import Service
from deployments.gateway.stream_routes import stream_router
from deployments.gateway.tokens import Tokens, token_router
from deployments.gateway.upload_routes import upload_router
from deployments.gateway.webhook_routes import webhook_router
from deployments.models.base import Endpoint
from deployments.queue.files import Files, Sweeper
from deployments.queue.keys import NOTE_SECONDS, Keys
from deployments.queue.reports import Reports
from deployments.queue.retention import Retention
from deployments.queue.secrets import Secrets
from deployments.queue.store import RequestStore
from deployments.queue.watch import Changes, Positions
from deployments.storage import FileStorage, without_secrets
from deployments.web import Reach

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 10.0
"""How often expired files are looked for. They are not given out meanwhile."""

DAY_SECONDS = 24 * 3600.0
RETENTION_SECONDS = 60.0
"""How often a request is looked for that is older than it is kept."""

BREATH_SECONDS = 0.05
"""Between two batches of such requests, so that nobody waits for many of them."""

CORS: dict[str, Any] = {
    "allow_methods": ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"],
    "allow_headers": ["*"],
    "expose_headers": [
        wire.REQUEST_ID,
        wire.TIMEOUT_TYPE,
        wire.ERROR_TYPE,
        wire.BILLABLE_UNITS,
        wire.RETRY_AFTER,
        "x-fal-needs-retry",
        "x-fal-retryable",
        "etag",
    ],
    "max_age": 7200,
}
"""How pages of other origins may call. Callers carry a key, never a cookie, so none is asked for."""

ANY_PATH = ("run", "submit", "unknown")
"""The routes, by their names, that take any path, and say themselves that there is no such endpoint."""

NO_HEAD = {"run", "stream", "status_stream"}
"""Routes of GET that begin or follow work, by their names: who asks for the head of an answer wants none of it."""


def create_api(
    endpoints: Mapping[str, Endpoint],
    open_store: Callable[[], Awaitable[RequestStore]],
    storage: FileStorage,
    key: str,
    public_url: str,
    not_ready: NotReady,
    poll_hold_seconds: float = 1.0,
    max_upload_bytes: int = 1024**3,
    webhook_ip_ranges: Sequence[str] = (),
    runners: Runners = no_runners,
    keep_payloads_days: float = 0.0,
    keep_requests_days: float = 0.0,
    keep_files_days: float = 0.0,
    signed_seconds: float = 0.0,
    cors_origins: Sequence[str] = ("*",),
    webhook_reach: Reach | None = None,
) -> ASGIApp:
    """The gateway's HTTP application.

    Args:
        endpoints: What is served, by fal's endpoint id.
        open_store: Opens the queue; called when the application starts, closed when it ends.
        storage: Finished files.
        key: The key that callers send.
        public_url: Our address as clients see it, without a trailing slash.
        not_ready: Behind ``/health/ready``.
        poll_hold_seconds: How long a poll is held that would be told nothing new.
        max_upload_bytes: How large an uploaded file may be.
        webhook_ip_ranges: Where webhooks come from, in CIDR notation.
        runners: Counts the replicas of each deployment.
        keep_payloads_days: When input, output and log of a request that has ended are deleted; 0 for never.
        keep_requests_days: When all that is known of it is; 0 for never.
        keep_files_days: When files are deleted that have no lifetime of their own; 0 for never.
        signed_seconds: How long a bucket's own address of a file is good for, to which its readers are sent; 0 where
            they are not.
        cors_origins: The origins of pages that may call; ``*`` for any.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store = await open_store()
        await keep_sample(storage)
        positions, changes = Positions(store), Changes(store)
        keys, reports = Keys(store.database), Reports(store.database)
        authenticate = Authenticator(key, keys)
        service = Service(
            endpoints=endpoints,
            authenticate=authenticate,
            keys=keys,
            reports=reports,
            store=store,
            limiter=Limiter(store, reports, endpoints),
            storage=storage,
            files=Files(store.database),
            tokens=Tokens(Secrets(store.database), authenticate.is_valid),
            positions=positions,
            changes=changes,
            polls=Polls(changes, positions, poll_hold_seconds),
            public_url=public_url,
            max_upload_bytes=max_upload_bytes,
            signed_seconds=signed_seconds,
            webhook_reach=webhook_reach or Reach(),
        )
        for router in (
            health_router(store, storage, not_ready),
            metrics_router(service, runners),
            document_router(service),
            pace_router(service, runners),
            own_key_router(key, public_url),
            page_router(service),  # after these: it takes every path below /models and /playground
            upload_router(service),
            file_router(service),  # after the uploads: it takes every path below /files
            access_router(service),
            platform_router(service, webhook_ip_ranges, runners),  # after it: this takes every path below /v1
            token_router(service.authenticate, service.tokens),
            queue_router(service),
            webhook_router(service),
            stream_router(service),
            realtime_router(service),
            run_router(service),  # last: it takes every path
        ):
            app.include_router(router)
        _allow_head(app)
        sweeper = Sweeper(service.files, storage, keep_files_days * DAY_SECONDS)
        retention = Retention(store.database, keep_payloads_days * DAY_SECONDS, keep_requests_days * DAY_SECONDS)
        sweepers = [asyncio.create_task(_sweep_files(sweeper)), asyncio.create_task(_sweep_rows(retention))]
        sweepers.append(asyncio.create_task(_note_uses(authenticate)))
        yield
        for sweeping in sweepers:
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping
        await changes.close()
        await store.close()
        await tracing.end_with_process()

    def answer(path: str, error: ServingError) -> Response:
        if path.startswith(platform.PREFIX):
            return platform.error_response(error, f"{public_url}/docs/llms.txt")
        return wire.error_response(error)

    app = FastAPI(title="svd-serve", lifespan=lifespan, openapi_url=None, redirect_slashes=False, telemetry=telemetry())
    _add_error_handlers(app, answer, endpoints)
    # Around the application rather than inside it, so that the answer to an unexpected error passes them too.
    calls = CORSMiddleware(FalHosts(Measured(Entrance(app, answer))), allow_origins=list(cors_origins), **CORS)
    return RequestIds(Headers(calls))


def _allow_head(app: FastAPI) -> None:
    """Let whoever may GET something ask for the head of the answer alone, whose body the server leaves out."""
    for route in iter_route_contexts(app.routes):
        if route.methods and "GET" in route.methods and route.name not in NO_HEAD:
            route.methods.add("HEAD")


async def _sweep_files(sweeper: Sweeper) -> None:
    """Delete what has expired, for as long as this process serves."""
    while True:
        try:
            more = await sweeper.sweep()
        except ServingError as error:  # the storage or the database is away, and says so itself
            logger.warning("expired files could not be deleted: %s", error)
            more = False
        except Exception:
            logger.warning("expired files could not be deleted", exc_info=True)
            more = False
        if not more:
            await asyncio.sleep(SWEEP_SECONDS)


async def _sweep_rows(retention: Retention) -> None:
    """Delete what is older than it is kept, for as long as this process serves."""
    while True:
        try:
            more = await retention.sweep()
        except Exception:
            logger.warning("requests that are too old could not be deleted", exc_info=True)
            more = False
        await asyncio.sleep(BREATH_SECONDS if more else RETENTION_SECONDS)


async def _note_uses(authenticate: Authenticator) -> None:
    """Keep when keys were last used, for as long as this process serves, and once more at its end."""
    try:
        while True:
            await asyncio.sleep(NOTE_SECONDS)
            await authenticate.note_uses()
    finally:
        await authenticate.note_uses()


def _add_error_handlers(
    app: FastAPI, answer: Callable[[str, ServingError], Response], endpoints: Collection[str]
) -> None:
    @app.exception_handler(ServingError)
    async def serving_error(request: Request, error: ServingError) -> Response:
        if error.status >= 500:
            path = without_secrets(request.url.path)
            logger.error("%s %s: %s", request.method, path, error, exc_info=error.__cause__)
        if isinstance(error, NotFound) and getattr(request.scope.get("route"), "name", None) in ANY_PATH:
            return no_such_path(request, error)
        return answer(request.url.path, error)

    @app.exception_handler(RequestValidationError)
    async def invalid_request(request: Request, error: RequestValidationError) -> Response:
        path = request.url.path
        if path.startswith(platform.PREFIX):
            return answer(path, InvalidInput([{**each, "loc": each["loc"][1:]} for each in error.errors()]))
        return answer(path, InvalidParameter(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            return no_such_path(request, NotFound("Path not found"))
        kinds: dict[int, type[PlatformError]] = {404: NotFound}
        return answer(request.url.path, kinds.get(error.status_code, BadRequest)(str(error.detail)))

    def no_such_path(request: Request, error: NotFound) -> Response:
        methods = _methods(request, endpoints)
        if not methods:
            return answer(request.url.path, error)
        said = answer(request.url.path, MethodNotAllowed(f"{request.method} is not what this path is for"))
        said.headers["allow"] = ", ".join(sorted(methods))
        return said

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, without_secrets(request.url.path), exc_info=error)
        return answer(request.url.path, InternalError("Internal error"))


def _methods(request: Request, endpoints: Collection[str]) -> set[str]:
    """The methods that a path knows. A route that takes any path has only those that end in an endpoint."""

    def has_path(route: RouteContext) -> bool:
        match, child = route.matches(request.scope)
        return match != Match.NONE and (route.name not in ANY_PATH or child["path_params"]["path"] in endpoints)

    return {
        method for each in iter_route_contexts(request.app.routes) if has_path(each) for method in each.methods or ()
    }
