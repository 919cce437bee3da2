"""How a model computes: what an operator may say of speed, and the few tools that it takes.

    args.endpoints.<id>.tuning ──▶ Tuning ──▶ SVDSampler.load: precision, layout, attention, compiled forward passes
                                         └──▶ VideoModel.warm_up: a clip of every bucket before the first caller's

Where nothing is said, networks run as the libraries have them. All of it but ``deep_every``, ``decode_chunk`` and the
precisions is the same sums in another order: in float32 frames differ by rounding alone
(``tests/models/test_tuning.py``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from deployments.models.size import Size

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Precision = Literal["float32", "bfloat16", "float16"]

SizeField = Annotated[Size, BeforeValidator(Size.parse), PlainSerializer(str)]
"""A size in a configuration; here, as the decoder's child reads ``size`` and shall not load pydantic."""

MOST_SHAPES = 256
"""How many shapes of its input a network may be compiled for; torch gives up after 8 unless told."""


class Tuning(BaseModel):
    """``args.endpoints.<id>.tuning`` in serve_config.yaml. A change restarts every replica, as any of ``args`` does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    compile: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = Field(
        None,
        description="torch.compile's mode for UNet, ControlNet and decoder, at the shapes of `warm_up`; none, not.",
    )
    warm_up: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="How many clips a batch may have: of each, a batch of each size is made before it is ready."
    )
    warm_up_sizes: tuple[SizeField, ...] = Field((), description="Sizes to warm up beside the endpoint's own.")
    channels_last: bool = Field(False, description="Keep a pixel's channels beside each other in memory.")
    fused_qkv: bool = Field(False, description="Make queries, keys and values by one matrix product.")
    flat_time: bool | None = Field(
        None, description="Convolve along time by convolutions of two dimensions; unless said, on a CPU alone."
    )
    attention: Literal["flash", "cudnn", "efficient", "math"] | None = Field(
        None,
        description="Which of torch's attentions goes first, where it takes the shape; torch's choice unless said.",
    )
    cudnn_benchmark: bool = Field(
        False,
        description="Have cuDNN time its convolutions the first time that it meets a shape, and keep the fastest.",
    )
    dtype: Precision | None = Field(None, description="Of the networks; bfloat16 on a GPU, float32 on a CPU.")
    decode_dtype: Precision | None = Field(None, description="Of the VAE's decoder; as `dtype` unless said.")
    decode_chunk: int | None = Field(
        None, ge=1, description="Frames decoded together at the most; 8 on a GPU, all on a CPU. It changes the pixels."
    )
    deep_every: int = Field(
        1, ge=1, description="Lossy above 1: what is beneath the UNet's outermost level is computed in every n-th step."
    )

    @model_validator(mode="after")
    def _check_warm_up(self) -> Self:
        if self.compile and not self.warm_up:
            raise ValueError("compile wants warm_up, such as [1]: only what was warmed up runs compiled")
        return self

    def dtypes(self, device: str) -> tuple[torch.dtype, torch.dtype]:
        """The precision of the networks, and of the decoder, on a device."""
        import torch

        of_networks = self.dtype or ("float32" if torch.device(device).type == "cpu" else "bfloat16")
        return getattr(torch, of_networks), getattr(torch, self.decode_dtype or of_networks)

    @contextlib.contextmanager
    def choosing_kernels(self) -> Iterator[None]:
        """While it is entered, attention and convolution take the kernels that the operator wants."""
        from torch.backends import cudnn

        before = cudnn.benchmark
        cudnn.benchmark = before or self.cudnn_benchmark
        try:
            with self._attending():
                yield
        finally:
            cudnn.benchmark = before

    def _attending(self) -> contextlib.AbstractContextManager[Any]:
        """While it is entered, attention is computed as the operator wants it, where the shape allows."""
        if self.attention is None:
            return contextlib.nullcontext()
        from torch.nn.attention import SDPBackend, sdpa_kernel

        first = {
            "flash": SDPBackend.FLASH_ATTENTION,
            "cudnn": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION,
            "math": SDPBackend.MATH,
        }[self.attention]
        others = [each for each in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH) if each != first]
        return sdpa_kernel([first, *others], set_priority=True)


class Compiled:
    """A function of tensors, compiled for the shapes that it sees while it learns; of others it runs as it is.

    So no caller waits for a compiler: at full size a shape takes minutes.

    Args:
        run: The function; one graph of torch's, without a break.
        mode: As torch.compile's. With CUDA graphs, what it answers is copied, as the next replay writes over it.
    """

    def __init__(self, run: Callable[..., Any], mode: str) -> None:
        """Compile nothing yet."""
        import torch
        import torch._dynamo

        torch._dynamo.config.recompile_limit = MOST_SHAPES
        self._run = run
        self._compiled = torch.compile(run, mode=mode, fullgraph=True, dynamic=False)
        self._has_graphs = mode in ("reduce-overhead", "max-autotune")
        self._known: set[Any] = set()
        self.learning = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function answers."""
        import torch

        shape = _shape_of((args, sorted(kwargs.items())))
        if self.learning:
            self._known.add(shape)
        if shape not in self._known:
            return self._run(*args, **kwargs)
        if not self._has_graphs:
            return self._compiled(*args, **kwargs)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return _copied(self._compiled(*args, **kwargs))


def keep_compiled(folder: Path) -> Path | None:
    """Have torch keep what it compiles below a folder, for processes that come later; where that is.

    What another torch, GPU or diffusers compiled lies elsewhere below it, so that a folder may be shared and cleaned;
    within a place torch itself tells what was compiled of which code. Call it before anything is compiled.

    Returns:
        The place; None where nothing can be kept, which costs time and is no reason to end a replica.
    """
    place = folder / cache_key()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        logger.warning("what is compiled will not be kept: %s", error)
        return None
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place)
    return place


def cache_key() -> str:
    """What all compiled code depends on: torch, the GPU, and the library of the networks."""
    import diffusers
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return "-".join(["torch", torch.__version__, "diffusers", diffusers.__version__, *gpu.split()])


def _shape_of(value: Any) -> Any:
    """What a compiled graph is fixed for: shapes and kinds of tensors, and all that is none."""
    if isinstance(value, list | tuple):
        return tuple(_shape_of(each) for each in value)
    return (value.shape, value.dtype) if hasattr(value, "dtype") else value


def _copied(answer: Any) -> Any:
    if isinstance(answer, list | tuple):
        return tuple(_copied(each) for each in answer)
    return answer.clone()
