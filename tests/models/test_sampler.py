"""The sampler against diffusers' own pipeline, on the weights that ship with the package."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, StableVideoDiffusionPipeline, UNetSpatioTemporalConditionModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from deployments.errors import RunnerServerError
from deployments.models.base import FRAMES, Clip, ControlNetConfig, Size, VideoConfig
from deployments.models.checkpoints import Checkpoint, CheckpointError, controlnet_part, svd_parts
from deployments.models.networks import DepthControlNet
from deployments.models.sampler import SVDSampler, to_uint8
from deployments.models.schedules import EulerSchedule, Schedule, euler_schedule, lcm_schedule
from deployments.models.stable_video import StableVideo
from deployments.models.vision import Normalisation
from tests import tiny

# diffusers turns a tensor into an array in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning:diffusers.schedulers.scheduling_euler_discrete"
)

WEIGHTS = tiny.WEIGHTS / "svd"
DEPTH = WEIGHTS.with_name("depth")
WIDTH, HEIGHT = 48, 32
STEPS = 4
GUIDED = (1.0, 3.0)
UNGUIDED = (1.0, 1.0)


def load(weights: Path = WEIGHTS) -> SVDSampler:
    return SVDSampler.load(svd_parts(Checkpoint(str(weights)), variant=None, unet=None))


@pytest.fixture(scope="module")
def sampler() -> SVDSampler:
    """A sampler that batches, as on a GPU."""
    sampler = load()
    sampler.batched = True
    return sampler


@pytest.fixture(scope="module")
def pipeline() -> StableVideoDiffusionPipeline:
    pipeline = StableVideoDiffusionPipeline.from_pretrained(WEIGHTS, dtype=torch.float32, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def unet_batches(sampler: SVDSampler) -> Iterator[list[int]]:
    """How many rows each call of the UNet had."""
    rows: list[int] = []
    hook = sampler.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    yield rows
    hook.remove()


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


CLIPS = [
    Clip(picture=picture(1), seed=11, motion_bucket_id=20, cond_aug=0.02),
    Clip(picture=picture(2), seed=22, motion_bucket_id=127, cond_aug=0.5),
    Clip(picture=picture(3), seed=33, motion_bucket_id=255, cond_aug=0.0),
]


def keep_all(steps_done: int) -> Collection[int]:
    return range(100)


def float_frames(
    sampler: SVDSampler,
    clips: Sequence[Clip],
    schedule: Schedule | None = None,
    guidance: tuple[float, float] = GUIDED,
    keep: Callable[[int], Collection[int]] = keep_all,
) -> dict[int, torch.Tensor]:
    latents = sampler.denoise(clips, schedule or euler_schedule(STEPS), guidance, keep)
    return {index: sampler.finish(clips[index], member) for index, member in latents.items()}


def stock_frames(
    pipeline: StableVideoDiffusionPipeline, clip: Clip, guidance: tuple[float, float] = GUIDED
) -> torch.Tensor:
    return pipeline(
        clip.picture,
        height=clip.size.height,
        width=clip.size.width,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        min_guidance_scale=guidance[0],
        max_guidance_scale=guidance[1],
        fps=7,  # the pipeline tells the network one less: our FPS_ID
        motion_bucket_id=clip.motion_bucket_id,
        noise_aug_strength=clip.cond_aug,
        decode_chunk_size=FRAMES,
        generator=torch.Generator("cpu").manual_seed(clip.seed),
        output_type="pt",
    ).frames[0]


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_a_clip_may_have_fewer_frames(sampler: SVDSampler) -> None:
    clip = replace(CLIPS[0], length=3)
    assert float_frames(sampler, [clip])[0].shape == (3, 3, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="one number of frames"):
        sampler.denoise([clip, CLIPS[0]], euler_schedule(1), GUIDED, keep_all)


def test_a_mixed_batch_equals_the_stock_pipeline_run_for_each_clip(
    sampler: SVDSampler, pipeline: StableVideoDiffusionPipeline
) -> None:
    together = float_frames(sampler, CLIPS)
    for index, clip in enumerate(CLIPS):
        stock = stock_frames(pipeline, clip)
        alone = float_frames(sampler, [clip])[0]
        assert stock.std() > 0.02
        assert_same(alone, stock, 1e-4)
        assert_same(together[index], stock, 1e-4)
        assert_same(together[index], alone, 1e-5)


def test_without_guidance_it_equals_the_stock_pipeline_too(
    sampler: SVDSampler, pipeline: StableVideoDiffusionPipeline
) -> None:
    alone = float_frames(sampler, CLIPS[:1], guidance=UNGUIDED)[0]
    assert_same(alone, stock_frames(pipeline, CLIPS[0], UNGUIDED), 1e-4)


@pytest.mark.parametrize("change", ["picture", "seed", "motion_bucket_id", "cond_aug"])
def test_every_part_of_a_clip_matters(sampler: SVDSampler, change: str) -> None:
    other = replace(CLIPS[0], **{change: getattr(CLIPS[1], change)})
    frames = float_frames(sampler, [CLIPS[0], other])
    assert (frames[0] - frames[1]).abs().mean() > 1e-3


def test_lcm_draws_each_clip_its_own_noise(sampler: SVDSampler) -> None:
    together = float_frames(sampler, CLIPS, lcm_schedule(3), UNGUIDED)
    for index, clip in enumerate(CLIPS):
        assert_same(together[index], float_frames(sampler, [clip], lcm_schedule(3), UNGUIDED)[0], 1e-5)


def test_the_same_seed_gives_the_same_clip_bit_for_bit(sampler: SVDSampler) -> None:
    first, second = (float_frames(sampler, CLIPS[:1], lcm_schedule(3), UNGUIDED)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("schedule", "guidance"), [(euler_schedule(4), GUIDED), (lcm_schedule(4), UNGUIDED)])
def test_dropping_a_member_does_not_change_the_others(
    sampler: SVDSampler, unet_batches: list[int], schedule: Schedule, guidance: tuple[float, float]
) -> None:
    whole = float_frames(sampler, CLIPS, schedule, guidance)
    unet_batches.clear()

    partial = float_frames(sampler, CLIPS, schedule, guidance, lambda done: [0, 1, 2] if done < 2 else [2, 0])

    per_clip = 2 if guidance == GUIDED else 1
    assert unet_batches == [3 * per_clip, 3 * per_clip, 2 * per_clip, 2 * per_clip]
    assert partial.keys() == {0, 2}
    for index, frames in partial.items():
        assert_same(frames, whole[index], 1e-5)


@pytest.mark.parametrize(("schedule", "guidance"), [(euler_schedule(3), GUIDED), (lcm_schedule(3), UNGUIDED)])
def test_on_a_cpu_a_clip_is_the_same_bit_for_bit_in_any_batch(
    schedule: Schedule, guidance: tuple[float, float]
) -> None:
    sampler = load()
    together = sampler.denoise(CLIPS, schedule, guidance, keep_all)
    for index, clip in enumerate(CLIPS):
        assert torch.equal(together[index], sampler.denoise([clip], schedule, guidance, keep_all)[0])


def test_sample_answers_none_for_a_dropped_clip(sampler: SVDSampler) -> None:
    steps_done: list[int] = []

    def keep(done: int) -> Collection[int]:
        steps_done.append(done)
        return {1} if done else {0, 1}

    dropped, kept = sampler.sample(CLIPS[:2], euler_schedule(2), GUIDED, keep)

    assert steps_done == [0, 1, 2]
    assert dropped is None
    assert kept is not None
    assert (kept.dtype, kept.shape) == (np.uint8, (FRAMES, HEIGHT, WIDTH, 3))
    expected = float_frames(sampler, CLIPS[1:2], euler_schedule(2))[0].permute(0, 2, 3, 1).numpy()
    assert np.abs(kept - expected * 255).max() <= 0.51


def test_a_clip_that_nobody_wants_any_more_is_not_even_encoded(sampler: SVDSampler) -> None:
    encoded: list[int] = []
    hook = sampler.image_encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    sampler.sample(CLIPS, euler_schedule(1), GUIDED, lambda done: [2])
    hook.remove()
    assert len(encoded) == 1


@pytest.mark.parametrize("wanted_steps", [0, 2])
def test_it_stops_when_nobody_is_left(sampler: SVDSampler, unet_batches: list[int], wanted_steps: int) -> None:
    def keep(done: int) -> Collection[int]:
        return range(2) if done < wanted_steps else ()

    assert sampler.sample(CLIPS[:2], euler_schedule(5), GUIDED, keep) == [None, None]
    assert unet_batches == [4] * wanted_steps


@pytest.mark.parametrize(("guidance", "rows"), [((1.0, 1.0), 1), ((1.0, 1.2), 2), ((3.0, 1.0), 2)])
def test_guidance_of_one_costs_no_second_half(
    sampler: SVDSampler, unet_batches: list[int], guidance: tuple[float, float], rows: int
) -> None:
    sampler.denoise(CLIPS[:1], lcm_schedule(2), guidance, keep_all)
    assert unet_batches == [rows, rows]


def test_clips_of_different_sizes_are_refused(sampler: SVDSampler) -> None:
    clips = [CLIPS[0], replace(CLIPS[1], picture=picture(2, HEIGHT, WIDTH))]
    with pytest.raises(ValueError, match="have one size, not 32x48, 48x32"):
        sampler.sample(clips, euler_schedule(1), GUIDED, keep_all)


def test_a_size_that_the_networks_cannot_halve_is_refused(sampler: SVDSampler) -> None:
    with pytest.raises(ValueError, match="50x32 is not in multiples of 16"):
        sampler.sample([replace(CLIPS[0], picture=picture(1, 50))], euler_schedule(1), GUIDED, keep_all)


def test_frames_are_decoded_in_even_chunks(sampler: SVDSampler) -> None:
    chunked = SVDSampler(sampler.unet, sampler.vae, sampler.image_encoder, sampler.normalisation, decode_chunk=8)
    latents = torch.randn(FRAMES, 4, 4, 6, generator=torch.Generator().manual_seed(0))

    frames = chunked.decode(latents)

    assert torch.equal(frames[:7], sampler.decode(latents[:7]))
    assert torch.equal(frames[7:13], sampler.decode(latents[7:13]))
    assert torch.equal(frames[19:], sampler.decode(latents[19:]))


def test_pixels_are_rounded_to_the_nearest() -> None:
    frames = torch.tensor([0.0, 0.49, 0.51, 254.6, 255.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5) / 255
    assert to_uint8(frames)[0, 0, :, 0].tolist() == [0, 0, 1, 255, 255]


def test_a_checkpoint_of_other_proportions_is_served(tmp_path: Path) -> None:
    """VAE factor 4, six latent channels, 64-wide embeddings of 64-pixel pictures, and other colour constants."""
    weights = save_other_checkpoint(tmp_path)
    sampler = load(weights)

    (frames,) = sampler.sample(CLIPS[:1], lcm_schedule(1), GUIDED, keep_all)

    assert sampler.size_multiple == 8
    assert sampler.normalisation == Normalisation(64, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert frames is not None
    assert frames.shape == (FRAMES, HEIGHT, WIDTH, 3)


def save_other_checkpoint(directory: Path) -> Path:
    UNetSpatioTemporalConditionModel(
        in_channels=12,
        out_channels=6,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 64),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        layers_per_block=1,
        cross_attention_dim=64,
        num_attention_heads=(1, 2),
    ).save_pretrained(directory / "unet")
    AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 3, block_out_channels=(32,) * 3, latent_channels=6
    ).save_pretrained(directory / "vae")
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            projection_dim=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=64,
            patch_size=32,
        )
    ).save_pretrained(directory / "image_encoder")
    extractor: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (directory / "feature_extractor").mkdir()
    (directory / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(extractor))
    return directory


def test_half_precision_networks_make_nearly_the_same_clip(sampler: SVDSampler) -> None:
    """What ``load`` does for a GPU, tried on the CPU: only the VAE's encoder and the latents stay in float32."""
    half = load()
    half.decode_chunk = 8
    for network in (half.unet, half.image_encoder, half.vae.decoder):
        network.to(torch.bfloat16)

    latents = half.denoise(CLIPS[:1], euler_schedule(2), GUIDED, keep_all)[0]
    exact = sampler.denoise(CLIPS[:1], euler_schedule(2), GUIDED, keep_all)[0]

    assert latents.dtype == torch.float32
    assert (latents - exact).abs().mean() < 0.05
    assert (half.decode(latents) - half.decode(exact)).abs().mean() < 0.05


def test_sizes_that_the_networks_cannot_make_stop_the_setup() -> None:
    config = VideoConfig(weights=str(WEIGHTS), sizes=(Size(112, 64), Size(100, 64)))
    with pytest.raises(ValueError, match="multiples of 16 pixels, unlike 100x64"):
        StableVideo("fal-ai/stable-video", config).setup("cpu")


# ---------------------------------------------------------------- what stays still


def left_half() -> np.ndarray:
    still = np.zeros((HEIGHT, WIDTH), dtype=bool)
    still[:, : WIDTH // 2] = True
    return still


def sample_one(sampler: SVDSampler, clip: Clip, steps: int = 3) -> np.ndarray:
    (frames,) = sampler.sample([clip], euler_schedule(steps), GUIDED, keep_all)
    assert frames is not None
    return frames


def test_what_is_masked_stays_and_the_rest_moves(sampler: SVDSampler) -> None:
    clip = replace(CLIPS[1], still=left_half())
    frames = sample_one(sampler, clip)

    expected = np.array(clip.picture)
    assert (frames[:, :, : WIDTH // 2] == expected[:, : WIDTH // 2]).all()
    moving = frames[:, :, WIDTH // 2 + 8 :].astype(float)
    assert (moving.std(axis=0).mean(), np.abs(moving - expected[:, WIDTH // 2 + 8 :]).mean()) > (1.0, 5.0)


def test_the_border_is_no_rougher_than_the_moving_part(sampler: SVDSampler) -> None:
    frames = sample_one(sampler, replace(CLIPS[1], still=left_half())).astype(float)
    steps = np.abs(np.diff(frames, axis=2)).mean(axis=(0, 1, 3))

    border = steps[WIDTH // 2 - 2 : WIDTH // 2 + 5]  # from the last still columns to the feather's end
    assert border.max() <= 1.25 * steps[WIDTH // 2 + 5 :].max()


def test_the_still_latents_are_the_pictures_at_the_end(sampler: SVDSampler) -> None:
    clip = replace(CLIPS[1], still=left_half())
    latents = sampler.denoise([clip], euler_schedule(2), GUIDED, keep_all)[0]

    pixels = torch.from_numpy(np.array(clip.picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
    encoded = sampler.vae.encode(pixels[None]).latent_dist.mode() * sampler.vae.config.scaling_factor
    cells = WIDTH // 8 // 2
    assert_same(latents[..., :cells], encoded[..., :cells].expand(FRAMES, -1, -1, -1), 1e-5)
    assert (latents[..., cells:] - encoded[..., cells:]).abs().mean() > 0.01


def test_the_moving_part_is_made_with_the_still_one_in_view(sampler: SVDSampler) -> None:
    """Else the mask would only be pasted over a clip that knows nothing of it."""
    free = sampler.denoise([CLIPS[1]], euler_schedule(3), GUIDED, keep_all)[0]
    held = sampler.denoise([replace(CLIPS[1], still=left_half())], euler_schedule(3), GUIDED, keep_all)[0]
    assert (free - held)[..., WIDTH // 8 // 2 :].abs().max() > 1e-3


def test_a_mask_of_one_clip_leaves_the_others_of_its_batch_alone(sampler: SVDSampler) -> None:
    masked = replace(CLIPS[1], still=left_half())
    together = float_frames(sampler, [CLIPS[0], masked, CLIPS[2]])

    for index in (0, 2):
        assert_same(together[index], float_frames(sampler, [CLIPS[index]])[0], 1e-5)
    assert_same(together[1], float_frames(sampler, [masked])[0], 1e-5)


def test_a_clip_of_which_nothing_may_move_asks_no_network(sampler: SVDSampler, unet_batches: list[int]) -> None:
    static = replace(CLIPS[0], still=np.ones((HEIGHT, WIDTH), dtype=bool))
    frames = sample_one(sampler, static)
    assert (frames == np.array(static.picture)).all()
    assert frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert unet_batches == []

    assert sampler.sample([static], euler_schedule(2), GUIDED, lambda done: ()) == [None]
    gone = sampler.sample([static, CLIPS[1]], euler_schedule(2), GUIDED, lambda done: [1] if done else [0, 1])
    assert gone[0] is None and gone[1] is not None

    repeated, moving = sampler.sample([static, CLIPS[1]], euler_schedule(2), GUIDED, keep_all)
    assert np.array_equal(repeated, frames)  # type: ignore[arg-type]
    assert np.array_equal(moving, sample_one(sampler, CLIPS[1], 2))  # type: ignore[arg-type]


# ---------------------------------------------------------------- depth maps


@pytest.fixture(scope="module")
def controlled() -> SVDSampler:
    return load_controlled(ControlNetConfig(weights=str(DEPTH)))


def load_controlled(config: ControlNetConfig) -> SVDSampler:
    parts = svd_parts(Checkpoint(str(WEIGHTS)), variant=None, unet=None)
    parts["controlnet"] = controlnet_part(config.checkpoint, config.folder, config.variant)
    sampler = SVDSampler.load(parts, control=config)
    sampler.batched = True
    return sampler


def led(clip: Clip, maps: int, seed: int = 100) -> Clip:
    return replace(clip, depth=tuple(picture(seed + index) for index in range(maps)))


@pytest.mark.parametrize("maps", [1, 2, 14])
def test_a_led_clip_has_a_frame_for_each_map(controlled: SVDSampler, maps: int) -> None:
    assert sample_one(controlled, led(CLIPS[0], maps), 1).shape == (maps, HEIGHT, WIDTH, 3)


def test_every_map_matters_and_their_order_too(controlled: SVDSampler) -> None:
    clip = led(CLIPS[0], 3)
    frames = float_frames(controlled, [clip])[0]
    turned = float_frames(controlled, [replace(clip, depth=clip.depth[::-1])])[0]
    other = float_frames(controlled, [replace(clip, depth=(*clip.depth[:2], picture(7)))])[0]

    assert (frames - turned).abs().mean() > 1e-4
    assert (frames - other).abs().mean() > 1e-4


@pytest.mark.parametrize("change", [{"scale": 0.5}, {"scale": 0.0}, {"depth_range": "unit"}, {"accumulate": False}])
def test_every_switch_of_the_controlnet_matters(controlled: SVDSampler, change: dict[str, Any]) -> None:
    other = load_controlled(ControlNetConfig(weights=str(DEPTH), **change))
    clips = [led(CLIPS[0], 2)]
    assert (float_frames(controlled, clips)[0] - float_frames(other, clips)[0]).abs().mean() > 1e-4


def test_what_is_black_in_a_map_is_minus_one_or_nought(controlled: SVDSampler) -> None:
    maps = [Image.new("RGB", (WIDTH, HEIGHT), grey) for grey in ("black", "white")]
    clip = replace(CLIPS[0], depth=tuple(maps))
    seen: list[torch.Tensor] = []
    for depth_range in ("signed", "unit"):
        sampler = load_controlled(ControlNetConfig(weights=str(DEPTH), depth_range=depth_range))  # type: ignore[arg-type]
        embedding = sampler.control.network.controlnet_cond_embedding  # type: ignore[union-attr]
        embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        sampler.denoise([clip], euler_schedule(1), GUIDED, keep_all)

    assert [values.amin(dim=(1, 2, 3)).tolist() for values in seen] == [[-1, 1], [0, 1]]


def test_maps_lead_nothing_with_a_scale_of_nought(controlled: SVDSampler, sampler: SVDSampler) -> None:
    idle = load_controlled(ControlNetConfig(weights=str(DEPTH), scale=0))
    frames = float_frames(idle, [led(CLIPS[0], FRAMES)])[0]
    assert_same(frames, float_frames(sampler, [CLIPS[0]])[0], 1e-5)


def test_the_maps_are_seen_once_a_clip_not_once_a_step(controlled: SVDSampler) -> None:
    calls: list[int] = []
    assert controlled.control
    embedding = controlled.control.network.controlnet_cond_embedding
    hook = embedding.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    controlled.denoise([led(CLIPS[0], 3)], euler_schedule(4), GUIDED, keep_all)
    hook.remove()
    assert calls == [3]


def test_a_clip_may_be_masked_and_led(controlled: SVDSampler) -> None:
    clip = replace(led(CLIPS[1], 3), still=left_half())
    frames = sample_one(controlled, clip)

    assert (frames[:, :, : WIDTH // 2] == np.array(clip.picture)[:, : WIDTH // 2]).all()
    unled = sample_one(controlled, replace(led(CLIPS[1], 3, seed=500), still=left_half()))
    assert (frames != unled).any()


def test_clips_with_and_without_maps_share_no_batch(controlled: SVDSampler) -> None:
    for other in (CLIPS[1], led(CLIPS[1], 2)):
        with pytest.raises(ValueError, match="one number of frames, with depth maps or without"):
            controlled.denoise([led(CLIPS[0], 3), other], euler_schedule(1), GUIDED, keep_all)


def test_a_controlnet_of_another_shape_is_refused(tmp_path: Path) -> None:
    config = json.loads((DEPTH / "controlnet" / "config.json").read_text())
    for change, reason in (
        ({"block_out_channels": [32, 32]}, r"block_out_channels is .*32, 32"),
        ({"conditioning_embedding_out_channels": [8, 8]}, "shrinks its maps 2 times, the VAE 8 times"),
    ):
        DepthControlNet.from_config(config | change).save_pretrained(tmp_path / "controlnet")
        with pytest.raises(CheckpointError, match=reason):
            load_controlled(ControlNetConfig(weights=str(tmp_path)))


# ---------------------------------------------------------------- any mix in a batch


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Clip], int, tuple[float, float]]:
    """Two or three clips that may share a batch, and differ in all else."""
    width, height = draw(st.sampled_from([(32, 16), (16, 48), (48, 48)]))
    maps = draw(st.sampled_from([1, 2, 5]))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    clips = []
    for _ in range(draw(st.integers(2, 3))):
        still = np.asarray(rng.integers(0, 2, (height, width)), dtype=bool) if draw(st.booleans()) else None
        if draw(st.booleans()) and still is not None:
            still[:, : width // 2] = True
        clips.append(
            Clip(
                picture(int(rng.integers(10**6)), width, height),
                seed=draw(st.integers(0, 2**63 - 1)),
                motion_bucket_id=draw(st.integers(1, 255)),
                cond_aug=draw(st.floats(0, 10)),
                still=still,
                depth=tuple(picture(int(rng.integers(10**6)), width, height) for _ in range(maps)),
            )
        )
    return clips, draw(st.integers(1, 3)), draw(st.sampled_from([GUIDED, UNGUIDED, (2.0, 2.0)]))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batch=batches(), lcm=st.booleans())
def test_any_mix_gives_each_clip_what_it_gets_alone(
    controlled: SVDSampler, batch: tuple[list[Clip], int, tuple[float, float]], lcm: bool
) -> None:
    clips, steps, guidance = batch
    schedule = lcm_schedule(steps) if lcm else euler_schedule(steps)
    together = float_frames(controlled, clips, schedule, guidance)
    for index, clip in enumerate(clips):
        alone = float_frames(controlled, [clip], schedule, guidance)[0]
        assert alone.shape == (clip.frames, 3, clip.size.height, clip.size.width)
        assert_same(together[index], alone, 1e-5)


BFLOAT16_DECIBELS = 35.0
"""What a clip of a batch and the same clip alone agree to in bfloat16, at least (README)."""


def test_in_bfloat16_a_batch_agrees_with_each_clip_alone_to_the_stated_bound() -> None:
    half = load()
    half.batched = True
    for network in (half.unet, half.image_encoder, half.vae.decoder):
        network.to(torch.bfloat16)

    together = float_frames(half, CLIPS, lcm_schedule(4), UNGUIDED)
    for index, clip in enumerate(CLIPS):
        error = (together[index] - float_frames(half, [clip], lcm_schedule(4), UNGUIDED)[0]).square().mean()
        assert -10 * torch.log10(error.clamp_min(1e-12)) > BFLOAT16_DECIBELS


# ---------------------------------------------------------------- memory


@pytest.fixture
def small_gpu(sampler: SVDSampler) -> Iterator[Callable[[int], list[int]]]:
    """A sampler whose GPU has room for so many rows; tells which calls were tried."""
    hooks = []

    def limit(rows: int) -> list[int]:
        tried: list[int] = []

        def refuse(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            tried.append(len(inputs[0]))
            if len(inputs[0]) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        hooks.append(sampler.unet.register_forward_pre_hook(refuse))
        return tried

    yield limit
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    ("room", "first", "then"), [(3, [6, 3, 3], [3, 3]), (2, [6, 3, 2, 1, 2, 1], [2, 1, 2, 1]), (1, None, [1] * 6)]
)
def test_what_does_not_fit_is_halved_and_goes_on(
    sampler: SVDSampler,
    small_gpu: Callable[[int], list[int]],
    room: int,
    first: list[int] | None,
    then: list[int],
) -> None:
    whole = float_frames(sampler, CLIPS, euler_schedule(2))
    tried = small_gpu(room)
    halved = float_frames(sampler, CLIPS, euler_schedule(2))

    for index in whole:
        assert_same(halved[index], whole[index], 1e-5)
    assert tried[-len(then) :] == then  # what once did not fit is not tried again
    if first is not None:
        assert tried[: len(first)] == first


def test_the_next_batch_is_tried_whole_again(sampler: SVDSampler, small_gpu: Callable[[int], list[int]]) -> None:
    """What took the memory may have gone."""
    tried = small_gpu(1)
    for _ in range(2):
        float_frames(sampler, CLIPS[:1], euler_schedule(2))
    assert tried == [2, 1, 1, 1, 1] * 2


def test_led_clips_are_halved_too(controlled: SVDSampler) -> None:
    clips = [led(CLIPS[0], 2), led(CLIPS[1], 2)]
    whole = float_frames(controlled, clips, euler_schedule(1))
    tried: list[int] = []
    assert controlled.control

    def refuse(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        tried.append(len(inputs[0]))
        if len(inputs[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = controlled.control.network.register_forward_pre_hook(refuse)
    halved = float_frames(controlled, clips, euler_schedule(1))
    hook.remove()
    for index in whole:
        assert_same(halved[index], whole[index], 1e-5)
    assert tried == [4, 2, 1, 1, 1, 1]


def test_a_clip_that_does_not_fit_alone_says_so_and_the_next_is_served(
    sampler: SVDSampler, small_gpu: Callable[[int], list[int]]
) -> None:
    small_gpu(0)
    with pytest.raises(RunnerServerError, match="A clip of 25 frames of 48x32 does not fit into the GPU's memory"):
        sampler.sample(CLIPS[:2], euler_schedule(1), GUIDED, keep_all)


@pytest.mark.parametrize(("room", "times"), [(6, 0), (3, 1), (1, 3)])
def test_each_lack_of_memory_is_told(
    sampler: SVDSampler, small_gpu: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch, room: int, times: int
) -> None:
    told: list[int] = []
    monkeypatch.setattr(sampler, "on_out_of_memory", lambda: told.append(room))
    small_gpu(room)
    sampler.sample(CLIPS, euler_schedule(2), GUIDED, keep_all)

    assert len(told) == times, "what has been learned in the first step is heeded in the second"


def test_a_clip_that_does_not_fit_is_told_as_well(
    sampler: SVDSampler, small_gpu: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(sampler, "on_out_of_memory", lambda: told.append(0))
    small_gpu(0)
    with pytest.raises(RunnerServerError):
        sampler.sample(CLIPS[:1], euler_schedule(1), GUIDED, keep_all)
    assert len(told) == 2, "of two rows, then of one alone"


def test_a_decoder_out_of_memory_says_so_and_leaves_the_sampler_whole(
    sampler: SVDSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch, pytest.raises(RunnerServerError, match="does not fit"):
        patch.setattr(sampler.vae, "decode", refuse)
        sampler.sample(CLIPS[:1], euler_schedule(1), GUIDED, keep_all)
    assert sample_one(sampler, CLIPS[0], 1).shape == (FRAMES, HEIGHT, WIDTH, 3)


# ---------------------------------------------------------------- previews


def test_who_asks_sees_the_middle_frame_each_so_many_steps_and_gets_the_same_clip(sampler: SVDSampler) -> None:
    shown: list[tuple[int, np.ndarray]] = []
    watched = replace(CLIPS[0], previews=2, show=lambda done, frame: shown.append((done, frame)))
    plain, seen = (
        sampler.sample([clip, CLIPS[1]], euler_schedule(6), GUIDED, keep_all) for clip in (CLIPS[0], watched)
    )

    assert [done for done, _ in shown] == [2, 4]
    assert all(frame.shape == (HEIGHT, WIDTH, 3) and frame.dtype == np.uint8 for _, frame in shown)
    assert np.array_equal(plain[0], seen[0])  # type: ignore[arg-type]
    assert not np.array_equal(shown[0][1], shown[1][1])


def test_a_preview_is_what_the_network_guesses_the_clean_clip_to_be(sampler: SVDSampler) -> None:
    """Which is what the clip would be, were this step the last."""
    shown: list[np.ndarray] = []
    clip = replace(CLIPS[0], previews=1, show=lambda done, frame: shown.append(frame))
    sampler.denoise([clip], EulerSchedule((700.0, 0.5, 0.0)), GUIDED, keep_all)
    ended = sampler.denoise([CLIPS[0]], EulerSchedule((700.0, 0.0)), GUIDED, keep_all)[0]

    middle = to_uint8(sampler.decode(ended[FRAMES // 2 : FRAMES // 2 + 1]))[0]
    assert len(shown) == 1  # the last step's guess is the clip itself
    assert np.abs(shown[0].astype(int) - middle).max() <= 1
