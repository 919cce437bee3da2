"""What the whole road costs: the running service against a bare loop over the same model, in one run.

    python -m loadtest.road [--endpoint fal-ai/stable-video] [--repeats 5] [--queued 16]

Starts a service of its own on a free port of 127.0.0.1 and stops it again. Bare means in this process: crop, sample,
encode, one clip after the other. Both sides are measured in turn, so that a noisy machine troubles both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import fal_client
import psutil
import torch
import yaml
from PIL import Image

from deployments.cli import point_fal_client_at
from deployments.gateway.sample import SAMPLE
from deployments.inference.encode import encode_mp4
from deployments.inference.images import fit
from deployments.models.base import Clip, VideoModel
from deployments.settings import AppArgs
from loadtest.service import run_server

CONFIG = Path("serve_config.yaml")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", default="fal-ai/stable-video")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--queued", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="svd-serve-bench-") as folder, run_server(Path(folder)) as server:
        print(f"serve to ready                      {server.took:8.1f} s       (aim: at most 45)")
        served, bare = Served(options.endpoint, server.url, server.key), Bare(options.endpoint)
        one_clip(served, bare, options.repeats)
        queue(served, bare, options.queued)
        print(f"proportional memory of the tree     {memory_of(server.pid):8.2f} GB      (aim: at most 4)")


def one_clip(served: Served, bare: Bare, repeats: int) -> None:
    """One clip at a time, each side in turn; the first pair warms both up."""
    pairs = [(served.clips([seed]), bare.clips([seed])) for seed in range(repeats + 1)][1:]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(s / b for s, b in pairs)
    print(f"one clip: served {ours:.2f} s, bare {theirs:.2f} s, ratio {ratio:.3f}   (aim: at most 1.15)")


def queue(served: Served, bare: Bare, count: int) -> None:
    """Many clips at once."""
    seeds = list(range(100, 100 + count))
    ours, theirs = (60 * count / side.clips(seeds) for side in (served, bare))
    print(
        f"{count} queued: served {ours:.1f} clips/min, bare {theirs:.1f} clips/min, "
        f"ratio {ours / theirs:.3f}   (aim: at least 0.95)"
    )


class Served:
    """Clips through the service, by the official client at its default pace of polling."""

    def __init__(self, endpoint: str, url: str, key: str) -> None:
        point_fal_client_at(url)
        self._endpoint = endpoint
        self._client = fal_client.SyncClient(key=key)
        self._picture = fal_client.encode_file(str(SAMPLE))

    def clips(self, seeds: list[int]) -> float:
        """Seconds from the first submit to the last COMPLETED."""
        began = time.perf_counter()
        handles = [self._client.submit(self._endpoint, {"image_url": self._picture, "seed": seed}) for seed in seeds]
        for handle in handles:
            *_, last = handle.iter_events()
            assert last.error is None, last.error
        return time.perf_counter() - began


class Bare:
    """Clips by the sampler and the encoder alone, on one thread as a replica has it."""

    def __init__(self, endpoint: str) -> None:
        torch.set_num_threads(1)
        (application,) = yaml.safe_load(CONFIG.read_text())["applications"]
        model = AppArgs.model_validate(application["args"]).build()[endpoint]
        assert isinstance(model, VideoModel)
        model.setup("cpu")
        self._model = model

    def clips(self, seeds: list[int]) -> float:
        """Seconds for all of them, one after the other."""
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            for seed in seeds:
                input = self._model.Input.model_validate({"image_url": "data:,", "seed": seed})
                picture = fit(Image.open(SAMPLE).convert("RGB"), self._model.config.sizes)
                clip = Clip(picture, seed, input.motion_bucket_id, input.cond_aug)
                (frames,) = self._model.generate([clip], self._model.plan(input).steps, lambda done: [0])
                assert frames is not None
                encode_mp4(frames, self._model.default_fps, Path(folder) / f"{seed}.mp4")
        return time.perf_counter() - began


def memory_of(pid: int) -> float:
    """Proportional set size of a process and all below it, in GB: shared pages are counted once."""
    root = psutil.Process(pid)
    total = 0
    for process in [root, *root.children(recursive=True)]:
        memory: Any = process.memory_full_info()
        total += memory.pss
    return total / 1e9


if __name__ == "__main__":
    main()
