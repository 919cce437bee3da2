"""What a receiver of webhooks needs: the public keys that verify their signatures (``rest.fal.ai``'s JWKS).

fal's own sample in Python decodes ``x`` without adding padding, where RFC 8037 wants none. So each key is listed in
both forms; verifiers try one after the other.
"""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from deployments.gateway.service import Service
from deployments.queue.outbox import WEBHOOK_KEYS
from deployments.queue.secrets import Secret, Secrets

CACHE_SECONDS = 300
"""Short, so that a new key is soon known."""


def webhook_router(service: Service) -> APIRouter:
    """The route of the keys, which anybody may read."""
    router = APIRouter()
    secrets = Secrets(service.store.database)

    @router.get("/.well-known/jwks.json")
    async def keys() -> Response:
        keys = [key for secret in await secrets.of(WEBHOOK_KEYS) for key in _public_keys(secret)]
        return JSONResponse({"keys": keys}, headers={"cache-control": f"public, max-age={CACHE_SECONDS}"})

    return router


def _public_keys(secret: Secret) -> list[dict[str, str]]:
    public = Ed25519PrivateKey.from_private_bytes(secret.value).public_key().public_bytes_raw()
    padded = base64.urlsafe_b64encode(public).decode()
    common = {"kty": "OKP", "crv": "Ed25519", "kid": secret.id, "alg": "EdDSA", "use": "sig"}
    return [{**common, "x": padded}, {**common, "x": padded.rstrip("=")}]
