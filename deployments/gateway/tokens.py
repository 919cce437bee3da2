"""Tokens: short-lived rights, signed with a secret that all processes share, so that any of them can check one.

    key ──▶ POST /storage/auth/token ──▶ CDN token      ── Bearer ────────▶ uploads
    key ──▶ POST /tokens/ ─────────────▶ app token      ── fal_jwt_token ─▶ streams and realtime of some apps
    key ──▶ POST /storage/upload/… ────▶ upload token   ── in upload_url ─▶ writing one file
    key ──▶ POST /v1/storage/files/sign ▶ reading token ── in the URL ────▶ reading one file, whatever its ACL

They are JSON Web Tokens; what each is for is its audience, and ``kid`` names the secret. None outlives its key.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import jwt
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from deployments.errors import Unauthenticated
from deployments.gateway.auth import Authenticator, Caller
from deployments.gateway.bodies import read_model
from deployments.gateway.recent import Recent
from deployments.queue.secrets import Secrets

PURPOSE = "tokens"
CDN_SECONDS = 3600
UPLOAD_SECONDS = 24 * 3600
APP_SECONDS = 120
LONGEST_APP_SECONDS = 24 * 3600
MOST_APPS = 100

_ALGORITHM = "HS256"
_REQUIRED = ("aud", "exp", "sub")


class AppTokenRequest(BaseModel):
    """The body of ``POST /tokens/`` and ``POST /tokens/realtime``."""

    allowed_apps: list[str] = Field(min_length=1, max_length=MOST_APPS)
    token_expiration: int = Field(APP_SECONDS, ge=1, le=LONGEST_APP_SECONDS)
    duration: int | None = Field(None, ge=1, le=LONGEST_APP_SECONDS)

    @property
    def seconds(self) -> int:
        """How long the token is to live."""
        return self.duration or self.token_expiration


class Tokens:
    """Signs and checks tokens."""

    def __init__(self, secrets: Secrets, is_valid: Callable[[str], Awaitable[bool]]) -> None:
        """Sign with the newest of the secrets for tokens; believe what any of them has signed.

        Args:
            secrets: All processes' secrets.
            is_valid: Answers whether a key, by its id, has neither been revoked nor expired.
        """
        self._secrets = Recent(partial(secrets.of, PURPOSE))
        self._is_valid = is_valid

    async def cdn(self, key_id: str) -> tuple[str, datetime]:
        """A token for uploads, and until when it is good."""
        return await self._sign("cdn", key_id, CDN_SECONDS), datetime.now(UTC) + timedelta(seconds=CDN_SECONDS)

    async def app(self, key_id: str, apps: Collection[str], seconds: int) -> str:
        """A token for streams and realtime of some apps: of one owner's where the owner is named, else of all.

        The official clients name none. That gives nothing away: a key may use every app that is served here.
        """
        return await self._sign("app", key_id, seconds, apps=sorted({app_of(app) for app in apps}))

    async def upload(self, key_id: str, key: str) -> str:
        """A token for writing one file."""
        return await self._sign("upload", key_id, UPLOAD_SECONDS, key=key)

    async def reading(self, key_id: str, key: str, seconds: int) -> str:
        """A token for reading one file."""
        return await self._sign("reading", key_id, seconds, key=key)

    async def verify_cdn(self, token: str) -> str:
        """Whose uploads a token allows.

        Raises:
            Unauthenticated: It is not ours, has expired or lost its key, or is for something else.
        """
        return str((await self._claims("cdn", token))["sub"])

    async def verify_app(self, token: str, endpoint_id: str) -> str:
        """For whose key a token lets its bearer use an endpoint.

        Raises:
            Unauthenticated: It is not ours, has expired or lost its key, or is for something else.
        """
        claims = await self._claims("app", token)
        if not {app_of(endpoint_id), alias_of(endpoint_id)} & set(claims["apps"]):
            raise Unauthenticated("The token is for another app")
        return str(claims["sub"])

    async def verify_upload(self, token: str, key: str) -> str:
        """For whose key a token lets its bearer write a file.

        Raises:
            Unauthenticated: It is not ours, has expired or lost its key, or is for something else.
        """
        return await self._verify_file("upload", token, key)

    async def verify_reading(self, token: str, key: str) -> str:
        """By whose leave a token lets its bearer read a file.

        Raises:
            Unauthenticated: It is not ours, has expired or lost its key, or is for something else.
        """
        return await self._verify_file("reading", token, key)

    async def _verify_file(self, audience: str, token: str, key: str) -> str:
        claims = await self._claims(audience, token)
        if claims["key"] != key:
            raise Unauthenticated("The token is for another file")
        return str(claims["sub"])

    async def _sign(self, audience: str, key_id: str, seconds: int, **claims: Any) -> str:
        newest = max(await self._secrets.all(), key=lambda secret: secret.number)
        claims |= {"aud": audience, "sub": key_id, "exp": int(time.time()) + seconds}
        return jwt.encode(claims, newest.value, _ALGORITHM, headers={"kid": newest.id})

    async def _claims(self, audience: str, token: str) -> Mapping[str, Any]:
        try:
            secret = await self._secret(str(jwt.get_unverified_header(token).get("kid")))
            options: Any = {"require": _REQUIRED}
            claims: Mapping[str, Any] = jwt.decode(token, secret, [_ALGORITHM], options, audience=audience)
        except jwt.InvalidTokenError as error:
            expired = isinstance(error, jwt.ExpiredSignatureError)
            raise Unauthenticated("The token has expired" if expired else "The token is not valid here") from None
        if not await self._is_valid(str(claims["sub"])):
            raise Unauthenticated("The key of this token has been revoked or has expired")
        return claims

    async def _secret(self, id: str) -> bytes:
        secret = await self._secrets.get(id)
        if secret is None:
            raise jwt.InvalidTokenError("an unknown secret")
        return secret.value


def app_of(app: str) -> str:
    """``owner/alias`` in an app's or endpoint's id: ``fal-ai/svd/image`` → ``fal-ai/svd``. An alias stays as it is."""
    return "/".join(app.strip("/").split("/")[:2])


def alias_of(app: str) -> str:
    """The alias in an app's or endpoint's id: ``fal-ai/svd/image`` → ``svd``. An alias stays as it is."""
    return app.strip("/").split("/")[1] if "/" in app.strip("/") else app


def token_router(authenticate: Authenticator, tokens: Tokens) -> APIRouter:
    """The routes where a key gets tokens for apps."""
    router = APIRouter(prefix="/tokens")
    authenticated = Depends(authenticate)

    async def app_token(request: Request, caller: Caller) -> str:
        asked = await read_model(request, AppTokenRequest)
        return await tokens.app(caller.key_id, asked.allowed_apps, asked.seconds)

    @router.post("")
    @router.post("/")
    async def token(request: Request, caller: Caller = authenticated) -> Response:
        return JSONResponse(await app_token(request, caller), 201)

    @router.post("/realtime")
    async def realtime_token(request: Request, caller: Caller = authenticated) -> Response:
        return JSONResponse({"token": await app_token(request, caller)})

    return router
