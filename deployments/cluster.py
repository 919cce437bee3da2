"""Ray on this machine, for ``svd-serve serve``: a cluster that nobody else reaches, reads or steers.

    ports ──▶ 127.0.0.1 (Serve's HTTP port: --host)     calls ──▶ the token in SVD_DATA_DIR/ray.token
    files ──▶ SVD_DATA_DIR, /tmp/svd-serve-UID ──▶ their owner alone

Who can call Ray runs code of his own as the service, because Ray's processes unpickle what they send each other. So
the ports are closed to other machines, and the token keeps the other users of this one out. It is the service's own:
one in the home directory belongs to other clusters, and is neither read nor written.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from deployments.settings import kept_secret

TOKEN = "ray.token"  # noqa: S105 - the name of its file
OBJECT_STORE_BYTES = 200 * 1024 * 1024
"""Ray's shared memory. What crosses processes here is small: inputs, events, a painted picture."""

_OTHERS = stat.S_IRWXO
_GROUP_AND_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class StartError(Exception):
    """Why something of the cluster did not start, in one line."""


def close_to_others(data_dir: Path) -> None:
    """Have what the service writes from now on be its owner's alone, and its data directory closed to strangers.

    What a group may do with a directory that is there already stays: its owner has said so.

    Raises:
        OSError: There can be no such directory.
    """
    os.umask(_GROUP_AND_OTHERS)
    data_dir.mkdir(parents=True, exist_ok=True)
    found = data_dir.stat()
    if found.st_uid == os.geteuid():
        data_dir.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)


def token_environment(data_dir: Path) -> dict[str, str]:
    """The variables by which Ray asks every caller for the service's token, and a caller shows it.

    Ray reads them as it is imported.
    """
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": str(data_dir / TOKEN)}


def make_token(data_dir: Path) -> None:
    """Make the token, once.

    Raises:
        OSError: It cannot be kept.
    """
    kept_secret(data_dir / TOKEN, lambda: secrets.token_hex(32))


def start(folder: Path) -> None:
    """Start Ray, without its dashboard; its sockets and logs go into this folder.

    Raises:
        StartError: It did not.
    """
    import ray

    with starting("Ray"):
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(folder / "ray"),  # a folder in it, because Ray opens its own to everybody
        )


@contextmanager
def starting(what: str) -> Iterator[None]:
    """Tell whatever keeps a part of the cluster from starting, and Ray raises nearly anything, as one error.

    Raises:
        StartError: Something did.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or "it did not say why").splitlines()[0]
        raise StartError(f"{what} did not start: {type(error).__name__}: {reason}") from error


def private_folder() -> Path:
    """A folder for Ray's sockets and logs that is this user's alone. Short, for the path of a socket may not be long.

    Raises:
        OSError: It is another user's, or open to others.
    """
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute() / f"svd-serve-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & _GROUP_AND_OTHERS:
        raise PermissionError(f"{folder} is not this user's alone: remove it, or name another place in RAY_TMPDIR")
    return folder


def listen_on_this_node() -> None:
    """Have Serve's replica in this process listen at its node's address, not at every address of the machine.

    Beside its actor, a replica has a gRPC port that unpickles what it is sent. Serve knows no setting for where.
    """
    network: Any = import_module("ray._common.network_utils")
    node_address: Any = import_module("ray.util").get_node_ip_address
    replica: Any = import_module("ray.serve._private.replica")
    add_port_anywhere = replica.add_port_to_grpc_server

    def add_port(server: Any, address: str) -> Any:
        _, _, port = address.rpartition(":")
        return add_port_anywhere(server, network.build_address(node_address(), port))

    replica.add_port_to_grpc_server = add_port


def forget(prefixes: Iterable[str]) -> None:
    """Drop the variables with these prefixes, which this process and its children have no use for."""
    for name in [name for name in os.environ if name.startswith(tuple(prefixes))]:
        del os.environ[name]
