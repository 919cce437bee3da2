"""The cost formula: what time on a device costs us, in whole numbers, so that sums are exact.

    seconds of a batch ──▶ share (by weight) ──▶ microseconds of a request ──▶ nano_usd ──▶ its row

*Cost* is ours, *price* is what a caller is billed; the difference is the margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

MICRO = 1_000_000
"""Microseconds in a second."""

NANO = 1_000_000_000
"""Nano dollars in a dollar."""

_MICROS_PER_HOUR = 3600 * MICRO


@dataclass(frozen=True)
class Cost:
    """What an attempt cost us: in nano USD, and the hourly rate of the part of a device that it had, where known."""

    nano_usd: int = 0
    usd_per_hour: float | None = None


NOTHING = Cost()


def nano_usd(micros: int, usd_per_hour: float) -> int:
    """What so many microseconds cost at a rate: seconds / 3600 times USD per hour, in nano dollars, rounded."""
    exact = micros * NANO * Decimal(repr(usd_per_hour)) / _MICROS_PER_HOUR
    return int(exact.quantize(Decimal(1), ROUND_HALF_UP))


def share(total: int, weights: Sequence[int]) -> list[int]:
    """Whole parts of a total, by weight, that add up to it: what rounding leaves goes to the largest remainders.

    Where all weights are zero they are taken for equal.
    """
    of = list(weights) if any(weights) else [1] * len(weights)
    parts = [divmod(total * weight, sum(of)) for weight in of]
    left = total - sum(whole for whole, _ in parts)
    rounded_up = set(sorted(range(len(of)), key=lambda index: -parts[index][1])[:left])
    return [whole + (index in rounded_up) for index, (whole, _) in enumerate(parts)]
