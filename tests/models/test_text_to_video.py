"""The picture of a prompt, against diffusers' pipeline on the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from deployments.models.text_to_video import TextToVideo, TextToVideoConfig, TextToVideoInput
from tests import tiny

# diffusers turns a tensor into an array in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning:diffusers.schedulers.scheduling_euler_discrete"
)

WEIGHTS = tiny.WEIGHTS / "text-to-image"


def endpoint(**config: Any) -> TextToVideo:
    settings = {"weights": str(WEIGHTS), "video": "fal-ai/fast-svd-lcm", "multiple": 16, "scale": 0.0625, "steps": 3}
    painter = TextToVideo("fal-ai/fast-svd-lcm/text-to-video", TextToVideoConfig(**settings | config))
    painter.setup("cpu")
    return painter


def stock(prompt: str, seed: int, width: int, height: int, **options: Any) -> Image.Image:
    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS, dtype=torch.float32, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(seed)
    picture: Image.Image = pipeline(
        prompt, width=width, height=height, num_inference_steps=3, generator=generator, **options
    ).images[0]
    return picture


@pytest.mark.parametrize(
    ("video_size", "width", "height"),
    [("landscape_16_9", 64, 32), ("square", 32, 32), ({"width": 512, "height": 1000}, 32, 64)],
)
def test_a_prompt_gives_the_picture_of_the_stock_pipeline_at_the_clips_size(
    video_size: Any, width: int, height: int
) -> None:
    input = TextToVideoInput(prompt="a red boat", seed=2**31, video_size=video_size)
    picture = endpoint().paint(input)

    assert picture.size == (width, height)
    assert np.array_equal(picture, stock("a red boat", 2**31, width, height))


@pytest.mark.parametrize("change", [{"prompt": "a blue whale"}, {"seed": 6}])
def test_prompt_and_seed_matter(change: dict[str, Any]) -> None:
    painter, input = endpoint(), TextToVideoInput(prompt="a red boat", seed=5)
    picture = painter.paint(input)
    assert np.array_equal(picture, painter.paint(input))
    assert not np.array_equal(picture, painter.paint(input.model_copy(update=change)))


def test_guidance_is_the_configurations() -> None:
    """A turbo model wants none, where the pipeline's own default is strong."""
    input = TextToVideoInput(prompt="a red boat", seed=5)
    unguided = endpoint(guidance=0).paint(input)

    assert np.array_equal(unguided, stock("a red boat", 5, 64, 32, guidance_scale=0.0))
    assert not np.array_equal(unguided, endpoint().paint(input))
