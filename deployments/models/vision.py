"""How SVD's image encoder wants its pictures: smoothed, squeezed square, in its own colours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Normalisation:
    """The size and colours the image encoder was trained on."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, encoder: Mapping[str, Any], extractor: Mapping[str, Any]) -> Self:
        """From an encoder's and a feature extractor's configuration; the rest of the latter is not used by SVD.

        The size is that of CLIP's own configuration where the encoder's does not say (it leaves out its defaults).
        """
        return cls(int(encoder.get("image_size", 224)), tuple(extractor["image_mean"]), tuple(extractor["image_std"]))


def encoder_pixels(images: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """Pictures [B, 3, H, W] in -1..1 as the encoder's input [B, 3, size, size]."""
    import torch
    from torch.nn import functional

    size = (normalisation.size, normalisation.size)
    resized = functional.interpolate(_blur(images, normalisation.size), size=size, mode="bicubic", align_corners=True)
    mean = torch.tensor(normalisation.mean, device=images.device)[:, None, None]
    std = torch.tensor(normalisation.std, device=images.device)[:, None, None]
    return (resized / 2 + 0.5 - mean) / std


def _blur(images: torch.Tensor, size: int) -> torch.Tensor:
    """Smooth along both axes just enough that sampling down to ``size`` points does not alias."""
    import torch
    from torch.nn import functional

    channels, height, width = images.shape[1:]
    across, down = _gaussian(width / size).to(images), _gaussian(height / size).to(images)
    left, top = len(across) // 2, len(down) // 2
    padded = functional.pad(images, (left, left, top, top), mode="reflect")
    blurred = functional.conv2d(padded, across.expand(channels, 1, 1, -1), groups=channels)
    return torch.as_tensor(functional.conv2d(blurred, down[:, None].expand(channels, 1, -1, 1), groups=channels))


def _gaussian(shrink: float) -> torch.Tensor:
    """An odd kernel for scaling down ``shrink`` times: sigma as scikit-image picks it, cut at two sigma."""
    import torch

    sigma = max((shrink - 1) / 2, 0.001)
    radius = int(max(4 * sigma, 3)) // 2
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    return weights / weights.sum()
