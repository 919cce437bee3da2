"""What an attempt costs us and what its success is billed, as the dispatcher writes it on the row.

    events ──▶ (accelerator, fraction, microseconds) ──▶ USD an hour, times fraction ──▶ Cost
    success ──▶ the endpoint's price list ──▶ price

Rates may change while it runs; what has been written stays.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

from deployments.costs import Cost, nano_usd
from deployments.models.base import Endpoint
from deployments.models.charges import price_of
from deployments.models.messages import GpuTime

logger = logging.getLogger(__name__)


class Tariff:
    """The rates of accelerators and the prices of endpoints."""

    def __init__(self, endpoints: Mapping[str, Endpoint] | None = None, usd_per_hour: float | None = None) -> None:
        """Bill by the prices of these endpoints; with ``usd_per_hour``, any accelerator costs that."""
        self._endpoints = endpoints or {}
        self._usd_per_hour = usd_per_hour
        self._rates: Mapping[str, float] = {}
        self._unknown: set[str] = set()

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """From now on an hour of these accelerators costs so many USD."""
        self._rates = rates
        self._unknown.clear()

    def usd_per_hour(self, accelerator: str, fraction: float) -> float:
        """What an hour of a part of an accelerator costs; 0 where nobody has said.

        It is known by its whole name or by a word of it: the H100 is also an ``NVIDIA H100 80GB HBM3``.
        """
        if self._usd_per_hour is not None:
            return self._usd_per_hour * fraction
        words = [accelerator, *re.split(r"[^0-9A-Za-z]+", accelerator)]
        rate = next((self._rates[word] for word in words if word in self._rates), None)
        if rate is None and accelerator not in self._unknown:
            self._unknown.add(accelerator)
            logger.warning("nobody has said what an hour of %s costs: it counts as nothing", accelerator)
        return (rate or 0.0) * fraction

    def cost(self, gpu_time: Sequence[GpuTime]) -> Cost:
        """What time on devices costs; the rate is the first one's."""
        rates = [self.usd_per_hour(accelerator, fraction) for accelerator, fraction, _ in gpu_time]
        spent = (nano_usd(micros, rate) for (_, _, micros), rate in zip(gpu_time, rates, strict=True))
        return Cost(sum(spent), rates[0] if rates else None)

    def price(self, endpoint_id: str, gpu_seconds: float) -> int | None:
        """What a success is billed, in nano dollars; None of an endpoint that is not known here."""
        endpoint = self._endpoints.get(endpoint_id)
        return None if endpoint is None else price_of(endpoint, gpu_seconds)
