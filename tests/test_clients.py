"""The official clients, unmodified, against the whole running service."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fal_client
import fal_client.client
import httpx
import numpy as np
import pytest
from PIL import Image

from deployments.cli import point_fal_client_at
from deployments.gateway.sample import SAMPLE
from deployments.inference.encode import ffmpeg_binary
from deployments.inference.images import fit, open_picture
from deployments.models.base import Size
from tests.conftest import ROOT, Server, need

PICTURE = fal_client.encode_file(str(SAMPLE))
INPUTS: dict[str, dict[str, Any]] = {
    "fal-ai/stable-video": {"image_url": PICTURE, "fps": 12},
    "fal-ai/svd": {"image_url": PICTURE, "steps": 3},
    "fal-ai/fast-svd-lcm": {"image_url": PICTURE, "steps": 2},
    "fal-ai/fast-svd-lcm/text-to-video": {"prompt": "a red boat", "steps": 2, "fps": 5},
}
RESULT_KEYS = {"fal-ai/svd": "image"}
RATES = {"fal-ai/stable-video": 12, "fal-ai/svd": 25, "fal-ai/fast-svd-lcm": 10, "fal-ai/fast-svd-lcm/text-to-video": 5}


@pytest.fixture
def fal(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[fal_client.SyncClient]:
    for name in ("RUN_URL_FORMAT", "QUEUE_URL_FORMAT", "REST_URL", "CDN_URL"):
        monkeypatch.setattr(fal_client.client, name, getattr(fal_client.client, name))  # restored afterwards
    point_fal_client_at(server.url)
    client = fal_client.SyncClient(key=server.key)
    yield client
    client._client.close()  # it has no public way, and the session's warnings are errors


def download(url: str, target: Path) -> Path:
    target.write_bytes(httpx.get(url).raise_for_status().content)
    return target


def probe(video: Path) -> dict[str, Any]:
    command = [need("ffprobe"), "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(video)]
    (stream,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["streams"]
    return dict(stream)


@pytest.mark.parametrize("endpoint", INPUTS)
def test_subscribe_gives_a_playable_video(fal: fal_client.SyncClient, tmp_path: Path, endpoint: str) -> None:
    statuses: list[Any] = []
    result = fal.subscribe(
        endpoint, arguments=INPUTS[endpoint] | {"seed": 3}, with_logs=True, on_queue_update=statuses.append
    )
    assert set(result) == {RESULT_KEYS.get(endpoint, "video"), "seed"}
    assert result["seed"] == 3
    file = result[RESULT_KEYS.get(endpoint, "video")]
    video = download(file["url"], tmp_path / "clip.mp4")
    assert (file["content_type"], file["file_size"]) == ("video/mp4", video.stat().st_size)
    stream = probe(video)
    assert {name: stream[name] for name in ("codec_name", "pix_fmt", "width", "height", "nb_read_frames")} == {
        "codec_name": "h264",
        "pix_fmt": "yuv420p",
        "width": 112,
        "height": 64,
        "nb_read_frames": "25",
    }
    assert stream["r_frame_rate"] == f"{RATES[endpoint]}/1"
    assert isinstance(statuses[-1], fal_client.Completed)
    assert [line["message"] for line in statuses[-1].logs if "progress" in line][-1].startswith("Step ")
    assert [line["progress"] for line in statuses[-1].logs if "progress" in line][-1] == 1.0
    assert statuses[-1].metrics["inference_time"] > 0


def test_same_seed_gives_the_same_file_and_another_seed_another(fal: fal_client.SyncClient, tmp_path: Path) -> None:
    def clip(name: str, seed: int) -> bytes:
        result = fal.run("fal-ai/fast-svd-lcm", arguments=INPUTS["fal-ai/fast-svd-lcm"] | {"seed": seed})
        return download(result["video"]["url"], tmp_path / name).read_bytes()

    assert clip("a", 5) == clip("b", 5) != clip("c", 6)


def test_a_clip_is_the_same_file_alone_and_in_a_batch(
    fal: fal_client.SyncClient, server: Server, tmp_path: Path
) -> None:
    arguments = INPUTS["fal-ai/fast-svd-lcm"]
    alone = fal.run("fal-ai/fast-svd-lcm", arguments=arguments | {"seed": 1})
    inputs = [arguments | {"seed": seed, "motion_bucket_id": 127 if seed == 1 else 200} for seed in (2, 3, 1, 4, 1)]
    handles = [fal.submit("fal-ai/fast-svd-lcm", arguments=each) for each in inputs]
    clips = [httpx.get(handle.get()["video"]["url"]).content for handle in handles]
    assert clips[2] == clips[4] == httpx.get(alone["video"]["url"]).content
    assert len(set(clips)) == 4


def as_uri(picture: Image.Image) -> str:
    return str(fal_client.encode_image(picture, format="png"))


def frames_of(video: Path) -> np.ndarray:
    command = [ffmpeg_binary(), "-v", "error", "-i", str(video), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, 64, 112, 3).astype(float)


def test_what_is_white_in_the_mask_stays_and_what_is_black_moves(fal: fal_client.SyncClient, tmp_path: Path) -> None:
    mask = Image.new("L", (112, 64), 0)
    mask.paste(255, (0, 0, 56, 64))
    arguments = INPUTS["fal-ai/svd"] | {"mask_image_url": as_uri(mask)}
    result = fal.run("fal-ai/svd", arguments=arguments)

    frames = frames_of(download(result["image"]["url"], tmp_path / "clip.mp4"))
    picture = np.array(fit(open_picture(SAMPLE.read_bytes()), [Size(112, 64)]), dtype=float)
    off = np.abs(frames - picture).mean(axis=(0, 1, 3))
    assert off[:52].max() < 12  # H.264 halves the colours' resolution
    assert off[64:].mean() > 2 * off[:52].mean()


def test_depth_maps_lead_a_clip_of_as_many_frames(fal: fal_client.SyncClient, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for index in range(3):
            map = io.BytesIO()
            Image.linear_gradient("L").rotate(30 * index).save(map, "PNG")
            entry = tarfile.TarInfo(f"maps/{index:03}.png")
            entry.size = len(map.getvalue())
            archive.addfile(entry, io.BytesIO(map.getvalue()))
    maps = fal_client.encode(buffer.getvalue(), "application/gzip")
    result = fal.subscribe("fal-ai/svd", arguments=INPUTS["fal-ai/svd"] | {"control_maps_data_url": maps})

    assert probe(download(result["image"]["url"], tmp_path / "clip.mp4"))["nb_read_frames"] == "3"


def test_an_archive_that_is_none_is_an_error_of_its_field(fal: fal_client.SyncClient) -> None:
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        fal.run("fal-ai/svd", arguments=INPUTS["fal-ai/svd"] | {"control_maps_data_url": PICTURE})
    [detail] = caught.value.message
    assert (caught.value.status_code, detail["type"]) == (422, "invalid_archive")
    assert detail["loc"] == ["body", "control_maps_data_url"]


def test_run_answers_on_one_connection(fal: fal_client.SyncClient) -> None:
    assert "image" in fal.run("fal-ai/svd", arguments=INPUTS["fal-ai/svd"])


def test_run_says_at_once_what_is_wrong_with_the_input(fal: fal_client.SyncClient) -> None:
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        fal.run("fal-ai/stable-video", arguments={"motion_bucket_id": 0})
    assert caught.value.status_code == 422
    details = {tuple(detail["loc"]): detail for detail in caught.value.message}
    assert details["body", "image_url"]["type"] == "missing"
    assert details["body", "motion_bucket_id"]["type"] == "greater_than_equal"
    assert details["body", "motion_bucket_id"]["ctx"] == {"ge": 1}


def test_queue_says_what_is_wrong_with_the_input_on_the_result(fal: fal_client.SyncClient) -> None:
    handle = fal.submit("fal-ai/stable-video", arguments={"image_url": "data:image/png;base64,aGVsbG8="})
    *_, last = handle.iter_events(with_logs=True)
    assert isinstance(last, fal_client.Completed) and last.error
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        handle.get()
    assert caught.value.status_code == 422
    assert caught.value.message[0]["type"] == "image_load_error"


def test_private_addresses_are_not_fetched(fal: fal_client.SyncClient, server: Server) -> None:
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        fal.run("fal-ai/svd", arguments={"image_url": f"{server.url}/health/live", "steps": 1})
    assert caught.value.message[0]["type"] == "file_download_error"


def test_own_files_are_read_from_the_store(fal: fal_client.SyncClient, server: Server) -> None:
    arguments = {"image_url": f"{server.url}/files/samples/landscape.jpg", "steps": 1}
    assert "image" in fal.run("fal-ai/svd", arguments=arguments)


def test_follow_up_calls_use_owner_and_alias_only(fal: fal_client.SyncClient) -> None:
    endpoint = "fal-ai/fast-svd-lcm/text-to-video"
    handle = fal.submit(endpoint, arguments=INPUTS[endpoint])
    handle.get()
    assert isinstance(fal.status(endpoint, handle.request_id), fal_client.Completed)
    assert "video" in fal.result(endpoint, handle.request_id)


def test_running_request_is_cancelled_between_steps(fal: fal_client.SyncClient) -> None:
    handle = fal.submit("fal-ai/svd", arguments={"image_url": PICTURE, "steps": 100})
    for status in handle.iter_events(with_logs=True, interval=0.1):
        if isinstance(status, fal_client.InProgress) and status.logs:
            handle.cancel()
            break
    *_, last = handle.iter_events(with_logs=True)
    assert (last.error_type, len(last.logs) < 100) == ("client_cancelled", True)
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        handle.get()
    assert (caught.value.status_code, caught.value.error_type) == (499, "client_cancelled")


def test_requests_queue_up_and_see_their_position(fal: fal_client.SyncClient) -> None:
    handles = [fal.submit("fal-ai/svd", arguments={"image_url": PICTURE, "steps": 30 + i}) for i in range(5)]
    status = handles[-1].status()
    assert isinstance(status, fal_client.Queued) and status.position >= 1
    for handle in handles:
        handle.cancel()


def test_impatient_caller_gets_a_504_that_its_client_does_not_retry(fal: fal_client.SyncClient) -> None:
    blockers = [fal.submit("fal-ai/svd", arguments={"image_url": PICTURE, "steps": 90 + i}) for i in range(3)]
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        fal.run("fal-ai/svd", arguments=INPUTS["fal-ai/svd"], start_timeout=1.5)
    assert caught.value.status_code == 504
    assert caught.value.response.headers["x-fal-request-timeout-type"] == "user"
    for blocker in blockers:
        blocker.cancel()


def test_wrong_key_is_refused(fal: fal_client.SyncClient) -> None:
    stranger = fal_client.SyncClient(key="some:body")
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        stranger.submit("fal-ai/svd", arguments={})
    stranger._client.close()
    assert caught.value.status_code == 401


async def test_async_client_works_too(fal: fal_client.SyncClient, server: Server) -> None:
    client = fal_client.AsyncClient(key=server.key)
    arguments = INPUTS["fal-ai/fast-svd-lcm"]
    results = await asyncio.gather(*(client.subscribe("fal-ai/fast-svd-lcm", arguments=arguments) for _ in range(3)))
    await (await client._client).aclose()
    assert len({result["video"]["url"] for result in results}) == 3


README_BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("language", "program"), [("python", [sys.executable, "-c"]), ("js", ["node"]), ("", ["sh", "-c"])]
)
def test_readme_calls_work_as_they_stand(server: Server, tmp_path: Path, language: str, program: list[str]) -> None:
    (text,) = [text for kind, text in README_BLOCKS if kind == language and "ID:SECRET" in text]
    text = text.replace("http://127.0.0.1:8000", server.url).replace("ID:SECRET", server.key)
    text = text.replace("picture.jpg", str(SAMPLE))
    if language == "js":
        need("node")
        (tmp_path / "node_modules").symlink_to(ROOT / "tests" / "js" / "node_modules")
        script = tmp_path / "readme.mjs"
        script.write_text(text)
        text = str(script)
    done = subprocess.run([*program, text], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{server.url}/files/b/" in done.stdout


def javascript(server: Server, scenario: str) -> Any:
    node = need("node")
    if not (ROOT / "tests" / "js" / "node_modules").exists():
        need("npm")
        pytest.fail("the JavaScript client is not installed: make tests/js/node_modules")
    done = subprocess.run(
        [node, "road.mjs", server.url, server.key, str(SAMPLE), scenario],
        cwd=ROOT / "tests" / "js",
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_javascript_subscribe_works_for_all_endpoints(server: Server) -> None:
    seen = javascript(server, "subscribe")
    assert list(seen) == list(INPUTS)
    for endpoint, saw in seen.items():
        assert saw["data"]["seed"] == 7
        assert saw["data"][RESULT_KEYS.get(endpoint, "video")]["url"].startswith(f"{server.url}/files/")
        assert saw["requestId"] and saw["statuses"][-1] == "COMPLETED"


def test_javascript_run_takes_a_body_or_a_query(server: Server) -> None:
    saw = javascript(server, "run")
    assert saw["data"]["image"]["url"] and saw["requestId"] and saw["get"]["video"]["url"]


def test_javascript_client_reads_our_errors(server: Server) -> None:
    saw = javascript(server, "errors")
    assert (saw["invalid"]["name"], saw["invalid"]["status"]) == ("ValidationError", 422)
    assert saw["early"]["status"] == 400
    assert (saw["cancelled"]["status"], saw["cancelled"]["body"]["error_type"]) == (499, "client_cancelled")


def test_javascript_status_stream_carries_each_log_line_once(server: Server) -> None:
    saw = javascript(server, "stream")
    assert saw["last"]["status"] == "COMPLETED"
    assert saw["lines"] == ["Step 1/2", "Step 2/2"]
