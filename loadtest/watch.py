"""What the service says of itself while it is under load: queue, replicas, GPU seconds and cost, over time.

    GET /metrics every two seconds ──┐
                                     ├──▶ samples.jsonl ──▶ report
    Prometheus query_range, once ────┘        GET /v1/costs, once ──▶ costs.json

Both ways end in the same lines, so a report does not care. Whoever reads the service itself needs an administrator's
key; what the operator keeps in Prometheus is read from there without one.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from deployments import metrics

SECONDS = 2.0
"""How often the service is asked. Each answer is made from its rows, and costs it some milliseconds."""

ANSWER_SECONDS = 30.0
RUNNING = "RUNNING"
SUCCESS = "success"


@dataclass(frozen=True)
class Watched:
    """A metric that a report shows.

    Attributes:
        metric: The service's name for it.
        by: The label that tells its lines apart; the others are summed.
        where: Only what has these labels.
    """

    metric: str
    by: str
    where: Mapping[str, str] = field(default_factory=dict)

    @property
    def query(self) -> str:
        """For Prometheus. Every gateway says the same, so the largest counts where several are scraped."""
        where = ",".join(f"{name}={json.dumps(value)}" for name, value in self.where.items())
        return f"max by ({self.by}) (sum by (instance, {self.by}) ({self.metric}{{{where}}}))"


WATCHED: dict[str, Watched] = {
    "waiting": Watched(metrics.WAITING.name, "endpoint"),
    "running": Watched(metrics.RUNNING.name, "endpoint"),
    "replicas": Watched(metrics.REPLICAS.name, "deployment", {"state": RUNNING}),
    "successes": Watched(f"{metrics.ENDED.name}_total", "endpoint", {"outcome": SUCCESS}),
    "gpu_seconds": Watched(f"{metrics.GPU_SECONDS.name}_total", "endpoint"),
    "cost_usd": Watched(f"{metrics.COST.name}_total", "endpoint"),
    "loaded_cost_usd": Watched(f"{metrics.LOADED_COST.name}_total", "deployment"),
}
"""What is watched, by the name that it has in a sample."""


@dataclass(frozen=True)
class Sample:
    """What the service said at a moment.

    Attributes:
        at: Seconds since 1970.
        values: For each name of ``WATCHED`` its lines, by the label's value.
        problem: Why there is nothing; empty where there is.
    """

    at: float
    values: Mapping[str, Mapping[str, float]]
    problem: str = ""

    def dump(self) -> str:
        """One line of JSON."""
        return json.dumps({"at": round(self.at, 3), "values": self.values, "problem": self.problem})


def load_samples(path: Path) -> list[Sample]:
    """What was written; nothing where nobody watched."""
    if not path.exists():
        return []
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return [Sample(line["at"], line["values"], line["problem"]) for line in lines]


def read_metrics(text: str, at: float) -> Sample:
    """A sample of what ``/metrics`` answered.

    Raises:
        ValueError: It is not in Prometheus' format.
    """
    values: dict[str, dict[str, float]] = {name: defaultdict(float) for name in WATCHED}
    wanted = defaultdict(list)
    for name, watched in WATCHED.items():
        wanted[watched.metric].append((name, watched))
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            for name, watched in wanted.get(each.name, ()):
                if watched.by in each.labels and watched.where.items() <= each.labels.items():
                    values[name][each.labels[watched.by]] += each.value
    return Sample(at, values)


class Watch:
    """Asks a service every two seconds, in a thread of its own, from ``with`` to its end."""

    def __init__(self, url: str, key: str, path: Path) -> None:
        """Nothing is asked yet; what is told goes to ``path``."""
        self._http = httpx.Client(
            base_url=url, headers={"authorization": f"Key {key}"}, timeout=ANSWER_SECONDS, trust_env=False
        )
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        """End, once the present question is answered."""
        self._ended.set()
        self._thread.join()
        self._http.close()

    def _run(self) -> None:
        with self._path.open("a", buffering=1) as file:
            while True:
                began = time.monotonic()
                file.write(self._ask().dump() + "\n")
                if self._ended.wait(max(0.0, SECONDS - (time.monotonic() - began))):
                    return

    def _ask(self) -> Sample:
        at = time.time()
        try:
            answer = self._http.get("/metrics")
            if not answer.is_success:
                return Sample(at, {}, f"/metrics answered {answer.status_code}")
            return read_metrics(answer.text, at)
        except httpx.HTTPError as error:
            return Sample(at, {}, f"/metrics did not answer: {type(error).__name__}")
        except ValueError:
            return Sample(at, {}, "/metrics answered something that is not in Prometheus' format")


# ---------------------------------------------------------------- afterwards


def ask_prometheus(url: str, start: float, end: float) -> list[Sample]:
    """What Prometheus kept of the service between two times (seconds since 1970).

    Raises:
        OSError: It does not answer, or has something against a query.
    """
    found: dict[float, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    with httpx.Client(base_url=url, timeout=ANSWER_SECONDS, trust_env=False) as http:
        for name, watched in WATCHED.items():
            for at, label, value in _points(http, watched, start, end):
                found[at][name][label] = value
    return [Sample(at, found[at]) for at in sorted(found)]


def _points(http: httpx.Client, watched: Watched, start: float, end: float) -> Iterator[tuple[float, str, float]]:
    step = max(SECONDS, (end - start) / 1000)
    asked = {"query": watched.query, "start": start, "end": end, "step": step}
    try:
        answer = http.post("/api/v1/query_range", data=asked).json()
    except (httpx.HTTPError, ValueError) as error:
        raise OSError(f"Prometheus does not answer: {type(error).__name__}") from error
    if answer.get("status") != "success":
        raise OSError(f"Prometheus cannot answer: {answer.get('error', 'no reason given')}")
    for line in answer["data"]["result"]:
        label = line["metric"].get(watched.by, "")
        yield from ((float(at), label, float(value)) for at, value in line["values"] if value != "NaN")


def ask_costs(url: str, key: str, start: float, end: float) -> dict[str, Any] | None:
    """What ``/v1/costs`` says of a time (seconds since 1970); None where it does not answer with that."""
    asked = {"start": _moment(start), "end": _moment(end)}
    headers = {"authorization": f"Key {key}"}
    try:
        answer = httpx.get(f"{url}/v1/costs", params=asked, headers=headers, timeout=ANSWER_SECONDS, trust_env=False)
        told = answer.json() if answer.is_success else None
    except (httpx.HTTPError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# ---------------------------------------------------------------- over time


def over_time(samples: Iterable[Sample], name: str) -> dict[str, list[tuple[float, float]]]:
    """A watched metric's lines, each as pairs of a time and a value."""
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for sample in samples:
        for label, value in sample.values.get(name, {}).items():
            lines[label].append((sample.at, value))
    return dict(sorted(lines.items()))


def summed(samples: Iterable[Sample], name: str) -> list[tuple[float, float]]:
    """A watched metric over all of its lines."""
    return [(each.at, sum(each.values[name].values())) for each in samples if each.values.get(name)]


def grown(line: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """How far a counter has grown since its first value; it begins at 0 again when the day does."""
    total, last = 0.0, None
    found = []
    for at, value in line:
        if last is not None:
            total += value - last if value >= last else value
        last = value
        found.append((at, total))
    return found


def ratio(over: Iterable[tuple[float, float]], under: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """One line by another where both are known and the other is not 0."""
    divisors = dict(under)
    return [(at, value / divisors[at]) for at, value in over if divisors.get(at)]
