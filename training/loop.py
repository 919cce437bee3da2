"""Train one network, whichever: steps, a running mean of the weights, checkpoints, figures and sheets.

    loss(step) ──▶ gradient, clipped ──▶ AdamW ──▶ running mean ──▶ checkpoint every few minutes

What a step sees follows from its number and the seed alone, and a checkpoint is replaced in one go, so a run that is
killed at any moment goes on as if it had not been.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class Recipe:
    """How long, and how boldly.

    Attributes:
        steps: How many in all.
        rate: AdamW's learning rate, but at the beginning and at the end.
        warm_up: Steps in which the rate grows.
        cool_down: Last part of all steps, in which it falls.
        mean_over: Over about how many steps the weights' running mean goes.
        most_gradient: Norm to which a gradient is cut.
        seed: Of everything that is drawn.
        keep_seconds: How often a checkpoint is written.
        sheet_every: Steps from one sheet to the next.
        precision: What convolutions and products compute in.
        device: Where.
    """

    steps: int
    rate: float = 1e-3
    warm_up: int = 100
    cool_down: float = 0.3
    mean_over: int = 500
    most_gradient: float = 1.0
    seed: int = 0
    keep_seconds: float = 180.0
    sheet_every: int = 250
    precision: torch.dtype = torch.float32
    device: str = "cpu"

    def rate_at(self, step: int) -> float:
        """The learning rate of a step: up, level, down to a hundredth."""
        left = (self.steps - step) / max(1.0, self.cool_down * self.steps)
        return self.rate * min(1.0, (step + 1) / self.warm_up, max(left, 0.01))

    def mean_at(self, step: int) -> float:
        """How much of the running mean a step leaves: little at first, when the weights are still random."""
        return min(1 - 1 / self.mean_over, (step + 1) / (step + 10))

    def generator(self, step: int, salt: int = 0) -> np.random.Generator:
        """What a step draws from."""
        return np.random.default_rng([self.seed, step, salt])


FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)

Loss = Callable[[int], torch.Tensor]
Sheet = Callable[[nn.Module], Image.Image]


class Training:
    """One network on its way.

    Args:
        network: It is trained in place.
        loss: What a step is to lessen; it uses ``network``.
        recipe: How.
        file: The checkpoint; figures go beside it as ``.csv``, sheets as ``.png``. Without one nothing is kept.
        sheet: Draws what the running mean can do.
    """

    def __init__(
        self, network: nn.Module, loss: Loss, recipe: Recipe, file: Path | None = None, sheet: Sheet | None = None
    ) -> None:
        self.network, self.loss, self.recipe, self.file, self.sheet = network, loss, recipe, file, sheet
        learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(learnt, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.01)
        self.mean = {name: value.clone() for name, value in network.state_dict().items()}
        self.step = 0
        self.losses: list[float] = []
        if file and file.exists():
            self._resume(file)

    def run(self) -> None:
        """Go on until the last step."""
        kept = time.monotonic()
        while self.step < self.recipe.steps:
            self._advance()
            last = self.step == self.recipe.steps
            if last or time.monotonic() - kept > self.recipe.keep_seconds:
                self._keep(time.monotonic() - kept)
                kept = time.monotonic()
            if last or self.step % self.recipe.sheet_every == 0:
                self._draw()

    def _advance(self) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate_at(self.step)
        device, precision = self.recipe.device, self.recipe.precision
        attention = [SDPBackend.MATH] if device == "cpu" else list(FUSED)  # a CPU is slow at the others' way back
        with torch.autocast(device, precision, enabled=precision != torch.float32), sdpa_kernel(attention):
            loss = self.loss(self.step)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.most_gradient)
        if torch.isfinite(norm):
            self.optimiser.step()
        left = self.recipe.mean_at(self.step)
        for name, value in self.network.state_dict().items():
            self.mean[name].lerp_(value, 1 - left)
        self.losses.append(float(loss.detach()))
        self.step += 1

    def _keep(self, seconds: float) -> None:
        if not self.file:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "network": self.network.state_dict(),
            "mean": self.mean,
            "optimiser": self.optimiser.state_dict(),
        }
        save(state, self.file)
        with self.file.with_suffix(".csv").open("a", newline="") as figures:
            row = [time.strftime("%H:%M:%S"), self.step, f"{np.mean(self.losses):.4f}"]
            csv.writer(figures).writerow([*row, f"{seconds / len(self.losses):.3f}"])
        self.losses.clear()

    def _draw(self) -> None:
        if self.file and self.sheet:
            with self.averaged() as network:
                self.sheet(network).save(self.file.with_suffix(".png"))

    def averaged(self) -> _Averaged:
        """While it is entered, the network has the running mean of its weights."""
        return _Averaged(self.network, self.mean)

    def _resume(self, file: Path) -> None:
        state = torch.load(file, weights_only=True, map_location=next(self.network.parameters()).device)
        self.step, self.mean = state["step"], state["mean"]
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])


class _Averaged:
    def __init__(self, network: nn.Module, mean: dict[str, torch.Tensor]) -> None:
        self.network, self.mean = network, mean

    def __enter__(self) -> nn.Module:
        self.own = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.mean)
        return self.network.eval()

    def __exit__(self, *_: object) -> None:
        self.network.load_state_dict(self.own)
        self.network.train()


def save(state: dict[str, Any], file: Path) -> None:
    """Write a file of tensors in one go: whoever reads it, and whenever we are killed, it is whole."""
    partial = file.with_suffix(".partial")
    with partial.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)


def contact_sheet(rows: list[torch.Tensor]) -> Image.Image:
    """Pictures [N, 3, H, W] in -1..1, a row for each of ``rows``."""
    from torch.nn import functional

    strips = [torch.cat(list(functional.pad(row, (0, 2, 0, 2), value=1.0)), dim=2) for row in rows]
    pixels = ((torch.cat(strips, dim=1) + 1) * 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
