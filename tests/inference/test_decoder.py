"""The decoder's processes: what they may do, what becomes of an input that kills one, and what of the next."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from deployments.errors import ImageLoadError, InvalidArchive, ModelError, RunnerDisconnected
from deployments.inference.decoder import messages, pool, process
from deployments.inference.decoder.pool import Decoder
from deployments.inference.decoder.process import Child, ChildFailed, Limits
from deployments.models.size import Size
from tests.inference import hostile
from tests.inference.hostile import image_bytes, maps, png_bomb, scene, zipped

ROOT = Path(process.__file__).parents[3]
SIZE = Size(112, 64)
GOOD = image_bytes(scene())
PATIENCE = 60.0

pytestmark = pytest.mark.asyncio(loop_scope="session")
linux = pytest.mark.skipif(sys.platform != "linux", reason="walls of Linux")


@pytest.fixture(scope="module")
def slow() -> bytes:
    """A legal JPEG that takes many seconds: as many pixels in as many scans as are read."""
    return hostile.countless_scans(600)


@contextlib.contextmanager
def open_decoder(children: int = 1, **limits: Any) -> Iterator[Decoder]:
    decoder = Decoder(Limits(**limits), children)
    try:
        yield decoder
    finally:
        decoder.close()


async def check_next(decoder: Decoder) -> None:
    """The next input is read, whatever became of the last."""
    picture = await decoder.picture(GOOD, [SIZE])
    assert (picture.pixels.tobytes(), picture.original) == (scene().tobytes(), SIZE)


async def fork_of(pid: int) -> psutil.Process:
    """The fork that a child keeps ready, once its walls stand: it puts them up itself, after it has begun to be."""
    async with asyncio.timeout(PATIENCE):
        while not (forks := psutil.Process(pid).children()):
            await asyncio.sleep(0.01)
        [fork] = forks
        while sys.platform == "linux" and fork.rlimit(psutil.RLIMIT_CPU)[1] == resource.RLIM_INFINITY:  # the last
            await asyncio.sleep(0.01)
    return fork


def computed_below(replica: int) -> list[float]:
    """How long each fork of each child of a process has computed."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(replica).children()
        return [sum(fork.cpu_times()[:2]) for child in children for fork in child.children()]
    return []


async def taken(decoder: Decoder, pid: int) -> None:
    """Wait until a child has an input to open."""
    async with asyncio.timeout(PATIENCE):
        while pid in decoder.pids:
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def busy(decoder: Decoder) -> AsyncIterator[tuple[asyncio.Task[Any], psutil.Process]]:
    """A decoder's next child while it has an input, of which it does nothing until its fork is resumed."""
    await check_next(decoder)
    pid = decoder.pids[-1]
    fork = await fork_of(pid)
    fork.suspend()
    work = asyncio.create_task(decoder.picture(GOOD, [SIZE]))
    await taken(decoder, pid)
    yield work, fork


async def gone(*processes: psutil.Process) -> None:
    async with asyncio.timeout(PATIENCE):
        while any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes):
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------- what is opened


async def test_a_picture_comes_at_the_nearest_size_and_tells_its_own(decoder: Decoder) -> None:
    picture = await decoder.picture(image_bytes(scene((640, 1120))), [SIZE, Size(64, 112)])

    assert (picture.pixels.mode, picture.pixels.size, picture.original) == ("RGB", (64, 112), Size(640, 1120))


async def test_a_mask_comes_as_what_stays(decoder: Decoder) -> None:
    still = await decoder.mask(image_bytes(scene(corner="white")), SIZE, SIZE)

    assert (still.dtype, still.shape) == (np.bool_, (64, 112))
    assert still[:30, :50].all()
    assert not still[:, 60:].any()


async def test_maps_come_in_order(decoder: Decoder) -> None:
    opened = await decoder.maps(zipped(maps(3)), SIZE, 3)

    assert [(map.size, map.getpixel((0, 0))) for map in opened] == [((112, 64), (i,) * 3) for i in range(3)]


async def test_inputs_are_opened_beside_each_other_and_not_mixed_up(decoder: Decoder) -> None:
    colours = [(number, 255 - number, 7) for number in range(0, 250, 10)]
    files = [image_bytes(hostile.Image.new("RGB", (112, 64), colour)) for colour in colours]

    opened = await asyncio.gather(*(decoder.picture(data, [SIZE]) for data in files))
    assert [picture.pixels.getpixel((50, 30)) for picture in opened] == colours


# ---------------------------------------------------------------- what a child may do


async def test_a_child_loads_nothing_but_what_opens_pictures() -> None:
    listing = process.START.replace("main(*map(int, sys.argv[1:5]))", "pass") + (
        "; from deployments.inference.decoder import child; child.warm_up(); print(*sorted(sys.modules))"
    )
    root = str(ROOT)
    command = [sys.executable, "-I", "-c", listing, "0", "0", "0", "0", root]
    loaded = subprocess.run(command, capture_output=True, check=True, text=True, cwd="/").stdout.split()

    assert {"PIL.Image", "numpy", "deployments.inference.images"} <= set(loaded)
    packages = {name.partition(".")[0] for name in loaded}
    assert not packages & {
        "torch",
        "ray",
        "sqlalchemy",
        "pydantic",
        "httpx",
        "fastapi",
        "starlette",
        "asyncio",
        "obstore",
    }
    ours = {name for name in loaded if name.startswith("deployments.")}
    assert {name.split(".")[1] for name in ours} == {"inference", "models", "errors"}


async def test_nothing_is_loaded_once_the_walls_stand(decoder: Decoder, caplog: pytest.LogCaptureFixture) -> None:
    """A module that has to be found first would be refused there, and its picture with it."""
    with caplog.at_level(logging.DEBUG, process.__name__):
        for case in hostile.CASES:
            if case.row in (39, 49, 50) and case.kind == "picture":
                await decoder.picture(case.make(), [SIZE])
    assert caplog.messages == []


async def test_a_child_runs_the_package_that_started_it_wherever_that_is(tmp_path: Path) -> None:
    """A copy that another place holds, and that knows another largest picture; the working directory is a third."""
    package = tmp_path / "here" / "deployments"
    shutil.copytree(ROOT / "deployments", package, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    images = package / "inference" / "images.py"
    images.write_text(images.read_text().replace("MAX_SIDE = 16_384", "MAX_SIDE = 100"))
    program = f"""
import asyncio, sys
sys.path.insert(0, {str(package.parent)!r})
from deployments.inference.decoder.pool import Decoder
from deployments.models.size import Size
decoder = Decoder(children=1)
try:
    asyncio.run(decoder.picture(sys.stdin.buffer.read(), [Size(112, 64)]))
except Exception as error:
    print(error.message)
finally:
    decoder.close()
"""
    run = subprocess.run([sys.executable, "-c", program], input=GOOD, capture_output=True, check=True, cwd=tmp_path)
    assert run.stdout.decode().strip() == "The picture is 112x64; a side has at most 100 pixels"


@linux
async def test_a_child_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SVD_DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "HF_TOKEN", "PYTHONPATH"):
        monkeypatch.setenv(name, "secret")
    with open_decoder() as decoder:
        await check_next(decoder)
        [pid] = decoder.pids
        fork = await fork_of(pid)
        for each in (psutil.Process(pid), fork):
            variables = dict(line.split("=", 1) for line in _proc(each.pid, "environ").split("\0") if line)
            assert set(variables) <= {*process.ENVIRONMENT, *process.ONE_THREAD}
            assert "secret" not in " ".join([*variables.values(), *each.cmdline()])
            assert os.readlink(f"/proc/{each.pid}/cwd") == "/"


@linux
async def test_a_child_holds_nothing_but_its_pipes(decoder: Decoder) -> None:
    with open(__file__):  # a file of this process
        await check_next(decoder)
        fork = await fork_of(decoder.pids[-1])
        held = [os.readlink(f"/proc/{fork.pid}/fd/{number}") for number in os.listdir(f"/proc/{fork.pid}/fd")]
    assert all(name.startswith("pipe:") for name in held)
    assert len(set(held)) == 3


@linux
async def test_what_an_input_may_take_is_limited() -> None:
    with open_decoder(memory_bytes=2**30, picture_seconds=3, archive_seconds=7) as decoder:
        await check_next(decoder)
        fork = await fork_of(decoder.pids[0])
        assert psutil.Process(decoder.pids[0]).num_threads() == 1, "a process with threads cannot fork"
        limits = {name: fork.rlimit(getattr(psutil, f"RLIMIT_{name}")) for name in LIMITS}
        assert limits == LIMITS
        assert os.getsid(fork.pid) == decoder.pids[0]
        assert _proc(fork.pid, "oom_score_adj").strip() == "1000"
        status = dict(line.split(":\t", 1) for line in _proc(fork.pid, "status").splitlines())
        assert status["NoNewPrivs"] == "1"


LIMITS = {
    "AS": (2**30, 2**30),
    "CPU": (8, 9),
    "FSIZE": (0, 0),
    "NOFILE": (8, 8),
    "CORE": (0, 0),
    "NPROC": (0, 0),
}


@linux
async def test_behind_the_walls_there_is_neither_file_nor_network_nor_process(tmp_path: Path) -> None:
    """What this system gives is put up, and holds; what it does not give is told."""
    tries = f"""
import ctypes, json, os, socket, subprocess, sys
sys.path.insert(0, {str(ROOT)!r})
from deployments.inference.decoder import walls
before = os.readlink("/proc/self/ns/net")
missing = walls.around_child(2 ** 32)
def attempt(what):
    try:
        what()
    except OSError as error:
        return error.errno
    return 0
def answers():
    return [
        attempt(lambda: open("/etc/passwd")),
        attempt(lambda: open("/proc/%d/environ" % os.getppid())),
        attempt(lambda: open({str(tmp_path / "new")!r}, "w")),
        attempt(lambda: socket.create_connection(("127.0.0.1", {_closed_port()}), 1)),
        attempt(lambda: os.kill(os.getppid(), 0)),
    ]
outer = answers()
missing += walls.around_fork(60)
inner = answers() + [attempt(lambda: os.fork() or os._exit(0)), attempt(lambda: os.execv("/bin/true", ["true"]))]
os.write(1, json.dumps([missing, outer, inner]).encode())
"""
    done = subprocess.run([sys.executable, "-I", "-c", tries], capture_output=True, check=True)
    missing, outer, inner = json.loads(done.stdout)

    assert set(missing) <= {"own network", "Landlock", "seccomp"}
    if "Landlock" not in missing:
        assert 0 not in outer[:3]
    if "own network" not in missing:
        assert outer[3] not in (0, 111), "the loopback of this machine was reached"
    if "seccomp" not in missing:
        assert 0 not in inner
    assert not (tmp_path / "new").exists()


async def test_a_wall_that_cannot_be_had_is_told_and_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = f"""
import json, os, sys
sys.path.insert(0, {str(ROOT)!r})
from deployments.inference.decoder import walls
class Nothing:
    def __getattr__(self, name):
        return lambda *arguments: -1
walls._libc, walls._seccomp = Nothing(), None
print(json.dumps([walls.around_child(2 ** 32), walls.around_fork(60)]))
"""
    done = subprocess.run([sys.executable, "-I", "-c", tries], capture_output=True, check=True)

    assert json.loads(done.stdout) == [["no new privileges", "own network", "Landlock"], ["seccomp"]]


def _closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


# ---------------------------------------------------------------- what becomes of an input that is too much


@linux
async def test_an_input_that_needs_too_much_memory_is_refused_alone() -> None:
    with open_decoder(memory_bytes=400 * 2**20) as decoder:
        with pytest.raises(ImageLoadError, match="could not be decoded: it took too much memory"):
            await decoder.picture(hostile.largest(), [SIZE])
        with pytest.raises(InvalidArchive, match="could not be opened: it took too much memory") as caught:
            await decoder.maps(zipped([("1.png", hostile.largest())]), SIZE, 1)
        assert caught.value.body()["detail"][0]["ctx"] == {"supported_extensions": [".zip", ".tar", ".tar.gz"]}
        await check_next(decoder)


@pytest.mark.parametrize("kind", ["picture", "archive"])
async def test_an_input_that_takes_too_long_is_refused_alone(
    slow: bytes, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It need not have had much of a machine that is busy with other things."""
    monkeypatch.setattr(pool, "BUSY", 0.1)
    with open_decoder(**{f"{kind}_seconds": 1.0}) as decoder:
        if kind == "picture":
            with pytest.raises(ImageLoadError, match="could not be decoded: it took too much time"):
                await decoder.picture(slow, [SIZE])
            assert len(await decoder.maps(zipped(maps(2)), SIZE, 2)) == 2
        else:
            with pytest.raises(InvalidArchive, match="could not be opened: it took too much time"):
                await decoder.maps(zipped([("1.jpg", slow)]), SIZE, 1)
            await check_next(decoder)


@linux
async def test_an_input_computes_no_longer_than_it_may_though_nobody_watches(slow: bytes) -> None:
    """The limit of the process itself: here the replica would wait for ever."""
    child = Child(Limits(picture_seconds=0, archive_seconds=0))
    try:
        await asyncio.to_thread(child.wait_until_ready)
        request = {"job": "picture", "sizes": [(112, 64)]}
        with pytest.raises(ChildFailed, match="too much time"):
            await asyncio.to_thread(child.ask, request, slow, lambda text: (text, 0))
    finally:
        child.end()


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (signal.SIGSEGV, "its decoder failed"),
        (signal.SIGABRT, "its decoder failed"),
        (signal.SIGBUS, "its decoder failed"),
        (signal.SIGXCPU, "it took too much time"),
    ],
)
async def test_whatever_ends_a_decoder_harms_one_input(number: signal.Signals, why: str) -> None:
    with open_decoder() as decoder:
        async with busy(decoder) as (work, fork):
            fork.send_signal(number)
            fork.resume()
            with pytest.raises(ImageLoadError, match=f"The picture could not be decoded: {why}"):
                await work
        await gone(fork)
        await check_next(decoder)


@pytest.mark.parametrize(
    ("whom", "number"),
    [("fork", signal.SIGKILL), ("child", signal.SIGKILL), ("child", signal.SIGSEGV), ("fork", signal.SIGALRM)],
)
async def test_a_decoder_that_ends_for_no_fault_of_its_input_is_replaced(whom: str, number: signal.Signals) -> None:
    """Linux kills where memory runs out for everybody, and a child never reads an input."""
    with open_decoder() as decoder:
        async with busy(decoder) as (work, fork):
            os.kill(fork.ppid() if whom == "child" else fork.pid, number)
            fork.resume()
            assert (await work).original == SIZE
        await gone(fork)


async def test_an_input_whose_decoder_is_lost_twice_is_worth_another_attempt() -> None:
    with open_decoder() as decoder:
        async with busy(decoder) as (work, fork):
            first = set(psutil.Process().children())
            fork.kill()
            async with asyncio.timeout(PATIENCE):
                while not (others := set(psutil.Process().children()) - first):
                    await asyncio.sleep(0.01)
            others.pop().kill()
            with pytest.raises(RunnerDisconnected) as caught:
                await work
        assert caught.value.failure().retryable
        await check_next(decoder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_for_all_processes_of_a_pod_harms_no_input(number: signal.Signals) -> None:
    """It is for the replica to say when its decoders end: what runs as the service is stopped runs to its end."""
    with open_decoder() as decoder:
        async with busy(decoder) as (work, fork):
            child = psutil.Process(fork.ppid())
            for each in (child, fork):
                each.send_signal(number)
            fork.resume()
            assert (await work).original == SIZE
            assert decoder.pids == [child.pid], "another was started"
    await gone(child, fork)


async def test_what_hangs_is_killed_and_worth_another_attempt() -> None:
    """It is late without having computed: so is any input on a machine that is busy with others."""
    with open_decoder(picture_seconds=0.5) as decoder:
        await decoder.maps(zipped(maps(1)), SIZE, 1)
        fork = await fork_of(decoder.pids[0])
        fork.suspend()
        with pytest.raises(RunnerDisconnected, match="too little time") as caught:
            await decoder.picture(GOOD, [SIZE])
        assert caught.value.failure().retryable
        await gone(fork)
        assert len(await decoder.maps(zipped(maps(2)), SIZE, 2)) == 2


async def test_a_cancelled_request_stops_its_decoder() -> None:
    with open_decoder() as decoder:
        async with busy(decoder) as (work, fork):
            child = psutil.Process(fork.ppid())
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            await gone(fork, child)
        await check_next(decoder)


async def test_a_request_that_is_cancelled_while_it_waits_costs_no_decoder() -> None:
    with open_decoder() as decoder:
        async with busy(decoder) as (work, fork):
            waiting = asyncio.create_task(decoder.picture(GOOD, [SIZE]))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            fork.resume()
            assert (await work).original == SIZE


async def test_a_decoder_that_died_while_it_waited_is_nobodys_fault() -> None:
    with open_decoder(2) as decoder:
        await check_next(decoder)
        for pid in decoder.pids:
            os.kill(pid, signal.SIGKILL)
            await gone(psutil.Process(pid))
        await check_next(decoder)


async def test_a_small_picture_need_not_wait_for_a_large_one() -> None:
    with open_decoder(2) as decoder:
        async with busy(decoder) as (work, fork):
            await check_next(decoder)
            assert not work.done()
            fork.resume()
            await work


async def test_archives_leave_a_decoder_to_pictures() -> None:
    archive = zipped(maps(2))
    with open_decoder(2) as decoder:
        await check_next(decoder)
        busy_with = decoder.pids[-1]
        fork = await fork_of(busy_with)
        fork.suspend()
        archives = [asyncio.create_task(decoder.maps(archive, SIZE, 2)) for _ in range(4)]
        await taken(decoder, busy_with)
        await check_next(decoder)
        assert not any(work.done() for work in archives)
        fork.resume()
        assert [len(opened) for opened in await asyncio.gather(*archives)] == [2] * 4


async def test_a_replica_may_hold_many_files() -> None:
    """Of descriptors beyond 1023, ``select`` knows nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    try:
        with contextlib.ExitStack() as files:
            for _ in range(1024):
                files.enter_context(open(os.devnull))
            with open_decoder() as decoder:
                await check_next(decoder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_each_input_has_a_process_of_its_own() -> None:
    with open_decoder() as decoder:
        forks = []
        for _ in range(3):
            await check_next(decoder)
            forks.append((await fork_of(decoder.pids[0])).pid)
            assert len(psutil.Process(decoder.pids[0]).children()) == 1
        assert len(set(forks)) == 3


async def test_no_process_and_no_descriptor_is_left_over(slow: bytes) -> None:
    me = psutil.Process()
    before = me.num_fds()
    with open_decoder(2, picture_seconds=0.5) as decoder:
        for data in (GOOD, slow, png_bomb(), b"junk", GOOD):
            with contextlib.suppress(ModelError, RunnerDisconnected):
                await decoder.picture(data, [SIZE])
        started = [psutil.Process(pid) for pid in decoder.pids]
    await gone(*started)
    async with asyncio.timeout(PATIENCE):
        while me.num_fds() > before:
            await asyncio.sleep(0.01)


@linux
async def test_no_decoder_outlives_its_replica(slow: bytes) -> None:
    """Killed -9 while one of its decoders waits and the other works."""
    replica = f"""
import asyncio, sys
sys.path.insert(0, {str(ROOT)!r})
from deployments.inference.decoder.pool import Decoder
from deployments.models.size import Size
async def main():
    decoder = Decoder()
    small, slow = sys.stdin.buffer.read({len(GOOD)}), sys.stdin.buffer.read()
    await asyncio.gather(*(decoder.picture(small, [Size(112, 64)]) for _ in range(2)))
    work = asyncio.create_task(decoder.picture(slow, [Size(112, 64)]))
    await work
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", replica], stdin=subprocess.PIPE)
    with parent:
        assert parent.stdin
        parent.stdin.write(GOOD + slow)
        parent.stdin.close()
        async with asyncio.timeout(PATIENCE):
            while not any(seconds > 0.1 for seconds in computed_below(parent.pid)):
                await asyncio.sleep(0.01)
            while len(family := psutil.Process(parent.pid).children(recursive=True)) != 4:
                await asyncio.sleep(0.01)
        parent.kill()
        await gone(*family)


# ---------------------------------------------------------------- what a child says is not believed


def impostor(source: str) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts another program than the child; it is ready, and has read its input when ``source`` runs."""
    program = f"""
import json, os, sys, time
def say(header, payload=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    sys.stdout.buffer.write((len(text) if length is None else length).to_bytes(4, "big") + text + payload)
    sys.stdout.flush()
say({{"missing": []}})
request = json.loads(sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(4), "big")))
sys.stdin.buffer.read(request["bytes"])
pixels = bytes(112 * 64 * 3)
right = {{"size": [112, 64], "original": [112, 64]}}
{source}
os.write(int(sys.argv[4]), b".")
time.sleep(60)
"""

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return real_popen([*command[:3], program, *command[4:]], **options)

    return start


real_popen = subprocess.Popen


async def test_an_impostor_that_says_the_right_thing_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the others are refused for what they say."""
    monkeypatch.setattr(process.subprocess, "Popen", impostor("say(right, pixels)"))
    with open_decoder() as decoder:
        assert (await decoder.picture(GOOD, [SIZE])).pixels.tobytes() == bytes(112 * 64 * 3)


@pytest.mark.parametrize(
    "source",
    [
        'say({"size": [113, 64], "original": [112, 64]}, bytes(113 * 64 * 3))',
        'say({"size": [16000, 16000], "original": [112, 64]}, b"")',
        'say({"size": [112.0, 64], "original": [112, 64]}, pixels)',
        'say({"size": ["112", 64], "original": [112, 64]}, pixels)',
        'say({"size": [112, 64], "original": [0, 64]}, pixels)',
        'say({"size": [112, 64], "original": [16384, 16384]}, pixels)',
        'say({"size": [112, 64], "original": [112, 64], "more": 1}, pixels)',
        'say({"size": [112, 64]}, pixels)',
        "say([], pixels)",
        'say(b"{", pixels)',
        'say(b"[" * 60000, pixels)',
        'say(b"\\xff", pixels)',
        'say(b" " * 70000, pixels)',
        "say(b'', b'', length=2**32 - 1)",
        "say(right, pixels + b'x')",
        "say(right, pixels); say(right, pixels)",
        f"say(right, pixels[:-1]); sys.stdout.close(); os._exit({messages.RAISED})",
        'say({"error": "SystemExit", "message": "x", "ctx": {}})',
        'say({"error": "image_load_error", "message": "x" * 3000, "ctx": {}})',
        'say({"error": "image_load_error", "message": "x", "ctx": {"a": {"b": 1}}})',
        'say({"error": "image_load_error", "message": "x", "ctx": {"a": float("nan")}})',
        "import pickle; sys.stdout.buffer.write(pickle.dumps(right) + pixels); sys.stdout.flush()",
    ],
)
async def test_what_was_not_asked_for_is_a_failure(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(process.subprocess, "Popen", impostor(source))
    with open_decoder() as decoder:
        await asyncio.sleep(0)
        monkeypatch.undo()  # the next one is real
        with pytest.raises(ImageLoadError, match="could not be decoded: its decoder failed"):
            await decoder.picture(GOOD, [SIZE])
        await check_next(decoder)


@pytest.mark.parametrize("count", [0, 3, -1])
async def test_a_child_decides_not_how_many_maps_there_are(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(process.subprocess, "Popen", impostor(f'say({{"maps": {count}}}, pixels * 3)'))
    with open_decoder() as decoder:
        monkeypatch.undo()
        with pytest.raises(InvalidArchive, match="could not be opened: its decoder failed"):
            await decoder.maps(zipped(maps(1)), SIZE, 2)
        await check_next(decoder)


async def test_a_mask_is_true_or_false_whatever_its_bytes_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.subprocess, "Popen", impostor("say({}, bytes([0, 1, 2, 255]) * (112 * 16))"))
    with open_decoder() as decoder:
        still = await decoder.mask(GOOD, SIZE, SIZE)
    assert still[0, :4].tolist() == [False, True, True, True]


async def test_what_a_child_prints_is_kept_short_and_escaped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loud = 'sys.stderr.write("\\x1b[2J\\n" + "x" * 60000 + "\\nlast\\x00words"); sys.stderr.flush(); os._exit(5)'
    monkeypatch.setattr(process.subprocess, "Popen", impostor(loud))
    with open_decoder() as decoder, pytest.raises(ImageLoadError, match="its decoder failed"):
        await decoder.picture(GOOD, [SIZE])
    [said] = [message for message in caplog.messages if "says" in message]
    assert "last\\x00words" in said
    assert said.isprintable()
    assert len(said) < 5000


# ---------------------------------------------------------------- no decoder at all


async def test_a_child_that_cannot_start_is_no_fault_of_an_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "START", "raise SystemExit('no')")
    with open_decoder() as decoder:
        for _ in range(2):
            with pytest.raises(RunnerDisconnected, match="No decoder could be started") as caught:
                await decoder.picture(GOOD, [SIZE])
            assert caught.value.failure().retryable
        monkeypatch.undo()
        with contextlib.suppress(RunnerDisconnected):  # the one that was started before
            await check_next(decoder)
        await check_next(decoder)


async def test_a_child_that_never_gets_ready_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "START", "import time; time.sleep(60)")
    monkeypatch.setattr(pool, "START_SECONDS", 0.2)
    with open_decoder() as decoder, pytest.raises(RunnerDisconnected, match="No decoder could be started"):
        await decoder.picture(GOOD, [SIZE])


async def test_no_process_to_be_had_is_no_fault_of_an_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(process.subprocess, "Popen", refuse)
    with open_decoder() as decoder:
        with pytest.raises(RunnerDisconnected, match="No decoder could be started"):
            await decoder.picture(GOOD, [SIZE])
        monkeypatch.undo()
        await check_next(decoder)


async def test_missing_walls_are_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    source = "say(right, pixels)"
    start = impostor(source)

    def without_walls(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return start(command, **options)

    monkeypatch.setattr(process.subprocess, "Popen", without_walls)
    monkeypatch.setattr(process, "_Ready", _Bare)
    with open_decoder(2) as decoder:
        await asyncio.gather(*(decoder.picture(GOOD, [SIZE]) for _ in range(2)))
    assert [message for message in caplog.messages if "walls" in message] == [
        "decoders run without these walls, which this system does not give: ['Landlock']"
    ]


class _Bare:
    """A greeting that says that a wall is missing."""

    missing = ("Landlock",)

    @classmethod
    def model_validate_json(cls, text: bytes) -> type[_Bare]:
        return cls


# ---------------------------------------------------------------- messages


async def test_a_message_comes_as_it_was_sent(tmp_path: Path) -> None:
    read, write = os.pipe()
    with open(read, "rb", 0) as reader, open(write, "wb", 0) as writer:
        messages.write(writer, {"a": "ä"}, b"12", b"345")  # type: ignore[arg-type]  # FileIO
        assert json.loads(messages.read_header(reader)) == {"a": "ä"}  # type: ignore[arg-type]
        assert messages.read_all(reader, 5) == b"12345"  # type: ignore[arg-type]
        writer.close()
        with pytest.raises(EOFError):
            messages.read_header(reader)  # type: ignore[arg-type]


async def test_a_header_has_a_length() -> None:
    read, write = os.pipe()
    with open(read, "rb", 0) as reader, open(write, "wb", 0) as writer:
        writer.write((messages.MAX_HEADER_BYTES + 1).to_bytes(4, "big"))
        with pytest.raises(ValueError, match="65537"):
            messages.read_header(reader)  # type: ignore[arg-type]
