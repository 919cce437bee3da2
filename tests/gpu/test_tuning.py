"""How a model computes, on a real GPU: what no CPU can show. Every test is skipped where there is none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deployments.models.base import Clip
from deployments.models.checkpoints import Checkpoint, svd_parts
from deployments.models.sampler import SVDSampler, to_uint8
from deployments.models.schedules import euler_schedule
from deployments.models.tuning import Compiled, Tuning
from loadtest.gpu_sides import psnr, true_float32
from tests import tiny
from tests.conftest import ROOT

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own compiler warns of its own parts
]

WEIGHTS = tiny.WEIGHTS / "svd"
FIRST_CLIP = """
import sys, time
from pathlib import Path
from deployments.models.stable_video import StableVideo
from deployments.models.tuning import keep_compiled

keep_compiled(Path(sys.argv[1]))
tuning = {"compile": "default", "warm_up": [1]}
model = StableVideo("fal-ai/stable-video", StableVideo.Config(weights=sys.argv[2], sizes=["64x64"], tuning=tuning))
model.setup("cuda")
began = time.monotonic()
model.warm_up()
print("warmed up in", time.monotonic() - began)
"""


def clip(seed: int) -> Clip:
    colours = np.random.default_rng(seed).integers(0, 256, (4, 7, 3), dtype=np.uint8)
    return Clip(Image.fromarray(colours).resize((112, 64), Image.Resampling.BICUBIC), seed, 127, 0.02)


def load(tuning: Tuning) -> SVDSampler:
    return SVDSampler.load(svd_parts(Checkpoint(str(WEIGHTS)), None, None), "cuda", tuning=tuning)


def frames(sampler: SVDSampler, seed: int = 1, keep: Callable[[int], Any] = lambda done: [0]) -> torch.Tensor:
    latents = sampler.denoise([clip(seed)], euler_schedule(4), (1.0, 3.0), keep)[0]
    return sampler.finish(clip(seed), latents).cpu()


@pytest.fixture(scope="module")
def exact() -> torch.Tensor:
    with true_float32():
        return frames(load(Tuning(dtype="float32")))


@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(),
        Tuning(channels_last=True, fused_qkv=True, cudnn_benchmark=True),
        Tuning(attention="cudnn"),
        Tuning(attention="flash"),
        Tuning(dtype="float16"),
    ],
    ids=lambda each: str(each.model_dump(exclude_defaults=True)),
)
def test_what_is_rounded_stays_within_the_aim(tuning: Tuning, exact: torch.Tensor) -> None:
    assert psnr(frames(load(tuning)), exact) >= 35


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_networks_make_the_same_clips_again_and_again(mode: Any, exact: torch.Tensor) -> None:
    """With CUDA's graphs, too, where each replay writes over what the one before has answered."""
    sampler = load(Tuning(compile=mode, warm_up=(1,)))
    assert isinstance(sampler.unet.forward, Compiled)
    with sampler.learning():
        for _ in range(2):
            first = frames(sampler)
    other = frames(sampler, seed=2)
    assert psnr(first, exact) >= 35
    assert torch.equal(frames(sampler), first)
    assert not torch.equal(to_uint8(other), to_uint8(first))


def test_who_asks_is_one_step_behind_the_gpu_at_the_most() -> None:
    """When step n is told of, all that step n - 1 gave the GPU has been done."""
    sampler = load(Tuning())
    marks: list[torch.cuda.Event] = []

    def keep(done: int) -> list[int]:
        if done > 1:
            assert marks[-2].query()
        return [0]

    mark = sampler.mark

    def marked() -> Callable[[], None]:
        event = torch.cuda.Event()
        event.record()
        marks.append(event)
        return mark()

    sampler.mark = marked
    frames(sampler, keep=keep)
    assert len(marks) == 4


def test_a_clip_leaves_no_memory_behind() -> None:
    sampler = load(Tuning())
    frames(sampler)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    frames(sampler, seed=2)
    assert torch.cuda.memory_allocated() == before


def test_a_second_process_finds_what_the_first_has_compiled(tmp_path: Path) -> None:
    def seconds() -> float:
        command = [sys.executable, "-c", FIRST_CLIP, str(tmp_path), str(WEIGHTS)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=500)
        return float(done.stdout.rsplit(maxsplit=1)[1])

    cold, warm = seconds(), seconds()
    assert warm < cold / 2
