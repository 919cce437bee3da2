"""The depth ControlNet: maps that move lead the clip, whatever the motion id says.

The UNet stays as it is; what is trained is what is added to its skips (Zhang et al. 2023, "Adding Conditional Control
to Text-to-Image Diffusion Models").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from deployments.models.networks import DepthControlNet, VideoUNet
from deployments.models.schedules import lcm_schedule
from training.bank import Shard
from training.clips import FRAMES
from training.loop import contact_sheet
from training.unet import Ask, sample
from training.vae import Patches


def led(unet: VideoUNet, control: DepthControlNet) -> Ask:
    """What the UNet answers where depth maps lead."""

    def ask(clips: Shard, *asked: torch.Tensor) -> torch.Tensor:
        maps = clips["maps"].expand(-1, -1, 3, -1, -1)
        residuals = control(*asked, features=control.embed(maps), accumulate=True)
        return torch.as_tensor(unet(*asked, residuals=residuals))

    return ask


def control_sheet(unet: VideoUNet, clips: Shard, patches: Patches) -> Callable[[Any], Image.Image]:
    """Draw clips that were made, and under each what four steps make of its first picture and its maps."""
    shown = [0, FRAMES // 3, 2 * FRAMES // 3, FRAMES - 1]

    def sheet(control: Any) -> Image.Image:
        made = sample(led(unet, control), clips, lcm_schedule(4), (1.0, 1.0), seed=0)
        rows = [clip[shown] for pair in zip(clips["clip"], made, strict=True) for clip in pair]
        return contact_sheet([patches.decode(row.cpu()).clamp(-1, 1) for row in rows])

    return sheet
