"""The sender of webhooks: claims what is due in the outbox, signs it, and POSTs it to where the caller wants it.

    outbox ──claim──▶ body, signature ──▶ POST ──▶ 2xx ─────────────▶ DELIVERED
      ▲                                    ├─────▶ 410, forbidden ──▶ UNDELIVERED
      └──── 5 s … 45 min later ◀───────────┘ anything else, eleven times at the most

At least once: whoever is told twice knows it by the request's id. Any number of senders may run.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deployments import logs
from deployments.errors import Unavailable
from deployments.queue.database import Database
from deployments.queue.outbox import WEBHOOK_KEYS, Delivery, Outbox, Verdict
from deployments.queue.secrets import Secret, Secrets
from deployments.web import ForbiddenURL, Reach, SafeFetcher, WebError

logger = logging.getLogger(__name__)

ATTEMPT_SECONDS = 15.0
RETRY_SECONDS = (5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 2700.0)
"""The pause after each failed attempt; with the attempts themselves, two hours at the most."""

LEASE_SECONDS = 60.0
"""When a delivery counts as lost with its sender. Longer than any attempt with what is written around it."""

AT_ONCE = 32
AT_ONCE_PER_HOST = 4

STOP_SECONDS = 5.0


class Sender:
    """Delivers webhooks."""

    def __init__(
        self,
        database: Database,
        reach: Reach | None = None,
        *,
        retry_seconds: Sequence[float] = RETRY_SECONDS,
        attempt_seconds: float = ATTEMPT_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
        poll_seconds: float = 0.25,
    ) -> None:
        """Make a sender that does nothing yet.

        Args:
            database: Where the outbox is, and the keys that sign.
            reach: Where it may deliver to; the public web, unless told otherwise.
            retry_seconds: The pause after each failed attempt, the last of which is followed by one more attempt.
            attempt_seconds: How long a receiver may take to answer.
            lease_seconds: When a delivery counts as lost with its sender.
            poll_seconds: How often it asks for what is due.
        """
        self._outbox = Outbox(database)
        self._secrets = Secrets(database)
        self._web = SafeFetcher(reach)
        self._retry_seconds = retry_seconds
        self._attempt_seconds = attempt_seconds
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        self._sending: dict[asyncio.Task[None], str] = {}
        self._stopping = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to deliver."""
        self._loop = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Claim no more, and let what is on its way arrive, for a moment. The rest is due again after its lease."""
        self._stopping.set()
        assert self._loop
        tasks = [self._loop, *self._sending]
        await asyncio.wait(tasks, timeout=STOP_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._sending, return_exceptions=True)
        await self._web.aclose()

    def check_health(self) -> None:
        """Fail when the loop has died."""
        if self._loop and self._loop.done():
            self._loop.result()

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if await self._begin_deliveries():
                    continue
            except Unavailable as error:
                logger.warning("%s: %s", error, error.__cause__)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._poll_seconds)

    async def _begin_deliveries(self) -> bool:
        """Send as much of what is due as there is room for; answer whether there was anything."""
        room = AT_ONCE - len(self._sending)
        if not room:
            return False
        busy = Counter(self._sending.values())
        deliveries = await self._outbox.claim(busy, AT_ONCE_PER_HOST, room, self._lease_seconds)
        for delivery in deliveries:
            task = asyncio.create_task(self._deliver(delivery))
            self._sending[task] = delivery.host
            task.add_done_callback(self._sending.pop)
        return bool(deliveries)

    # ---------------------------------------------------------------- one delivery

    async def _deliver(self, delivery: Delivery) -> None:
        with logs.request_context(delivery.request.id):
            try:
                verdict = await self._send(delivery)
                if verdict.error:
                    logger.warning("webhook attempt %s to %s: %s", delivery.number, delivery.host, verdict.error)
                await self._record(delivery, verdict)
            except Exception:
                logger.exception("webhook attempt %s was not made", delivery.number)  # due again after its lease

    async def _send(self, delivery: Delivery) -> Verdict:
        secret, *_ = await self._secrets.of(WEBHOOK_KEYS)
        body = body_of(delivery)
        headers = headers_of(delivery, body, secret, int(time.time()))
        try:
            status = await self._web.post(delivery.url, body, headers, self._attempt_seconds)
        except ForbiddenURL as error:
            return Verdict(None, str(error), None)
        except WebError as error:
            return Verdict(None, str(error), self._pause_after(delivery))
        if 200 <= status < 300:
            return Verdict(status)
        return Verdict(
            status, f"the receiver answered {status}", None if status == 410 else self._pause_after(delivery)
        )

    def _pause_after(self, delivery: Delivery) -> float | None:
        """How long to wait before the next attempt; None after the last. Those that failed together come back apart."""
        if delivery.number > len(self._retry_seconds):
            return None
        return self._retry_seconds[delivery.number - 1] * random.uniform(0.9, 1.0)  # noqa: S311 - no secret

    async def _record(self, delivery: Delivery, verdict: Verdict) -> None:
        """Write a verdict, however long the store is away: unwritten, it would be delivered again."""
        while True:
            try:
                if not await self._outbox.record(delivery, verdict):
                    logger.warning("webhook attempt %s does not count any more", delivery.number)
                return
            except Unavailable as error:
                logger.warning("%s: %s", error, error.__cause__)
            await asyncio.sleep(self._poll_seconds)


def body_of(delivery: Delivery) -> bytes:
    """What is POSTed, in fal's form. The payload is the model's output, or the error's body."""
    request = delivery.request
    failed = request.status_code != 200
    body: dict[str, Any] = {
        "request_id": request.id,
        "gateway_request_id": request.gateway_request_id,
        "status": "ERROR" if failed else "OK",
        "payload": json.loads(delivery.output or "null"),
    }
    if failed:
        body["error"] = f"Invalid status code: {request.status_code}"
    if delivery.output is None:
        body["payload_error"] = "The payload has been deleted"
    return json.dumps(body).encode()


def headers_of(delivery: Delivery, body: bytes, secret: Secret, timestamp: int) -> dict[bytes, bytes]:
    """Who signed what and when, in fal's headers."""
    request_id, user_id = delivery.request.id.encode(), delivery.request.key_id.encode()
    signed_at = str(timestamp).encode()
    message = b"\n".join((request_id, user_id, signed_at, hashlib.sha256(body).hexdigest().encode()))
    signature = Ed25519PrivateKey.from_private_bytes(secret.value).sign(message)
    return {
        b"Content-Type": b"application/json",
        b"X-Fal-Webhook-Request-Id": request_id,
        b"X-Fal-Webhook-User-Id": user_id,
        b"X-Fal-Webhook-Timestamp": signed_at,
        b"X-Fal-Webhook-Signature": signature.hex().encode(),
    }
