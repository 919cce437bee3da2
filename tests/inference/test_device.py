"""A replica's share of a GPU's memory. How replicas are placed on GPUs is tested in ``tests/test_scaling.py``."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deployments.inference import device as device_module
from deployments.inference.device import BESIDE_BYTES, Device, missing_bytes, taken_by_others
from tests.conftest import ROOT
from tests.tiny import WEIGHTS

GB = 1024**3

LIMITED = """
import ray, torch
from deployments.inference.device import open_device, taken_by_others

@ray.remote(num_gpus=0.25)
def allocate():
    assert open_device() == "cuda"
    total = torch.cuda.mem_get_info()[1]
    kept = torch.empty(int(0.2 * total), dtype=torch.uint8, device="cuda")
    try:
        torch.empty(int(0.1 * total), dtype=torch.uint8, device="cuda")
    except torch.cuda.OutOfMemoryError:
        return taken_by_others()
    return "there was more"

ray.init(num_cpus=1, include_dashboard=False)
print("answer:", ray.get(allocate.remote()))
"""


KEEPING = """
import resource, sys, torch
from deployments.inference.device import keep_freed_memory
from deployments.models.checkpoints import Checkpoint, svd_parts
from deployments.models.sampler import SVDSampler

if sys.argv[1] == "keep":
    keep_freed_memory()
torch.set_num_threads(1)
sampler = SVDSampler.load(svd_parts(Checkpoint(sys.argv[2]), None, None))

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    frames = sampler.decode(torch.ones(25, 4, 8, 14))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, float(frames.double().sum())

faults()
print(*faults())
"""


def test_freed_memory_is_not_fetched_anew() -> None:
    """A clip is decoded with less than half of the page faults, and is the same."""

    def decode(how: str) -> tuple[int, float]:
        command = [sys.executable, "-c", KEEPING, how, str(WEIGHTS / "svd")]
        printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        faults, total = printed.split()
        return int(faults), float(total)

    kept, left = decode("keep"), decode("leave")
    assert kept[0] < left[0] / 2
    assert kept[1] == left[1]


def test_what_is_begun_runs_in_the_thread_of_all_that_follows() -> None:
    async def then() -> int:
        return await device.run(threading.get_ident)

    device = Device()
    first = device.begin(threading.get_ident)
    assert asyncio.run(then()) == first != threading.get_ident()


@pytest.mark.parametrize(("given_by_ray", "told"), [([0], 1), ([], 0)])
def test_a_gpu_that_torch_does_not_find_is_told(
    given_by_ray: list[int], told: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device_module.ray, "get_gpu_ids", lambda: given_by_ray)
    monkeypatch.setattr(device_module, "_assigned", lambda resource: 1.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(device_module, "keep_freed_memory", lambda: None)

    assert device_module.open_device() == "cpu"
    assert caplog.text.count("torch finds no GPU where Ray gave this process one") == told


@given(
    total=st.integers(4 * GB, 200 * GB),
    share=st.floats(0.05, 1),
    used=st.floats(0, 1),
    others=st.floats(0, 1),
)
def test_a_share_is_missing_only_where_others_took_more_than_was_left(
    total: int, share: float, used: float, others: float
) -> None:
    reserved = int(used * share * total)
    taken = int(others * (total - reserved))
    missing = missing_bytes(total, total - reserved - taken, reserved, share)
    beyond = taken - int((1 - share) * total) - BESIDE_BYTES
    assert missing == pytest.approx(max(0, beyond), abs=2)


def test_neighbours_within_their_shares_are_no_news() -> None:
    """Three processes with a third of 24 GB each, all of it in use, and half a gigabyte of CUDA's in each."""
    own = 8 * GB
    assert missing_bytes(24 * GB, 0, own - 3 * GB // 2, 1 / 3) == 0


def test_on_a_cpu_nothing_is_missing() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert taken_by_others() == 0
    Device().check_health()


def test_what_others_take_is_told_when_it_begins(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([0, 3 * GB, 3 * GB, 0, GB])
    monkeypatch.setattr(device_module, "taken_by_others", lambda: next(answers))
    device = Device()
    with caplog.at_level(logging.WARNING, "deployments.inference.device"):
        told = []
        for _ in range(5):
            device.check_health()
            told.append(len(caplog.records))
    assert told == [0, 1, 1, 1, 2]
    assert "3221 MB" in caplog.text


def test_a_gpu_that_has_failed_is_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(device_module, "taken_by_others", fail)
    with pytest.raises(RuntimeError, match="CUDA error"):
        Device().check_health()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_process_gets_no_more_than_its_share_of_a_gpu() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "answer: 0" in done.stdout, done.stderr
