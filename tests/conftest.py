"""What tests share: a queue on SQLite, and the real service, started once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

import pytest

from deployments.cli import is_ready
from deployments.models.messages import StoredFile
from deployments.queue.database import Database
from deployments.queue.files import Lifecycle, insert_file
from deployments.queue.store import RequestStore
from loadtest.postgres import Postgres, open_folder, programs
from loadtest.s3 import S3, program

ROOT = Path(__file__).parents[1]
READY_SECONDS = 240.0


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[RequestStore]:
    """An empty queue."""
    store = await RequestStore.open(database_url)
    yield store
    await store.close()


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """The URL of a database of this test's own. ``tests/queue`` asks for each kind in turn."""
    return f"sqlite+aiosqlite:///{tmp_path}/queue.db"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, one for the whole session. Its database ``migrated`` is a template."""
    with run_postgres(durable=False) as server:
        asyncio.run(_migrate(server.create("migrated")))
        yield server


@contextlib.contextmanager
def run_postgres(durable: bool = True) -> Iterator[Postgres]:
    """A PostgreSQL server, in a directory of its own: pytest closes its own ones to every other user."""
    if programs() is None:
        missing("PostgreSQL")
    with open_folder("svd-serve-postgres-") as folder:
        server = Postgres(folder / "server", durable)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 service, one for the whole session."""
    if program() is None:
        missing("SeaweedFS (weed)")
    service = S3(tmp_path_factory.mktemp("s3") / "service")
    service.start()
    yield service
    service.stop()


@pytest.fixture
def bucket_url(s3: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place in a bucket; this process is told how to reach it."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3.url(uuid4().hex)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        missing(f"the right to mount a disk ({mounted.stderr.strip()})")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


async def _migrate(url: str) -> None:
    await (await Database.open(url)).close()


async def add_file(
    database: Database,
    key: str,
    key_id: str,
    content_type: str,
    size: int,
    lifecycle: Lifecycle,
    request_id: str | None = None,
    sha256: str | None = None,
) -> None:
    """Record a file as whoever made it does."""
    async with database.transaction() as connection:
        await insert_file(connection, StoredFile(key, content_type, size, sha256), key_id, lifecycle, request_id)


@dataclass(frozen=True)
class Server:
    """A running service."""

    url: str
    key: str
    data_dir: Path
    process: subprocess.Popen[bytes]
    log: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_command(*options: str) -> list[str]:
    return [sys.executable, "-m", "deployments.cli", "serve", *options]


def start_server(
    data_dir: Path, port: int, config: Path = ROOT / "serve_config.yaml", environment: Mapping[str, str] | None = None
) -> Server:
    """Start ``svd-serve serve`` as a user does, with these variables; return when it is ready."""
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "server.log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SVD_", "RAY_"))}
    inherited["SVD_WEBHOOK_ALLOW_PRIVATE"] = "1"  # the receivers of tests are on this machine
    with log.open("wb") as output:
        process = subprocess.Popen(
            serve_command("--config", str(config), "--port", str(port), "--data-dir", str(data_dir)),
            cwd=ROOT,
            env=inherited | dict(environment or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    give_up = time.monotonic() + READY_SECONDS
    while not is_ready(url):
        if process.poll() is not None or time.monotonic() > give_up:
            process.kill()
            pytest.fail(f"the server did not start:\n{log.read_text()}")
        time.sleep(0.25)
    return Server(url, (data_dir / "admin.key").read_text().strip(), data_dir, process, log)


def stop_server(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(60)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The service of serve_config.yaml, one for the whole session."""
    server = start_server(tmp_path_factory.mktemp("service"), free_port())
    yield server
    stop_server(server)


def need(tool: str) -> str:
    """The path of a program. Without it a test is skipped, but never on CI."""
    path = shutil.which(tool)
    if path is None:
        missing(tool)
    return path


def missing(what: str) -> NoReturn:
    """Skip a test for want of something, but never on CI."""
    message = f"{what} is not there"
    pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
