"""The depth ControlNet: maps that move lead the clip, whatever the motion id says.

What it answers is added to the UNet's skips (Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion
Models"). There, and in what is published for SVD, the UNet stays as it is. Ours knows one motion only, so it goes on
learning: every other step has no maps. It has not learnt to heed maps yet (``README.md`` tells what was tried), so it
is trained when it is named, and does not ship.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import nn

from deployments.models.networks import DepthControlNet, VideoUNet
from deployments.models.schedules import lcm_schedule
from training.bank import Bank, Shard
from training.clips import FRAMES
from training.loop import Loss, Recipe, contact_sheet
from training.unet import SIGMA_MIN, Ask, sample, unet_loss
from training.vae import Patches


def led(unet: VideoUNet, control: DepthControlNet) -> Ask:
    """What the UNet answers where depth maps lead."""

    def ask(clips: Shard, *asked: torch.Tensor) -> torch.Tensor:
        maps = clips["maps"].expand(-1, -1, 3, -1, -1)
        residuals = control(*asked, features=control.embed(maps), accumulate=True)
        return torch.as_tensor(unet(*asked, residuals=residuals))

    return ask


class Led(nn.Module):
    """A UNet and its ControlNet, which learn together."""

    def __init__(self, unet: VideoUNet, control: DepthControlNet) -> None:
        super().__init__()
        self.unet, self.control = unet, control


def led_loss(network: Led, free: Bank, with_maps: Bank, recipe: Recipe) -> Loss:
    """Without maps and with them in turn."""
    losses = (
        unet_loss(lambda clips, *asked: network.unet(*asked), free, recipe),
        unet_loss(led(network.unet, network.control), with_maps, recipe),
    )
    return lambda step: losses[step % 2](step)


def control_sheet(clips: Shard, patches: Patches) -> Callable[[Any], Image.Image]:
    """Draw clips that were made, and under each what four steps make of its first picture and its maps."""
    shown = [0, FRAMES // 3, 2 * FRAMES // 3, FRAMES - 1]

    def sheet(network: Any) -> Image.Image:
        made = sample(led(network.unet, network.control), clips, lcm_schedule(4, SIGMA_MIN), (1.0, 1.0), seed=0)
        rows = [clip[shown] for pair in zip(clips["clip"], made, strict=True) for clip in pair]
        return contact_sheet([patches.decode(row.cpu()).clamp(-1, 1) for row in rows])

    return sheet
