"""Keys over HTTP, for administrators. A key's secret is in the answer that makes it, and nowhere else."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, StringConstraints

from deployments.gateway.auth import Caller
from deployments.gateway.platform import Listed, Paged
from deployments.gateway.service import Service
from deployments.gateway.submission import read_model
from deployments.gateway.timeframes import utc
from deployments.queue.keys import Key, Scope

Alias = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=255, pattern=r"^[^\x00]*$")]


class KeysQuery(Paged):
    """What may be asked of the list of keys."""

    expand: Listed = Field([])


class NewKey(BaseModel):
    """A key to make."""

    alias: Alias
    scope: Scope = Field(Scope.API)


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
        key, secret = await service.keys.create(asked.alias, asked.scope)
        service.authenticate.forget()
        return JSONResponse({"key_id": key.id, "key_secret": secret, "key": f"{key.id}:{secret}"}, 201)

    @router.delete("/{key_id}", status_code=204)
    async def revoke(key_id: str, caller: Caller = admin) -> None:
        await service.keys.revoke(key_id.replace("\x00", ""))
        service.authenticate.forget()

    return router


def _told(key: Key, creator: bool) -> dict[str, Any]:
    told = {"key_id": key.id, "alias": key.alias, "scope": key.scope, "created_at": utc(key.created_at)}
    return told | ({"creator_nickname": None, "creator_email": None} if creator else {})
