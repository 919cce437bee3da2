"""The encoder that is not trained computes what it should, in the stock class and in half precision."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from training.networks import LATENT_CHANNELS, image_vae, linear_decoder, video_vae
from training.pictures import draw
from training.vae import Patches, psnr

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
