"""What a caller is billed, in exact decimals: its endpoint's units times its endpoint's price.

    a success ──▶ price_of, when it ends ──▶ kept on its row ──▶ billed: the sum of what the rows say

Rows of code that kept no price are billed by today's price list.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Protocol

from deployments.costs import MICRO, NANO
from deployments.models.base import Endpoint

CURRENCY = "USD"
_SMALLEST_UNIT = Decimal(1) / MICRO


@dataclass(frozen=True)
class Charge:
    """An amount of one endpoint's units. ``unit_price`` is None where none is published: nothing is charged then."""

    unit: str
    quantity: Decimal
    unit_price: Decimal | None

    @property
    def cost(self) -> Decimal:
        """In USD: what it costs the caller, as fal calls it; to us it is the price."""
        return self.quantity * (self.unit_price or Decimal(0))

    @property
    def nano_usd(self) -> int:
        """The same in whole nano dollars."""
        return int((self.cost * NANO).quantize(Decimal(1), ROUND_HALF_UP))


class Billable(Protocol):
    """Successes of one endpoint: the sum of the prices that their rows keep, and how many keep none."""

    @property
    def price_nano_usd(self) -> int:
        """The sum of what is kept."""

    @property
    def unpriced_clips(self) -> int:
        """How many keep none."""

    @property
    def unpriced_micros(self) -> int:
        """Microseconds on the GPU of those."""


def charge(endpoint: Endpoint | None, clips: int, gpu_micros: int) -> Charge:
    """What so many clips cost that took so many microseconds together, at today's price.

    Of an endpoint that is no longer served nobody knows the price: its clips are counted, and cost nothing.
    """
    if endpoint is None:
        return Charge("request", Decimal(clips), None)
    units = endpoint.billable_units(gpu_micros / MICRO, clips)
    return Charge(endpoint.unit, Decimal(repr(units)).quantize(_SMALLEST_UNIT), endpoint.unit_price)


def price_of(endpoint: Endpoint, gpu_seconds: float) -> int:
    """What a success is billed in nano dollars that takes so long on the device, at today's price."""
    return charge(endpoint, 1, round(gpu_seconds * MICRO)).nano_usd


def billed(endpoint: Endpoint | None, successes: Billable) -> int:
    """What successes of an endpoint are billed together, in nano dollars."""
    unpriced = charge(endpoint, successes.unpriced_clips, successes.unpriced_micros).nano_usd
    return successes.price_nano_usd + unpriced
