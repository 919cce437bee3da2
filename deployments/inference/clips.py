"""What a caller sent becomes a clip that the sampler can take.

image_url ─────────────▶ picture, cropped to the nearest size ──┐
mask_image_url ────────▶ which of its pixels stay ──────────────┼──▶ Clip
control_maps_data_url ─▶ a depth map for each frame ────────────┘
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from deployments.errors import InvalidArchive, Loc, ModelError
from deployments.inference.archives import MAX_ARCHIVE_BYTES, open_maps
from deployments.inference.fetch import FileSource
from deployments.inference.images import MAX_BYTES, fit, fit_mask, open_mask, open_picture
from deployments.models.base import Clip, ControlledInput, ImageToVideoInput, Size, VideoInput

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


def make_clip(input: VideoInput, picture: Image.Image) -> Clip:
    """A clip of a picture that already has its size."""
    return Clip(picture, input.seed, input.motion_bucket_id, input.cond_aug)


async def open_clip(input: ImageToVideoInput, files: FileSource, sizes: Sequence[Size], most_maps: int) -> Clip:
    """Fetch and open all that an input names.

    Args:
        input: The input.
        files: Where its files come from.
        sizes: What its picture may be cropped to.
        most_maps: Depth maps at the most.

    Raises:
        ModelError: A file cannot be had or read, or is out of bounds; ``loc`` is the field that named it.
    """
    with _field("image_url") as loc:
        data = await files.get(input.image_url, loc, MAX_BYTES)
        original = await asyncio.to_thread(open_picture, data)
    clip = make_clip(input, await asyncio.to_thread(fit, original, sizes))
    if not isinstance(input, ControlledInput):
        return clip
    if input.mask_image_url:
        clip = replace(clip, still=await _still(input.mask_image_url, files, original, clip.size))
    if input.control_maps_data_url:
        clip = replace(clip, depth=await _depth(input.control_maps_data_url, files, clip.size, most_maps))
    return clip


async def _still(url: str, files: FileSource, original: Image.Image, size: Size) -> np.ndarray | None:
    """Which pixels stay; None if all may move, because such a mask asks for nothing."""
    with _field("mask_image_url") as loc:
        data = await files.get(url, loc, MAX_BYTES)
        still = await asyncio.to_thread(lambda: fit_mask(open_mask(data), Size(*original.size), size))
    return still if still.any() else None


async def _depth(url: str, files: FileSource, size: Size, most: int) -> tuple[Image.Image, ...]:
    with _field("control_maps_data_url") as loc:
        data = await files.get(url, loc, MAX_ARCHIVE_BYTES, InvalidArchive)
        return await asyncio.to_thread(lambda: tuple(fit(map, [size]) for map in open_maps(data, most)))


@contextmanager
def _field(name: str) -> Iterator[Loc]:
    """The place of a field. Whatever is wrong with its file is told of it."""
    loc = ("body", name)
    try:
        yield loc
    except ModelError as error:
        message, _, ctx = error.args
        raise type(error)(message, loc, ctx) from error
