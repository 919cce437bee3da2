"""Several Ray nodes on this machine (F18, F21, F22): upgrades, downscales, drained and lost nodes lose no request.

And Ray's head without its GCS (F26). With Redis beneath, as in production, a GCS comes back and the service goes on;
there is none here, so that the service ends with it.

svd-serve serve (the head: gateway, dispatcher) ◀── join ── nodes with places for the model's replicas
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx
import psutil
import pytest
import yaml
from sqlalchemy import select

from deployments.cli import ONE_MACHINE, SERVICE_ENVIRONMENT
from deployments.cluster import token_environment
from deployments.queue.database import Database
from deployments.queue.tables import requests
from loadtest.postgres import Postgres
from tests.conftest import ROOT, Server, free_port, start_server, stop_server
from tests.faulty import DAWDLES, LINGERS
from tests.test_crashes import call, result, submit, until

ENDPOINT, MODEL = "test/model", "test--model"
REPLICA = f"ServeReplica:svd-serve:{MODEL}"
GRACE_SECONDS = 4
SHORT, LONG = 4, 16
"""Steps of half a second: one ends in the grace time, the other does not."""


@dataclass
class Cluster:
    """A service, and the nodes that have joined it."""

    server: Server
    environment: dict[str, str]
    nodes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Of the cluster's GCS."""
        tree = psutil.Process(self.server.process.pid).children(recursive=True)
        lines = [" ".join(each.cmdline()) for each in tree]
        return next(found[1] for line in lines if (found := re.search(r"--gcs-address=(\S+)", line)))

    def deploy(self, replicas: int) -> None:
        """What ``serve deploy`` does, with so many replicas on the nodes that have joined."""
        config = self.server.data_dir / "next.yaml"
        write_config(config, {"num_replicas": replicas, "max_replicas_per_node": 1, "placed": "worker"})
        self._ray("deploy", str(config)).communicate(timeout=60)

    def join(self) -> str:
        """One more node; its id."""
        node = self._ray("node", "--resources", json.dumps({"worker": 1}))
        assert node.stdout
        said, id = node.stdout.readline().split()
        assert said == "joined"
        self.nodes[id] = node
        return id

    def drain(self, node: str) -> None:
        """What an autoscaler does before it takes a node away."""
        ray = str(Path(sys.executable).with_name("ray"))
        line = [ray, "drain-node", "--address", self.address, "--node-id", node, "--reason-message", "a test"]
        line += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds", "60"]
        done = subprocess.run(line, env=self._environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    def kill(self, node: str) -> None:
        """The node's raylet; its workers follow."""
        for each in psutil.Process(self.nodes[node].pid).children():
            if "/raylet/raylet" in " ".join(each.cmdline()):
                each.kill()

    def replicas(self) -> dict[str, str]:
        """For each node that has a replica of the model, its process id."""
        return {id: str(found.pid) for id in self.nodes if (found := self._replica_on(id))}

    def _replica_on(self, node: str) -> psutil.Process | None:
        tree = psutil.Process(self.nodes[node].pid).children(recursive=True)
        for each in tree:
            try:
                if REPLICA in " ".join(each.cmdline()):
                    return each
            except psutil.NoSuchProcess:
                continue
        return None

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SVD_", "RAY_"))}
        ours = SERVICE_ENVIRONMENT | ONE_MACHINE | token_environment(self.server.data_dir)
        return kept | self.environment | ours | {"PYTHONPATH": str(ROOT)}

    def _ray(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "loadtest.chaos.ray_cluster", command, self.address, *arguments]
        with self.server.log.open("ab") as log:
            return subprocess.Popen(
                line, cwd=ROOT, env=self._environment(), stdout=subprocess.PIPE, stderr=log, text=True
            )


def write_config(path: Path, model: dict[str, object]) -> None:
    """A configuration with one model, whose deployment is as told."""
    document = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    (application,) = document["applications"]
    weights = path.parent / "weights"
    weights.touch()
    endpoint = {"model": "tests.faulty:Faulty", "weights": str(weights), "sizes": ["112x64"]}
    application["args"]["endpoints"] = {ENDPOINT: endpoint}
    kept = [each for each in application["deployments"] if each["name"] in ("Gateway", "Dispatcher")]
    next(each for each in kept if each["name"] == "Dispatcher")["user_config"] = {}
    place = model.pop("placed", None)
    options = {"num_cpus": 0} | ({"resources": {place: 1}} if place else {})
    application["deployments"] = [*kept, {"name": MODEL, "ray_actor_options": options, **model}]
    path.write_text(yaml.safe_dump(document))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Cluster]:
    """The service of one model on a head node, and two nodes without work."""
    folder = tmp_path_factory.mktemp("nodes")
    write_config(folder / "config.yaml", {})
    environment = {
        "SVD_DATABASE_URL": postgres.create(f"nodes_{uuid4().hex}", template="migrated"),
        "SVD_STORAGE_URL": (folder / "files").as_uri(),
        "SVD_GRACE_SECONDS": str(GRACE_SECONDS),
        "RAY_health_check_period_ms": "1000",  # a lost node is missed after a few seconds, not fifteen
    }
    port = free_port()
    server = start_server(folder, port, folder / "config.yaml", environment)
    environment |= {"SVD_DATA_DIR": str(folder), "SVD_PUBLIC_URL": server.url}
    cluster = Cluster(server, environment)
    try:
        yield cluster
    finally:
        stop_server(server)
        for node in cluster.nodes.values():
            for each in [*psutil.Process(node.pid).children(recursive=True), node]:
                each.kill()
            node.communicate()


def row(cluster: Cluster, request_id: str) -> tuple[int, int, int]:
    """(attempts that have begun, crashes, HTTP status) of a request."""

    async def read() -> tuple[int, int, int]:
        database = await Database.open(cluster.environment["SVD_DATABASE_URL"])
        columns = requests.c
        query = select(columns.attempt - columns.unbegun, columns.crashes, columns.status_code)
        async with database.read() as connection:
            found = (await connection.execute(query.where(columns.id == request_id))).one()
        await database.close()
        return tuple(found)

    return asyncio.run(read())


def start_work(cluster: Cluster, steps: int, seed: int = DAWDLES) -> str:
    """A request that runs."""
    request_id = submit(cluster.server, ENDPOINT, seed, steps)
    path = f"/queue/{ENDPOINT}/requests/{request_id}/status?logs=1"
    until(lambda: call(cluster.server, "GET", path).json().get("logs"))
    return request_id


def end_well(cluster: Cluster, *request_ids: str) -> None:
    for each in request_ids:
        assert result(cluster.server, ENDPOINT, each).status_code == 200


@contextmanager
def submitting(cluster: Cluster) -> Iterator[list[str]]:
    """A client that goes on submitting; every submit is accepted, and every request ends well."""
    accepted: list[str] = []
    refused: list[object] = []
    done = threading.Event()

    def submit_more() -> None:
        while not done.wait(0.5):
            try:
                accepted.append(submit(cluster.server, ENDPOINT))
            except httpx.HTTPError as error:
                refused.append(error)

    client = threading.Thread(target=submit_more)
    client.start()
    try:
        yield accepted
    finally:
        done.set()
        client.join()
    assert refused == []
    end_well(cluster, *accepted)


def test_nodes_and_replicas_come_and_go_and_no_request_is_lost(cluster: Cluster) -> None:
    first, second = cluster.join(), cluster.join()

    # F21: the new configuration replaces the replica on the head by two on the nodes. What runs ends.
    running = start_work(cluster, SHORT)
    with submitting(cluster) as accepted:
        cluster.deploy(replicas=2)
        until(lambda: cluster.replicas().keys() == {first, second})
        end_well(cluster, running)
        until(lambda: call(cluster.server, "GET", "/health/ready").status_code == 200)
    assert len(accepted) > 3
    assert {row(cluster, each) for each in (running, *accepted)} == {(1, 0, 200)}

    # F22: one of two busy replicas goes; it has no time to end its work, which goes back without blame.
    # Its steps take two seconds, so that both run still when ``deploy`` has been heard on a slow machine.
    long = [start_work(cluster, LONG, LINGERS), start_work(cluster, LONG, LINGERS)]
    cluster.deploy(replicas=1)
    end_well(cluster, *long)
    assert sorted(row(cluster, each) for each in long) == [(1, 0, 200), (2, 0, 200)]

    # F22: the node of the replica that is left is drained. A replica on the other node takes over.
    until(lambda: len(cluster.replicas()) == 1)
    (drained,) = cluster.replicas()
    (other,) = {first, second} - {drained}
    running = start_work(cluster, SHORT)
    with submitting(cluster) as accepted:
        cluster.drain(drained)
        until(lambda: cluster.replicas().keys() == {other})
    end_well(cluster, running)
    assert {row(cluster, each)[1:] for each in (running, *accepted)} == {(0, 200)}

    # F18: the node is lost with what runs there.
    third = cluster.join()
    running = start_work(cluster, LONG)
    cluster.kill(other)
    until(lambda: third in cluster.replicas())
    end_well(cluster, running)
    assert row(cluster, running) == (2, 0, 200)


def test_death_of_rays_head_loses_nothing(tmp_path: Path) -> None:
    """F26. What runs ends, what is accepted waits for the next start: nothing of a request is in Ray's memory."""
    config, port = tmp_path / "config.yaml", free_port()
    write_config(config, {})
    # Ray ends every process that has been without a GCS for a minute, which on a slow machine is not long enough.
    server = start_server(tmp_path, port, config, {"RAY_gcs_rpc_server_reconnect_timeout_s": "300"})
    cluster = Cluster(server, {})
    running = start_work(cluster, LONG)
    tree = psutil.Process(server.process.pid).children(recursive=True)
    (gcs,) = [each for each in tree if each.name() == "gcs_server"]
    gcs.kill()
    until(lambda: call(server, "GET", "/health/ready").status_code == 503)
    end_well(cluster, running)
    waiting = [submit(server, ENDPOINT, DAWDLES, LONG) for _ in range(4)]
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    assert not [each for each in tree if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]

    server = start_server(tmp_path, port, config)
    try:
        end_well(Cluster(server, {}), *waiting)
    finally:
        stop_server(server)
