"""What is made from what, and where it is kept.

    pictures.npy ──▶ patches ──▶ decoder.pt
                       └──▶ bank/ ──▶ unet.pt ──▶ control.pt

Each of these is made when it is first asked for, from those before it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deployments.models.vision import Normalisation, encoder_pixels
from training import networks
from training.bank import Bank
from training.loop import Loss, Recipe, Sheet, Training
from training.pictures import draw
from training.unet import clip_maker, unet_loss, unet_sheet
from training.vae import Patches, decoder_loss, vae_sheet

CLIP_NORMALISATION = Normalisation(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

SEEDS = {"image_encoder": 1, "unet": 2, "decoder": 3}
"""What each network's first weights are drawn from."""

HELD_OUT = 1_000_000
"""Pictures from this seed on are never learnt from."""


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        pictures: Drawn to learn from.
        recipes: How each network is trained.
    """

    pictures: int
    recipes: Mapping[str, Recipe]


CPU = Scale(
    2000,
    {
        "decoder": Recipe(3000, rate=2e-3, warm_up=30, mean_over=200),
        "unet": Recipe(20000, rate=8e-4, mean_over=300, precision=torch.bfloat16),
    },
)
"""What the weights that ship were made with: hours on two cores."""

TOY = Scale(4, {name: replace(recipe, steps=2, keep_seconds=0) for name, recipe in CPU.recipes.items()})
"""For tests: everything once, nothing learnt."""


@dataclass
class Workshop:
    """A directory in which networks are made.

    Args:
        directory: Where pictures, banks and checkpoints are kept.
        scale: How much of everything.
        device: Where networks are trained.
    """

    directory: Path
    scale: Scale = CPU
    device: str = "cpu"

    @cached_property
    def pictures(self) -> np.ndarray:
        """What is learnt from, uint8 [N, SIDE, SIDE, 3]."""
        file = self.directory / "pictures.npy"
        if not file.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial.npy")
            np.save(partial, np.stack([draw(seed) for seed in range(self.scale.pictures)]))
            os.replace(partial, file)
        drawn: np.ndarray = np.load(file, mmap_mode="r")
        return drawn

    @cached_property
    def held_out(self) -> torch.Tensor:
        """Some that are not, [N, 3, H, W] in -1..1."""
        crops = np.stack([draw(HELD_OUT + number)[60:140, 50:194] for number in range(5)])
        return torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1

    @cached_property
    def patches(self) -> Patches:
        """What the encoder computes."""
        return Patches.of(self.pictures)

    @cached_property
    def image_encoder(self) -> Any:
        """Random, as it was built, and never trained."""
        torch.manual_seed(SEEDS["image_encoder"])
        return networks.image_encoder().eval().requires_grad_(False)

    @torch.no_grad()
    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, 1, D] of pictures [N, 3, H, W] in -1..1."""
        pixels = encoder_pixels(pictures, CLIP_NORMALISATION)
        embeddings: torch.Tensor = self.image_encoder(pixels).image_embeds[:, None]
        return embeddings

    @cached_property
    def bank(self) -> Bank:
        """Clips as latents."""
        return Bank(self.directory / "bank", clip_maker(self.patches.encode, self.embed, self.pictures))

    def decoder(self) -> Training:
        """Of the VAE, and with it the VAE."""
        vae = self._built("decoder", networks.video_vae)
        self.patches.install(vae)
        recipe = self._recipe("decoder")
        return self._training("decoder", vae, decoder_loss(vae, self.pictures, recipe), vae_sheet(self.held_out))

    def unet(self) -> Training:
        """The video UNet."""
        unet = self._built("unet", networks.video_unet)
        sheet = unet_sheet(self.held_out, self.patches, self.embed)
        return self._training("unet", unet, unet_loss(unet, self.bank, self._recipe("unet")), sheet)

    def _built(self, name: str, build: Callable[[], Any]) -> Any:
        torch.manual_seed(SEEDS[name])
        network = build()
        networks.flatten_time(network)
        return network.to(self.device)

    def _recipe(self, name: str) -> Recipe:
        return replace(self.scale.recipes[name], device=self.device)

    def _training(self, name: str, network: Any, loss: Loss, sheet: Sheet) -> Training:
        return Training(network, loss, self._recipe(name), self.directory / f"{name}.pt", sheet)
