"""Keys over HTTP, for administrators, who see all of them.

    POST ──▶ a key, told once ──▶ GET · PATCH (alias, limits) · POST …/rotate (another secret, told once) ──▶ DELETE

A key's secret is in the answer that makes it, and nowhere else. Every change is a line of the audit log.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from deployments import logs
from deployments.errors import BadRequest
from deployments.gateway.auth import Caller
from deployments.gateway.bodies import read_model
from deployments.gateway.platform import Listed, Paged
from deployments.gateway.service import Service
from deployments.gateway.timeframes import utc
from deployments.queue.keys import KEEP_SECONDS, LONGEST_KEEP_SECONDS, Key, LimitChanges, Scope

Alias = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=255, pattern=r"^[^\x00]*$")]

LAST_MOMENT = datetime(9999, 1, 1, tzinfo=UTC)
"""What can be written in any time zone ends soon after."""


class KeysQuery(Paged):
    """What may be asked of the list of keys."""

    expand: Listed = Field([])


class NewKey(BaseModel):
    """A key to make. A typo would make one without the limit or the end that was meant, so it is refused."""

    model_config = ConfigDict(extra="forbid")

    alias: Alias
    scope: Scope = Field(Scope.API)
    expires_at: AwareDatetime | None = Field(None, lt=LAST_MOMENT)
    limits: LimitChanges = Field(LimitChanges())


class KeyChanges(BaseModel):
    """What of a key is to change. A typo would change nothing, so it is refused."""

    model_config = ConfigDict(extra="forbid")

    alias: Alias | None = Field(None)
    limits: LimitChanges = Field(LimitChanges())


class Rotation(BaseModel):
    """How a key is to get another secret."""

    model_config = ConfigDict(extra="forbid")

    keep_seconds: float = Field(KEEP_SECONDS, ge=0, le=LONGEST_KEEP_SECONDS)


def key_router(service: Service) -> APIRouter:
    """The routes of keys."""
    router = APIRouter(prefix="/v1/keys")
    admin = Depends(service.authenticate.admin)

    @router.get("")
    async def keys(query: Annotated[KeysQuery, Query()], caller: Caller = admin) -> Response:
        page, rest = query.cut(await service.keys.valid())
        return JSONResponse({"keys": [_told(key, "creator_info" in query.expand) for key in page], **rest})

    @router.post("")
    async def create(request: Request, caller: Caller = admin) -> Response:
        asked = await read_model(request, NewKey)
        expires_at = asked.expires_at.timestamp() if asked.expires_at else None
        if expires_at is not None and expires_at <= await service.keys.now():
            raise BadRequest("expires_at must be in the future")
        key, secret = await service.keys.create(asked.alias, asked.scope, asked.limits.limits(), expires_at)
        return _made(service, caller, "create", key, secret, 201)

    @router.patch("/{key_id}")
    async def change(key_id: str, request: Request, caller: Caller = admin) -> Response:
        known = _kept(service, key_id)
        asked = await read_model(request, KeyChanges)
        key = await service.keys.change(known, asked.limits.named(), asked.alias)
        _done(
            service, caller, "change", key.id, **asked.limits.named(), **({"alias": "another"} if asked.alias else {})
        )
        return JSONResponse(_told(key))

    @router.post("/{key_id}/rotate")
    async def rotate(key_id: str, request: Request, caller: Caller = admin) -> Response:
        known = _kept(service, key_id)
        asked = await read_model(request, Rotation) if _has_body(request) else Rotation()
        key, secret = await service.keys.rotate(known, asked.keep_seconds)
        return _made(service, caller, "rotate", key, secret, 200)

    @router.delete("/{key_id}", status_code=204)
    async def revoke(key_id: str, caller: Caller = admin) -> None:
        if await service.keys.revoke(_kept(service, key_id)):
            _done(service, caller, "revoke", key_id)

    return router


def _kept(service: Service, key_id: str) -> str:
    """The id of a key that may be in the database.

    Raises:
        BadRequest: It is the configured one's.
    """
    if key_id == service.authenticate.configured_id:
        raise BadRequest("This is the key of the server's own environment: it is changed there (SVD_ADMIN_KEY)")
    return key_id


def _has_body(request: Request) -> bool:
    return "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"


def _made(service: Service, caller: Caller, action: str, key: Key, secret: str, status: int) -> Response:
    """Tell a secret, which nobody is told again."""
    _done(service, caller, action, key.id, scope=key.scope)
    body = {"key_id": key.id, "key_secret": secret, "key": f"{key.id}:{secret}"}
    former = {"former_until": utc(key.former_until)} if action == "rotate" else {}
    return JSONResponse(_told(key) | body | former, status)


def _done(service: Service, caller: Caller, action: str, key_id: str, **details: object) -> None:
    service.authenticate.forget()
    logs.audit(f"key {caller.key_id}", action, key_id, **details)


def _told(key: Key, creator: bool = False) -> dict[str, Any]:
    told = {
        "key_id": key.id,
        "alias": key.alias,
        "scope": key.scope,
        "created_at": utc(key.created_at),
        "expires_at": utc(key.expires_at),
        "last_used_at": utc(key.last_used_at),
        "limits": asdict(key.limits),
    }
    return told | ({"creator_nickname": None, "creator_email": None} if creator else {})
