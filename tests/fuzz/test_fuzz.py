"""Every target for a moment, and that the runner tells of a promise that is broken. ``make fuzz`` takes longer."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, missing

RUNS = 2000
SEED = 6
LARGEST_CORPUS = 200_000
NAMES = sorted(folder.name for folder in (Path(__file__).parent / "corpus").iterdir())

Report = Mapping[str, Mapping[str, Any]]


def fuzz(folder: Path, *options: str, seed: int = SEED) -> tuple[subprocess.CompletedProcess[str], Report]:
    """Run the fuzzer as ``make fuzz`` does; answer what it printed, and its figures by target."""
    report = folder / "report.json"
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--seed", str(seed), "--report", str(report), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert report.exists(), ended.stderr
    return ended, {each["target"]: each for each in json.loads(report.read_text())}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The figures of a short run of all targets."""
    ended, report = fuzz(tmp_path_factory.mktemp("fuzz"), "--runs", str(RUNS))
    print(ended.stdout)
    return report


@pytest.mark.parametrize("name", NAMES)
def test_a_parser_keeps_its_promises(report: Report, name: str) -> None:
    assert report[name]["found"] is None, report[name]["log"]
    corpus = len(list((Path(__file__).parent / "corpus" / name).iterdir()))
    assert report[name]["inputs"] >= corpus
    if importlib.util.find_spec("atheris") is None:
        missing("atheris")
    assert report[name]["inputs"] >= RUNS + corpus


def test_every_target_has_a_corpus_and_all_are_small(report: Report) -> None:
    assert sorted(report) == NAMES
    assert sum(path.stat().st_size for path in (Path(__file__).parent / "corpus").rglob("*")) < LARGEST_CORPUS


def test_a_promise_that_is_broken_is_told_with_the_input_that_broke_it(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        missing("atheris")
    ended, report = fuzz(tmp_path, "--module", "tests.fuzz.broken")

    assert ended.returncode == 1
    assert report["holds"]["found"] is None and report["holds"]["inputs"] == RUNS
    assert "AssertionError: found" in report["raises"]["log"]
    assert "MB" in report["grows"]["log"] and report["grows"]["peak_megabytes"] >= 100
    found = Path(report["raises"]["found"])
    assert b"\nmagic\n" in found.read_bytes()
    assert f"repeat: python -m tests.fuzz raises --input {found}" in ended.stdout
    repeat = [sys.executable, "-m", "tests.fuzz", "raises", "--module", "tests.fuzz.broken", "--input", str(found)]
    repeated = subprocess.run(repeat, cwd=ROOT, capture_output=True, text=True)
    assert repeated.returncode and "AssertionError: found" in repeated.stderr
    found.unlink()
    Path(report["grows"]["found"]).unlink()
