"""Rows 38 to 62 of the table of bad inputs, by the pure functions and through a decoder's child: both say the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.errors import ServingError
from deployments.inference.archives import open_maps
from deployments.inference.decoder.pool import Decoder
from deployments.inference.images import fit, fit_mask, open_mask, open_picture
from deployments.models.size import Size
from tests.inference.hostile import CASES, HEIGHT, MOST_MAPS, WIDTH, Case, image_bytes, scene

SIZE = Size(WIDTH, HEIGHT)


def open_here(case: Case, data: bytes) -> list[Any]:
    if case.kind == "archive":
        return [fit(map, [SIZE]) for map in open_maps(data, MOST_MAPS)]
    if case.kind == "mask":
        return [fit_mask(open_mask(data), SIZE, SIZE)]
    return [fit(open_picture(data), [SIZE])]


async def open_there(decoder: Decoder, case: Case, data: bytes) -> list[Any]:
    if case.kind == "archive":
        return list(await decoder.maps(data, SIZE, MOST_MAPS))
    if case.kind == "mask":
        return [await decoder.mask(data, SIZE, SIZE)]
    return [(await decoder.picture(data, [SIZE])).pixels]


def corner(opened: Any) -> tuple[int, int, int]:
    """The colour of what stands in the upper left."""
    if isinstance(opened, Image.Image):
        return opened.getpixel((2, 2))  # type: ignore[return-value]
    return (255, 255, 255) if opened[2, 2] else (0, 0, 0)


def detail(error: ServingError) -> dict[str, Any]:
    [detail] = error.body()["detail"]
    return dict(detail)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, and of zipfile
async def test_every_file_of_the_table_is_answered_as_expected(case: Case, decoder: Decoder) -> None:
    data = case.make()
    if case.error is not None:
        with pytest.raises(ServingError) as here:
            open_here(case, data)
        with pytest.raises(ServingError) as there:
            await open_there(decoder, case, data)
        assert here.value.type == case.error
        assert detail(there.value) == detail(here.value)
    else:
        expected, opened = open_here(case, data), await open_there(decoder, case, data)
        assert len(expected) == case.maps
        assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(expected, opened, strict=True))
        if case.colour:
            assert corner(expected[0]) == pytest.approx(case.colour, abs=8)

    good = await decoder.picture(image_bytes(scene()), [SIZE])
    assert good.pixels.tobytes() == scene().tobytes()


def test_every_row_about_files_has_its_case() -> None:
    about_urls = {40}  # where the bytes come from, not what they are
    assert {case.row for case in CASES} == set(range(38, 63)) - about_urls


def test_the_cases_have_different_names() -> None:
    assert len(set(map(str, CASES))) == len(CASES)
