"""The image: what is in it, and that its Dockerfile follows the rules. It is not built here: that takes a registry."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, missing
from tests.k8s.conftest import Build

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions(name: str) -> list[str]:
    joined = re.sub(r"\\\n\s*", " ", "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#")))
    return [line.partition(" ")[2].strip() for line in joined.splitlines() if line.startswith(f"{name} ")]


def lint(text: str) -> subprocess.CompletedProcess[str]:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint") or missing("hadolint")
    return subprocess.run([hadolint, "-"], input=text, capture_output=True, text=True, check=False)


def test_the_dockerfile_is_clean() -> None:
    done = lint(DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_linter_sees_what_is_wrong() -> None:
    assert "DL3007" in lint(DOCKERFILE.replace("python:3.11.14-slim-bookworm", "python:latest")).stdout


def test_each_base_is_one_exact_version() -> None:
    bases = {line.split()[0] for line in instructions("FROM")}
    assert len(instructions("FROM")) == 2 and len(bases) == 1
    assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?", bases.pop())


def test_nothing_is_installed_that_was_not_hashed() -> None:
    runs = " && ".join(instructions("RUN"))
    installs = re.findall(r"pip install [^&]+", runs)
    assert [line.strip() for line in installs] == [
        "pip install --require-hashes --requirement production.txt",
        "pip install --no-deps /dist/*.whl",
    ]
    assert "PIP_CONSTRAINT=constraints.txt pip wheel --no-deps" in runs
    pinned = (ROOT / "constraints.txt").read_text()
    assert re.search(r"(?m)^hatchling==", pinned), "what builds our wheel is of no version"


def test_it_runs_as_the_user_of_the_pods(manifests: Build) -> None:
    (user,) = instructions("USER")
    numbers = {
        (template["spec"]["securityContext"]["runAsUser"], template["spec"]["securityContext"]["runAsGroup"])
        for role, template in manifests.templates()
        if role in ("head", "cpu", "gpu", "svd-serve-weights")
    }
    assert {tuple(map(int, user.split(":")))} == numbers
    assert DOCKERFILE.index("USER ") > DOCKERFILE.index("apt-get")


def test_what_the_service_needs_of_the_system_is_in_it() -> None:
    (installed,) = [run for run in instructions("RUN") if "apt-get install" in run]
    assert {"ca-certificates", "ffmpeg", "gcc", "libc6-dev", "libseccomp2"} <= set(installed.split())


class Health(BaseHTTPRequestHandler):
    """A service that is ready."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health/ready" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_it_is_healthy_where_the_service_is_ready() -> None:
    """The check's own command, with a service at another port and with none."""
    (check,) = instructions("HEALTHCHECK")
    program, option, code = json.loads(check.partition("CMD ")[2])
    server = HTTPServer(("127.0.0.1", 0), Health)
    asked = [sys.executable, option, code.replace(":8000/", f":{server.server_port}/")]
    with server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        ready = subprocess.run(asked, capture_output=True, check=False)
        thread.join()
    absent = subprocess.run(asked, capture_output=True, check=False)
    assert (program, ready.returncode, absent.returncode) == ("python", 0, 1)
    assert instructions("EXPOSE") == ["8000"] and code not in asked


def test_nothing_goes_into_it_but_what_is_copied() -> None:
    """No large weights, no data, no secret, no test: .dockerignore lets through what COPY names, and that is all."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]}
    assert lines[0] == "*"
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    assert sum(path.stat().st_size for path in (ROOT / "deployments").rglob("*.safetensors")) < 25_000_000
