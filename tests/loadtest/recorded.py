"""Recordings of load tests, as locust and the watch leave them; made up here, small, and as hostile as wanted."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.watch import Sample
from loadtest.wire import AGAIN

BEGAN = 1_790_000_000.0
PERCENTILES = ["50%", "66%", "75%", "80%", "90%", "95%", "98%", "99%", "99.9%", "99.99%", "100%"]
HISTORY = ["Timestamp", "User Count", "Type", "Name", "Requests/s", "Failures/s", *PERCENTILES]
HISTORY += ["Total Request Count", "Total Failure Count", "Total Median Response Time", "Total Average Response Time"]
HISTORY += ["Total Min Response Time", "Total Max Response Time", "Total Average Content Size"]
STATS = ["Type", "Name", "Request Count", "Failure Count", "Median Response Time", "Average Response Time"]
STATS += ["Min Response Time", "Max Response Time", "Average Content Size", "Requests/s", "Failures/s", *PERCENTILES]


def record(folder: Path, loads: Sequence[dict[str, Any]], **about: Any) -> Path:
    """Write a recording of loads, one after the other, each of a minute.

    Args:
        folder: Where to.
        loads: Of each ``users``, ``per_minute``, ``mean`` and ``p95`` in milliseconds; and what ``write_load`` takes.
        about: More for ``run.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for place, load in enumerate(loads):
        began = BEGAN + 70 * place
        name = f"load-{place + 1}"
        write_load(folder, name, began, **load)
        parts.append({"name": name, "users": load["users"], "began": began, "ended": began + 60})
    told = {"shape": "knee", "host": "http://127.0.0.1:1", "command": "x", "watched": "there", "versions": {}, **about}
    (folder / "run.json").write_text(json.dumps({**told, "parts": parts}))
    return folder


def write_load(
    folder: Path,
    name: str,
    began: float,
    users: int,
    per_minute: int = 60,
    mean: float = 1000.0,
    p95: float = 1500.0,
    failed: int = 0,
    refused: int = 0,
    full_after: int = 1,
    line: str = "queue fal-ai/svd",
    failures: Sequence[tuple[str, str, str, int]] = (),
    exceptions: Sequence[tuple[int, str]] = (),
) -> None:
    """One load, as locust's CSV files; its users are there after so many seconds."""
    times = [mean if each == "50%" else p95 for each in PERCENTILES]
    rows: list[list[Any]] = [HISTORY]
    for second in range(61):
        clips = per_minute * second // 60
        seen = times if clips else ["N/A"] * len(PERCENTILES)
        totals = [clips, min(failed, clips), mean, mean, 1, 2, 3]
        rows.append([began + second, users if second >= full_after else 0, "CLIP", "all", "1.0", "0.0", *seen, *totals])
        rows.append([began + second, users, "", "Aggregated", "1.0", "0.0", *times, 9 * clips, 0, 1, 1, 1, 1, 1])
    _write(folder / f"{name}_stats_history.csv", rows[:1] if not per_minute else rows)
    counted = [per_minute, min(failed, per_minute), mean, mean, 1, 2, 3, 1.0, 0.0, *times]
    lines: list[list[Any]] = (
        [["CLIP", "all", *counted], ["CLIP", line, *counted], ["POST", "submit", *counted]] if per_minute else []
    )
    lines += [["POST", f"submit{AGAIN}429", refused, 0, *counted[2:]]] if refused else []
    _write(folder / f"{name}_stats.csv", [STATS, *lines, ["", "Aggregated", *counted]])
    _write(
        folder / f"{name}_failures.csv",
        [
            ["Method", "Name", "Error", "Occurrences", "First Seen", "Last Seen"],
            *([*each, "", ""] for each in failures),
        ],
    )
    _write(
        folder / f"{name}_exceptions.csv",
        [["Count", "Message", "Traceback", "Nodes"], *([*each, "", ""] for each in exceptions)],
    )


def _write(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def watched(folder: Path, seconds: int = 130, endpoint: str = "fal-ai/svd", deployment: str = "fal-ai--svd") -> None:
    """Samples of a service: a queue that grows to 5, and each two seconds a clip for 0.001 USD and a device second."""
    samples = [
        Sample(
            BEGAN + second,
            {
                "waiting": {endpoint: float(min(5, second // 10))},
                "running": {endpoint: 1.0},
                "replicas": {deployment: 2.0},
                "successes": {endpoint: 100.0 + second / 2},
                "gpu_seconds": {endpoint: 50.0 + second / 2},
                "cost_usd": {endpoint: 0.1 + 0.001 * second / 2},
                "loaded_cost_usd": {deployment: 0.2 + 0.004 * second / 2},
            },
        )
        for second in range(0, seconds, 2)
    ]
    (folder / "samples.jsonl").write_text("".join(f"{each.dump()}\n" for each in samples))
