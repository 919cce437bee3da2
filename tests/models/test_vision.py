"""Pictures for the image encoder, against diffusers' pipeline."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

from deployments.models.vision import Normalisation, encoder_pixels


@pytest.mark.parametrize(("width", "height"), [(500, 300), (224, 640), (48, 32)])
def test_pictures_are_shrunk_as_the_stock_pipeline_does(width: int, height: int) -> None:
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours = encoder_pixels(image, Normalisation(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    torch.testing.assert_close(ours, _resize_with_antialiasing(image, (224, 224)), rtol=0, atol=1e-5)


def test_colours_are_normalised_channel_by_channel() -> None:
    grey = torch.zeros(1, 3, 32, 32)
    normalisation = Normalisation.of(
        {"image_size": 8, "hidden_size": 32}, {"image_mean": [0.5, 0.4, 0.25], "image_std": [1.0, 0.1, 0.5]}
    )
    pixels = encoder_pixels(grey, normalisation)
    expected = torch.tensor([0.0, 1.0, 0.5])[None, :, None, None].expand(1, 3, 8, 8)
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)
