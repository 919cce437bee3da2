"""``svd-serve weights``: configurations checked as an operator does, and repositories fetched from a hub."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.tiny import WEIGHTS

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VIDEO = "fal-ai/stable-video"
PARTS = {"unet", "vae", "image_encoder", "feature_extractor", "controlnet", "text_encoder", "tokenizer", "scheduler"}


@dataclass
class Hub:
    """A hub on the loopback: ``/<owner>/<name>/resolve/<commit>/<file>`` from directories, large files by SHA-256."""

    url: str
    repositories: dict[str, Path] = field(default_factory=dict)
    served: list[str] = field(default_factory=list)
    server: ThreadingHTTPServer | None = None


@pytest.fixture
def hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if asked := re.match("/api/models/([^/]+/[^/]+)/(revision|tree)/", self.path):
                return self.describe(asked[1], asked[2])
            asked = re.fullmatch("/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
            repository, commit, file = asked.groups() if asked else ("", "", "")
            path = hub.repositories.get(repository, Path("/nowhere")) / file
            found = path.is_file() and commit == COMMIT
            content = path.read_bytes() if found else b"Entry not found"
            self.send_response(200 if found else 404)
            if found:
                large = path.suffix == ".safetensors"
                digest = hashlib.sha256(content) if large else hashlib.sha1(content)
                self.send_header("ETag", f'"{digest.hexdigest()}"')
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                hub.served.append(file)
                self.wfile.write(content)

        do_GET = do_HEAD

        def describe(self, repository: str, how: str) -> None:
            """What a repository holds."""
            root = hub.repositories[repository]
            files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
            tree = [{"type": "file", "path": n, "size": p.stat().st_size, "oid": "0" * 40} for n, p in files.items()]
            info = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            body = json.dumps(tree if how == "tree" else info).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}", server=server)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def write_config(path: Path, **endpoints: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump({"applications": [{"args": {"endpoints": endpoints}}]}))
    return path


def stable_video(path: Path, **config: Any) -> Path:
    return write_config(path, **{VIDEO: {"model": "deployments.models.stable_video:StableVideo", **config}})


def weights(action: str, config: Path, **environment: str) -> tuple[int, str, str]:
    """Run the command; its status, and what it said where."""
    command = [sys.executable, "-m", "deployments.cli", "weights", action, str(config)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_the_default_configuration_is_whole() -> None:
    status, said, problems = weights("check", ROOT / "serve_config.yaml")

    assert (status, problems) == (0, "")
    whole = r"  (\w+): ok(?:, [\d,]+ parameters)?, (\d) of \2 files with a known hash"
    parts = [re.fullmatch(whole, line) for line in said.splitlines() if line.startswith(" ")]
    assert {part[1] for part in parts if part} == PARTS
    assert all(parts), said


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS / "svd", tmp_path / "svd")
    (tmp_path / "svd/vae/config.json").unlink()
    spoilt = tmp_path / "svd/image_encoder/model.safetensors"
    spoilt.write_bytes(spoilt.read_bytes()[:-1] + b"?")

    status, said, problems = weights("check", stable_video(tmp_path / "c.yaml", weights=str(tmp_path / "svd")))

    assert status == 1
    assert problems.endswith("svd-serve: 2 parts are not as they must be\n")
    assert "  unet: ok" in said
    assert f"  vae: there is no {tmp_path}/svd/vae/config.json" in said
    assert f"  image_encoder: {spoilt} is damaged" in said


def test_a_configuration_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("applications: [{}]")
    for config in (tmp_path / "c.yaml", tmp_path / "none.yaml"):
        status, said, problems = weights("check", config)
        assert (status, said) == (1, "")
        assert problems.startswith(f"svd-serve: {config}:")


def test_a_repository_is_fetched_once_checked_and_needs_no_hub_after(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["stability/svd"] = WEIGHTS / "svd"
    config = stable_video(tmp_path / "c.yaml", weights="stability/svd", revision=COMMIT)
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}

    status, said, problems = weights("check", config, **environment)
    assert (status, hub.served) == (1, [])
    assert "stability/svd@0123456789ab: no unet/config.json in the hub's cache" in said

    status, said, problems = weights("fetch", config, **environment)
    assert (status, problems) == (0, "")
    assert sorted(hub.served) == [
        "feature_extractor/preprocessor_config.json",
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]

    assert hub.server
    hub.server.server_close()
    status, said, problems = weights("check", config, **environment)
    assert (status, problems) == (0, "")
    assert "  unet: ok, 1,112,781 parameters, 1 of 2 files with a known hash" in said
    assert weights("fetch", config, **environment)[0] == 0

    (blob,) = (tmp_path / "hub").glob("**/snapshots/*/unet/*.safetensors")
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.resolve().write_bytes(content)
    status, said, problems = weights("check", config, **environment)
    assert status == 1
    assert f"{blob} is damaged" in said


def test_a_text_to_image_pipeline_is_fetched_whole(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["stability/painter"] = WEIGHTS / "text-to-image"
    fast = {"model": "deployments.models.fast_svd_lcm:FastSVDLCM", "weights": str(WEIGHTS / "svd")}
    text = {
        "model": "deployments.models.text_to_video:TextToVideo",
        "weights": "stability/painter",
        "revision": COMMIT,
        "video": "fast",
    }
    config = write_config(tmp_path / "c.yaml", fast=fast, text=text)
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}

    status, said, _ = weights("check", config, **environment)
    assert (status, hub.served) == (1, [])
    assert "text\n  weights: stability/painter@0123456789ab: no pipeline in the hub's cache" in said

    status, said, problems = weights("fetch", config, **environment)
    assert (status, problems) == (0, ""), said
    assert {"tokenizer/tokenizer.json", "scheduler/scheduler_config.json", "model_index.json"} < set(hub.served)

    assert hub.server
    hub.server.server_close()
    status, said, _ = weights("check", config, **environment)
    assert status == 0
    assert "  text_encoder: ok, 36,064 parameters, 1 of 2 files with a known hash" in said


def test_a_file_that_a_repository_does_not_have_is_named(hub: Hub, tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS / "svd", tmp_path / "svd", ignore=shutil.ignore_patterns("vae"))
    hub.repositories["stability/svd"] = tmp_path / "svd"
    config = stable_video(tmp_path / "c.yaml", weights="stability/svd", revision=COMMIT)

    status, said, _ = weights(
        "fetch", config, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hub"), HF_HUB_DISABLE_XET="1"
    )
    assert status == 1
    assert "vae: stability/svd@0123456789ab: no vae/config.json in the hub's cache, nor can it be had: " in said
    assert "404" in said


def test_a_repository_without_its_commit_is_refused(tmp_path: Path) -> None:
    status, said, _ = weights("check", stable_video(tmp_path / "c.yaml", weights="stability/svd"))
    assert status == 1
    assert "a repository needs a revision: a commit of 40 digits" in said
