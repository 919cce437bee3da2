from __future__ import annotations

import os
import stat
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from deployments import cli
from deployments.models.base import Size, VideoModel
from deployments.models.svd import SVD
from deployments.settings import AppArgs, Settings
from deployments.web import Place, Reach
from tests.conftest import free_port

ROOT = Path(__file__).parents[1]
SVD_ARGS = {"model": "deployments.models.svd:SVD", "weights": "weights"}
PAINTER_ARGS = {"model": "deployments.models.text_to_video:TextToVideo", "weights": "weights"}

WAIT_AND_PRINT_THE_KEY = """
import sys, time
from pathlib import Path
from deployments.settings import Settings
settings = Settings(data_dir=Path(sys.argv[1]))
print("waiting", flush=True)
sys.stdin.readline()
print(settings.key())
"""


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SVD_"):
            monkeypatch.delenv(name)


def app_args(**endpoints: Any) -> AppArgs:
    return AppArgs.model_validate({"endpoints": {f"fal-ai/{name}": args for name, args in endpoints.items()}})


# ---------------------------------------------------------------- serve_config.yaml


def test_the_configuration_of_the_repository_serves_fals_four_endpoints() -> None:
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())

    endpoints = AppArgs.model_validate(config["applications"][0]["args"]).build()
    assert list(endpoints) == [
        "fal-ai/stable-video",
        "fal-ai/svd",
        "fal-ai/fast-svd-lcm",
        "fal-ai/fast-svd-lcm/text-to-video",
    ]
    assert all(endpoint.id == id for id, endpoint in endpoints.items())


def test_an_endpoint_has_the_configuration_of_its_line() -> None:
    endpoint = app_args(svd=SVD_ARGS | {"sizes": ["112x64"], "revision": "abc"}).build()["fal-ai/svd"]

    assert type(endpoint) is SVD
    assert isinstance(endpoint, VideoModel)
    assert endpoint.config.sizes == (Size(112, 64),)
    assert (endpoint.config.weights, endpoint.config.revision) == ("weights", "abc")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({"endpoint": {}}, "endpoint"),
        ({"endpoints": {}}, "at least 1"),
        ({"endpoints": {"fal-ai/svd": SVD_ARGS}, "gpus": 1}, "gpus"),
    ],
)
def test_a_typo_beside_the_endpoints_stops_the_deployment(args: Any, named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        AppArgs.model_validate(args)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (SVD_ARGS | {"weight": "x"}, "weight"),
        (SVD_ARGS | {"video": "fal-ai/svd"}, "video"),
        (SVD_ARGS | {"sizes": []}, "sizes"),
        (SVD_ARGS | {"sizes": ["wide"]}, "WIDTHxHEIGHT"),
        ({"model": SVD_ARGS["model"]}, "weights"),
        ({"weights": "weights"}, "model"),
    ],
)
def test_a_typo_in_an_endpoint_stops_the_deployment(args: Any, named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        app_args(svd=args)


@pytest.mark.parametrize(
    "model",
    [
        "deployments.models.svd:Unknown",
        "deployments.models.unknown:SVD",
        "deployments.models.base:Size",
        "deployments.models.svd",
        "svd",
        "",
    ],
)
def test_an_unknown_model_class_stops_the_deployment(model: str) -> None:
    with pytest.raises(ValidationError, match="model"):
        app_args(svd=SVD_ARGS | {"model": model})


@pytest.mark.parametrize("video", ["fal-ai/missing", "fal-ai/painter"])
def test_a_painter_needs_an_endpoint_that_animates_pictures(video: str) -> None:
    with pytest.raises(ValidationError, match="no endpoint that animates pictures"):
        app_args(svd=SVD_ARGS, painter=PAINTER_ARGS | {"video": video})


def test_a_painter_has_as_many_frames_as_its_endpoint() -> None:
    painter = PAINTER_ARGS | {"video": "fal-ai/svd"}
    with pytest.raises(ValidationError, match="clips of fal-ai/svd have 14 frames, not 25"):
        app_args(svd=SVD_ARGS | {"frames": 14}, painter=painter)
    app_args(svd=SVD_ARGS | {"frames": 14}, painter=painter | {"frames": 14})


def test_a_painter_may_stand_before_its_endpoint() -> None:
    endpoints = app_args(painter=PAINTER_ARGS | {"video": "fal-ai/svd"}, svd=SVD_ARGS).build()

    assert endpoints["fal-ai/painter"].model == "fal-ai--svd"


# ---------------------------------------------------------------- the environment


def test_everything_is_kept_in_the_data_directory_by_default(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)

    assert settings.database_url == f"sqlite+aiosqlite:///{tmp_path}/svd-serve.db"
    assert settings.storage_url == f"file://{tmp_path}/files"


def test_variables_say_what_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVD_PUBLIC_URL", "https://svd.example.com/")
    monkeypatch.setenv("SVD_FETCH_ALLOW_PRIVATE", "1")
    monkeypatch.setenv("SVD_DATABASE_URL", "sqlite+aiosqlite:////elsewhere.db")
    monkeypatch.setenv("SVD_STORAGE_URL", "")

    settings = Settings()
    assert settings.public_url == "https://svd.example.com"
    assert settings.fetch_allow_private is True
    assert settings.database_url == "sqlite+aiosqlite:////elsewhere.db"
    assert settings.storage_url == f"{Path('data').absolute().as_uri()}/files"


def test_private_addresses_are_refused_by_default(tmp_path: Path) -> None:
    assert Settings(data_dir=tmp_path).fetch_allow_private is False
    assert Settings(data_dir=tmp_path).webhook_allow_private is False


def test_an_operator_allows_places_beside_the_public_web(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVD_FETCH_ALLOW", "10.0.0.0/8, minio.internal:9000,.corp.example,[fd00::/8]:9000")
    monkeypatch.setenv("SVD_WEBHOOK_ALLOW", "hooks.internal")

    settings = Settings()
    assert settings.fetch_reach == Reach(
        False,
        (
            Place(ip_network("10.0.0.0/8"), "", None),
            Place(None, "minio.internal", 9000),
            Place(None, ".corp.example", None),
            Place(ip_network("fd00::/8"), "", 9000),
        ),
    )
    assert settings.webhook_reach == Reach(False, (Place(None, "hooks.internal", None),))
    monkeypatch.setenv("SVD_WEBHOOK_ALLOW_PRIVATE", "1")
    assert Settings().webhook_reach.allow_private
    assert not Settings().fetch_reach.allow_private


@pytest.mark.parametrize("name", ["SVD_FETCH_ALLOW", "SVD_WEBHOOK_ALLOW"])
def test_what_is_no_place_to_allow_stops_the_start(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "minio.internal,10.0.0.1/8")
    monkeypatch.setenv("SVD_ADMIN_KEY", "swordfish")  # wrong, too, and a secret all the same

    monkeypatch.setattr(os, "environ", dict(os.environ))  # which a start fills
    assert cli.main(["serve", "--port", str(free_port()), "--data-dir", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"svd-serve: {name}: '10.0.0.1/8' is no place to allow; write a network (10.0.0.0/8, ")
    assert "swordfish" not in told and "Traceback" not in told


def test_the_key_of_the_environment_is_the_key(tmp_path: Path) -> None:
    assert Settings(data_dir=tmp_path, admin_key="id:secret").key() == "id:secret"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["id", "id:", ":secret", ":"])
def test_a_key_of_another_form_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValidationError, match="id:secret"):
        Settings(data_dir=tmp_path, admin_key=key)


# ---------------------------------------------------------------- the kept key


def test_a_key_is_made_once_and_kept_for_its_owner_alone(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "there"
    key = Settings(data_dir=directory).key()

    [kept] = directory.iterdir()
    assert Settings(data_dir=directory).key() == key
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert all(len(part) >= 16 for part in key.split(":"))


def test_two_servers_have_two_keys(tmp_path: Path) -> None:
    assert Settings(data_dir=tmp_path / "a").key() != Settings(data_dir=tmp_path / "b").key()


def test_processes_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WAIT_AND_PRINT_THE_KEY, str(tmp_path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    keys = {process.communicate(timeout=60)[0] for process in processes}

    assert keys == {Settings(data_dir=tmp_path).key() + "\n"}
    assert [path.name for path in tmp_path.iterdir()] == ["admin.key"]
