from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterable
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
from deployments.inference import archives
from deployments.inference.archives import MAX_ARCHIVE_BYTES, MAX_ENTRIES, open_maps
from deployments.inference.images import MAX_BYTES
from tests.inference.conftest import image_bytes

Files = Iterable[tuple[str, bytes]]


def grey(level: int, format: str = "PNG", size: tuple[int, int] = (16, 16)) -> bytes:
    return image_bytes(Image.new("L", size, level), format)


def zipped(files: Files, compression: int = zipfile.ZIP_DEFLATED, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files:
            with archive.open(zip_entry(name, compression), "w", **options) as stream:
                stream.write(content)
    return buffer.getvalue()


def zip_entry(name: str, compression: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.compress_type = compression
    return entry


def tarred(files: Files, format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, content in files:
            archive.addfile(tar_entry(name, size=len(content)), io.BytesIO(content))
    return buffer.getvalue()


def tar_entry(name: str, **attributes: Any) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(entry, attribute, value)
    return entry


def tar_gz(files: Files) -> bytes:
    return gzip.compress(tarred(files))


PACKERS = {"zip": zipped, "tar": tarred, "tar.gz": tar_gz}


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

    def open_picture(data: bytes) -> Image.Image:
        opened.append(data)
        return Image.open(io.BytesIO(data))

    monkeypatch.setattr(archives, "open_picture", open_picture)
    maps = open_maps(pack([("1.png", grey(1)), ("2.png", grey(2))]), 2)
    assert opened == []
    next(maps)
    assert opened == [grey(1)]


# ---------------------------------------------------------------- order and names


@pytest.mark.parametrize(
    "names",
    [
        ["10.png", "9.png"],
        ["A.png", "a.png"],
        ["a/b.png", "b/a.png"],
        ["e\u0301.png", "z.png", "\u00e9.png"],
        ["\U0001f600.png", "\U0001f601.png"],
        ["\uffff.png", "\U00010000.png"],
        ["./1.png", "0.png"],
        ["a\\b.png", "ab.png"],
        ["x" * 4000 + "1.png", "x" * 4000 + "2.png"],
    ],
)
def test_maps_come_in_the_order_of_the_code_points_of_their_names(pack: Any, names: list[str]) -> None:
    files = [(name, grey(10 + index)) for index, name in enumerate(names)]

    assert levels(pack(files)) == levels(pack(reversed(files))) == [10 + index for index in range(len(names))]


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_maps_of_one_name_are_all_kept(pack: Any) -> None:
    assert levels(pack([("1.png", grey(1)), ("1.png", grey(2)), ("0.png", grey(0))])) == [0, 1, 2]


def test_a_name_in_another_encoding_is_no_obstacle() -> None:
    data = tarred([("\udcff.png", grey(7))], tarfile.GNU_FORMAT)

    assert levels(data) == [7]
    assert refuse(tarred([("\udcff.png", b"")], tarfile.GNU_FORMAT), InvalidArchive)["msg"].startswith("?.png: ")


JUNK = {
    "__MACOSX/a.png": b"junk",
    "__MACOSX/depth/._1.png": b"junk",
    "._1.png": b"junk",
    ".DS_Store": b"junk",
    ".png": b"junk",
    ".cache/thumbnail.png": b"junk",
    "depth/": b"",
    "depth.png/": b"",
    "notes.txt": b"junk",
    "no extension": b"junk",
    "png": b"junk",
    "1.png.bak": b"junk",
    "1.avif": b"junk",
    "inner.zip": zipped([("1.png", grey(99))]),
    "inner.tar": tarred([("1.png", grey(99))]),
    "inner.tar.gz": tar_gz([("1.png", grey(99))]),
    "../../etc/cron.d/x.png": b"junk",
    "/etc/x.png": b"junk",
}


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


@pytest.mark.parametrize(
    "entry",
    [
        tar_entry("2.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        tar_entry("2.png", type=tarfile.SYMTYPE, linkname="1.png"),
        tar_entry("2.png", type=tarfile.LNKTYPE, linkname="1.png"),
        tar_entry("2.png", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        tar_entry("2.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        tar_entry("2.png", type=tarfile.BLKTYPE, devmajor=8),
        tar_entry("2.png", type=tarfile.FIFOTYPE),
        tar_entry("2.png", type=tarfile.DIRTYPE),
    ],
    ids=lambda entry: f"{entry.type.decode()} {entry.linkname}",
)
def test_what_is_no_plain_file_in_a_tar_is_ignored(entry: tarfile.TarInfo) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(entry)
        archive.addfile(tar_entry("1.png", size=len(grey(1)), mode=0o6777, uid=0), io.BytesIO(grey(1)))

    assert levels(buffer.getvalue()) == [1]


def test_a_sparse_file_of_a_terabyte_is_ignored() -> None:
    pax = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0", "GNU.sparse.size": str(2**40)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tar_entry("0.png", pax_headers=pax))
        archive.addfile(tar_entry("1.png", size=len(grey(1))), io.BytesIO(grey(1)))

    assert levels(buffer.getvalue()) == [1]


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


def test_an_endless_tar_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A negative size leads back to its own header; some versions of Python go there again and again."""
    monkeypatch.setattr(archives, "MAX_ENTRIES", 1000)
    header = bytearray(tarred([("1.txt", b"")])[:512])
    first = bytes(header)
    header[124:136] = b"\xff" * 10 + struct.pack(">h", -512)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)

    refuse(first + bytes(header) + bytes(1024), InvalidArchive)


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

    piped = _Pipe()
    with zipfile.ZipFile(piped, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(name, content)

    assert levels(zipped(files, zipfile.ZIP_STORED)) == [1, 2]
    assert levels(zipped(files, force_zip64=True)) == [1, 2]
    assert levels(_with_64_bit_directory(zipped(files))) == [1, 2]
    assert piped.written[6] & 8
    assert levels(bytes(piped.written)) == [1, 2]


class _Pipe(io.RawIOBase):
    """What cannot be sought gets a descriptor behind each file."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self.written += piece
        return len(piece)


def _with_64_bit_directory(data: bytes) -> bytes:
    """The same zip as if it were too large for the old kind of directory."""
    count, size, start = struct.unpack("<HII", data[-12:-2])
    end = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(data) - 22, 1)
    old = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[:-22] + end + locator + old


NO_ARCHIVE = {
    "nothing": b"",
    "a text": b"a poem\n" * 200,
    "a picture": grey(0, size=(100, 100)),
    "a zip's first bytes": b"PK\3\4",
    "a gzipped text": gzip.compress(b"a poem\n" * 200),
    "RAR": b"Rar!\x1a\7\1\0" + bytes(600),
    "7z": b"7z\xbc\xaf\x27\x1c" + bytes(600),
    "tar.bz2": b"BZh91AY&SY" + bytes(600),
    "tar.xz": b"\xfd7zXZ\0" + bytes(600),
}


@pytest.mark.parametrize("name", NO_ARCHIVE)
def test_what_is_no_archive_is_refused(name: str) -> None:
    detail = refuse(NO_ARCHIVE[name], InvalidArchive)

    assert (detail["type"], detail["ctx"]) == ("invalid_archive", {"supported_extensions": [".zip", ".tar", ".tar.gz"]})


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_is_packed_in_another_way_is_refused(compression: int) -> None:
    refuse(zipped([("1.png", grey(1))], compression), InvalidArchive)


def test_an_encrypted_zip_is_refused() -> None:
    data = bytearray(zipped([("1.png", grey(1))]))
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1

    assert refuse(bytes(data), InvalidArchive)["msg"] == "1.png: It is encrypted"


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
    packer = zlib.compressobj(9, wbits=31)
    data = b"".join(packer.compress(bytes(2**20)) for _ in range(1024)) + packer.flush()

    tracemalloc.start()
    refuse(data, InvalidArchive)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_ARCHIVE_BYTES


@pytest.mark.parametrize("said", [10, MAX_BYTES])
def test_a_member_of_another_size_than_it_is_said_to_be_is_refused(said: int) -> None:
    for content in (grey(1), bytes(2 * MAX_BYTES)):
        data = bytearray(zipped([("1.png", content)]))
        struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, said)

        tracemalloc.start()
        refuse(bytes(data), InvalidArchive)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * said + 2**20


def test_a_short_member_that_is_said_to_be_long_is_refused() -> None:
    data = bytearray(zipped([("1.png", grey(1))]))
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, len(grey(1)) + 1)

    assert "another size" in refuse(bytes(data), InvalidArchive)["msg"]


def test_files_that_overlap_are_refused() -> None:
    """Two entries of the directory that lead to the same bytes."""
    data = zipped([("1.png", grey(1))])
    start = data.index(b"PK\1\2")
    entry = data[start:-22]
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 2, 2, 2 * len(entry), start, 0)

    assert "overlap" in refuse(data[:start] + entry * 2 + end, InvalidArchive)["msg"]


def test_files_that_lie_inside_of_another_are_refused() -> None:
    inner = zipped([("2.png", grey(2))], zipfile.ZIP_STORED)
    data = zipped([("1.txt", inner[: inner.index(b"PK\1\2")])], zipfile.ZIP_STORED)
    start = data.index(b"PK\1\2")
    inside = bytearray(inner[inner.index(b"PK\1\2") : -22])
    struct.pack_into("<I", inside, 42, 35)
    entries = data[start:-22] + inside
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 2, 2, len(entries), start, 0)

    assert "overlap" in refuse(data[:start] + entries + end, InvalidArchive)["msg"]


def test_an_archive_inside_of_an_archive_is_never_opened() -> None:
    data = zipped([("1.png", grey(1))])
    for _ in range(5):
        data = zipped((f"{index}.zip", data) for index in range(16))

    refuse(data, ArchiveFileCountBelowMinimum)
