from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deployments.gateway import timeframes
from deployments.gateway.timeframes import MAX_BUCKETS, Timeframe, Window, automatic, known_zones, utc

HOUR = 3600.0
DAY = 24 * HOUR
NOW = datetime.fromisoformat("2025-06-15T12:34:56+00:00").timestamp()


def buckets(**query: object) -> tuple[list[str], list[float]]:
    """The labels of the buckets of a window, and how many hours each spans."""
    window = Window.model_validate(query)
    edges = window.edges(NOW)
    return [window.label(edge) for edge in edges[:-1]], [(until - since) / HOUR for since, until in pairwise(edges)]


@pytest.mark.parametrize(
    ("timezone", "start", "end", "hours"),
    [
        ("Europe/Berlin", "2025-03-29", "2025-04-01", [24, 23, 24]),  # clocks go forward
        ("Europe/Berlin", "2025-10-25", "2025-10-28", [24, 25, 24]),  # and back
        ("Africa/Cairo", "2025-04-24", "2025-04-27", [24, 23, 24]),  # at midnight, which that day does not have
        ("America/Havana", "2025-11-01", "2025-11-04", [24, 25, 24]),  # so that midnight comes twice
        ("Pacific/Apia", "2011-12-28", "2012-01-01", [24, 24, 24]),  # a day was left out
        ("UTC", "2025-03-29", "2025-04-01", [24, 24, 24]),
    ],
)
def test_a_day_has_the_hours_that_it_has_there(timezone: str, start: str, end: str, hours: list[float]) -> None:
    assert buckets(timezone=timezone, start=start, end=end, timeframe="day")[1] == hours


@pytest.mark.parametrize(
    ("timezone", "day", "labels"),
    [
        ("Europe/Berlin", "2025-10-26", ["01:00:00+02:00", "02:00:00+02:00", "02:00:00+01:00", "03:00:00+01:00"]),
        ("Europe/Berlin", "2025-03-30", ["01:00:00+01:00", "03:00:00+02:00"]),
        ("Australia/Lord_Howe", "2025-04-06", ["01:00:00+11:00", "02:00:00+10:30", "03:00:00+10:30"]),
        ("Asia/Kathmandu", "2025-04-06", ["01:00:00+05:45", "02:00:00+05:45", "03:00:00+05:45"]),
    ],
)
def test_an_hour_is_one_of_the_clock_on_the_wall(timezone: str, day: str, labels: list[str]) -> None:
    found, _ = buckets(timezone=timezone, start=f"{day}T01:00", end=f"{day}T04:00", timeframe="hour")
    assert found == [f"{day}T{label}" for label in labels]


@pytest.mark.parametrize(
    ("timeframe", "start"),
    [("month", "1971-01-01"), ("week", "1999-01-01"), ("day", "2022-01-01"), ("hour", "2025-11-01")],
)
def test_to_find_the_buckets_of_a_long_window_takes_no_time(
    timeframe: str, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    floor = timeframes._floor
    monkeypatch.setattr(timeframes, "_floor", lambda at, *rest: asked.append(at) or floor(at, *rest))  # type: ignore[func-returns-value]
    window = Window.model_validate(
        {"timeframe": timeframe, "start": start, "end": "2026-01-01", "timezone": "Europe/Berlin"}
    )

    assert len(asked) == 0 and len(window.edges(NOW)) > 600
    assert len(asked) < 14 * MAX_BUCKETS  # as many questions as a bucket has quarters of an hour were once asked


def test_months_are_those_of_the_calendar() -> None:
    labels, hours = buckets(timezone="America/New_York", start="2024-01-15", end="2024-04-15", timeframe="month")
    assert [label[5:7] + label[19:] for label in labels] == ["01-05:00", "02-05:00", "03-05:00", "04-04:00"]
    assert {label[7:19] for label in labels} == {"-01T00:00:00"}
    assert hours == [31 * 24, 29 * 24, 31 * 24 - 1, 30 * 24]


def test_weeks_begin_on_monday() -> None:
    labels, _ = buckets(timezone="Europe/Berlin", start="2025-01-01", end="2025-01-13", timeframe="week")
    assert labels == ["2024-12-30T00:00:00+01:00", "2025-01-06T00:00:00+01:00"]


def test_a_window_that_is_not_aligned_is_taken_as_it_is() -> None:
    labels, hours = buckets(
        start="2025-01-01T12:00", end="2025-01-03T06:00", timeframe="day", bound_to_timeframe="false"
    )
    assert labels == ["2025-01-01T12:00:00+00:00", "2025-01-02T00:00:00+00:00", "2025-01-03T00:00:00+00:00"]
    assert hours == [12, 24, 6]


def test_nothing_said_means_the_last_24_hours_by_the_hour() -> None:
    labels, hours = buckets()
    assert (labels[0], labels[-1]) == ("2025-06-14T12:00:00+00:00", "2025-06-15T12:00:00+00:00")
    assert hours == [1] * 25


def test_a_start_alone_goes_on_until_now_and_an_end_alone_begins_24_hours_before() -> None:
    assert buckets(start="2025-06-15T10:00Z", timeframe="hour")[0][-1] == "2025-06-15T12:00:00+00:00"
    assert buckets(end="2025-06-03", timeframe="day")[0] == ["2025-06-02T00:00:00+00:00"]


def test_an_offset_in_a_time_goes_before_the_time_zone() -> None:
    labels, _ = buckets(start="2025-06-01T00:00Z", end="2025-06-01T04:00+02:00", timezone="Asia/Tokyo")
    assert (labels[0], labels[-1]) == ("2025-06-01T09:00:00+09:00", "2025-06-01T10:00:00+09:00")


@pytest.mark.parametrize(
    ("seconds", "frame"),
    [
        (2 * HOUR - 1, "minute"),
        (2 * HOUR, "hour"),
        (2 * DAY - 1, "hour"),
        (2 * DAY, "day"),
        (64 * DAY - 1, "day"),
        (64 * DAY, "week"),
        (183 * DAY - 1, "week"),
        (183 * DAY, "month"),
    ],
)
def test_the_timeframe_follows_from_the_length_where_none_is_asked_for(seconds: float, frame: str) -> None:
    assert automatic(seconds) == frame


@pytest.mark.parametrize(
    "query",
    [
        {"timezone": "Mars/Olympus"},
        {"timezone": "../../etc/passwd"},
        {"timezone": ""},
        {"start": "2025-02-01", "end": "2025-01-01"},
        {"start": "2025-01-01", "end": "2025-01-01"},
        {"start": "1900-01-01"},
        {"end": "9999-12-31"},
        {"start": "yesterday"},
        {"timeframe": "year"},
    ],
)
def test_a_window_that_is_none_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Window.model_validate(query)


def test_too_many_buckets_are_refused() -> None:
    assert len(buckets(start="2025-06-14", end="2025-06-15", timeframe="minute")[0]) == 1440 < MAX_BUCKETS
    with pytest.raises(ValueError, match="coarser"):
        buckets(start="1971-01-01", end="2199-01-01", timeframe="minute")


def test_a_start_in_the_future_has_no_buckets() -> None:
    with pytest.raises(ValueError, match="before end"):
        buckets(start="2030-01-01")


@given(
    zone=st.sampled_from(sorted(known_zones())),
    frame=st.sampled_from(Timeframe),
    start=st.floats(1e8, 4e9),
    length=st.floats(1, 100 * DAY),
)
def test_buckets_cover_the_window_whatever_the_clocks_do(
    zone: str, frame: Timeframe, start: float, length: float
) -> None:
    window = Window(
        start=datetime.fromtimestamp(start, ZoneInfo("UTC")),
        end=datetime.fromtimestamp(start + length, ZoneInfo("UTC")),
        timezone=zone,
        timeframe=frame,
    )
    try:
        edges = window.edges(NOW)
    except ValueError:
        assert length / 60 > MAX_BUCKETS
        return
    assert edges[0] <= start < edges[1]
    assert edges[-2] < start + length <= edges[-1]
    assert edges == sorted(set(edges))


def test_moments_are_written_in_utc() -> None:
    assert (utc(1750000000.1239), utc(None)) == ("2025-06-15T15:06:40.123Z", None)
