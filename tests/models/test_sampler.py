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
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import deployments.models.weights
from deployments.models.base import FRAMES, Clip, Size, VideoConfig
from deployments.models.checkpoints import Checkpoint, svd_parts
from deployments.models.sampler import SVDSampler, to_uint8
from deployments.models.schedules import Schedule, euler_schedule, lcm_schedule
from deployments.models.stable_video import StableVideo
from deployments.models.vision import Normalisation

# diffusers turns a tensor into an array in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning:diffusers.schedulers.scheduling_euler_discrete"
)

WEIGHTS = Path(deployments.models.weights.__file__).parent / "svd"
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
    return {index: sampler.decode(member) for index, member in latents.items()}


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


def test_frames_are_decoded_in_chunks_of_one_size(sampler: SVDSampler) -> None:
    chunked = SVDSampler(sampler.unet, sampler.vae, sampler.image_encoder, sampler.normalisation, decode_chunk=8)
    latents = torch.randn(FRAMES, 4, 4, 6, generator=torch.Generator().manual_seed(0))

    frames = chunked.decode(latents)

    assert torch.equal(frames[8:16], sampler.decode(latents[8:16]))
    assert torch.equal(frames[24:], sampler.decode(latents[24:]))


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
