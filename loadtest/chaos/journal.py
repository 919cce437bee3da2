"""Append-only files of JSON lines: what a process has written there it has said, whatever becomes of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Journal:
    """One file, to which several processes may append. A line is on the disk when ``write`` returns."""

    def __init__(self, path: Path) -> None:
        """Open it, making it where it is missing."""
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, op: str, **what: Any) -> None:
        """Add a line with the time."""
        os.write(self._file, (json.dumps({"at": time.time(), "op": op, **what}) + "\n").encode())
        os.fdatasync(self._file)

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: tuple[type[BaseException], BaseException, TracebackType] | None) -> None:
        self.close()


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """What stands in a file; a last line that was cut off does not count."""
    if not path.exists():
        return
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)
