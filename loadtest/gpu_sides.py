"""What ``loadtest.gpu_bench`` compares: diffusers' pipeline and our sampler, of the same networks; and how to measure.

Bench: device, networks, clip ──▶ Stock or Ours ──▶ timed, by stage ──▶ seconds, peak of memory
                             └──▶ the clip's latents in float32, kept in a file ──▶ PSNR of what a side makes
"""

from __future__ import annotations

import argparse
import functools
import gc
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deployments.inference.encode import encode_mp4, ffmpeg_binary
from deployments.models.base import FRAMES, Clip, Size, VideoModel
from deployments.models.fast_svd_lcm import FastSVDLCM
from deployments.models.sampler import SVDSampler, to_uint8
from deployments.models.stable_video import StableVideo
from deployments.models.svd import SVD
from deployments.models.tuning import Tuning, keep_compiled
from loadtest.full_size import SMALL, Networks

ENDPOINTS: dict[str, tuple[type[VideoModel], int]] = {
    "fal-ai/stable-video": (StableVideo, 25),
    "fal-ai/svd": (SVD, 20),
    "fal-ai/fast-svd-lcm": (FastSVDLCM, 4),
}
"""The model behind each, and its steps unless a caller says otherwise."""

SIZE, TINY_SIZE = Size(1024, 576), Size(112, 64)
TINY_STEPS = 2
REFERENCE = Tuning(dtype="float32")
STOCK_CHUNK = 5
"""Frames that diffusers' pipeline decodes together: with so many its published figures were made (OneDiff PR 514)."""


class Bench:
    """The device, the networks and the clip, for all commands.

    Args:
        options: The command line's.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = "cpu" if options.cpu else "cuda"
        self.size: Size = options.size or (TINY_SIZE if options.tiny else SIZE)
        self._references: Path | None = options.references
        self._latents: dict[str, torch.Tensor] = {}
        if self.device == "cpu":
            torch.set_num_threads(1)
        if options.compile_cache:
            keep_compiled(options.compile_cache)
        self._steps: int | None = options.steps or (TINY_STEPS if options.tiny else None)
        self._weights: Path | None = options.weights or (SMALL if options.tiny else None)
        self._variant: str | None = options.variant
        self._held = 0

    @functools.cached_property
    def networks(self) -> Networks:
        """In float32, on the device."""
        if self._weights:
            return Networks.read(self._weights, self.device, self._variant)
        return Networks.random(self.device)

    def steps(self, endpoint: str) -> int:
        """How many a clip of an endpoint has."""
        return self._steps or ENDPOINTS[endpoint][1]

    def clip(self, size: Size | None = None, seed: int = 0) -> Clip:
        """A clip of coarse random colours."""
        size = size or self.size
        colours = np.random.default_rng(seed).integers(0, 256, (9, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(colours).resize((size.width, size.height), Image.Resampling.BICUBIC)
        return Clip(picture, seed, motion_bucket_id=127, cond_aug=0.02)

    def synchronise(self) -> None:
        """Wait until the device has done what it was told."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], rounds: int) -> float:
        """The median of several runs after one that warms up."""
        run()
        taken = []
        for _ in range(rounds):
            self.synchronise()
            began = time.perf_counter()
            run()
            self.synchronise()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def ceiling(self) -> float:
        """TFLOP/s of a large matrix product of random numbers: bfloat16 on a GPU, float32 on a CPU."""
        side, dtype = (8192, torch.bfloat16) if self.device == "cuda" else (512, torch.float32)
        left, right = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
        return 2 * side**3 / self.seconds(lambda: left @ right, rounds=20) / 1e12

    def make_room(self) -> None:
        """Let go of the side that was before, and take what is held from now on for the next one's."""
        torch.compiler.reset()
        gc.collect()  # a network and its compiled forward pass hold each other
        if self.device == "cuda":
            _ = self.networks  # which no side is to be charged with
            torch.cuda.empty_cache()
            self._held = torch.cuda.memory_allocated()

    def forget_networks(self) -> None:
        """Let go what sides are copied from, where no other side will be."""
        del self.networks
        self._held = 0
        self.forget_peak()

    def forget_peak(self) -> None:
        """Measure the peak of memory from now on."""
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float:
        """Of what the side had allocated since then; 0 on a CPU."""
        return (torch.cuda.max_memory_allocated() - self._held) / 1e9 if self.device == "cuda" else 0.0

    def float32_latents(self, endpoint: str, kind: str) -> torch.Tensor:
        """The clip's latents [F, C, h, w] as float32 makes them, by ``stock`` or ``ours``: made once, then read.

        A clip in float32 takes minutes at full size and its latents 4 MB, so they are worth a file.
        """
        weights = self._weights.name if self._weights else "random"
        name = f"{endpoint.replace('/', '--')}-{kind}-{self.steps(endpoint)}-{self.size}-{weights}.pt"
        if name not in self._latents:
            self._latents[name] = self._kept(name, lambda: self._in_float32(endpoint, kind))
        return self._latents[name]

    def _kept(self, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A tensor from the folder of references, where it is put if there is one."""
        if not self._references:
            return make()
        file = self._references / name
        if not file.exists():
            self._references.mkdir(parents=True, exist_ok=True)
            torch.save(make(), file)
        tensor: torch.Tensor = torch.load(file, weights_only=True)
        return tensor

    def _in_float32(self, endpoint: str, kind: str) -> torch.Tensor:
        with true_float32():
            side = Stock(self, endpoint, torch.float32) if kind == "stock" else Ours(self, endpoint, REFERENCE)
            return side.latents(self.clip()).cpu()


class Ours:
    """A sampler as a replica has it, for one endpoint, warmed up."""

    def __init__(self, bench: Bench, endpoint: str, tuning: Tuning, sizes: Sequence[Size] = ()) -> None:
        kind, _ = ENDPOINTS[endpoint]
        self.endpoint = endpoint
        self._steps = bench.steps(endpoint)
        config = {"weights": "none", "sizes": sizes or [bench.size], "tuning": tuning}
        self.model = kind(endpoint, kind.Config.model_validate(config))
        self.sampler: SVDSampler = bench.networks.ours(tuning)
        self.model._sampler = self.sampler
        self.model.warm_up()

    @property
    def reference(self) -> str:
        """Whose clip in float32 is the same: the stock pipeline has no schedule for an LCM, so there it is ours."""
        return "ours" if isinstance(self.model, FastSVDLCM) else "stock"

    @property
    def cut(self) -> list[int]:
        """How many frames are decoded together each time."""
        return self.sampler.cut(FRAMES)

    def frames(self, clips: Sequence[Clip]) -> list[np.ndarray]:
        """uint8, of every clip."""
        made = self.model.generate(clips, self._steps, lambda done: range(len(clips)))
        return [frames for frames in made if frames is not None]

    def latents(self, clip: Clip) -> torch.Tensor:
        """Of the clip, without noise, [F, C, h, w]."""
        schedule = self.model.schedule(self._steps)
        (latents,) = self.sampler.denoise([clip], schedule, self.model.guidance, lambda done: [0]).values()
        return latents

    def exact(self, clip: Clip) -> torch.Tensor:
        """Frames before rounding, [F, 3, H, W] in 0..1 on the CPU."""
        return self.sampler.finish(clip, self.latents(clip)).cpu()

    def run(self, clip: Clip) -> None:
        """From the picture to the encoded file."""
        (frames,) = self.frames([clip])
        encode(frames)

    def stages(self) -> list[tuple[Any, str, str]]:
        """What is timed by itself: whose function, which, and the stage's name."""
        return [
            (self.sampler, "_embed", "clip"),
            (self.sampler, "_encode", "vae encode"),
            (self.sampler, "_velocity", "step"),
            (self.sampler, "decode", "vae decode"),
            (sys.modules[__name__], "encode_mp4", "encode"),
        ]


class Stock:
    """diffusers' pipeline, for the same work. Of an LCM it has the steps but no schedule, so its frames are others."""

    reference = "stock"
    cut: Sequence[int] = [STOCK_CHUNK] * (FRAMES // STOCK_CHUNK)

    def __init__(self, bench: Bench, endpoint: str, dtype: torch.dtype, compiled: bool = False) -> None:
        kind, _ = ENDPOINTS[endpoint]
        self.endpoint = endpoint
        self._steps = bench.steps(endpoint)
        self._guidance = kind.guidance
        self.pipeline = bench.networks.stock(dtype)
        if compiled:
            for network in (self.pipeline.unet, self.pipeline.vae.decoder):
                network.forward = torch.compile(network.forward, dynamic=False)

    def latents(self, clip: Clip) -> torch.Tensor:
        """Of the clip, without noise, [F, C, h, w]."""
        return self._made(clip, "latent")

    def exact(self, clip: Clip) -> torch.Tensor:
        """Frames before rounding, [F, 3, H, W] in 0..1 on the CPU."""
        return self._made(clip, "pt").float().cpu()

    def _made(self, clip: Clip, what: str) -> torch.Tensor:
        made: torch.Tensor = self.pipeline(
            clip.picture,
            height=clip.size.height,
            width=clip.size.width,
            num_frames=FRAMES,
            num_inference_steps=self._steps,
            min_guidance_scale=self._guidance[0],
            max_guidance_scale=self._guidance[1],
            fps=7,  # the pipeline tells the network one less
            motion_bucket_id=clip.motion_bucket_id,
            noise_aug_strength=clip.cond_aug,
            decode_chunk_size=STOCK_CHUNK,
            generator=torch.Generator("cpu").manual_seed(clip.seed),
            output_type=what,
        ).frames[0]
        return made

    def run(self, clip: Clip) -> None:
        """From the picture to the encoded file."""
        encode(to_uint8(self.exact(clip)))

    def stages(self) -> list[tuple[Any, str, str]]:
        """What is timed by itself."""
        return [
            (self.pipeline, "_encode_image", "clip"),
            (self.pipeline, "_encode_vae_image", "vae encode"),
            (self.pipeline.unet, "forward", "step"),
            (self.pipeline, "decode_latents", "vae decode"),
            (sys.modules[__name__], "encode_mp4", "encode"),
        ]


@functools.cache
def can_encode() -> bool:
    """Whether there is an ffmpeg; without one the encoded file is left out of every figure."""
    try:
        ffmpeg_binary()
    except RuntimeError:
        return False
    return True


def encode(frames: np.ndarray) -> None:
    """Frames as an mp4, as a replica writes it."""
    if not can_encode():
        return
    with tempfile.TemporaryDirectory() as folder:
        encode_mp4(frames, 25, Path(folder) / "clip.mp4")


@contextmanager
def timed(bench: Bench, stages: Sequence[tuple[Any, str, str]]) -> Iterator[dict[str, list[float]]]:
    """While it is entered, the seconds of every call of some functions, by stage."""
    taken: dict[str, list[float]] = defaultdict(list)

    def watch(run: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            bench.synchronise()
            began = time.perf_counter()
            answer = run(*args, **kwargs)
            bench.synchronise()
            taken[stage].append(time.perf_counter() - began)
            return answer

        return watched

    with _replaced([(whose, name, watch(getattr(whose, name), stage)) for whose, name, stage in stages]):
        yield taken


@contextmanager
def _replaced(functions: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Attributes put in the place of what stood there, and that put back."""
    before = [(whose, name, vars(whose).get(name)) for whose, name, _ in functions]
    for whose, name, function in functions:
        setattr(whose, name, function)
    try:
        yield
    finally:
        for whose, name, function in before:
            delattr(whose, name) if function is None else setattr(whose, name, function)


def quality(bench: Bench, side: Ours | Stock) -> float:
    """PSNR of what a side makes against the same clip made and decoded in float32, cut as the side cuts it."""
    latents = bench.float32_latents(side.endpoint, side.reference)
    return psnr(side.exact(bench.clip()), decoded(bench, latents, side.cut))


def decoded(bench: Bench, latents: torch.Tensor, cut: Sequence[int]) -> torch.Tensor:
    """Latents [F, C, h, w] as frames [F, 3, H, W] in 0..1 on the CPU, all in float32."""
    vae = bench.networks.vae
    with torch.inference_mode(), true_float32():
        chunks = (latents.to(bench.device) / vae.config.scaling_factor).split(list(cut))
        frames = torch.cat([vae.decode(chunk, num_frames=len(chunk)).sample.cpu() for chunk in chunks])
    return (frames / 2 + 0.5).clamp(0, 1)


def psnr(frames: torch.Tensor, reference: torch.Tensor) -> float:
    """In dB, over all frames together; infinite where they are equal."""
    error = float((frames.double() - reference.double()).square().mean())
    return -10 * math.log10(error) if error else math.inf


@contextmanager
def true_float32() -> Iterator[None]:
    """While it is entered, float32 is not rounded to TF32, which is what cuDNN does with it unless told."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
