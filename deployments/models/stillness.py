"""Keeping a part of the picture still, with networks that were never taught to.

    still pixels ──▶ still latent cells ── held to the picture, at the noise of every step ──┐
                └──▶ feathered weight ──── the picture laid over every decoded frame ────────┴──▶ frames

Holding the latents makes the moving part fit what stands beside it (the idea of Lugmayr et al. 2022, "RePaint");
laying the picture over makes the promise exact. The feather lies wholly on the moving side of the border.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

FEATHER = 1 / 48
"""Width of the feather in shorter sides of the clip: 12 pixels of 576."""


def still_cells(still: np.ndarray, factor: int) -> torch.Tensor:
    """Which latents stay, bool [h, w], from which pixels stay, bool [H, W]: those that see no moving pixel.

    ``factor`` is the pixels a latent covers, in each direction.
    """
    import torch
    from torch.nn import functional

    moving = torch.from_numpy(~still)[None, None].float()
    return functional.max_pool2d(moving, factor)[0, 0] == 0


def lay_over(frames: torch.Tensor, picture: torch.Tensor, still: np.ndarray) -> torch.Tensor:
    """Frames [F, 3, H, W] with a picture [3, H, W] over all that stays, bool [H, W], feathered around it."""
    import torch

    stays = torch.from_numpy(still).to(frames.device)
    weight = feather(stays)
    return torch.where(stays, picture, torch.lerp(frames, picture.expand_as(frames), weight))


def feather(still: torch.Tensor) -> torch.Tensor:
    """How much of the picture shows, [H, W]: 1 where it stays, falling smoothly to 0 around.

    The area is grown by two radii and then smoothed twice over one radius, so that what stayed keeps 1.
    """
    from torch.nn import functional

    radius = max(1, round(min(still.shape) * FEATHER / 4))
    weight = still[None, None].float()
    for kernel, padding in (((4 * radius + 1, 1), (2 * radius, 0)), ((1, 4 * radius + 1), (0, 2 * radius))):
        weight = functional.max_pool2d(weight, kernel, stride=1, padding=padding)
    for _ in range(2):
        padded = functional.pad(weight, (radius,) * 4, mode="replicate")
        weight = functional.avg_pool2d(padded, 2 * radius + 1, stride=1)
    return weight[0, 0].clamp(0, 1)
