"""The production configuration on a real Ray cluster: deployed, tried out by the official client, rolled under load.

The nodes are processes on this machine that offer what the groups of the RayService offer; GPUs are only counted, the
weights are the small ones, and the pods' environment is that of the manifests but for addresses. KubeRay is not here.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import fal_client
import httpx
import psutil
import pytest
import yaml

from deployments.cli import ONE_MACHINE, is_ready, point_fal_client_at
from deployments.cluster import make_token, token_environment
from deployments.gateway.sample import SAMPLE
from loadtest.postgres import Postgres
from tests import tiny
from tests.conftest import ROOT, free_port
from tests.k8s.conftest import Build, build
from tests.test_clients import download, probe

PATIENCE = 600.0
PICTURE = fal_client.encode_file(str(SAMPLE))
FAST = "fal-ai/fast-svd-lcm"
INPUTS: dict[str, dict[str, Any]] = {
    "fal-ai/stable-video": {"image_url": PICTURE},
    "fal-ai/svd": {"image_url": PICTURE, "steps": 2},
    FAST: {"image_url": PICTURE, "steps": 1},
    f"{FAST}/text-to-video": {"prompt": "a red boat", "steps": 1},
}
GPUS = len(INPUTS)
"""One a model: two whose parts would fit on one may come to lie on two. A real cluster's autoscaler adds pods."""


def groups(manifests: Build) -> list[dict[str, Any]]:
    """What the head and one node of each group offer to Ray."""
    head = manifests.cluster["headGroupSpec"]["rayStartParams"]
    nodes = [{"name": "head", "cpus": int(head["num-cpus"]), "gpus": int(head["num-gpus"]), "labels": {}}]
    for group in manifests.cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpus = GPUS * int(limits.get("nvidia.com/gpu", 0))
        cpus = int(group["rayStartParams"]["num-cpus"]) * group["replicas"]
        nodes.append({"name": group["groupName"], "cpus": cpus, "gpus": gpus, "labels": group["labels"]})
    return nodes


def small(manifests: Build, port: int, sizes: list[str]) -> dict[str, Any]:
    """The configuration with the small networks, at these sizes, on a port of this machine."""
    document = manifests.serve_config
    document["http_options"] |= {"host": "127.0.0.1", "port": port}
    (ours,) = tiny.document()["applications"]
    endpoints = ours["args"]["endpoints"]
    for endpoint in endpoints.values():
        if "sizes" in endpoint:
            endpoint["sizes"] = sizes
    document["applications"][0]["args"] = {"endpoints": endpoints}
    return document


def environment(manifests: Build, folder: Path, port: int, database_url: str) -> dict[str, str]:
    """That of the pods, with the stores of this machine for the bucket and the database."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SVD_", "RAY_"))}
    make_token(folder)
    here = {
        "HOME": str(folder),
        "HF_HOME": str(folder),
        "SVD_DATA_DIR": str(folder),
        "SVD_STORAGE_URL": (folder / "files").as_uri(),
        "SVD_PUBLIC_URL": f"http://127.0.0.1:{port}",
        "SVD_DATABASE_URL": database_url,
        "SVD_ADMIN_KEY": "admin:secret",
        "SVD_GRACE_SECONDS": "20",
    }
    return inherited | manifests.environment | here | ONE_MACHINE | token_environment(folder)


@dataclass
class Deployed:
    """A deployed service, and the process that holds its cluster."""

    url: str
    key: str
    port: int
    folder: Path
    process: subprocess.Popen[str]

    def ask(self, *command: str) -> Any:
        """What the cluster answers to a command."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(" ".join(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def deploy(self, document: dict[str, Any]) -> None:
        path = self.folder / "next.yaml"
        path.write_text(yaml.safe_dump(document))
        self.ask("deploy", str(path))

    def processes(self, *names: str) -> dict[str, set[int]]:
        """The processes of these deployments."""
        found = self.ask("where")["deployments"]
        return {name: {pid for _, pid, _ in found[name]["replicas"]} for name in names}


def until(condition: Callable[[], object], why: Callable[[], object] = lambda: "") -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, why()
        time.sleep(0.5)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Deployed]:
    """The production configuration on a cluster of this machine."""
    manifests = build("production")
    folder, port = tmp_path_factory.mktemp("rollout"), free_port()
    config, log = folder / "config.yaml", folder / "cluster.log"
    config.write_text(yaml.safe_dump(small(manifests, port, ["112x64"])))
    database_url = postgres.create(f"rollout_{uuid4().hex}", template="migrated")
    with tempfile.TemporaryDirectory(prefix="svd-", ignore_cleanup_errors=True) as sockets, log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.k8s.local_cluster", json.dumps(groups(manifests)), str(config)],
            cwd=ROOT,
            env=environment(manifests, folder, port, database_url) | {"RAY_TMPDIR": sockets},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            start_new_session=True,
        )
        service = Deployed(f"http://127.0.0.1:{port}", "admin:secret", port, folder, process)
        try:
            assert process.stdout and process.stdout.readline() == '"started"\n', log.read_text()[-4000:]
            until(lambda: is_ready(service.url), lambda: service.ask("where"))
            yield service
        finally:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    """End a cluster by the process that holds it, and whatever is left of it."""
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=30)
    for each in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.communicate()


@pytest.fixture
def fal(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> Iterator[fal_client.SyncClient]:
    for name in ("RUN_URL_FORMAT", "QUEUE_URL_FORMAT", "REST_URL", "CDN_URL"):
        monkeypatch.setattr(fal_client.client, name, getattr(fal_client.client, name))  # restored afterwards
    point_fal_client_at(deployed.url)
    client = fal_client.SyncClient(key=deployed.key)
    yield client
    client._client.close()


def size_of(result: dict[str, Any], folder: Path) -> tuple[int, int]:
    stream = probe(download((result.get("video") or result["image"])["url"], folder / "clip.mp4"))
    return stream["width"], stream["height"]


# ---------------------------------------------------------------- the tests


def test_each_deployment_is_on_the_nodes_of_its_group(deployed: Deployed) -> None:
    found = deployed.ask("where")
    homes = {name: {home for home, _, _ in each["replicas"]} for name, each in found["deployments"].items()}
    assert homes["Gateway"] == homes["Dispatcher"] == {"cpu"}
    assert homes["fal-ai--fast-svd-lcm"] == {"gpu"}
    assert set().union(*homes.values()) == {"cpu", "gpu"}, "the head computes nothing"
    assert set(found["proxies"]) == {"head", "cpu", "gpu"}


def test_every_model_makes_a_clip_for_the_official_client(
    deployed: Deployed, fal: fal_client.SyncClient, tmp_path: Path
) -> None:
    """Those without a replica get one for it: the controller looks into the database."""
    handles = {endpoint: fal.submit(endpoint, arguments=input) for endpoint, input in INPUTS.items()}
    results = {endpoint: handle.get() for endpoint, handle in handles.items()}
    assert {endpoint: size_of(result, tmp_path) for endpoint, result in results.items()} == {
        endpoint: (112, 64) for endpoint in INPUTS
    }
    homes = {
        home
        for name, each in deployed.ask("where")["deployments"].items()
        if name.startswith("fal-ai")
        for home, _, _ in each["replicas"]
    }
    assert homes == {"gpu"}


@dataclass
class Load:
    """Callers who go on submitting and polling. Every answer counts."""

    deployed: Deployed
    answers: list[tuple[str, int]] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    faults: list[object] = field(default_factory=list)

    def call(self, client: httpx.Client, method: str, path: str, **options: Any) -> Any:
        answer = client.request(method, f"{self.deployed.url}{path}", **options)
        self.answers.append((f"{method} {path}", answer.status_code))
        return answer.raise_for_status().json()

    def one(self, client: httpx.Client) -> None:
        """Submit and follow a request to its end."""
        id = self.call(client, "POST", f"/queue/{FAST}", json=INPUTS[FAST])["request_id"]
        self.accepted.append(id)
        path = f"/queue/{FAST}/requests/{id}"
        give_up = time.monotonic() + PATIENCE
        while self.call(client, "GET", f"{path}/status")["status"] != "COMPLETED":
            assert time.monotonic() < give_up, f"{id} does not end"
            time.sleep(0.2)
        self.call(client, "GET", path)

    def go_on(self, done: threading.Event) -> None:
        headers = {"authorization": f"Key {self.deployed.key}"}
        with httpx.Client(headers=headers, timeout=60, trust_env=False) as client:
            while not done.is_set():
                try:
                    self.one(client)
                except (httpx.HTTPError, AssertionError) as error:
                    self.faults.append(error)


@contextlib.contextmanager
def load(deployed: Deployed, callers: int) -> Iterator[Load]:
    running, done = Load(deployed), threading.Event()
    threads = [threading.Thread(target=running.go_on, args=[done]) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_a_new_version_comes_while_callers_go_on_and_no_request_fails(
    deployed: Deployed, fal: fal_client.SyncClient, tmp_path: Path
) -> None:
    names = ("Gateway", "Dispatcher", "fal-ai--fast-svd-lcm")
    before = deployed.processes(*names)
    with load(deployed, callers=2) as callers:
        until(lambda: len(callers.accepted) >= 3)
        deployed.deploy(small(build("production"), deployed.port, ["80x80"]))
        until(lambda: is_rolled(deployed, before), lambda: deployed.ask("where"))
        at_the_end = len(callers.accepted)
        until(lambda: len(callers.accepted) >= at_the_end + 3)

    assert callers.faults == []
    assert {status for _, status in callers.answers} == {200}
    assert len(callers.accepted) >= 6
    result = fal.subscribe(FAST, arguments=INPUTS[FAST])
    assert size_of(result, tmp_path) == (80, 80), "this is not the new version"


def is_rolled(deployed: Deployed, before: dict[str, set[int]]) -> bool:
    """Whether the application runs, and nothing of it is as old as before."""
    found = deployed.ask("where")
    replicas = {name: found["deployments"].get(name, {"replicas": []})["replicas"] for name in before}
    return found["status"] == "RUNNING" and all(
        now and all(state == "RUNNING" and pid not in before[name] for _, pid, state in now)
        for name, now in replicas.items()
    )
