from __future__ import annotations

import errno
import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from deployments.inference import encode as encode_module
from deployments.inference.encode import EncodeError, command, encode_mp4, ffmpeg_binary
from tests.conftest import need

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "skin": (224, 172, 105),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
}


def noise(frames: int = 5, height: int = 64, width: int = 112, seed: int = 0) -> np.ndarray:
    """Frames that no codec finds easy."""
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def solid(colour: tuple[int, int, int], frames: int = 3) -> np.ndarray:
    return np.broadcast_to(np.array(colour, dtype=np.uint8), (frames, 64, 112, 3)).copy()


def encode(frames: np.ndarray, folder: Path, fps: int = 10) -> bytes:
    encode_mp4(frames, fps, folder / "clip.mp4")
    return (folder / "clip.mp4").read_bytes()


def decode(path: Path) -> np.ndarray:
    """The frames of a 112x64 clip, by the matrix that it says it has been made with."""
    command = [ffmpeg_binary(), "-loglevel", "error", "-i", str(path), "-vf", "scale=in_color_matrix=bt709:in_range=tv"]
    raw = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, 64, 112, 3)


def probe(path: Path) -> dict[str, Any]:
    """What ffprobe says of a clip's one stream."""
    command = [
        need("ffprobe"),
        "-v",
        "error",
        "-count_frames",
        "-show_streams",
        "-show_format",
        "-of",
        "json",
        str(path),
    ]
    report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    [stream] = report["streams"]
    return dict(stream)


def boxes(data: bytes) -> list[str]:
    """The kinds of an mp4's outermost boxes, in order."""
    kinds, place = [], 0
    while place < len(data):
        size, kind = struct.unpack(">I4s", data[place : place + 8])
        kinds.append(kind.decode())
        assert size >= 8
        place += size
    return kinds


@pytest.mark.parametrize("fps", [1, 10, 25, 100])
def test_a_clip_is_what_every_browser_plays(tmp_path: Path, fps: int) -> None:
    encode(noise(frames=25), tmp_path, fps)

    stream = probe(tmp_path / "clip.mp4")
    assert stream["codec_name"] == "h264"
    assert stream["pix_fmt"] == "yuv420p"
    assert (stream["width"], stream["height"]) == (112, 64)
    assert stream["nb_read_frames"] == "25"
    assert stream["r_frame_rate"] == stream["avg_frame_rate"] == f"{fps}/1"
    assert float(stream["duration"]) == pytest.approx(25 / fps)


def test_a_clip_names_its_colours(tmp_path: Path) -> None:
    encode(noise(), tmp_path)

    stream = probe(tmp_path / "clip.mp4")
    names = ("color_space", "color_transfer", "color_primaries", "color_range")
    assert [stream[name] for name in names] == ["bt709", "bt709", "bt709", "tv"]


@pytest.mark.parametrize(("height", "width"), [(64, 112), (112, 64), (80, 80), (16, 16), (576, 1024)])
def test_a_clip_has_the_size_of_its_frames(tmp_path: Path, height: int, width: int) -> None:
    encode(noise(2, height, width), tmp_path)

    stream = probe(tmp_path / "clip.mp4")
    assert (stream["width"], stream["height"]) == (width, height)


def test_playing_starts_before_the_end_has_arrived(tmp_path: Path) -> None:
    kinds = boxes(encode(noise(), tmp_path))

    assert kinds[0] == "ftyp"
    assert kinds.index("moov") < kinds.index("mdat")


def test_equal_frames_give_equal_bytes(tmp_path: Path) -> None:
    frames = noise(12, 192, 320)

    assert len({encode(frames, tmp_path) for _ in range(20)}) == 1


def test_other_frames_give_other_bytes(tmp_path: Path) -> None:
    assert encode(noise(seed=1), tmp_path) != encode(noise(seed=2), tmp_path)


def test_frames_need_not_lie_in_one_piece(tmp_path: Path) -> None:
    frames = noise()
    scattered = np.flip(np.flip(frames, 2).copy(), 2)

    assert not scattered.flags.c_contiguous
    assert encode(scattered, tmp_path) == encode(frames, tmp_path)


@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS)
def test_colours_survive(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    encode(solid(colour), tmp_path)

    decoded = decode(tmp_path / "clip.mp4")
    assert decoded.shape[0] == 3
    assert np.abs(decoded.astype(int) - colour).max() <= 4


def test_frames_come_in_their_order_and_upright(tmp_path: Path) -> None:
    frames = np.zeros((5, 64, 112, 3), np.uint8)
    for number in range(5):
        frames[number, : 8 * (number + 1), :20] = 255
    encode(frames, tmp_path)

    assert np.abs(decode(tmp_path / "clip.mp4").astype(int) - frames).mean() < 2


def test_a_clip_of_one_frame_is_a_clip(tmp_path: Path) -> None:
    encode(solid((10, 20, 30), frames=1), tmp_path)

    assert len(decode(tmp_path / "clip.mp4")) == 1


def test_a_clip_that_is_there_already_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"old")

    assert boxes(encode(noise(), tmp_path))[0] == "ftyp"


def test_frames_that_cannot_be_encoded_are_refused_in_ffmpegs_words(tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match="divisible by 2"):
        encode(noise(height=65, width=113), tmp_path)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match="No such file"):
        encode_mp4(noise(), 10, tmp_path / "none" / "clip.mp4")


# ---------------------------------------------------------------- what ffmpeg may do


def test_ffmpeg_reads_raw_frames_from_a_pipe_and_nothing_else(tmp_path: Path) -> None:
    line = command(112, 64, 10, tmp_path / "clip.mp4")

    places = [index for index, word in enumerate(line) if word == "-i"]
    assert [line[index + 1] for index in places] == ["pipe:"]
    before, after = line[: places[0]], line[places[0] :]
    assert before[before.index("-protocol_whitelist") + 1] == "pipe"
    assert before[before.index("-f") + 1] == "rawvideo"
    assert after[after.index("-protocol_whitelist") + 1] == "file"
    assert f"file:{tmp_path}/clip.mp4" in after
    assert "-nostdin" in line


@pytest.mark.parametrize("binary", ["ffmpeg", "imageio"])
def test_ffmpeg_opens_no_other_file_though_its_input_asks_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, binary: str
) -> None:
    """The walls hold by themselves, too: the same command, told to read a list that names a file."""
    path = need("ffmpeg") if binary == "ffmpeg" else imageio_ffmpeg.get_ffmpeg_exe()
    monkeypatch.setattr(encode_module, "ffmpeg_binary", lambda: path)
    encode(noise(), tmp_path)
    listing = f"ffconcat version 1.0\nfile file:{tmp_path}/clip.mp4\n".encode()
    line = command(112, 64, 10, tmp_path / "stolen.mp4")
    start = line.index("-f")
    line[start : line.index("-i")] = ["-f", "concat", "-safe", "0", *line[line.index("-protocol_whitelist") :][:2]]

    def run(line: list[str]) -> tuple[int, bytes]:
        done = subprocess.run(line, input=listing, capture_output=True)
        return done.returncode, done.stderr

    status, said = run(line)
    assert status and b"not on whitelist" in said
    line[line.index("-protocol_whitelist") + 1] = "pipe,file"
    assert run(line)[0] == 0, "without the wall it would be opened"


def test_ffmpeg_is_told_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!/bin/sh\nenv > {tmp_path}/told\n")
    program.chmod(0o755)
    monkeypatch.setattr(encode_module, "ffmpeg_binary", lambda: str(program))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    encode_mp4(noise(), 10, tmp_path / "clip.mp4")

    told = {line.partition("=")[0] for line in (tmp_path / "told").read_text().splitlines()}
    assert "PATH" in told
    assert told <= {*encode_module.ENVIRONMENT, "PWD", "SHLVL", "_", "OLDPWD"}  # the shell's own


@pytest.mark.parametrize("binary", ["ffmpeg", "imageio"])
def test_a_full_disk_is_told_as_such(small_disk: Path, monkeypatch: pytest.MonkeyPatch, binary: str) -> None:
    path = need("ffmpeg") if binary == "ffmpeg" else imageio_ffmpeg.get_ffmpeg_exe()
    monkeypatch.setattr(encode_module, "ffmpeg_binary", lambda: path)
    with pytest.raises(OSError, match="No space left on device") as raised:
        encode(noise(60, 320, 576), small_disk)
    assert raised.value.errno == errno.ENOSPC
