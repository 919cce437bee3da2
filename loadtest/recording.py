"""What a load test left behind, as values: locust's CSV files, the service's samples, and where the knee is.

run.json ─────────────────────────────────┐
LOAD_stats_history.csv, one load each ────┼──▶ Recording ──▶ report
LOAD_stats.csv, LOAD_failures.csv ────────┤       └──▶ levels ──▶ knee
samples.jsonl, costs.json ────────────────┘
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from loadtest.watch import Sample, load_samples, summed
from loadtest.wire import AGAIN, ALL, CLIP


@dataclass(frozen=True)
class Moment:
    """A second of a run; its percentiles are of the ten seconds before, NaN where no clip ended in them."""

    at: float
    users: int
    clips: int
    failed: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Line:
    """What locust counted under one name: times in seconds, of the whole run; NaN where no clip was made."""

    kind: str
    name: str
    count: int
    failed: int
    mean: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Failure:
    """Something that went wrong, and how often."""

    kind: str
    name: str
    why: str
    count: int


@dataclass(frozen=True)
class Part:
    """A run of locust: one load, begun and ended at these times (seconds since 1970)."""

    users: int
    began: float
    ended: float
    history: Sequence[Moment]
    lines: Sequence[Line]
    failures: Sequence[Failure]

    @property
    def clips(self) -> Line | None:
        """All clips together; None if none was even asked for."""
        return next((line for line in self.lines if (line.kind, line.name) == (CLIP, ALL)), None)

    @property
    def tried_again(self) -> int:
        """Calls that were refused, or not answered, in a way that clients bear."""
        return sum(line.count for line in self.lines if AGAIN in line.name)

    @cached_property
    def full(self) -> Sequence[Moment]:
        """The time in which all users were there; it begins with the first clip."""
        return [moment for moment in self.history if moment.users >= self.users]


@dataclass(frozen=True)
class Level:
    """A load and what came of it.

    Attributes:
        users: How many asked at the same time.
        clips: How many clips succeeded.
        per_minute: Of them, while all users were there.
        mean: Seconds for a clip that succeeded; NaN where none did.
        p50: Of those.
        p95: Of those.
        p99: Of those.
        waiting: Requests in the queue on average, while all users were there; None where nobody watched.
        most_waiting: At most, in the whole load.
        failed: Clips that did not succeed.
    """

    users: int
    clips: int
    per_minute: float
    mean: float
    p50: float
    p95: float
    p99: float
    waiting: float | None
    most_waiting: float | None
    failed: int

    @property
    def power(self) -> float:
        """Throughput by the time that a clip takes (Kleinrock 1979, see ``knee``)."""
        return self.per_minute / self.mean if self.mean > 0 else 0.0


@dataclass(frozen=True)
class Recording:
    """All of it."""

    about: Mapping[str, Any]
    parts: Sequence[Part]
    samples: Sequence[Sample]
    costs: Mapping[str, Any] | None

    @property
    def began(self) -> float:
        """When the first load began, in seconds since 1970."""
        return min((part.began for part in self.parts), default=0.0)

    @property
    def ended(self) -> float:
        """When the last one ended."""
        return max((part.ended for part in self.parts), default=0.0)

    @cached_property
    def levels(self) -> list[Level]:
        """What came of each load, in the order in which they were run."""
        return [_level(part, self.samples) for part in self.parts]


def load(folder: Path) -> Recording:
    """Read what is in a folder.

    Raises:
        OSError: There is no ``run.json`` in it.
        ValueError: Something in it cannot be read.
    """
    about = json.loads((folder / "run.json").read_text())
    costs = folder / "costs.json"
    return Recording(
        about,
        [_part(folder, part) for part in about["parts"]],
        load_samples(folder / "samples.jsonl"),
        json.loads(costs.read_text()) if costs.exists() else None,
    )


def knee(levels: Sequence[Level]) -> Level | None:
    """The load beyond which waiting grows faster than work done: that with the greatest power; None without a clip.

    Power is throughput by response time. Where it is greatest, one percent of throughput more costs one percent of
    response time more (L. Kleinrock, "Power and deterministic rules of thumb for probabilistic problems in computer
    communications", ICC 1979). That this is the knee: K. Ramakrishnan, R. Jain, "A binary feedback scheme for
    congestion avoidance in computer networks with a connectionless network layer", SIGCOMM 1988.
    """
    best = max(levels, key=lambda level: level.power, default=None)
    return best if best and best.power > 0 else None


def saturation(levels: Sequence[Level]) -> float | None:
    """How many clips in flight keep the service busy: its best throughput times the time of a clip without a queue.

    Little's law at the bound (P. Denning, J. Buzen, "The operational analysis of queueing network models", 1978). The
    time without a queue is that at one user; without such a load it is not known.
    """
    alone = next((level for level in levels if level.users == 1 and level.clips), None)
    return max(level.per_minute for level in levels) / 60 * alone.mean if alone else None


# ---------------------------------------------------------------- locust's files


def _part(folder: Path, part: Mapping[str, Any]) -> Part:
    name = part["name"]
    return Part(
        part["users"],
        part["began"],
        part["ended"],
        [_moment(row) for row in _rows(folder / f"{name}_stats_history.csv") if _is_all(row)],
        [_line(row) for row in _rows(folder / f"{name}_stats.csv") if row["Name"] != "Aggregated"],
        [
            *(_failure(row) for row in _rows(folder / f"{name}_failures.csv") if row["Name"] != ALL),
            *map(_fault, _rows(folder / f"{name}_exceptions.csv")),
        ],
    )


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """A file's rows; none where locust did not come to write it. A row that was cut off is left out."""
    if path.exists():
        with path.open(newline="") as file:
            yield from (row for row in csv.DictReader(file) if None not in row.values())


def _is_all(row: Mapping[str, str]) -> bool:
    return (row["Type"], row["Name"]) == (CLIP, ALL)


def _moment(row: Mapping[str, str]) -> Moment:
    return Moment(
        float(row["Timestamp"]),
        int(row["User Count"]),
        int(row["Total Request Count"]),
        int(row["Total Failure Count"]),
        *(_seconds(row[percentile]) or math.nan for percentile in ("50%", "95%", "99%")),
    )


def _line(row: Mapping[str, str]) -> Line:
    count, failed = int(row["Request Count"]), int(row["Failure Count"])
    none = row["Type"] == CLIP and count == failed
    times = (_seconds(row[name]) for name in ("Average Response Time", "50%", "95%", "99%"))
    return Line(row["Type"], row["Name"], count, failed, *(math.nan if none else time for time in times))


def _failure(row: Mapping[str, str]) -> Failure:
    return Failure(row["Method"], row["Name"], row["Error"], int(row["Occurrences"]))


def _fault(row: Mapping[str, str]) -> Failure:
    return Failure("exception", "the load test itself", row["Message"], int(row["Count"]))


def _seconds(milliseconds: str) -> float:
    """Locust's milliseconds; 0 where it has no number."""
    return float(milliseconds) / 1000 if milliseconds not in ("", "N/A") else 0.0


# ---------------------------------------------------------------- a load


def _level(part: Part, samples: Sequence[Sample]) -> Level:
    line = part.clips or Line(CLIP, ALL, 0, 0, *[math.nan] * 4)
    queue = [(at, value) for at, value in summed(samples, "waiting") if part.began <= at <= part.ended]
    waiting = [value for at, value in queue if part.full and part.full[0].at <= at <= part.full[-1].at]
    return Level(
        part.users,
        line.count - line.failed,
        throughput(part),
        *(line.mean, line.p50, line.p95, line.p99),
        statistics.mean(waiting) if waiting else None,
        max((value for _, value in queue), default=None),
        line.failed,
    )


def throughput(part: Part) -> float:
    """Clips a minute that succeeded while all users were there."""
    if len(part.full) < 2:
        return 0.0
    first, last = part.full[0], part.full[-1]
    return 60 * ((last.clips - last.failed) - (first.clips - first.failed)) / (last.at - first.at)
