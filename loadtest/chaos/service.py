"""The service under fire: everything of it is a process below this one, found by its title and ended by its pid.

Postgres (fsync on) · a file system of its own for the clips · svd-serve serve ─▶ Ray ─▶ proxy, gateway, dispatcher, …
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import httpx
import psutil
import yaml

from deployments.cli import ONE_MACHINE, SERVICE_ENVIRONMENT
from deployments.cluster import token_environment
from deployments.queue.database import Database
from loadtest.chaos.history import Limits
from loadtest.postgres import Postgres, open_folder

ROOT = Path(__file__).parents[2]
RUN_SECONDS = 20.0
"""A batch that takes longer is ended."""

ENDPOINT = "chaos/clip"
MODEL = "chaos--clip"
DISK_MEGABYTES = 512
STOP_SECONDS = 45.0
DEPLOY_SECONDS = 60.0

AUDIT = (Path(__file__).parent / "audit.sql").read_text()
"""The database's own record of what changes, by triggers: nobody who is killed can forget to write it."""


class Service:
    """One database, one storage, and ``svd-serve serve`` on them, which may be started many times."""

    def __init__(
        self, folder: Path, receiver_port: int, *, replicas: int, limits: Limits, seconds: float, **settings: str
    ) -> None:
        """Nothing is started yet.

        Args:
            folder: Where everything is kept.
            receiver_port: Where webhooks go.
            replicas: Processes that hold the model.
            limits: The batches' size, and how many dispatchers claim.
            seconds: How long a batch takes.
            settings: More environment variables.
        """
        self.folder = folder
        self.limits = limits
        self.webhook = f"http://127.0.0.1:{receiver_port}/hook"
        self._disks = contextlib.ExitStack()
        disks = self._disks.enter_context(open_folder("svd-serve-chaos-"))
        self.storage = disks / "storage"
        self.database = disks / "database"
        self.engine_journal = folder / "engine.jsonl"
        self.log = folder / "service.log"
        self.key = "campaign:" + os.urandom(16).hex()
        self.postgres: Postgres | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.mounted: list[Path] = []
        self._nodes: list[subprocess.Popen[bytes]] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._settings = settings
        self._config = _config(self.port, self.engine_journal, replicas, limits, seconds)

    # ---------------------------------------------------------------- up

    async def prepare(self) -> None:
        """Start the database, bring it to the newest schema, have it write down what changes, each disk its own."""
        for folder in (self.storage, self.database):
            folder.mkdir(mode=0o755)
            if _mount(folder):
                self.mounted.append(folder)
        self.postgres = Postgres(self.database / "postgres")
        self.postgres.start()
        self.database_url = self.postgres.create("campaign")
        await (await Database.open(self.database_url)).close()
        async with contextlib.aclosing(_Connection(self.database_url)) as database:
            await database.execute(AUDIT)

    def start(self) -> None:
        """Start the service, as a user does; it is not ready yet."""
        self.write_config()
        command = [sys.executable, "-m", "deployments.cli", "serve", "--config", str(self.folder / "config.yaml")]
        command += ["--port", str(self.port), "--data-dir", str(self.folder / "data")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment(), stdout=log, stderr=log, start_new_session=True
            )

    def write_config(self) -> Path:
        """Write serve_config.yaml."""
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self._config))
        return path

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SVD_", "RAY_"))}
        return kept | {
            "PYTHONPATH": str(ROOT),
            "SVD_DATABASE_URL": self.database_url,
            "SVD_STORAGE_URL": (self.storage / "files").as_uri(),
            "SVD_ADMIN_KEY": self.key,
            "SVD_WEBHOOK_ALLOW_PRIVATE": "1",
            **self._settings,
        }

    async def until_ready(self, seconds: float) -> bool:
        """Wait until the service says that it is ready; False when it does not in so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), httpx.AsyncClient(trust_env=False) as client:
                while True:
                    with contextlib.suppress(httpx.HTTPError):
                        if (await client.get(f"{self.url}/health/ready", timeout=5)).is_success:
                            return True
                    if self.process is None or self.process.poll() is not None:
                        return False
                    await asyncio.sleep(0.25)
        return False

    # ---------------------------------------------------------------- down

    def stop(self) -> None:
        """SIGTERM, as an operator does; SIGKILL to whatever is left."""
        if self.process is None:
            return
        tree = self._tree()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        self._bury(tree)

    def kill(self) -> None:
        """SIGKILL to all of the service at once."""
        tree = self._tree()
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._bury(tree)

    def _bury(self, tree: list[psutil.Process]) -> None:
        """Kill what is left of a tree of processes, and forget it."""
        _, alive = psutil.wait_procs(tree, timeout=5)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for ended in filter(None, [self.process, *self._nodes]):
            ended.wait()
        self.process, self._nodes = None, []

    def close(self, keep: bool = False) -> None:
        """End everything. Both disks are gone then; ``keep`` copies what they hold beside the logs before."""
        try:
            self.stop()
        finally:
            self._stop_database()
            if keep:
                self._copy_out()
            for disk in self.mounted:
                subprocess.run(["umount", "-l", str(disk)], check=False)
            self._disks.close()

    def _stop_database(self) -> None:
        if self.postgres is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess, AssertionError):
            self.postgres.resume()
        try:
            self.postgres.stop(signal.SIGQUIT)
        except subprocess.TimeoutExpired:
            self.postgres.kill()

    def _copy_out(self) -> None:
        for disk in filter(Path.exists, (self.storage, self.database)):
            try:
                shutil.copytree(disk, self.folder / disk.name)
            except OSError as error:
                print(f"not all of the {disk.name} could be copied: {error}")

    # ---------------------------------------------------------------- victims

    def replicas(self) -> list[psutil.Process]:
        """The processes that hold the model."""
        return self.find(f"ServeReplica:svd-serve:{MODEL}")

    def dispatchers(self) -> list[psutil.Process]:
        """The processes that claim."""
        return self.find("ServeReplica:svd-serve:Dispatcher")

    def find(self, title: str) -> list[psutil.Process]:
        """The processes below this one with a title, the oldest first."""
        found = []
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                if title in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def _tree(self) -> list[psutil.Process]:
        tree = []
        for process in filter(None, [self.process, *self._nodes]):
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                tree += [parent, *parent.children(recursive=True)]
        return tree

    # ---------------------------------------------------------------- Ray

    async def deploy(self) -> bool:
        """Roll out a configuration that restarts every process; whether Serve took it."""
        entry = self._config["applications"][0]["args"]["endpoints"][ENDPOINT]
        entry["seconds"] = round(entry["seconds"] + 0.001, 3)
        rolling = self._ray("deploy", str(self.write_config()))
        try:
            return await asyncio.to_thread(rolling.wait, DEPLOY_SECONDS) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            rolling.kill()
            rolling.wait()

    def add_node(self) -> subprocess.Popen[bytes]:
        """One more Ray node on this machine."""
        node = self._ray("node")
        self._nodes.append(node)
        return node

    def end_node(self, node: subprocess.Popen[bytes]) -> None:
        """End what is left of a node."""
        tree = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        node.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            node.wait(STOP_SECONDS)
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()
        self._nodes.remove(node)

    def _ray(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        (raylet, *_) = self.find("/raylet/raylet")
        address, *_ = re.findall(r"--gcs-address=(\S+)", " ".join(raylet.cmdline()))
        line = [sys.executable, "-m", "loadtest.chaos.ray_cluster", command, address, *arguments]
        environment = self._environment() | SERVICE_ENVIRONMENT | ONE_MACHINE | token_environment(self.folder / "data")
        with self.log.open("ab") as log:
            return subprocess.Popen(line, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)

    # ---------------------------------------------------------------- disks

    @contextlib.contextmanager
    def full(self, disk: Path) -> Iterator[None]:
        """Have no room on a disk."""
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(shutil.disk_usage(disk).free or 1))
        try:
            yield
        finally:
            ballast.unlink()

    # ---------------------------------------------------------------- the database

    async def query(self, sql: str) -> list[asyncpg.Record]:
        """Rows of the campaign's own questions."""
        async with contextlib.aclosing(_Connection(self.database_url)) as database:
            return await database.fetch(sql)


def _mount(folder: Path) -> bool:
    """Put a disk of its own there; whether that is allowed."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m,mode=755", "tmpfs", str(folder)]
    return shutil.which("mount") is not None and not subprocess.run(mount, capture_output=True, check=False).returncode


class _Connection:
    """A connection to the database that is not the service's."""

    def __init__(self, url: str) -> None:
        self._url = url.replace("+asyncpg", "")
        self._connection: asyncpg.Connection | None = None

    async def _open(self) -> asyncpg.Connection:
        self._connection = self._connection or await asyncpg.connect(self._url, timeout=5, command_timeout=30)
        return self._connection

    async def execute(self, sql: str) -> None:
        await (await self._open()).execute(sql)

    async def fetch(self, sql: str) -> list[asyncpg.Record]:
        return list(await (await self._open()).fetch(sql))

    async def aclose(self) -> None:
        if self._connection:
            await self._connection.close()


def _config(port: int, journal: Path, replicas: int, limits: Limits, seconds: float) -> dict[str, Any]:
    """The repository's serve_config.yaml with one endpoint: the campaign's."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    document["http_options"]["port"] = port
    (application,) = document["applications"]
    entry = {"model": "loadtest.chaos.engine:Clock", "sizes": ["32x32"], "journal": str(journal), "seconds": seconds}
    application["args"]["endpoints"] = {ENDPOINT: entry}
    kept = {each["name"]: each for each in application["deployments"] if each["name"] in ("Gateway", "Dispatcher")}
    kept["Dispatcher"]["user_config"] = {
        "batching": {MODEL: {"max_batch_size": limits.max_batch}},
        "run_seconds": {MODEL: RUN_SECONDS},
    }
    kept["Dispatcher"]["num_replicas"] = limits.claimers
    model = {"name": MODEL, "num_replicas": replicas, "ray_actor_options": {"num_cpus": 0, "num_gpus": 0}}
    application["deployments"] = [*kept.values(), model]
    return document
