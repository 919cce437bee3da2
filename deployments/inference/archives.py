"""Depth maps in: an archive becomes pictures in the order of their names, or an error that names what is wrong with it.

    bytes ──▶ zip, tar or tar.gz, by content ──▶ members that are pictures ──▶ counted, weighed ──▶ opened one by one

Nothing is extracted to a disk: names are for sorting and for messages only. Sizes are what the directory says until a
member is read, and then no byte more than that is inflated.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import PurePosixPath

from PIL import Image

from deployments.errors import (
    ArchiveFileCountBelowMinimum,
    ArchiveFileCountExceedsMaximum,
    InvalidArchive,
    ServingError,
)
from deployments.inference.images import MAX_BYTES, Budget, open_picture

MAX_ARCHIVE_BYTES = 100 * 1024 * 1024
"""Of an archive, and of what is in it."""

MAX_ENTRIES = 100_000
"""Entries of an archive, whatever they are. To list that many takes a second or two."""

ARCHIVES = [".zip", ".tar", ".tar.gz"]
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")

_ZIP, _ZIP_ENTRY, _GZIP = b"PK", b"PK\1\2", b"\x1f\x8b"
_ENCRYPTED = 1
_NOT_OURS = (".", "/", "__MACOSX")
_LONGEST_NAME = 60


@dataclass(frozen=True)
class Member:
    """A file in an archive. ``size`` is what its directory says of it."""

    name: str
    size: int
    read: Callable[[], bytes]


def open_maps(data: bytes, most: int) -> Iterator[Image.Image]:
    """The pictures in an archive, sorted by the plain code points of their full names.

    Hidden files, links, and whatever has another extension than those in ``EXTENSIONS`` are ignored.

    Args:
        data: A zip, tar or tar.gz archive.
        most: How many pictures it may hold.

    Returns:
        The pictures as ``open_picture`` gives them. They are decoded one by one, as the caller asks for them, since all
        together may take gigabytes; so this may raise an ``InvalidArchive`` that names a picture, too.

    Raises:
        InvalidArchive: The bytes are no archive, a broken or encrypted one, or one that inflates to too many bytes.
        ArchiveFileCountBelowMinimum: There is no picture in it.
        ArchiveFileCountExceedsMaximum: There are more than ``most``.
    """
    with _invalid_if_it_fails():
        members = sorted(filter(_is_picture, _members(data)), key=lambda member: member.name)
        _check_count(len(members), most)
        _check_sizes(members)
    return map(partial(_open, Budget()), members)


def _open(budget: Budget, member: Member) -> Image.Image:
    with _invalid_if_it_fails(f"{_printable(member.name)}: "):
        return open_picture(member.read(), budget)


@contextmanager
def _invalid_if_it_fails(where: str = "") -> Iterator[None]:
    """Whatever goes wrong with an archive is an ``InvalidArchive``, unless it is about the number of its files."""
    try:
        yield
    except (ArchiveFileCountBelowMinimum, ArchiveFileCountExceedsMaximum, MemoryError):
        raise
    except Exception as error:  # zipfile and tarfile may raise anything at all on broken bytes
        reason = error.message if isinstance(error, ServingError) else "The archive is broken, or none that can be read"
        raise InvalidArchive(where + reason, ctx={"supported_extensions": ARCHIVES}) from error


def _members(data: bytes) -> list[Member]:
    if data.startswith(_ZIP):
        return _zip_members(data)
    if data.startswith(_GZIP):
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            data = stream.read(MAX_ARCHIVE_BYTES + 1)
    return _tar_members(data)


def _zip_members(data: bytes) -> list[Member]:
    if data.count(_ZIP_ENTRY) > MAX_ENTRIES:
        raise _too_many_entries()
    archive = zipfile.ZipFile(io.BytesIO(data))
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    if any(entry.header_offset + entry.compress_size > after.header_offset for entry, after in pairwise(entries)):
        raise InvalidArchive("Files in the archive overlap")
    return [Member(entry.filename, entry.file_size, partial(_read_zip, archive, entry)) for entry in entries]


def _read_zip(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.flag_bits & _ENCRYPTED:
        raise InvalidArchive("It is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InvalidArchive("It is neither stored nor deflated")
    with archive.open(entry) as stream:
        content = stream.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise InvalidArchive("It has another size than the archive says")
    return content


def _tar_members(data: bytes) -> list[Member]:
    if len(data) > MAX_ARCHIVE_BYTES:
        raise _too_many_bytes()
    archive = tarfile.TarFile(fileobj=io.BytesIO(data))
    entries = list(islice(_tar_entries(archive), MAX_ENTRIES + 1))
    if len(entries) > MAX_ENTRIES:
        raise _too_many_entries()
    end = data[archive.offset : archive.offset + tarfile.BLOCKSIZE]
    if any(end):  # tarfile takes a broken header for the end of the archive
        raise InvalidArchive("The archive is broken")
    return [
        Member(entry.name, entry.size, partial(_read_tar, archive, entry))
        for entry in entries
        if entry.isreg() and not entry.issparse()
    ]


def _tar_entries(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The entries, as long as each lies behind the one before: a negative size leads back, for ever."""
    place = -1
    for entry in archive:
        if archive.offset <= place:
            raise InvalidArchive("The archive is broken")
        place = archive.offset
        yield entry


def _read_tar(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(entry)
    assert stream is not None
    return stream.read()


def _is_picture(member: Member) -> bool:
    """Whether a member is to be opened: a picture by its name, neither hidden nor outside of the archive's folder."""
    parts = PurePosixPath(member.name).parts
    return member.name.lower().endswith(EXTENSIONS) and not any(part.startswith(_NOT_OURS) for part in parts)


def _check_count(count: int, most: int) -> None:
    found = {"provided_count": count, "supported_extensions": list(EXTENSIONS)}
    if count < 1:
        message = f"The archive holds no picture ({', '.join(EXTENSIONS)})"
        raise ArchiveFileCountBelowMinimum(message, ctx={"min_count": 1, **found})
    if count > most:
        message = f"The archive holds {count} pictures; at most {most} can be used"
        raise ArchiveFileCountExceedsMaximum(message, ctx={"max_count": most, **found})


def _check_sizes(members: list[Member]) -> None:
    for member in members:
        if member.size > MAX_BYTES:
            raise InvalidArchive(f"{_printable(member.name)} has more than {MAX_BYTES} bytes")
    if sum(member.size for member in members) > MAX_ARCHIVE_BYTES:
        raise _too_many_bytes()


def _too_many_bytes() -> InvalidArchive:
    return InvalidArchive(f"The archive inflates to more than {MAX_ARCHIVE_BYTES} bytes")


def _too_many_entries() -> InvalidArchive:
    return InvalidArchive(f"The archive has more than {MAX_ENTRIES} entries")


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name[:_LONGEST_NAME])
