"""How the service ends while it works (F22, F23): nothing is claimed, what runs ends or goes back, nothing is lost."""

from __future__ import annotations

import signal
import sqlite3
import time
from pathlib import Path

import httpx
import psutil

from tests.conftest import Server, config_with, free_port, start_server
from tests.test_faults import is_completed, is_running_steps, submit, wait


def row(server: Server, request_id: str) -> tuple[str, int, int | None]:
    """(status, attempt, status_code) as the database has it."""
    with sqlite3.connect(server.data_dir / "svd-serve.db") as database:
        query = "SELECT status, attempt, status_code FROM requests WHERE id = ?"
        found: tuple[str, int, int | None] = database.execute(query, (request_id,)).fetchone()
    database.close()
    return found


def start_work(server: Server, steps: int) -> str:
    """A request that runs."""
    request_id = submit(server, steps)
    wait(server, request_id, is_running_steps)
    return request_id


def kill_all(server: Server) -> None:
    tree = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    for process in tree:
        process.kill()
    psutil.wait_procs(tree, timeout=10)
    server.process.wait()


def test_signals_lose_nothing_whenever_they_come(tmp_path: Path) -> None:
    port, config = free_port(), config_with(tmp_path)
    server = start_server(tmp_path, port, config)
    running = start_work(server, steps=40)
    waiting = [submit(server, steps=2) for _ in range(4)]

    server.process.send_signal(signal.SIGTERM)
    told_at = time.monotonic()
    while httpx.get(f"{server.url}/health/ready").status_code != 503:
        assert time.monotonic() - told_at < 5, "it still says that it is ready"
        time.sleep(0.05)
    assert server.process.poll() is None
    assert server.process.wait(60) == 0
    assert row(server, running) == ("COMPLETED", 1, 200)
    left = [each for each in waiting if row(server, each)[0] != "COMPLETED"]
    assert len(left) >= 2, "it went on claiming"
    assert {row(server, each)[:2] for each in left} <= {("IN_QUEUE", 0), ("IN_QUEUE", 1)}

    server = start_server(tmp_path, port, config)
    for each in left:
        assert "error" not in wait(server, each, is_completed)
    killed = start_work(server, steps=60)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    kill_all(server)  # F23
    assert row(server, killed)[0] == "IN_PROGRESS"

    server = start_server(tmp_path, port, config)
    try:
        assert "error" not in wait(server, killed, is_completed)
        assert row(server, killed) == ("COMPLETED", 2, 200)
        given_back = start_work(server, steps=100)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1.0)
    finally:
        server.process.send_signal(signal.SIGTERM)
    hurried_at = time.monotonic()
    assert server.process.wait(30) == 0
    assert time.monotonic() - hurried_at < 20
    assert row(server, given_back)[:2] == ("IN_QUEUE", 1)
    assert "Traceback" not in server.log.read_text()
