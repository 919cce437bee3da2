"""The benchmark for GPUs, run as it is with the small weights on a CPU: its figures say nothing of speed there."""

from __future__ import annotations

import gc
import json
import math
import os
import shlex
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig

from deployments.models.base import Size
from deployments.models.fast_svd_lcm import FastSVDLCM
from deployments.models.tuning import Tuning
from loadtest import gpu_bench, gpu_sides
from loadtest.full_size import CLIP, UNET, VAE, Networks, Work
from loadtest.gpu_bench import AIMS, BEST, PARTS, SIDES, judge, main, understood
from loadtest.gpu_sides import ENDPOINTS, Bench, can_encode, psnr
from tests.conftest import ROOT
from tests.tiny import WEIGHTS

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(folder: Path, command: str, *options: str) -> dict[str, Any]:
    target = folder / "figures.json"
    main([command, "--cpu", "--tiny", "--weights", str(WEIGHTS / "svd"), "--json", str(target), *options])
    document: dict[str, Any] = json.loads(target.read_text())
    assert (document["options"]["command"], document["device"]) == (command, "cpu")
    return dict(document["figures"])


def test_compare_tells_every_figure_of_every_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--rounds", "1", "--endpoints", "fal-ai/svd", "--steps", "3", "--profile", str(tmp_path / "profile"))
    figures = run(tmp_path, "compare", *options)

    for side in ("stock eager", "ours untuned", "ours"):
        row = figures[f"fal-ai/svd, {side}"]
        assert row["stages"].keys() == {"clip", "vae encode", "step", "vae decode", "encode"}
        assert all(seconds > 0 for seconds in row["stages"].values())
        assert 3 * row["stages"]["step"] < row["seconds"]
        assert row["share_of_floor"] == pytest.approx(row["tflop_per_second"] / figures["ceiling"]["tflop_per_second"])
        assert row["psnr"] > 80  # float32 on both sides
    assert "fal-ai/svd, stock compiled" not in figures
    assert len(figures["fal-ai/svd, aims"]) == 3
    printed = capsys.readouterr().out
    assert "fal-ai/svd, 3 steps of 112x64" in printed and "aims: " in printed
    assert json.loads((tmp_path / "profile" / "fal-ai--svd.json").read_text())["traceEvents"]


def test_of_an_lcm_ours_is_compared_with_ours(tmp_path: Path) -> None:
    """The stock pipeline has no schedule for it: its frames are another clip's."""
    told = ("--rounds", "1", "--endpoints", "fal-ai/fast-svd-lcm", "--sides", "ours")
    assert run(tmp_path, "compare", *told)["fal-ai/fast-svd-lcm, ours"]["psnr"] > 80


def test_figures_tell_what_they_were_measured_with(tmp_path: Path) -> None:
    tuning = '{"fused_qkv": true}'
    run(tmp_path, "batches", "--rounds", "1", "--tuning", tuning, "--endpoints", "fal-ai/svd", "--size", "64x64")
    document = json.loads((tmp_path / "figures.json").read_text())
    assert document["options"]["tuning"] == Tuning(fused_qkv=True).model_dump(mode="json")
    assert (document["options"]["size"], document["options"]["rounds"]) == ("64x64", 1)
    assert document["options"]["weights"] == str(WEIGHTS / "svd")
    assert document["torch"] == torch.__version__
    assert list(document["figures"]) == ["fal-ai/svd 64x64"]
    assert all(rate > 0 for rate in document["figures"]["fal-ai/svd 64x64"].values())


def test_a_row_is_in_the_file_before_the_next_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run which is cut off has told what it saw."""
    target, seen = tmp_path / "figures.json", []

    def measure(bench: Bench, options: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """Two rows."""
        yield "first", {"seconds": 1.0}
        seen.append(json.loads(target.read_text())["figures"])
        yield "second", {"seconds": 2.0}

    monkeypatch.setitem(gpu_bench.COMMANDS, "attention", measure)
    assert run(tmp_path, "attention").keys() == {"first", "second"}
    assert seen == [{"first": {"seconds": 1.0}}]


def test_a_part_that_fails_ends_no_other_and_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = gpu_bench.Ours

    def build(bench: Bench, endpoint: str, tuning: Tuning) -> Any:
        if tuning.fused_qkv:
            raise RuntimeError("it does not fit")
        return ours(bench, endpoint, tuning)

    monkeypatch.setattr(gpu_bench, "Ours", build)
    with pytest.raises(SystemExit, match="failed: fal-ai/svd, fused_qkv"):
        run(tmp_path, "ablate", "--rounds", "1", "--endpoints", "fal-ai/svd", "--parts", "fused_qkv", "nothing")
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert figures["fal-ai/svd, fused_qkv"] == {"error": "RuntimeError: it does not fit"}
    assert figures["fal-ai/svd, nothing"]["step"] > 0


def test_latents_in_float32_are_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "references"
    told = ("--rounds", "1", "--endpoints", "fal-ai/svd", "--parts", "nothing", "--references", str(kept))
    first = run(tmp_path, "ablate", *told)["fal-ai/svd, nothing"]
    assert [file.name for file in kept.iterdir()] == ["fal-ai--svd-stock-2-112x64-svd.pt"]
    monkeypatch.setattr(gpu_sides, "Stock", None)
    again = run(tmp_path, "ablate", *told)["fal-ai/svd, nothing"]
    assert first["psnr"] == again["psnr"] > 80
    assert first["step"] > 0 and first["decode"] > 0


def test_decoding_is_compared_with_float32_that_is_cut_alike(tmp_path: Path) -> None:
    told = ("--rounds", "1", "--dtypes", "float32", "bfloat16", "--chunks", "5", "25")
    figures = run(tmp_path, "decode", *told)
    assert all(figures[f"float32, {chunk} frames"]["psnr"] > 120 for chunk in (5, 25))
    assert all(35 < figures[f"bfloat16, {chunk} frames"]["psnr"] < 80 for chunk in (5, 25))


def test_models_beside_each_other_and_starts(tmp_path: Path) -> None:
    only = ("--endpoints", "fal-ai/fast-svd-lcm")
    shared = run(tmp_path, "fractions", *only, "--models", "2", "--share", "0.28", "--seconds", "1")
    row = shared["fal-ai/fast-svd-lcm, 2 with 0.28 each"]
    assert (row["models"], len(row["peak_gb"]), row["errors"]) == (2, 2, [])
    assert 0 < row["clips_an_hour"] < 2 * 3600 / row["seconds_a_clip"] * 2
    starts = run(tmp_path, "start", *only)
    assert list(starts) == ["fal-ai/fast-svd-lcm, cold", "fal-ai/fast-svd-lcm, warm"]
    assert all(0 < row["ready"] < row["first clip"] for row in starts.values())


def ready_and_dead(parent: Any) -> None:
    """As one that the kernel ends for its memory."""
    parent.send({})
    os._exit(1)


def test_a_process_that_dies_is_heard_of() -> None:
    line = gpu_bench._begun(ready_and_dead)
    assert [gpu_bench._heard(line) for _ in range(2)] == [{}, {"error": "the process died"}]


def test_what_fits_counts_where_others_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([{}, {"error": "out of memory"}, {"ended": [2.0, 4.0], "seconds": [2.0, 2.0], "peak_gb": 1.0}])
    told: list[str] = []
    line = type("Line", (), {"send": lambda self, word: told.append(word)})
    monkeypatch.setattr(gpu_bench, "_begun", lambda *_: line())
    monkeypatch.setattr(gpu_bench, "_heard", lambda _: next(said))
    options = understood(["fractions", "--cpu", "--tiny"])
    row = gpu_bench._beside_each_other(options, "fal-ai/svd", 2, 0.48)
    assert (row["clips_an_hour"], row["seconds_a_clip"], row["peak_gb"]) == (1800.0, 2.0, [1.0])
    assert row["errors"] == ["out of memory"]
    assert told == ["go"]


def test_attention_is_told_for_each_level_and_backend(tmp_path: Path) -> None:
    figures = run(tmp_path, "attention", "--rounds", "1", "--size", "64x64")
    assert len(figures) == 8
    for row in figures.values():
        assert row["math"] > 0
        assert isinstance(row["cudnn"], str)  # a CPU has none, and no other's time stands for it


def test_without_ffmpeg_the_encoded_file_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> str:
        raise RuntimeError("No ffmpeg exe could be found")

    monkeypatch.setattr(gpu_sides, "ffmpeg_binary", absent)
    can_encode.cache_clear()
    told = ("--rounds", "1", "--endpoints", "fal-ai/svd", "--sides", "ours")
    figures = run(tmp_path, "compare", *told)
    can_encode.cache_clear()
    assert figures["fal-ai/svd, ours"]["stages"].keys() == {"clip", "vae encode", "step", "vae decode"}
    assert list(figures["fal-ai/svd, aims"]) == ["PSNR of 35.0 dB"]


def test_aims_are_judged_by_what_was_measured() -> None:
    fast: dict[str, Any] = {"seconds": 0.9, "psnr": 36.0, "stages": {"encode": 0.1}}
    assert AIMS.keys() == ENDPOINTS.keys()
    assert set(judge("fal-ai/fast-svd-lcm", {"ours": fast, "stock eager": {"seconds": 2.8}}).values()) == {True}
    slow = fast | {"seconds": 1.1, "psnr": 34.0}
    assert set(judge("fal-ai/fast-svd-lcm", {"ours": slow, "stock eager": {"seconds": 2.8}}).values()) == {False}
    assert judge("fal-ai/fast-svd-lcm", {"ours": {"error": "it does not fit"}, "stock eager": fast}) == {}


def test_the_parts_are_those_of_the_whole() -> None:
    named = {field for part in PARTS.values() for field in part.model_fields_set}
    decoding = {"decode_dtype", "decode_chunk"}  # of which `decode` tells
    assert named == set(Tuning.model_fields) - {"warm_up_sizes"} - decoding
    assert BEST.deep_every == 1


@pytest.mark.parametrize(
    "words",
    [
        ("ablate", "--tuning", "{}"),
        ("start", "--rounds", "2"),
        ("attention", "--endpoints", "fal-ai/svd"),
        ("compare", "--tuning", '{"fp8": true}'),
    ],
)
def test_what_a_command_has_no_use_for_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        understood(words)


def test_a_side_is_gone_when_the_next_has_room() -> None:
    """A network and its compiled forward pass hold each other: a peak of memory would count it otherwise."""
    bench = Bench(understood(["compare", "--cpu", "--tiny"]))
    gc.disable()
    try:
        unet = weakref.ref(bench.networks.ours(Tuning(compile="default", warm_up=(1,))).unet)
        assert unet() is not None
        bench.make_room()
        assert unet() is None
    finally:
        gc.enable()


def test_equal_frames_have_no_noise() -> None:
    frames = torch.rand(2, 3, 4, 4)
    assert psnr(frames, frames) == math.inf
    assert psnr(frames, frames + 0.01) == pytest.approx(40, abs=1e-3)


def test_the_work_of_a_full_size_clip_is_that_of_the_published_networks() -> None:
    """svd.md counted them from the published configurations: 4,173.9, 3,374.4 and 496.3 TFLOP."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionModelWithProjection

    with torch.device("meta"):
        networks = Networks(
            UNetSpatioTemporalConditionModel(**UNET),
            AutoencoderKLTemporalDecoder(**VAE),
            CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP)),
        )
    sizes = [sum(each.numel() for each in network.parameters()) for network in vars(networks).values()]
    assert sizes == [1_524_623_082, 97_742_847, 632_076_800]
    work = Work.count(networks, Size(1024, 576))
    told = [work.of(steps, max(kind.guidance) > 1) for kind, steps in ENDPOINTS.values()]
    assert told == pytest.approx([4173.9, 3374.4, 496.3], abs=0.1)
    assert FastSVDLCM.guidance == (1.0, 1.0)


def test_a_benchmark_has_one_clip_a_seed() -> None:
    bench = Bench.__new__(Bench)
    assert bench.clip(Size(32, 16), 1) == bench.clip(Size(32, 16), 1)
    assert bench.clip(Size(32, 16), 1) != bench.clip(Size(32, 16), 2)


# ---------------------------------------------------------------- the plan of the first run

SCRIPT = ROOT / "loadtest" / "gpu_first_run.sh"
STEPS = [
    line.split()[0]
    for line in subprocess.run([SCRIPT, "--list"], capture_output=True, text=True, check=True).stdout.splitlines()
]
SAYS = """#!/bin/sh
for word; do printf '%s\\n' "$word"; done >> "$SAID"
echo --end-- >> "$SAID"
"""


def plan(folder: Path, *steps: str, **environment: str) -> list[list[str]]:
    """What the script would have its interpreter do."""
    python, said = folder / "python", folder / "said"
    python.write_text(SAYS)
    python.chmod(0o755)
    told = {"PYTHON": str(python), "RESULTS": str(folder / "results"), "SAID": str(said)}
    subprocess.run([SCRIPT, *steps], check=True, env=os.environ | told | environment, stdout=subprocess.DEVNULL)
    calls = said.read_text().split("--end--\n")[:-1]
    return [call.splitlines() for call in calls]


def test_every_step_of_the_first_run_says_what_the_benchmark_understands(tmp_path: Path) -> None:
    calls = plan(tmp_path, *STEPS[1:], TUNING='{"fused_qkv": true}', BENCH_OPTIONS="--cpu --tiny")
    benches = [call[2:] for call in calls if call[:2] == ["-m", "loadtest.gpu_bench"]]
    told = [understood(words) for words in benches]
    assert {options.command for options in told} == set(gpu_bench.COMMANDS)
    assert {part for options in told if "parts" in options for part in options.parts} == set(PARTS)
    compared = [options for options in told if options.command == "compare"]
    assert {options.endpoints[0] for options in compared} == set(ENDPOINTS)
    assert {side for options in compared for side in options.sides} == set(SIDES)
    assert {count for options in told if options.command == "fractions" for count in options.models} == {1, 2, 4}
    assert all(options.tuning.fused_qkv for options in told if "tuning" in options)
    assert all(options.json and options.compile_cache and options.tiny for options in told)
    assert len({options.json for options in told}) == len(told), "a step writes over another's figures"
    (tests,) = [call for call in calls if call[1] == "pytest"]
    assert all((ROOT / name).exists() for name in tests[3:])


def test_each_step_is_one_call_that_begins_with_its_number(tmp_path: Path) -> None:
    for step in ("4", "11"):
        ((_, _, *words),) = plan(tmp_path, step)
        assert understood(words).json.name.startswith(f"{step}-")
        assert (tmp_path / "results" / f"{step}.txt").exists()
        (tmp_path / "said").unlink()


def test_a_step_that_fails_is_told(tmp_path: Path) -> None:
    told = {"PYTHON": "false", "RESULTS": str(tmp_path)}
    done = subprocess.run([SCRIPT, "6", "7"], env=os.environ | told, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "failed: 6 7" in done.stdout


def test_without_what_is_needed_no_step_is_begun(tmp_path: Path) -> None:
    """With an interpreter that has no packages at all."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S "$@"\n')
    python.chmod(0o755)
    told = {"PYTHON": str(python), "RESULTS": str(tmp_path / "results"), "CC": "sh"}
    done = subprocess.run([SCRIPT], env=os.environ | told, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "torch triton diffusers" in done.stdout
    assert "failed: 0" in done.stdout
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["0.txt"]
