"""Load tests run: the users against the real service, and against one that answers nonsense. Locust is a process."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import trustme

from loadtest import load, recording
from loadtest.watch import over_time
from loadtest.wire import CLIP, WAYS, Book, Order
from tests.conftest import ROOT, Server, free_port

CLIPS = 8


def run_load(*arguments: str, key: str = "a:b") -> subprocess.CompletedProcess[str]:
    """``python -m loadtest.load``, as a user does."""
    environment = {**os.environ, "FAL_KEY": key}
    command = [sys.executable, "-m", "loadtest.load", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def counts_of(folder: Path) -> dict[str, tuple[int, int]]:
    """How often each kind and name was counted, and how often it failed."""
    (part,) = recording.load(folder).parts
    return {f"{line.kind} {line.name}": (line.count, line.failed) for line in part.lines}


def dealt(ways: dict[str, int], endpoints: list[str], most: int, seed: int) -> list[Order]:
    """The orders that users get."""
    book = Book(ways, dict.fromkeys(endpoints, 1), most, seed)
    return [order for order in (book.next() for _ in range(most)) if order]


def test_users_make_clips_in_every_way(server: Server, tmp_path: Path) -> None:
    endpoints = ["fal-ai/fast-svd-lcm", "fal-ai/svd"]
    ordered = dealt(dict.fromkeys(WAYS, 1), endpoints, CLIPS, seed=3)
    assert {order.way for order in ordered} == set(WAYS)
    options = ["--host", server.url, "--users", "2", "--seconds", "120", "--clips", str(CLIPS), "--seed", "3"]
    options += ["--ways", ",".join(WAYS), "--endpoints", ",".join(endpoints), "--output", str(tmp_path)]
    told = run_load("soak", *options, key=server.key)
    assert told.returncode == 0, told.stdout + told.stderr + (tmp_path / "load-1.log").read_text()
    counts = counts_of(tmp_path)
    assert counts["CLIP all"] == (CLIPS, 0) and counts["GET head of the clip"] == (CLIPS, 0)
    for (way, endpoint), count in Counter((order.way, order.endpoint) for order in ordered).items():
        assert counts[f"CLIP {way} {endpoint}"] == (count, 0)
    assert counts["PUT upload"][0] == sum(order.way == "upload" for order in ordered)
    assert str(tmp_path / "report.html") in told.stdout
    assert server.key not in "".join(file.read_text() for file in tmp_path.iterdir())
    _check_watched(tmp_path)


def _check_watched(folder: Path) -> None:
    """The service's own account agrees with what the users counted."""
    told = recording.load(folder)
    lines = over_time(told.samples, "replicas")
    assert len(lines) >= 4 and all(max(value for _, value in points) >= 1 for points in lines.values())
    assert told.costs and told.costs["totals"]["successes"] >= CLIPS
    page = (folder / "report.html").read_text()
    assert "What the clips cost, by the service" in page and "Replicas:" in page


# ---------------------------------------------------------------- a service that answers nonsense


def box(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


GOOD = box(b"ftyp", b"isom") + box(b"moov")


class Nonsense(BaseHTTPRequestHandler):
    """Answers synchronous runs, each endpoint in its own wrong way, and streams as if they were runs."""

    protocol_version = "HTTP/1.1"
    refused: ClassVar[set[int]] = set()

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["content-length"])))
        what = self.path.split("/")[2]
        url = f"http://{self.headers['host']}/clips/{what}"
        if what == "busy" and sent["seed"] not in self.refused:
            self.refused.add(sent["seed"])
            self._answer(429, b'{"detail": "of a request", "error_type": "queue_full"}')
        elif what == "broken":
            self._answer(500, b'{"detail": "of a request", "error_type": "internal_error"}')
        elif what == "cut":
            self._answer(200, b'{"video": ', missing=10)
        else:
            url = url.replace("127.0.0.1", "192.0.2.1") if what == "away" else url
            video: dict[str, Any] = {"url": url, "content_type": "video/mp4", "file_name": "a.mp4", "file_size": 3}
            self._answer(200, json.dumps({"video": video, "seed": sent["seed"] - (what == "seedless")}).encode())

    def do_GET(self) -> None:
        if self.path == "/health/ready":
            self._answer(200, b"{}")
        elif self.path == "/clips/onwards":
            self._answer(302, b"", location="http://192.0.2.1/")
        elif self.path.startswith("/clips/"):
            self._answer(206, b"<html>not found</html>" if self.path.endswith("/html") else GOOD)
        else:
            self._answer(404, b'{"detail": "none"}')

    def _answer(self, status: int, body: bytes, missing: int = 0, location: str = "") -> None:
        self.send_response(status)
        if location:
            self.send_header("location", location)
        self.send_header("content-length", str(len(body) + missing))
        self.send_header("x-fal-request-id", "1")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = bool(missing)

    def log_message(self, *ignored: object) -> None:
        pass


@pytest.fixture
def nonsense() -> Iterator[str]:
    with serving() as port:
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Nonsense on a port of the loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Nonsense) as service:
        if tls:
            service.socket = tls.wrap_socket(service.socket, server_side=True)
        thread = threading.Thread(target=service.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield service.server_port
        finally:
            service.shutdown()
            thread.join()


PROBLEMS = {
    "html": "does not begin with ftyp",
    "broken": "500: internal_error",
    "away": "another machine",
    "onwards": "302: the service sends its callers on",
    "seedless": "the seed is not the one that was sent",
}


def test_what_is_wrong_fails_loudly_and_what_clients_bear_is_counted(nonsense: str, tmp_path: Path) -> None:
    endpoints = [f"a/{what}" for what in (*PROBLEMS, "busy")]
    ordered = Counter((order.way, order.endpoint) for order in dealt({"run": 3, "stream": 1}, endpoints, 40, seed=1))
    options = ["--clips", "40", "--ways", "run=3,stream=1", "--endpoints", ",".join(endpoints)]
    told = run_nonsense(nonsense, tmp_path, *options)
    assert told.returncode == 1, told.stdout + told.stderr
    counts, busy = counts_of(tmp_path), ordered["run", "a/busy"]
    assert busy and ordered["stream", "a/busy"] and all(ordered["run", f"a/{what}"] for what in PROBLEMS)
    for (way, endpoint), count in ordered.items():
        made = (way, endpoint) == ("run", "a/busy")
        assert counts[f"CLIP {way} {endpoint}"] == (count, 0 if made else count)
    assert counts["CLIP all"] == (40, 40 - busy)
    assert counts["POST run a/busy, tried again after 429"] == (busy, 0)
    assert not [name for name in counts if "tried again" in name and "run a/busy" not in name]
    assert f"{busy} calls of 1 users" in told.stdout
    _check_failures(tmp_path)
    assert "/metrics answered 404" in (tmp_path / "report.html").read_text()


def _check_failures(folder: Path) -> None:
    """Each says why, and has no time."""
    (part,) = recording.load(folder).parts
    found = {failure.name: failure.why for failure in part.failures if failure.kind == CLIP}
    assert all(problem in found[f"run a/{what}"] for what, problem in PROBLEMS.items())
    assert "429: queue_full" in found["stream a/busy"]  # the Python client tries no stream again
    timed = {line.name for line in part.lines if line.kind == CLIP and not math.isnan(line.mean)}
    assert timed == {"all", "run a/busy"}


def test_an_answer_that_is_cut_off_is_no_answer(nonsense: str, tmp_path: Path) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    options = ["--endpoints", "a/cut", "--seconds", "1", "--stop-seconds", "1", "--prometheus", away]
    assert run_nonsense(nonsense, tmp_path, *options).returncode == 1
    assert "Prometheus does not answer" in (tmp_path / "report.html").read_text()
    counts = counts_of(tmp_path)
    assert counts["POST run a/cut, tried again after no answer"][0] >= 1
    assert counts["CLIP all"] == (1, 1)  # it was on its way when the time was over


def run_nonsense(url: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    options = ["--users", "1", "--clips", "2", "--seconds", "30", "--output", str(folder), "--ways", "run"]
    return run_load("soak", "--host", url, *options, *more)


def test_nothing_runs_on_when_a_load_test_is_ended(nonsense: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtest.load", "soak", "--host", nonsense, "--output", str(tmp_path)]
    environment = {**os.environ, "FAL_KEY": "a:b"}
    with subprocess.Popen([*command, "--endpoints", "a/cut"], cwd=ROOT, env=environment) as started:
        log = tmp_path / "load-1.log"
        while not (log.exists() and log.stat().st_size):  # once locust says something it has begun
            assert started.poll() is None
            time.sleep(0.05)
        (locust,) = psutil.Process(started.pid).children()
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == 2
    assert not locust.is_running()


def test_a_load_that_does_not_begin_says_why(
    nonsense: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAL_KEY", "a:b")
    for name in ("load-9_stats.csv", "load-notes.txt"):
        (tmp_path / name).touch()
    assert load.main(["--host", nonsense, "--picture", "none.jpg", "--output", str(tmp_path)]) == 2
    assert "No such file or directory: 'none.jpg'" in capsys.readouterr().err
    assert {file.name for file in tmp_path.glob("load-[n9]*")} == {"load-notes.txt"}  # of a former run nothing is left


def test_the_key_goes_to_nobody_who_is_not_known(tmp_path: Path) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    with serving(tls) as port:
        told = run_locust(f"https://127.0.0.1:{port}", "--ways=stream", "--clips=1", f"--csv={tmp_path / 'load'}")
    assert told.returncode == 1
    assert "no answer" in (tmp_path / "load_failures.csv").read_text()


def run_locust(host: str, *more: str, key: str = "a:b") -> subprocess.CompletedProcess[str]:
    """Locust by itself."""
    command = [sys.executable, "-m", "locust", "--headless", "-f", "loadtest/locustfile.py", "--host", host, *more]
    environment = {**os.environ, "FAL_KEY": key, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--host", "http://10.0.0.1:8000"], "not this machine"),
        (["--host", "http://localhost.example.com"], "not this machine"),
        (["--users", "1000000"], "users"),
        (["--seconds", "1e9"], "seconds"),
        (["knee", "--loads", "1,x"], "invalid literal"),
        (["--ways", "walk"], "none of queue, run, stream, upload"),
        (["--endpoints", "a/b=0"], "nothing to choose from"),
    ],
)
def test_what_must_not_be_loaded_is_refused_before_anything_starts(
    arguments: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load.main([*arguments, "--output", str(tmp_path / "load")]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "load").exists()


def test_a_host_that_does_not_answer_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load.main(["--host", f"http://127.0.0.1:{free_port()}", "--output", str(tmp_path / "load")]) == 2
    assert "says that it is ready" in capsys.readouterr().err


def test_without_a_key_nothing_is_loaded(
    nonsense: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("FAL_KEY", "SVD_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SVD_DATA_DIR", str(tmp_path / "none"))
    assert load.main(["--host", nonsense, "--output", str(tmp_path / "load")]) == 2
    assert "there is no key" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("host", "key", "problem"), [("http://10.1.1.1", "a:b", "not this machine"), ("http://127.0.0.1:9", "", "FAL_KEY")]
)
def test_locust_by_itself_refuses_the_same(host: str, key: str, problem: str) -> None:
    told = run_locust(host, key=key)
    assert told.returncode != 0 and problem in told.stderr


def test_pytest_has_no_sockets_of_gevents() -> None:
    assert "gevent" not in sys.modules and "locust" not in sys.modules
