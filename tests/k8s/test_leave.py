"""How a pod ends: ``svd-serve leave``, in a process namespace of its own as in a container, with a Ray that is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, missing, need

RAY = """#!/bin/sh
echo "$@" >> "{folder}/said"
case "$1" in
  drain-node) {draining};;
  stop) ps -e -o args= | grep -c '^ray::' >> "{folder}/left" || true;;
esac
"""
PROGRAM = """
import subprocess, sys
from pathlib import Path
folder = Path(sys.argv[1])
serving = subprocess.Popen([sys.argv[4], "30"], executable=sys.argv[2])
(folder / "serving").write_text(str(serving.pid))
sys.executable = str(folder / "python")
from deployments import cli
status = cli.main(["leave", "--seconds", sys.argv[3]])
if serving.poll() is None:
    serving.kill()
serving.wait()
sys.exit(status)
"""


REPLICA, PROXY = "ray::ServeReplica:svd-serve:x", "ray::ProxyActor"


def leave(folder: Path, draining: str, seconds: int, serving: str = REPLICA) -> subprocess.CompletedProcess[str]:
    """Leave, beside a process that serves, with a ``ray`` that drains as told."""
    (folder / "ray").write_text(RAY.format(folder=folder, draining=draining))
    (folder / "ray").chmod(0o755)
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([need("unshare"), *alone[1:], "true"], capture_output=True).returncode:
        missing("the right to make namespaces")
    command = [*alone, sys.executable, "-c", PROGRAM, str(folder), need("sleep"), str(seconds), serving]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def said(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "said").read_text().splitlines()]


@pytest.mark.parametrize("serving", [REPLICA, PROXY])
def test_ray_is_told_and_ends_once_what_serves_has(tmp_path: Path, serving: str) -> None:
    """A call is answered by way of the proxy of this node, wherever its replica is."""
    done = leave(tmp_path, f'(sleep 2; kill $(cat "{tmp_path}/serving")) &', 60, serving)
    assert done.returncode == 0, done.stderr
    drain, stop = said(tmp_path)
    assert drain[0] == "drain-node" and drain[-2:] == ["--deadline-remaining-seconds", "60"]
    assert stop == ["stop"]
    assert (tmp_path / "left").read_text().split() == ["0"]


def test_a_replica_that_does_not_end_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    done = leave(tmp_path, ":", 2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "left").read_text().split() == ["1"]


def test_where_ray_does_not_answer_its_processes_end_all_the_same(tmp_path: Path) -> None:
    done = leave(tmp_path, "echo traceback >&2; echo there is no head >&2; exit 1", 60)
    assert done.returncode == 1
    assert done.stderr == "svd-serve: ray drain-node: there is no head\n"
    assert [words[0] for words in said(tmp_path)] == ["drain-node", "stop"]
