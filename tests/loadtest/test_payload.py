"""A clip of the campaign says whose it is, after the real encoder too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deployments.inference.encode import encode_mp4
from loadtest.chaos.engine import steps_of
from loadtest.chaos.payload import FAILS, HANGS, POISON, Payload, decode, paint, read


def test_encoded_clips_are_read_back(tmp_path: Path) -> None:
    digests = [Payload(seed, 3, 0.02, (seed, 1, 2)).digest for seed in range(3)] + [0, 2**64 - 1]
    paths = []
    for n, digest in enumerate(digests):
        paths.append(tmp_path / f"{n}.mp4")
        encode_mp4(paint(digest), 25, paths[-1])
    assert decode(paths) == digests
    paths[1].write_bytes(paths[1].read_bytes()[:400])
    assert decode(paths) == [digests[0], None, *digests[2:]]


@pytest.mark.parametrize(
    "other", [(2, 3, 0.02, (1, 2, 3)), (1, 4, 0.02, (1, 2, 3)), (1, 3, 0.03, (1, 2, 3)), (1, 3, 0.02, (1, 2, 4))]
)
def test_digest_depends_on_every_part(other: tuple[int, int, float, tuple[int, int, int]]) -> None:
    assert Payload(1, 3, 0.02, (1, 2, 3)).digest != Payload(*other).digest


def test_payload_survives_queue_and_journal() -> None:
    import json

    payload = Payload(7, 3, 0.5, (9, 8, 7))
    assert Payload.of_input(json.dumps(payload.body)) == payload
    assert Payload.load(json.loads(json.dumps(payload.dump()))) == payload
    assert Payload.of_input("null") is None


def test_frames_are_read_without_an_encoder() -> None:
    assert read(paint(0x0123456789ABCDEF).mean(axis=3).astype(np.uint8)) == 0x0123456789ABCDEF


def test_poison_shares_a_batch_and_what_fails_does_not() -> None:
    good = {steps_of(motion) for motion in range(1, 201)}
    assert steps_of(POISON) in good
    assert not good & {steps_of(FAILS), steps_of(HANGS)}
