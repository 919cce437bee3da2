"""fal-ai/fast-svd-lcm/text-to-video: a prompt becomes a picture, which the fast model then animates.

This deployment holds only the text-to-image pipeline. Its requests wait for the fast model; while that model is busy
with others, the picture is made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from deployments.models.base import Endpoint, EndpointConfig, Plan, Size, VideoInput
from deployments.models.checkpoints import Part, load_pipeline, pipeline_parts
from deployments.models.fast_svd_lcm import FastInput

if TYPE_CHECKING:
    from PIL import Image

LONGEST_PROMPT = 10_000
SMALLEST_SIDE, LARGEST_SIDE = 256, 1280
PRESETS = {
    "square_hd": Size(1024, 1024),
    "square": Size(512, 512),
    "portrait_4_3": Size(768, 1024),
    "portrait_16_9": Size(576, 1024),
    "landscape_4_3": Size(1024, 768),
    "landscape_16_9": Size(1024, 576),
}
"""fal's names for sizes, in pixels (fal's ImageSize)."""

Preset = Literal["square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"]


class ImageSize(BaseModel):
    """A size of the caller's own, in pixels. Rounded to what the networks can make."""

    width: int = Field(512, gt=0, le=14142)
    height: int = Field(512, gt=0, le=14142)


class TextToVideoInput(FastInput, VideoInput):
    """The input of fal-ai/fast-svd-lcm/text-to-video."""

    prompt: str = Field(
        min_length=1,
        max_length=LONGEST_PROMPT,
        description="What the video should show.",
        examples=["A red boat on a calm lake at sunrise"],
    )
    video_size: Preset | ImageSize = Field(
        "landscape_16_9", description="A named size, or width and height in pixels.", union_mode="left_to_right"
    )


class TextToVideoConfig(EndpointConfig):
    """``weights`` name a text-to-image pipeline of the diffusers family."""

    video: str = Field(description="The id of the endpoint whose model animates the picture.")
    scale: float = Field(1.0, gt=0, le=1, description="How much smaller than asked for the clips are.")
    multiple: int = Field(64, gt=0, description="Width and height are rounded to multiples of this many pixels.")
    steps: int = Field(25, gt=0, description="Steps of the text-to-image pipeline.")
    guidance: float | None = Field(
        None, ge=0, description="Its guidance scale, where its own default is not right: 0 for a turbo model."
    )


class TextToVideo(Endpoint):
    """A text-to-image pipeline in front of the fast model, with one seed for both."""

    Input: ClassVar[type[VideoInput]] = TextToVideoInput
    Config: ClassVar[type[EndpointConfig]] = TextToVideoConfig
    title = "Fast SVD, text to video"
    description = "Paints a picture from a prompt and animates it in a few steps."
    category = "text-to-video"
    tags = ("text-to-video", "fast", "lcm")
    config: TextToVideoConfig
    _pipeline: Any

    @property
    def video_endpoint(self) -> str:  # noqa: D102
        return self.config.video

    def plan(self, input: VideoInput) -> Plan:  # noqa: D102
        assert isinstance(input, TextToVideoInput)
        size = self._size(input)
        return Plan(input.steps, largest=size, size=size, frames=self.config.frames)

    def parts(self) -> Mapping[str, Part]:  # noqa: D102
        return pipeline_parts(self.config.checkpoint, self.config.variant)

    def setup(self, device: str) -> None:  # noqa: D102
        import torch

        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        pipeline = load_pipeline(self.config.checkpoint, self.config.variant, dtype)
        self._pipeline = pipeline.to(device)
        self._pipeline.set_progress_bar_config(disable=True)

    def paint(self, input: TextToVideoInput) -> Image.Image:
        """Make the first picture of the clip, at the clip's size."""
        import torch

        size = self._size(input)
        guidance = {} if self.config.guidance is None else {"guidance_scale": self.config.guidance}
        picture: Image.Image = self._pipeline(
            input.prompt,
            width=size.width,
            height=size.height,
            num_inference_steps=self.config.steps,
            generator=torch.Generator("cpu").manual_seed(input.seed),
            **guidance,
        ).images[0]
        return picture

    def _size(self, input: TextToVideoInput) -> Size:
        asked = input.video_size
        wanted = PRESETS[asked] if isinstance(asked, str) else Size(asked.width, asked.height)
        return Size(self._round(wanted.width), self._round(wanted.height))

    def _round(self, side: int) -> int:
        within = min(max(side, SMALLEST_SIDE), LARGEST_SIDE) * self.config.scale
        return max(1, round(within / self.config.multiple)) * self.config.multiple
