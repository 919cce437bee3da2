"""How fast a clip is beside diffusers' own pipeline, and beside what the arithmetic alone would take.

    python -m loadtest.gpu_bench compare    per endpoint: stock eager, stock compiled, ours; stages, floor, memory, PSNR
    python -m loadtest.gpu_bench ablate     each part of the tuning by itself, and all of them together
    python -m loadtest.gpu_bench attention  torch's attentions at the shapes that the UNet has
    python -m loadtest.gpu_bench batches    clips a second against the size of a batch, for each size
    python -m loadtest.gpu_bench fractions  1, 2 and 4 models on one GPU, each a process with its share of the memory
    python -m loadtest.gpu_bench start      seconds from a process's start to its first clip, cold and warm

Networks are of full size with random weights, or read from --weights. --profile writes a trace of torch.profiler.
--cpu --tiny runs the same program with the small weights that ship, which says nothing of speed. Figures are printed as
text and, with --json FILE, written as they are. The ceiling is a matrix product of the same run, so a share of the
floor compares what one card did at one time.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import multiprocessing
import os
import queue
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deployments.inference.encode import encode_mp4
from deployments.models.base import FRAMES, Clip, Size, VideoModel
from deployments.models.fast_svd_lcm import FastSVDLCM
from deployments.models.sampler import SVDSampler, to_uint8
from deployments.models.stable_video import StableVideo
from deployments.models.svd import SVD
from deployments.models.tuning import Tuning, keep_compiled
from loadtest.full_size import SMALL, Networks, Work

ENDPOINTS: dict[str, tuple[type[VideoModel], int]] = {
    "fal-ai/stable-video": (StableVideo, 25),
    "fal-ai/svd": (SVD, 20),
    "fal-ai/fast-svd-lcm": (FastSVDLCM, 4),
}
"""The model behind each, and its steps unless a caller says otherwise."""

BEST = Tuning(compile="max-autotune-no-cudagraphs", warm_up=(1,), channels_last=True, fused_qkv=True)
"""What is expected to be the fastest, of what changes no clip. The first run on a GPU decides."""

PARTS: dict[str, Tuning] = {
    "nothing": Tuning(),
    "channels_last": Tuning(channels_last=True),
    "fused_qkv": Tuning(fused_qkv=True),
    "flat_time": Tuning(flat_time=True),
    "attention cudnn": Tuning(attention="cudnn"),
    "attention flash": Tuning(attention="flash"),
    "float16": Tuning(dtype="float16"),
    "decode_chunk 25": Tuning(decode_chunk=FRAMES),
    "compile default": Tuning(compile="default", warm_up=(1,)),
    "compile reduce-overhead": Tuning(compile="reduce-overhead", warm_up=(1,)),
    "compile max-autotune": Tuning(compile="max-autotune-no-cudagraphs", warm_up=(1,)),
    "all": BEST,
    "all, deep_every 2 (lossy)": BEST.model_copy(update={"deep_every": 2}),
    "all, deep_every 3 (lossy)": BEST.model_copy(update={"deep_every": 3}),
}
SIZES = (Size(1024, 576), Size(768, 768), Size(1024, 1024), Size(512, 512))
TINY_SIZE = Size(112, 64)
BATCHES = (1, 2, 4)
FRACTIONS = (1, 2, 4)
BACKENDS = ("flash", "cudnn", "efficient", "math")
REFERENCE = Tuning(dtype="float32")
CHUNK = 5
"""Frames that both sides decode together where the tuning does not say: it divides a clip's 25, so that the pipeline of
diffusers and ours, which cut what is left over in different ways, cut alike."""


@dataclass
class Figures:
    """What one side took for a clip of one endpoint. Seconds are medians; memory is the peak of what was allocated."""

    side: str
    seconds: float
    stages: dict[str, float] = field(default_factory=dict)
    tflop_per_second: float = 0.0
    share_of_floor: float = 0.0
    peak_gb: float = 0.0
    psnr: float | None = None


class Bench:
    """The device, the networks and how often to measure, for all commands.

    Args:
        options: The command line's.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = "cpu" if options.cpu else "cuda"
        self.tiny: bool = options.tiny
        self.rounds: int = options.rounds
        self.sizes = (
            (TINY_SIZE,) if self.tiny else (Size.parse(options.size), *(SIZES[1:] if options.all_sizes else ()))
        )
        self.tuning = Tuning.model_validate_json(options.tuning) if options.tuning else self.usual
        self.chunk = self.tuning.decode_chunk or CHUNK
        if self.device == "cpu":
            torch.set_num_threads(1)
        if folder := options.compile_cache:
            keep_compiled(Path(folder))
        self._weights: Path | None = SMALL if self.tiny else options.weights
        self._variant: str | None = options.variant

    @property
    def usual(self) -> Tuning:
        """What is compared unless the command line says otherwise; a compiler would be all that a tiny run shows."""
        return BEST.model_copy(update={"compile": None}) if self.tiny else BEST

    @functools.cached_property
    def networks(self) -> Networks:
        """In float32, on the device."""
        if self._weights:
            return Networks.read(self._weights, self.device, self._variant)
        return Networks.random(self.device)

    def synchronise(self) -> None:
        """Wait until the device has done what it was told."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], rounds: int | None = None) -> float:
        """The median of several runs after one that warms up."""
        run()
        taken = []
        for _ in range(rounds or self.rounds):
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

    def forget_peak(self) -> None:
        """Measure the peak of memory from now on."""
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float:
        """Since then, without the networks that sides are copied from; 0 on a CPU."""
        if self.device == "cpu":
            return 0.0
        return (torch.cuda.max_memory_allocated() - self.networks.size) / 1e9

    def forget_networks(self) -> None:
        """Let go what sides are copied from, where no other side will be."""
        del self.networks
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def clip(self, size: Size, seed: int = 0) -> Clip:
        """A clip of coarse random colours."""
        colours = np.random.default_rng(seed).integers(0, 256, (9, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(colours).resize((size.width, size.height), Image.Resampling.BICUBIC)
        return Clip(picture, seed, motion_bucket_id=127, cond_aug=0.02)


class Ours:
    """A sampler as a replica has it, for one endpoint, warmed up."""

    def __init__(self, bench: Bench, endpoint: str, tuning: Tuning, sizes: Sequence[Size] | None = None) -> None:
        kind, steps = ENDPOINTS[endpoint]
        self._bench = bench
        self._steps = 2 if bench.tiny else steps
        config = {"weights": "none", "sizes": sizes or bench.sizes[:1], "tuning": tuning}
        self.model = kind(endpoint, kind.Config.model_validate(config))
        self.sampler: SVDSampler = bench.networks.ours(tuning)
        self.model._sampler = self.sampler
        self.model.warm_up()

    def frames(self, clips: Sequence[Clip]) -> list[np.ndarray]:
        """uint8, of every clip."""
        made = self.model.generate(clips, self._steps, lambda done: range(len(clips)))
        return [frames for frames in made if frames is not None]

    def exact(self, clip: Clip) -> torch.Tensor:
        """Frames before rounding, [F, 3, H, W] in 0..1 on the CPU."""
        schedule = self.model.schedule(self._steps)
        (latents,) = self.sampler.denoise([clip], schedule, self.model.guidance, lambda done: [0]).values()
        return self.sampler.finish(clip, latents).cpu()

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

    def __init__(self, bench: Bench, endpoint: str, dtype: torch.dtype, compiled: bool = False) -> None:
        kind, steps = ENDPOINTS[endpoint]
        self._steps = 2 if bench.tiny else steps
        self._guidance = kind.guidance
        self._chunk = bench.chunk
        self.pipeline = bench.networks.stock(dtype)
        if compiled:
            for network in (self.pipeline.unet, self.pipeline.vae.decoder):
                network.forward = torch.compile(network.forward, dynamic=False)

    def exact(self, clip: Clip) -> torch.Tensor:
        """Frames before rounding, [F, 3, H, W] in 0..1 on the CPU."""
        frames: torch.Tensor = self.pipeline(
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
            decode_chunk_size=self._chunk,
            generator=torch.Generator("cpu").manual_seed(clip.seed),
            output_type="pt",
        ).frames[0]
        return frames.float().cpu()

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


def encode(frames: np.ndarray) -> None:
    """Frames as an mp4, as a replica writes it."""
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

    with contextmanager(_replaced)(
        [(whose, name, watch(getattr(whose, name), stage)) for whose, name, stage in stages]
    ):
        yield taken


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


def measure(bench: Bench, side: str, what: Ours | Stock, clip: Clip, tflop: float, ceiling: float) -> Figures:
    """All figures of one side."""
    bench.forget_peak()
    seconds = bench.seconds(lambda: what.run(clip))
    with timed(bench, what.stages()) as taken:
        what.run(clip)
    stages = {stage: statistics.median(each) if stage == "step" else sum(each) for stage, each in taken.items()}
    return Figures(side, seconds, stages, tflop / seconds, tflop / ceiling / seconds, bench.peak_gb())


def compare(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """For each endpoint: stock eager, stock compiled and ours, and how far each is from float32."""
    ceiling = bench.ceiling()
    half = torch.float16 if bench.device == "cuda" else torch.float32
    work = Work.count(bench.networks, bench.sizes[0])
    sides: dict[str, Callable[[str], Ours | Stock]] = {
        "stock eager": lambda endpoint: Stock(bench, endpoint, half),
        "stock compiled": lambda endpoint: Stock(bench, endpoint, half, compiled=True),
        "ours untuned": lambda endpoint: Ours(bench, endpoint, cut_alike(bench, Tuning())),
        "ours": lambda endpoint: Ours(bench, endpoint, cut_alike(bench, bench.tuning)),
    }
    if bench.tiny:
        del sides["stock compiled"]
    figures: dict[str, Any] = {"ceiling_tflop_per_second": ceiling, "work_tflop": asdict(work), "endpoints": {}}
    print(f"matrix product: {ceiling:.1f} TFLOP/s")
    for endpoint in options.endpoints:
        kind, steps = ENDPOINTS[endpoint]
        tflop = work.of(2 if bench.tiny else steps, max(kind.guidance) > 1)
        clip = bench.clip(bench.sizes[0])
        print(f"\n{endpoint}, {steps} steps of {clip.size}: {tflop:.1f} TFLOP, floor {tflop / ceiling:.3f} s")
        with true_float32():
            stock, ours = (Stock(bench, endpoint, torch.float32), Ours(bench, endpoint, cut_alike(bench, REFERENCE)))
            reference = {"stock": stock.exact(clip), "ours": ours.exact(clip)}
            same_schedule = kind is not FastSVDLCM
            if same_schedule:
                print(f"ours in float32 against stock in float32: {psnr(reference['ours'], reference['stock']):.1f} dB")
            del stock, ours
        figures["endpoints"][endpoint] = rows = []
        for side, build in sides.items():
            built = build(endpoint)
            row = measure(bench, side, built, clip, tflop, ceiling)
            against = reference["stock" if same_schedule or isinstance(built, Stock) else "ours"]
            row.psnr = psnr(built.exact(clip), against)
            if options.profile and side == "ours":
                profile(built, clip, Path(options.profile), endpoint)
            del built
            rows.append(asdict(row))
            print_row(row, rows[0]["seconds"])
    return figures


def cut_alike(bench: Bench, tuning: Tuning) -> Tuning:
    """The same tuning, decoding as many frames together as all sides of a comparison do."""
    return tuning.model_copy(update={"decode_chunk": bench.chunk})


def print_row(row: Figures, first: float) -> None:
    """One side as a line."""
    stages = ", ".join(f"{stage} {seconds:.4f}" for stage, seconds in row.stages.items())
    print(
        f"{row.side:<16} {row.seconds:8.3f} s ({first / row.seconds:5.2f} of the first), {row.tflop_per_second:6.1f} "
        f"TFLOP/s, {row.share_of_floor:6.1%} of the floor, {row.peak_gb:5.1f} GB, PSNR {row.psnr or 0:.1f} dB; {stages}"
    )


def profile(what: Ours | Stock, clip: Clip, folder: Path, name: str) -> None:
    """One clip under torch.profiler: a trace, and what took longest."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profiling(activities=activities) as profiler:
        what.run(clip)
    folder.mkdir(parents=True, exist_ok=True)
    stem = name.replace("/", "--")
    profiler.export_chrome_trace(str(folder / f"{stem}.json"))
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    (folder / f"{stem}.txt").write_text(profiler.key_averages().table(sort_by=by, row_limit=40))


def ablate(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a guided step and of decoding, with each part of the tuning by itself, and how far it is from none."""
    endpoint, clip = options.endpoints[0], bench.clip(bench.sizes[0])
    with true_float32():
        reference = Ours(bench, endpoint, REFERENCE).exact(clip)
    figures: dict[str, Any] = {}
    wanted = {name: PARTS[name] for name in options.parts} if options.parts else PARTS
    if bench.tiny:
        wanted = {name: part for name, part in wanted.items() if not part.compile}
    for name, tuning in wanted.items():
        began = time.perf_counter()
        ours = Ours(bench, endpoint, tuning)
        ready = time.perf_counter() - began
        bench.forget_peak()
        ours.exact(clip)
        with timed(bench, ours.stages()) as taken:
            quality = psnr(ours.exact(clip), reference)
        # Where only some steps look beneath, the mean is what a clip pays.
        step, decode = statistics.mean(taken["step"]), sum(taken["vae decode"])
        figures[name] = dict(step=step, decode=decode, psnr=quality, ready=ready, peak_gb=bench.peak_gb())
        print(
            f"{name:<28} step {step:8.4f} s, decode {decode:8.4f} s, PSNR {quality:6.1f} dB, "
            f"{bench.peak_gb():5.1f} GB, ready after {ready:6.1f} s"
        )
        del ours
    return figures


def attention(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of one self-attention at each level, in a frame and along time, by each of torch's attentions."""
    size, frames = bench.sizes[0], FRAMES
    cells = (size.height // 8) * (size.width // 8)
    dtype = torch.bfloat16 if bench.device == "cuda" else torch.float32
    shapes = {}
    for level, heads in enumerate((5, 10, 20, 20)):
        tokens = cells // 4**level
        shapes[f"level {level}, a frame"] = (2 * frames, heads, tokens, 64)
        shapes[f"level {level}, time"] = (2 * tokens, heads, frames, 64)
    figures: dict[str, Any] = {}
    for name, shape in shapes.items():
        query, key, value = (torch.randn(shape, device=bench.device, dtype=dtype) for _ in range(3))
        figures[name] = {}
        for backend in BACKENDS:
            with Tuning(attention=backend).attending():  # type: ignore[arg-type]
                try:
                    run = functools.partial(torch.nn.functional.scaled_dot_product_attention, query, key, value)
                    figures[name][backend] = 1000 * bench.seconds(run)
                except RuntimeError as error:
                    figures[name][backend] = str(error).splitlines()[0]
        print(name, shape, figures[name])
    return figures


def batches(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Clips a second against the size of a batch, for each size and endpoint."""
    figures: dict[str, Any] = {}
    for endpoint, size in itertools.product(options.endpoints, bench.sizes):
        tuning = bench.tuning.model_copy(update={"warm_up": BATCHES})
        ours = Ours(bench, endpoint, tuning, [size])
        ours.sampler.batched = True
        rates = {}
        for count in BATCHES:
            clips = [bench.clip(size, seed) for seed in range(count)]
            try:
                rates[count] = count / bench.seconds(functools.partial(ours.frames, clips), rounds=2)
            except Exception as error:  # the figure is then that it does not fit
                rates[count] = str(error)
        figures[f"{endpoint} {size}"] = rates
        print(
            endpoint, size, {count: rate if isinstance(rate, str) else round(rate, 4) for count, rate in rates.items()}
        )
        del ours
    return figures


def fractions(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Clips an hour and seconds a clip of 1, 2 and 4 processes that share the device."""
    figures: dict[str, Any] = {}
    for endpoint, count in itertools.product(options.endpoints, FRACTIONS[: 2 if bench.tiny else None]):
        context = multiprocessing.get_context("spawn")
        told: Any = context.Queue()
        start = context.Barrier(count)
        share = 0.96 / count
        arguments = (vars(options), endpoint, share, start, told)
        processes = [context.Process(target=_share, args=arguments) for _ in range(count)]
        for process in processes:
            process.start()
        answers = _answers(told, processes)
        for process in processes:
            process.join()
        seconds = [second for answer in answers for second in answer]
        figures[f"{endpoint} {count}"] = row = {
            "models": count,
            "share": share,
            "clips_an_hour": 3600 * count / statistics.mean(seconds) if seconds else 0.0,
            "seconds_a_clip": statistics.median(seconds) if seconds else None,
            "failed": count - sum(map(bool, answers)),
        }
        print(endpoint, row)
    return figures


def _answers(told: Any, processes: Sequence[Any]) -> list[list[float]]:
    """What each process says; one that died says nothing."""
    answers: list[list[float]] = []
    while len(answers) < len(processes):
        try:
            answers.append(told.get(timeout=1))
        except queue.Empty:
            if not any(process.is_alive() for process in processes) and told.empty():
                break
    return answers


def _share(options: dict[str, Any], endpoint: str, share: float, start: Any, told: Any) -> None:
    """One of the processes: its seconds of each clip, while the others compute too; none where it failed."""
    seconds: list[float] = []
    try:
        bench = Bench(argparse.Namespace(**options))
        if bench.device == "cuda":
            torch.cuda.set_per_process_memory_fraction(share)
        ours = Ours(bench, endpoint, bench.tuning)
        bench.forget_networks()
        clip = bench.clip(bench.sizes[0])
        start.wait(timeout=540)
        for _ in range(bench.rounds):
            began = time.perf_counter()
            ours.run(clip)
            seconds.append(time.perf_counter() - began)
    except Exception as error:  # the others go on; the table says that one failed
        print(f"{endpoint} with {share:.2f} of the device: {error}", file=sys.stderr)
        start.abort()
        seconds = []
    told.put(seconds)


def start(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from a process's start to ready and to its first clip, with an empty compile cache and a full one."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for endpoint, state in itertools.product(options.endpoints, ("cold", "warm")):
            context = multiprocessing.get_context("spawn")
            told: Any = context.Queue()
            cache = Path(options.compile_cache or folder) / endpoint.replace("/", "--")
            process = context.Process(
                target=_first, args=(vars(options) | {"compile_cache": str(cache)}, endpoint, time.time(), told)
            )
            process.start()
            answers = _answers(told, [process])
            process.join()
            figures[f"{endpoint} {state}"] = answers[0] if answers else None
            print(endpoint, state, dict(zip(("ready", "first clip"), answers[0], strict=True)) if answers else "failed")
    return figures


def _first(options: dict[str, Any], endpoint: str, began: float, told: Any) -> None:
    bench = Bench(argparse.Namespace(**options))
    ours = Ours(bench, endpoint, bench.tuning)
    bench.synchronise()
    ready = time.time() - began
    ours.run(bench.clip(bench.sizes[0]))
    told.put([ready, time.time() - began])


COMMANDS: dict[str, Callable[[Bench, argparse.Namespace], dict[str, Any]]] = {
    "compare": compare,
    "ablate": ablate,
    "attention": attention,
    "batches": batches,
    "fractions": fractions,
    "start": start,
}


def command_line() -> argparse.ArgumentParser:
    """What may be said on it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--endpoints", nargs="+", choices=ENDPOINTS, default=list(ENDPOINTS))
    parser.add_argument("--size", default=str(SIZES[0]))
    parser.add_argument("--all-sizes", action="store_true", help="batches: of the other sizes, too")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="ablate: only these")
    parser.add_argument("--tuning", help="JSON, as under `tuning` in serve_config.yaml")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", type=Path, help="a checkpoint in diffusers' layout; random weights without one")
    parser.add_argument("--variant", help="of the checkpoint's files, such as fp16")
    parser.add_argument("--compile-cache", help="a directory for what is compiled")
    parser.add_argument("--profile", help="compare: a directory for torch.profiler's traces")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="the small weights that ship, at 112x64")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and print its figures."""
    options = command_line().parse_args(arguments)
    figures = COMMANDS[options.command](Bench(options), options)
    if options.json:
        about = {"command": options.command, "torch": torch.__version__, "cpus": os.cpu_count()}
        about["device"] = torch.cuda.get_device_name() if not options.cpu else "cpu"
        options.json.write_text(json.dumps(about | {"figures": figures}, indent=2))


if __name__ == "__main__":
    main()
