"""From clips to frames: Stable Video Diffusion's networks, run for many requests at once.

    Clip ──▶ CLIP embedding, first-frame latents, time ids, noise ──┐  one row each
                                                                    ▼
                         keep(0) ─ UNet ─ step ─ keep(1) ─ … ─ keep(steps) ──▶ VAE, clip by clip ──▶ frames

The networks are diffusers' and transformers' own classes. The loop is ours, because rows of a batch differ in seed,
motion and augmentation and may leave at any step. A row's result depends on its clip alone: it has its own generator,
and no operation mixes rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from deployments.models.base import FRAMES, Clip, Keep, Size

if TYPE_CHECKING:
    import numpy as np
    import torch
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from PIL import Image
    from transformers import CLIPVisionModelWithProjection

    from deployments.models.schedules import Schedule

FPS_ID = 6
"""What the network is told about speed: SVD XT 1.1 was tuned at 6 frames a second, so playback speed stays apart."""

CUDA_DECODE_CHUNK = 8
"""Frames decoded together on a GPU: about 10 GB at 1024x576 in bf16, where a whole clip would take 30 GB."""


@dataclass(frozen=True)
class ClipNormalisation:
    """The size and colours the image encoder was trained on."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Batch:
    """The clips being denoised: row i of every field belongs to the clip that was number ``members[i]`` at first.

    Attributes:
        members: Original indexes, ascending.
        latents: Current noisy clips, [B, F, C, h, w] float32.
        first_frames: VAE latents of the augmented pictures, [B, 1, C, h, w] float32.
        embeddings: Image embeddings, [B, 1, D] float32.
        time_ids: Frames a second, motion bucket and augmentation, [B, 3] float32.
        generators: One source of noise a clip, on the CPU so that a seed means the same on every device.
    """

    members: tuple[int, ...]
    latents: torch.Tensor
    first_frames: torch.Tensor
    embeddings: torch.Tensor
    time_ids: torch.Tensor
    generators: tuple[torch.Generator, ...]

    def narrow(self, wanted: Collection[int]) -> Batch:
        """The same batch without the clips nobody wants any more."""
        rows = [row for row, member in enumerate(self.members) if member in wanted]
        if len(rows) == len(self.members):
            return self
        return Batch(
            members=tuple(self.members[row] for row in rows),
            latents=self.latents[rows],
            first_frames=self.first_frames[rows],
            embeddings=self.embeddings[rows],
            time_ids=self.time_ids[rows],
            generators=tuple(self.generators[row] for row in rows),
        )

    def draw_noise(self) -> torch.Tensor:
        """Fresh noise of the latents' shape, each row from its own generator."""
        import torch

        shape = self.latents.shape[1:]
        return torch.stack([_randn(shape, generator) for generator in self.generators]).to(self.latents.device)


class SVDSampler:
    """One set of SVD weights on one device.

    Args:
        unet: Predicts velocities.
        vae: Its encoder is used in its own precision, its decoder in its own.
        image_encoder: CLIP's picture half.
        normalisation: How the image encoder wants its pictures.
        decode_chunk: Frames the VAE decodes together. It changes the pixels slightly, so it is fixed for a sampler and
            never follows the load.
        batched: Whether one call of the UNet serves a whole batch, or each clip has a call of its own.
    """

    def __init__(
        self,
        unet: UNetSpatioTemporalConditionModel,
        vae: AutoencoderKLTemporalDecoder,
        image_encoder: CLIPVisionModelWithProjection,
        normalisation: ClipNormalisation,
        decode_chunk: int = FRAMES,
        batched: bool = True,
    ) -> None:
        self.unet = unet
        self.vae = vae
        self.image_encoder = image_encoder
        self.normalisation = normalisation
        self.decode_chunk = decode_chunk
        self.batched = batched
        self.device: torch.device = unet.device

    @classmethod
    def load(
        cls, weights: str, revision: str | None = None, device: str = "cpu", decode_chunk: int | None = None
    ) -> Self:
        """Read a checkpoint in diffusers' layout; ``scheduler/`` is not read, because the caller chooses the schedule.

        Args:
            weights: A directory, or the id of a Hugging Face repository.
            revision: Commit of the repository; give one, so that what is served cannot change under you.
            device: ``cpu`` computes in float32, clip by clip. ``cuda`` computes the UNet, the image encoder and the
                VAE's decoder in bfloat16; the VAE's encoder stays in float32, because every frame is conditioned on it.
            decode_chunk: Frames decoded together; by default the whole clip on a CPU, CUDA_DECODE_CHUNK on a GPU.

        Raises:
            FileNotFoundError: The directory, or a part of the checkpoint in it, is missing.
            OSError: The repository or one of its files cannot be had.
        """
        import torch
        from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
        from transformers import CLIPVisionModelWithProjection

        _check_local_parts(weights)
        on_cpu = torch.device(device).type == "cpu"
        dtype = torch.float32 if on_cpu else torch.bfloat16
        source = {"revision": revision, "use_safetensors": True}
        unet = UNetSpatioTemporalConditionModel.from_pretrained(weights, subfolder="unet", dtype=dtype, **source)
        vae = AutoencoderKLTemporalDecoder.from_pretrained(weights, subfolder="vae", dtype=torch.float32, **source)
        vae.decoder.to(dtype)
        encoder = CLIPVisionModelWithProjection.from_pretrained(
            weights, subfolder="image_encoder", dtype=dtype, **source
        )
        if on_cpu:
            _lay_out_for_cpu(unet, vae)
        return cls(
            unet=unet.to(device).eval(),
            vae=vae.to(device).eval(),
            image_encoder=encoder.to(device).eval(),
            normalisation=_read_normalisation(weights, revision, encoder.config.image_size),
            decode_chunk=decode_chunk or (FRAMES if on_cpu else CUDA_DECODE_CHUNK),
            batched=not on_cpu,  # a CPU gains nothing from it
        )

    @property
    def size_multiple(self) -> int:
        """Width and height are multiples of this many pixels: the VAE and then the UNet halve them that often."""
        halvings = len(self.vae.config.block_out_channels) - 1 + len(self.unet.config.block_out_channels) - 1
        return int(2**halvings)

    def sample(
        self, clips: Sequence[Clip], schedule: Schedule, guidance: tuple[float, float], keep: Keep
    ) -> list[np.ndarray | None]:
        """Make all clips together.

        Args:
            clips: What to make; all of one size.
            schedule: Noise levels.
            guidance: Strength of classifier-free guidance on the first and the last frame. When neither exceeds 1 there
                is none, at half the cost.
            keep: Asked before the first step and after each which indexes into ``clips`` are still wanted.

        Returns:
            For each clip uint8 frames [FRAMES, H, W, 3], or None if it was dropped.

        Raises:
            ValueError: The sizes differ, or are not multiples of ``size_multiple``.
        """
        latents = self.denoise(clips, schedule, guidance, keep)
        return [to_uint8(self.decode(latents[index])) if index in latents else None for index in range(len(clips))]

    def denoise(
        self, clips: Sequence[Clip], schedule: Schedule, guidance: tuple[float, float], keep: Keep
    ) -> dict[int, torch.Tensor]:
        """The first half of ``sample``: noiseless latents [F, C, h, w] of the clips that were kept, by index."""
        import torch

        _check_sizes(clips, self.size_multiple)
        with torch.inference_mode():
            batch = self._prepare(clips, schedule).narrow(keep(0))
            for index in range(schedule.steps):
                if not batch.members:
                    break
                velocity = self._velocity(batch, schedule, index, guidance)
                noise = batch.draw_noise() if schedule.needs_noise(index) else None
                batch = replace(batch, latents=schedule.step(batch.latents, velocity, index, noise))
                batch = batch.narrow(keep(index + 1))
            return dict(zip(batch.members, batch.latents, strict=True))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The second half of ``sample``: one clip's latents [F, C, h, w] to frames [F, 3, H, W] in 0..1, float32."""
        import torch

        dtype = next(self.vae.decoder.parameters()).dtype
        with torch.inference_mode():
            scaled = (latents / self.vae.config.scaling_factor).to(dtype)
            chunks = scaled.split(self.decode_chunk)
            frames = torch.cat([self.vae.decode(chunk, num_frames=len(chunk)).sample for chunk in chunks])
            return (frames.float() / 2 + 0.5).clamp(0, 1)

    def _prepare(self, clips: Sequence[Clip], schedule: Schedule) -> Batch:
        """Everything the loop needs. Pictures are encoded one by one, so that the batch cannot touch them."""
        import torch

        generators = [torch.Generator("cpu").manual_seed(clip.seed) for clip in clips]
        pictures = [_to_tensor(clip.picture) for clip in clips]
        pairs = list(zip(clips, pictures, generators, strict=True))
        # The order in which a generator is drawn from is diffusers': pixels first, then latents.
        first_frames = torch.stack([self._encode(clip, picture, source) for clip, picture, source in pairs])
        shape = (FRAMES, *first_frames.shape[2:])
        noise = torch.stack([_randn(shape, generator) for generator in generators]).to(self.device)
        return Batch(
            members=tuple(range(len(clips))),
            latents=noise * schedule.initial_scale,
            first_frames=first_frames,
            embeddings=torch.stack([self._embed(picture) for picture in pictures]),
            time_ids=torch.tensor([_time_ids(clip) for clip in clips], dtype=torch.float32, device=self.device),
            generators=tuple(generators),
        )

    def _encode(self, clip: Clip, picture: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A picture [3, H, W] in -1..1, with the augmentation's noise on it, as latents [1, C, h, w].

        They are *not* multiplied by the VAE's scaling factor: SVD was trained so.
        """
        noisy = picture + clip.cond_aug * _randn(picture.shape, generator)
        encoded: torch.Tensor = self.vae.encode(noisy[None].to(self.device)).latent_dist.mode()
        return encoded

    def _embed(self, picture: torch.Tensor) -> torch.Tensor:
        """CLIP's embedding [1, D] of a picture [3, H, W] in -1..1."""
        pixels = clip_pixels(picture[None].to(self.device), self.normalisation)
        embedding: torch.Tensor = self.image_encoder(pixels.to(self.image_encoder.dtype)).image_embeds
        return embedding.float()

    def _velocity(self, batch: Batch, schedule: Schedule, index: int, guidance: tuple[float, float]) -> torch.Tensor:
        """What the network makes of the batch; [B, F, C, h, w].

        Kernels round differently by the size of a batch, so only clip by clip is a clip the same bit for bit whatever
        it shares a batch with.
        """
        import torch

        calls = [batch] if self.batched else [batch.narrow((member,)) for member in batch.members]
        return torch.cat([self._guided(call, schedule, index, guidance) for call in calls])

    def _guided(self, batch: Batch, schedule: Schedule, index: int, guidance: tuple[float, float]) -> torch.Tensor:
        """One call's velocities, guided away from what the network would do without a picture."""
        import torch

        latents = batch.latents * schedule.input_scale(index)
        first_frames = batch.first_frames.expand_as(latents)
        timestep = schedule.timestep(index)
        if max(guidance) <= 1:
            return self._ask(latents, first_frames, batch.embeddings, batch.time_ids, timestep)
        blind, seeing = self._ask(
            torch.cat([latents, latents]),
            torch.cat([torch.zeros_like(first_frames), first_frames]),
            torch.cat([torch.zeros_like(batch.embeddings), batch.embeddings]),
            torch.cat([batch.time_ids, batch.time_ids]),
            timestep,
        ).chunk(2)
        strength = torch.linspace(*guidance, FRAMES, device=latents.device)[None, :, None, None, None]
        return blind + strength * (seeing - blind)

    def _ask(
        self,
        latents: torch.Tensor,
        first_frames: torch.Tensor,
        embeddings: torch.Tensor,
        time_ids: torch.Tensor,
        timestep: float,
    ) -> torch.Tensor:
        """One call of the UNet in its own precision; the answer is float32."""
        import torch

        dtype = self.unet.dtype
        velocity: torch.Tensor = self.unet(
            torch.cat([latents, first_frames], dim=2).to(dtype),
            torch.full((len(latents),), timestep, device=latents.device),
            encoder_hidden_states=embeddings.to(dtype),
            added_time_ids=time_ids,
            return_dict=False,
        )[0]
        return velocity.float()


def clip_pixels(images: torch.Tensor, normalisation: ClipNormalisation) -> torch.Tensor:
    """Pictures [B, 3, H, W] in -1..1 as the image encoder wants them: blurred, squeezed square, in its own colours."""
    import torch
    from torch.nn import functional

    size = (normalisation.size, normalisation.size)
    resized = functional.interpolate(_blur(images, normalisation.size), size=size, mode="bicubic", align_corners=True)
    mean = torch.tensor(normalisation.mean, device=images.device)[:, None, None]
    std = torch.tensor(normalisation.std, device=images.device)[:, None, None]
    return (resized / 2 + 0.5 - mean) / std


def to_uint8(frames: torch.Tensor) -> np.ndarray:
    """Frames [F, 3, H, W] in 0..1 as uint8 [F, H, W, 3] on the CPU, rounded to the nearest."""
    import torch

    pixels: np.ndarray = (frames * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels


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


def _to_tensor(picture: Image.Image) -> torch.Tensor:
    """An RGB picture as float32 [3, H, W] in -1..1 on the CPU."""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.array(picture, dtype=np.float32) / 255.0)
    return pixels.permute(2, 0, 1).contiguous() * 2 - 1


def _time_ids(clip: Clip) -> tuple[float, float, float]:
    return (float(FPS_ID), float(clip.motion_bucket_id), clip.cond_aug)


def _randn(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    import torch

    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


def _check_sizes(clips: Sequence[Clip], multiple: int) -> None:
    sizes: set[Size] = {clip.size for clip in clips}
    if len(sizes) != 1:
        raise ValueError(f"the clips of a batch have one size, not {', '.join(map(str, sorted(sizes))) or 'none'}")
    size = sizes.pop()
    if size.width % multiple or size.height % multiple:
        raise ValueError(f"{size} is not in multiples of {multiple} pixels")


def _check_local_parts(weights: str) -> None:
    """Say which file is missing before a loader says something vaguer. A repository's id is left to the hub."""
    folder = Path(weights)
    if not folder.is_dir():
        if folder.exists() or folder.is_absolute() or weights.startswith(".") or weights.count("/") != 1:
            raise FileNotFoundError(f"there is no directory of weights at {weights}")
        return
    parts = ("unet/config.json", "vae/config.json", "image_encoder/config.json")
    for path in [*(folder / part for part in parts), folder / "feature_extractor" / "preprocessor_config.json"]:
        if not path.is_file():
            raise FileNotFoundError(f"the checkpoint has no {path}")
    for part in parts:
        if not any((folder / part).parent.glob("*.safetensors")):
            raise FileNotFoundError(f"the checkpoint has no safetensors file in {(folder / part).parent}")


def _read_normalisation(weights: str, revision: str | None, size: int) -> ClipNormalisation:
    """The feature extractor's mean and standard deviation; the rest of it is not used, as in diffusers' pipeline."""
    from transformers import BaseImageProcessor

    # The class that would do the work needs torchvision; its two constants do not.
    config: dict[str, Any] = BaseImageProcessor.get_image_processor_dict(
        weights, subfolder="feature_extractor", revision=revision
    )[0]
    return ClipNormalisation(size, tuple(config["image_mean"]), tuple(config["image_std"]))


def _lay_out_for_cpu(*networks: torch.nn.Module) -> None:
    """Store temporal convolutions channels-last, because torch is slow at them on a CPU otherwise."""
    import torch

    for network in networks:
        for module in network.modules():
            if isinstance(module, torch.nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
