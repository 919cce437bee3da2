"""A Prometheus that scrapes the running service, with the rules of k8s/monitoring, hurried."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from deployments.cli import SAMPLE_KEY
from loadtest.monitoring import Prometheus, targets_of
from tests.conftest import Server, need
from tests.monitoring.reading import hurried, rules
from tests.receiver import run_receiver

PATIENCE = 180.0


def wait_until(found: Callable[[], object], what: str) -> None:
    """Return when something is found."""
    give_up = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < give_up, what
        time.sleep(0.25)


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has seen requests of each kind begin and end."""
    need("prometheus")
    folder = tmp_path_factory.mktemp("monitoring") / "prometheus"
    prometheus = Prometheus(folder, targets_of(server.url, server.key, server.process.pid), hurried(rules()))
    prometheus.start()
    try:
        wait_until(lambda: prometheus.query("svd_database_up and on () ray_serve_application_status"), "a first scrape")
        use(server)
        wait_until(lambda: prometheus.query("sum(increase(svd_requests_ended_total[5m])) >= 4"), "what ended")
        wait_until(
            lambda: prometheus.query("ray_svd_batch_size_count and on (model) ray_svd_store_seconds_count"), "batches"
        )
        # Each process tells Ray in its own time: the gateway has to, twice, before a rate of calls is there to record.
        wait_until(lambda: prometheus.query('svd:slo_burn:ratio_rate3d{slo="submit"}'), "submits")
        yield prometheus
    finally:
        prometheus.stop()


def use(server: Server) -> None:
    """Have it do something of everything that is measured."""
    picture = f"{server.url}/files/{SAMPLE_KEY}"
    with run_receiver() as receiver, httpx.Client(base_url=server.url, timeout=120) as client:
        client.headers["authorization"] = f"Key {server.key}"
        hook = {"fal_webhook": receiver.url}
        for _ in range(2):
            for endpoint in ("fal-ai/fast-svd-lcm", "fal-ai/svd"):
                body = {"image_url": picture, "steps": 2, "seed": 1}
                client.post(f"/queue/{endpoint}", params=hook, json=body).raise_for_status()
        prompt = {"prompt": "a calm sea", "steps": 1}
        client.post("/fal-ai/fast-svd-lcm/text-to-video", json=prompt).raise_for_status()
        assert client.post("/fal-ai/svd", json={"image_url": picture, "steps": 1000}).status_code == 422
        assert client.get("/queue/fal-ai/svd/requests/unknown").status_code == 404
        file = {"file_name": "a.txt", "content_type": "text/plain"}
        client.post("/storage/upload/initiate", json=file).raise_for_status()
        receiver.wait(4)
