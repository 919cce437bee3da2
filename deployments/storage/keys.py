"""Keys: what one may be, and what a file's name says of the file."""

from __future__ import annotations

import mimetypes
import re
from urllib.parse import quote
from uuid import uuid4

from deployments.errors import NotFound

FILES = "b"
PARTS = ".parts"
MARK = ".database/mark"

_LONGEST_KEY = 900  # S3 takes 1024 bytes, with the prefix
_DRAFT = re.compile(r".*#[0-9]+", re.DOTALL)
_RANDOM = re.compile(r"[0-9a-f]{32}")
_PLAYABLE = re.compile(r"(video|audio)/[^+]*|image/(png|jpeg|webp|gif|avif)")  # +xml is a page to a browser


def new_key(name: str) -> str:
    """A key that nobody can guess."""
    return f"{FILES}/{uuid4().hex}/{name}"


def without_secrets(text: str) -> str:
    """A text for the log: without the random parts of keys."""
    return _RANDOM.sub("…", text)


def type_of(key: str) -> str:
    """The media type that a file's name says."""
    return mimetypes.guess_type(key)[0] or "application/octet-stream"


def disposition_of(key: str, content_type: str) -> str | None:
    """What a browser is told to do with a file: to keep it, where it is nothing that can only be looked at."""
    if _PLAYABLE.fullmatch(content_type.partition(";")[0].strip().lower()):
        return None
    return f"attachment; filename*=UTF-8''{quote(key.rpartition('/')[2], safe='')}"


def is_key(key: str) -> bool:
    """Whether a file can have this key, and the key is the only way to write it.

    obstore reads ``/b/1/clip.mp4`` and ``b/1/clip.mp4/`` as ``b/1/clip.mp4``, whose row then nobody would find. In a
    directory ``clip.mp4#1`` is a draft of its.
    """
    segments = key.split("/")
    reserved = segments[0] in (PARTS, MARK.split("/")[0]) or _DRAFT.fullmatch(segments[-1])
    return not reserved and not {"", ".", ".."}.intersection(segments)


def check_key(key: str) -> None:
    """Refuse what no file can have as its key.

    Raises:
        NotFound: It is such a one.
    """
    if not is_key(key) or len(key.encode(errors="replace")) > _LONGEST_KEY:
        raise NotFound("No such file")
