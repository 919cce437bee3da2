"""A fault of the service fires an alert that reaches a webhook through a real Alertmanager; so does its end.

model dies, weights gone ──▶ gateway /metrics, Ray's port ──▶ Prometheus ──▶ Alertmanager ──▶ receiver of `pager`
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest.monitoring import Alertmanager, Prometheus, targets_of
from tests.conftest import ROOT, Server, free_port, need, start_server, stop_server
from tests.monitoring.conftest import wait_until
from tests.monitoring.reading import MONITORING, hurried, rules
from tests.receiver import Receiver, run_receiver
from tests.test_faults import process_of

ENDPOINT, DEPLOYMENT = "test/model", "test--model"
HURRY = 600.0
"""Ten minutes are a second."""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Without this file the model does not load."""
    path = tmp_path / "weights"
    path.touch()
    return path


@pytest.fixture
def service(tmp_path: Path, weights: Path) -> Iterator[Server]:
    """A service of one model."""
    document = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    (application,) = document["applications"]
    endpoint = {"model": "tests.faulty:Faulty", "weights": str(weights), "sizes": ["112x64"]}
    application["args"]["endpoints"] = {ENDPOINT: endpoint}
    kept = [each for each in application["deployments"] if each["name"] in ("Gateway", "Dispatcher")]
    next(each for each in kept if each["name"] == "Dispatcher").pop("user_config")
    application["deployments"] = [*kept, {"name": DEPLOYMENT, "ray_actor_options": {"num_cpus": 0}}]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    server = start_server(tmp_path / "data", free_port(), tmp_path / "config.yaml")
    yield server
    stop_server(server)


def example_with(pager: str, tickets: str) -> dict[str, Any]:
    """The example for Alertmanager with receivers of this machine, and without its patience."""
    config = dict(yaml.safe_load((MONITORING / "alertmanager.yaml").read_text()))
    urls = {"pager": pager, "tickets": tickets}
    config["receivers"] = [
        {"name": receiver["name"], "webhook_configs": [{"url": urls[receiver["name"]]}]}
        for receiver in config["receivers"]
    ]
    for route in (config["route"], *config["route"]["routes"]):
        route |= {"group_wait": "0s", "group_interval": "1s"}
    return config


def told(receiver: Receiver, status: str) -> list[dict[str, Any]]:
    """The alerts about the model that have come, in one state."""
    came = [alert for post in list(receiver.posts) for alert in post.json["alerts"]]
    wanted = {"alertname": "SvdNoReplica", "deployment": DEPLOYMENT, "severity": "page", "tier": "model"}
    return [alert for alert in came if alert["status"] == status and wanted.items() <= alert["labels"].items()]


def test_a_model_that_does_not_come_back_wakes_somebody_who_hears_of_its_end(
    service: Server, weights: Path, tmp_path: Path
) -> None:
    need("prometheus"), need("prometheus-alertmanager")
    with ExitStack() as stack:
        pager, tickets = (stack.enter_context(run_receiver()) for _ in range(2))
        alertmanager = Alertmanager(tmp_path / "alertmanager", example_with(pager.url, tickets.url))
        alertmanager.start()
        stack.callback(alertmanager.stop)
        targets = targets_of(service.url, service.key, service.process.pid)
        prometheus = Prometheus(tmp_path / "prometheus", targets, hurried(rules(), HURRY), alertmanager.url)
        prometheus.start()
        stack.callback(prometheus.stop)
        there = f'svd_replicas{{deployment="{DEPLOYMENT}", state="RUNNING"}} == 1'
        wait_until(
            lambda: prometheus.query(f"{there} and on (deployment) ray_serve_autoscaling_target_replicas"), there
        )
        assert told(pager, "firing") == []

        weights.unlink()
        process_of(service, f"ServeReplica:svd-serve:{DEPLOYMENT}").kill()
        wait_until(lambda: told(pager, "firing"), "the alert")
        assert told(pager, "firing")[0]["annotations"]["summary"] == f"{DEPLOYMENT} has no replica"
        assert told(pager, "resolved") == told(tickets, "firing") == []

        weights.touch()
        wait_until(lambda: told(pager, "resolved"), "its end")
