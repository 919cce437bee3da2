"""A real browser, told what to do over its debugging protocol."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.conftest import need

PATIENCE = 120.0


class Browser:
    """One tab of it, and all that it has complained of."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = itertools.count()
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Have something done; events that come meanwhile are noted if they are complaints."""
        id = next(self._ids)
        await self._connection.send(json.dumps({"id": id, "method": method, "params": parameters}))
        async for text in self._connection:
            message = json.loads(text)
            if message.get("id") == id:
                assert "error" not in message, message
                return dict(message["result"])
            self._note(message)
        raise AssertionError("the browser has gone")

    async def open(self, url: str) -> None:
        """Go to a page."""
        for domain in ("Page", "Runtime", "Log", "Audits"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)

    async def value(self, expression: str) -> Any:
        """What a piece of JavaScript comes to on the page."""
        answer = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return answer["result"].get("value")

    async def wait_for(self, expression: str) -> None:
        """Wait until a piece of JavaScript is true on the page."""
        async with asyncio.timeout(PATIENCE):
            while await self.value(f"Boolean({expression})") is not True:
                await asyncio.sleep(0.1)

    def _note(self, message: dict[str, Any]) -> None:
        if message["method"] in ("Log.entryAdded", "Audits.issueAdded", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(message["params"]))


@asynccontextmanager
async def open_browser(profile: Path) -> AsyncIterator[Browser]:
    """A browser for the time of a test."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--mute-audio"]
    process = await asyncio.create_subprocess_exec(
        need("chromium"), *options, f"--user-data-dir={profile}", "about:blank", stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with connect(await _tab(profile), max_size=None) as connection:
            yield Browser(connection)
    finally:
        process.terminate()
        await process.wait()


async def _tab(profile: Path) -> str:
    """The address at which the browser's first tab is told what to do."""
    import httpx

    async with asyncio.timeout(PATIENCE), httpx.AsyncClient(trust_env=False) as client:
        while True:
            try:
                port = (profile / "DevToolsActivePort").read_text().split()[0]
                tabs = (await client.get(f"http://127.0.0.1:{port}/json/list")).json()
                return next(str(tab["webSocketDebuggerUrl"]) for tab in tabs if tab["type"] == "page")
            except (OSError, IndexError, StopIteration, httpx.TransportError):
                await asyncio.sleep(0.1)
