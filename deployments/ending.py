"""How ``svd-serve serve`` ends, and how one node of a cluster does.

a signal ──▶ nothing is claimed, readiness is 503 ──▶ what runs ends ──▶ Serve ends ──▶ Ray ends
                                      a second signal, or the grace time is over: what runs is given back
a node that is to end ──▶ Ray places nothing there any more ──▶ Serve replaces its replicas ──▶ Ray ends there
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from deployments.cluster import StartError
from deployments.words import presentable

T = TypeVar("T")

STOP_SECONDS = 10.0
"""How long Serve may take to end, and then Ray's processes by themselves once it has been shut down."""

ANSWER_SECONDS = 5.0
"""How long the cluster may take to answer."""

LOOK_SECONDS = 1.0
"""How often a node that is to end looks whether it still serves."""

_SERVING = ("ray::ServeReplica", "ray::ProxyActor")
"""How the titles of processes begin that serve: replicas, and the proxy by which calls come, to whichever replica."""


def end(applications: Sequence[str], grace_seconds: float) -> None:
    """Let what these applications run end, for a while; then end Serve, Ray and every process below this one."""
    print("Stopping.", flush=True)
    try:
        _drain(applications, grace_seconds)
    except (KeyboardInterrupt, SystemExit):
        grace_seconds = 0.0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # more impatience must not leave half of it running
    if not grace_seconds:
        _drain(applications, 0.0)
    tree = psutil.Process().children(recursive=True)
    in_order = _within(1.5 * STOP_SECONDS, [_stop_ray])
    _, alive = psutil.wait_procs(tree, timeout=STOP_SECONDS if in_order else 0)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _drain(applications: Sequence[str], grace_seconds: float) -> None:
    """Have every dispatcher claim nothing any more; return when nothing runs, or after the grace time."""
    for dispatchers in _within(ANSWER_SECONDS, [lambda: _dispatchers(applications)]):
        calls = [dispatcher.broadcast("drain", grace_seconds).results for dispatcher in dispatchers]
        _within(grace_seconds + ANSWER_SECONDS, calls)


def _within(seconds: float, calls: Sequence[Callable[[], T]]) -> list[T]:
    """What these calls to the cluster answer, but for those that take longer or fail: its head may have died."""
    answers: list[T] = []

    def answer(call: Callable[[], T]) -> None:
        with _told():  # of a dispatcher that dies, the lease lapses
            answers.append(call())

    threads = [threading.Thread(target=answer, args=[call], daemon=True) for call in calls]
    give_up = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, give_up - time.monotonic()))
    return answers


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What goes wrong here is told in one line; the end goes on."""
    try:
        yield
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        print(f"While stopping: {type(error).__name__}: {presentable(first_line)}", flush=True)


def _dispatchers(applications: Sequence[str]) -> list[Any]:
    """The handles of those that run."""
    import ray
    from ray import serve

    from deployments.app import DISPATCHER

    if not ray.is_initialized():  # else Serve would look for a cluster, or start one
        return []
    found = serve.status().applications
    states = {name: found[name].deployments.get(DISPATCHER) for name in applications if name in found}
    running = [name for name, each in states.items() if each and _runs(each.replica_states)]
    return [serve.get_deployment_handle(DISPATCHER, name) for name in running]


def _runs(replica_states: Mapping[Any, int]) -> bool:
    """Whether a replica runs. Serve declares an enum here and gives its values."""
    return any(count for state, count in replica_states.items() if getattr(state, "value", state) == "RUNNING")


def _stop_ray() -> None:
    import ray
    from ray.serve.context import _get_global_client

    if ray.is_initialized():
        with _told():  # without Serve, Ray's processes end all the same
            if client := _get_global_client(raise_if_no_controller_running=False):
                client.shutdown(timeout_s=STOP_SECONDS)
        ray.shutdown()


def leave(seconds: int) -> None:
    """Have what this node of a Ray cluster serves go on elsewhere, or end; then end Ray here.

    Ray is told that the node has so many seconds. Serve starts other replicas for those of the node and ends these once
    the others run, at the latest their grace time before the seconds are over. It ends the node's proxy once the calls
    that came by it are answered, and half a minute has passed in which callers learn of other ways.

    Raises:
        StartError: Ray does not take the node away, for instance because its head is gone.
    """
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "its pod ends"]
    try:
        _ray("drain-node", *reason, "--deadline-remaining-seconds", str(seconds))
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up and any(_serving_here()):
            time.sleep(LOOK_SECONDS)
    finally:
        _ray("stop")


def _serving_here() -> Iterator[psutil.Process]:
    """What serves on this machine. A node of a cluster has one of its own: a pod."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(_SERVING):
                yield process


def _ray(*arguments: str) -> None:
    """Run a command of Ray's.

    Raises:
        StartError: It failed.
    """
    command = [str(Path(sys.executable).with_name("ray")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our own command
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it did not say why"]
        raise StartError(f"ray {arguments[0]}: {presentable(lines[-1])}")
