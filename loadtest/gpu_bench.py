"""How fast a clip is beside diffusers' own pipeline, and beside what the arithmetic alone would take.

    python -m loadtest.gpu_bench compare    per endpoint: stock eager, stock compiled, ours; stages, floor, memory, PSNR
    python -m loadtest.gpu_bench ablate     each part of the tuning by itself, and all of them together
    python -m loadtest.gpu_bench decode     decoding alone, by precision and by how many frames go together
    python -m loadtest.gpu_bench attention  torch's attentions at the shapes that the UNet has
    python -m loadtest.gpu_bench batches    clips a second against the size of a batch, for each size
    python -m loadtest.gpu_bench fractions  models beside each other on one GPU, each a process with its share of it
    python -m loadtest.gpu_bench start      seconds from a process's start to its first clip, cold and warm

Networks are of full size with random weights, or read from --weights. --profile writes a trace of torch.profiler.
--cpu --tiny runs the same program at a small size, by default with the weights that ship: no word on speed or the aims.
Figures are printed as text and, with --json FILE, written there after each row, so that a run that is cut off has told
what it saw. The ceiling is a matrix product of the same run, so a share of the floor compares what one card did at one
time.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import BaseModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from deployments.models.base import FRAMES, Clip, Size
from deployments.models.schedules import euler_schedule
from deployments.models.tuning import Precision, Tuning
from loadtest.full_size import Work
from loadtest.gpu_sides import (
    ENDPOINTS,
    REFERENCE,
    SIZE,
    TINY_SIZE,
    Bench,
    Ours,
    Stock,
    decoded,
    encode,
    psnr,
    quality,
    timed,
)

BEST = Tuning(compile="max-autotune-no-cudagraphs", warm_up=(1,), channels_last=True, fused_qkv=True)
"""What is expected to be the fastest, of what changes no clip. The first run on a GPU decides."""

PARTS: dict[str, Tuning] = {
    "nothing": Tuning(),
    "channels_last": Tuning(channels_last=True),
    "fused_qkv": Tuning(fused_qkv=True),
    "flat_time": Tuning(flat_time=True),
    "cudnn_benchmark": Tuning(cudnn_benchmark=True),
    "attention cudnn": Tuning(attention="cudnn"),
    "attention flash": Tuning(attention="flash"),
    "float16": Tuning(dtype="float16"),
    "compile default": Tuning(compile="default", warm_up=(1,)),
    "compile reduce-overhead": Tuning(compile="reduce-overhead", warm_up=(1,)),
    "compile max-autotune": Tuning(compile="max-autotune-no-cudagraphs", warm_up=(1,)),
    "all": BEST,
    "all, deep_every 2 (lossy)": BEST.model_copy(update={"deep_every": 2}),
    "all, deep_every 3 (lossy)": BEST.model_copy(update={"deep_every": 3}),
}
SIDES: dict[str, Callable[[Bench, str, Tuning], Ours | Stock]] = {
    "stock eager": lambda bench, endpoint, _: Stock(bench, endpoint, half(bench)),
    "stock compiled": lambda bench, endpoint, _: Stock(bench, endpoint, half(bench), compiled=True),
    "ours untuned": lambda bench, endpoint, _: Ours(bench, endpoint, Tuning()),
    "ours": Ours,
}
AIMS = {"fal-ai/stable-video": 8.0, "fal-ai/svd": 6.5, "fal-ai/fast-svd-lcm": 1.0}
"""Seconds of a clip on one H200, from the picture to the encoded file."""

LEAST_GAIN, LEAST_PSNR = 3.0, 35.0
"""Of ours: over stock eager in the same run, and in dB against float32."""

SIZES = (SIZE, Size(768, 768), Size(1024, 1024), Size(512, 512))
BATCHES = (1, 2, 4)
MODELS = (1, 2, 4)
DIVIDED = 0.96
"""Of a GPU: each process has about 1 GB beside what is divided."""

HEADS = (5, 10, 20, 20)
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]


def half(bench: Bench) -> torch.dtype:
    """The precision of the stock pipeline: what it is used in on GPUs."""
    return torch.float16 if bench.device == "cuda" else torch.float32


def tried(measure: Callable[[], Row]) -> Row:
    """A row of figures, or why there are none: the other rows are measured all the same."""
    try:
        return measure()
    except Exception as error:
        return {"error": why(error)}


def why(error: Exception) -> str:
    """Why there are no figures."""
    return f"{type(error).__name__}: {error}"


def compare(bench: Bench, options: argparse.Namespace) -> Rows:
    """For each endpoint: each side's figures, how far it is from float32, and which aims ours meets."""
    ceiling = bench.ceiling()
    work = Work.count(bench.networks, bench.size)
    print(f"matrix product: {ceiling:.1f} TFLOP/s")
    yield "ceiling", {"tflop_per_second": ceiling, "work_tflop": asdict(work)}
    for endpoint in options.endpoints:
        kind, _ = ENDPOINTS[endpoint]
        steps = bench.steps(endpoint)
        tflop = work.of(steps, max(kind.guidance) > 1)
        print(f"\n{endpoint}, {steps} steps of {bench.size}: {tflop:.1f} TFLOP, floor {tflop / ceiling:.3f} s")
        rows: dict[str, Row] = {}
        for side in options.sides:
            rows[side] = tried(functools.partial(_side, bench, options, endpoint, side, tflop, ceiling))
            print_row(side, rows)
            yield f"{endpoint}, {side}", rows[side]
        aims = judge(endpoint, rows)
        print("aims:", ", ".join(f"{aim}: {'met' if met else 'missed'}" for aim, met in aims.items()) or "not judged")
        yield f"{endpoint}, aims", aims


def _side(bench: Bench, options: argparse.Namespace, endpoint: str, side: str, tflop: float, ceiling: float) -> Row:
    """All figures of one side. Seconds are medians; memory is the peak of what was allocated."""
    bench.make_room()
    built, clip = SIDES[side](bench, endpoint, options.tuning), bench.clip()
    bench.forget_peak()
    seconds = bench.seconds(lambda: built.run(clip), options.rounds)
    peak = bench.peak_gb()
    with timed(bench, built.stages()) as taken:
        built.run(clip)
    if options.profile and side == "ours":
        profile(built, clip, options.profile, endpoint)
    return {
        "seconds": seconds,
        "stages": {stage: statistics.median(each) if stage == "step" else sum(each) for stage, each in taken.items()},
        "tflop_per_second": tflop / seconds,
        "share_of_floor": tflop / ceiling / seconds,
        "peak_gb": peak,
        "psnr": quality(bench, built),
    }


def judge(endpoint: str, rows: dict[str, Row]) -> dict[str, bool]:
    """Which aims ours meets, of those that the rows can tell."""
    ours, eager = rows.get("ours", {}), rows.get("stock eager", {})
    met = {}
    if "encode" in ours.get("stages", ()):
        met[f"at most {AIMS[endpoint]} s"] = ours["seconds"] <= AIMS[endpoint]
    if "seconds" in ours and "seconds" in eager:
        met[f"{LEAST_GAIN} times stock eager"] = eager["seconds"] >= LEAST_GAIN * ours["seconds"]
    if "psnr" in ours:
        met[f"PSNR of {LEAST_PSNR} dB"] = ours["psnr"] >= LEAST_PSNR
    return met


def print_row(side: str, rows: dict[str, Row]) -> None:
    """One side as a line."""
    row = rows[side]
    if "error" in row:
        print(side, written(row))
        return
    first = next((each["seconds"] for each in rows.values() if "seconds" in each), row["seconds"])
    stages = ", ".join(f"{stage} {seconds:.4f}" for stage, seconds in row["stages"].items())
    print(
        f"{side:<16} {row['seconds']:8.3f} s ({first / row['seconds']:5.2f} of the first), "
        f"{row['tflop_per_second']:6.1f} TFLOP/s, {row['share_of_floor']:6.1%} of the floor, {row['peak_gb']:5.1f} GB, "
        f"PSNR {row['psnr']:.1f} dB; {stages}{'' if 'encode' in row['stages'] else ', encode missing: no ffmpeg'}"
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


def ablate(bench: Bench, options: argparse.Namespace) -> Rows:
    """Seconds of a step and of decoding, with each part of the tuning by itself, and how far it is from float32."""
    for endpoint, part in itertools.product(options.endpoints, options.parts):
        row = tried(functools.partial(_part, bench, endpoint, PARTS[part], options.rounds))
        print(f"{endpoint}, {part:<28}", written(row))
        yield f"{endpoint}, {part}", row


def _part(bench: Bench, endpoint: str, tuning: Tuning, rounds: int) -> Row:
    bench.make_room()
    began = time.perf_counter()
    ours, clip = Ours(bench, endpoint, tuning), bench.clip()
    ours.frames([clip])
    ready = time.perf_counter() - began
    bench.forget_peak()
    with timed(bench, ours.stages()) as taken:
        for _ in range(rounds):
            ours.frames([clip])
    return {
        # Where only some steps look beneath, the mean is what a clip pays.
        "step": statistics.mean(taken["step"]),
        "decode": statistics.mean(taken["vae decode"]),
        "peak_gb": bench.peak_gb(),
        "psnr": quality(bench, ours),
        "first clip after": ready,
    }


def decode(bench: Bench, options: argparse.Namespace) -> Rows:
    """Seconds and memory of decoding alone, and how far it is from float32 that is cut alike."""
    endpoint = "fal-ai/fast-svd-lcm"  # any: all have one decoder
    sampler, clip = Ours(bench, endpoint, REFERENCE).sampler, bench.clip()
    with torch.inference_mode():
        picture = sampler._prepare([clip], euler_schedule(1))
        latents = picture.first_frames[0] * sampler.vae.config.scaling_factor + 0.1 * picture.noise[0]
    del sampler
    for dtype, chunk in itertools.product(options.dtypes, options.chunks):
        tuning = Tuning(decode_dtype=dtype, decode_chunk=chunk)
        row = tried(functools.partial(_decoding, bench, endpoint, tuning, latents, options.rounds))
        print(f"{dtype}, {chunk} frames:", written(row))
        yield f"{dtype}, {chunk} frames", row


def _decoding(bench: Bench, endpoint: str, tuning: Tuning, latents: torch.Tensor, rounds: int) -> Row:
    bench.make_room()
    ours = Ours(bench, endpoint, tuning)
    bench.forget_peak()
    seconds = bench.seconds(lambda: ours.sampler.decode(latents), rounds)
    peak = bench.peak_gb()
    frames = ours.sampler.decode(latents).cpu()
    return {"decode": seconds, "peak_gb": peak, "psnr": psnr(frames, decoded(bench, latents, ours.cut))}


def attention(bench: Bench, options: argparse.Namespace) -> Rows:
    """Milliseconds of a guided step's self-attention at each level, in a frame and along time, by each alone."""
    cells = (bench.size.height // 8) * (bench.size.width // 8)
    dtype = torch.bfloat16 if bench.device == "cuda" else torch.float32
    for level, heads in enumerate(HEADS):
        tokens = cells // 4**level
        shapes = {"a frame": (2 * FRAMES, tokens, heads, 64), "time": (2 * tokens, FRAMES, heads, 64)}
        for where, shape in shapes.items():
            # As in the network: a product's answer, seen with its heads first.
            query, key, value = (torch.randn(shape, device=bench.device, dtype=dtype).transpose(1, 2) for _ in range(3))
            run = functools.partial(torch.nn.functional.scaled_dot_product_attention, query, key, value)
            row = {name: _milliseconds(bench, run, only, options.rounds) for name, only in BACKENDS.items()}
            print(f"level {level}, {where} {shape}:", row)
            yield f"level {level}, {where}", row


def _milliseconds(bench: Bench, run: Callable[[], object], only: SDPBackend, rounds: int) -> float | str:
    """Of one call by one backend, or why it does not take the shape."""
    with sdpa_kernel([only]):
        try:
            return 1000 * bench.seconds(run, rounds)
        except RuntimeError as error:
            return str(error).splitlines()[0]


def batches(bench: Bench, options: argparse.Namespace) -> Rows:
    """Clips a second against the size of a batch, for each size and endpoint."""
    sizes = SIZES if options.all_sizes else (bench.size,)
    for endpoint, size in itertools.product(options.endpoints, sizes):
        row = tried(functools.partial(_batches, bench, options, endpoint, size))
        print(endpoint, size, written(row))
        yield f"{endpoint} {size}", row


def _batches(bench: Bench, options: argparse.Namespace, endpoint: str, size: Size) -> Row:
    bench.make_room()
    ours = Ours(bench, endpoint, options.tuning.model_copy(update={"warm_up": BATCHES}), [size])
    ours.sampler.batched = True
    row: Row = {}
    for count in BATCHES:
        clips = [bench.clip(size, seed) for seed in range(count)]
        try:
            row[str(count)] = count / bench.seconds(functools.partial(ours.frames, clips), options.rounds)
        except Exception as error:  # the figure is then that it does not fit
            row[str(count)] = str(error)
    return row


def fractions(bench: Bench, options: argparse.Namespace) -> Rows:
    """Clips an hour and seconds a clip of processes that share the device."""
    for endpoint, count in itertools.product(options.endpoints, options.models):
        share = options.share or round(DIVIDED / count, 2)
        row = tried(functools.partial(_beside_each_other, options, endpoint, count, share))
        print(endpoint, written(row))
        yield f"{endpoint}, {count} with {share} each", row


def _beside_each_other(options: argparse.Namespace, endpoint: str, count: int, share: float) -> Row:
    pipes = [_begun(_share, vars(options), endpoint, share) for _ in range(count)]
    beginnings = [_heard(pipe) for pipe in pipes]
    ready = [pipe for pipe, beginning in zip(pipes, beginnings, strict=True) if "error" not in beginning]
    for pipe in ready:
        pipe.send("go")
    rows = [*beginnings, *(_heard(pipe) for pipe in ready)]
    errors = [row["error"] for row in rows if "error" in row]
    made = [row for row in rows if row.get("ended")]
    if not made:
        raise RuntimeError("; ".join(errors))
    return {
        "models": count,
        "share": share,
        # Each made clips from the common start on, for as long as the others did.
        "clips_an_hour": 3600 * sum(len(row["ended"]) / row["ended"][-1] for row in made),
        "seconds_a_clip": statistics.median(second for row in made for second in row["seconds"]),
        "peak_gb": [row["peak_gb"] for row in made],
        "errors": errors,
    }


def _begun(run: Callable[..., None], *arguments: Any) -> Connection:
    """The line to a new process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=run, args=(*arguments, theirs), daemon=True).start()
    theirs.close()  # so that the line is cut when the process dies
    return ours


def _heard(pipe: Connection) -> Row:
    """What a process says."""
    try:
        return dict(pipe.recv())
    except EOFError:
        return {"error": "the process died"}


def _share(options: dict[str, Any], endpoint: str, share: float, parent: Connection) -> None:
    """One of the processes. It says that it is ready, is told when all are, and says what it made meanwhile."""
    given = argparse.Namespace(**options)
    try:
        bench, ours = _within(given, endpoint, share)
    except Exception as error:
        parent.send({"error": why(error)})
        return
    parent.send({})
    parent.recv()
    parent.send(tried(lambda: {**_clips(ours, bench.clip(), given.seconds), "peak_gb": bench.peak_gb()}))


def _within(options: argparse.Namespace, endpoint: str, share: float) -> tuple[Bench, Ours]:
    """Ours with no more than a share of the GPU's memory, after its first clip."""
    bench = Bench(options)
    if bench.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(share)
    ours = Ours(bench, endpoint, options.tuning)
    bench.forget_networks()
    ours.run(bench.clip())
    return bench, ours


def _clips(ours: Ours, clip: Clip, seconds: float) -> Row:
    """When clips ended and how long each took, encoded beside the next one's steps as in a replica."""
    began = time.monotonic()
    encoding: list[tuple[float, Future[float]]] = []
    with ThreadPoolExecutor(1) as thread:
        while (start := time.monotonic() - began) < seconds:
            (frames,) = ours.frames([clip])
            encoding.append((start, thread.submit(_ended, frames, began)))
    ended = [(start, future.result()) for start, future in encoding]
    return {"ended": [end for _, end in ended], "seconds": [end - start for start, end in ended]}


def _ended(frames: Any, began: float) -> float:
    encode(frames)
    return time.monotonic() - began


def start(bench: Bench, options: argparse.Namespace) -> Rows:
    """Seconds from a process's start to ready and to its first clip: cold, without a compile cache, and warm."""
    with tempfile.TemporaryDirectory() as folder:
        for endpoint, _ in itertools.product(options.endpoints, range(options.times)):
            cache = Path(options.compile_cache or folder) / endpoint.replace("/", "--")
            state = "warm" if cache.exists() else "cold"
            row = tried(functools.partial(_start, vars(options) | {"compile_cache": cache}, endpoint))
            print(endpoint, state, written(row))
            yield f"{endpoint}, {state}", row


def _start(options: dict[str, Any], endpoint: str) -> Row:
    row = _heard(_begun(_first, options, endpoint, time.time()))
    if "error" in row:
        raise RuntimeError(row["error"])
    return row


def _first(options: dict[str, Any], endpoint: str, began: float, parent: Connection) -> None:
    given = argparse.Namespace(**options)
    bench = Bench(given)
    ours = Ours(bench, endpoint, given.tuning)
    bench.synchronise()
    ready = time.time() - began
    ours.run(bench.clip())
    parent.send({"ready": ready, "first clip": time.time() - began})


def written(row: Row) -> str:
    """A row as text."""
    return ", ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
    )


COMMANDS: dict[str, Callable[[Bench, argparse.Namespace], Rows]] = {
    "compare": compare,
    "ablate": ablate,
    "decode": decode,
    "attention": attention,
    "batches": batches,
    "fractions": fractions,
    "start": start,
}
MAKE_CLIPS = ("compare", "ablate", "batches", "fractions", "start")
TUNED = ("compare", "batches", "fractions", "start")
REPEATED = ("compare", "ablate", "decode", "attention", "batches")


def command_line() -> argparse.ArgumentParser:
    """What may be said on it. A command takes what it has a use for, and refuses the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of = {name: commands.add_parser(name, help=(run.__doc__ or "").splitlines()[0]) for name, run in COMMANDS.items()}
    for command in of.values():
        command.set_defaults(steps=None, references=None)
        command.add_argument("--size", type=Size.parse, help=f"{SIZE} unless said; with --tiny {TINY_SIZE}")
        command.add_argument("--weights", type=Path, help="a checkpoint in diffusers' layout; random ones without it")
        command.add_argument("--variant", help="of the checkpoint's files, such as fp16")
        command.add_argument("--compile-cache", type=Path, help="a directory for what is compiled")
        command.add_argument("--json", type=Path, help="a file for the figures")
        command.add_argument("--cpu", action="store_true")
        command.add_argument(
            "--tiny", action="store_true", help="small clips, and without --weights the ones that ship"
        )
    for name in MAKE_CLIPS:
        of[name].add_argument("--endpoints", nargs="+", choices=ENDPOINTS, default=list(ENDPOINTS))
        of[name].add_argument("--steps", type=int, help="of every clip; as the endpoint has them unless said")
    for name in TUNED:
        of[name].add_argument("--tuning", type=Tuning.model_validate_json, help="JSON, as in serve_config.yaml")
    for name in REPEATED:
        of[name].add_argument("--rounds", type=int, default=3)
    for name in ("compare", "ablate"):
        of[name].add_argument("--references", type=Path, help="a directory for clips' latents in float32")
    of["compare"].add_argument("--sides", nargs="+", choices=SIDES)
    of["compare"].add_argument("--profile", type=Path, help="a directory for torch.profiler's traces of ours")
    of["ablate"].add_argument("--parts", nargs="+", choices=PARTS)
    of["decode"].add_argument("--dtypes", nargs="+", choices=get_args(Precision), default=["bfloat16", "float16"])
    of["decode"].add_argument("--chunks", nargs="+", type=int, default=[5, 8, 14, FRAMES])
    of["batches"].add_argument("--all-sizes", action="store_true", help=f"at {', '.join(map(str, SIZES))}")
    of["fractions"].add_argument("--models", nargs="+", type=int, default=MODELS, help="how many at once")
    of["fractions"].add_argument(
        "--share", type=float, help=f"of each; {DIVIDED} of the GPU in equal parts unless said"
    )
    of["fractions"].add_argument("--seconds", type=float, default=60.0, help="how long they make clips")
    of["start"].add_argument("--times", type=int, default=2)
    return parser


def understood(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was said, with what goes without saying. A compiler would be all that a tiny run shows, so it has none."""
    options = command_line().parse_args(arguments)
    if "tuning" in options and not options.tuning:
        options.tuning = BEST.model_copy(update={"compile": None}) if options.tiny else BEST
    if "sides" in options:
        options.sides = options.sides or [side for side in SIDES if not (options.tiny and side == "stock compiled")]
    if "parts" in options:
        options.parts = options.parts or [part for part, of in PARTS.items() if not (options.tiny and of.compile)]
    return options


def about(options: argparse.Namespace) -> Row:
    """What figures were measured with."""
    return {
        "options": vars(options),
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
        "device": "cpu" if options.cpu else torch.cuda.get_device_name(),
        "commit": commit(),
    }


def commit() -> str | None:
    """Of this checkout; None where it is not one, or there is no git."""
    git = shutil.which("git")
    if not git:
        return None
    words = [git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and print its figures."""
    options = understood(arguments)
    figures: dict[str, Row] = {}
    document = about(options) | {"figures": figures}
    for name, row in COMMANDS[options.command](Bench(options), options):
        figures[name] = row
        if options.json:
            draft = options.json.with_suffix(".part")  # nobody is left with half a file
            draft.write_text(json.dumps(document, indent=2, default=plain))
            draft.replace(options.json)
    if failed := [name for name, row in figures.items() if "error" in row]:
        sys.exit(f"failed: {'; '.join(failed)}")


def plain(value: object) -> object:
    """What JSON has no word for."""
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


if __name__ == "__main__":
    main()
