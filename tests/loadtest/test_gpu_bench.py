"""The benchmark for GPUs, run as it is with the small weights on a CPU: its figures say nothing of speed there."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig

from deployments.models.base import Size
from deployments.models.fast_svd_lcm import FastSVDLCM
from deployments.models.tuning import Tuning
from loadtest import gpu_bench
from loadtest.full_size import CLIP, UNET, VAE, Networks, Work
from loadtest.gpu_bench import BEST, ENDPOINTS, PARTS, Bench, command_line, main, psnr
from tests.conftest import ROOT

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
    main([command, "--cpu", "--tiny", "--rounds", "1", "--json", str(target), *options])
    document: dict[str, Any] = json.loads(target.read_text())
    assert (document["command"], document["device"]) == (command, "cpu")
    return dict(document["figures"])


def test_compare_tells_every_figure_of_every_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = run(tmp_path, "compare", "--profile", str(tmp_path / "profile"), "--endpoints", "fal-ai/svd")

    rows = figures["endpoints"]["fal-ai/svd"]
    assert [row["side"] for row in rows] == ["stock eager", "ours untuned", "ours"]
    for row in rows:
        assert row["stages"].keys() == {"clip", "vae encode", "step", "vae decode", "encode"}
        assert all(seconds > 0 for seconds in row["stages"].values())
        assert 2 * row["stages"]["step"] < 2 * row["seconds"]
        assert row["share_of_floor"] == pytest.approx(row["tflop_per_second"] / figures["ceiling_tflop_per_second"])
        assert row["psnr"] > 80  # float32 on both sides
    assert "floor" in capsys.readouterr().out
    assert json.loads((tmp_path / "profile" / "fal-ai--svd.json").read_text())["traceEvents"]


def test_of_an_lcm_ours_is_compared_with_ours(tmp_path: Path) -> None:
    """The stock pipeline has no schedule for it: its frames are another clip's."""
    rows = run(tmp_path, "compare", "--endpoints", "fal-ai/fast-svd-lcm")["endpoints"]["fal-ai/fast-svd-lcm"]
    assert all(row["psnr"] > 80 for row in rows)


def test_ablate_measures_each_part_alone(tmp_path: Path) -> None:
    figures = run(tmp_path, "ablate", "--parts", "nothing", "fused_qkv")
    assert figures.keys() == {"nothing", "fused_qkv"}
    assert all(figures[name]["step"] > 0 and figures[name]["psnr"] > 80 for name in figures)


def test_batches_fractions_and_starts(tmp_path: Path) -> None:
    only = ("--endpoints", "fal-ai/fast-svd-lcm")
    assert all(rate > 0 for rate in run(tmp_path, "batches", *only)["fal-ai/fast-svd-lcm 112x64"].values())
    shared = run(tmp_path, "fractions", *only)
    assert [(row["models"], row["failed"]) for row in shared.values()] == [(1, 0), (2, 0)]
    assert all(row["clips_an_hour"] > 0 for row in shared.values())
    starts = run(tmp_path, "start", *only)
    assert all(0 < ready < first for ready, first in starts.values())
    assert len(starts) == 2


def test_attention_is_told_for_each_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_bench, "TINY_SIZE", Size(64, 64))
    figures = run(tmp_path, "attention")
    assert len(figures) == 8
    assert all(row["math"] > 0 for row in figures.values())


def test_the_parts_are_those_of_the_whole() -> None:
    named = {field for part in PARTS.values() for field in part.model_fields_set}
    assert named >= set(Tuning.model_fields) - {"warm_up_sizes", "decode_dtype"}
    assert BEST.deep_every == 1


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
    calls = plan(tmp_path, TUNING='{"fused_qkv": true}', BENCH_OPTIONS="--cpu --tiny")
    benches = [call[2:] for call in calls if call[:2] == ["-m", "loadtest.gpu_bench"]]
    understood = [command_line().parse_args(words) for words in benches]
    assert {options.command for options in understood} == set(gpu_bench.COMMANDS)
    assert {part for options in understood for part in options.parts or ()} == set(PARTS)
    assert {options.endpoints[0] for options in understood if options.command == "compare"} == set(ENDPOINTS)
    assert {Tuning.model_validate_json(options.tuning).fused_qkv for options in understood if options.tuning} == {True}
    assert all(options.json and options.compile_cache and options.tiny for options in understood)
    (tests,) = [call for call in calls if call[1] == "pytest"]
    assert all((ROOT / name).exists() for name in tests[3:])


def test_a_step_can_be_run_by_itself(tmp_path: Path) -> None:
    ((_, _, command, *_),) = plan(tmp_path, "10")
    assert command == "start"
    assert (tmp_path / "results" / "10.txt").exists()


def test_a_step_that_fails_is_told(tmp_path: Path) -> None:
    told = {"PYTHON": "false", "RESULTS": str(tmp_path)}
    done = subprocess.run([SCRIPT, "6", "7"], env=os.environ | told, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "failed: 6 7" in done.stdout
    listed = subprocess.run([SCRIPT, "--list"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [shlex.split(line)[0] for line in listed] == [str(number) for number in range(12)]
