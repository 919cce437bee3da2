"""``svd-serve connect``: programs that were written for fal, in their own processes, reach our server unchanged.

The first tests put a small server of their own behind it, the last ones the whole service.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websockets

from deployments.connect import endpoint as endpoint_module
from deployments.connect.certificates import Authority
from deployments.connect.command import HOSTS
from deployments.connect.endpoint import TlsEndpoint, Upstream
from deployments.gateway.sample import SAMPLE
from tests.conftest import ROOT, Server, free_port, need

JS = ROOT / "tests" / "js"
PATIENCE = 60.0
MIB = 1024 * 1024


# ---------------------------------------------------------------- a small server, and programs


class Echo(http.server.BaseHTTPRequestHandler):
    """Tells what it was asked; a GET of /large is answered by 100 MiB."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        read = 0
        length = int(self.headers.get("content-length") or 0)
        while read < length:
            if self.path == "/held":
                self.server.release.wait(PATIENCE)  # type: ignore[attr-defined]
            read += len(self.rfile.read(min(MIB, length - read)))
        if self.path == "/large":
            self.answer([b"x" * MIB] * 100)
        else:
            told = {"host": self.headers["host"], "path": self.path, "key": self.headers["authorization"], "read": read}
            self.answer([json.dumps(told).encode()])

    do_POST = do_PUT = do_GET

    def answer(self, chunks: list[bytes]) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(sum(map(len, chunks))))
        self.end_headers()
        if len(chunks) > 1:
            self.connection.settimeout(1)
        try:
            for chunk in chunks:
                self.wfile.write(chunk)
        except TimeoutError:
            self.server.stalled.set()  # type: ignore[attr-defined]
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


class EchoServer(http.server.ThreadingHTTPServer):
    """Knows whether a body may be read, and whether one could not be sent on for a second."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.release, self.stalled = threading.Event(), threading.Event()


@contextlib.contextmanager
def echoing(tls: ssl.SSLContext | None = None) -> Iterator[EchoServer]:
    server = EchoServer()
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with echoing() as server:
        yield server


def url_of(server: EchoServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@dataclass
class Connect:
    """Runs ``svd-serve connect`` for a server, in an environment that says nothing of fal."""

    url: str
    data_dir: Path
    temporary: Path
    environment: dict[str, str] = field(default_factory=dict)
    key: str = ""

    def command(self, *program: str, options: tuple[str, ...] = ()) -> list[str]:
        key = ("--key", self.key) if self.key else ()
        return [sys.executable, "-m", "deployments.cli", "connect", "--url", self.url, *key, *options, "--", *program]

    def settings(self) -> dict[str, str]:
        own = {"PATH": os.environ["PATH"], "SVD_DATA_DIR": str(self.data_dir), "TMPDIR": str(self.temporary)}
        return own | self.environment

    def run(self, *program: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*program, options=options),
            cwd=JS,
            env=self.settings() | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=180,
        )

    def start(self, *program: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*program, options=options),
            cwd=ROOT,
            env=self.settings(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def output(self, *program: str, options: tuple[str, ...] = ()) -> Any:
        done = self.run(*program, options=options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])  # the deprecated client has lines of its own to say


@pytest.fixture
def connect(echo: EchoServer, tmp_path: Path) -> Connect:
    (tmp_path / "tmp").mkdir()
    return Connect(url_of(echo), tmp_path / "data", tmp_path / "tmp", key="some:key")


def javascript() -> str:
    node = need("node")
    if not (JS / "node_modules").exists():
        need("npm")
        pytest.fail("the JavaScript clients are not installed: make tests/js/node_modules")
    return node


IN_PYTHON = """
import httpx, json, os, sys
key = {"Authorization": "Key " + os.environ["FAL_KEY"]}
print(json.dumps([httpx.post(f"https://{host}/a?b=c", headers=key, content=b"12345").json() for host in sys.argv[1:]]))
"""
IN_NODE = """
const headers = { authorization: "Key " + process.env.FAL_KEY };
const call = (host) => fetch(`https://${host}/a?b=c`, { method: "POST", headers, body: "12345" });
Promise.all(process.argv.slice(1).map(async (host) => (await call(host)).json())).then((all) =>
  console.log(JSON.stringify(all)),
);
"""
NODE_ROADS = """
import https from "node:https";
import tls, { connect } from "node:tls";

const whole = async (stream) => Buffer.concat(await stream.toArray()).toString();
const head = "GET /a HTTP/1.1\\r\\nHost: fal.run\\r\\nConnection: close\\r\\n\\r\\n";
const raw = async (socket) => (socket.write(head), JSON.parse((await whole(socket)).split("\\r\\n\\r\\n")[1]).host);
const module = new Promise((resolve, reject) =>
  https.get("https://rest.fal.ai/a", async (reply) => resolve(JSON.parse(await whole(reply)).host)).on("error", reject),
);
const sockets = [connect(443, "fal.run"), tls.connect({ port: 443, host: "fal.run" }, () => {})];
console.log(JSON.stringify([await module, ...(await Promise.all(sockets.map(raw)))]));
"""


def test_python_and_node_reach_the_server_under_every_host_of_fal(connect: Connect) -> None:
    expected = [{"host": host, "path": "/a?b=c", "key": "Key some:key", "read": 5} for host in HOSTS]
    assert connect.output(sys.executable, "-c", IN_PYTHON, *HOSTS) == expected
    assert connect.output(need("node"), "-e", IN_NODE, *HOSTS) == expected


def test_in_node_https_and_bare_tls_reach_the_server_too(connect: Connect, tmp_path: Path) -> None:
    script = tmp_path / "roads.mjs"
    script.write_text(NODE_ROADS)
    assert connect.output(need("node"), str(script)) == ["rest.fal.ai", "fal.run", "fal.run"]


def test_in_node_other_connections_stay_what_they_were(connect: Connect, echo: EchoServer, tmp_path: Path) -> None:
    text = f"""
    const other = await fetch("{url_of(echo)}/files/x").then((reply) => reply.json());
    const port = await fetch("https://fal.run:444/").catch((error) => error.cause.code);
    const tunnels = await fetch("https://nowhere.invalid/").catch((error) => error.cause.code);
    console.log(JSON.stringify([other.host, port, tunnels]));
    """
    script = tmp_path / "others.mjs"
    script.write_text(text)
    host, port, name = connect.output(need("node"), str(script))
    assert host == f"127.0.0.1:{echo.server_port}"
    assert port in ("ENOTFOUND", "EAI_AGAIN") and name in ("ENOTFOUND", "EAI_AGAIN")


def test_other_hosts_are_refused(connect: Connect) -> None:
    program = "import httpx\ntry: httpx.get('https://example.com')\nexcept httpx.ProxyError as error: print(error)"
    assert connect.run(sys.executable, "-c", program).stdout == "403 example.com:443 is none of fal's hosts\n"


def test_websockets_pass(connect: Connect, tmp_path: Path) -> None:
    def shout(socket: ServerConnection) -> None:
        socket.send(f"{socket.request.headers['host']} {str(socket.recv()).upper()}")  # type: ignore[union-attr]

    in_python = """
from websockets.sync.client import connect
with connect("wss://fal.run/a") as socket:
    socket.send("hi")
    print(socket.recv())
"""
    script = JS / "node_modules" / "ws" / "wrapper.mjs"
    in_node = f"""
    import WebSocket from {json.dumps(str(script))};
    const socket = new WebSocket("wss://fal.run/a");
    socket.on("open", () => socket.send("hi"));
    socket.on("message", (text) => (console.log(String(text)), socket.close()));
    """
    with serve_websockets(shout, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        connect.url = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        assert connect.run(sys.executable, "-c", in_python).stdout == "fal.run HI\n"
        assert connect.run(javascript(), "--input-type=module", "-e", in_node).stdout == "fal.run HI\n"
        server.shutdown()


# ---------------------------------------------------------------- the environment


def environment_under(connect: Connect, *options: str) -> dict[str, str]:
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    return dict(connect.output(sys.executable, "-c", program, options=options))


@pytest.mark.parametrize(
    ("given", "stated", "kept", "expected"),
    [
        ({}, "", "id:kept", {"FAL_KEY": "id:kept"}),
        ({"SVD_ADMIN_KEY": "id:admin"}, "", "", {"FAL_KEY": "id:admin"}),
        ({"FAL_KEY": "id:own"}, "", "id:kept", {"FAL_KEY": "id:own"}),
        ({"FAL_KEY_ID": "id", "FAL_KEY_SECRET": "own"}, "", "id:kept", {"FAL_KEY_ID": "id", "FAL_KEY_SECRET": "own"}),
        ({"FAL_KEY": "id:own"}, "id:stated", "id:kept", {"FAL_KEY": "id:stated"}),
        ({}, "", "", {}),
    ],
)
def test_whose_key_the_program_has(
    connect: Connect, given: dict[str, str], stated: str, kept: str, expected: dict[str, str]
) -> None:
    connect.key, connect.environment = stated, given
    if kept:
        connect.data_dir.mkdir()
        (connect.data_dir / "admin.key").write_text(f"{kept}\n")
    seen = environment_under(connect)
    assert {name: value for name, value in seen.items() if name.startswith("FAL_")} == expected
    assert not connect.data_dir.exists() or os.listdir(connect.data_dir) == ["admin.key"]


def test_a_missing_key_is_said(connect: Connect) -> None:
    connect.key = ""
    done = connect.run("true")
    assert (done.returncode, len(done.stderr.splitlines())) == (0, 1)
    assert "FAL_KEY" in done.stderr and "--key" in done.stderr


def test_what_the_environment_said_is_kept(connect: Connect, tmp_path: Path) -> None:
    preload = tmp_path / "own.cjs"
    preload.write_text("globalThis.own = 1")
    authority = tmp_path / "own.pem"
    authority.write_text("OWN AUTHORITY")
    connect.environment = {
        "NODE_OPTIONS": f"--require {preload}",
        "NO_PROXY": "internal.example, v3.fal.media",
        "SSL_CERT_FILE": str(authority),
        "NODE_EXTRA_CA_CERTS": str(authority),
        "FAL_RUN_HOST": "localhost:1",
        "FAL_QUEUE_RUN_HOST": "localhost:2",
    }
    connect.url = connect.url.replace("127.0.0.1", "127.0.0.2")
    program = """
import json, os, subprocess
seen = dict(os.environ)
seen["own"] = subprocess.check_output(["node", "-p", "globalThis.own"], text=True, stderr=subprocess.DEVNULL)
seen["files"] = [open(seen[name]).read() for name in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS")]
print(json.dumps(seen))
"""
    need("node")
    done = connect.run(sys.executable, "-c", program)
    seen = json.loads(done.stdout)
    assert seen["own"] == "1\n"
    assert seen["NO_PROXY"] == seen["no_proxy"] == "internal.example,v3.fal.media,localhost,127.0.0.1,::1,127.0.0.2"
    assert "v3.fal.media" in done.stderr  # it goes past us, as the user wanted: that is said
    assert set(seen["SVD_CONNECT_HOSTS"].split(",")) == set(HOSTS) - {"v3.fal.media"}
    assert all(text.startswith("OWN AUTHORITY\n-----BEGIN CERT") for text in seen["files"])
    assert not {"FAL_RUN_HOST", "FAL_QUEUE_RUN_HOST"} & set(seen)


def test_print_shows_what_is_set_as_a_shell_reads_it(connect: Connect) -> None:
    done = connect.run("sh", "-c", "echo $HTTPS_PROXY; echo $NODE_OPTIONS", options=("--print",))
    *printed, proxy, options = done.stdout.splitlines()
    shown = exports(printed)
    assert {"HTTPS_PROXY", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "NODE_OPTIONS", "FAL_KEY"} <= set(shown)
    assert (shown["HTTPS_PROXY"], shown["NODE_OPTIONS"], shown["FAL_KEY"]) == (proxy, options, "some:key")


def exports(lines: list[str]) -> dict[str, str]:
    words = [shlex.split(line) for line in lines if line.startswith("export ")]
    return dict(word.split("=", 1) for _, word in words)


def test_the_authority_is_of_no_use_to_others(connect: Connect) -> None:
    """It is another one each time, its key is in no file, and what was written is gone at the end."""
    program = """
import json, os, pathlib
bundle = pathlib.Path(os.environ["SSL_CERT_FILE"])
texts = [path.read_text() for path in bundle.parent.iterdir()]
print(json.dumps([str(bundle), oct(bundle.parent.stat().st_mode & 0o777), texts]))
"""
    (path, mode, texts), (_, _, others) = (connect.output(sys.executable, "-c", program) for _ in range(2))
    assert mode == "0o700" and not Path(path).parent.exists()
    assert len(texts) == 2 and not any("PRIVATE KEY" in text for text in texts)
    assert not set(texts) & set(others)
    assert list(connect.temporary.iterdir()) == [] and not connect.data_dir.exists()


# ---------------------------------------------------------------- statuses and signals


@pytest.mark.parametrize(
    ("program", "status"),
    [
        (("true",), 0),
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -KILL $$"), 128 + signal.SIGKILL),
        (("no-such-program",), 127),
        (("/etc/passwd",), 126),
    ],
)
def test_exit_status_is_passed_on(connect: Connect, program: tuple[str, ...], status: int) -> None:
    done = connect.run(*program)
    assert done.returncode == status
    assert done.stdout == ""
    assert re.fullmatch(f"svd-serve: {program[0]}: .*\n" if status in (126, 127) else "", done.stderr)


def test_options_of_the_program_stay_its_own(connect: Connect) -> None:
    assert connect.run("echo", "--url", "x", "--", "--print", "-n").stdout == "--url x -- --print -n\n"


HANDLES = """
import os, signal, sys
def handler(number, frame):
    os.write(1, b"got %d\\n" % number)  # the signal may come while the line below is being printed
    sys.exit(5)
signal.signal(signal.SIGTERM, handler)
signal.signal(signal.SIGINT, handler)
print(os.environ["HTTPS_PROXY"], os.environ["SSL_CERT_FILE"], flush=True)
while True: signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_program_and_nothing_is_left(connect: Connect, number: signal.Signals) -> None:
    process = connect.start(sys.executable, "-c", HANDLES)
    assert process.stdout is not None
    proxy, bundle = process.stdout.readline().split()
    (child,) = psutil.Process(process.pid).children()
    process.send_signal(number)
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output, errors) == (5, f"got {int(number)}\n", "")
    assert not child.is_running() and not Path(bundle).exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(proxy.rpartition(":")[2])))


def test_a_key_that_is_pressed_interrupts_the_program_once(connect: Connect) -> None:
    """A terminal tells everybody in its foreground, the program included."""
    program = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
os.kill(os.getppid(), signal.SIGSTOP)  # so that two signals do not become one
print("ready", flush=True)
signal.sigwait([signal.SIGINT])
os.kill(os.getppid(), signal.SIGCONT)
print("interrupted again" if signal.sigtimedwait([signal.SIGINT], 1) else "interrupted once", flush=True)
"""
    in_terminal = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    command = [sys.executable, "-c", in_terminal, *connect.command(sys.executable, "-c", program)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=connect.settings(), text=True, **pipes) as terminal:  # type: ignore[call-overload]
        assert terminal.stdin is not None and terminal.stdout is not None
        assert terminal.stdout.readline().strip() == "ready"
        terminal.stdin.write("\x03")
        terminal.stdin.flush()
        assert "interrupted once" in terminal.stdout.readline()


def test_a_server_that_cannot_be_reached_is_said_before_and_told_to_the_client(connect: Connect) -> None:
    connect.url = f"http://127.0.0.1:{free_port()}"
    program = """
import fal_client, sys
print("started", file=sys.stderr)
try: fal_client.SyncClient().submit("fal-ai/svd", arguments={})
except fal_client.FalClientHTTPError as error: print(error.status_code, error.message)
"""
    program = program.replace(
        "import fal_client, sys", "import fal_client, fal_client.client, sys\nfal_client.client.MAX_ATTEMPTS = 1"
    )
    done = connect.run(sys.executable, "-c", program)
    said, started = done.stderr.splitlines()
    assert said.startswith(f"svd-serve: no server answers at {connect.url}") and started == "started"
    assert done.stdout == f"502 svd-serve connect: no server answers at {connect.url}\n"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--url", "ftp://x"), "is not the URL of a server"),
        (("--url", "http://host/prefix"), "is not the URL of a server"),
        (("--key", "nocolon"), "--key is written id:secret"),
        (("--listen", "8443"), "--listen is written HOST:PORT"),
    ],
)
def test_wrong_options_are_said_in_one_line(connect: Connect, options: tuple[str, ...], problem: str) -> None:
    done = connect.run("true", options=options)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert problem in done.stderr


def test_a_port_that_is_taken_is_said(connect: Connect, echo: EchoServer) -> None:
    done = connect.run("true", options=("--listen", f"127.0.0.1:{echo.server_port}"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"svd-serve: cannot listen on 127.0.0.1:{echo.server_port}: Address already in use")


# ---------------------------------------------------------------- without a program


@dataclass(frozen=True)
class Standing:
    """``svd-serve connect`` without a program."""

    process: subprocess.Popen[str]
    exports: Mapping[str, str]
    lines: list[str]

    def peak(self) -> int:
        """The most memory that it has held, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


@contextlib.contextmanager
def standing(connect: Connect, *options: str) -> Iterator[Standing]:
    process = connect.start(options=options)
    assert process.stdout is not None
    lines: list[str] = []
    while not (lines and lines[-1].startswith("export FAL_KEY" if not options else "# hosts")):
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        lines.append(line.rstrip("\n"))
    try:
        yield Standing(process, exports(lines), lines)
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")


def test_without_a_program_the_exports_are_printed_and_served_until_stopped(connect: Connect) -> None:
    with standing(connect) as served:
        shell = "\n".join([*served.lines, 'exec "$0" -c "$1" fal.run'])
        done = subprocess.run(
            ["sh", "-c", shell, sys.executable, IN_PYTHON], env={}, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["host"] == "fal.run"
    assert not Path(served.exports["SSL_CERT_FILE"]).exists()


def test_a_fixed_port_serves_those_who_come_by_a_hosts_file(connect: Connect) -> None:
    """TLS from the first byte on, and certificates under a path that stays."""
    port = free_port()
    for _ in range(2):
        with standing(connect, "--listen", f"127.0.0.1:{port}") as served:
            assert served.exports["NODE_EXTRA_CA_CERTS"] == str(connect.data_dir / "ca" / str(port) / "ca.pem")
            assert served.lines[-1].endswith("127.0.0.1 " + " ".join(HOSTS))
            with tls_to(port, served.exports["NODE_EXTRA_CA_CERTS"], "rest.fal.ai") as client:
                client.sendall(b"GET /a HTTP/1.1\r\nHost: rest.fal.ai\r\nConnection: close\r\n\r\n")
                assert b'"host": "rest.fal.ai"' in received(client)


def tls_to(port: int, authority: str, host: str) -> ssl.SSLSocket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    return ssl.create_default_context(cafile=authority).wrap_socket(connection, server_hostname=host)


def received(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_other_names_have_no_certificate(connect: Connect) -> None:
    port = free_port()
    with standing(connect, "--listen", f"127.0.0.1:{port}") as served, pytest.raises(ssl.SSLCertVerificationError):
        tls_to(port, served.exports["NODE_EXTRA_CA_CERTS"], "example.com")


def body_of(connection: socket.socket) -> bytes:
    """The body of one answer that tells its length."""
    reader = connection.makefile("rb")
    lengths = [
        int(line.split(b":")[1]) for line in iter(reader.readline, b"\r\n") if line.startswith(b"content-length")
    ]
    return reader.read(lengths[0])


@contextlib.contextmanager
def loaded(connect: Connect) -> Iterator[socket.socket]:
    """A connection, and what holds its other end, which may not grow by more than some megabytes meanwhile."""
    port = free_port()
    with standing(connect, "--listen", f"127.0.0.1:{port}") as served:
        with tls_to(port, served.exports["NODE_EXTRA_CA_CERTS"], "fal.run") as client:
            client.sendall(b"GET /a HTTP/1.1\r\nHost: fal.run\r\n\r\n")
            body_of(client)
            before = served.peak()
            yield client
        assert served.peak() - before < 16 * MIB


def test_100_mb_pass_both_ways_in_little_memory(connect: Connect) -> None:
    with loaded(connect) as client:
        client.sendall(b"PUT /a HTTP/1.1\r\nHost: fal.run\r\nContent-Length: %d\r\n\r\n" % (100 * MIB))
        for _ in range(100):
            client.sendall(b"x" * MIB)
        assert json.loads(body_of(client))["read"] == 100 * MIB
        client.sendall(b"GET /large HTTP/1.1\r\nHost: fal.run\r\n\r\n")
        assert body_of(client) == b"x" * 100 * MIB


def test_a_server_that_does_not_read_holds_the_client_up(connect: Connect) -> None:
    with loaded(connect) as client:
        client.sendall(b"PUT /held HTTP/1.1\r\nHost: fal.run\r\nContent-Length: %d\r\n\r\n" % (100 * MIB))
        client.settimeout(1)
        with pytest.raises(TimeoutError):
            for _ in range(100):
                client.sendall(b"x" * MIB)


def test_a_client_that_does_not_read_holds_the_server_up(connect: Connect, echo: EchoServer) -> None:
    with loaded(connect) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: fal.run\r\n\r\n")
        assert echo.stalled.wait(PATIENCE)


# ---------------------------------------------------------------- the end point by itself


@contextlib.asynccontextmanager
async def end_point(upstream: str, **options: Any) -> AsyncIterator[tuple[int, ssl.SSLContext]]:
    """The port of one in this process, and what trusts it."""
    authority = Authority(HOSTS)
    with socket.create_server(("127.0.0.1", 0)) as listener, tempfile.TemporaryDirectory() as directory:
        trust = ssl.create_default_context(cafile=authority.write(Path(directory), {}).extra)
        point = TlsEndpoint(HOSTS, authority.server_context(), Upstream.at(upstream), **options)
        serving = asyncio.create_task(point.serve(listener))
        try:
            yield listener.getsockname()[1], trust
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving


async def said_to(port: int, data: bytes) -> bytes:
    """All that is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    async with asyncio.timeout(PATIENCE):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (
            b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
            b"403 example.com:443 is none of fal's hosts",
        ),
        (b"CONNECT fal.run:80 HTTP/1.1\r\nHost: fal.run\r\n\r\n", b"403 fal.run:80 is none of fal's hosts"),
        (b"CONNECT evil-fal.run:443 HTTP/1.1\r\nHost: fal.run\r\n\r\n", b"403 evil-fal.run:443 is none of fal's hosts"),
        (b"CONNECT fal.run HTTP/1.1\r\nHost: fal.run\r\n\r\n", b"400 CONNECT wants host:port"),
        (b"CONNECT fal.run:99999 HTTP/1.1\r\nHost: fal.run\r\n\r\n", b"400 CONNECT wants host:port"),
        (b"CONNECT [fal.run:443 HTTP/1.1\r\nHost: fal.run\r\n\r\n", b"400 CONNECT wants host:port"),
        (b"CONNECT \xff:443 HTTP/1.1\r\nHost: fal.run\r\n\r\n", b"400 this is no HTTP request that we read"),
        (b"GET / HTTP/1.1\r\nHost: fal.run\r\n\r\n", b"405 only CONNECT is answered here"),
        (b"POST https://fal.run/a HTTP/1.1\r\nHost: fal.run\r\n\r\n", b"405 only CONNECT is answered here"),
        (
            b"CONNECT fal.run:443 HTTP/1.1\r\nHost: fal.run\r\n\r\nearly",
            b"400 nothing may follow CONNECT before its answer",
        ),
        (b"\x00\x01garbage\r\n\r\n", b"400 this is no HTTP request that we read"),
        (b"CONNECT fal.run:443 HTTP/1.1\r\nA: " + b"a" * 20000, b"431 this is no HTTP request that we read"),
    ],
)
async def test_what_is_not_for_fal_is_refused(echo: EchoServer, said: bytes, answer: bytes) -> None:
    async with end_point(url_of(echo)) as (port, _):
        reply = await said_to(port, said)
    assert reply.splitlines()[0] == b"HTTP/1.1 " + answer
    assert b"connection: close" in reply.lower()


@pytest.mark.parametrize("said", [b"", b"CONNECT fal.run", b"\x16\x03\x01"])
async def test_who_says_too_little_is_left(echo: EchoServer, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(endpoint_module, "OPENING_SECONDS", 0.2)
    async with end_point(url_of(echo)) as (port, _):
        assert await said_to(port, said) == b""


async def test_further_connections_wait_for_room(echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "MAX_CONNECTIONS", 1)
    refused = b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n"
    async with end_point(url_of(echo)) as (port, _):
        _, first = await asyncio.open_connection("127.0.0.1", port)
        second = asyncio.create_task(said_to(port, refused))
        done, _ = await asyncio.wait([second], timeout=0.3)
        assert not done
        first.close()
        assert b"403" in await second


async def test_others_may_be_allowed_and_pass_as_they_are(echo: EchoServer) -> None:
    host = f"127.0.0.1:{echo.server_port}"
    request = f"GET /a HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    async with end_point("http://127.0.0.1:1", allow_others=True) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connected\r\n\r\n"
        writer.write(request)
        assert host.encode() in await reader.read()
        writer.close()
        closed = await said_to(port, b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: x\r\n\r\n")
        impossible = await said_to(port, b"CONNECT a..b:443 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"502 127.0.0.1:1 cannot be reached" in closed and b"502 a..b:443" in impossible


async def test_a_server_behind_tls_is_reached_by_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = Authority(["localhost"])
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.write(tmp_path, {}).bundle))
    with echoing(authority.server_context()) as echo:
        async with end_point(f"https://localhost:{echo.server_port}") as (port, trust):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname="fal.run")
            writer.write(b"GET /a HTTP/1.1\r\nHost: fal.run\r\nConnection: close\r\n\r\n")
            assert b'"host": "fal.run"' in await reader.read()
            writer.close()


async def test_no_ticket_comes_while_a_client_writes_its_first_request(echo: EchoServer) -> None:
    """Of 800 first requests of websockets' two threads 8 were lost beside tickets, of as many without them none."""
    async with end_point(url_of(echo)) as (port, trust):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname="fal.run")
        writer.write(b"GET /a HTTP/1.1\r\nHost: fal.run\r\nConnection: close\r\n\r\n")
        assert b'"host": "fal.run"' in await reader.read()
        connection = writer.get_extra_info("ssl_object")
        assert (connection.version(), connection.session.has_ticket) == ("TLSv1.3", False)
        writer.close()


async def test_when_the_client_leaves_the_server_hears_of_it(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def wait_for_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        left.set()
        writer.close()

    server = await asyncio.start_server(wait_for_the_end, "127.0.0.1", 0)
    async with server, end_point(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as (port, trust):
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname="fal.run")
        writer.write(b"POST /a")
        await writer.drain()
        writer.transport.abort()
        async with asyncio.timeout(PATIENCE):
            await left.wait()


# ---------------------------------------------------------------- the whole service, the official clients


@pytest.fixture
def moved(server: Server, tmp_path: Path) -> Connect:
    """Runs programs so that they reach the whole service."""
    (tmp_path / "tmp").mkdir()
    return Connect(server.url, server.data_dir, tmp_path / "tmp")


PYTHON_PROGRAM = """
import asyncio, json, sys
import fal_client, httpx

arguments = {"image_url": fal_client.encode_file(sys.argv[1]), "steps": 2, "seed": 7}
long = arguments | {"steps": 100}

def sync():
    seen = {"run": fal_client.run("fal-ai/svd", arguments=arguments)}
    handle = fal_client.submit("fal-ai/fast-svd-lcm", arguments=arguments)
    seen["events"] = [type(event).__name__ for event in handle.iter_events(with_logs=True)]
    seen["status"] = type(fal_client.status("fal-ai/fast-svd-lcm", handle.request_id)).__name__
    seen["result"] = fal_client.result("fal-ai/fast-svd-lcm", handle.request_id)
    seen["subscribe"] = fal_client.subscribe("fal-ai/stable-video", arguments={"image_url": arguments["image_url"]})
    handle = fal_client.submit("fal-ai/svd", arguments=long)
    fal_client.cancel("fal-ai/svd", handle.request_id)
    try: handle.get()
    except fal_client.FalClientHTTPError as error: seen["cancelled"] = error.error_type
    seen["size"] = len(httpx.get(seen["run"]["image"]["url"]).content)
    return seen

async def asynchronous():
    seen = {"run": await fal_client.run_async("fal-ai/svd", arguments=arguments)}
    handle = await fal_client.submit_async("fal-ai/fast-svd-lcm", arguments=arguments)
    seen["events"] = [type(event).__name__ async for event in handle.iter_events(with_logs=True)]
    seen["status"] = type(await fal_client.status_async("fal-ai/fast-svd-lcm", handle.request_id)).__name__
    seen["result"] = await fal_client.result_async("fal-ai/fast-svd-lcm", handle.request_id)
    picture = {"image_url": arguments["image_url"]}
    seen["subscribe"] = await fal_client.subscribe_async("fal-ai/stable-video", arguments=picture)
    handle = await fal_client.submit_async("fal-ai/svd", arguments=long)
    await fal_client.cancel_async("fal-ai/svd", handle.request_id)
    try: await handle.get()
    except fal_client.FalClientHTTPError as error: seen["cancelled"] = error.error_type
    async with httpx.AsyncClient() as client:
        seen["size"] = len((await client.get(seen["run"]["image"]["url"])).content)
    return seen

print(json.dumps(sync() if sys.argv[2] == "sync" else asyncio.run(asynchronous())))
"""


@pytest.mark.parametrize(("kind", "own_key"), [("sync", False), ("sync", True), ("async", False), ("async", True)])
def test_row_43_python_program_runs_unchanged(moved: Connect, server: Server, kind: str, own_key: bool) -> None:
    if own_key:
        moved.environment = {"FAL_KEY": server.key}
        moved.data_dir = moved.temporary / "another"
    seen = moved.output(sys.executable, "-c", PYTHON_PROGRAM, str(SAMPLE), kind)
    assert seen["run"]["image"]["url"].startswith(f"{server.url}/files/")
    assert seen["size"] == seen["run"]["image"]["file_size"]
    assert seen["events"][-1] == seen["status"] == "Completed"
    assert seen["result"]["seed"] == 7 and seen["subscribe"]["video"]["url"]
    assert seen["cancelled"] == "client_cancelled"


def test_row_43_javascript_program_runs_unchanged(moved: Connect, server: Server) -> None:
    seen = moved.output(javascript(), "connect.mjs", str(SAMPLE), "current")
    assert seen["subscribed"]["seed"] == 7 and seen["last"] == "COMPLETED" and seen["requestId"]
    assert seen["ran"]["image"]["url"].startswith(f"{server.url}/files/")
    assert seen["size"] == seen["ran"]["image"]["file_size"]


def test_row_43_program_of_the_deprecated_javascript_client_runs_unchanged(moved: Connect) -> None:
    seen = moved.output(javascript(), "connect.mjs", str(SAMPLE), "deprecated")
    assert seen["subscribed"]["video"]["url"] and seen["ran"]["image"]["url"]


def test_row_43_programs_run_unchanged_by_a_hosts_file(moved: Connect, tmp_path: Path) -> None:
    """Nothing but names and certificates: no proxy, no preload."""
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n127.0.0.43 {' '.join(HOSTS)}\n")
    elsewhere = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts)]
    if os.geteuid() != 0 or subprocess.run([*elsewhere, "true"], capture_output=True).returncode != 0:
        pytest.skip("a hosts file and port 443 of our own take root and the right to mount")
    with standing(moved, "--listen", "127.0.0.43:443") as served:
        names = ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "FAL_KEY")
        environment = {"PATH": os.environ["PATH"]} | {name: served.exports[name] for name in names}
        for program in (
            [sys.executable, "-c", PYTHON_PROGRAM, str(SAMPLE), "async"],
            [javascript(), "connect.mjs", str(SAMPLE), "current"],
            [javascript(), "connect.mjs", str(SAMPLE), "deprecated"],
        ):
            command = [*elsewhere, *program]
            done = subprocess.run(command, cwd=JS, env=environment, capture_output=True, text=True, timeout=180)
            assert done.returncode == 0, done.stderr
            assert "/files/b/" in done.stdout


PYTHON_UPLOADS = """
import json, sys
import fal_client, httpx

data = open(sys.argv[1], "rb").read()
urls = [fal_client.upload(data, "image/jpeg"), fal_client.upload(data, "image/jpeg", repository="fal")]
arguments = {"image_url": urls[0], "steps": 2}
with fal_client.realtime("fal-ai/fast-svd-lcm") as connection:
    connection.send(arguments)
    result = connection.recv()
streamed = list(fal_client.stream("fal-ai/fast-svd-lcm", arguments=arguments))[-1]
same = [httpx.get(url).content == data for url in urls]
print(json.dumps({"urls": urls, "same": same, "realtime": result, "stream": streamed}))
"""


def test_row_43_python_uploads_streams_and_realtime(moved: Connect, server: Server) -> None:
    seen = moved.output(sys.executable, "-c", PYTHON_UPLOADS, str(SAMPLE))
    assert all(url.startswith(f"{server.url}/files/") for url in seen["urls"]) and seen["same"] == [True, True]
    assert seen["realtime"]["video"]["url"] and seen["stream"]["video"]["url"]


def test_row_43_javascript_uploads_and_realtime(moved: Connect) -> None:
    uploads = moved.output(javascript(), "connect.mjs", str(SAMPLE), "uploads")
    assert uploads["sizes"] == [SAMPLE.stat().st_size] * 2 and uploads["data"]["image"]["url"]
    assert moved.output(javascript(), "connect.mjs", str(SAMPLE), "realtime")["video"]["url"]
