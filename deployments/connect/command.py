"""The command itself: listen, say what is set, run the program, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import socket
import ssl
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from deployments.connect.certificates import Authority
from deployments.connect.endpoint import TlsEndpoint, Upstream
from deployments.connect.environment import Changes, applied, changes, has_key, passing_by
from deployments.connect.program import CannotRun, run, stopped
from deployments.gateway.hosts import PREFIXES
from deployments.settings import Settings

HOSTS = tuple(PREFIXES)
ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared with
CHECK_SECONDS = 5.0


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        command: The program and its arguments; empty to serve those who set their environment themselves.
        url: Of the server; ``SVD_PUBLIC_URL`` if empty.
        key: ``id:secret``; if empty, the one the program has, or else the one in the data directory.
        listen: ``host:port``; a free port of the loopback interface if empty.
        show: Print what is set.
        allow_others: Let the program reach other https hosts through us.
    """

    command: Sequence[str] = ()
    url: str = ""
    key: str = ""
    listen: str = ""
    show: bool = False
    allow_others: bool = False


def connect(options: Options) -> int:
    """Run the command; answer the program's exit status.

    Raises:
        ValueError: An option is not well formed.
        OSError: The address to listen on is taken, or the certificates cannot be written.
    """
    settings = Settings()
    upstream = Upstream.at(options.url or settings.public_url)
    key = _key(options.key, settings)
    with _listener(options.listen) as listener, _certificates(listener, options, settings) as directory:
        authority = Authority(HOSTS)
        trust = authority.write(directory, os.environ)
        address = _address(listener)
        variables = changes(os.environ, address, HOSTS, trust, key, upstream.host)
        environment = applied(os.environ, variables)
        _warn(upstream, environment)
        if options.show or not options.command:
            print(_exports(variables, listener if options.listen else None), flush=True)
        endpoint = TlsEndpoint(HOSTS, authority.server_context(), upstream, options.allow_others)
        return asyncio.run(_serve_while(endpoint, listener, options.command, environment))


async def _serve_while(
    endpoint: TlsEndpoint, listener: socket.socket, command: Sequence[str], environment: Mapping[str, str]
) -> int:
    serving = asyncio.create_task(endpoint.serve(listener))
    try:
        if command:
            return await run(command, environment)
        await stopped()
        return 0
    except CannotRun as error:
        status, problem = error.args
        _say(problem)
        return int(status)
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


def _key(stated: str, settings: Settings) -> str | None:
    """The key to give the program, or None for the one that it has (or has not)."""
    if stated and not all(stated.partition(":")):
        raise ValueError("--key is written id:secret")
    if stated or has_key(os.environ):
        return stated or None
    kept = settings.admin_key or (settings.data_dir / "admin.key").exists()
    return settings.key() if kept else None  # none is made: the server would not know it


# ---------------------------------------------------------------- listening


def _listener(stated: str) -> socket.socket:
    try:
        parts = urlsplit(f"//{stated or '127.0.0.1:0'}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None:
        raise ValueError("--listen is written HOST:PORT")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=socket.SOMAXCONN)
    except OSError as error:
        raise OSError(f"cannot listen on {stated}: {error.strerror}") from error


def _address(listener: socket.socket) -> str:
    """Where a program on this machine reaches a listener."""
    host, port = listener.getsockname()[:2]
    if host in ANYWHERE:
        host = "127.0.0.1" if listener.family == socket.AF_INET else "::1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.contextmanager
def _certificates(listener: socket.socket, options: Options, settings: Settings) -> Iterator[Path]:
    """The directory of the certificates: one that lives as long as we do, or, for a fixed port, a fixed one.

    Containers that reach a fixed port want a path that they can mount.
    """
    if options.listen:
        yield settings.data_dir / "ca" / str(listener.getsockname()[1])
        return
    with tempfile.TemporaryDirectory(prefix="svd-serve-connect-") as name:
        yield Path(name)


# ---------------------------------------------------------------- what is said


def _warn(upstream: Upstream, environment: Mapping[str, str]) -> None:
    """Say what the program will stumble over."""
    if problem := _problem(upstream):
        _say(problem)
    if not has_key(environment):
        _say("there is no key in SVD_DATA_DIR, and none was given: set FAL_KEY, or --key id:secret")
    if names := passing_by(environment, HOSTS):
        _say(f"NO_PROXY sends these hosts past this server, to fal: {', '.join(names)}")


def _problem(upstream: Upstream) -> str | None:
    """Why the server cannot serve now, if it cannot."""
    verify = upstream.tls or ssl.create_default_context()
    try:
        reply = httpx.get(f"{upstream.url}/health/ready", timeout=CHECK_SECONDS, trust_env=False, verify=verify)
    except httpx.HTTPError as error:
        return f"no server answers at {upstream.url} ({error})"
    return None if reply.is_success else f"the server at {upstream.url} is not ready"


def _exports(variables: Changes, listener: socket.socket | None) -> str:
    """What is set, as a shell reads it; with a fixed port, also the line of a hosts file that does as well."""
    lines = [
        f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}" for name, value in variables.items()
    ]
    if listener:
        lines.append(
            f"# hosts file, for a listener on port 443: {_address(listener).rpartition(':')[0]} {' '.join(HOSTS)}"
        )
    return "\n".join(lines)


def _say(problem: str) -> None:
    print(f"svd-serve: {problem}", file=sys.stderr, flush=True)
