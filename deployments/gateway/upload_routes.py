"""Uploads, in every form that fal's clients know (``rest.fal.ai`` and the CDN: here ``/storage`` and ``/files``).

    POST /storage/auth/token ──▶ CDN token ──┬─▶ POST /files/upload ─────────────▶ whole
                                             └─▶ POST /files/upload/multipart ─┐
    POST /storage/upload/initiate ───────────▶ PUT  <file>?token=… ────────────│─▶ whole
    POST /storage/upload/initiate-multipart ──────────────────────────────────┤
                       PUT <file>/multipart/<id>/<n> …, POST …/complete ◀──────┘──▶ whole

A body goes to the storage as it comes. The file's row is there first, so that whatever becomes of the upload, the sweep
finds it. Where several calls may write one file, one at a time does: it claims the row, and says again and again that
it is still there.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Annotated
from urllib.parse import urlencode
from uuid import uuid4

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from deployments.errors import (
    BadRequest,
    ClientCancelled,
    Conflict,
    NotFound,
    PayloadTooLarge,
    Unauthenticated,
    Unavailable,
)
from deployments.gateway.auth import Caller
from deployments.gateway.bodies import read_model
from deployments.gateway.limits import Intake
from deployments.gateway.service import Service
from deployments.queue.files import FileRecord, Lifecycle, upload_of
from deployments.storage import Stored, new_key

MOST_PARTS = 10_000
MOST_BYTES_OF_A_LIST = 2 * 1024 * 1024
"""Room for so many parts with their etags."""

WRITER_SECONDS = 30.0
"""How long a call that does not say that it goes on is taken for the writer of a file."""

CLAIM_SECONDS = 10.0
ASK_SECONDS = 0.5
"""How long a call waits for another to stop writing its file, and how often it asks."""

LONGEST_NAME_BYTES = 200
UNNAMED = "upload.bin"
UNTYPED = "application/octet-stream"
LIFECYCLE_HEADERS = ("x-fal-object-lifecycle", "x-fal-object-lifecycle-preference")

_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127}(;[\x20-\x7e]{0,127})?", re.ASCII)
_UNFIT = re.compile(r'[#%?*:|<>"\\]')

PartNumber = Annotated[int, Path(ge=1, le=MOST_PARTS)]


class Initiate(BaseModel):
    """The body of ``/storage/upload/initiate`` and ``initiate-multipart``."""

    file_name: str | None = None
    content_type: str | None = None


class UploadedPart(BaseModel):
    """One part, as the reply to it named it."""

    part_number: int = Field(alias="partNumber", ge=1, le=MOST_PARTS)
    etag: str


class Complete(BaseModel):
    """The body of ``complete``. The parts come in the order in which they were finished."""

    parts: list[UploadedPart] = Field(min_length=1, max_length=MOST_PARTS)


def upload_router(service: Service) -> APIRouter:
    """The routes of uploads. It goes before the routes of files, whose paths are any."""
    router = APIRouter()
    uploads = Uploads(service)
    authenticated, uploading = Depends(service.authenticate), Depends(uploads.caller)

    @router.post("/storage/auth/token")
    async def cdn_token(caller: Caller = authenticated) -> Response:
        token, expires_at = await service.tokens.cdn(caller.key_id)
        return JSONResponse(
            {
                "token": token,
                "token_type": "Bearer",
                "base_url": service.public_url,
                "expires_at": expires_at.isoformat(),
            }
        )

    @router.post("/storage/upload/initiate")
    async def initiate(request: Request, caller: Caller = authenticated) -> Response:
        key = await uploads.begin_named(request, caller)
        return await uploads.initiated(key, caller, "")

    @router.post("/storage/upload/initiate-multipart")
    async def initiate_multipart(request: Request, caller: Caller = authenticated) -> Response:
        key = await uploads.begin_named(request, caller)
        return await uploads.initiated(key, caller, f"/multipart/{upload_of(key)}")

    @router.post("/files/upload")
    async def upload(request: Request, caller: Caller = uploading) -> Response:
        async with uploads.intake(request, caller) as intake:
            key = await uploads.begin_headed(request, caller)
            try:
                pieces = intake.count(_pieces(request))
                await uploads.receive(key, pieces, media_type(request.headers.get("content-type")))
            except BaseException:  # nobody has been told its name
                await service.storage.delete(key)
                await service.files.forget([key])
                raise
        return JSONResponse({"access_url": service.storage.url_of(key)})

    @router.post("/files/upload/multipart")
    async def create_multipart(request: Request, caller: Caller = uploading) -> Response:
        await service.limiter.check_upload(caller)
        key = await uploads.begin_headed(request, caller)
        return JSONResponse({"access_url": service.storage.url_of(key), "uploadId": upload_of(key)})

    @router.put("/files/{key:path}/multipart/{upload_id}/{number}")
    async def put_part(key: str, upload_id: str, number: PartNumber, request: Request) -> Response:
        file = await uploads.own_unfinished(key, upload_id, request)
        async with uploads.intake(request, await service.authenticate.bearer(file.key_id)) as intake:
            pieces = intake.count(_pieces(request))
            etag = await service.storage.write_part(upload_id, number, pieces, service.max_upload_bytes)
            await uploads.discard_late(key)
        return JSONResponse({"partNumber": number, "etag": etag}, headers={"etag": etag})

    @router.post("/files/{key:path}/multipart/{upload_id}/complete")
    async def complete(key: str, upload_id: str, request: Request) -> Response:
        file = await uploads.own(key, upload_id, request)
        parts = _in_order((await read_model(request, Complete, MOST_BYTES_OF_A_LIST)).parts)
        async with uploads.writing(key) as writer:
            if writer:  # else the answer to an earlier call was lost on the way
                stored = await service.storage.join(upload_id, parts, key, service.max_upload_bytes, file.content_type)
                await uploads.finish(key, stored, writer)
        await service.storage.discard(upload_id)  # not before: a call that was cut off can be made again
        return JSONResponse({"access_url": service.storage.url_of(key)})

    @router.put("/files/{key:path}")
    async def put(key: str, request: Request) -> Response:
        file = await uploads.own_unfinished(key, None, request)
        caller = await service.authenticate.bearer(file.key_id)
        async with uploads.intake(request, caller) as intake, uploads.writing(key) as writer:
            if not writer:
                raise _finished()
            await uploads.receive(key, intake.count(_pieces(request)), file.content_type, writer)
        return JSONResponse({"file_url": service.storage.url_of(key)})

    return router


class Uploads:
    """What the forms of upload have in common."""

    def __init__(self, service: Service) -> None:
        """Work with the gateway's tools."""
        self._service = service

    async def caller(self, request: Request) -> Caller:
        """Who uploads, by a CDN token or a key (a FastAPI dependency).

        Raises:
            Unauthenticated: Neither, or none that is good.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or ":" in token:
            return await self._service.authenticate(request)
        return await self._service.authenticate.bearer(await self._service.tokens.verify_cdn(token))

    async def begin_headed(self, request: Request, caller: Caller) -> str:
        """Begin an upload that its headers describe; answer its key."""
        name = _as_utf8(request.headers.get("x-fal-file-name"))
        return await self._begin(request, caller, name, request.headers.get("content-type"))

    async def begin_named(self, request: Request, caller: Caller) -> str:
        """Begin an upload that its body describes; answer its key.

        Raises:
            UploadLimit: Its caller has uploaded as much this day as it may.
        """
        await self._service.limiter.check_upload(caller)
        asked = await read_model(request, Initiate)
        return await self._begin(request, caller, asked.file_name, asked.content_type)

    async def _begin(self, request: Request, caller: Caller, name: str | None, content_type: str | None) -> str:
        header = next((request.headers[name] for name in LIFECYCLE_HEADERS if name in request.headers), None)
        lifecycle: Lifecycle = await self._service.files.lifecycle(caller.key_id, header)
        key = new_key(clean_name(name or UNNAMED))
        await self._service.files.begin(key, caller.key_id, media_type(content_type), lifecycle)
        return key

    async def initiated(self, key: str, caller: Caller, path: str) -> Response:
        """Answer with an address that may be written by whoever knows it."""
        url = self._service.storage.url_of(key)
        query = urlencode({"token": await self._service.tokens.upload(caller.key_id, key)})
        return JSONResponse({"upload_url": f"{url}{path}?{query}", "file_url": url})

    async def own(self, key: str, upload_id: str | None, request: Request) -> FileRecord:
        """The record of a file that this request may write.

        Raises:
            NotFound: There is no such upload, or it is somebody else's.
            Unauthenticated: The request says nothing good of who makes it.
        """
        token = request.query_params.get("token")
        if token is not None:
            key_id = await self._service.tokens.verify_upload(token, key)
        elif upload_id is not None:
            key_id = (await self.caller(request)).key_id
        else:
            raise Unauthenticated("The signed URL of an upload is required")
        file = await self._service.files.get(key)
        if file is None or file.expired or file.key_id != key_id or upload_id not in (None, upload_of(key)):
            raise NotFound("No such upload")
        return file

    async def own_unfinished(self, key: str, upload_id: str | None, request: Request) -> FileRecord:
        """The same, of a file that is not whole yet: afterwards it is served as one that never changes.

        Raises:
            BadRequest: The file is whole.
            NotFound: There is no such upload, or it is somebody else's.
            Unauthenticated: The request says nothing good of who makes it.
        """
        file = await self.own(key, upload_id, request)
        if file.size is not None:
            raise _finished()
        return file

    async def discard_late(self, key: str) -> None:
        """Discard parts that arrived while their file was finished: nobody else would.

        Raises:
            BadRequest: The file is whole.
        """
        file = await self._service.files.get(key)
        if file is None or file.size is not None:
            await self._service.storage.discard(upload_of(key))
            raise _finished()

    def intake(self, request: Request, caller: Caller) -> AbstractAsyncContextManager[Intake]:
        """Count a body for whoever uploads it. One that says itself that it is too large is not read at all.

        Raises:
            PayloadTooLarge: It is larger than a file may be.
            UploadLimit: It is more than its caller may upload this day; maybe not before some of it has come.
        """
        text = request.headers.get("content-length", "")
        length = int(text) if text.isdecimal() else None
        if length is not None and length > self._service.max_upload_bytes:
            raise PayloadTooLarge(f"The file has more than {self._service.max_upload_bytes} bytes")
        return self._service.limiter.intake(caller, length)

    @asynccontextmanager
    async def writing(self, key: str) -> AsyncIterator[str | None]:
        """Write a file that other calls may want to write too; None where one of them has finished it.

        Raises:
            Conflict: Another is at it.
            NotFound: The upload has expired.
            Unavailable: The database was away for so long that another may have begun.
        """
        writer = await self._claim(key)
        if writer is None:
            yield None
            return
        try:
            async with asyncio.timeout(WRITER_SECONDS) as lease:
                renewing = asyncio.create_task(self._renew(key, writer, lease))
                try:
                    yield writer
                finally:
                    renewing.cancel()
        except BaseException as error:
            with suppress(Unavailable):  # the claim ends by itself
                await self._service.files.release(key, writer)
            if isinstance(error, TimeoutError):
                raise Unavailable("The request store cannot be written at the moment") from None
            raise

    async def _claim(self, key: str) -> str | None:
        """Become the writer of a file. A call that broke off gives it up at once, so there is some time for that."""
        writer, give_up = uuid4().hex, time.monotonic() + CLAIM_SECONDS
        while not await self._service.files.claim(key, writer, WRITER_SECONDS):
            file = await self._service.files.get(key)
            if file is None or file.expired:
                raise NotFound("No such upload")
            if file.size is not None:
                return None
            if time.monotonic() > give_up:
                raise _busy()
            await asyncio.sleep(ASK_SECONDS)
        return writer

    async def _renew(self, key: str, writer: str, lease: asyncio.Timeout) -> None:
        """Go on being the writer. It ends with the claim: then somebody else may be."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(WRITER_SECONDS / 4)
            asked = clock()
            with suppress(Unavailable):
                if await self._service.files.claim(key, writer, WRITER_SECONDS):
                    lease.reschedule(asked + WRITER_SECONDS)

    async def receive(
        self, key: str, pieces: AsyncIterator[bytes], content_type: str, writer: str | None = None
    ) -> None:
        """Store the body of a request as a file."""
        most = self._service.max_upload_bytes
        await self.finish(key, await self._service.storage.write(key, pieces, most, content_type), writer)

    async def finish(self, key: str, stored: Stored, writer: str | None = None) -> None:
        """Let a file that is whole be seen.

        Raises:
            Conflict: Another has written it meanwhile.
            NotFound: It took so long that the upload has expired.
        """
        if await self._service.files.finish(key, stored.size, stored.sha256, writer):
            return
        file = await self._service.files.get(key)
        if file and not file.expired:
            raise _busy()
        await self._service.storage.delete(key)
        raise NotFound("No such upload")


def _finished() -> BadRequest:
    return BadRequest("The upload has ended; begin another")


def _busy() -> Conflict:
    return Conflict("Another call is writing this file; try again in a moment")


def clean_name(name: str) -> str:
    """A file's name that is fit for a path: its last part, without what a shell, URL or terminal would stumble on."""
    last = re.split(r"[/\\]", name)[-1]
    printable = "".join(letter for letter in _UNFIT.sub("_", last) if letter.isprintable())
    stem, dot, suffix = printable.strip(" .").rpartition(".")
    suffix = dot + _cut(suffix, 20) if dot else _cut(suffix, LONGEST_NAME_BYTES)
    return (_cut(stem, LONGEST_NAME_BYTES - len(suffix.encode())) + suffix).strip(" .") or UNNAMED


def media_type(text: str | None) -> str:
    """What a file is served as: what was said of it, where that is a media type at all."""
    return text if text and _MEDIA_TYPE.fullmatch(text) else UNTYPED


def _cut(text: str, length: int) -> str:
    return text.encode()[:length].decode(errors="ignore")


def _as_utf8(header: str | None) -> str | None:
    """A header that was read as Latin-1, as senders of today mean it."""
    if header is None:
        return None
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _in_order(parts: Sequence[UploadedPart]) -> list[tuple[int, str]]:
    """Number and ETag of each part, sorted.

    Raises:
        BadRequest: A number is missing, or stands there twice.
    """
    ordered = sorted((part.part_number, part.etag) for part in parts)
    if [number for number, _ in ordered] != list(range(1, len(ordered) + 1)):
        raise BadRequest("The numbers of the parts must be 1, 2, 3 and so on, each once")
    return ordered


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect:  # or its connection was closed, because too little came
        raise ClientCancelled("The caller went away during the upload") from None
