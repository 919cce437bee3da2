"""fal-ai/stable-video: 25 guided steps, playback at the rate that the caller asks for."""

from __future__ import annotations

from decimal import Decimal
from typing import ClassVar

from pydantic import Field

from deployments.models.base import ImageToVideoInput, VideoInput, VideoModel


class StableVideoInput(ImageToVideoInput):
    """The input of fal-ai/stable-video."""

    fps: int = Field(25, ge=10, le=100, description="Frames a second of the finished video.")


class StableVideo(VideoModel):
    """Stable Video Diffusion XT."""

    Input: ClassVar[type[VideoInput]] = StableVideoInput
    title = "Stable Video"
    description = "Animates a picture with Stable Video Diffusion XT, played at the rate you ask for."
    tags = ("image-to-video",)
    unit_price = Decimal("0.075")

    def steps(self, input: VideoInput) -> int:  # noqa: D102
        return 25
