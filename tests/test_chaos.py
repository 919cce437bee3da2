"""The fault campaign's short run: nothing that was acknowledged is lost, and nothing happens twice."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import psutil

from loadtest.chaos.__main__ import OWN_PROGRAMS
from loadtest.chaos.nemesis import EARLY, LATE
from loadtest.postgres import programs
from tests.conftest import ROOT, missing, need

SEED = os.environ.get("CHAOS_SEED", "5")
LIMIT_SECONDS = 900.0
"""More than all time limits of the campaign come to: start, load, faults that are late, drain, judgement, stop."""


def test_every_invariant_survives_the_faults() -> None:
    if programs() is None:
        missing("PostgreSQL")
    for tool in OWN_PROGRAMS:
        need(tool)
    status, told = run_campaign("--seed", SEED)
    print(told)
    assert status == 0, told
    assert told.startswith(f"seed {SEED}\n")
    if os.getuid() == 0:  # who may not mount a full disk leaves that fault out
        struck = {line.split()[0] for line in told.splitlines() if line.startswith("  F")}
        assert struck >= {*EARLY, *LATE}, told


def run_campaign(*options: str) -> tuple[int, str]:
    """Its exit status and what it told. Nothing of it lives on."""
    command = [sys.executable, "-m", "loadtest.chaos", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as campaign:
        try:
            told, _ = campaign.communicate(timeout=LIMIT_SECONDS)
        finally:
            kill_tree(campaign.pid)
    return campaign.returncode, told


def kill_tree(pid: int) -> None:
    """Kill a process with all that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [*root.children(recursive=True), root]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
