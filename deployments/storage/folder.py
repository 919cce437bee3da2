"""What a directory of files needs beside obstore: what dead processes had begun, what is old, and power cuts."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

_DRAFT = re.compile(r"#[0-9]+$")


def remove_drafts(folder: Path, name: str) -> None:
    """Remove what a process that died had begun to write. obstore numbers its drafts: ``clip.mp4#1``."""
    for draft in folder.glob(f"{name}#*"):
        draft.unlink(missing_ok=True)
    remove_empty(folder)


def remove_empty(folder: Path) -> None:
    """Remove a folder that holds nothing."""
    with contextlib.suppress(OSError):  # it is gone already, or not empty
        folder.rmdir()


def walk(directory: Path, prefix: str, before: float) -> Iterator[str | None]:
    """Keys of old files below ``prefix``, whose folders hold files alone; None for what is no old file.

    Old drafts and empty folders are removed.
    """
    with contextlib.suppress(FileNotFoundError), os.scandir(directory / prefix) as folders:
        for folder in folders:
            yield None
            yield from _walk_folder(Path(folder.path), f"{prefix}/{folder.name}", before)


def _walk_folder(folder: Path, prefix: str, before: float) -> Iterator[str]:
    with contextlib.suppress(OSError):  # others delete, too
        old = folder.stat().st_mtime < before
        for path in list(folder.iterdir()):
            if path.is_file() and path.stat().st_mtime < before:
                if _DRAFT.search(path.name):
                    path.unlink(missing_ok=True)
                else:
                    yield f"{prefix}/{path.name}"
        if old:
            remove_empty(folder)


def sync_to_disk(path: Path) -> None:
    """Make a renamed file survive a power cut: its bytes first, then the directory entry."""
    for target in (path, path.parent, path.parent.parent):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
