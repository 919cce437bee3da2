"""Windows of time, cut into buckets as a calendar on somebody's wall has them.

    start, end, timezone, timeframe ──▶ edges (Unix seconds) ──▶ SQL counts what ended between two of them

A day has 23 or 25 hours where the clocks change, and an hour may have 30 or 90 minutes; a month is a month. So edges
are found on the wall clock of the time zone, never by adding seconds.
"""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from enum import StrEnum
from functools import cache
from typing import Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BaseModel, model_validator

MAX_BUCKETS = 1500
"""Buckets in one answer: a day of minutes, two months of hours, four years of days."""

DEFAULT_SECONDS = 24 * 3600.0
FIRST_YEAR, LAST_YEAR = 1970, 2199


class Timeframe(StrEnum):
    """What one bucket spans."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


_HOUR = 3600
_FORWARD = {  # seconds from a bucket's begin to shortly before the next one, or into it; clocks go by two hours at most
    Timeframe.MINUTE: 60,
    Timeframe.HOUR: _HOUR,
    Timeframe.DAY: 22 * _HOUR,
    Timeframe.WEEK: (7 * 24 - 2) * _HOUR,
    Timeframe.MONTH: (31 * 24 + 12) * _HOUR,
}
_UP_TO = (
    (2 * _HOUR, Timeframe.MINUTE),
    (2 * 24 * _HOUR, Timeframe.HOUR),
    (64 * 24 * _HOUR, Timeframe.DAY),
    (183 * 24 * _HOUR, Timeframe.WEEK),
)
_STEP = 15 * 60
"""All time zones are whole quarters of an hour from UTC, and so is every change of their clocks."""


@cache
def known_zones() -> frozenset[str]:
    """The names of the time zones."""
    return frozenset(available_timezones())


class Period(BaseModel):
    """From when until when, as a query says it. A time without an offset is one of the time zone."""

    start: datetime | None = None
    end: datetime | None = None
    timezone: str = "UTC"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.timezone not in known_zones():
            raise ValueError("timezone must be the name of an IANA time zone, such as Europe/Berlin")
        for at in (self.start, self.end):
            if at and not FIRST_YEAR < at.year <= LAST_YEAR:
                raise ValueError(f"start and end must lie after {FIRST_YEAR} and not after {LAST_YEAR}")
        start, end = self.bounds()
        if start is not None and end is not None and start >= end:
            raise ValueError("start must be before end")
        return self

    @property
    def zone(self) -> ZoneInfo:
        """The time zone."""
        return ZoneInfo(self.timezone)

    def bounds(self) -> tuple[float | None, float | None]:
        """Start and end in Unix seconds, None where nothing was said."""
        return self._seconds(self.start), self._seconds(self.end)

    def _seconds(self, at: datetime | None) -> float | None:
        return None if at is None else (at if at.tzinfo else at.replace(tzinfo=self.zone)).timestamp()


class Window(Period):
    """A period in buckets."""

    timeframe: Timeframe | None = None
    bound_to_timeframe: bool = True

    def edges(self, now: float) -> list[float]:
        """Where the buckets begin, and where the last one ends; 24 hours up to ``now`` where nothing was said.

        Raises:
            ValueError: That makes too many buckets, or none.
        """
        start, end = self.bounds()
        end = now if end is None else end
        start = end - DEFAULT_SECONDS if start is None else start
        if start >= end:
            raise ValueError("start must be before end")
        return _edges(start, end, self.timeframe or automatic(end - start), self.zone, self.bound_to_timeframe)

    def label(self, edge: float) -> str:
        """A bucket's name: when it begins, on the time zone's clock."""
        return datetime.fromtimestamp(edge, self.zone).isoformat(timespec="seconds")


def automatic(seconds: float) -> Timeframe:
    """The timeframe for a window of this length, where none is asked for (fal's figures)."""
    return next((frame for limit, frame in _UP_TO if seconds < limit), Timeframe.MONTH)


def utc(at: float | None) -> str | None:
    """A moment as answers write it."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _edges(start: float, end: float, frame: Timeframe, zone: ZoneInfo, aligned: bool) -> list[float]:
    edges = [_floor(start, frame, zone)]
    while edges[-1] < end:
        if len(edges) > MAX_BUCKETS:
            raise ValueError(f"that is more than {MAX_BUCKETS} buckets; choose a coarser timeframe or a shorter time")
        edges.append(_following(edges[-1], frame, zone))
    return edges if aligned else [start, *edges[1:-1], end]


def _floor(at: float, frame: Timeframe, zone: ZoneInfo) -> float:
    """When the bucket began in which a moment lies."""
    if frame == Timeframe.MINUTE:
        return at // 60 * 60
    local = datetime.fromtimestamp(at, zone)
    if frame == Timeframe.HOUR:
        return local.replace(minute=0, second=0, microsecond=0).timestamp()
    day = local.date()
    if frame == Timeframe.WEEK:
        day -= timedelta(days=day.weekday())
    elif frame == Timeframe.MONTH:
        day = day.replace(day=1)
    return datetime.combine(day, time(), zone).timestamp()


def _following(edge: float, frame: Timeframe, zone: ZoneInfo) -> float:
    """When the bucket ends that begins here."""
    at = edge + _FORWARD[frame]
    while (floor := _floor(at, frame, zone)) <= edge:
        at += _STEP
    return floor
