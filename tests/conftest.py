"""What tests share: a queue on SQLite, and the real service, started once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import pytest
import yaml
from xdist.scheduler import LoadScopeScheduling

from deployments import metrics, tracing
from deployments.cli import is_ready
from deployments.models.messages import StoredFile
from deployments.queue.database import Database
from deployments.queue.files import Lifecycle, insert_file
from deployments.queue.store import RequestStore
from loadtest.postgres import Postgres, open_folder, programs
from loadtest.s3 import S3, program
from tests import tiny
from tests.observing import Kept
from tests.receiver import Receiver, run_receiver

ROOT = Path(__file__).parents[1]
READY_SECONDS = 240.0
MARKER = "a-secret-in-the-environment-of-the-service"
OTHERS_TOKEN = "the-token-of-another-cluster-of-this-user"


class Shares(LoadScopeScheduling):
    """Which tests one of pytest's processes has for itself: those of a file, those of all files that use ``server``.

    The service takes a minute to start and keeps a core busy: one for all processes is enough.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = ROOT / nodeid.partition("::")[0]
        return "server" if any(map(_uses_server, (file, file.with_name("conftest.py")))) else str(file)


@functools.cache
def _uses_server(file: Path) -> bool:
    """Whether a test asks for it, or a fixture."""
    asks = r"(def test_\w+|@pytest\.fixture.*\n(async )?def \w+)\([^)]*\bserver: Server"
    return file.exists() and bool(re.search(asks, file.read_text()))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Shares:
    """How tests are shared, where there are several processes."""
    return Shares(config, log)


@pytest.fixture(scope="session", autouse=True)
def tiny_weights() -> None:
    """The weights that most tests read."""
    tiny.write_once()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[RequestStore]:
    """An empty queue."""
    store = await RequestStore.open(database_url)
    yield store
    await store.close()


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """The URL of a database of this test's own. ``tests/queue`` asks for each kind in turn."""
    return sqlite_url


@pytest.fixture
def sqlite_url(tmp_path: Path, migrated_file: Path) -> str:
    """The URL of a SQLite database of this test's own."""
    shutil.copy(migrated_file, tmp_path / "queue.db")
    return f"sqlite+aiosqlite:///{tmp_path}/queue.db"


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database without requests. Migrating one for each test would take longer than most tests."""
    file = tmp_path_factory.mktemp("migrated") / "queue.db"
    asyncio.run(_migrate(f"sqlite+aiosqlite:///{file}"))
    return file


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


@pytest.fixture
def kept() -> Iterator[Kept]:
    """What this process measures."""
    kept = Kept()
    former = metrics.send_to(kept)
    yield kept
    metrics.send_to(former)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Who gets the spans of this process, all of them once ``tracing.stop()`` has been called."""
    with run_receiver() as receiver:
        monkeypatch.setenv(tracing.ENDPOINTS[-1], f"http://127.0.0.1:{receiver.port}")
        tracing.start("tests")
        yield receiver
        tracing.stop()


@pytest.fixture(scope="session")
def collector_of_server() -> Iterator[Receiver]:
    """Who gets the spans of ``server``."""
    with run_receiver() as receiver:
        yield receiver


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


def config_with(folder: Path, endpoint: str = "fal-ai/svd", **changes: Any) -> Path:
    """The tests' configuration with one endpoint alone, whose service starts in half the time."""
    document = tiny.document()
    (application,) = document["applications"]
    application["args"]["endpoints"] = {endpoint: application["args"]["endpoints"][endpoint] | changes}
    needed = ("Gateway", "Dispatcher", endpoint.replace("/", "--"))
    application["deployments"] = [each for each in application["deployments"] if each["name"] in needed]
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "one_endpoint.yaml"
    config.write_text(yaml.safe_dump(document))
    return config


def start_server(data_dir: Path, port: int, config: Path, environment: Mapping[str, str] | None = None) -> Server:
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
def server(tmp_path_factory: pytest.TempPathFactory, collector_of_server: Receiver) -> Iterator[Server]:
    """The service of all endpoints, one for the whole session. Its traces are collected."""
    folder = tmp_path_factory.mktemp("service")
    others = folder / "home" / ".ray" / "auth_token"
    others.parent.mkdir(parents=True)
    others.write_text(OTHERS_TOKEN)
    traced = {tracing.ENDPOINTS[-1]: f"http://127.0.0.1:{collector_of_server.port}", "OTEL_BSP_SCHEDULE_DELAY": "200"}
    environment = {"HOME": str(folder / "home"), "AWS_SECRET_ACCESS_KEY": MARKER, **traced}
    environment["SVD_GPU_HOURLY_USD"] = "3.6"  # so that clips made on a CPU cost something
    server = start_server(folder / "data", free_port(), tiny.config(folder), environment)
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
