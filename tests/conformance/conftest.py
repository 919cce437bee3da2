"""Programs written for fal, unmodified, each in a process of its own under ``svd-serve connect``.

code ──▶ connect -- python -c … | node … ──▶ the running service ──▶ the last line printed, as JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.gateway.sample import SAMPLE, SAMPLE_KEY
from tests.conftest import ROOT, Server, need

JS = ROOT / "tests" / "js"
PROGRAM_SECONDS = 150

PYTHON = """
import json, sys, time, fal_client
from fal_client.client import FalClientHTTPError
picture = {picture!r}
def tell(value): print("TOLD " + json.dumps(value))
def failure(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except FalClientHTTPError as error:
        return {{"status": error.status_code, "type": error.error_type, "message": error.message,
                 "headers": dict(error.response_headers)}}
"""

JAVASCRIPT = """
import {{ readFileSync }} from "node:fs";
{imports}
const picture = {picture!r};
const tell = (value) => console.log("TOLD " + JSON.stringify(value));
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const failure = async (call) => {{
  try {{ await call(); return null; }} catch (error) {{
    return {{ name: error.name, status: error.status, requestId: error.requestId, body: error.body,
             fields: error.fieldErrors?.length, userTimeout: error.isUserTimeout ?? null }};
  }}
}};
"""


@dataclass(frozen=True)
class Programs:
    """Runs code with one of the official clients against a server."""

    server: Server
    folder: Path

    @property
    def picture(self) -> str:
        """A picture that the server has."""
        return f"{self.server.url}/files/{SAMPLE_KEY}"

    def python(self, code: str) -> Any:
        """Code that uses ``fal_client``; what it tells."""
        program = PYTHON.format(picture=self.picture) + textwrap.dedent(code)
        return self._run([sys.executable, "-c", program])

    def javascript(self, code: str, imports: str = 'import { fal } from "@fal-ai/client";') -> Any:
        """Code that uses ``fal`` of @fal-ai/client, or of what else is imported."""
        script = JS / f".{self.folder.name}.mjs"  # beside the packages that it imports
        script.write_text(JAVASCRIPT.format(imports=imports, picture=self.picture) + textwrap.dedent(code))
        try:
            return self._run([need("node"), str(script)])
        finally:
            script.unlink()

    def deprecated(self, code: str) -> Any:
        """Code that uses ``fal`` of @fal-ai/serverless-client."""
        configure = "fal.config({ credentials: process.env.FAL_KEY });"
        return self.javascript(f"{configure}\n{textwrap.dedent(code)}", 'import fal from "@fal-ai/serverless-client";')

    def curl(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request with the server's key."""
        headers = {"authorization": f"Key {self.server.key}"} | options.pop("headers", {})
        return httpx.request(method, self.server.url + path, headers=headers, timeout=60, **options)

    def _run(self, command: list[str]) -> Any:
        connect = [sys.executable, "-m", "deployments.cli", "connect", "--url", self.server.url]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FAL_")}
        done = subprocess.run(
            [*connect, "--key", self.server.key, "--", *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PROGRAM_SECONDS,
        )
        told = [line.removeprefix("TOLD ") for line in done.stdout.splitlines() if line.startswith("TOLD ")]
        assert done.returncode == 0 and told, done.stderr[-3000:] or done.stdout[-3000:]
        return json.loads(told[-1])


@pytest.fixture
def programs(server: Server, tmp_path: Path) -> Programs:
    """Programs against the session's server."""
    return Programs(server, tmp_path)


@pytest.fixture
def python(programs: Programs) -> Callable[[str], Any]:
    return programs.python


@pytest.fixture
def javascript(programs: Programs) -> Callable[..., Any]:
    if not (JS / "node_modules").exists():
        need("npm")
        pytest.fail("the JavaScript clients are not installed: make tests/js/node_modules")
    return programs.javascript


@pytest.fixture
def deprecated(programs: Programs) -> Callable[[str], Any]:
    return programs.deprecated


@pytest.fixture
def curl(programs: Programs) -> Callable[..., httpx.Response]:
    return programs.curl


SAMPLE_BYTES = SAMPLE.read_bytes()
