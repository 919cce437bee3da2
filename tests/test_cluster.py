"""Ray beside the service: who reaches it, who may call it, and who reads what it writes."""

from __future__ import annotations

import os
import pickle
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import psutil
import pytest
from ray.serve.generated.serve_pb2 import ASGIRequest

from deployments import cluster
from tests.conftest import MARKER, OTHERS_TOKEN, Server, free_port

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
GCS = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
REPLICA = "/ray.serve.ASGIService/HandleRequest"


def processes(server: Server) -> list[psutil.Process]:
    root = psutil.Process(server.process.pid)
    return [root, *root.children(recursive=True)]


def listening(server: Server, title: str = "") -> list[Any]:
    """The addresses at which the processes of the service with this title listen."""
    return [
        each.laddr
        for process in processes(server)
        if title in " ".join(process.cmdline())
        for each in process.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    ]


def session_folder(server: Server) -> Path:
    lines = (" ".join(process.cmdline()) for process in processes(server))
    (found,) = {match[1] for line in lines for match in re.finditer(r"--session[-_]dir=(\S+)", line)}
    return Path(found)


def call(port: int, method: str, message: bytes = b"", token: str = "") -> str:
    """How a call without Ray's own client ends: by gRPC's name of the status."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(method)(message, metadata=metadata, timeout=10)
        except grpc.RpcError as error:
            return str(error.code().name)  # type: ignore[attr-defined]
    return "OK"


def token_of(server: Server) -> str:
    return (server.data_dir / cluster.TOKEN).read_text().strip()


def below(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.rglob("*"):
        try:
            yield path, path.lstat()
        except FileNotFoundError:  # Ray's and SQLite's files come and go
            continue


# ---------------------------------------------------------------- the running service


def test_no_port_can_be_reached_from_another_machine(server: Server) -> None:
    addresses = listening(server)

    assert urlsplit(server.url).port in {address.port for address in addresses}
    assert listening(server, "gcs_server")
    assert listening(server, "raylet")
    assert len(listening(server, "ServeReplica:svd-serve:Gateway")) == 2, "Ray's, and Serve's that unpickles"
    assert {address.ip for address in addresses} <= LOOPBACK


def test_ray_answers_nobody_but_who_shows_the_services_own_token(server: Server) -> None:
    (port,) = {address.port for address in listening(server, "gcs_server")}

    assert call(port, GCS, token=token_of(server)) == "OK"
    assert call(port, GCS) == "UNAUTHENTICATED"
    assert call(port, GCS, token=OTHERS_TOKEN) == "UNAUTHENTICATED"


class Canary:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled_for_who_has_no_token(server: Server, tmp_path: Path) -> None:
    def attack(port: int, token: str = "") -> bool:
        canary = tmp_path / f"{port}-{token}"
        request = ASGIRequest(pickled_request_metadata=pickle.dumps(Canary(canary)))
        call(port, REPLICA, request.SerializeToString(), token)
        return canary.exists()

    ports = {address.port for address in listening(server)}
    assert not any(attack(port) or attack(port, OTHERS_TOKEN) for port in ports)
    replica = {address.port for address in listening(server, "ServeReplica:svd-serve:Gateway")}
    assert any(attack(port, token_of(server)) for port in replica), "this attack shows nothing"


def test_a_token_of_other_clusters_is_left_alone(server: Server) -> None:
    home = server.data_dir.parent / "home"
    assert token_of(server) != OTHERS_TOKEN
    assert {path.name: path.read_text() for path in (home / ".ray").iterdir()} == {"auth_token": OTHERS_TOKEN}


def test_no_secret_is_in_an_argument_or_in_a_file_of_rays(server: Server) -> None:
    secrets = [server.key.partition(":")[2], token_of(server), MARKER]
    folder = session_folder(server)
    texts = [path.read_bytes() for path, found in below(folder) if stat.S_ISREG(found.st_mode)]
    lines = [" ".join(process.cmdline()) for process in processes(server)]

    assert MARKER in psutil.Process(server.process.pid).environ().values()
    assert any(b"Gateway" in text for text in texts), "these are no logs of Ray's"
    assert not [secret for secret in secrets if any(secret.encode() in text for text in texts)]
    assert not [secret for secret in secrets if any(secret in line for line in lines)]


def test_others_on_this_machine_read_neither_rays_files_nor_the_services(server: Server) -> None:
    private = session_folder(server).parents[1]
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert not server.data_dir.stat().st_mode & stat.S_IRWXO
    ours = [(path, found) for path, found in below(server.data_dir) if path != server.log]
    assert {"admin.key", cluster.TOKEN, "svd-serve.db", "files"} <= {path.name for path, _ in ours}
    assert [path for path, found in ours if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)] == []


# ---------------------------------------------------------------- its parts


def test_a_token_in_the_environment_or_the_home_directory_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(OTHERS_TOKEN)
    program = """
import os, sys
from pathlib import Path
from deployments import cluster
cluster.make_token(Path(sys.argv[1]))
os.environ |= cluster.token_environment(Path(sys.argv[1]))
from ray._raylet import AuthenticationTokenLoader
print(AuthenticationTokenLoader.instance().get_raw_token())
"""
    environment = os.environ | {"HOME": str(tmp_path), "RAY_AUTH_TOKEN": OTHERS_TOKEN, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", program, str(tmp_path / "data")]
    said = [subprocess.run(command, env=environment, capture_output=True, text=True).stdout for _ in range(2)]

    kept = tmp_path / "data" / cluster.TOKEN
    assert said == [kept.read_text()] * 2
    assert len(kept.read_text().strip()) == 64
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


@pytest.fixture
def mask() -> Iterator[None]:
    kept = os.umask(0o022)
    yield
    os.umask(kept)


def test_a_data_directory_is_closed_to_strangers_and_left_to_its_group(tmp_path: Path, mask: None) -> None:
    for name, mode, closed in (("new", None, 0o700), ("open", 0o755, 0o750), ("groups", 0o2770, 0o2770)):
        os.umask(0o022)
        folder = tmp_path / name
        if mode:
            folder.mkdir()
            folder.chmod(mode)
        cluster.close_to_others(folder)
        (folder / "file").touch()
        assert stat.S_IMODE(folder.stat().st_mode) == closed
        assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o600


def test_rays_folder_is_used_only_if_it_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    folder = cluster.private_folder()
    assert folder == tmp_path / f"svd-serve-{os.geteuid()}"
    assert cluster.private_folder() == folder

    folder.chmod(0o711)
    with pytest.raises(PermissionError, match="is not this user's alone"):
        cluster.private_folder()
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError):
        cluster.private_folder()


def test_a_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        pytest.skip("only root gives folders away")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    os.chown(cluster.private_folder(), 12345, 12345)
    with pytest.raises(PermissionError):
        cluster.private_folder()


def test_what_cannot_be_closed_is_one_line_and_no_start(tmp_path: Path) -> None:
    (tmp_path / f"svd-serve-{os.geteuid()}").mkdir(mode=0o755)
    command = [sys.executable, "-m", "deployments.cli", "serve", "--port", str(free_port())]
    environment = os.environ | {"RAY_TMPDIR": str(tmp_path), "SVD_DATA_DIR": str(tmp_path / "data")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "is not this user's alone" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_keeps_ray_from_starting_is_one_line(tmp_path: Path) -> None:
    """Here its folder, whose path is too long for a socket."""
    folder = tmp_path / ("x" * 80)
    folder.mkdir()
    command = [sys.executable, "-m", "deployments.cli", "serve", "--port", str(free_port())]
    environment = os.environ | {"RAY_TMPDIR": str(folder), "SVD_DATA_DIR": str(tmp_path / "data")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(r"svd-serve: Ray did not start: OSError: .*path length cannot exceed", line)


def test_whatever_is_raised_by_a_start_is_told_in_one_line() -> None:
    for error, told in (
        (ValueError("no memory\n  at all\n"), "ValueError: no memory"),
        (KeyError(), "KeyError: it did"),
    ):
        with pytest.raises(cluster.StartError, match=f"^Serve did not start: {told}"), cluster.starting("Serve"):
            raise error
    with pytest.raises(SystemExit), cluster.starting("Serve"):
        raise SystemExit


def test_a_process_forgets_what_it_has_no_use_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ |= {"AWS_SECRET_ACCESS_KEY": "a", "AWS_REGION": "b", "SVD_ADMIN_KEY": "c", "SVD_DATA_DIR": "d"}
    cluster.forget(["AWS_", "SVD_ADMIN_KEY"])
    assert [name for name in os.environ if name.startswith(("AWS_", "SVD_"))] == ["SVD_DATA_DIR"]
