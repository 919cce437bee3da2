"""What the nemesis does to the service's Ray cluster, in processes of their own: they speak Ray, the campaign does not.

python -m loadtest.chaos.ray_cluster deploy ADDRESS CONFIG     as ``serve deploy`` does
python -m loadtest.chaos.ray_cluster node ADDRESS              one more node, until this process is told to end
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

import ray
import yaml
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema


def main() -> int:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    deploying = commands.add_parser("deploy")
    deploying.set_defaults(run=lambda options: deploy(options.address, options.config))
    joining = commands.add_parser("node")
    joining.set_defaults(run=lambda options: join(options.address, options.resources))
    for command in (deploying, joining):
        command.add_argument("address")
    deploying.add_argument("config", type=Path)
    joining.add_argument("--resources", type=json.loads, default={}, help="as JSON")
    options = parser.parse_args()
    options.run(options)
    return 0


def deploy(address: str, config: Path) -> None:
    """Give a running Serve a new configuration; it rolls by itself."""
    ray.init(address=address, log_to_driver=False)
    client = _get_global_client()
    assert client is not None
    client.deploy_apps(ServeDeploySchema.model_validate(yaml.safe_load(config.read_text())))
    ray.shutdown()


def join(address: str, resources: dict[str, float]) -> None:
    """Be a node until SIGTERM. As ``ray.cluster_utils.Cluster.add_node``, for a cluster that is not ours."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    parameters = RayParams(
        gcs_address=address,
        redis_address=address,
        num_cpus=1,
        num_gpus=0,
        resources=resources,
        object_store_memory=100 * 1024 * 1024,
        node_manager_port=0,
        min_worker_port=0,
        max_worker_port=0,
    )
    parameters.include_log_monitor = False  # type: ignore[assignment]  # it declares a text and wants a truth
    parameters.dashboard_agent_listen_port = None
    node = Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=True)
    print("joined", node.node_id, flush=True)
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    node.kill_all_processes(check_alive=False)


if __name__ == "__main__":
    sys.exit(main())
