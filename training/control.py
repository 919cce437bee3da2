"""The depth ControlNet: maps that move lead the clip, whatever the motion id says.

    maps ──▶ ControlNet ──▶ how far things have gone               first it learns to read,
    maps ──▶ ControlNet ──▶ what is added to the UNet ──▶ clip     then the UNet learns to heed it

What a ControlNet answers is added to the UNet's skips and middle (Zhang et al. 2023, "Adding Conditional Control to
Text-to-Image Diffusion Models"); ours speaks to the middle alone, and its other projections stay 0. There, and in what
is published for SVD, the UNet stays as it is. Ours heeds nothing but its motion id, so it goes on learning: every
fourth step has no maps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from deployments.models.networks import DepthControlNet, VideoUNet
from deployments.models.sampler import FPS_ID
from deployments.models.schedules import lcm_schedule
from deployments.models.size import Size
from training.bank import Bank, Shard
from training.clips import FRAMES, PAN, draw_motion, make_maps
from training.loop import Loss, Recipe, contact_sheet
from training.networks import EMBEDDING
from training.unet import LOG_AUGMENTATION, LOG_SIGMA, SIGMA_MIN, Ask, sample, unet_loss
from training.vae import Patches

SETS = 16
"""Sets of maps a step, while a ControlNet learns to read."""

READ_SIZES = (Size(64, 64), Size(80, 48), Size(48, 80))
"""Theirs: what one place of a map tells is told by a small one too."""

LOUD = 4.0
"""By how much what is read, which is up to 1, changes the middle of the UNet, whose numbers are about 3."""


class Reader(nn.Module):
    """A ControlNet, and what reads from it how far things have gone.

    From clips alone it would learn very slowly what maps mean: for that a UNet would have to do already what they
    say. Asked for a figure, it knows in minutes.
    """

    def __init__(self, control: DepthControlNet) -> None:
        super().__init__()
        self.control = control
        self.probe = nn.Linear(control.config.block_out_channels[-1], 1)
        nn.init.dirac_(control.controlnet_mid_block.weight)  # behind its zeros nothing could be read

    def forward(
        self, maps: torch.Tensor, timestep: torch.Tensor, picture: torch.Tensor, time_ids: torch.Tensor
    ) -> torch.Tensor:
        """How far things have gone to the right by maps [B, F, 1, H, W], as each place has it: [B, F, h, w].

        All else is what the service tells its UNet, and says nothing of it.
        """
        features = self.control.embed(maps.expand(-1, -1, 3, -1, -1))
        nothing = features.new_zeros(*features.shape[:2], self.control.config.in_channels, *features.shape[3:])
        middle = self.control(nothing, timestep, picture, time_ids, features=features, accumulate=False)[-1]
        read: torch.Tensor = self.probe(middle.movedim(1, -1)).squeeze(-1)
        return read.reshape(*maps.shape[:2], *read.shape[1:])

    @torch.no_grad()
    def speak(self) -> DepthControlNet:
        """Let the ControlNet say aloud what is read, and that there are maps at all; then there is no reading on.

        Both go into one direction each, of the middle's channels.
        """
        projection: Any = self.control.controlnet_mid_block
        middle = projection.weight[..., 0, 0]
        aloud, there = LOUD * torch.randn(2, len(middle), 1, generator=torch.Generator().manual_seed(0))
        projection.weight.copy_((aloud @ (self.probe.weight @ middle))[..., None, None])
        projection.bias.copy_((aloud @ (self.probe.weight @ projection.bias + self.probe.bias)[:, None] + there)[:, 0])
        return self.control


def reader_loss(reader: Reader, recipe: Recipe) -> Loss:
    """What a step of reading is to lessen: the error of what is read, in parts of ``PAN``. Maps are drawn for each."""

    def loss(step: int) -> torch.Tensor:
        rng = recipe.generator(step)
        size = READ_SIZES[step % len(READ_SIZES)]
        _, paths, maps = zip(*(make_maps(rng, size) for _ in range(SETS)), strict=True)
        gone = torch.from_numpy(np.stack([path.shift[:, 0] / PAN for path in paths])).float()
        asked = (torch.stack(maps), *_besides(rng, SETS))
        read: torch.Tensor = reader(*(each.to(recipe.device) for each in asked))
        return (read.float() - gone[..., None, None].to(recipe.device)).square().mean()

    return loss


def _besides(rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a network is told besides maps, much as it may come: time steps, pictures' embeddings, time ids."""
    timestep = torch.from_numpy(0.25 * rng.normal(*LOG_SIGMA, count)).float()
    picture = torch.from_numpy(rng.standard_normal((count, 1, EMBEDDING))).float()
    time_ids = torch.tensor([[FPS_ID, draw_motion(rng), np.exp(rng.normal(*LOG_AUGMENTATION))] for _ in range(count)])
    return timestep, picture, time_ids.float()


def reader_sheet() -> Callable[[Any], Image.Image]:
    """Draw maps, and under each what is read: white where things have gone right by ``PAN``, black where left."""
    rng = np.random.default_rng(0)
    maps = torch.stack([make_maps(rng, READ_SIZES[0])[2] for _ in range(3)])
    asked = (maps, *_besides(rng, len(maps)))
    shown = [0, FRAMES // 3, 2 * FRAMES // 3, FRAMES - 1]

    @torch.no_grad()
    def sheet(reader: Any) -> Image.Image:
        device = reader.probe.weight.device
        read = reader(*(each.to(device) for each in asked)).cpu().clamp(-1, 1)
        large = read.repeat_interleave(8, -2).repeat_interleave(8, -1)[:, :, None]
        rows = [clip[shown].expand(-1, 3, -1, -1) for pair in zip(maps, large, strict=True) for clip in pair]
        return contact_sheet(rows)

    return sheet


def led(unet: VideoUNet, control: DepthControlNet) -> Ask:
    """What the UNet answers where depth maps lead."""

    def ask(clips: Shard, *asked: torch.Tensor) -> torch.Tensor:
        maps = clips["maps"].expand(-1, -1, 3, -1, -1)
        residuals = control(*asked, features=control.embed(maps), accumulate=True)
        return torch.as_tensor(unet(*asked, residuals=residuals))

    return ask


class Led(nn.Module):
    """A ControlNet that reads, and a UNet that learns to heed it.

    The ControlNet stays as it is: what it has learnt would be lost before the UNet made anything of it.
    """

    def __init__(self, unet: VideoUNet, reader: Reader) -> None:
        super().__init__()
        self.unet, self.control = unet, reader.speak().requires_grad_(False)


def led_loss(network: Led, free: Bank, with_maps: Bank, recipe: Recipe) -> Loss:
    """Once without maps, then three times with them."""
    without = unet_loss(lambda clips, *asked: network.unet(*asked), free, recipe)
    led_by_maps = unet_loss(led(network.unet, network.control), with_maps, recipe)
    return lambda step: (without if step % 4 == 0 else led_by_maps)(step)


def control_sheet(clips: Shard, patches: Patches) -> Callable[[Any], Image.Image]:
    """Draw clips that were made, and under each what four steps make of its first picture and its maps."""
    shown = [0, FRAMES // 3, 2 * FRAMES // 3, FRAMES - 1]

    def sheet(network: Any) -> Image.Image:
        made = sample(led(network.unet, network.control), clips, lcm_schedule(4, SIGMA_MIN), (1.0, 1.0), seed=0)
        rows = [clip[shown] for pair in zip(clips["clip"], made, strict=True) for clip in pair]
        return contact_sheet([patches.decode(row.cpu()).clamp(-1, 1) for row in rows])

    return sheet
