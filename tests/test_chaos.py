"""The fault campaign's short run: nothing that was acknowledged is lost, and nothing happens twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from loadtest.chaos.nemesis import EARLY, LATE
from loadtest.postgres import programs
from tests.conftest import ROOT, missing

SEED = os.environ.get("CHAOS_SEED", "5")


def test_every_invariant_survives_the_faults(tmp_path: Path) -> None:
    if programs() is None:
        missing("PostgreSQL")
    command = [sys.executable, "-m", "loadtest.chaos", "--seed", SEED, "--evidence", str(tmp_path / "evidence")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"seed {SEED}\n")
    if os.getuid() == 0:  # who may not mount a full disk leaves that fault out
        struck = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  F")}
        assert struck >= {*EARLY, *LATE}, done.stdout
