"""The campaign's clients: each submits, looks, cancels, and writes down what it was told before it goes on.

    submit ─▶ invoke ─▶ ok (an id) | fail (refused) | unknown ─ idempotency key ─▶ invoke …

What a client has written as ok is a promise that the service has made. Clients speak raw HTTP: the official ones have
tests of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from loadtest.chaos.journal import Journal
from loadtest.chaos.payload import FAILS, INVALID, LAST_GOOD, Payload
from loadtest.chaos.service import ENDPOINT

POLLED_AT_ONCE = 2
RETRY_SECONDS = 0.5
TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True)
class Key:
    """A key that clients send."""

    id: str
    secret: str


@dataclass
class Special:
    """A value of ``motion_bucket_id`` that the nemesis asks for, and whether the service has acknowledged it."""

    motion: int
    acknowledged: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Shared:
    """What the clients have in common.

    Attributes:
        url: Of the service.
        webhook: Where it is to tell.
        left: How many requests are still to be submitted.
        window: How many a client has open at once.
        special: What the next submits are to ask for.
        known: Ids by key, for looking at what belongs to others.
    """

    url: str
    webhook: str
    left: int
    window: int
    special: deque[Special] = field(default_factory=deque)
    known: dict[str, list[str]] = field(default_factory=dict)
    seeds: int = 0
    stopping: bool = False


class Client:
    """One client with one key and one journal."""

    def __init__(self, name: str, key: Key, shared: Shared, journal: Path, dice: random.Random) -> None:
        """Do nothing yet."""
        self._name = name
        self._key = key
        self._shared = shared
        self._journal = Journal(journal)
        self._dice = dice
        self._open: deque[str] = deque()
        self._cancels: set[asyncio.Task[None]] = set()
        self._http = httpx.AsyncClient(
            base_url=shared.url,
            headers={"authorization": f"Key {key.id}:{key.secret}"},
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
        )

    async def run(self) -> None:
        """Submit and look until there is nothing left to submit, or the campaign stops."""
        async with self._http:
            looking = asyncio.create_task(self._look())
            try:
                await self._submit_all(looking)
                if looking.done():
                    looking.result()  # it never ends by itself
            finally:
                looking.cancel()
                await asyncio.gather(looking, *self._cancels, return_exceptions=True)
                self._journal.close()

    async def _submit_all(self, looking: asyncio.Task[None]) -> None:
        while not self._shared.stopping and not looking.done():
            if len(self._open) >= self._shared.window or self._shared.left <= 0:
                await asyncio.sleep(0.05)
                continue
            self._shared.left -= 1
            await self._submit()

    # ---------------------------------------------------------------- submit

    async def _submit(self) -> None:
        dice = self._dice
        special = self._shared.special.popleft() if self._shared.special else None
        self._shared.seeds += 1
        payload = Payload(
            self._shared.seeds,
            special.motion if special else self._motion(),
            round(dice.random(), 3),
            (dice.randrange(256), dice.randrange(256), dice.randrange(256)),
        )
        headers = {"x-fal-queue-priority": "low"} if dice.random() < 0.2 else {}
        if dice.random() < 0.5:
            headers["idempotency-key"] = f"{self._name}-{payload.seed}"
        if dice.random() < 0.03:
            headers["x-fal-no-retry"] = "1"
        webhook = {"fal_webhook": self._shared.webhook} if dice.random() < 0.3 else {}
        request_id = await self._submit_until_known(payload, headers, webhook)
        if special and request_id:
            special.acknowledged.set()
        elif special:
            self._shared.special.appendleft(special)  # it may be there; another one surely will be
        if request_id:
            self._open.append(request_id)
            self._shared.known.setdefault(self._key.id, []).append(request_id)
            if dice.random() < 0.08 and not special:
                self._cancel_later(request_id)

    def _motion(self) -> int:
        chance = self._dice.random()
        return INVALID if chance < 0.02 else FAILS if chance < 0.04 else self._dice.randint(1, LAST_GOOD)

    async def _submit_until_known(
        self, payload: Payload, headers: dict[str, str], webhook: dict[str, str]
    ) -> str | None:
        """The accepted request's id; None where it was refused, or where nobody can say and asking again is unsafe."""
        meant = {
            "payload": payload.dump(),
            "key_id": self._key.id,
            "low": "x-fal-queue-priority" in headers,
            "webhook": bool(webhook),
            "idempotency": headers.get("idempotency-key"),
            "no_retry": "x-fal-no-retry" in headers,
        }
        while not self._shared.stopping:
            self._journal.write("submit", n=payload.seed, **meant)
            outcome, request_id, why = await self._post(payload, headers, webhook)
            self._journal.write(outcome, n=payload.seed, request_id=request_id, why=why)
            if outcome != "unknown" or "idempotency-key" not in headers:
                return request_id
            await asyncio.sleep(RETRY_SECONDS)
        return None

    async def _post(
        self, payload: Payload, headers: dict[str, str], webhook: dict[str, str]
    ) -> tuple[str, str | None, str]:
        try:
            answer = await self._http.post(f"/queue/{ENDPOINT}", json=payload.body, headers=headers, params=webhook)
            if answer.is_success:
                return "ok", answer.json()["request_id"], ""
        except (httpx.HTTPError, ValueError, KeyError) as error:
            return "unknown", None, type(error).__name__
        return ("fail" if answer.is_client_error else "unknown"), None, str(answer.status_code)

    # ---------------------------------------------------------------- look

    async def _look(self) -> None:
        while True:
            if not self._open:
                await asyncio.sleep(0.1)
                continue
            some = [self._open.popleft() for _ in range(min(POLLED_AT_ONCE, len(self._open)))]
            ended = await asyncio.gather(*(self._poll(each) for each in some))
            self._open.extendleft(each for each, has in reversed(list(zip(some, ended, strict=True))) if not has)
            if self._dice.random() < 0.05:
                await self._peek()
            await asyncio.sleep(0.05)

    async def _poll(self, request_id: str) -> bool:
        """Look at a request; True when it needs no more looks."""
        sent = time.time()
        answer = await self._get(f"/queue/{ENDPOINT}/requests/{request_id}/status")
        if answer is None or answer.status_code not in (200, 202, 404):
            return False
        seen = answer.json()
        status = seen["status"] if answer.status_code != 404 else None
        self._journal.write(
            "seen", request_id=request_id, sent=sent, status=status, position=seen.get("queue_position")
        )
        if status == "COMPLETED" and self._dice.random() < 0.5:
            await self._fetch(request_id)
        return status in (None, "COMPLETED")

    async def _fetch(self, request_id: str) -> None:
        answer = await self._get(f"/queue/{ENDPOINT}/requests/{request_id}")
        if answer is not None and answer.headers.get("x-fal-error-type") != "internal_error":  # not an answer yet
            body = answer.json()
            video = body.get("video") or {}
            self._journal.write(
                "result",
                request_id=request_id,
                status_code=answer.status_code,
                seed=body.get("seed"),
                url=video.get("url"),
            )

    async def _peek(self) -> None:
        """Look at somebody else's request: it must not be there."""
        others = [id for key, ids in self._shared.known.items() if key != self._key.id for id in ids[-20:]]
        if not others:
            return
        request_id = self._dice.choice(others)
        answer = await self._get(f"/queue/{ENDPOINT}/requests/{request_id}/status")
        if answer is not None:
            self._journal.write("peek", key_id=self._key.id, request_id=request_id, status_code=answer.status_code)

    async def _get(self, path: str) -> httpx.Response | None:
        """An answer; None where there was none."""
        try:
            return await self._http.get(path)
        except httpx.HTTPError:
            await asyncio.sleep(RETRY_SECONDS)
            return None

    # ---------------------------------------------------------------- cancel

    def _cancel_later(self, request_id: str) -> None:
        task = asyncio.create_task(self._cancel(request_id, self._dice.choice((0.0, 0.0, 1.0, 4.0))))
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)

    async def _cancel(self, request_id: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._journal.write("cancel", request_id=request_id)
        with contextlib.suppress(httpx.HTTPError):
            await self._http.put(f"/queue/{ENDPOINT}/requests/{request_id}/cancel")


async def make_keys(url: str, admin: str, names: list[str]) -> list[Key]:
    """Keys of the service's own."""
    keys = []
    async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Key {admin}"}, trust_env=False) as http:
        for name in names:
            made = (await http.post("/v1/keys", json={"alias": name}, timeout=30)).raise_for_status().json()
            keys.append(Key(made["key_id"], made["key_secret"]))
    return keys
