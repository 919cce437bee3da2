"""SQLite on a Ray cluster: of one node, and of more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

PROGRAM = """
import asyncio
import ray
from ray.cluster_utils import Cluster
from deployments.app import open_store

async def opens():
    try:
        await (await open_store()).close()
    except ValueError as error:
        return str(error)
    return "opened"

options = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024}
cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
ray.init(address=cluster.address)
print(asyncio.run(opens()))
second = cluster.add_node(**options)
cluster.wait_for_nodes()
print(asyncio.run(opens()))
cluster.remove_node(second)
print(asyncio.run(opens()))
ray.shutdown()
cluster.shutdown()
"""


def test_sqlite_is_refused_where_the_cluster_has_a_second_node(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SVD_", "RAY_"))}
    environment |= {"SVD_DATA_DIR": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    alone, together, alone_again = done.stdout.splitlines()
    assert (alone, alone_again) == ("opened", "opened")
    assert together == (
        "SQLite is a file of one machine, and this Ray cluster has 2 nodes: "
        "name a PostgreSQL in SVD_DATABASE_URL (postgresql+asyncpg://…)"
    )
