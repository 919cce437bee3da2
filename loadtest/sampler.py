"""What our sampler costs beside diffusers' pipeline: ``python -m loadtest.sampler``.

    full-size networks without memory ──▶ FLOPs of a step, whole and with the shortcut
    the weights that ship, one thread ──▶ seconds a clip, stock pipeline and ours in turn ──▶ ratios

Every ratio compares runs of this one process, taken in turn, by their medians: machines are noisy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import deployments.models.weights
from deployments.models.base import FRAMES, Clip
from deployments.models.checkpoints import Checkpoint, svd_parts
from deployments.models.networks import DepthControlNet, VideoUNet, attend_to_one_token
from deployments.models.sampler import SVDSampler
from deployments.models.schedules import euler_schedule

WEIGHTS = Path(deployments.models.weights.__file__).parent / "svd"
HEADS = (5, 10, 20, 20)
STEPS = 8
ROUNDS = 5
GUIDANCE = (1.0, 3.0)


def main() -> None:
    """Print all figures."""
    torch.set_num_threads(1)
    print_flops()
    print_speed()


def print_flops() -> None:
    """TFLOP of a forward pass, 25 frames of 1024x576; a multiplication with its addition counts two."""
    with torch.device("meta"):
        unet, controlnet = VideoUNet(num_attention_heads=HEADS), DepthControlNet(num_attention_heads=HEADS)
    unet, controlnet = unet.to("meta"), controlnet.to("meta")
    call = {
        "sample": torch.empty(1, FRAMES, 8, 72, 128, device="meta"),
        "timestep": torch.empty(1, device="meta"),
        "encoder_hidden_states": torch.empty(1, 1, 1024, device="meta"),
        "added_time_ids": torch.empty(1, 3, device="meta"),
    }
    maps = torch.empty(1, FRAMES, 3, 576, 1024, device="meta")
    features = controlnet.embed(maps)
    whole = count(lambda: unet(**call))
    led = count(lambda: controlnet(**call, features=features, accumulate=True))
    seen = count(lambda: controlnet.embed(maps))
    attend_to_one_token(unet)
    attend_to_one_token(controlnet)
    ours, led_ours = count(lambda: unet(**call)), count(lambda: controlnet(**call, features=features, accumulate=True))
    print(f"UNet, one row           {whole:8.3f} TFLOP, ours {ours:8.3f} ({ours / whole:.4f})")
    print(f"guided step             {2 * whole:8.3f} TFLOP, ours {2 * ours:8.3f}")
    print(f"ControlNet, one row     {led + seen:8.3f} TFLOP, ours {led_ours:8.3f}, and {seen:.3f} once a clip")


def count(run: Callable[[], object]) -> float:
    """TFLOP of a call."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 1e12


def print_speed() -> None:
    """Seconds a clip on this CPU, one thread, float32, the weights that ship."""
    from diffusers import StableVideoDiffusionPipeline

    pipeline = StableVideoDiffusionPipeline.from_pretrained(WEIGHTS, dtype=torch.float32, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    sampler = SVDSampler.load(svd_parts(Checkpoint(str(WEIGHTS)), None, None))
    for count in (1, 4):
        clips = [make_clip(seed) for seed in range(count)]
        stock, ours = measure(lambda c=clips: run_stock(pipeline, c), lambda c=clips: run_ours(sampler, c))
        print(
            f"{count} clip(s), {STEPS} guided steps: stock {stock / count:.3f} s each, ours {ours / count:.3f} s, "
            f"ratio {ours / stock:.3f}"
        )


def measure(*runs: Callable[[], object]) -> list[float]:
    """The median seconds of each, after a warm-up, taken in turn."""
    for run in runs:
        run()
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, taken in zip(runs, seconds, strict=True):
            began = time.perf_counter()
            run()
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken) for taken in seconds]


def make_clip(seed: int) -> Clip:
    """A clip of 112x64 of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 7, 3), dtype=np.uint8)
    return Clip(Image.fromarray(colours).resize((112, 64)), seed, motion_bucket_id=127, cond_aug=0.02)


def run_stock(pipeline: Any, clips: list[Clip]) -> None:
    """As a script does that has the pipeline: all pictures in one call."""
    pipeline(
        [clip.picture for clip in clips],
        height=64,
        width=112,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        decode_chunk_size=FRAMES,
        generator=[torch.Generator("cpu").manual_seed(clip.seed) for clip in clips],
        output_type="pt",
    )


def run_ours(sampler: SVDSampler, clips: list[Clip]) -> None:
    """As a replica does."""
    sampler.sample(clips, euler_schedule(STEPS), GUIDANCE, lambda done: range(len(clips)))


if __name__ == "__main__":
    main()
