"""A fifth endpoint is one file and one entry: the README's own, as they stand, on a running service."""

from __future__ import annotations

import os
import re
from pathlib import Path

import httpx
import pytest
import yaml

from deployments.gateway.sample import SAMPLE_KEY
from tests import tiny
from tests.conftest import ROOT, free_port, start_server, stop_server

BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
(FILE,) = [text for kind, text in BLOCKS if kind == "python" and "class CalmVideo(" in text]
(ENTRY,) = [text for kind, text in BLOCKS if kind == "yaml" and "CalmVideo" in text]


def test_one_file_and_one_entry_serve_an_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "calm_video.py").write_text(FILE)
    config = tiny.document()
    entry = yaml.safe_load(ENTRY.replace("deployments.models.calm_video:", "calm_video:"))
    config["applications"][0]["args"]["endpoints"] |= entry
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))

    server = start_server(tmp_path / "data", free_port(), tmp_path / "config.yaml")
    try:
        (id,) = entry
        post = {"headers": {"authorization": f"Key {server.key}"}, "timeout": 60}
        picture = f"{server.url}/files/{SAMPLE_KEY}"
        made = httpx.post(f"{server.url}/{id}", json={"image_url": picture, "seed": 4}, **post)  # type: ignore[arg-type]
        assert made.status_code == 200, made.text
        assert made.json()["seed"] == 4
        assert httpx.get(made.json()["video"]["url"]).headers["content-type"] == "video/mp4"
        wild = httpx.post(f"{server.url}/{id}", json={"image_url": picture, "motion_bucket_id": 255}, **post)  # type: ignore[arg-type]
        assert (wild.status_code, wild.json()["detail"][0]["ctx"]) == (422, {"le": 80})
        assert "Calm video" in httpx.get(f"{server.url}/models/{id}").text
    finally:
        stop_server(server)
