"""Frames do not change from one version of ours to the next unless somebody means it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

PORTABLE = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "OMP_NUM_THREADS": "1",
}
"""The code that every x86 processor has: with AVX2 or AVX-512 the same sums round differently."""

GOLDEN = {
    "euler": "b648b2d3783032945fafbd813e4e4df9cc1f1da226d39dcf1c3d85065faec566",
    "lcm": "37d8c92f29fdb2621e719482299d09e4bb8e77d45eaf37d49cc4bc242b92a394",
    "led": "4ca571f73193fb3369d3139b20d84cda247a6a9fb3c2f2ee52250735507c2be0",
}


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="another torch rounds in its own way")
def test_frames_are_what_they_were() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "tests.models.golden"],
        check=True,
        capture_output=True,
        cwd=ROOT,
        env=os.environ | PORTABLE,
    ).stdout
    assert json.loads(printed) == GOLDEN
