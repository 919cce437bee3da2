"""fal-ai/svd: the caller chooses the number of steps, what stays still, and by depth maps what the clip follows.

Its result calls the video file ``image``, as fal's does.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import ClassVar

from pydantic import Field

from deployments.errors import FeatureNotSupported
from deployments.models.base import (
    ControlledInput,
    ControlNetConfig,
    EndpointConfig,
    Plan,
    VideoConfig,
    VideoInput,
    VideoModel,
)


class SVDInput(ControlledInput):
    """The input of fal-ai/svd."""

    steps: int = Field(20, ge=1, le=100, description="Sampler steps: more take longer and look cleaner.")


class SVDConfig(VideoConfig):
    """Also names the ControlNet."""

    controlnet: ControlNetConfig | None = Field(None, description="What depth maps go through; none, no maps.")


class SVD(VideoModel):
    """Stable Video Diffusion XT."""

    Input: ClassVar[type[VideoInput]] = SVDInput
    Config: ClassVar[type[EndpointConfig]] = SVDConfig
    title = "Stable Video Diffusion"
    description = "Animates a picture. A mask says what stays still, and depth maps lead the motion."
    tags = ("image-to-video", "mask", "depth")
    unit = "compute second"
    unit_price = Decimal(0)
    result_key = "image"
    config: SVDConfig

    @property
    def control(self) -> ControlNetConfig | None:  # noqa: D102
        return self.config.controlnet

    def plan(self, input: VideoInput) -> Plan:
        """As every video model's.

        Raises:
            FeatureNotSupported: Depth maps were sent, and no ControlNet is configured.
        """
        assert isinstance(input, SVDInput)
        plan = super().plan(input)
        if not input.control_maps_data_url:
            return plan
        if not self.control:
            field = "control_maps_data_url"
            raise FeatureNotSupported(f"{field} is not supported: this server has no ControlNet", ("body", field))
        return replace(plan, frames=self.control.max_maps, control=True)

    def billable_units(self, gpu_seconds: float, clips: int = 1) -> float:
        """Fal's unit for this endpoint is a compute second."""
        return gpu_seconds

    def steps(self, input: VideoInput) -> int:  # noqa: D102
        assert isinstance(input, SVDInput)
        return input.steps
