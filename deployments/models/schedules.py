"""When to be how noisy: the noise levels of a clip, and how one step goes from each to the next.

    schedule ──▶ sigmas ──▶ step(latents, velocity, index, noise) ──▶ latents one level cleaner

Both schedules share the preconditioning of Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based
Generative Models" (EDM), with sigma_data = 1: the network sees ``latents * input_scale`` and ``timestep``, and answers
a velocity. They hold numbers only, so one schedule serves any number of batches at once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SIGMA_MAX = 700.0
SIGMA_MIN = 0.002
RHO = 7.0

LCM_GRID = 40
"""Noise levels AnimateLCM-SVD was distilled on; a short schedule visits some of them."""


@dataclass(frozen=True)
class Schedule(ABC):
    """Noise levels from the most noisy one down to a final 0, in float64."""

    sigmas: tuple[float, ...]

    @property
    def steps(self) -> int:
        """How often the network is asked."""
        return len(self.sigmas) - 1

    @property
    def initial_scale(self) -> float:
        """Standard deviation of the latents before the first step: sqrt(sigma^2 + 1), as the signal has variance 1."""
        return math.hypot(self.sigmas[0], 1.0)

    def timestep(self, index: int) -> float:
        """What the network is told about the noise: EDM's c_noise, ln(sigma) / 4."""
        return 0.25 * math.log(self.sigmas[index])

    def input_scale(self, index: int) -> float:
        """What the latents are multiplied by before the network: EDM's c_in, 1 / sqrt(sigma^2 + 1)."""
        return 1.0 / math.hypot(self.sigmas[index], 1.0)

    def clean(self, latents: torch.Tensor, velocity: torch.Tensor, index: int) -> torch.Tensor:
        """The network's guess of the noiseless latents: EDM's c_skip * x + c_out * F(x) with F = -velocity."""
        sigma = self.sigmas[index]
        scale = self.input_scale(index)
        return latents * scale**2 - velocity * (sigma * scale)

    @abstractmethod
    def needs_noise(self, index: int) -> bool:
        """Whether ``step`` wants fresh noise at this index."""

    @abstractmethod
    def step(
        self, latents: torch.Tensor, velocity: torch.Tensor, index: int, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Go from noise level ``index`` to the next one; all tensors have the shape of ``latents``."""


@dataclass(frozen=True)
class EulerSchedule(Schedule):
    """Euler's method on EDM's probability flow, dx/dsigma = (x - clean(x)) / sigma: what SVD is published with."""

    def needs_noise(self, index: int) -> bool:
        """Never: the flow is deterministic."""
        return False

    def step(
        self, latents: torch.Tensor, velocity: torch.Tensor, index: int, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Keep of the noise what the next level asks for: clean + (x - clean) * sigma_next / sigma."""
        clean = self.clean(latents, velocity, index)
        return clean + (latents - clean) * (self.sigmas[index + 1] / self.sigmas[index])


@dataclass(frozen=True)
class LCMSchedule(Schedule):
    """Consistency sampling as in AnimateLCM-SVD (Wang et al. 2024): guess the clean clip, add new noise, repeat."""

    def needs_noise(self, index: int) -> bool:
        """Every step but the last, which ends without noise."""
        return self.sigmas[index + 1] > 0

    def step(
        self, latents: torch.Tensor, velocity: torch.Tensor, index: int, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Replace the noise by new noise of the next level: clean + sigma_next * noise.

        Raises:
            ValueError: The step needs noise and got none.
        """
        clean = self.clean(latents, velocity, index)
        if not self.needs_noise(index):
            return clean
        if noise is None:
            raise ValueError(f"step {index} of {self.steps} needs noise")
        return clean + self.sigmas[index + 1] * noise


def euler_schedule(steps: int, sigma_min: float = SIGMA_MIN) -> EulerSchedule:
    """SVD's own schedule: ``steps`` levels evenly spaced on EDM's ramp, both ends included.

    Raises:
        ValueError: There is less than one step.
    """
    if steps < 1:
        raise ValueError(f"a schedule has at least one step, not {steps}")
    return EulerSchedule((*(_karras_sigma(index / max(steps - 1, 1), sigma_min) for index in range(steps)), 0.0))


def lcm_schedule(steps: int, sigma_min: float = SIGMA_MIN) -> LCMSchedule:
    """AnimateLCM's schedule: every (40 // steps)-th of the 40 levels it was distilled on, from the top.

    Raises:
        ValueError: There is less than one step, or more steps than levels.
    """
    if not 1 <= steps <= LCM_GRID:
        raise ValueError(f"an LCM schedule has 1 to {LCM_GRID} steps, not {steps}")
    stride = LCM_GRID // steps
    return LCMSchedule((*(_karras_sigma(index * stride / (LCM_GRID - 1), sigma_min) for index in range(steps)), 0.0))


def _karras_sigma(ramp: float, sigma_min: float) -> float:
    """EDM's equation 5: linear in sigma^(1/rho), from SIGMA_MAX at ramp 0 to ``sigma_min`` at ramp 1."""
    top, bottom = SIGMA_MAX ** (1 / RHO), sigma_min ** (1 / RHO)
    return float((top + ramp * (bottom - top)) ** RHO)
