"""The published networks at their full size with random weights: nothing is downloaded, nothing is read from a disk.

    published shapes ──▶ a network on the device, from a fixed seed ──▶ any precision of it ──▶ stock pipeline, or ours
    the same shapes without memory ──▶ floating-point operations of every stage

Random weights take as long as published ones. Their clips are noise, so what they say of quality is how far rounding
carries, and nothing of how a lossy shortcut looks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

import deployments.models.weights
from deployments.models.base import FRAMES, Size
from deployments.models.networks import VideoUNet
from deployments.models.sampler import SVDSampler
from deployments.models.schedules import SIGMA_MIN
from deployments.models.tuning import Tuning
from deployments.models.vision import Normalisation

SMALL = Path(deployments.models.weights.__file__).parent / "svd"
SEED = 9
LEVELS = ("DownEncoderBlock2D",) * 4
UNET: dict[str, Any] = {"num_attention_heads": (5, 10, 20, 20), "num_frames": FRAMES, "sample_size": 96}
VAE: dict[str, Any] = {
    "down_block_types": LEVELS,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 768,
}
CLIP: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "projection_dim": 1024,
    "patch_size": 14,
    "image_size": 224,
    "hidden_act": "gelu",
}
"""Those of stabilityai/stable-video-diffusion-img2vid-xt; what is not named has the classes' default."""

COLOURS = Normalisation(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Networks:
    """UNet, VAE and image encoder in float32, from which precisions and arrangements are copied."""

    unet: Any
    vae: Any
    image_encoder: Any

    @classmethod
    def random(cls, device: str) -> Networks:
        """The full size, made on the device."""
        torch.manual_seed(SEED)
        with torch.device(device):
            networks = cls(
                UNetSpatioTemporalConditionModel(**UNET),
                AutoencoderKLTemporalDecoder(**VAE),
                CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP)),
            )
        return networks.ready(device)

    @classmethod
    def read(cls, folder: Path, device: str, variant: str | None = None) -> Networks:
        """Those of a checkpoint in diffusers' layout."""
        kinds = (UNetSpatioTemporalConditionModel, AutoencoderKLTemporalDecoder, CLIPVisionModelWithProjection)
        read = [
            kind.from_pretrained(folder, subfolder=name, variant=variant, use_safetensors=True, local_files_only=True)
            for kind, name in zip(kinds, ("unet", "vae", "image_encoder"), strict=True)
        ]
        return cls(*(network.float() for network in read)).ready(device)

    def ready(self, device: str) -> Networks:
        """On a device, for use and not for training."""
        for network in (self.unet, self.vae, self.image_encoder):
            network.to(device).eval().requires_grad_(False)
        return self

    @property
    def size(self) -> int:
        """Bytes of all three."""
        parts = (self.unet, self.vae, self.image_encoder)
        return sum(each.numel() * each.element_size() for network in parts for each in network.parameters())

    def stock(self, dtype: torch.dtype) -> StableVideoDiffusionPipeline:
        """The pipeline of diffusers with a copy of them."""
        pipeline = StableVideoDiffusionPipeline(
            vae=copy.deepcopy(self.vae).to(dtype),
            image_encoder=copy.deepcopy(self.image_encoder).to(dtype),
            unet=copy.deepcopy(self.unet).to(dtype),
            scheduler=EulerDiscreteScheduler.from_pretrained(SMALL / "scheduler", sigma_min=SIGMA_MIN),  # SVD's own
            feature_extractor=CLIPImageProcessor(),
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def ours(self, tuning: Tuning) -> SVDSampler:
        """Our sampler with a copy of them, as ``SVDSampler.load`` has it."""
        dtype, _ = tuning.dtypes(str(self.unet.device))
        with torch.device("meta"):
            unet = VideoUNet.from_config(self.unet.config)
        unet.load_state_dict({k: v.to(dtype, copy=True) for k, v in self.unet.state_dict().items()}, assign=True)
        networks = {
            "unet": unet.eval().requires_grad_(False),
            "vae": copy.deepcopy(self.vae),
            "image_encoder": copy.deepcopy(self.image_encoder).to(dtype),
        }
        return SVDSampler.arranged(networks, COLOURS, tuning=tuning)


@dataclass(frozen=True)
class Work:
    """TFLOP of each stage of one clip; a multiplication with its addition counts two."""

    clip: float
    encode: float
    row: float
    decode: float

    def of(self, steps: int, guided: bool) -> float:
        """TFLOP of a whole clip."""
        return self.clip + self.encode + steps * (2 if guided else 1) * self.row + self.decode

    @classmethod
    def count(cls, networks: Networks, size: Size) -> Work:
        """What the stock networks do for a clip of a size: our shortcuts are not taken off."""
        unet, vae, encoder = (
            copy.deepcopy(each).to("meta") for each in (networks.unet, networks.vae, networks.image_encoder)
        )
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        height, width = size.height // factor, size.width // factor
        side, channels = encoder.config.image_size, vae.config.latent_channels

        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(*shape, device="meta")

        return cls(
            clip=tflop(lambda: encoder(empty(1, 3, side, side))),
            encode=tflop(lambda: vae.encode(empty(1, 3, size.height, size.width))),
            row=tflop(
                lambda: unet(
                    empty(1, FRAMES, 2 * channels, height, width),
                    empty(1),
                    empty(1, 1, unet.config.cross_attention_dim),
                    empty(1, 3),
                )
            ),
            decode=tflop(lambda: vae.decode(empty(FRAMES, channels, height, width), num_frames=FRAMES)),
        )


def tflop(run: Callable[[], object]) -> float:
    """TFLOP of a call."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 1e12
