"""Clips as latents, kept on the disk: a clip is encoded once and seen often, each time under fresh noise.

    shard number ──▶ clips, drawn ──▶ VAE, image encoder ──▶ one file of tensors

A shard follows from its number alone and is made when it is first asked for, so a bank can be lost without harm.
Whoever changes what makes it, deletes it: what lies there is not made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deployments.models.size import Size
from training.loop import save

Shard = Mapping[str, torch.Tensor]
Make = Callable[[np.random.Generator, Size], Shard]

SIZES = (Size(144, 80), Size(144, 80), Size(144, 80), Size(112, 112), Size(144, 80), Size(80, 144))
"""Which size a shard's clips have: most are wide."""


@dataclass
class Bank:
    """Numbered shards of one kind of clip.

    Args:
        directory: Where they are kept.
        make: Makes the clips of a shard, as tensors whose first axis counts them.
        sizes: Of the clips, in turn.
        seed: Of all that is drawn.
    """

    directory: Path
    make: Make
    sizes: tuple[Size, ...] = SIZES
    seed: int = 0

    def __post_init__(self) -> None:
        self._read: dict[int, Shard] = {}
        self.directory.mkdir(parents=True, exist_ok=True)

    def shard(self, number: int) -> Shard:
        """The tensors of a shard."""
        if number not in self._read:
            file = self.directory / f"{number:05}.pt"
            if not file.exists():
                rng = np.random.default_rng([self.seed, number])
                save(dict(self.make(rng, self.sizes[number % len(self.sizes)])), file)
            self._read[number] = torch.load(file, weights_only=True)
        return self._read[number]

    def draw(self, rng: np.random.Generator, count: int, shards: int) -> dict[str, torch.Tensor]:
        """Some clips of one size, from the first ``shards`` shards."""
        shard = self.shard(int(rng.integers(shards)))
        rows = torch.from_numpy(rng.integers(len(next(iter(shard.values()))), size=count))
        return {name: values[rows].float() for name, values in shard.items()}
