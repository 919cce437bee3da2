"""From clips to frames: Stable Video Diffusion's networks, run for many requests at once.

    Clip ──▶ CLIP embedding, first-frame latents, time ids, noise ──┐  one row each
                                                                    ▼
                         keep(0) ─ UNet ─ step ─ keep(1) ─ … ─ keep(steps) ──▶ VAE, clip by clip ──▶ frames

The loop is ours, because rows of a batch differ in seed, motion and augmentation and may leave at any step. A row's
result depends on its clip alone: it has its own generator, and no operation mixes rows.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from deployments.errors import RunnerServerError
from deployments.models.base import Clip, ControlNetConfig, Keep, Size
from deployments.models.checkpoints import CheckpointError, Part
from deployments.models.stillness import lay_over, still_cells
from deployments.models.tuning import Compiled, Tuning
from deployments.models.vision import Normalisation, encoder_pixels

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from deployments.models.networks import DepthControlNet
    from deployments.models.schedules import Schedule

logger = logging.getLogger(__name__)

FPS_ID = 6
"""What the network is told about speed: SVD XT 1.1 was tuned at 6 frames a second, so playback speed stays apart."""

CUDA_DECODE_CHUNK = 8
"""Frames decoded together on a GPU: about 10 GB at 1024x576 in bf16, where a whole clip would take 30 GB."""

MOST_ATTENTIONS = 2**16 - 1
"""Attentions in one call on a GPU, where CUDA's grids end (pytorch/pytorch#146704). Along time each latent has one."""


@dataclass(frozen=True)
class Control:
    """A ControlNet and how it is to be used."""

    network: DepthControlNet
    config: ControlNetConfig


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
        noise: What the latents began with, [B, F, C, h, w] float32 of unit variance.
        still: Which latents are held to the picture, [B, 1, 1, h, w] bool; None if none are.
        pictures: The latents they are held to, [B, 1, C, h, w] float32; None if none are.
        features: The ControlNet's view of the depth maps, [B, F, C', h, w]; None without maps.
        beneath: What the UNet found beneath its outermost level, [B, halves, F, C', h, w]; None where it is not kept.
    """

    members: tuple[int, ...]
    latents: torch.Tensor
    first_frames: torch.Tensor
    embeddings: torch.Tensor
    time_ids: torch.Tensor
    generators: tuple[torch.Generator, ...]
    noise: torch.Tensor
    still: torch.Tensor | None
    pictures: torch.Tensor | None
    features: torch.Tensor | None
    beneath: torch.Tensor | None = None

    def narrow(self, wanted: Collection[int]) -> Batch:
        """The same batch without the clips nobody wants any more."""
        rows = [row for row, member in enumerate(self.members) if member in wanted]
        if len(rows) == len(self.members):
            return self
        return Batch(**{field.name: _pick(getattr(self, field.name), rows) for field in fields(self)})

    def draw_noise(self) -> torch.Tensor:
        """Fresh noise of the latents' shape, each row from its own generator."""
        return _randn_each(self.latents.shape[1:], self.generators).to(self.latents.device)

    def hold(self, sigma: float) -> Batch:
        """The same batch with its still latents back at the picture, under the noise of a level."""
        import torch

        if self.still is None or self.pictures is None:
            return self
        return replace(self, latents=torch.where(self.still, self.pictures + sigma * self.noise, self.latents))


class Row(NamedTuple):
    """The input of the UNet for one clip, or for one of its two halves under guidance: views, not copies.

    Attributes:
        latents: Scaled noisy latents beside those of the first picture, [F, 2 * C, h, w].
        embedding: Of the picture, [1, D].
        time_ids: [3].
        features: The ControlNet's view of the depth maps, [F, C', h, w], or None.
        beneath: What the UNet found beneath its outermost level at an earlier step, [F, C', h, w]; None to look anew.
    """

    latents: torch.Tensor
    embedding: torch.Tensor
    time_ids: torch.Tensor
    features: torch.Tensor | None
    beneath: torch.Tensor | None = None


class Prediction(NamedTuple):
    """What the UNet answers, one row each.

    Attributes:
        velocity: [B, F, C, h, w] float32.
        beneath: What it found beneath its outermost level, where that is kept; of a batch, [B, halves, F, C', h, w].
    """

    velocity: torch.Tensor
    beneath: torch.Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[Prediction]) -> Prediction:
        """Those of several calls as one."""
        import torch

        kept = [part.beneath for part in parts if part.beneath is not None]
        return cls(torch.cat([part.velocity for part in parts]), torch.cat(kept) if kept else None)


class SVDSampler:
    """One set of SVD weights on one device.

    Args:
        unet: A VideoUNet; predicts velocities.
        vae: An AutoencoderKLTemporalDecoder. Its encoder is used in its own precision, its decoder in its own.
        image_encoder: A CLIPVisionModelWithProjection: CLIP's picture half.
        normalisation: How the image encoder wants its pictures.
        control: What depth maps go through; without one, clips have none.
        decode_chunk: Frames the VAE decodes together, at the most; None for all. It changes the pixels slightly, so it
            is fixed for a sampler and never follows the load.
        batched: Whether one call of the UNet serves a whole batch, or each clip has a call of its own.
        tuning: How it computes. What concerns the networks themselves, ``arranged`` has done to them.

    Raises:
        CheckpointError: The ControlNet does not belong to these networks.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        image_encoder: Any,
        normalisation: Normalisation,
        control: Control | None = None,
        decode_chunk: int | None = None,
        batched: bool = True,
        tuning: Tuning = Tuning(),  # noqa: B008 - it is frozen
    ) -> None:
        self.unet = unet
        self.vae = vae
        self.image_encoder = image_encoder
        self.normalisation = normalisation
        self.control = control
        self.decode_chunk = decode_chunk
        self.batched = batched
        self.tuning = tuning
        self.device: torch.device = unet.device
        self.most_attentions = MOST_ATTENTIONS if self.device.type == "cuda" else None
        self.on_out_of_memory: Callable[[], None] = lambda: None  # whoever wants to count that sets it
        self.mark: Callable[[], Callable[[], None]] = _mark if self.device.type == "cuda" else lambda: _nothing
        self._most_rows: int | None = None  # of this batch, how many fit into the memory together
        _check_control(self)

    @classmethod
    def load(
        cls,
        parts: Mapping[str, Part],
        device: str = "cpu",
        control: ControlNetConfig | None = None,
        tuning: Tuning = Tuning(),  # noqa: B008 - it is frozen
    ) -> Self:
        """Read the parts of a checkpoint (``svd_parts``, and ``controlnet`` if there is one).

        Args:
            parts: ``unet``, ``vae``, ``image_encoder``, ``feature_extractor``, and ``controlnet`` with ``control``.
            device: ``cpu`` computes in float32, clip by clip. ``cuda`` computes all networks in bfloat16 but the VAE's
                encoder, which stays in float32, because every frame is conditioned on it.
            control: How the ControlNet is to be used.
            tuning: What of this is to be otherwise.

        Raises:
            CheckpointError: A file is missing, or does not hold what the networks want.
        """
        import torch

        dtype, _ = tuning.dtypes(device)
        networks = {
            name: part.load(torch.float32 if name == "vae" else dtype).to(device)
            for name, part in parts.items()
            if part.has_tensors
        }
        normalisation = Normalisation.of(parts["image_encoder"].config(), parts["feature_extractor"].config())
        return cls.arranged(networks, normalisation, control, tuning)

    @classmethod
    def arranged(
        cls,
        networks: Mapping[str, Any],
        normalisation: Normalisation,
        control: ControlNetConfig | None = None,
        tuning: Tuning = Tuning(),  # noqa: B008 - it is frozen
    ) -> Self:
        """A sampler of networks that are on their device, which it makes compute as the tuning says.

        Args:
            networks: By the names of ``load``: ``vae`` in float32, the others in their own precision.
            normalisation: How the image encoder wants its pictures.
            control: How the ControlNet is to be used.
            tuning: What of a device's ways is to be otherwise.
        """
        device = networks["unet"].device
        on_cpu = device.type == "cpu"
        _, decode_dtype = tuning.dtypes(str(device))
        networks["vae"].decoder.to(decode_dtype)
        for name, network in networks.items():
            arrange(network, name, tuning, on_cpu)
        return cls(
            unet=networks["unet"],
            vae=networks["vae"],
            image_encoder=networks["image_encoder"],
            normalisation=normalisation,
            control=Control(networks["controlnet"], control) if control else None,
            decode_chunk=tuning.decode_chunk or (None if on_cpu else CUDA_DECODE_CHUNK),
            batched=not on_cpu,  # a CPU gains nothing from it
            tuning=tuning,
        )

    @property
    def factor(self) -> int:
        """How many pixels a latent covers, in each direction."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def size_multiple(self) -> int:
        """Width and height are multiples of this many pixels: the VAE and then the UNet halve them that often."""
        return self.factor * int(2 ** (len(self.unet.config.block_out_channels) - 1))

    @contextlib.contextmanager
    def learning(self) -> Iterator[None]:
        """While it is entered, whatever shapes come are those that are compiled from then on."""
        networks = [self.unet, self.vae.decoder, *([self.control.network] if self.control else [])]
        functions = [
            function for network in networks for function in (network.forward, getattr(network, "predict", None))
        ]
        compiled = [function for function in functions if isinstance(function, Compiled)]
        for function in compiled:
            function.learning = True
        try:
            yield
        finally:
            for function in compiled:
                function.learning = False

    def sample(
        self, clips: Sequence[Clip], schedule: Schedule, guidance: tuple[float, float], keep: Keep
    ) -> list[np.ndarray | None]:
        """Make all clips together.

        Args:
            clips: What to make; all of one size and number of frames, with depth maps or all without.
            schedule: Noise levels.
            guidance: Strength of classifier-free guidance on the first and the last frame. When neither exceeds 1 there
                is none, at half the cost.
            keep: Asked before the first step and after each which indexes into ``clips`` are still wanted.

        Returns:
            For each clip uint8 frames [F, H, W, 3], or None if it was dropped. A clip of which nothing may move is its
            picture, again and again, and costs nothing.

        Raises:
            ValueError: The clips differ in what they must share, or are not multiples of ``size_multiple``.
            RunnerServerError: A single clip does not fit into the GPU's memory.
        """
        import torch

        static = {index for index, clip in enumerate(clips) if clip.is_static}
        wanted: set[int] = set()

        def keep_moving(done: int) -> set[int]:
            wanted.clear()
            wanted.update(keep(done))
            return wanted - static

        try:
            latents = self.denoise(clips, schedule, guidance, keep_moving)
            frames = {index: to_uint8(self.finish(clips[index], latents[index])) for index in latents}
            frames |= {index: _repeat(clips[index]) for index in static & wanted}
            return [frames.get(index) for index in range(len(clips))]
        except torch.OutOfMemoryError:
            self.on_out_of_memory()
            logger.exception("out of memory")
        torch.cuda.empty_cache()
        clip = clips[0]
        raise RunnerServerError(f"A clip of {clip.frames} frames of {clip.size} does not fit into the GPU's memory")

    def denoise(
        self, clips: Sequence[Clip], schedule: Schedule, guidance: tuple[float, float], keep: Keep
    ) -> dict[int, torch.Tensor]:
        """The first half of ``sample``: noiseless latents [F, C, h, w] of the clips that were kept, by index."""
        import torch

        _check_alike(clips, self.size_multiple)
        self._most_rows = self._most_rows_of(clips[0].size)
        members = sorted(set(keep(0)) & set(range(len(clips))))
        if not members:
            return {}
        is_done = _nothing
        with torch.inference_mode(), self.tuning.choosing_kernels():
            batch = replace(self._prepare([clips[member] for member in members], schedule), members=tuple(members))
            for index in range(schedule.steps):
                if not batch.members:
                    break
                velocity, beneath = self._velocity(batch, schedule, index, guidance)
                self._show(clips, batch, schedule, velocity, index)
                noise = batch.draw_noise() if schedule.needs_noise(index) else None
                latents = schedule.step(batch.latents, velocity, index, noise)
                batch = replace(batch, latents=latents, beneath=beneath)
                # A GPU is only told of its work. It stays one step behind at the most, so that progress, metrics and
                # cancellation are of what it does, and never without work.
                before, is_done = is_done, self.mark()
                before()
                batch = batch.hold(schedule.sigmas[index + 1]).narrow(keep(index + 1))
            return dict(zip(batch.members, batch.latents, strict=True))

    def _most_rows_of(self, size: Size) -> int | None:
        """How many rows of a size one call may have; None if as many as there are."""
        cells = (size.width // self.factor) * (size.height // self.factor)
        return max(1, self.most_attentions // cells) if self.most_attentions else None

    def _show(
        self, clips: Sequence[Clip], batch: Batch, schedule: Schedule, velocity: torch.Tensor, index: int
    ) -> None:
        """Give clips that asked for previews the middle frame as this step guesses it."""
        done = index + 1
        for row, member in enumerate(batch.members):
            clip = clips[member]
            if not clip.previews or done % clip.previews or done == schedule.steps:
                continue
            middle = slice(clip.frames // 2, clip.frames // 2 + 1)
            guess = schedule.clean(batch.latents[row, middle], velocity[row, middle], index)
            clip.show(done, to_uint8(self.decode(guess))[0])

    def finish(self, clip: Clip, latents: torch.Tensor) -> torch.Tensor:
        """The second half of ``sample``: one clip's latents [F, C, h, w] to frames [F, 3, H, W] in 0..1, float32."""
        import torch

        frames = self.decode(latents)
        if clip.still is None:
            return frames
        picture = (_to_tensor(clip.picture) / 2 + 0.5).to(frames.device)
        with torch.inference_mode():
            return lay_over(frames, picture, clip.still)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [F, C, h, w] to frames [F, 3, H, W] in 0..1, float32. No chunk holds frames of two clips."""
        import torch

        dtype = next(self.vae.decoder.parameters()).dtype
        with torch.inference_mode(), self.tuning.choosing_kernels():
            chunks = (latents / self.vae.config.scaling_factor).to(dtype).split(self.cut(len(latents)))
            frames = torch.cat([self.vae.decode(chunk, num_frames=len(chunk)).sample for chunk in chunks])
            return (frames.float() / 2 + 0.5).clamp(0, 1)

    def cut(self, frames: int) -> list[int]:
        """How many frames are decoded together each time: about equally many, for one alone sees nothing beside it."""
        chunks = math.ceil(frames / (self.decode_chunk or frames))
        return [frames // chunks + (index < frames % chunks) for index in range(chunks)]

    def _prepare(self, clips: Sequence[Clip], schedule: Schedule) -> Batch:
        """Everything the loop needs. Pictures are encoded one by one, so that the batch cannot touch them."""
        import torch

        generators = [torch.Generator("cpu").manual_seed(clip.seed) for clip in clips]
        pictures = [_to_tensor(clip.picture) for clip in clips]
        # The order in which a generator is drawn from is diffusers': pixels first, then latents.
        augmented = [
            picture + clip.cond_aug * _randn(picture.shape, generator)
            for clip, picture, generator in zip(clips, pictures, generators, strict=True)
        ]
        first_frames = torch.stack([self._encode(picture) for picture in augmented])
        noise = _randn_each((clips[0].frames, *first_frames.shape[2:]), generators).to(self.device)
        held = any(clip.still is not None for clip in clips)
        return Batch(
            members=tuple(range(len(clips))),
            latents=noise * schedule.initial_scale,
            first_frames=first_frames,
            embeddings=torch.stack([self._embed(picture) for picture in pictures]),
            time_ids=torch.tensor([_time_ids(clip) for clip in clips], dtype=torch.float32, device=self.device),
            generators=tuple(generators),
            noise=noise,
            still=torch.stack([self._still(clip) for clip in clips]) if held else None,
            pictures=torch.stack([self._encode(picture) for picture in pictures]) * self.vae.config.scaling_factor
            if held
            else None,
            features=torch.cat([self._see(clip) for clip in clips]) if clips[0].depth else None,
        )

    def _encode(self, picture: torch.Tensor) -> torch.Tensor:
        """A picture [3, H, W] in -1..1 as latents [1, C, h, w].

        They are *not* multiplied by the VAE's scaling factor: what SVD is conditioned on never was.
        """
        encoded: torch.Tensor = self.vae.encode(picture[None].to(self.device)).latent_dist.mode()
        return encoded

    def _embed(self, picture: torch.Tensor) -> torch.Tensor:
        """CLIP's embedding [1, D] of a picture [3, H, W] in -1..1."""
        pixels = encoder_pixels(picture[None].to(self.device), self.normalisation)
        embedding: torch.Tensor = self.image_encoder(pixels.to(self.image_encoder.dtype)).image_embeds
        return embedding.float()

    def _still(self, clip: Clip) -> torch.Tensor:
        """Which latents of a clip are held, bool [1, 1, h, w]."""
        import torch

        if clip.still is None:
            width, height = clip.picture.size
            return torch.zeros(1, 1, height // self.factor, width // self.factor, dtype=torch.bool, device=self.device)
        return still_cells(clip.still, self.factor)[None, None].to(self.device)

    def _see(self, clip: Clip) -> torch.Tensor:
        """The ControlNet's view of a clip's depth maps, [1, F, C', h, w]."""
        import torch

        assert self.control
        maps = torch.stack([_to_tensor(image) for image in clip.depth])
        if self.control.config.depth_range == "unit":
            maps = maps / 2 + 0.5
        network = self.control.network
        features: torch.Tensor = network.embed(maps[None].to(self.device, network.dtype))
        return features

    def _velocity(self, batch: Batch, schedule: Schedule, index: int, guidance: tuple[float, float]) -> Prediction:
        """What the network makes of the batch.

        Kernels round differently by the size of a batch, so only clip by clip is a clip the same bit for bit whatever
        it shares a batch with.
        """
        calls = [batch] if self.batched else [batch.narrow((member,)) for member in batch.members]
        return Prediction.joined([self._guided(call, schedule, index, guidance) for call in calls])

    def _guided(self, batch: Batch, schedule: Schedule, index: int, guidance: tuple[float, float]) -> Prediction:
        """One call's velocities, guided away from what the network would do without a picture."""
        import torch

        if not index % self.tuning.deep_every:
            batch = replace(batch, beneath=None)
        latents = batch.latents * schedule.input_scale(index)
        first_frames = batch.first_frames.expand_as(latents)
        timestep = schedule.timestep(index)
        seeing = _rows(torch.cat([latents, first_frames], dim=2), batch.embeddings, batch, half=-1)
        if max(guidance) <= 1:
            velocity, beneath = self._ask(seeing, timestep)
            return Prediction(velocity, None if beneath is None else beneath[:, None])
        nothing = torch.cat([latents, torch.zeros_like(first_frames)], dim=2)
        blind = _rows(nothing, torch.zeros_like(batch.embeddings), batch, half=0)
        velocity, beneath = self._ask([*blind, *seeing], timestep)
        without, with_picture = velocity.chunk(2)
        strength = torch.linspace(*guidance, latents.shape[1], device=latents.device)[None, :, None, None, None]
        halves = None if beneath is None else torch.stack(beneath.chunk(2), dim=1)
        return Prediction(without + strength * (with_picture - without), halves)

    def _ask(self, rows: Sequence[Row], timestep: float) -> Prediction:
        """What the network makes of all rows. Those that do not fit into the GPU's memory together go one half each."""
        import torch

        count = len(rows)
        if count <= (self._most_rows or count):
            try:
                return self._call(rows, timestep)
            except torch.OutOfMemoryError:
                if count == 1:
                    raise
                self.on_out_of_memory()
                self._most_rows = (count + 1) // 2
                logger.warning("%d rows do not fit into the memory; %d will be tried", count, self._most_rows)
            torch.cuda.empty_cache()  # after the except clause: the failed call's tensors are let go with it
        middle = (count + 1) // 2
        return Prediction.joined([self._ask(half, timestep) for half in (rows[:middle], rows[middle:])])

    def _call(self, rows: Sequence[Row], timestep: float) -> Prediction:
        """One call of the UNet, and of the ControlNet before it, in their own precision."""
        import torch

        dtype = self.unet.dtype
        common = (
            torch.stack([row.latents for row in rows]).to(dtype),
            torch.full((len(rows),), timestep, device=self.device),
            torch.stack([row.embedding for row in rows]).to(dtype),
            torch.stack([row.time_ids for row in rows]),
        )
        features = [row.features for row in rows if row.features is not None]
        known = [row.beneath for row in rows if row.beneath is not None]
        if self.tuning.deep_every > 1 and not features:  # whom maps lead, the network sees whole at every step
            velocity, beneath = self.unet.predict(*common, beneath=torch.stack(known) if known else None)
            return Prediction(velocity.float(), beneath)
        residuals = self._lead(common, torch.stack(features)) if features else None
        return Prediction(self.unet(*common, residuals=residuals).float())

    def _lead(self, common: Sequence[torch.Tensor], features: torch.Tensor) -> list[torch.Tensor]:
        """What the ControlNet adds to the UNet."""
        assert self.control
        config = self.control.config
        residuals = self.control.network(*common, features=features, accumulate=config.accumulate)
        return [residual * config.scale for residual in residuals]


def _mark() -> Callable[[], None]:
    """Mark what the GPU has been told so far; what is answered waits until it has done that."""
    import torch

    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # sleeps, where others would spin
    event.record()
    return event.synchronize


def _nothing() -> None:
    """A CPU has done what it was told."""


def to_uint8(frames: torch.Tensor) -> np.ndarray:
    """Frames [F, 3, H, W] in 0..1 as uint8 [F, H, W, 3] on the CPU, rounded to the nearest."""
    import torch

    pixels: np.ndarray = (frames * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels


def _repeat(clip: Clip) -> np.ndarray:
    import numpy as np

    return np.repeat(np.array(clip.picture)[None], clip.frames, axis=0)


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


def _randn_each(shape: Sequence[int], generators: Sequence[torch.Generator]) -> torch.Tensor:
    import torch

    return torch.stack([_randn(shape, generator) for generator in generators])


def _pick(column: Any, rows: Sequence[int]) -> Any:
    """Some rows of a field of a batch."""
    if isinstance(column, tuple):
        return tuple(column[row] for row in rows)
    return None if column is None else column[list(rows)]


def _rows(latents: torch.Tensor, embeddings: torch.Tensor, batch: Batch, half: int) -> list[Row]:
    nothing = [None] * len(latents)
    features = nothing if batch.features is None else batch.features
    beneath = nothing if batch.beneath is None else batch.beneath[:, half]
    return [Row(*row) for row in zip(latents, embeddings, batch.time_ids, features, beneath, strict=True)]


def arrange(network: Any, name: str, tuning: Tuning, on_cpu: bool) -> None:
    """Make a network that was loaded as ``name`` compute as it should on its device."""
    from deployments.models.networks import (
        attend_to_one_token,
        convolve_time_in_two_dimensions,
        project_together,
        put_channels_last,
    )

    if name in ("unet", "controlnet"):
        attend_to_one_token(network)
        if tuning.fused_qkv:
            project_together(network)
    if on_cpu if tuning.flat_time is None else tuning.flat_time:
        convolve_time_in_two_dimensions(network)
    if tuning.channels_last:
        put_channels_last(network)
    if tuning.compile:
        _compile(network, name, tuning)


def _compile(network: Any, name: str, tuning: Tuning) -> None:
    """Compile what is asked at every step, and the decoder. CUDA's graphs are for the UNet alone.

    The others have few and long kernels, and their answers are large: a graph's would have to be copied.
    """
    assert tuning.compile
    plain = {"max-autotune": "max-autotune-no-cudagraphs", "reduce-overhead": "default"}.get(tuning.compile)
    if name == "unet":
        function = "forward" if tuning.deep_every == 1 else "predict"
        setattr(network, function, Compiled(getattr(network, function), tuning.compile))
    elif name == "controlnet":
        network.forward = Compiled(network.forward, plain or tuning.compile)
    elif name == "vae":
        network.decoder.forward = Compiled(network.decoder.forward, plain or tuning.compile)


def _check_alike(clips: Sequence[Clip], multiple: int) -> None:
    sizes: set[Size] = {clip.size for clip in clips}
    if len(sizes) != 1:
        raise ValueError(f"the clips of a batch have one size, not {', '.join(map(str, sorted(sizes))) or 'none'}")
    if len({(clip.frames, bool(clip.depth)) for clip in clips}) != 1:
        raise ValueError("the clips of a batch have one number of frames, with depth maps or without")
    size = sizes.pop()
    if size.width % multiple or size.height % multiple:
        raise ValueError(f"{size} is not in multiples of {multiple} pixels")


def _check_control(sampler: SVDSampler) -> None:
    if not sampler.control:
        return
    unet, control = sampler.unet.config, sampler.control.network.config
    blocks = len(unet.block_out_channels)
    for name in ("block_out_channels", "layers_per_block", "cross_attention_dim"):
        if _spelt_out(control[name], blocks) != _spelt_out(unet[name], blocks):
            raise CheckpointError(f"the ControlNet's {name} is {control[name]}, the UNet's {unet[name]}")
    halvings = len(control.conditioning_embedding_out_channels) - 1
    if 2**halvings != sampler.factor:
        raise CheckpointError(f"the ControlNet shrinks its maps {2**halvings} times, the VAE {sampler.factor} times")


def _spelt_out(value: int | Sequence[int], blocks: int) -> list[int]:
    """A value for each block: configurations may give one for all."""
    return [value] * blocks if isinstance(value, int) else list(value)
