"""What a key may use, in the order in which it is looked at, on every road that makes work or takes files.

    call ──▶ admit: calls a second ──▶ its body ──▶ submit: USD a day ──▶ one transaction: waiting, running ──▶ a row
    body ──▶ intake: bytes a day ──▶ the file storage                └──▶ any of them: 429, and nothing is stored

Calls are counted in this process, and so are clips of a second that other processes have accepted; everything else is
counted by the database, exactly. What is remembered of keys here is forgotten, longest unused first, when it is many.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from decimal import Decimal
from typing import Generic, TypeVar

from deployments.costs import NANO
from deployments.errors import RateLimited, ServingError, SpendLimit, Unavailable, UploadLimit
from deployments.gateway.auth import Caller
from deployments.models.base import Endpoint
from deployments.models.charges import CURRENCY, billed, charge
from deployments.queue.database import uninterrupted
from deployments.queue.reports import Reports
from deployments.queue.request import InferenceRequest, NewRequest
from deployments.queue.store import RequestStore
from deployments.queue.uploaded import DAY_SECONDS, Uploaded

BURST_SECONDS = 2.0
"""So many seconds' calls may come at once, after a pause; and one in any case."""

ROUNDING = 1e-6
"""So little of a token is none: who comes exactly when it was told to is not sent away again."""

REPEATS_PER_SECOND = 1.0
REPEATS_AT_ONCE = 10.0
"""How many calls of a key that may make none now are let in to repeat one: each brings a body that is read first."""

REMEMBERED = 10_000
"""Of how many keys something is remembered."""

SPENT_SECONDS = 1.0
"""How old what a key has spent may be, as far as other processes add to it."""

PATIENCE_SECONDS = 5.0
"""How long a call waits for others of its key to be stored, which go one at a time where they have to be counted."""

UPLOAD_STEP = 8 * 1024 * 1024
"""How many bytes of a body come before they are counted that did not say how long it is."""

T = TypeVar("T")


class Newest(Generic[T]):
    """A value for each key that was used lately."""

    def __init__(self, make: Callable[[], T], most: int = REMEMBERED) -> None:
        """Make the values that are missing; hold ``most`` of them."""
        self._make = make
        self._most = most
        self._values: OrderedDict[str, T] = OrderedDict()

    def __len__(self) -> int:
        """How many are held."""
        return len(self._values)

    def of(self, key_id: str) -> T:
        """The value of a key."""
        if key_id not in self._values:
            self._values[key_id] = self._make()
            if len(self._values) > self._most:
                self._values.popitem(last=False)
        self._values.move_to_end(key_id)
        return self._values[key_id]


class Bucket:
    """Tokens that come at a rate, up to some: how many were missing when one was last taken."""

    def __init__(self) -> None:
        """Full."""
        self._missing = 0.0
        self._taken_at = float("-inf")

    def take(self, now: float, rate: float, burst: float) -> float:
        """Take a token; 0, or, where there is none, in how many seconds there will be one.

        Args:
            now: The time.
            rate: Tokens a second. It may be another one each time; no more is ever missing than there may be now.
            burst: How many there may be.
        """
        missing = max(0.0, min(self._missing, burst) - (now - self._taken_at) * rate)
        short = missing + 1 - burst
        if short > ROUNDING:
            return short / rate
        self._missing, self._taken_at = missing + 1, now
        return 0.0


class Spending:
    """What a key is billed today, as of a moment ago. Calls that add to it go one at a time."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.usd = Decimal(0)
        self.read_at = float("-inf")


class Limiter:
    """Holds keys to their limits."""

    def __init__(
        self,
        store: RequestStore,
        reports: Reports,
        endpoints: Mapping[str, Endpoint],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Count in this process and in a database.

        Args:
            store: Where requests go.
            reports: What the past has cost.
            endpoints: What they cost, by their ids.
            clock: Seconds, for what is remembered.
        """
        self._store = store
        self._reports = reports
        self._endpoints = endpoints
        self._clock = clock
        self._uploaded = Uploaded(store.database)
        self._buckets = Newest(Bucket)
        self._repeats = Newest(Bucket)
        self._turns = Newest(asyncio.Lock)
        self._spending = Newest(Spending)

    async def admit(self, caller: Caller, endpoint: Endpoint, idempotency_key: str | None = None) -> None:
        """Let a call make work, before its body is read; or repeat one that has made it.

        Whether a call repeats one is known by its body only: with an idempotency key that has been used it is let in
        to be read, but not any number of times a second.

        Raises:
            IdempotencyKeyReused: The idempotency key's first request was another one.
            RateLimited: The key makes more calls a second than it may.
        """
        rate = caller.limits.requests_per_second
        if rate is None:
            return
        seconds = self._buckets.of(caller.key_id).take(self._clock(), rate, burst_of(rate))
        if seconds and await self._store.earlier(caller.key_id, endpoint.id, idempotency_key):
            repeats = self._repeats.of(caller.key_id)
            seconds = min(seconds, repeats.take(self._clock(), REPEATS_PER_SECOND, REPEATS_AT_ONCE))
        if seconds:
            raise RateLimited(f"This key may make {rate:g} calls a second; try again in {seconds:.3g} s", seconds)

    async def submit(
        self, caller: Caller, row: NewRequest, refused: ServingError | None = None, *, synchronous: bool
    ) -> InferenceRequest:
        """As ``RequestStore.submit``, within a key's limits.

        Args:
            caller: Whose request it is.
            row: The request.
            refused: Why it has failed already, if it has.
            synchronous: Whether its caller waits for its end.

        Raises:
            IdempotencyKeyReused: The idempotency key's first request was another one.
            ConcurrentRequestsLimit: As many run as may.
            QueueFull: As many wait as may.
            SpendLimit: The day's requests are billed as much as they may be.
        """
        failure = refused.failure() if refused else None
        async with self._turn(caller, row, synchronous):
            spending = await self._within_budget(caller, row)
            if spending is None:
                earlier = await self._store.earlier(row.key_id, row.endpoint, row.idempotency_key, row.input_hash)
                return earlier or _refuse_spending(caller)
            accepted = await self._store.submit(row, failure, caller.limits, synchronous=synchronous)
            if accepted.id == row.id and not refused:
                spending.usd += self._price(row)
            return accepted

    def _turn(self, caller: Caller, row: NewRequest, synchronous: bool) -> AbstractAsyncContextManager[None]:
        """A key's turn where a request has to be counted with its others.

        They would wait for each other in the database all the same, but each of them in a connection, until there was
        none left for other keys.
        """
        limits = caller.limits
        counted = limits.max_waiting is not None or (synchronous and limits.max_running is not None)
        return _in_turn(self._turns.of(caller.key_id)) if counted or self._costs(caller, row) else nullcontext()

    def _costs(self, caller: Caller, row: NewRequest) -> bool:
        return caller.limits.usd_per_day is not None and bool(self._endpoints[row.endpoint].unit_price)

    async def _within_budget(self, caller: Caller, row: NewRequest) -> Spending | None:
        """What a key has spent, in its turn to spend what a request costs; None where it may not."""
        most = caller.limits.usd_per_day
        if most is None or not self._costs(caller, row):
            return Spending()
        spending = self._spending.of(caller.key_id)
        if self._clock() - spending.read_at >= SPENT_SECONDS:
            begun = self._clock()
            spending.usd = await self._billed(caller.key_id)
            spending.read_at = begun
        price = self._price(row)
        fits = spending.usd + price <= Decimal(str(most)) if price else spending.usd < Decimal(str(most))
        return spending if fits else None

    async def _billed(self, key_id: str) -> Decimal:
        """What a key's requests of today cost that ended well, and those that have not ended will, as far as known."""
        today = time.time() // DAY_SECONDS * DAY_SECONDS
        total = Decimal(0)
        for used in await self._reports.spending(key_id, today):
            endpoint = self._endpoints.get(used.endpoint)
            total += Decimal(billed(endpoint, used)) / NANO + charge(endpoint, used.open, 0).cost
        return total

    def _price(self, row: NewRequest) -> Decimal:
        """What a request will cost; 0 where that depends on how long it takes."""
        return charge(self._endpoints[row.endpoint], 1, 0).cost

    async def check_upload(self, caller: Caller) -> None:
        """See that a key may upload anything at all.

        Raises:
            UploadLimit: It has uploaded as much this day as it may.
        """
        most = caller.limits.upload_bytes_per_day
        if most is not None and (await self._uploaded.add(caller.key_id, 0, most)).left <= 0:
            _refuse_upload(most)

    @asynccontextmanager
    async def intake(self, caller: Caller, announced: int | None) -> AsyncIterator[Intake]:
        """Count the body of one call, which is discarded if it does not end well.

        Args:
            caller: Whose upload it is.
            announced: How many bytes are to come, where that was said.

        Raises:
            UploadLimit: The key has uploaded as much this day as it may, or would have with this.
        """
        intake = Intake(self._uploaded, caller)
        try:
            await intake.hold(announced or 0)
            yield intake
        except BaseException:
            await intake.give_back()
            raise


class Intake:
    """The bytes of one body on their way, counted before they are all there."""

    def __init__(self, uploaded: Uploaded, caller: Caller) -> None:
        """Nothing has come yet."""
        self._uploaded = uploaded
        self._key_id = caller.key_id
        self._most = caller.limits.upload_bytes_per_day
        self._held: list[tuple[int, int]] = []
        self._left = 0

    @uninterrupted
    async def hold(self, size: int) -> None:
        """Count so many bytes more. What has been counted is known here too, whoever goes away meanwhile.

        Raises:
            UploadLimit: They are more than the key may upload.
        """
        if self._most is None:
            return
        room = await self._uploaded.add(self._key_id, size, self._most)
        if room.left < 0:
            _refuse_upload(self._most)
        self._held.append((room.day, size))
        self._left = room.left

    async def count(self, pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """Pass on a body.

        Raises:
            UploadLimit: It is more than the key may upload.
        """
        received = 0
        async for piece in pieces:
            received += len(piece)
            if self._most is not None and received - self._size > min(self._left, UPLOAD_STEP):
                await self.hold(received - self._size)
            yield piece
        if received > self._size:
            await self.hold(received - self._size)

    @uninterrupted
    async def give_back(self) -> None:
        """Count nothing of it. What a database that is away goes on counting, it counts until the end of the day."""
        held, self._held = self._held, []
        with suppress(Unavailable):
            for day, size in held:
                if size:
                    await self._uploaded.take_back(self._key_id, size, day)

    @property
    def _size(self) -> int:
        return sum(size for _, size in self._held)


def burst_of(rate: float) -> float:
    """How many calls may come at once."""
    return max(1.0, BURST_SECONDS * rate)


def until_midnight() -> float:
    """Seconds until the day ends, in UTC."""
    return DAY_SECONDS - time.time() % DAY_SECONDS


@asynccontextmanager
async def _in_turn(lock: asyncio.Lock) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await lock.acquire()
    except TimeoutError:
        raise Unavailable("The request store cannot be written at the moment") from None
    try:
        yield
    finally:
        lock.release()


def _refuse_spending(caller: Caller) -> InferenceRequest:
    most = caller.limits.usd_per_day
    raise SpendLimit(
        f"The requests of this key may be billed {most:g} {CURRENCY} a day, and are; it begins anew at 00:00 UTC",
        until_midnight(),
    )


def _refuse_upload(most: int) -> None:
    raise UploadLimit(f"This key may upload {most} bytes a day; it begins anew at 00:00 UTC", until_midnight())
