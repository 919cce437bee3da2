"""How fast a service follows its work: from no replica to many, and back to none.

    python -m loadtest.scaling [--endpoint fal-ai/fast-svd-lcm] [--requests 6] [--replicas 2] [--idle-seconds 20]

Starts a service of its own on a free port of 127.0.0.1, whose models are scaled to zero, and stops it again. Prints how
long after the first submit there was the first replica, as many as may be, the first result, the last, and no replica.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import yaml

from deployments.scaling import POLICY
from loadtest.service import run_server
from loadtest.watch import read_metrics

CONFIG = Path("serve_config.yaml")
LOOK_SECONDS = 0.25
PATIENCE_SECONDS = 300.0


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", default="fal-ai/fast-svd-lcm")
    parser.add_argument("--requests", type=int, default=6)
    parser.add_argument("--replicas", type=int, default=2, help="at the most")
    parser.add_argument("--idle-seconds", type=float, default=20.0, help="downscale_to_zero_delay_s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="svd-serve-scaling-") as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump(scaled(options.endpoint, options.replicas, options.idle_seconds)))
        with run_server(Path(folder), config) as server:
            service = Scaled(server.url, server.key, options.endpoint)
            service.measure(options.requests, options.replicas, options.idle_seconds)


def scaled(endpoint: str, replicas: int, idle_seconds: float) -> dict[str, Any]:
    """The configuration with every model scaled from zero, the endpoint's to so many replicas."""
    document: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    for deployment in document["applications"][0]["deployments"]:
        if deployment["name"] in ("Gateway", "Dispatcher"):
            continue
        deployment["autoscaling_config"] = {
            "min_replicas": 0,
            "max_replicas": replicas if deployment["name"] == deployment_of(endpoint) else 1,
            "upscale_delay_s": 0,
            "downscale_delay_s": idle_seconds / 2,
            "downscale_to_zero_delay_s": idle_seconds,
            "look_back_period_s": 10.1,  # a shorter one than the reports' ten seconds is warned of
            "policy": {"policy_function": POLICY, "policy_kwargs": {"target_seconds": 10, "batch_seconds": 10}},
        }
    return document


def deployment_of(endpoint: str) -> str:
    """The name of its deployment in Serve."""
    return endpoint.replace("/", "--")


class Scaled:
    """A service with a model that is scaled to zero."""

    def __init__(self, url: str, key: str, endpoint: str) -> None:
        """Call it with this key, an administrator's."""
        self._client = httpx.Client(base_url=url, headers={"authorization": f"Key {key}"}, timeout=60)
        self._endpoint = endpoint
        self._began = time.monotonic()

    def measure(self, requests: int, replicas: int, idle_seconds: float) -> None:
        """Submit, and print when what has happened."""
        assert self.replicas() == 0, "it begins with replicas"
        picture = f"{self._client.base_url}/files/samples/landscape.jpg"
        self._began = time.monotonic()
        bodies = [{"image_url": picture, "seed": seed} for seed in range(requests)]
        ids = [
            self._client.post(f"/queue/{self._endpoint}", json=body).raise_for_status().json()["request_id"]
            for body in bodies
        ]
        print(f"{requests} requests to {self._endpoint}, no replica there, {replicas} at the most")
        self._print("the first replica runs", lambda: self.replicas() >= 1)
        self._print(f"{replicas} run", lambda: self.replicas() >= replicas)
        self._print("the first result", lambda: self.ended(ids) >= 1)
        self._print("the last result", lambda: self.ended(ids) == requests)
        self._print(f"none runs (idle for {idle_seconds:g} s)", lambda: self.replicas() == 0)

    def replicas(self) -> int:
        """How many of the model run."""
        text = self._client.get("/metrics").raise_for_status().text
        return int(read_metrics(text, time.time()).values["replicas"].get(deployment_of(self._endpoint), 0))

    def ended(self, ids: list[str]) -> int:
        """How many of these requests have ended."""
        answers = [self._client.get(f"/queue/{self._endpoint}/requests/{each}/status").json() for each in ids]
        return sum(each["status"] == "COMPLETED" for each in answers)

    def _print(self, what: str, has_happened: Callable[[], bool]) -> None:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not has_happened():
            assert time.monotonic() < give_up, f"waited in vain: {what}"
            time.sleep(LOOK_SECONDS)
        print(f"{what:40}{time.monotonic() - self._began:8.1f} s after the first submit", flush=True)


if __name__ == "__main__":
    main()
