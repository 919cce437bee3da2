"""``svd-serve``: start the service on this machine, try it, move programs over to it, operate it.

``serve`` deploys serve_config.yaml the way ``serve deploy`` and KubeRay do, on a Ray cluster of its own that lives and
dies with this process.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml
from pydantic import ValidationError

from deployments import cluster, keyring, operating, scaling
from deployments.ending import end, leave
from deployments.gateway.sample import SAMPLE, SAMPLE_KEY
from deployments.models.base import Endpoint
from deployments.models.checkpoints import CheckpointError, Part
from deployments.operating import complain, misset
from deployments.settings import AppArgs, Settings
from deployments.storage import FileStorage

PATIENCE_SECONDS = 60.0
"""After this long a start says what it is waiting for, and again each time."""

SERVICE_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.gateway.backpressure:proxy_middlewares",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",  # a proxy that died is replaced after three of them
    "TQDM_DISABLE": "1",  # loaders draw progress bars, which are no logs
    "TRANSFORMERS_VERBOSITY": "error",
}
"""What every process of the service wants to find, on one machine as in a pod."""

ONE_MACHINE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Node addresses stay on 127.0.0.1."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; answer its exit status."""
    parser = argparse.ArgumentParser(prog="svd-serve", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_leave(commands)
    _add_demo(commands)
    _add_weights(commands)
    _add_connect(commands)
    keyring.add_commands(commands)
    operating.add_commands(commands)
    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser("serve", help="start the service and keep it running")
    serve.add_argument("--config", type=Path, default=Path("serve_config.yaml"))
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, choices=range(1, 65536), metavar="1-65535", default=8000)
    serve.add_argument("--data-dir", type=Path, help="instead of SVD_DATA_DIR")
    serve.set_defaults(run=_serve)


def _add_leave(commands: Any) -> None:
    leave = commands.add_parser("leave", help="end this node of a Ray cluster; what it serves goes on elsewhere")
    leave.add_argument("--seconds", type=int, default=600, help="how long it may take")
    leave.set_defaults(run=_leave)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="make one video through the running service, or one started for it")
    demo.add_argument("--picture", type=Path, default=SAMPLE)
    demo.add_argument("--endpoint", default="fal-ai/stable-video")
    demo.add_argument("--output", type=Path, default=Path("demo.mp4"))
    demo.set_defaults(run=_demo)


def _add_weights(commands: Any) -> None:
    weights = commands.add_parser("weights", help="check or fetch what a configuration names")
    actions = weights.add_subparsers(required=True, metavar="ACTION")
    check = actions.add_parser("check", help="verify presence, hashes and shapes; downloads nothing, needs no GPU")
    fetch = actions.add_parser("fetch", help="download what is missing into the hub's cache")
    for action in (check, fetch):
        action.add_argument("config", type=Path, nargs="?", default=Path("serve_config.yaml"))
    check.set_defaults(run=_check_weights)
    fetch.set_defaults(run=_fetch_weights)


def _add_connect(commands: Any) -> None:
    connect = commands.add_parser("connect", help="run a program so that the official fal client in it reaches us")
    connect.add_argument("--url", default="", help="of the server, instead of SVD_PUBLIC_URL")
    connect.add_argument("--key", default="", help="id:secret, instead of FAL_KEY or the key kept in SVD_DATA_DIR")
    connect.add_argument("--print", action="store_true", dest="show", help="print what is set")
    connect.add_argument("--listen", default="", metavar="HOST:PORT", help="instead of a free port of this machine")
    connect.add_argument("--allow-others", action="store_true", help="pass https to hosts that are not fal's on")
    connect.add_argument("program", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="none: print, and serve")
    connect.set_defaults(run=_connect)


# ---------------------------------------------------------------- serve


def _serve(options: argparse.Namespace) -> int:
    problem = _port_problem(options.host, options.port)
    if problem:
        return complain(problem)
    _set_environment(options)
    try:
        settings = Settings()
    except ValidationError as error:
        return complain(misset(error))
    try:
        config = _serve_config(options)
        cluster.close_to_others(settings.data_dir)
        cluster.make_token(settings.data_dir)
        folder = cluster.private_folder()
        settings.key()  # made here, before several processes want it
        sample = FileStorage.open(settings.storage_url, settings.public_url).url_of(SAMPLE_KEY)
    except (OSError, ValueError, yaml.YAMLError) as error:
        return complain(f"{options.config}: {error}")

    failure = None
    try:
        signal.signal(signal.SIGTERM, _exit)
        cluster.start(folder)
        signal.signal(signal.SIGTERM, _exit)  # again: Ray has put its own in place, which aborts
        with cluster.starting("Serve"):
            _deploy(config)
        failure = _wait_until_ready(f"http://{_reachable(options.host)}:{options.port}")
        if not failure:
            print(_banner(settings, sample), flush=True)
        while not failure:
            signal.pause()
    except cluster.StartError as error:
        failure = str(error)
    except (KeyboardInterrupt, SystemExit):
        pass
    finally:
        end([each.name for each in config.applications], 0 if failure else settings.grace_seconds)
    return complain(failure) if failure else 0


def _port_problem(host: str, port: int) -> str | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            busy = ". Is a server running already? Choose another port" if error.errno == errno.EADDRINUSE else ""
            return f"cannot listen on {host}:{port}: {error.strerror}{busy}"
    return None


def _set_environment(options: argparse.Namespace) -> None:
    """What every process of the service inherits."""
    if options.data_dir:
        os.environ["SVD_DATA_DIR"] = str(options.data_dir)
    os.environ["SVD_DATA_DIR"] = str(Path(os.environ.get("SVD_DATA_DIR") or "data").absolute())
    os.environ.setdefault("SVD_PUBLIC_URL", f"http://{_reachable(options.host)}:{options.port}")
    for name, value in (SERVICE_ENVIRONMENT | ONE_MACHINE).items():
        os.environ.setdefault(name, value)
    os.environ |= cluster.token_environment(Path(os.environ["SVD_DATA_DIR"]))


def _reachable(host: str) -> str:
    """An address under which a server that listens on ``host`` can be called from here."""
    return "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104 - a comparison


def _serve_config(options: argparse.Namespace) -> Any:
    """The Serve configuration, checked as far as it can be before anything has started."""
    from ray.serve.schema import ServeDeploySchema

    document = _read_config(options.config)
    document.setdefault("http_options", {}).update(host=options.host, port=options.port)
    for application in document.get("applications", []):
        AppArgs.model_validate(application.get("args", {}))
    config = ServeDeploySchema.model_validate(document)
    for application in document["applications"]:
        scaling.check(application.get("deployments", []))
    return config


def _read_config(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text())
    if not isinstance(document, dict):
        raise ValueError("it holds no configuration")
    return document


def _deploy(config: Any) -> None:
    from ray import serve
    from ray.serve.context import _get_global_client

    serve.start(
        proxy_location=config.proxy_location,
        http_options=config.http_options.model_dump(),
        logging_config=config.logging_config,
    )
    # The one way to deploy a whole config file, deployments section included, without a dashboard in between.
    client = _get_global_client()
    assert client is not None
    client.deploy_apps(config)


def _exit(number: int, frame: object) -> None:
    sys.exit(0)


def _leave(options: argparse.Namespace) -> int:
    try:
        leave(options.seconds)
    except cluster.StartError as error:
        return complain(str(error))
    return 0


def _wait_until_ready(url: str) -> str | None:
    """Return once the service is ready; with a reason when it never will be."""
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    say_again = time.monotonic() + PATIENCE_SECONDS
    while not is_ready(url):
        for name, application in serve.status().applications.items():
            if application.status == ApplicationStatus.DEPLOY_FAILED:
                return _why_failed(name, application)
            if time.monotonic() > say_again:
                waiting = [name for name, each in application.deployments.items() if each.status != "HEALTHY"]
                advice = f"Waiting for {', '.join(waiting)}. Are there GPUs and CPUs enough?" if waiting else ""
                print(advice or f"Not ready: {_readiness(url)}", flush=True)
                say_again = time.monotonic() + PATIENCE_SECONDS
        time.sleep(0.25)
    return None


def _why_failed(name: str, application: Any) -> str:
    """The last line of what Serve says of each deployment that failed, or of the application."""
    failed = {other: each.message for other, each in application.deployments.items() if each.status == "DEPLOY_FAILED"}
    messages = failed or {name: application.message}
    return "; ".join(f"{name} could not be deployed: {_last_line(text)}" for name, text in messages.items())


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def is_ready(url: str) -> bool:
    """Whether a service under this address says that it is ready."""
    try:
        return httpx.get(f"{url}/health/ready", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _readiness(url: str) -> str:
    """What a service says of whether it is ready."""
    try:
        answer = httpx.get(f"{url}/health/ready", timeout=10, trust_env=False).json()
        return str(answer.get("status") or answer.get("detail"))
    except (httpx.TransportError, ValueError):
        return "it does not answer"


def _banner(settings: Settings, sample_url: str) -> str:
    url, key = settings.public_url, settings.key()
    body = f'{{"image_url": "{sample_url}"}}'
    return f"""
svd-serve is ready.

  URL         {url}
  playground  {url}/models/fal-ai/stable-video#key={key}
  key         {key}

  curl -X POST {url}/fal-ai/stable-video -H 'Authorization: Key {key}' -H 'Content-Type: application/json' -d '{body}'
"""


# ---------------------------------------------------------------- demo


def _demo(options: argparse.Namespace) -> int:
    settings = Settings()
    server = None if is_ready(settings.public_url) else _start_server(settings.public_url)
    try:
        if server and not is_ready(settings.public_url):
            return complain("the server did not start")
        path = _make_clip(settings, options)
    finally:
        if server:
            server.terminate()
            server.wait()
    print(path.absolute())
    return 0


def _start_server(url: str) -> subprocess.Popen[bytes]:
    """Start a server; return when it is ready or has ended."""
    port = urlsplit(url).port or 8000
    server = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "deployments.cli", "serve", "--port", str(port)], stdout=subprocess.DEVNULL
    )
    print("Starting a server …", flush=True)
    while server.poll() is None and not is_ready(url):
        time.sleep(0.25)
    return server


def _make_clip(settings: Settings, options: argparse.Namespace) -> Path:
    """Call the service as any program does: through the official client."""
    import fal_client
    from tqdm import tqdm

    point_fal_client_at(settings.public_url)
    bar = tqdm(total=1, unit="step")

    def show(update: Any) -> None:
        steps = [re.fullmatch(r"Step (\d+)/(\d+)", line["message"]) for line in getattr(update, "logs", None) or []]
        if steps and (step := steps[-1]) and int(step[1]) > bar.n:
            bar.total = int(step[2])
            bar.update(int(step[1]) - bar.n)

    result = fal_client.SyncClient(key=settings.key()).subscribe(
        options.endpoint,
        arguments={"image_url": fal_client.encode_file(options.picture)},
        with_logs=True,
        on_queue_update=show,
    )
    bar.close()
    video = result.get("video") or result["image"]
    path: Path = options.output
    path.write_bytes(httpx.get(video["url"], trust_env=False, follow_redirects=True).raise_for_status().content)
    return path


def point_fal_client_at(url: str) -> None:
    """Make the official Python client in this process talk to a server of ours.

    It knows fal's hosts as module globals, and insists on https wherever it takes a host from the environment.
    """
    import fal_client.client as fal

    fal.RUN_URL_FORMAT = f"{url}/"
    fal.QUEUE_URL_FORMAT = f"{url}/queue/"
    fal.REST_URL = fal.CDN_URL = url


# ---------------------------------------------------------------- weights


def _check_weights(options: argparse.Namespace) -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"  # what is missing is told, not downloaded

    def check(part: Part) -> str:
        parameters, hashes, files = part.check(), part.check_hashes(), len(part.files())
        size = f"{parameters:,} parameters, " if part.has_tensors else ""
        return f"ok, {size}{hashes} of {files} files with a known hash"

    return _for_each_part(options.config, check)


def _fetch_weights(options: argparse.Namespace) -> int:
    return _for_each_part(options.config, lambda part: ", ".join(str(path) for _, path in part.files()))


def _for_each_part(config: Path, work: Callable[[Part], str]) -> int:
    """Print what ``work`` says of each part of each endpoint; fail if anything is wrong with one."""
    os.environ |= {name: value for name, value in SERVICE_ENVIRONMENT.items() if name not in os.environ}
    try:
        applications = _read_config(config).get("applications", [])
        endpoints = [each for app in applications for each in AppArgs.model_validate(app["args"]).build().values()]
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        return complain(f"{config}: {error}")
    wrong = 0
    for endpoint in endpoints:
        print(endpoint.id, flush=True)
        for name, say in _sayings(endpoint, work):
            print(f"  {name}: {say}", flush=True)
            wrong += isinstance(say, CheckpointError)
    return complain(f"{wrong} parts are not as they must be") if wrong else 0


def _sayings(endpoint: Endpoint, work: Callable[[Part], str]) -> Iterator[tuple[str, str | CheckpointError]]:
    try:
        parts = endpoint.parts()
    except CheckpointError as error:
        yield "weights", error
        return
    for name, part in parts.items():
        try:
            yield name, work(part)
        except CheckpointError as error:
            yield name, error


# ---------------------------------------------------------------- connect


def _connect(options: argparse.Namespace) -> int:
    from deployments.connect.command import Options, connect

    program = options.program[1:] if options.program[:1] == ["--"] else options.program
    try:
        return connect(Options(program, options.url, options.key, options.listen, options.show, options.allow_others))
    except (OSError, ValueError) as error:
        return complain(str(error))


if __name__ == "__main__":
    sys.exit(main())
