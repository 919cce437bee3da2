"""fal-ai/svd: the caller chooses the number of steps. Its result calls the video file ``image``, as fal's does."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from deployments.errors import FeatureNotSupported
from deployments.models.base import ImageToVideoInput, Plan, VideoInput, VideoModel


class SVDInput(ImageToVideoInput):
    """The input of fal-ai/svd."""

    steps: int = Field(20, ge=1, le=100, description="Sampler steps: more take longer and look cleaner.")
    mask_image_url: str | None = Field(None, description="A mask: white keeps still, black moves. Not offered yet.")
    control_maps_data_url: str | None = Field(None, description="An archive of depth maps. Not offered yet.")


class SVD(VideoModel):
    """Stable Video Diffusion XT."""

    Input: ClassVar[type[VideoInput]] = SVDInput
    title = "Stable Video Diffusion"
    result_key = "image"

    def plan(self, input: VideoInput) -> Plan:
        """As every video model's.

        Raises:
            FeatureNotSupported: A mask or depth maps were sent. Ignoring them would give another clip than asked for.
        """
        for field in ("mask_image_url", "control_maps_data_url"):
            if getattr(input, field):
                raise FeatureNotSupported(f"{field} is not supported by this server yet", ("body", field))
        return super().plan(input)

    def billable_units(self, gpu_seconds: float) -> float:
        """Fal's unit for this endpoint is a compute second."""
        return gpu_seconds

    def steps(self, input: VideoInput) -> int:  # noqa: D102
        assert isinstance(input, SVDInput)
        return input.steps
