"""An input with its files becomes a clip."""

from __future__ import annotations

import base64
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.errors import (
    ArchiveFileCountBelowMinimum,
    ArchiveFileCountExceedsMaximum,
    FileDownloadError,
    ImageLoadError,
    ImageTooLarge,
    ImageTooSmall,
    InvalidArchive,
    ModelError,
)
from deployments.inference.clips import open_clip
from deployments.inference.decoder.pool import Decoder
from deployments.inference.fetch import FileSource
from deployments.models.base import Clip, Size
from deployments.models.fast_svd_lcm import FastSVDLCMInput
from deployments.models.svd import SVDInput
from deployments.storage import FileStorage
from tests.inference.conftest import image_bytes

WIDE, TALL = Size(112, 64), Size(64, 112)

pytestmark = pytest.mark.asyncio(loop_scope="session")  # as the decoder's


@pytest.fixture
def files(tmp_path: Path) -> FileSource:
    return FileSource(FileStorage(tmp_path / "files", "http://127.0.0.1:8000"))


def uri(data: bytes, type: str = "image/png") -> str:
    return f"data:{type};base64,{base64.b64encode(data).decode()}"


def picture_uri(picture: Image.Image) -> str:
    return uri(image_bytes(picture))


def archive_uri(*pictures: Image.Image) -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index, picture in enumerate(pictures):
            archive.writestr(f"{index:03}.png", image_bytes(picture))
    return uri(buffer.getvalue(), "application/zip")


def split(width: int, height: int, left: str = "white", right: str = "black") -> Image.Image:
    picture = Image.new("RGB", (width, height), right)
    picture.paste(left, (0, 0, width // 2, height))
    return picture


async def svd_clip(files: FileSource, decoder: Decoder, picture: Image.Image, frames: int = 25, **fields: Any) -> Clip:
    input = SVDInput(image_url=picture_uri(picture), seed=7, motion_bucket_id=3, cond_aug=0.5, **fields)
    return await open_clip(input, files, decoder, (WIDE, TALL), frames)


async def test_a_picture_alone_is_a_clip_that_may_move_everywhere(files: FileSource, decoder: Decoder) -> None:
    input = FastSVDLCMInput(image_url=picture_uri(split(224, 128, "red", "blue")), seed=7)
    clip = await open_clip(input, files, decoder, (WIDE, TALL), 25)

    assert (clip.size, clip.seed, clip.motion_bucket_id, clip.cond_aug) == (WIDE, 7, 127, 0.02)
    assert (clip.still, clip.depth, clip.frames) == (None, (), 25)
    assert clip.picture.getpixel((10, 30)) == (255, 0, 0)


async def test_a_clip_has_as_many_frames_as_its_plan_says(files: FileSource, decoder: Decoder) -> None:
    assert (await svd_clip(files, decoder, Image.new("RGB", (64, 112)), frames=14)).frames == 14


async def test_all_of_the_input_is_in_the_clip(files: FileSource, decoder: Decoder) -> None:
    clip = await svd_clip(files, decoder, Image.new("RGB", (64, 112)))
    assert (clip.size, clip.seed, clip.motion_bucket_id, clip.cond_aug) == (TALL, 7, 3, 0.5)


@pytest.mark.parametrize("mask_size", [(224, 128), (112, 64), (560, 320), (128, 128), (7, 300)])
async def test_white_stays_and_black_moves_whatever_the_masks_size(
    files: FileSource, decoder: Decoder, mask_size: tuple[int, int]
) -> None:
    clip = await svd_clip(files, decoder, Image.new("RGB", (224, 128)), mask_image_url=picture_uri(split(*mask_size)))

    assert clip.still is not None
    assert (clip.still.dtype, clip.still.shape) == (np.bool_, (64, 112))
    edge = 2 if mask_size[0] > 7 else 12  # seven pixels across have their border where they can
    assert clip.still[:, : 56 - edge].all()
    assert not clip.still[:, 56 + edge :].any()


async def test_a_mask_is_cropped_as_its_picture(files: FileSource, decoder: Decoder) -> None:
    """The square picture loses its upper and lower parts, and so does the mask that lies on it."""
    mask = Image.new("L", (200, 200), 0)
    mask.paste(255, (0, 0, 200, 40))  # all of it is cropped away
    mask.paste(255, (0, 90, 100, 110))

    clip = await svd_clip(files, decoder, Image.new("RGB", (200, 200)), mask_image_url=picture_uri(mask))

    assert clip.size in (WIDE, TALL)
    assert clip.still is not None
    rows, columns = clip.still.any(axis=1).nonzero()[0], clip.still.any(axis=0).nonzero()[0]
    centre = clip.size.height / 2
    assert abs(rows.min() - centre) <= 12 and abs(rows.max() - centre) <= 12
    assert columns.max() < clip.size.width / 2 + 2


async def test_an_all_black_mask_asks_for_nothing(files: FileSource, decoder: Decoder) -> None:
    clip = await svd_clip(
        files, decoder, Image.new("RGB", (112, 64)), mask_image_url=picture_uri(Image.new("L", (112, 64), 0))
    )
    assert clip.still is None


async def test_an_all_white_mask_lets_nothing_move(files: FileSource, decoder: Decoder) -> None:
    clip = await svd_clip(
        files, decoder, Image.new("RGB", (112, 64)), mask_image_url=picture_uri(Image.new("L", (9, 9), 255))
    )
    assert clip.is_static


async def test_a_soft_mask_stays_from_the_middle_grey_on(files: FileSource, decoder: Decoder) -> None:
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 112).astype(np.uint8), (64, 1)))
    clip = await svd_clip(files, decoder, Image.new("RGB", (112, 64)), mask_image_url=picture_uri(ramp))

    assert clip.still is not None
    assert not clip.still[:, :56].any()
    assert clip.still[:, 57:].all()


async def test_there_is_a_frame_for_each_map_in_order_and_of_the_clips_size(
    files: FileSource, decoder: Decoder
) -> None:
    maps = [Image.new("L", size, shade) for size, shade in (((64, 64), 10), ((300, 20), 120), ((112, 64), 250))]
    clip = await svd_clip(files, decoder, Image.new("RGB", (112, 64)), control_maps_data_url=archive_uri(*maps))

    assert clip.frames == 3
    assert [map.size for map in clip.depth] == [(112, 64)] * 3
    assert [map.getpixel((50, 30)) for map in clip.depth] == [(10,) * 3, (120,) * 3, (250,) * 3]


async def test_a_mask_and_maps_go_together(files: FileSource, decoder: Decoder) -> None:
    clip = await svd_clip(
        files,
        decoder,
        Image.new("RGB", (112, 64)),
        mask_image_url=picture_uri(split(112, 64)),
        control_maps_data_url=archive_uri(*[Image.new("L", (112, 64))] * 2),
    )
    assert clip.still is not None and clip.frames == 2


@pytest.mark.parametrize("count", [25, 26])
async def test_maps_are_counted(files: FileSource, decoder: Decoder, count: int) -> None:
    maps = archive_uri(*[Image.new("L", (16, 16))] * count)
    if count == 25:
        assert (await svd_clip(files, decoder, Image.new("RGB", (112, 64)), control_maps_data_url=maps)).frames == 25
        return
    with pytest.raises(ArchiveFileCountExceedsMaximum) as caught:
        await svd_clip(files, decoder, Image.new("RGB", (112, 64)), control_maps_data_url=maps)
    assert caught.value.body()["detail"][0]["loc"] == ["body", "control_maps_data_url"]


@pytest.mark.parametrize(
    ("field", "url", "error"),
    [
        ("image_url", "data:image/png;base64,AAAA", ImageLoadError),
        ("image_url", "data:image/png;base64,%%%", ImageLoadError),
        ("image_url", "http://127.0.0.1:8000/files/nothing.png", FileDownloadError),
        ("image_url", picture_uri(Image.new("L", (8, 8))), ImageTooSmall),
        ("mask_image_url", picture_uri(Image.new("L", (20_000, 1))), ImageTooLarge),
        ("mask_image_url", "data:image/png;base64,AAAA", ImageLoadError),
        ("mask_image_url", "data:image/png;base64,%%%", ImageLoadError),
        ("mask_image_url", "http://127.0.0.1:8000/files/nothing.png", FileDownloadError),
        ("control_maps_data_url", "data:application/zip;base64,AAAA", InvalidArchive),
        ("control_maps_data_url", "data:application/zip;base64,%%%", InvalidArchive),
        ("control_maps_data_url", "http://127.0.0.1:8000/files/nothing.zip", FileDownloadError),
        ("control_maps_data_url", archive_uri(), ArchiveFileCountBelowMinimum),
        ("control_maps_data_url", archive_uri(Image.new("L", (99, 99)), Image.new("L", (8, 8))), InvalidArchive),
    ],
)
async def test_what_is_wrong_is_told_of_the_field_that_named_it(
    files: FileSource, decoder: Decoder, field: str, url: str, error: type[ModelError]
) -> None:
    input = SVDInput.model_validate({"image_url": picture_uri(Image.new("RGB", (112, 64))), field: url})

    with pytest.raises(error) as caught:
        await open_clip(input, files, decoder, (WIDE, TALL), 25)
    assert caught.value.body()["detail"][0]["loc"] == ["body", field]
