"""fal-ai/stable-video: 25 guided steps, playback at the rate that the caller asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from deployments.models.base import ImageToVideoInput, VideoInput, VideoModel

if TYPE_CHECKING:
    from deployments.models.schedules import Schedule


class StableVideoInput(ImageToVideoInput):
    """The input of fal-ai/stable-video."""

    fps: int = Field(25, ge=10, le=100, description="Frames a second of the finished video.")


class StableVideo(VideoModel):
    """Stable Video Diffusion XT with per-frame guidance from 1 to 3 (diffusers' defaults for this checkpoint)."""

    Input: ClassVar[type[VideoInput]] = StableVideoInput
    title = "Stable Video"
    guidance = (1.0, 3.0)

    def steps(self, input: VideoInput) -> int:  # noqa: D102
        return 25

    @staticmethod
    def schedule(steps: int) -> Schedule:  # noqa: D102
        from deployments.models.schedules import euler_schedule

        return euler_schedule(steps)
