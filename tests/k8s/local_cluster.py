"""The Ray cluster that KubeRay would make of a RayService, on this machine: a process for each test that wants one.

    python -m tests.k8s.local_cluster CLUSTER CONFIG ◀── commands: deploy CONFIG | where
                                                     ──▶ one line of JSON for each

Each group of the manifest becomes nodes with the CPUs, GPUs and labels that it gives to Ray; GPUs are only counted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from deployments.cli import _deploy

OBJECT_STORE_BYTES = 80 * 1024 * 1024
TRIES = 4
"""How often a node may fail to start."""


def start(groups: list[dict[str, Any]]) -> dict[str, str]:
    """Start a node for each entry, the first of them the head; answer the group of each node by its id."""
    cluster = Cluster()
    common = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False, "dashboard_agent_listen_port": 0}
    of_node = {}
    for group in groups:
        offered = {"num_cpus": group["cpus"], "num_gpus": group["gpus"], "labels": group["labels"]}
        of_node[add(cluster, **offered, **common)] = group["name"]
    ray.init(address=cluster.address, log_to_driver=False)
    return of_node


def add(cluster: Cluster, **options: Any) -> str:
    """One more node; its id. A raylet gives its own agent fifteen seconds, and a busy machine may take longer."""
    for left in reversed(range(TRIES)):
        try:
            return str(cluster.add_node(**options).node_id)
        except Exception:
            if not left:
                raise
    raise AssertionError


def deploy(config: Path) -> None:
    """What KubeRay does with spec.serveConfigV2."""
    _deploy(ServeDeploySchema.model_validate(yaml.safe_load(config.read_text())))


def where(of_node: dict[str, str]) -> dict[str, Any]:
    """The state of each deployment, and group and process of each of its replicas; and the groups with a proxy."""
    client = _get_global_client()
    assert client is not None
    details = ray.get(client._controller.get_serve_instance_details.remote())
    (application,) = details["applications"].values()
    found: dict[str, Any] = {
        name: {"status": each["status"], "replicas": list(replicas(each, of_node))}
        for name, each in application["deployments"].items()
    }
    proxies = sorted(of_node[node] for node in details["proxies"])
    return {
        "status": application["status"],
        "deployments": found,
        "proxies": proxies,
        "message": application["message"],
    }


def replicas(deployment: dict[str, Any], of_node: dict[Any, str]) -> Iterator[list[Any]]:
    for each in deployment["replicas"]:
        yield [of_node.get(each.get("node_id"), "nowhere yet"), each.get("pid"), each["state"]]


def main() -> None:
    """Serve until there are no more commands."""
    of_node = start(json.loads(sys.argv[1]))
    deploy(Path(sys.argv[2]))
    print(json.dumps("started"), flush=True)
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "deploy":
            deploy(Path(arguments[0]))
        print(json.dumps(where(of_node)), flush=True)


if __name__ == "__main__":
    main()
