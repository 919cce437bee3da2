"""fal-ai/fast-svd-lcm: a latent consistency model, four steps and no guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, Field

from deployments.models.base import ImageToVideoInput, VideoInput, VideoModel

if TYPE_CHECKING:
    from deployments.models.schedules import Schedule


class FastInput(BaseModel):
    """What the fast endpoints take beside the picture or the prompt."""

    steps: int = Field(4, ge=1, le=20, description="Sampler steps: more take longer and look cleaner.")
    fps: int = Field(10, ge=1, le=25, description="Frames a second of the finished video.")


class FastSVDLCMInput(FastInput, ImageToVideoInput):
    """The input of fal-ai/fast-svd-lcm."""


class FastSVDLCM(VideoModel):
    """AnimateLCM's distillation of Stable Video Diffusion XT. Guidance of 1 halves the work: there is none."""

    Input: ClassVar[type[VideoInput]] = FastSVDLCMInput
    title = "Fast SVD"
    description = "Animates a picture in a few steps with a latent consistency model of Stable Video Diffusion XT."
    tags = ("image-to-video", "fast", "lcm")
    guidance = (1.0, 1.0)

    def steps(self, input: VideoInput) -> int:  # noqa: D102
        assert isinstance(input, FastInput)
        return input.steps

    def schedule(self, steps: int) -> Schedule:  # noqa: D102
        from deployments.models.schedules import lcm_schedule

        return lcm_schedule(steps, self.config.sigma_min)
