"""Files: GET and HEAD with ranges and ETags (RFC 9110), as players and download tools expect; and who may read them."""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse
from pydantic import BaseModel, Field

from deployments.errors import BadRequest, NotFound, Unauthenticated
from deployments.gateway.auth import Caller
from deployments.gateway.bodies import read_model
from deployments.gateway.headers import FILE_HEADERS
from deployments.gateway.service import Service
from deployments.queue.files import Acl, Decision, FileRecord, Lifecycle
from deployments.storage import Stat, disposition_of

LONGEST_SIGNATURE = 7 * 24 * 3600

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class Sign(BaseModel):
    """The body of ``POST /v1/storage/files/sign``."""

    expiration_seconds: int = Field(ge=1, le=LONGEST_SIGNATURE)


class FileAcl(Acl):
    """The body of ``PUT /v1/storage/files/acl``: the default has to be said."""

    default: Decision


def file_router(service: Service) -> APIRouter:
    """The routes of stored files. The key in the path is the right to read, unless the file's owner said otherwise."""
    router = APIRouter(prefix="/files")

    @router.api_route("/{key:path}", methods=["GET", "HEAD"])
    async def read(key: str, request: Request) -> Response:
        file = await _readable(service, key, request)
        stat = await service.intact(key, file)
        headers = _headers(key, stat, file)
        if _lists(request.headers.get("if-none-match"), stat.etag):
            return Response(status_code=304, headers=headers)
        if request.method == "GET" and (url := await _signed(service, key, file, request)):
            return RedirectResponse(url, headers={**FILE_HEADERS, "cache-control": "no-store"})
        status, start, end = 200, 0, stat.size
        if asked := _asked_range(request, stat):
            status, start, end = 206, *_resolve(*asked, stat.size)
            if start >= end:
                return Response(status_code=416, headers={**headers, "content-range": f"bytes */{stat.size}"})
            headers["content-range"] = f"bytes {start}-{end - 1}/{stat.size}"
        headers["content-length"] = str(end - start)
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        return StreamingResponse(service.storage.read(key, start, end, stat.etag), status, headers)

    return router


def access_router(service: Service) -> APIRouter:
    """The routes by which an owner says who may read files, and for how long they are kept."""
    router = APIRouter(prefix="/v1/storage")
    authenticated = Depends(service.authenticate)

    @router.get("/files/acl")
    async def get_acl(url: str, caller: Caller = authenticated) -> Response:
        return _answer((await _own(service, url, caller)).acl or Acl())

    @router.put("/files/acl")
    async def put_acl(url: str, request: Request, caller: Caller = authenticated) -> Response:
        file = await _own(service, url, caller)
        acl = await read_model(request, FileAcl)
        await service.files.set_acl(file.key, acl)
        return _answer(acl)

    @router.post("/files/sign")
    async def sign(url: str, request: Request, caller: Caller = authenticated) -> Response:
        file = await _own(service, url, caller)
        seconds = (await read_model(request, Sign)).expiration_seconds
        query = urlencode({"token": await service.tokens.reading(caller.key_id, file.key, seconds)})
        return JSONResponse({"signed_url": f"{service.storage.url_of(file.key)}?{query}"})

    @router.get("/settings")
    async def get_settings(caller: Caller = authenticated) -> Response:
        return _answer(await service.files.defaults(caller.key_id))

    @router.put("/settings")
    async def put_settings(request: Request, caller: Caller = authenticated) -> Response:
        lifecycle = await read_model(request, Lifecycle)
        await service.files.set_defaults(caller.key_id, lifecycle)
        return _answer(lifecycle)

    return router


async def _readable(service: Service, key: str, request: Request) -> FileRecord | None:
    try:
        user = (await service.authenticate(request)).key_id
    except Unauthenticated:  # a browser or player knows no keys
        user = None
    return await service.may_read(key, user, request.query_params.get("token"))


async def _signed(service: Service, key: str, file: FileRecord | None, request: Request) -> str | None:
    """A bucket's own address of a file, where the operator wants readers to go there.

    Such an address asks nobody. So it ends with the file, and there is none where the right to read is somebody's own.
    """
    if not service.signed_seconds or (file and file.acl) or "token" in request.query_params:
        return None
    left = file.expires_at - time.time() if file and file.expires_at else service.signed_seconds
    seconds = min(service.signed_seconds, left)
    return await service.storage.signed_url(key, seconds) if seconds >= 1 else None


async def _own(service: Service, url: str, caller: Caller) -> FileRecord:
    """A caller's file by its URL."""
    key = service.storage.key_of(url)
    if key is None:
        raise BadRequest("url must be the URL of a file on this server")
    await service.storage.stat(key)
    file = await service.files.get(key)
    if file is None or file.key_id != caller.key_id or file.size is None or file.expired:
        raise NotFound("No such file")
    return file


def _headers(key: str, stat: Stat, file: FileRecord | None) -> dict[str, str]:
    content_type = file.content_type if file else stat.content_type
    headers = {
        "content-type": content_type,
        "accept-ranges": "bytes",
        "etag": stat.etag,
        "last-modified": formatdate(stat.modified, usegmt=True),
        "cache-control": _cache_control(file),
        **FILE_HEADERS,
    }
    if disposition := disposition_of(key, content_type):
        headers["content-disposition"] = disposition
    return headers


def _cache_control(file: FileRecord | None) -> str:
    if file is None or (file.acl is None and file.expires_at is None):
        return "public, max-age=31536000, immutable"
    if file.acl is not None or file.expires_at is None:
        return "private, no-cache"
    return f"public, max-age={max(0, int(file.expires_at - time.time()))}"


def _answer(said: Acl | Lifecycle) -> Response:
    return JSONResponse(said.model_dump(mode="json", by_alias=True))


def _asked_range(request: Request, stat: Stat) -> tuple[str, str] | None:
    """First and last byte as the Range header writes them; None where all of the file is to be sent."""
    match = _RANGE.fullmatch(request.headers.get("range", "") if request.method == "GET" else "")
    if not match or not any(match.groups()) or request.headers.get("if-range", stat.etag) != stat.etag:
        return None
    first, last = match.groups()
    return first, last


def _resolve(first: str, last: str, size: int) -> tuple[int, int]:
    """First byte and the byte after the last that a range means; none of the file where start is not below end."""
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(int(last) + 1, size) if last else size


def _lists(header: str | None, etag: str) -> bool:
    return header is not None and (
        header.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in header.split(",")]
    )
