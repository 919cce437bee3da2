"""What a clip costs, in exact decimals: its endpoint's units times its endpoint's price."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from deployments.models.base import Endpoint
from deployments.queue.reports import MICRO

CURRENCY = "USD"
NANO = Decimal(10**9)
_SMALLEST_UNIT = Decimal(1) / MICRO


@dataclass(frozen=True)
class Charge:
    """An amount of one endpoint's units. ``unit_price`` is None where none is published: nothing is charged then."""

    unit: str
    quantity: Decimal
    unit_price: Decimal | None

    @property
    def cost(self) -> Decimal:
        """In USD."""
        return self.quantity * (self.unit_price or Decimal(0))

    @property
    def nano_usd(self) -> int:
        """The cost in whole thousand millionths of a dollar."""
        return int((self.cost * NANO).quantize(Decimal(1), ROUND_HALF_UP))


def charge(endpoint: Endpoint | None, clips: int, gpu_micros: int) -> Charge:
    """What so many clips cost that took so many microseconds together.

    Of an endpoint that is no longer served nobody knows the price: its clips are counted, and cost nothing.
    """
    if endpoint is None:
        return Charge("request", Decimal(clips), None)
    units = endpoint.billable_units(gpu_micros / MICRO, clips)
    return Charge(endpoint.unit, Decimal(repr(units)).quantize(_SMALLEST_UNIT), endpoint.unit_price)
