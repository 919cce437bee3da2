"""Rows 23 and 24 of the conformance table: a worker that crashes, a server that is killed; seen by the real client."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from tests.conformance.conftest import Programs
from tests.conftest import Server, config_with, free_port, start_server, stop_server
from tests.test_faults import process_of

REPLICA = "ServeReplica:svd-serve:fal-ai--svd"


def kill_replica_once_it_works(server: Server) -> threading.Thread:
    """Kill the model's replica while it works on the request that comes next."""

    def kill() -> None:
        victim = process_of(server, REPLICA)
        time.sleep(2.5)  # the program below has submitted by then, and its request takes far longer
        victim.send_signal(signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def submit_and_lose(programs: Programs, headers: str) -> Any:
    """One long request, whose replica dies at its work."""
    thread = kill_replica_once_it_works(programs.server)
    seen = programs.python(f"""
        handle = fal_client.submit('fal-ai/svd', arguments={{'image_url': picture, 'steps': 60}}, headers={headers})
        error = failure(handle.get)
        tell([handle.request_id, error and [error['status'], error['type']]])""")
    thread.join()
    return seen


def test_row_23_a_crash_is_retried_unless_the_caller_says_no(programs: Programs) -> None:
    request_id, error = submit_and_lose(programs, "{}")
    assert error is None
    status = programs.curl("GET", f"/queue/fal-ai/svd/requests/{request_id}/status").json()
    assert status["gateway_request_id"] != request_id
    _, error = submit_and_lose(programs, "{'X-Fal-No-Retry': '1'}")
    assert error == [503, "runner_disconnected"]


def test_row_24_what_was_accepted_outlives_the_server(tmp_path: Path) -> None:
    port, config = free_port(), config_with(tmp_path)
    server = start_server(tmp_path / "data", port, config)
    tree = psutil.Process(server.process.pid).children(recursive=True)
    try:
        request_id = Programs(server, tmp_path).python("""
            tell(fal_client.submit('fal-ai/svd', arguments={'image_url': picture, 'steps': 30}).request_id)""")
    finally:
        server.process.kill()
        for process in tree:
            if process.is_running():
                os.kill(process.pid, signal.SIGKILL)
        server.process.wait()
        psutil.wait_procs(tree, timeout=20)
    again = start_server(server.data_dir, port, config)
    try:
        result = Programs(again, tmp_path).python(f"tell(fal_client.result('fal-ai/svd', '{request_id}'))")
    finally:
        stop_server(again)
    assert "image" in result
