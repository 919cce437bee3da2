"""Files: GET and HEAD with ranges and ETags (RFC 9110), as players and download tools expect."""

from __future__ import annotations

import re
from email.utils import formatdate
from mimetypes import guess_type

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from deployments.gateway.service import Service
from deployments.storage import Stat

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_PLAYABLE = ("video/", "image/png", "image/jpeg", "image/webp")


def file_router(service: Service) -> APIRouter:
    """The routes of stored files. The key in the path is the right to read."""
    router = APIRouter(prefix="/files")

    @router.api_route("/{key:path}", methods=["GET", "HEAD"])
    async def read(key: str, request: Request) -> Response:
        stat = await service.storage.stat(key)
        headers = _headers(key, stat)
        if _lists(request.headers.get("if-none-match"), stat.etag):
            return Response(status_code=304, headers=headers)
        status, start, end = 200, 0, stat.size
        if asked := _asked_range(request, stat):
            status, start, end = 206, *_resolve(*asked, stat.size)
            if start >= end:
                return Response(status_code=416, headers={**headers, "content-range": f"bytes */{stat.size}"})
            headers["content-range"] = f"bytes {start}-{end - 1}/{stat.size}"
        headers["content-length"] = str(end - start)
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        return StreamingResponse(service.storage.read(key, start, end), status, headers)

    return router


def _headers(key: str, stat: Stat) -> dict[str, str]:
    headers = {
        "content-type": guess_type(key)[0] or stat.content_type,
        "accept-ranges": "bytes",
        "etag": stat.etag,
        "last-modified": formatdate(stat.modified, usegmt=True),
        "cache-control": "public, max-age=31536000, immutable",
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox",
    }
    if not stat.content_type.startswith(_PLAYABLE):
        headers["content-disposition"] = "attachment"
    return headers


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
