"""Video out: frames become an mp4 that every browser plays, by libx264; and small pictures of it before it is done."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import ffmpeg
import imageio_ffmpeg
from PIL import Image

if TYPE_CHECKING:
    import numpy as np

THREADS = 2
"""Fixed, because libx264's bytes depend on the number of its threads."""

PREVIEW_SIDE = 256

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a disk without room says. The next attempt may find room, here or elsewhere."""

ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")
"""All that ffmpeg is told of this process's environment, which holds secrets."""


class EncodeError(RuntimeError):
    """ffmpeg refused the frames."""


def encode_mp4(frames: np.ndarray, fps: int, target: Path) -> None:
    """Write uint8 RGB frames of shape (frames, height, width, 3) as H.264 at ``fps`` frames a second.

    yuv420p with BT.709 matrix and tags (ffmpeg would convert by BT.601 and shift the colours), closed GOPs, and the
    index in front so that playing starts before the end has arrived. Equal frames give equal bytes.

    Raises:
        EncodeError: ffmpeg failed; the message is its last words.
        OSError: The disk is full.
    """
    _, height, width, _ = frames.shape
    line = command(width, height, fps, target)
    kept = {name: value for name, value in os.environ.items() if name in ENVIRONMENT}
    done = subprocess.run(line, input=frames.tobytes(), capture_output=True, env=kept, check=False)  # noqa: S603 - ours
    if done.returncode:
        raise _refusal(done.stderr.decode(errors="replace").strip())


def command(width: int, height: int, fps: int, target: Path) -> list[str]:
    """The command line: raw frames from a pipe into a file, and nothing else may be opened."""
    stream = (
        ffmpeg.input(
            "pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=fps, protocol_whitelist="pipe"
        )
        .filter("scale", out_color_matrix="bt709", out_range="tv", flags="accurate_rnd+full_chroma_int")
        .output(
            f"file:{target}",
            protocol_whitelist="file",
            vcodec="libx264",
            pix_fmt="yuv420p",
            preset="veryfast",
            crf=18,
            g=max(1, 2 * fps),
            sc_threshold=0,
            flags="+cgop+bitexact",
            fflags="+bitexact",
            colorspace="bt709",
            color_primaries="bt709",
            color_trc="bt709",
            color_range="tv",
            movflags="+faststart",
            threads=THREADS,
            loglevel="error",
        )
        .global_args("-nostdin")
        .overwrite_output()
    )
    return [str(word) for word in stream.compile(cmd=ffmpeg_binary())]


def _refusal(words: str) -> Exception:
    """Why ffmpeg failed: the disk is full, or else its last words."""
    for number in DISK_FULL:
        if os.strerror(number) in words:
            return OSError(number, os.strerror(number))
    return EncodeError(words[-500:])


def save_preview(frame: np.ndarray, target: Path) -> None:
    """Write a uint8 RGB frame [H, W, 3] as a JPEG of at most ``PREVIEW_SIDE`` pixels a side."""
    picture = Image.fromarray(frame)
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    picture.save(target, "JPEG", quality=80)


@functools.cache
def ffmpeg_binary() -> str:
    """The system's ffmpeg, or the one that imageio-ffmpeg carries."""
    return shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe()
