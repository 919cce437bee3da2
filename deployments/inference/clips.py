"""What a caller sent becomes a clip that the sampler can take.

image_url ─────────────▶ picture, cropped to the nearest size ──┐
mask_image_url ────────▶ which of its pixels stay ──────────────┼──▶ Clip
control_maps_data_url ─▶ a depth map for each frame ────────────┘

The bytes of a file are opened in the decoder's processes. Here are only pixels, at the clip's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from deployments.errors import InvalidArchive, Loc, ModelError
from deployments.inference.archives import MAX_ARCHIVE_BYTES
from deployments.inference.decoder.pool import Decoder
from deployments.inference.fetch import FileSource
from deployments.inference.images import MAX_BYTES
from deployments.models.base import Clip, ControlledInput, ImageToVideoInput, Size, VideoInput

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


def make_clip(input: VideoInput, picture: Image.Image, frames: int) -> Clip:
    """A clip of a picture that already has its size."""
    return Clip(picture, input.seed, input.motion_bucket_id, input.cond_aug, length=frames)


async def open_clip(
    input: ImageToVideoInput, files: FileSource, decoder: Decoder, sizes: Sequence[Size], frames: int
) -> Clip:
    """Fetch and open all that an input names.

    Args:
        input: The input.
        files: Where its files come from.
        decoder: What opens them.
        sizes: What its picture may be cropped to.
        frames: How many the clip gets; where depth maps lead it, as many as there are, and this is the most.

    Raises:
        ModelError: A file cannot be had or read, or is out of bounds; ``loc`` is the field that named it.
        RunnerDisconnected: No process could be had that opens it.
    """
    with _field("image_url") as loc:
        picture = await decoder.picture(await files.get(input.image_url, loc, MAX_BYTES), sizes)
    clip = make_clip(input, picture.pixels, frames)
    if not isinstance(input, ControlledInput):
        return clip
    if url := input.mask_image_url:
        clip = replace(clip, still=await _still(url, files, decoder, picture.original, clip.size))
    if url := input.control_maps_data_url:
        clip = replace(clip, depth=await _depth(url, files, decoder, clip.size, frames))
    return clip


async def _still(url: str, files: FileSource, decoder: Decoder, original: Size, size: Size) -> np.ndarray | None:
    """Which pixels stay; None if all may move, because such a mask asks for nothing."""
    with _field("mask_image_url") as loc:
        still = await decoder.mask(await files.get(url, loc, MAX_BYTES), original, size)
    return still if still.any() else None


async def _depth(url: str, files: FileSource, decoder: Decoder, size: Size, most: int) -> tuple[Image.Image, ...]:
    with _field("control_maps_data_url") as loc:
        return await decoder.maps(await files.get(url, loc, MAX_ARCHIVE_BYTES, InvalidArchive), size, most)


@contextmanager
def _field(name: str) -> Iterator[Loc]:
    """The place of a field. Whatever is wrong with its file is told of it."""
    loc = ("body", name)
    try:
        yield loc
    except ModelError as error:
        message, _, ctx = error.args
        raise type(error)(message, loc, ctx) from error
