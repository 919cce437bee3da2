"""A service of one's own for a measurement: started on a free port of 127.0.0.1, and ended whatever happens."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deployments.cli import is_ready

READY_SECONDS = 600.0
STOP_SECONDS = 120.0
"""How long it may take to end: what runs is finished first."""


@dataclass(frozen=True)
class Running:
    """A service that is ready; ``took`` is how many seconds that took."""

    url: str
    key: str
    pid: int
    took: float


@contextlib.contextmanager
def run_server(
    data_dir: Path,
    config: Path = Path("serve_config.yaml"),
    log: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """A service with such variables, from ``with`` to its end.

    What it complains of goes to ``log``, or where this process's own complaints go.

    Raises:
        OSError: It ended before it was ready, or did not get ready.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "deployments.cli", "serve", "--config", str(config)]
    command += ["--port", str(port), "--data-dir", str(data_dir)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SVD_")}
    began = time.monotonic()
    with contextlib.nullcontext() if log is None else log.open("wb") as errors:
        server = subprocess.Popen(
            command, env=environment | dict(settings or {}), stdout=subprocess.DEVNULL, stderr=errors
        )
    try:
        url = f"http://127.0.0.1:{port}"
        if not _until_ready(server, url, began + READY_SECONDS):
            raise OSError(f"the service did not start{f': see {log}' if log else ''}")
        yield Running(url, (data_dir / "admin.key").read_text().strip(), server.pid, time.monotonic() - began)
    finally:
        _end(server)


def _until_ready(server: subprocess.Popen[bytes], url: str, give_up: float) -> bool:
    while server.poll() is None and time.monotonic() < give_up:
        if is_ready(url):
            return True
        time.sleep(0.1)
    return False


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
