from __future__ import annotations

import io
import random
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deployments.errors import (
    ArchiveFileCountBelowMinimum,
    ArchiveFileCountExceedsMaximum,
    InvalidArchive,
    ModelError,
)
from deployments.inference import archives, images
from deployments.inference.archives import MAX_ARCHIVE_BYTES, MAX_ENTRIES, open_maps
from deployments.inference.images import MAX_BYTES, Budget
from tests.inference.hostile import (
    JUNK,
    NO_ARCHIVE,
    ODD_NAMES,
    PACKERS,
    TAR_SPECIALS,
    countless_scans,
    doubled_zip,
    encrypted_zip,
    endless_tar,
    flat_bomb,
    grey,
    gzip_bomb,
    image_bytes,
    inside_zip,
    lying_zip,
    nested_zip,
    piped_zip,
    sparse_terabyte,
    tar_entry,
    tar_gz,
    tar_of,
    tarred,
    with_64_bit_directory,
    zipped,
)


@pytest.fixture(params=PACKERS)
def pack(request: pytest.FixtureRequest) -> Any:
    """Makes an archive of files, once in each format."""
    return PACKERS[request.param]


def levels(data: bytes, most: int = 25) -> list[int]:
    """The grey of each map in an archive."""
    return [int(np.asarray(picture)[0, 0, 0]) for picture in open_maps(data, most)]


def refuse(data: bytes, error: type[ModelError], most: int = 25) -> dict[str, Any]:
    """How an archive is refused."""
    with pytest.raises(error) as caught:
        list(open_maps(data, most))
    [detail] = caught.value.body()["detail"]
    return dict(detail)


# ---------------------------------------------------------------- pictures


def test_the_maps_of_an_archive_are_opened(pack: Any) -> None:
    data = pack([("1.png", grey(10)), ("2.jpg", grey(20, "JPEG")), ("3.tiff", grey(30, "TIFF"))])

    maps = list(open_maps(data, 3))
    assert [(picture.mode, picture.size) for picture in maps] == [("RGB", (16, 16))] * 3
    assert levels(data) == [10, 20, 30]


@pytest.mark.parametrize(
    ("extension", "format"),
    [
        ("jpg", "JPEG"),
        ("jpeg", "JPEG"),
        ("png", "PNG"),
        ("bmp", "BMP"),
        ("gif", "GIF"),
        ("tif", "TIFF"),
        ("tiff", "TIFF"),
        ("webp", "WEBP"),
        ("PNG", "PNG"),
        ("Jpg", "JPEG"),
        ("png", "JPEG"),
    ],
)
def test_every_extension_is_read_and_the_bytes_say_what_it_is(pack: Any, extension: str, format: str) -> None:
    assert abs(levels(pack([(f"a.{extension}", grey(90, format))]))[0] - 90) <= 1


def test_sixteen_bits_are_scaled_and_colours_kept(pack: Any) -> None:
    deep = image_bytes(Image.frombytes("I;16", (16, 16), struct.pack("<H", 0x1234) * 256))
    red = image_bytes(Image.new("RGB", (16, 16), "red"))

    maps = list(open_maps(pack([("1.png", deep), ("2.png", red)]), 2))
    assert [picture.getpixel((0, 0)) for picture in maps] == [(0x12, 0x12, 0x12), (255, 0, 0)]


def test_maps_may_have_any_size(pack: Any) -> None:
    maps = open_maps(pack([("1.png", grey(0, size=(40, 20))), ("2.png", grey(0, size=(16, 99)))]), 2)

    assert [picture.size for picture in maps] == [(40, 20), (16, 99)]


@pytest.mark.parametrize("content", [b"", b"text", grey(0)[:40], image_bytes(format="PDF"), grey(0, size=(4, 4))])
def test_one_map_that_cannot_be_read_is_named(pack: Any, content: bytes) -> None:
    detail = refuse(pack([("1.png", grey(0)), ("depth/2.png", content)]), InvalidArchive)

    assert detail["msg"].startswith("depth/2.png: ")
    assert detail["type"] == "invalid_archive"
    assert detail["ctx"] == {"supported_extensions": [".zip", ".tar", ".tar.gz"]}


def test_a_long_or_odd_name_is_told_short_and_printable(pack: Any) -> None:
    name = "\u202e\n" + "x" * 4000 + ".png"

    message = refuse(pack([(name, b"broken")]), InvalidArchive)["msg"]
    assert message.startswith("??xxxx")
    assert len(message) < 200
    assert message.isprintable()


def test_maps_are_opened_one_by_one(pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once they may take gigabytes."""
    opened = []

    def open_picture(data: bytes, budget: Budget) -> Image.Image:
        opened.append(data)
        return Image.open(io.BytesIO(data))

    monkeypatch.setattr(archives, "open_picture", open_picture)
    maps = open_maps(pack([("1.png", grey(1)), ("2.png", grey(2))]), 2)
    assert opened == []
    next(maps)
    assert opened == [grey(1)]


def test_the_scans_of_all_maps_are_counted_together(pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone would be read: with so many scans, 25 maps take 25 times as long as a picture may."""
    scanned = countless_scans(20, side=32)
    monkeypatch.setattr(images, "MAX_SCANNED_PIXELS", 3 * 32 * 32 * scanned.count(b"\xff\xda"))
    files = [(f"{number}.jpg", scanned) for number in range(4)]

    assert len(list(open_maps(pack(files[:3]), 4))) == 3
    assert "3.jpg: At most" in refuse(pack(files), InvalidArchive)["msg"]


def test_as_many_maps_as_are_read_may_be_as_large_as_a_picture() -> None:
    """Grey JPEGs of several scans, as tools save them."""
    scans = image_bytes(Image.new("L", (32, 32)), "JPEG", progressive=True).count(b"\xff\xda")
    assert 25 * images.MAX_PIXELS * scans <= images.MAX_SCANNED_PIXELS


# ---------------------------------------------------------------- order and names


@pytest.mark.parametrize("name", ODD_NAMES)
def test_maps_come_in_the_order_of_the_code_points_of_their_names(pack: Any, name: str) -> None:
    files = [(name, grey(10 + index)) for index, name in enumerate(ODD_NAMES[name])]

    assert levels(pack(files)) == levels(pack(reversed(files))) == [10 + index for index in range(len(files))]


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_maps_of_one_name_are_all_kept(pack: Any) -> None:
    assert levels(pack([("1.png", grey(1)), ("1.png", grey(2)), ("0.png", grey(0))])) == [0, 1, 2]


def test_a_name_in_another_encoding_is_no_obstacle() -> None:
    data = tarred([("\udcff.png", grey(7))], tarfile.GNU_FORMAT)

    assert levels(data) == [7]
    assert refuse(tarred([("\udcff.png", b"")], tarfile.GNU_FORMAT), InvalidArchive)["msg"].startswith("?.png: ")


@given(
    packer=st.sampled_from(sorted(PACKERS)),
    junk=st.sets(st.sampled_from(sorted(JUNK))),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_whatever_is_no_map_is_ignored(packer: str, junk: set[str], order: random.Random) -> None:
    files = [(f"depth/{index:02}.png", grey(index)) for index in range(5)]
    mixed = [*files, *((name, JUNK[name]) for name in junk)]
    order.shuffle(mixed)

    assert levels(PACKERS[packer](mixed), 5) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", TAR_SPECIALS)
def test_what_is_no_plain_file_in_a_tar_is_ignored(name: str) -> None:
    plain = tar_entry("1.png", size=len(grey(1)), mode=0o6777, uid=0)

    assert levels(tar_of([(TAR_SPECIALS[name], b""), (plain, grey(1))])) == [1]


def test_a_sparse_file_of_a_terabyte_is_ignored() -> None:
    assert levels(sparse_terabyte()) == [1]


# ---------------------------------------------------------------- counts

COUNTED = [".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"]


@pytest.mark.parametrize("junk", [[], ["notes.txt"], ["__MACOSX/a.png", ".DS_Store", "depth/"], ["inner.zip"]])
def test_an_archive_needs_a_map(pack: Any, junk: list[str]) -> None:
    detail = refuse(pack((name, JUNK[name]) for name in junk), ArchiveFileCountBelowMinimum)

    assert detail["type"] == "archive_file_count_below_minimum"
    assert detail["ctx"] == {"min_count": 1, "provided_count": 0, "supported_extensions": COUNTED}


@pytest.mark.parametrize("count", [1, 24, 25])
def test_an_archive_may_hold_up_to_the_most_maps(pack: Any, count: int) -> None:
    assert len(levels(pack((f"{index}.png", grey(0)) for index in range(count)), 25)) == count


@pytest.mark.parametrize("count", [26, 1000])
def test_an_archive_holds_no_more_and_is_counted_before_it_is_read(pack: Any, count: int) -> None:
    detail = refuse(pack((f"{index}.png", b"broken") for index in range(count)), ArchiveFileCountExceedsMaximum)

    assert detail["type"] == "archive_file_count_exceeds_maximum"
    assert detail["ctx"] == {"max_count": 25, "provided_count": count, "supported_extensions": COUNTED}


def test_a_hundred_thousand_files_are_counted() -> None:
    data = zipped(((f"{index}.png", b"") for index in range(MAX_ENTRIES)), zipfile.ZIP_STORED)

    assert refuse(data, ArchiveFileCountExceedsMaximum)["ctx"]["provided_count"] == MAX_ENTRIES


def test_more_entries_than_that_are_not_looked_at(pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_ENTRIES", 10)

    assert levels(pack([("1.png", grey(1)), *((f"{index}.txt", b"") for index in range(9))])) == [1]
    assert "10 entries" in refuse(pack((f"{index}.txt", b"") for index in range(11)), InvalidArchive)["msg"]


def test_an_endless_tar_is_noticed_before_its_entries_are_counted() -> None:
    """A negative size leads back to its own header; some versions of Python go there again and again."""
    assert "broken" in refuse(endless_tar(), InvalidArchive)["msg"]


# ---------------------------------------------------------------- archives


def test_an_archive_is_what_its_bytes_say() -> None:
    """A zip inside of a tar makes no zip of it, though it stands where a zip's directory would."""
    data = tarred([("1.png", grey(1)), ("2.zip", zipped([("3.png", grey(3))], zipfile.ZIP_STORED))])

    assert levels(data) == [1]


@pytest.mark.parametrize("name", ["a.png", "x" * 150 + ".png", "depth/" * 30 + "a.png"])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_tar_is_read(format: int, name: str) -> None:
    if format == tarfile.USTAR_FORMAT and len(name) > 100:
        name = "depth/" * 30 + "a.png"

    assert levels(tarred([(name, grey(1))], format)) == [1]


def test_a_zip_may_be_stored_and_of_64_bits_and_have_its_sizes_behind_its_files() -> None:
    files = [("1.png", grey(1)), ("2.png", grey(2))]

    piped = piped_zip(files)

    assert levels(zipped(files, zipfile.ZIP_STORED)) == [1, 2]
    assert levels(zipped(files, force_zip64=True)) == [1, 2]
    assert levels(with_64_bit_directory(zipped(files))) == [1, 2]
    assert piped[6] & 8
    assert levels(piped) == [1, 2]


@pytest.mark.parametrize("name", NO_ARCHIVE)
def test_what_is_no_archive_is_refused(name: str) -> None:
    detail = refuse(NO_ARCHIVE[name], InvalidArchive)

    assert (detail["type"], detail["ctx"]) == ("invalid_archive", {"supported_extensions": [".zip", ".tar", ".tar.gz"]})


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_is_packed_in_another_way_is_refused(compression: int) -> None:
    refuse(zipped([("1.png", grey(1))], compression), InvalidArchive)


def test_an_encrypted_zip_is_refused() -> None:
    assert refuse(encrypted_zip(), InvalidArchive)["msg"] == "1.png: It is encrypted"


def test_half_an_archive_is_refused(pack: Any) -> None:
    noise = Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3))
    data = pack([("1.png", image_bytes(noise)), ("2.png", image_bytes(noise))])

    for length in (len(data) // 4, len(data) // 2, len(data) * 3 // 4):
        refuse(data[:length], InvalidArchive)


def test_a_broken_header_in_a_tar_does_not_end_it() -> None:
    data = bytearray(tarred([("1.png", grey(1)), ("2.png", grey(2))]))
    second = data.index(b"2.png")
    data[second : second + 5] = b"3.txt"

    refuse(bytes(data), InvalidArchive)


def test_a_changed_byte_is_noticed() -> None:
    for data, place in ((zipped([("1.png", grey(1))]), 60), (tar_gz([("1.png", grey(1))]), -8)):
        broken = bytearray(data)
        broken[place] ^= 1
        refuse(bytes(broken), InvalidArchive)


@given(
    packer=st.sampled_from(sorted(PACKERS)),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=8),
    cut=st.just(0) | st.integers(0, 600),
)
@settings(max_examples=300, deadline=None, derandomize=True)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_whatever_is_wrong_with_an_archive_has_a_name(packer: str, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(PACKERS[packer]([("1.png", grey(1)), ("2.png", grey(2))]))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        maps = list(open_maps(bytes(data[: max(0, len(data) - cut)]), 25))
    except ModelError:
        return
    assert all(picture.mode == "RGB" for picture in maps)


# ---------------------------------------------------------------- bombs


def test_a_member_has_the_limit_of_any_picture(pack: Any) -> None:
    padding = bytes(MAX_BYTES - len(grey(1)))

    assert levels(pack([("1.png", grey(1) + padding)])) == [1]
    assert (
        f"1.png has more than {MAX_BYTES} bytes"
        in refuse(pack([("1.png", grey(1) + padding + b"\0")]), InvalidArchive)["msg"]
    )


@pytest.mark.parametrize("packer", ["zip", "tar.gz"])
def test_all_members_together_have_a_limit(packer: str) -> None:
    files = [(f"{index}.png", grey(1) + bytes(18 * 2**20)) for index in range(6)]

    data = PACKERS[packer](files)
    assert len(data) < MAX_ARCHIVE_BYTES // 100
    assert f"more than {MAX_ARCHIVE_BYTES} bytes" in refuse(data, InvalidArchive)["msg"]


def test_a_gzip_bomb_is_not_unpacked() -> None:
    data = gzip_bomb()

    tracemalloc.start()
    refuse(data, InvalidArchive)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_ARCHIVE_BYTES


@pytest.mark.parametrize("said", [10, MAX_BYTES])
def test_a_member_of_another_size_than_it_is_said_to_be_is_refused(said: int) -> None:
    for content in (grey(1), bytes(2 * MAX_BYTES)):
        data = lying_zip(content, said)

        tracemalloc.start()
        refuse(data, InvalidArchive)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * said + 2**20


def test_a_short_member_that_is_said_to_be_long_is_refused() -> None:
    assert "another size" in refuse(lying_zip(grey(1), len(grey(1)) + 1), InvalidArchive)["msg"]


@pytest.mark.parametrize("bomb", [doubled_zip, inside_zip, flat_bomb])
def test_files_that_overlap_are_refused(bomb: Callable[[], bytes]) -> None:
    """Entries of the directory that lead to the same bytes, or into another's."""
    assert "overlap" in refuse(bomb(), InvalidArchive)["msg"]


def test_an_archive_inside_of_an_archive_is_never_opened() -> None:
    refuse(nested_zip(), ArchiveFileCountBelowMinimum)
