"""The encoder that is not trained computes what it should, in the stock class and in half precision."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deployments.models.size import Size
from training.bank import Bank, Make, Shard
from training.clips import FRAMES, film, make_clip
from training.clips import Path as CameraPath
from training.loop import Recipe
from training.networks import LATENT_CHANNELS, image_vae, linear_decoder, video_vae
from training.pictures import draw
from training.vae import LONGER, MADE, Patches, changes, psnr, refined_decoder_loss

PICTURES = np.stack([draw(seed) for seed in range(12)])
PATCHES = Patches.of(PICTURES, count=200)


def _crop(seed: int) -> torch.Tensor:
    picture = torch.from_numpy(draw(seed)[40:104, 30:110].copy())
    return picture.permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.mark.parametrize("build", [video_vae, image_vae])
def test_the_stock_encoder_answers_with_the_components(build: Callable[[], Any]) -> None:
    vae = build()
    PATCHES.install(vae)
    with torch.no_grad():
        encoded = vae.half().float().encode(_crop(100)).latent_dist
    wanted = PATCHES.encode(_crop(100))
    assert wanted.shape == (1, LATENT_CHANNELS, 8, 10)
    assert (encoded.mode() - wanted).abs().max() < 0.05
    assert encoded.std.max() < 0.1


def test_latents_have_about_the_variance_that_the_noise_levels_are_made_for() -> None:
    latents = torch.cat([PATCHES.encode(_crop(seed)) for seed in range(100, 130)])
    assert 0.4 < latents.std() < 1.6


@pytest.mark.parametrize("build", [video_vae, image_vae])
def test_a_new_decoder_answers_as_the_linear_one_in_half_precision_too(build: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    vae = build()
    linear = linear_decoder(vae.config.block_out_channels)
    linear.install(vae.decoder)
    latents = PATCHES.encode(_crop(100))
    vae = vae.half().float()
    decode = partial(vae.decode, num_frames=1) if build is video_vae else vae.decode
    with torch.no_grad():
        torch.testing.assert_close(decode(latents).sample, linear(latents), atol=0.02, rtol=0.02)


def test_patches_come_back_much_as_they_were() -> None:
    back = [psnr(PATCHES.decode(PATCHES.encode(_crop(seed))), _crop(seed)) for seed in range(100, 120)]
    assert np.mean(back) > 24


def test_a_decoder_is_refined_on_latents_and_the_frames_of_the_same_place_and_time(tmp_path: Path) -> None:
    """Latents as encoded, decoded by what undoes it, have a small error; frames of another time have a large one."""

    def make(rng: np.random.Generator, size: Size) -> Shard:
        frames = torch.stack([make_clip(PICTURES, rng, size).frames for _ in range(2)])
        return {"latents": torch.stack([PATCHES.encode(clip) for clip in frames]), "frames": frames}

    def late(rng: np.random.Generator, size: Size) -> Shard:
        shard = make(rng, size)
        return {**shard, "frames": shard["frames"].roll(3, 1)}

    def loss(make: Make) -> float:
        bank = Bank(tmp_path / make.__name__, make)
        steps = refined_decoder_loss(PATCHES, PICTURES, bank, PATCHES.decode, Recipe(3))
        return float(np.mean([float(steps(step)) for step in range(3)]))

    assert loss(make) < 0.7 * loss(late)


def test_what_flickers_costs_more_than_what_is_wrong_in_every_frame(tmp_path: Path) -> None:
    def make(rng: np.random.Generator, size: Size) -> Shard:
        frames = torch.zeros(1, FRAMES, 3, size.height, size.width)
        return {"latents": torch.zeros(1, FRAMES, LATENT_CHANNELS, size.height // 8, size.width // 8), "frames": frames}

    def wrong(latents: torch.Tensor) -> torch.Tensor:
        return _as_wanted(latents) + 0.1

    def flickering(latents: torch.Tensor) -> torch.Tensor:
        return _as_wanted(latents) + 0.1 * (-1.0) ** torch.arange(len(latents))[:, None, None, None]

    def _as_wanted(latents: torch.Tensor) -> torch.Tensor:
        half = MADE * LONGER
        return torch.cat([torch.zeros(half, 3, 64, 64), PATCHES.decode(latents[half:])])

    bank = Bank(tmp_path, make)
    [still, moving] = [
        float(refined_decoder_loss(PATCHES, PICTURES, bank, decode, Recipe(1))(0)) for decode in (wrong, flickering)
    ]
    assert moving > still + 0.2


def test_an_error_that_goes_with_the_picture_changes_less_than_one_that_stays() -> None:
    size = Size(96, 64)
    path = CameraPath.of("left", 255, size, np.random.default_rng(0))
    frames = film(PICTURES[0], path, size, np.random.default_rng(1))
    goes, stays = 0.1 * frames, 0.1 * frames[:1].expand_as(frames)
    assert changes(goes, frames).abs().mean() < 0.5 * changes(stays, frames).abs().mean()
    assert changes(0.1 * torch.ones_like(frames), frames).abs().max() < 1e-6
