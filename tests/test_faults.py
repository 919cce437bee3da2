"""What dies in the middle, and how the service ends."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import ROOT, Server, config_with, free_port, serve_command, start_server, stop_server


def call(server: Server, method: str, path: str, **options: object) -> httpx.Response:
    headers = {"authorization": f"Key {server.key}"}
    return httpx.request(method, f"{server.url}{path}", headers=headers, timeout=60, **options)  # type: ignore[arg-type]


def submit(server: Server, steps: int = 60) -> str:
    body = {"image_url": f"{server.url}/files/samples/landscape.jpg", "steps": steps, "seed": 1}
    return str(call(server, "POST", "/queue/fal-ai/svd", json=body).raise_for_status().json()["request_id"])


def status(server: Server, request_id: str) -> dict[str, object]:
    return dict(call(server, "GET", f"/queue/fal-ai/svd/requests/{request_id}/status?logs=1").json())


def wait(server: Server, request_id: str, until: Callable[[dict[str, object]], bool]) -> dict[str, object]:
    give_up = time.monotonic() + 120
    while not until(now := status(server, request_id)):
        assert time.monotonic() < give_up, now
        time.sleep(0.05)
    return now


def process_of(server: Server, title: str) -> psutil.Process:
    """The one process of this server that Ray has given this title."""
    tree = psutil.Process(server.process.pid).children(recursive=True)
    (found,) = [process for process in tree if title in " ".join(process.cmdline())]
    return found


def is_running_steps(now: dict[str, object]) -> bool:
    return now["status"] == "IN_PROGRESS" and bool(now["logs"])


def is_completed(now: dict[str, object]) -> bool:
    return now["status"] == "COMPLETED"


@pytest.mark.parametrize("victim", ["ServeReplica:svd-serve:fal-ai--svd", "ServeReplica:svd-serve:Dispatcher"])
def test_request_survives_the_death_of_whoever_works_on_it(server: Server, victim: str) -> None:
    """F1 and F4."""
    request_id = submit(server)
    before = wait(server, request_id, is_running_steps)
    process_of(server, victim).kill()
    after = wait(server, request_id, is_completed)
    assert "error" not in after
    assert (before["gateway_request_id"], after["gateway_request_id"] == request_id) == (request_id, False)
    assert any("retrying" in line["message"] for line in after["logs"])  # type: ignore[attr-defined]
    first, second = [call(server, "GET", f"/queue/fal-ai/svd/requests/{request_id}").json() for _ in range(2)]
    assert first == second
    assert httpx.get(first["image"]["url"]).status_code == 200


def test_replica_that_is_told_to_end_ends_its_work_first(server: Server) -> None:
    """F22: SIGTERM to the process alone. It answers nothing any more, and Serve puts another in its place."""
    running, *waiting = [submit(server, steps=20), *(submit(server, steps=2) for _ in range(3))]
    wait(server, running, is_running_steps)
    process_of(server, "ServeReplica:svd-serve:fal-ai--svd").terminate()
    for each in (running, *waiting):
        assert "error" not in wait(server, each, is_completed)
        attempts, unbegun, crashes = counts_of(server, each)
        assert (attempts - unbegun, crashes) == (1, 0), "it was run twice"  # given back before it began, it was not
    assert counts_of(server, running)[0] == 1


def counts_of(server: Server, request_id: str) -> tuple[int, int, int]:
    """A request's attempts, those of them that never began, and those under which a process died."""
    with closing(sqlite3.connect(server.data_dir / "svd-serve.db")) as database:
        query = "SELECT attempt, unbegun, crashes FROM requests WHERE id = ?"
        found: tuple[int, int, int] = database.execute(query, (request_id,)).fetchone()
    return found


def test_accepted_requests_survive_a_killed_server(tmp_path: Path) -> None:
    port, config = free_port(), config_with(tmp_path)
    server = start_server(tmp_path, port, config)
    running = submit(server)
    wait(server, running, is_running_steps)
    waiting = submit(server, steps=2)
    tree = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    for process in tree:
        process.kill()
    psutil.wait_procs(tree, timeout=10)
    server.process.wait()

    server = start_server(tmp_path, port, config)
    try:
        for request_id in (running, waiting):
            assert "error" not in wait(server, request_id, is_completed)
    finally:
        stop_server(server)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_whole_process_tree(tmp_path: Path, number: signal.Signals) -> None:
    server = start_server(tmp_path, free_port(), config_with(tmp_path))
    tree = psutil.Process(server.process.pid).children(recursive=True)
    assert len(tree) > 5
    # Ctrl-C reaches every process of the terminal's group at once; SIGTERM usually only the first.
    (os.killpg if number == signal.SIGINT else os.kill)(server.process.pid, number)
    assert server.process.wait(60) == 0
    _, alive = psutil.wait_procs(tree, timeout=5)
    assert not alive, [process.cmdline() for process in alive]
    assert "Traceback" not in server.log.read_text()


def test_missing_weights_stop_the_start_and_are_named(tmp_path: Path) -> None:
    config = config_with(tmp_path, weights="/nowhere/at/all")
    command = serve_command("--data-dir", str(tmp_path), "--config", str(config), "--port", str(free_port()))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("svd-serve: fal-ai--svd could not be deployed:") and "/nowhere/at/all" in last


def test_signal_during_the_start_ends_it_and_starts_nothing(tmp_path: Path) -> None:
    command = serve_command("--data-dir", str(tmp_path), "--port", str(free_port()))
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    give_up = time.monotonic() + 60
    while not (tree := psutil.Process(server.pid).children(recursive=True)) and time.monotonic() < give_up:
        time.sleep(0.05)
    server.send_signal(signal.SIGTERM)
    output, _ = server.communicate(timeout=60)
    _, alive = psutil.wait_procs(tree, timeout=5)
    assert not alive, output
    assert output.count("Started a local Ray instance") <= 1, output
    assert "Traceback" not in output


def test_second_server_on_a_busy_port_says_so_in_one_line(server: Server, tmp_path: Path) -> None:
    command = serve_command("--data-dir", str(tmp_path), "--port", server.url.rpartition(":")[2])
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert second.stdout == ""
    assert second.stderr.count("\n") == 1 and "cannot listen on" in second.stderr


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("stable_video:StableVideo", "stable_video:Missing", "Missing"),
        ("sizes:", "size:", "size"),
        ("endpoints:", "endpoint:", "endpoint"),
    ],
)
def test_mistake_in_the_configuration_stops_the_start(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    config = tmp_path / "serve_config.yaml"
    config.write_text((ROOT / "serve_config.yaml").read_text().replace(old, new, 1))
    command = serve_command("--data-dir", str(tmp_path), "--config", str(config), "--port", str(free_port()))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert complaint in done.stderr and "Traceback" not in done.stderr
