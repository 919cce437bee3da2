"""A load test from beginning to end, from a service to a page (``make load``).

    python -m loadtest.load [ramp|spike|soak|mixed|knee] [--users 4] [--seconds 45] [--host URL] …

    own service, or --host ──▶ locust, a process of its own ──▶ CSV ──┐
             └──▶ watch: /metrics, or --prometheus ──▶ samples.jsonl ─┴──▶ report.html, and a table

Without ``--host`` it starts the default service on a free port of this machine, with a data directory of its own, and
stops it again. Another machine is loaded only with ``--allow-remote``. Every shape is bounded in users, time and clips.
The key is the one in ``FAL_KEY``, else ``SVD_ADMIN_KEY`` or the one kept in ``SVD_DATA_DIR``. ``knee`` runs several
loads one after the other and finds the one beyond which clips wait longer than throughput grows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from deployments.cli import is_ready
from deployments.settings import Settings
from deployments.words import presentable, print_table, printable
from loadtest import recording, report, watch
from loadtest.service import run_server
from loadtest.shapes import stages
from loadtest.wire import ASKED, add_options, check_ways, is_loopback, weights

KNEE = "knee"
LOCUSTFILE = Path(__file__).with_name("locustfile.py")
DEFAULTS = {"ramp": (4, 45.0), "spike": (12, 60.0), "soak": (2, 1800.0), "mixed": (4, 120.0), KNEE: (0, 40.0)}
"""For each shape, users and seconds that a laptop bears."""

AFTERWARDS_SECONDS = 30.0
"""How long locust may take to start and to write its files, beside what its load takes."""

SETTLE_SECONDS = 3.0
"""Between two loads the service has so long to come to rest; its queue is empty unless users were cut off."""

LONGEST_COMMAND = 2000


class CannotLoad(Exception):
    """There is something wrong with what was asked for, or with the service; the message says what."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Load a service and write the report; 0 if clips were made and none failed, 2 if nothing was done."""
    options = _parser().parse_args(arguments)
    try:
        loads = _loads(options)
        with _service(options) as (url, key):
            _run_all(options, loads, url, key)
    except (CannotLoad, ValueError, OSError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 2
    return _tell(options.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", nargs="?", choices=list(DEFAULTS), default="ramp")
    parser.add_argument("--users", type=int, help="at the most at the same time")
    parser.add_argument("--seconds", type=float, help="how long a load lasts; what has begun then may end")
    parser.add_argument("--loads", default="1,4,12", help="users of each load of knee")
    parser.add_argument("--stop-seconds", type=int, default=120, help="how long what has begun may take at the end")
    parser.add_argument("--host", help="a service that runs; without it one is started")
    add_options(parser)
    parser.add_argument("--prometheus", metavar="URL", help="read queue, replicas and cost there afterwards")
    parser.add_argument("--output", type=Path, default=Path("dist/load"), help="for report.html and what it is made of")
    return parser


# ---------------------------------------------------------------- what is asked for


@dataclass(frozen=True)
class Load:
    """One run of locust."""

    name: str
    shape: str
    users: int
    seconds: float


def _loads(options: argparse.Namespace) -> list[Load]:
    """The runs that were asked for, checked before anything is started.

    Raises:
        ValueError: They are too many or too long, or there is nothing to ask for.
    """
    users, seconds = DEFAULTS[options.shape]
    seconds = options.seconds if options.seconds is not None else seconds
    counts = (
        [int(each) for each in options.loads.split(",")]
        if options.shape == KNEE
        else [users if options.users is None else options.users]
    )
    shape = "soak" if options.shape == KNEE else options.shape
    for count in counts:
        stages(shape, count, seconds, len(weights(options.endpoints)))
    check_ways(weights(options.ways))
    return [Load(f"load-{place}", shape, count, seconds) for place, count in enumerate(counts, start=1)]


@contextlib.contextmanager
def _service(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """The URL and key of the service to be loaded; one of our own ends with this.

    Raises:
        CannotLoad: It is not to be loaded, is not ready, or there is no key for it.
    """
    if options.host:
        yield _host(options.host.rstrip("/"), options.allow_remote), _key()
        return
    with tempfile.TemporaryDirectory(prefix="svd-serve-load-") as folder:
        print("Starting a service ...", flush=True)
        options.output.mkdir(parents=True, exist_ok=True)
        with run_server(Path(folder), log=options.output.absolute() / "service.log") as server:
            print(f"{server.url} is ready after {server.took:.0f} s", flush=True)
            yield server.url, server.key


def _host(url: str, allow_remote: bool) -> str:
    if not allow_remote and not is_loopback(url):
        raise CannotLoad(f"{url} is not this machine; --allow-remote lets it be another one")
    if not is_ready(url):
        raise CannotLoad(f"nothing at {url} says that it is ready")
    return url


def _key() -> str:
    """The key to call with, as ``svd-serve connect`` finds it; none is made: the service would not know it."""
    settings = Settings()
    kept = settings.admin_key or settings.key_file.exists()
    key = os.environ.get("FAL_KEY") or (settings.key() if kept else "")
    if not key:
        raise CannotLoad("there is no key: set FAL_KEY or SVD_ADMIN_KEY, or SVD_DATA_DIR to where one is kept")
    return key


# ---------------------------------------------------------------- the runs


def _run_all(options: argparse.Namespace, loads: Sequence[Load], url: str, key: str) -> None:
    """Run them one after the other and write down what the report is made of."""
    folder: Path = options.output
    _clear(folder)
    parts: list[dict[str, Any]] = []
    watching = contextlib.nullcontext() if options.prometheus else watch.Watch(url, key, folder / "samples.jsonl")
    with watching:
        for place, load in enumerate(loads):
            if place:
                time.sleep(SETTLE_SECONDS)
            print(f"{load.users} users for {load.seconds:.0f} s ({load.shape}) ...", flush=True)
            parts.append(_run(load, options, url, key))
            (folder / "run.json").write_text(json.dumps(_about(options, url, parts), indent=2))
    began, ended = parts[0]["began"], parts[-1]["ended"]
    if options.prometheus:
        samples = _kept(options.prometheus, began, ended)
        (folder / "samples.jsonl").write_text("".join(f"{each.dump()}\n" for each in samples))
    if costs := watch.ask_costs(url, key, began, ended):
        (folder / "costs.json").write_text(json.dumps(costs))


def _kept(prometheus: str, began: float, ended: float) -> list[watch.Sample]:
    """What Prometheus kept of the loads; where it does not tell, that: a load is not lost for it."""
    try:
        return watch.ask_prometheus(prometheus, began, ended)
    except OSError as error:
        return [watch.Sample(ended, {}, str(error))]


def _clear(folder: Path) -> None:
    """Make the folder, and forget what a former run left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("load-[0-9]*_*.csv", "load-[0-9]*.log", "samples.jsonl", "costs.json", "run.json", "report.html"):
        for file in folder.glob(pattern):
            file.unlink()


def _run(load: Load, options: argparse.Namespace, url: str, key: str) -> dict[str, Any]:
    """Run locust; answer what the report must know of it.

    Raises:
        CannotLoad: It did not begin, or did not end in its time.
    """
    folder: Path = options.output
    began = time.time()
    with (folder / f"{load.name}.log").open("wb") as log:
        locust = subprocess.Popen(
            _command(load, options, url), env=_environment(key), stdout=log, stderr=log, start_new_session=True
        )
        try:
            status = locust.wait(load.seconds + options.stop_seconds + AFTERWARDS_SECONDS)
        except subprocess.TimeoutExpired:
            raise CannotLoad(f"locust did not end after {load.seconds:.0f} s of load") from None
        finally:
            _end(locust)
    counted = folder / f"{load.name}_stats.csv"
    if status not in (0, 1) or not (counted.exists() and counted.stat().st_size):
        raise CannotLoad(f"locust did not run: {_last_line(folder / f'{load.name}.log')}")
    return {"name": load.name, "users": load.users, "began": began, "ended": time.time()}


def _command(load: Load, options: argparse.Namespace, url: str) -> list[str]:
    given = {
        "locustfile": LOCUSTFILE,
        "host": url,
        "shape": load.shape,
        "users": load.users,
        "run-time": f"{load.seconds:.0f}s",
        "stop-timeout": options.stop_seconds,
        "csv": options.output / load.name,
        **{name: getattr(options, name) for name in ASKED},
    }
    flags = ["--headless", "--csv-full-history", "--only-summary", "--exit-code-on-error=1"]
    flags += ["--allow-remote"] if options.allow_remote else []
    return [sys.executable, "-m", "locust", *flags, *(f"--{name}={value}" for name, value in given.items())]


def _environment(key: str) -> dict[str, str]:
    """What locust sees: no settings from outside, and the key where no other user of the machine reads it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("LOCUST_", "SVD_"))}
    path = os.pathsep.join(filter(None, [str(LOCUSTFILE.parents[1]), inherited.get("PYTHONPATH", "")]))
    return inherited | {"FAL_KEY": key, "PYTHONPATH": path}


def _end(locust: subprocess.Popen[bytes]) -> None:
    """End it if it runs: let it write its files, or else kill it."""
    if locust.poll() is not None:
        return
    locust.send_signal(signal.SIGTERM)
    try:
        locust.wait(AFTERWARDS_SECONDS)
    except subprocess.TimeoutExpired:
        locust.kill()
        locust.wait()


def _last_line(log: Path) -> str:
    return log.read_text(errors="replace").strip().rpartition("\n")[2] or "it said nothing"


def _about(options: argparse.Namespace, url: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "shape": options.shape,
        "host": presentable(url),
        "command": presentable(shlex.join(["python", "-m", "loadtest.load", *sys.argv[1:]]), LONGEST_COMMAND),
        "watched": presentable(f"Prometheus at {options.prometheus}" if options.prometheus else f"{url}/metrics"),
        "versions": {
            "Python": platform.python_version(),
            "locust": version("locust"),
            "CPUs": str(psutil.cpu_count()),
        },
        "parts": parts,
    }


# ---------------------------------------------------------------- the end


def _tell(folder: Path) -> int:
    """Write the report, print the table and where the page is."""
    path = report.write(folder)
    told = recording.load(folder)
    levels = told.levels
    print_table(report.LEVEL_HEAD, report.level_rows(levels))
    for part in told.parts:
        if part.tried_again:
            print(f"{part.tried_again} calls of {part.users} users were refused or not answered, and made once more")
        for failure in part.failures:
            print(printable(f"failed {failure.count} times: {failure.kind} {failure.name}: {failure.why}"))
    print(path.absolute())
    return 0 if all(level.clips and not level.failed for level in levels) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *ignored: sys.exit(2))  # locust and the service end as they do by Ctrl-C
    sys.exit(main())
