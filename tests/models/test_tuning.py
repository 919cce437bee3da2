"""What an operator may say of speed changes no clip, or says so."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from deployments.models.base import Clip, ControlNetConfig, Size, VideoConfig
from deployments.models.checkpoints import Checkpoint, controlnet_part, svd_parts
from deployments.models.networks import DepthControlNet, VideoUNet, attend_to_one_token, project_together
from deployments.models.sampler import SVDSampler
from deployments.models.schedules import Schedule, euler_schedule, lcm_schedule
from deployments.models.stable_video import StableVideo
from deployments.models.svd import SVD, SVDConfig
from deployments.models.tuning import Compiled, Tuning, keep_compiled
from tests.tiny import WEIGHTS

MAPS = ControlNetConfig(weights=str(WEIGHTS / "depth"))
WIDTH, HEIGHT = 48, 32
GUIDED = (1.0, 3.0)
FULL_HEADS = (5, 10, 20, 20)
EXACT = [
    Tuning(channels_last=True),
    Tuning(fused_qkv=True),
    Tuning(flat_time=False),
    *(Tuning(attention=name) for name in ("flash", "efficient", "math")),
    Tuning(channels_last=True, fused_qkv=True, flat_time=False, attention="math"),
]
"""What leaves the sums as they are. cuDNN's attention is a GPU's; compiled functions have tests of their own below."""


def load(tuning: Tuning = Tuning(), control: bool = False) -> SVDSampler:  # noqa: B008 - it is frozen
    parts = svd_parts(Checkpoint(str(WEIGHTS / "svd")), None, None)
    if control:
        parts["controlnet"] = controlnet_part(MAPS.checkpoint, MAPS.folder, None)
    sampler = SVDSampler.load(parts, control=MAPS if control else None, tuning=tuning)
    sampler.batched = True  # as on a GPU
    return sampler


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


CLIPS = [Clip(picture(1), 11, 20, 0.02), Clip(picture(2), 22, 255, 0.5)]
LED = replace(CLIPS[0], depth=(picture(4), picture(5), picture(6)))


def keep_all(done: int) -> Collection[int]:
    return range(100)


def frames_of(
    sampler: SVDSampler,
    clips: list[Clip],
    schedule: Schedule | None = None,
    guidance: tuple[float, float] = GUIDED,
) -> torch.Tensor:
    latents = sampler.denoise(clips, schedule or euler_schedule(3), guidance, keep_all)
    return torch.stack([sampler.finish(clip, latents[index]) for index, clip in enumerate(clips)])


@pytest.fixture(scope="module")
def plain() -> torch.Tensor:
    return frames_of(load(), CLIPS)


@pytest.fixture(scope="module")
def led() -> torch.Tensor:
    return frames_of(load(control=True), [LED])


# ---------------------------------------------------------------- the same sums


@pytest.mark.parametrize("exact", EXACT, ids=lambda each: str(each.model_dump(exclude_defaults=True)))
def test_the_same_sums_in_another_order_make_the_same_clips(
    exact: Tuning, plain: torch.Tensor, led: torch.Tensor
) -> None:
    torch.testing.assert_close(frames_of(load(exact), CLIPS), plain, rtol=0, atol=1e-5)
    # The small ControlNet's random weights magnify rounding; that it is only that, is shown below.
    torch.testing.assert_close(frames_of(load(exact, control=True), [LED]), led, rtol=0, atol=5e-4)


@pytest.mark.parametrize("exact", EXACT, ids=lambda each: str(each.model_dump(exclude_defaults=True)))
def test_in_double_precision_the_networks_answer_the_same(exact: Tuning) -> None:
    torch.manual_seed(2)
    common = (torch.randn(2, 3, 8, 4, 6), torch.tensor([1.6, -0.3]), torch.randn(2, 1, 32), torch.rand(2, 3))
    common = tuple(each.double() for each in common)
    latents, maps = torch.randn(3, 4, 4, 6).double(), torch.rand(2, 3, 3, 32, 48).double()

    def answers(tuning: Tuning) -> list[torch.Tensor]:
        sampler = load(tuning, control=True)
        assert sampler.control
        unet, controlnet, vae = (each.double() for each in (sampler.unet, sampler.control.network, sampler.vae))
        with torch.inference_mode(), tuning.choosing_kernels():
            residuals = controlnet(*common, features=controlnet.embed(maps), accumulate=True)
            return [unet(*common), unet(*common, residuals=residuals), vae.decode(latents, num_frames=3).sample]

    for ours, plain in zip(answers(exact), answers(Tuning()), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-9 * float(plain.abs().max()))


def test_where_nothing_is_said_nothing_changes() -> None:
    assert Tuning() == VideoConfig(weights="somewhere").tuning
    assert Tuning().model_dump(exclude={"warm_up", "warm_up_sizes", "deep_every"}) == dict.fromkeys(
        ("compile", "attention", "dtype", "decode_dtype", "decode_chunk", "flat_time")
    ) | {"channels_last": False, "fused_qkv": False, "cudnn_benchmark": False}


def test_kernels_are_laid_out_channels_last() -> None:
    sampler = load(Tuning(channels_last=True, flat_time=False))
    kernels = [each.weight for each in sampler.unet.modules() if isinstance(each, torch.nn.Conv2d | torch.nn.Conv3d)]
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    assert {kernel.dim() for kernel in kernels} == {4, 5}
    assert all(kernel.is_contiguous(memory_format=layouts[kernel.dim()]) for kernel in kernels)


def test_three_projections_become_one_and_leave_nothing_behind() -> None:
    whole, fused = load(), load(Tuning(fused_qkv=True))
    products = [sum(isinstance(each, torch.nn.Linear) for each in s.unet.modules()) for s in (whole, fused)]
    attentions = [each for each in fused.unet.modules() if hasattr(each, "attn1")]
    assert attentions
    assert products[0] - products[1] == 2 * len(attentions)
    assert sum(p.numel() for p in fused.unet.parameters()) == sum(p.numel() for p in whole.unet.parameters())


def test_a_full_size_network_fuses_every_self_attention() -> None:
    with torch.device("meta"):
        unet = VideoUNet(num_attention_heads=FULL_HEADS)
    attend_to_one_token(unet)
    project_together(unet)
    fused = [block for block in unet.modules() if hasattr(getattr(block, "attn1", None), "to_qkv")]
    assert len(fused) == 32


@pytest.mark.parametrize("name", ["flash", "efficient", "math"])
def test_the_attention_that_is_asked_for_goes_first(name: Any) -> None:
    seen: list[tuple[bool, ...]] = []
    sampler = load(Tuning(attention=name))
    states = (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.mem_efficient_sdp_enabled)
    sampler.unet.register_forward_pre_hook(lambda *_: seen.append(tuple(state() for state in states)))
    frames_of(sampler, CLIPS[:1], euler_schedule(1))
    assert seen == [(name == "flash", True)]
    assert all(state() for state in states)


def test_cudnn_is_told_while_a_network_computes_and_not_after() -> None:
    sampler = load(Tuning(cudnn_benchmark=True))
    seen: list[bool] = []
    for network in (sampler.image_encoder, sampler.unet, sampler.vae.decoder):
        network.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    frames_of(sampler, CLIPS[:1], euler_schedule(1))
    assert seen == [True] * 3
    assert not torch.backends.cudnn.benchmark


# ---------------------------------------------------------------- precision and chunks


def test_precisions_are_those_that_are_said() -> None:
    sampler = load(Tuning(dtype="bfloat16", decode_dtype="float16"))
    kinds = (sampler.unet, sampler.image_encoder, sampler.vae.decoder, sampler.vae.encoder)
    assert [next(each.parameters()).dtype for each in kinds] == [
        torch.bfloat16,
        torch.bfloat16,
        torch.float16,
        torch.float32,
    ]
    assert load(Tuning(dtype="bfloat16")).decode(torch.zeros(2, 4, 4, 6)).dtype == torch.float32
    assert Tuning().dtypes("cuda") == (torch.bfloat16, torch.bfloat16)
    assert Tuning(decode_dtype="float16").dtypes("cpu") == (torch.float32, torch.float16)


def test_decoding_goes_by_the_chunk_that_is_said() -> None:
    sampler = load(Tuning(decode_chunk=7))
    chunks: list[int] = []
    sampler.vae.decoder.register_forward_pre_hook(lambda _, inputs: chunks.append(len(inputs[0])))
    sampler.decode(torch.zeros(14, 4, 4, 6))
    assert chunks == [7, 7]
    assert sampler.cut(25) == [7, 6, 6, 6]


# ---------------------------------------------------------------- a device that is only told of its work


def test_who_asks_is_one_step_behind_the_device_at_the_most() -> None:
    """With a stand-in for the GPU's own marks, which a CPU has no use for."""
    sampler, happened = load(), list[str]()
    marks = itertools.count(1)

    def mark() -> Callable[[], None]:
        number = next(marks)
        happened.append(f"told {number}")
        return lambda: happened.append(f"done {number}")

    def keep(done: int) -> Collection[int]:
        happened.append(f"ask {done}")
        return range(100)

    sampler.mark = mark
    sampler.denoise(CLIPS[:1], euler_schedule(3), GUIDED, keep)
    assert happened == ["ask 0", "told 1", "ask 1", "told 2", "done 1", "ask 2", "told 3", "done 2", "ask 3"]


# ---------------------------------------------------------------- what is beneath the outermost level


def test_a_look_beneath_is_kept_for_the_steps_between(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = load(Tuning(deep_every=3))
    looked: list[int] = []
    sampler.unet.mid_block.register_forward_pre_hook(
        lambda _, args, kwargs: looked.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    frames_of(sampler, CLIPS, euler_schedule(5))
    assert looked == [100, 100]  # two clips, two halves, 25 frames, at steps 0 and 3


@pytest.mark.parametrize("guidance", [GUIDED, (1.0, 1.0)])
def test_what_was_found_beneath_is_each_clips_own(guidance: tuple[float, float]) -> None:
    sampler = load(Tuning(deep_every=2))
    together = frames_of(sampler, CLIPS, euler_schedule(4), guidance)
    for index, clip in enumerate(CLIPS):
        alone = frames_of(sampler, [clip], euler_schedule(4), guidance)[0]
        torch.testing.assert_close(together[index], alone, rtol=0, atol=1e-5)


def test_who_stays_keeps_his_own_when_another_leaves() -> None:
    sampler = load(Tuning(deep_every=4))
    latents = sampler.denoise(CLIPS, euler_schedule(4), GUIDED, lambda done: [0, 1] if done < 2 else [1])
    alone = sampler.denoise(CLIPS[1:], euler_schedule(4), GUIDED, keep_all)
    torch.testing.assert_close(latents[1], alone[0], rtol=0, atol=1e-4)


def test_it_is_close_and_not_the_same(plain: torch.Tensor) -> None:
    frames = frames_of(load(Tuning(deep_every=2)), CLIPS)
    assert 0 < (frames - plain).abs().mean() < 0.05


def test_whom_maps_lead_is_seen_whole(led: torch.Tensor) -> None:
    assert torch.equal(frames_of(load(Tuning(deep_every=2), control=True), [LED]), led)


def test_given_back_at_once_it_is_the_same_answer() -> None:
    unet = load().unet
    torch.manual_seed(1)
    call = (torch.randn(2, 3, 8, 4, 6), torch.tensor([1.0, 0.5]), torch.randn(2, 1, 32), torch.rand(2, 3))
    with torch.inference_mode():
        velocity, beneath = unet.predict(*call)
        assert torch.equal(unet.predict(*call, beneath=beneath)[0], velocity)
        assert torch.equal(unet(*call), velocity)


def test_at_full_size_most_of_the_work_is_beneath() -> None:
    with torch.device("meta"):
        unet = VideoUNet(num_attention_heads=FULL_HEADS).to("meta")
        attend_to_one_token(unet)
        call = (torch.empty(1, 25, 8, 72, 128), torch.empty(1), torch.empty(1, 1, 1024), torch.empty(1, 3))

    def work(**options: Any) -> tuple[int, Any]:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            answer = unet.predict(*call, **options)
        return counter.get_total_flops(), answer

    whole, (_, beneath) = work()
    outermost, _ = work(beneath=beneath)
    assert beneath.shape == (1, 25, 640, 72, 128)
    assert 0.3 < outermost / whole < 0.5


# ---------------------------------------------------------------- CUDA's grids


def test_more_attentions_than_a_grid_has_go_in_several_calls(plain: torch.Tensor) -> None:
    sampler = load()
    rows: list[int] = []
    sampler.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    sampler.most_attentions = 3 * (WIDTH // 8) * (HEIGHT // 8) - 1
    frames = frames_of(sampler, CLIPS, euler_schedule(3))
    assert rows == [2, 2] * 3
    torch.testing.assert_close(frames, plain, rtol=0, atol=1e-5)


def test_on_a_cpu_there_is_no_such_bound() -> None:
    assert load().most_attentions is None


# ---------------------------------------------------------------- compiled


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Functions are traced as for a GPU, and what was traced runs as it is; how often that was."""
    traces: list[int] = []

    def backend(graph: Any, example: Any, **_: Any) -> Any:
        traces.append(1)
        return graph.forward

    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda run, **options: compile(run, fullgraph=True, dynamic=False, backend=backend)
    )
    yield traces
    torch.compiler.reset()


def test_every_network_is_one_graph_and_makes_the_same_clips(traced: list[int], led: torch.Tensor) -> None:
    sampler = load(Tuning(compile="max-autotune-no-cudagraphs", warm_up=(1,), fused_qkv=True), control=True)
    with sampler.learning():
        frames = frames_of(sampler, [LED])
    assert len(traced) == 3  # UNet, ControlNet, decoder
    torch.testing.assert_close(frames, led, rtol=0, atol=5e-4)
    again = frames_of(sampler, [LED])
    assert len(traced) == 3
    assert torch.equal(again, frames)


def test_both_halves_of_deep_every_are_compiled(traced: list[int]) -> None:
    sampler = load(Tuning(compile="default", warm_up=(1,), deep_every=2))
    with sampler.learning():
        frames = frames_of(sampler, CLIPS[:1], lcm_schedule(3), (1.0, 1.0))
    assert len(traced) == 3
    uncompiled = frames_of(load(Tuning(deep_every=2)), CLIPS[:1], lcm_schedule(3), (1.0, 1.0))
    torch.testing.assert_close(frames, uncompiled, rtol=0, atol=1e-5)


def test_what_was_not_warmed_up_is_not_compiled_while_a_caller_waits(traced: list[int]) -> None:
    model = StableVideo(
        "fal-ai/stable-video",
        VideoConfig(
            weights=str(WEIGHTS / "svd"), sizes=(Size(48, 32),), tuning=Tuning(compile="default", warm_up=(1,))
        ),
    )
    model.setup("cpu")
    assert traced == []
    model.warm_up()
    warmed = len(traced)
    assert warmed == 2
    model.generate(CLIPS[:1], 2, keep_all)
    assert len(traced) == warmed
    other = replace(CLIPS[0], picture=CLIPS[0].picture.resize((32, 48)))
    assert model.generate([other], 1, keep_all)[0] is not None
    assert len(traced) == warmed


def test_warming_up_makes_every_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SVD(
        "fal-ai/svd",
        SVDConfig(
            weights=str(WEIGHTS / "svd"),
            sizes=(Size(48, 32), Size(32, 48)),
            controlnet=MAPS,
            tuning=Tuning(warm_up=(1, 2), warm_up_sizes=(Size(32, 32),)),
        ),
    )
    model.setup("cpu")
    made: set[tuple[str, int, bool]] = set()

    def note(clips: list[Clip], steps: int, keep: Any) -> list[None]:
        assert list(keep(0))[: len(clips)] == list(range(len(clips)))
        made.add((str(clips[0].size), len(clips), bool(clips[0].depth)))
        return [None] * len(clips)

    monkeypatch.setattr(model, "generate", note)
    model.warm_up()
    sizes = ("48x32", "32x48", "32x32")
    assert made == {(size, count, led) for size in sizes for count in (1, 2) for led in (False, True)}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own
def test_what_cuda_graphs_answer_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next replay writes over it."""
    answer = torch.zeros(2)

    def replay(value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (answer.copy_(value),)

    monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    compiled = Compiled(replay, "reduce-overhead")
    compiled.learning = True
    first, second = (compiled(torch.full((2,), float(each)))[0] for each in (1, 2))
    assert (first.tolist(), second.tolist()) == ([1.0, 1.0], [2.0, 2.0])


def test_cuda_graphs_are_the_unets_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda run, mode, **_: modes.append(mode) or run)
    load(Tuning(compile="reduce-overhead", warm_up=(1,)), control=True)
    load(Tuning(compile="max-autotune", warm_up=(1,)))
    assert sorted(modes) == ["default", "default", "max-autotune", "max-autotune-no-cudagraphs", "reduce-overhead"]


def test_a_network_may_have_many_shapes(traced: list[int]) -> None:
    compiled = Compiled(lambda value: value + 1, "default")
    compiled.learning = True
    for length in range(1, 20):
        assert compiled(torch.zeros(length)).tolist() == [1.0] * length
    assert len(traced) == 19


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own compiler warns of its own parts
@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles for a CPU by a C++ compiler, and there is none")
def test_torchs_own_compiler_makes_the_same_of_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small block along time by inductor, as far as a CPU goes: a whole network takes it minutes."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    block = load().unet.down_blocks[0].resnets[0].temporal_res_block
    compiled = Compiled(block.forward, "default")
    torch.manual_seed(3)
    call = torch.randn(1, block.in_channels, 3, 4, 6), torch.randn(1, 3, block.time_emb_proj.in_features)
    with torch.inference_mode():
        plain = block(*call)
        compiled.learning = True
        torch.testing.assert_close(compiled(*call), plain, rtol=0, atol=1e-5)
    assert any(tmp_path.rglob("*.so"))
    torch.compiler.reset()


def test_compiled_code_lies_apart_by_what_it_was_compiled_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    place = keep_compiled(tmp_path)
    assert place and place.parent == tmp_path
    assert list(place.iterdir()) == []
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(place)
    assert torch.__version__ in place.name
    assert place == keep_compiled(tmp_path)
    monkeypatch.setattr(diffusers, "__version__", "0.0")
    assert place != keep_compiled(tmp_path)


def test_where_nothing_can_be_kept_a_replica_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    (tmp_path / "file").touch()
    assert keep_compiled(tmp_path / "file") is None
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"
    assert "what is compiled will not be kept" in caplog.text


# ---------------------------------------------------------------- what an operator may say


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"compile": "max-autotune"}, "compile wants warm_up"),
        ({"compile": "fast", "warm_up": [1]}, "compile"),
        ({"warm_up": [0]}, "warm_up"),
        ({"deep_every": 0}, "deep_every"),
        ({"fp8": True}, "fp8"),
        ({"dtype": "float8"}, "dtype"),
        ({"warm_up_sizes": ["big"]}, "warm_up_sizes"),
    ],
)
def test_a_mistake_stops_the_start(said: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        VideoConfig.model_validate({"weights": "somewhere", "tuning": said})


@pytest.mark.parametrize("said", [{"sizes": ["48x36"]}, {"tuning": {"warm_up": [1], "warm_up_sizes": ["48x36"]}}])
def test_a_size_that_no_network_takes_stops_the_start(said: dict[str, Any]) -> None:
    config = {"weights": str(WEIGHTS / "svd"), "sizes": ["48x32"]} | said
    model = StableVideo("fal-ai/stable-video", VideoConfig.model_validate(config))
    with pytest.raises(ValueError, match=r"must be multiples of \d+ pixels, unlike 48x36"):
        model.setup("cpu")


def test_a_controlnet_is_arranged_like_the_unet() -> None:
    sampler = load(Tuning(fused_qkv=True, channels_last=True), control=True)
    assert sampler.control
    network = sampler.control.network
    assert isinstance(network, DepthControlNet)
    assert any(hasattr(each, "to_qkv") for each in network.modules())
    kernel = network.conv_in.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
