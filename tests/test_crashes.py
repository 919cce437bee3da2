"""Models that die, hang, eat memory or do not load, on a real service: F2, F15, F17, F28."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import psutil
import pytest
import yaml

from tests.conftest import ROOT, Server, free_port, start_server, stop_server
from tests.faulty import DIES, EATS, HANGS
from tests.test_faults import process_of

FIRST, SECOND = "test/first", "test/second"
MEMORY = Path("/sys/fs/cgroup/memory")
PATIENCE = 150


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with two models that do as they are told."""
    folder = tmp_path_factory.mktemp("faulty")
    document = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    (application,) = document["applications"]
    application["args"]["endpoints"] = {
        id: {"model": "tests.faulty:Faulty", "weights": str(weights_of(folder, id)), "sizes": ["112x64"]}
        for id in (FIRST, SECOND)
    }
    kept = [each for each in application["deployments"] if each["name"] in ("Gateway", "Dispatcher")]
    dispatcher = next(each for each in kept if each["name"] == "Dispatcher")
    dispatcher["user_config"] = {
        "batching": {"test--first": {"max_batch_size": 4}},
        "run_seconds": {"test--second": 3},
    }
    models = [{"name": name, "ray_actor_options": {"num_cpus": 0}} for name in ("test--first", "test--second")]
    application["deployments"] = kept + models
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    for id in (FIRST, SECOND):
        weights_of(folder, id).touch()
    server = start_server(folder, free_port(), folder / "config.yaml")
    yield server
    stop_server(server)


def weights_of(folder: Path, endpoint: str) -> Path:
    return folder / endpoint.replace("/", "-")


def call(server: Server, method: str, path: str, **options: object) -> httpx.Response:
    headers = {"authorization": f"Key {server.key}"} | options.pop("headers", {})  # type: ignore[operator]
    return httpx.request(method, f"{server.url}{path}", headers=headers, timeout=60, **options)  # type: ignore[arg-type]


def submit(server: Server, endpoint: str, seed: int = 1, steps: int = 2, **headers: str) -> str:
    body = {"image_url": f"{server.url}/files/samples/landscape.jpg", "steps": steps, "seed": seed}
    answer = call(server, "POST", f"/queue/{endpoint}", json=body, headers=headers).raise_for_status()
    return str(answer.json()["request_id"])


def result(server: Server, endpoint: str, request_id: str) -> httpx.Response:
    """The answer to a request once it has ended."""
    path = f"/queue/{endpoint}/requests/{request_id}"
    give_up = time.monotonic() + PATIENCE
    while (now := call(server, "GET", f"{path}/status?logs=1").json())["status"] != "COMPLETED":
        assert time.monotonic() < give_up, now
        time.sleep(0.1)
    return call(server, "GET", path)


def until(condition: object) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < give_up
        time.sleep(0.1)


def attempts(server: Server, endpoint: str, request_id: str) -> int:
    """How many replicas have begun with a request."""
    lines = call(server, "GET", f"/queue/{endpoint}/requests/{request_id}/status?logs=1").json()["logs"]
    return 1 + sum("retrying" in line["message"] for line in lines)


def test_killers_end_alone_and_a_device_that_hangs_is_replaced(service: Server) -> None:
    """F2 and F17, at once: the second takes its time."""
    hung = submit(service, SECOND, HANGS)
    before = process_of(service, "ServeReplica:svd-serve:test--second").pid
    blocker = submit(service, FIRST, steps=20)
    killer, *mates = [submit(service, FIRST, seed) for seed in (DIES, 1, 2, 3)]

    answer = result(service, SECOND, hung)
    assert (answer.status_code, answer.json()["detail"][0]["type"]) == (504, "generation_timeout")
    for each in (blocker, *mates):
        assert result(service, FIRST, each).status_code == 200
    answer = result(service, FIRST, killer)
    assert (answer.status_code, answer.json()["error_type"]) == (500, "runner_server_error")
    assert result(service, SECOND, submit(service, SECOND)).status_code == 200
    assert process_of(service, "ServeReplica:svd-serve:test--second").pid != before


def test_request_whose_replica_runs_out_of_memory_runs_again(service: Server) -> None:
    """F15: the kernel ends the process; Ray sees it as any other death."""
    assert result(service, FIRST, submit(service, FIRST)).status_code == 200
    replica = process_of(service, "ServeReplica:svd-serve:test--first")
    with memory_limit(replica, 200):
        eater = submit(service, FIRST, EATS)
        replica.wait(60)
    assert result(service, FIRST, eater).status_code == 200
    assert attempts(service, FIRST, eater) == 2


@contextmanager
def memory_limit(process: psutil.Process, more_megabytes: int) -> Iterator[None]:
    """Let a process have so much memory beyond what it has."""
    if not (MEMORY / "memory.limit_in_bytes").exists():
        pytest.skip("there is no memory controller here whose groups can be made")
    group = MEMORY / f"svd-serve-{uuid4().hex}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no group of processes can be made here: {error}")
    try:
        limit = more_megabytes * 1024 * 1024  # what it has already is counted where it came from
        (group / "memory.limit_in_bytes").write_text(str(limit))
        (group / "cgroup.procs").write_text(str(process.pid))
        yield
    finally:
        until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_model_that_does_not_load_leaves_the_others_alone(service: Server) -> None:
    """F28."""
    weights = weights_of(service.data_dir, SECOND)
    weights.unlink()
    process_of(service, "ServeReplica:svd-serve:test--second").kill()
    until(lambda: call(service, "GET", "/health/ready").status_code == 503)
    patient = submit(service, SECOND)
    impatient = submit(service, SECOND, **{"X-Fal-Request-Timeout": "3"})

    assert result(service, FIRST, submit(service, FIRST)).status_code == 200
    answer = result(service, SECOND, impatient)
    assert (answer.status_code, answer.json()["error_type"]) == (504, "startup_timeout")
    weights.touch()
    assert result(service, SECOND, patient).status_code == 200
    until(lambda: call(service, "GET", "/health/ready").status_code == 200)
