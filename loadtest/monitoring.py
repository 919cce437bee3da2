"""A private Prometheus and Alertmanager on loopback ports, for tests and load: Debian's programs, their own folders.

    gateway /metrics (by key) ──▶ Prometheus ── alerts ──▶ Alertmanager ── POST ──▶ receiver
    Ray's port of each node ──▶       └──▶ query, query_range, rules: tests and reports

Nothing of them is left on a machine but that folder: each is ended by its process, and knows no other.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

PROMETHEUS, ALERTMANAGER = ("prometheus",), ("prometheus-alertmanager", "alertmanager")
"""The programs, by the names that Debian and the projects themselves give them."""

START_SECONDS = 60.0
ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Target:
    """One place that is scraped: ``host:port``, and the key to be sent where one is wanted."""

    job: str
    address: str
    key: str = ""

    @property
    def scrape(self) -> dict[str, Any]:
        """Its entry among Prometheus' ``scrape_configs``."""
        entry: dict[str, Any] = {"job_name": self.job, "static_configs": [{"targets": [self.address]}]}
        return entry | {"authorization": {"type": "Key", "credentials": self.key}} if self.key else entry


@dataclass(frozen=True)
class Series:
    """One line of an answer: its labels, and its values by time (seconds since 1970)."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    @property
    def value(self) -> float:
        """The last value."""
        return self.points[-1][1]


class QueryError(Exception):
    """What Prometheus has against a query."""


def targets_of(url: str, key: str, pid: int) -> list[Target]:
    """What there is to scrape of a service on this machine: its gateway, and the Ray nodes below this process."""
    gateway = Target("svd-serve", httpx.URL(url).netloc.decode(), key)
    return [gateway, *(Target(f"ray-{port}", f"127.0.0.1:{port}") for port in ray_ports(pid))]


def ray_ports(pid: int) -> list[int]:
    """Where the Ray nodes below this process tell their metrics. Each keeps the port it got in its session's folder."""
    return [int(file.read_text()) for raylet in _raylets(pid) for file in _port_files(raylet)]


def _raylets(pid: int) -> list[psutil.Process]:
    return [each for each in psutil.Process(pid).children(recursive=True) if each.name() == "raylet"]


def _port_files(raylet: psutil.Process) -> Iterable[Path]:
    options = dict(option.lstrip("-").split("=", 1) for option in raylet.cmdline()[1:] if "=" in option)
    session = Path(options["raylet_socket_name"]).parents[1]
    return session.glob(f"metrics_export_port_{options['node_id']}")


class Daemon:
    """A program that answers HTTP on a loopback port, which it chooses itself."""

    def __init__(self, programs: Sequence[str], folder: Path) -> None:
        """Make its folder; it is not started.

        Raises:
            FileNotFoundError: It is not installed.
        """
        found = next(filter(None, map(shutil.which, programs)), None)
        if found is None:
            raise FileNotFoundError(f"{programs[0]} is not installed")
        self._program = found
        self._folder = folder
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)

    @property
    def options(self) -> Mapping[str, str]:
        """What it is started with beside its address."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """Its address, once it runs."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Return when it is ready.

        Raises:
            RuntimeError: It did not get so far.
        """
        options = {"web.listen-address": "127.0.0.1:0", **self.options}
        log = self._folder / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [self._program, *(f"--{name}={value}" for name, value in options.items())],
                stdout=output,
                stderr=output,
                cwd=self._folder,
                start_new_session=True,
            )
        give_up = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if time.monotonic() > give_up or self._process.poll() is not None:
                self.stop()
                raise RuntimeError(f"{self._program} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(20)
        self._process = None

    def _is_ready(self) -> bool:
        assert self._process
        try:
            listening = psutil.Process(self._process.pid).net_connections("tcp")
            self._port = next(each.laddr.port for each in listening if each.status == psutil.CONN_LISTEN)
            return httpx.get(f"{self.url}/-/ready", timeout=5).is_success
        except (psutil.Error, StopIteration, httpx.HTTPError):
            return False


class Prometheus(Daemon):
    """One server that scrapes these targets, evaluates these rules and keeps what it saw for as long as it runs."""

    def __init__(
        self,
        folder: Path,
        targets: Iterable[Target],
        rules: Mapping[str, Any] | None = None,
        alertmanager: str | None = None,
        seconds: float = 1.0,
    ) -> None:
        """Write its configuration.

        Args:
            folder: Where it keeps everything; it is not there yet.
            targets: What it scrapes.
            rules: ``{"groups": […]}``, as a PrometheusRule has under ``spec``.
            alertmanager: The address of the Alertmanager that it tells, as ``Alertmanager.url`` has it.
            seconds: How often it scrapes and evaluates.

        Raises:
            FileNotFoundError: It is not installed.
        """
        super().__init__(PROMETHEUS, folder)
        every = f"{round(seconds * 1000)}ms"
        config: dict[str, Any] = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "scrape_configs": [target.scrape for target in targets],
            "rule_files": ["rules.yaml"],
        }
        if alertmanager:
            told = [{"targets": [httpx.URL(alertmanager).netloc.decode()]}]
            config["alerting"] = {"alertmanagers": [{"static_configs": told}]}
        (folder / "rules.yaml").write_text(json.dumps(rules or {"groups": []}))
        (folder / "prometheus.yaml").touch(mode=0o600)  # it holds the key
        (folder / "prometheus.yaml").write_text(json.dumps(config))

    @property
    def options(self) -> Mapping[str, str]:
        """Its files."""
        return {"config.file": "prometheus.yaml", "storage.tsdb.path": "data", "log.level": "warn"}

    def query(self, expression: str) -> list[Series]:
        """What an expression is now.

        Raises:
            QueryError: It is no expression, or cannot be evaluated.
        """
        result = self._get("query", query=expression)
        found = result["result"] if result["resultType"] == "vector" else [{"metric": {}, "value": result["result"]}]
        return [Series(each["metric"], _points([each["value"]])) for each in found]

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """What an expression was between two times (seconds since 1970), every ``step`` seconds.

        Raises:
            QueryError: It is no expression, or cannot be evaluated.
        """
        result = self._get("query_range", query=expression, start=start, end=end, step=step)["result"]
        return [Series(each["metric"], _points(each["values"])) for each in result]

    def names(self) -> set[str]:
        """Every metric that it has seen, or made by a rule."""
        return set(self._get("label/__name__/values"))

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its state, and with ``lastError`` where it could not be evaluated."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        """Every target with its health, and how long its last scrape took."""
        return list(self._get("targets")["activeTargets"])

    def _get(self, what: str, **parameters: object) -> Any:
        reply = httpx.get(f"{self.url}/api/v1/{what}", params=parameters, timeout=ANSWER_SECONDS)  # type: ignore[arg-type]
        answer = reply.json()
        if answer["status"] != "success":
            raise QueryError(answer["error"])
        return answer["data"]


def _points(values: Iterable[tuple[float, str]]) -> tuple[tuple[float, float], ...]:
    return tuple((float(at), float(value)) for at, value in values)


class Alertmanager(Daemon):
    """One server that passes alerts on as its configuration says."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write its configuration.

        Raises:
            FileNotFoundError: It is not installed.
        """
        super().__init__(ALERTMANAGER, folder)
        (folder / "alertmanager.yaml").write_text(yaml.safe_dump(dict(config)))

    @property
    def options(self) -> Mapping[str, str]:
        """Its files; it has no peers."""
        return {"config.file": "alertmanager.yaml", "storage.path": "data", "cluster.listen-address": ""}
