"""What every served endpoint says about itself, whichever process asks.

    endpoint ──▶ Input (the caller's JSON) ──▶ Plan (what must be equal inside a batch) ──▶ Clip ──▶ frames

The gateway reads ``Input`` and ``plan`` and never loads a weight; a replica calls ``setup`` once and ``generate``
or ``paint`` many times. So this module and every model file import torch only inside functions.
"""

from __future__ import annotations

import functools
import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from deployments.metrics import OUT_OF_MEMORY
from deployments.models.checkpoints import Checkpoint, Part, controlnet_part, svd_parts
from deployments.models.schedules import SIGMA_MAX, SIGMA_MIN
from deployments.models.size import Size as Size
from deployments.models.tuning import SizeField, Tuning
from deployments.web import LONGEST_URL

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from deployments.models.sampler import SVDSampler
    from deployments.models.schedules import Schedule

FRAMES = 25
"""Frames in a clip, where a configuration names no others: what SVD XT was trained on."""

MAX_RANDOM_SEED = 2**32 - 2
"""Random seeds stay below this so that JavaScript keeps them exact (and Stability's own API takes them)."""

MAX_SEED = 2**63 - 1
"""The largest seed that a torch generator takes as it is."""

WARM_UP_ROUNDS, WARM_UP_STEPS = 2, 2
"""How often a batch is made to warm up, and in how many steps: CUDA's graphs are recorded the second time that a
function runs, and under ``deep_every`` the second step is another one than the first."""

Guidance = Annotated[float, Field(ge=0, le=100)]

Keep = Callable[[int], Collection[int]]
"""Called after each step with the number of steps done; answers which batch members are still wanted."""


@dataclass(frozen=True)
class Plan:
    """What the members of a batch must have in common, as far as the input alone tells.

    Attributes:
        steps: Sampler steps.
        largest: The largest size the clip can get; what it costs a batch in pixels.
        size: The clip's size, or None until the picture has been fetched, because a clip takes its picture's shape.
        frames: Frames at the most.
        control: Whether depth maps lead the clip. It then has as many frames as maps.
    """

    steps: int
    largest: Size
    size: Size | None = None
    frames: int = FRAMES
    control: bool = False

    @property
    def batch_key(self) -> str:
        """Requests with equal keys may be claimed together."""
        control = " control" if self.control else ""
        return f"steps={self.steps} size={self.size or 'as the picture'}{control}"

    @property
    def pixel_frames(self) -> int:
        """Pixels times frames: what a clip weighs against a model's batch budget."""
        return self.largest.width * self.largest.height * self.frames


@dataclass(frozen=True)
class Clip:
    """One member of a batch, ready for the sampler.

    Attributes:
        picture: RGB, already of the clip's size.
        seed: Seed of all its noise.
        motion_bucket_id: How much should move.
        cond_aug: Standard deviation of the noise on the picture, whose values go from -1 to 1.
        still: Which pixels keep the picture in every frame, bool [H, W]; None if all may move.
        depth: A map for each frame, RGB and of the clip's size; empty if nothing leads the clip.
        length: Frames, where no depth maps lead the clip.
        previews: Each so many steps ``show`` gets the middle frame as the network guesses it; 0 for never.
        show: Called with the steps done and the frame, uint8 [H, W, 3].
    """

    picture: Image.Image
    seed: int
    motion_bucket_id: int
    cond_aug: float
    still: np.ndarray | None = None
    depth: tuple[Image.Image, ...] = ()
    length: int = FRAMES
    previews: int = 0
    show: Callable[[int, np.ndarray], None] = lambda done, frame: None

    @property
    def size(self) -> Size:
        """The clip's size, which is its picture's."""
        return Size(self.picture.width, self.picture.height)

    @property
    def frames(self) -> int:
        """How many frames it gets."""
        return len(self.depth) or self.length

    @property
    def pixel_frames(self) -> int:
        """Pixels times frames."""
        return self.size.width * self.size.height * self.frames

    @property
    def is_static(self) -> bool:
        """Whether nothing may move."""
        return self.still is not None and bool(self.still.all())

    @property
    def batch_key(self) -> tuple[Size, int, bool]:
        """Clips with equal keys can be computed together, if their steps are equal too."""
        return self.size, self.frames, bool(self.depth)


class VideoInput(BaseModel):
    """What every endpoint takes. Unknown fields are ignored, as fal ignores them."""

    model_config = ConfigDict(frozen=True)

    motion_bucket_id: int = Field(127, ge=1, le=255, description="How much should move: more with a higher number.")
    cond_aug: float = Field(
        0.02,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="Noise added to the picture before it is animated. More noise keeps less of it and moves more.",
    )
    seed: int = Field(
        default_factory=lambda: random.SystemRandom().randint(0, MAX_RANDOM_SEED),
        ge=0,
        le=MAX_SEED,
        description="The same seed and input give the same clip. Drawn at random when absent.",
    )


def _check_length(url: str) -> str:
    if len(url) > LONGEST_URL and url[:5].lower() != "data:":
        message = "A URL that is no data URI should have at most {max_length} characters"
        raise PydanticCustomError("string_too_long", message, {"max_length": LONGEST_URL})
    return url


FileUrl = Annotated[str, AfterValidator(_check_length)]
"""Where a file is: at an http(s) URL, in a data URI, or on this server."""


class ImageToVideoInput(VideoInput):
    """What every endpoint that animates a picture takes."""

    image_url: FileUrl = Field(
        min_length=1,
        description="The picture to animate: an http(s) URL, a data URI, or a file of this server.",
    )


class ControlledInput(ImageToVideoInput):
    """What an endpoint takes that lets the caller say where, and how, the picture moves."""

    mask_image_url: FileUrl | None = Field(None, description="A mask: what is black in it moves, what is white stays.")
    control_maps_data_url: FileUrl | None = Field(
        None,
        description="A zip or tar archive of depth maps, one picture a frame, in the order of their file names. The "
        "clip gets as many frames as there are maps.",
    )


class WeightsConfig(BaseModel):
    """Where weights are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str = Field(description="A directory in Hugging Face diffusers layout, or a repository id.")
    revision: str | None = Field(None, description="The repository's commit. Needed with a repository id.")

    @property
    def checkpoint(self) -> Checkpoint:
        """The files. A relative path that is not here is looked for beside the package."""
        beside_package = Path(__file__).parents[2] / self.weights
        found_beside = not Path(self.weights).exists() and beside_package.exists()
        return Checkpoint(str(beside_package) if found_beside else self.weights, self.revision)


class UNetConfig(WeightsConfig):
    """A UNet that comes as one file, over the other parts of a checkpoint."""

    file: str = Field(description="The safetensors file's path in it.")


class ControlNetConfig(WeightsConfig):
    """A temporal ControlNet for depth maps, and how it was trained."""

    folder: str = Field("controlnet", description="Where in it the ControlNet is.")
    variant: str | None = Field(None, description="`fp16` takes the files of that name.")
    max_maps: int = Field(FRAMES, ge=1, description="Depth maps, and so frames, at the most.")
    depth_range: Literal["signed", "unit"] = Field(
        "signed", description="What the maps' black and white are to the network: -1 and 1, or 0 and 1."
    )
    scale: float = Field(1.0, ge=0, allow_inf_nan=False, description="How strongly the maps lead.")
    accumulate: bool = Field(True, description="Add residuals anew after every block, as published ones were trained.")


class EndpointConfig(WeightsConfig):
    """What ``args.endpoints.<endpoint id>`` in serve_config.yaml may say beside ``model``."""

    variant: str | None = Field(None, description="`fp16` takes the files of that name.")
    frames: int = Field(FRAMES, ge=1, description="Frames in a clip: as many as its model was trained on.")


class VideoConfig(EndpointConfig):
    """The configuration of an endpoint that animates pictures."""

    unet: UNetConfig | None = Field(None, description="Another UNet of the same shape.")
    sizes: tuple[SizeField, ...] = Field(
        (Size(1024, 576), Size(576, 1024), Size(768, 768)),
        min_length=1,
        description="What a picture may be cropped to; the nearest by aspect ratio is taken.",
    )
    sigma_min: float = Field(
        SIGMA_MIN,
        gt=0,
        lt=SIGMA_MAX,
        description="The least noise that the UNet was trained on; below, its guess is the clip.",
    )
    guidance: tuple[Guidance, Guidance] | None = Field(
        None, description="Guidance of the first and of the last frame, where the endpoint's own is not right."
    )
    tuning: Tuning = Field(Tuning(), description="How it computes.")


class Endpoint(ABC):
    """One fal endpoint: the shape of its input and output, and what it needs of a batch.

    Making one is cheap and loads nothing. ``id`` is fal's endpoint id. ``unit_price`` is in USD, None where fal
    publishes none.
    """

    Input: ClassVar[type[VideoInput]]
    Config: ClassVar[type[EndpointConfig]]
    title: ClassVar[str]
    description: ClassVar[str] = "Makes a short video clip."
    category: ClassVar[str] = "image-to-video"
    tags: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[str] = "video"
    unit_price: ClassVar[Decimal | None] = None
    result_key: ClassVar[str] = "video"
    default_fps: ClassVar[int] = 25

    def __init__(self, id: str, config: EndpointConfig) -> None:
        """Bind the endpoint to its configuration."""
        self.id = id
        self.config = config

    @property
    def deployment(self) -> str:
        """The name of the Serve deployment that holds this endpoint's weights."""
        return self.id.replace("/", "--")

    @property
    def video_endpoint(self) -> str:
        """The endpoint whose model makes the frames: this one, unless it only makes the picture."""
        return self.id

    @property
    def model(self) -> str:
        """The deployment that this endpoint's requests wait for."""
        return self.video_endpoint.replace("/", "--")

    def billable_units(self, gpu_seconds: float, clips: int = 1) -> float:
        """How many of fal's units for this endpoint so many clips are, which took ``gpu_seconds`` together."""
        return float(clips)

    @abstractmethod
    def plan(self, input: VideoInput) -> Plan:
        """What a batch with this input must have in common."""

    @abstractmethod
    def parts(self) -> Mapping[str, Part]:
        """What its weights consist of, by name.

        Raises:
            CheckpointError: The checkpoint does not say.
        """

    @abstractmethod
    def setup(self, device: str) -> None:
        """Load the weights. Called once, in the process that uses them.

        Raises:
            CheckpointError: They are not what the networks want.
        """


class VideoModel(Endpoint):
    """An endpoint with an SVD checkpoint of its own.

    ``guidance`` is that of the first and of the last frame: from 1 to 3, as diffusers has it for this checkpoint.
    """

    Config: ClassVar[type[EndpointConfig]] = VideoConfig
    guidance: ClassVar[tuple[float, float]] = (1.0, 3.0)
    config: VideoConfig
    _sampler: SVDSampler

    def schedule(self, steps: int) -> Schedule:
        """The noise levels of ``steps`` steps, and how to take one: SVD's own, unless a distilled model has others."""
        from deployments.models.schedules import euler_schedule

        return euler_schedule(steps, self.config.sigma_min)

    @abstractmethod
    def steps(self, input: VideoInput) -> int:
        """Sampler steps for this input."""

    def plan(self, input: VideoInput) -> Plan:  # noqa: D102
        largest = max(self.config.sizes, key=lambda size: size.width * size.height)
        return Plan(self.steps(input), largest, frames=self.config.frames)

    @property
    def control(self) -> ControlNetConfig | None:
        """What leads clips by depth maps, if anything does."""
        return None

    def parts(self) -> Mapping[str, Part]:  # noqa: D102
        unet = self.config.unet
        parts = svd_parts(
            self.config.checkpoint, self.config.variant, unet=(unet.checkpoint, unet.file) if unet else None
        )
        if control := self.control:
            parts["controlnet"] = controlnet_part(control.checkpoint, control.folder, control.variant)
        return parts

    def setup(self, device: str) -> None:
        """Load the weights.

        Raises:
            CheckpointError: They are not what the networks want.
            ValueError: The configured sizes do not suit the networks.
        """
        from deployments.models.sampler import SVDSampler

        self._sampler = SVDSampler.load(self.parts(), device, self.control, self.config.tuning)
        self._sampler.on_out_of_memory = functools.partial(OUT_OF_MEMORY.inc, model=self.deployment)
        multiple = self._sampler.size_multiple
        if odd := [str(size) for size in self._warm_up_sizes if size.width % multiple or size.height % multiple]:
            raise ValueError(f"{self.id}: sizes must be multiples of {multiple} pixels, unlike {', '.join(odd)}")

    @property
    def _warm_up_sizes(self) -> tuple[Size, ...]:
        """The endpoint's own sizes, and those that are warmed up beside them."""
        return (*self.config.sizes, *self.config.tuning.warm_up_sizes)

    def warm_up(self) -> None:
        """Make clips of every batch and size that the tuning names, so that no caller waits for what comes but once.

        To be called in the thread that computes: what CUDA's graphs record belongs to it.
        """
        tuning = self.config.tuning
        if not tuning.warm_up:
            return
        with self._sampler.learning():
            for size, count in itertools.product(self._warm_up_sizes, tuning.warm_up):
                for clip in self._warm_up_clips(size):
                    for _ in range(WARM_UP_ROUNDS):
                        self.generate([clip] * count, WARM_UP_STEPS, lambda done: range(max(tuning.warm_up)))

    def _warm_up_clips(self, size: Size) -> list[Clip]:
        """A clip of a size, and one that depth maps lead where there may be such."""
        from PIL import Image

        picture = Image.new("RGB", (size.width, size.height), "grey")
        clip = Clip(picture, seed=0, motion_bucket_id=127, cond_aug=0.02, length=self.config.frames)
        return [clip, replace(clip, depth=(picture,) * self.control.max_maps)] if self.control else [clip]

    def generate(self, clips: Sequence[Clip], steps: int, keep: Keep) -> list[np.ndarray | None]:
        """Animate a batch of pictures of one size.

        Args:
            clips: The batch.
            steps: Sampler steps.
            keep: Called after each step; a member it leaves out is dropped from the batch.

        Returns:
            For each clip, in order, uint8 RGB frames of shape (frames, height, width, 3); None where it was dropped.

        Raises:
            RunnerServerError: A single clip does not fit into the GPU's memory.
        """
        return self._sampler.sample(clips, self.schedule(steps), self.config.guidance or self.guidance, keep)
