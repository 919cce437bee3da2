"""What every served endpoint says about itself, whichever process asks.

    endpoint ──▶ Input (the caller's JSON) ──▶ Plan (what must be equal inside a batch) ──▶ Clip ──▶ frames

The gateway reads ``Input`` and ``plan`` and never loads a weight; a replica calls ``setup`` once and ``generate``
or ``paint`` many times. So this module and every model file import torch only inside functions.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from deployments.models.sampler import SVDSampler
    from deployments.models.schedules import Schedule

FRAMES = 25
"""Frames in a clip: what SVD XT was trained on."""

MAX_RANDOM_SEED = 2**32 - 2
"""Random seeds stay below this so that JavaScript keeps them exact (and Stability's own API takes them)."""

MAX_SEED = 2**63 - 1
"""The largest seed that a torch generator takes as it is."""

Keep = Callable[[int], Collection[int]]
"""Called after each step with the number of steps done; answers which batch members are still wanted."""


@dataclass(frozen=True, order=True)
class Size:
    """Width and height of a clip in pixels, written ``1024x576``."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read ``WIDTHxHEIGHT``.

        Raises:
            ValueError: The text is not two positive integers joined by ``x``.
        """
        if isinstance(text, cls):
            return text
        width, _, height = str(text).partition("x")
        if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
            raise ValueError(f"a size is written WIDTHxHEIGHT in pixels, not {text!r}")
        return cls(int(width), int(height))


SizeField = Annotated[Size, BeforeValidator(Size.parse), PlainSerializer(str)]


@dataclass(frozen=True)
class Plan:
    """What the members of a batch must have in common, as far as the input alone tells.

    Attributes:
        steps: Sampler steps.
        largest: The largest size the clip can get; what it costs a batch in pixels.
        size: The clip's size, or None until the picture has been fetched, because a clip takes its picture's shape.
    """

    steps: int
    largest: Size
    size: Size | None = None

    @property
    def batch_key(self) -> str:
        """Requests with equal keys may be claimed together."""
        return f"steps={self.steps} size={self.size or 'as the picture'}"

    @property
    def pixel_frames(self) -> int:
        """Pixels times frames: what a clip weighs against a model's batch budget."""
        return self.largest.width * self.largest.height * FRAMES


@dataclass(frozen=True)
class Clip:
    """One member of a batch, ready for the sampler: the picture is RGB and already has the clip's size."""

    picture: Image.Image
    seed: int
    motion_bucket_id: int
    cond_aug: float

    @property
    def size(self) -> Size:
        """The clip's size, which is its picture's."""
        return Size(self.picture.width, self.picture.height)


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


class ImageToVideoInput(VideoInput):
    """What every endpoint that animates a picture takes."""

    image_url: str = Field(
        min_length=1,
        description="The picture to animate: an http(s) URL, a data URI, or a file of this server.",
    )


class EndpointConfig(BaseModel):
    """What ``args.endpoints.<endpoint id>`` in serve_config.yaml may say beside ``model``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str = Field(description="A directory in Hugging Face diffusers layout, or a repository id.")
    revision: str | None = Field(None, description="The repository's commit. Needed with a repository id.")

    @property
    def source(self) -> str:
        """The weights as diffusers wants them. A relative path that is not here is looked for beside the package."""
        beside_package = Path(__file__).parents[2] / self.weights
        return str(beside_package) if not Path(self.weights).exists() and beside_package.exists() else self.weights


class VideoConfig(EndpointConfig):
    """The configuration of an endpoint that animates pictures."""

    sizes: tuple[SizeField, ...] = Field(
        (Size(1024, 576), Size(576, 1024), Size(768, 768)),
        min_length=1,
        description="What a picture may be cropped to; the nearest by aspect ratio is taken.",
    )


class Endpoint(ABC):
    """One fal endpoint: the shape of its input and output, and what it needs of a batch.

    Making one is cheap and loads nothing. ``id`` is fal's endpoint id.
    """

    Input: ClassVar[type[VideoInput]]
    Config: ClassVar[type[EndpointConfig]]
    title: ClassVar[str]
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

    def billable_units(self, gpu_seconds: float) -> float:
        """How many of fal's units for this endpoint a clip is: one, where the unit is a video."""
        return 1.0

    @abstractmethod
    def plan(self, input: VideoInput) -> Plan:
        """What a batch with this input must have in common."""

    @abstractmethod
    def setup(self, device: str) -> None:
        """Load the weights. Called once, in the process that uses them."""


class VideoModel(Endpoint):
    """An endpoint with an SVD checkpoint of its own.

    ``guidance`` is that of the first and of the last frame: from 1 to 3, as diffusers has it for this checkpoint.
    """

    Config: ClassVar[type[EndpointConfig]] = VideoConfig
    guidance: ClassVar[tuple[float, float]] = (1.0, 3.0)
    config: VideoConfig
    _sampler: SVDSampler

    @staticmethod
    def schedule(steps: int) -> Schedule:
        """The noise levels of ``steps`` steps, and how to take one: SVD's own, unless a distilled model has others."""
        from deployments.models.schedules import euler_schedule

        return euler_schedule(steps)

    @abstractmethod
    def steps(self, input: VideoInput) -> int:
        """Sampler steps for this input."""

    def plan(self, input: VideoInput) -> Plan:  # noqa: D102
        return Plan(self.steps(input), max(self.config.sizes, key=lambda size: size.width * size.height))

    def setup(self, device: str) -> None:
        """Load the weights.

        Raises:
            OSError: A part of the checkpoint is missing.
            ValueError: The configured sizes do not suit its networks.
        """
        from deployments.models.sampler import SVDSampler

        self._sampler = SVDSampler.load(self.config.source, self.config.revision, device)
        multiple = self._sampler.size_multiple
        if odd := [str(size) for size in self.config.sizes if size.width % multiple or size.height % multiple]:
            raise ValueError(f"{self.id}: sizes must be multiples of {multiple} pixels, unlike {', '.join(odd)}")

    def generate(self, clips: Sequence[Clip], steps: int, keep: Keep) -> list[np.ndarray | None]:
        """Animate a batch of pictures of one size.

        Args:
            clips: The batch.
            steps: Sampler steps.
            keep: Called after each step; a member it leaves out is dropped from the batch.

        Returns:
            For each clip, in order, uint8 RGB frames of shape (frames, height, width, 3); None where it was dropped.
        """
        return self._sampler.sample(clips, self.schedule(steps), self.guidance, keep)
