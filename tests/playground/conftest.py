"""The playground as people use it: Debian's Chromium, driven by Playwright, on the whole running service.

A test ends by asserting that the page has complained of nothing, has asked nobody but the service, and has failed in
nothing that the test did not bring about itself. What it looked like is in dist/playground, for looking at.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, Request, async_playwright

from deployments.gateway.sample import SAMPLE
from deployments.queue.store import RequestStore
from tests.conftest import ROOT, Server, missing, need
from tests.gateway.conftest import served_endpoints
from tests.playground.light import Light, open_light

PICTURES = ROOT / "dist" / "playground"
AXE = ROOT / "tests" / "js" / "node_modules" / "axe-core" / "axe.min.js"

STABLE_VIDEO = "fal-ai/stable-video"
SVD = "fal-ai/svd"
FAST = "fal-ai/fast-svd-lcm"
TEXT_TO_VIDEO = "fal-ai/fast-svd-lcm/text-to-video"

PATIENCE = 90.0
"""Seconds for a clip, on a machine that does other things, too."""

OWN = ("blob:", "data:")


@dataclass
class Playground:
    """A tab with the playground, and what it has complained of."""

    page: Page
    context: BrowserContext
    server: Server | Light
    complaints: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    _expected: list[str] = field(default_factory=list)

    def expect(self, pattern: str) -> None:
        """The test itself makes the browser complain of this."""
        self._expected.append(pattern)

    @property
    def surprises(self) -> list[str]:
        """Complaints that no test has asked for."""
        return [each for each in self.complaints if not any(re.search(wanted, each) for wanted in self._expected)]

    async def open(self, endpoint: str = FAST, fragment: str = "") -> None:
        """Go to an endpoint's page, and wait until it answers and has its key."""
        await self.page.goto(f"{self.server.url}/models/{endpoint}{fragment}")
        await self.page.wait_for_selector("html[data-ready]")

    async def open_with_key(self, endpoint: str = FAST, fragment: str = "") -> None:
        """The same, and the service has given its key to its own user's browser."""
        await self.open(endpoint, fragment)
        await self.page.locator("#key-button:not(.wanting)").wait_for()

    async def choose_example(self, index: int = 0) -> None:
        """Take one of the pictures to try, and wait until it is uploaded."""
        await self.page.locator(".example").nth(index).click()
        await self.page.get_by_text("Uploaded", exact=True).first.wait_for()

    async def set(self, **values: object) -> None:
        """Fill fields of the form."""
        for name, value in values.items():
            await self.page.locator(f"#{name}").fill(str(value))

    async def run(self) -> None:
        """Press the button, and wait until the clip plays."""
        await self.page.locator("#run").click()
        await self.plays()

    async def plays(self) -> None:
        """Wait until the clip plays."""
        await self.page.locator("#status", has_text="Done").wait_for()
        await self.until("document.getElementById('video')?.readyState >= 2")

    async def until(self, expression: str) -> None:
        """Wait until a piece of JavaScript is true on the page, whose policy keeps Playwright's own way out."""
        async with asyncio.timeout(PATIENCE):
            while not await self.page.evaluate(f"Boolean({expression})"):
                await asyncio.sleep(0.1)

    async def request(self) -> dict[str, Any]:
        """The request's JSON as the result shows it."""
        return await self.shown_json("Request")

    async def shown_json(self, title: str) -> dict[str, Any]:
        """What one of the boxes under the result says."""
        text = await self.page.locator(f"[aria-label='{title} as JSON']").text_content()
        return dict(json.loads(text or "null"))

    async def picture(self, name: str, whole: bool = False) -> None:
        """Keep what the page looks like, for looking at."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        if whole:
            await self.page.evaluate("scrollTo(0, 0)")  # what sticks to the top is to be there
        await self.page.screenshot(path=PICTURES / f"{name}.png", full_page=whole)

    async def drop(self, target: Locator, file: Path, media_type: str) -> None:
        """Let a file fall on something."""
        data = list(file.read_bytes())
        transfer = await self.page.evaluate_handle(
            """([bytes, name, type]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
                return transfer;
            }""",
            [data, file.name, media_type],
        )
        await target.dispatch_event("drop", {"dataTransfer": transfer})

    async def violations(self) -> list[str]:
        """What axe-core finds wrong with the page as it is now."""
        if not AXE.exists():
            missing("axe-core (npm)")
        session = await self.context.new_cdp_session(self.page)  # the page's own policy lets no script in
        tell = "axe.run().then((found) => JSON.stringify(found.violations))"
        answer = await session.send(
            "Runtime.evaluate",
            {"expression": f"{AXE.read_text()};{tell}", "awaitPromise": True, "returnByValue": True},
        )
        await session.detach()
        found = json.loads(answer["result"]["value"])
        return [f"{each['id']}: {each['nodes'][0]['target']} {each['nodes'][0]['failureSummary']}" for each in found]

    def api(self) -> httpx.AsyncClient:
        """The service without a page."""
        headers = {"authorization": f"Key {self.server.key}"}
        return httpx.AsyncClient(base_url=self.server.url, headers=headers, trust_env=False, timeout=PATIENCE)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} {message.location.get('url', '')}")

    def _judge(self, request: Request) -> None:
        if not request.url.startswith((f"{self.server.url}/", *OWN)):
            self.foreign.append(request.url)

    def _note_failure(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # a player asks for a part, and then for another
            self.complaints.append(f"{request.failure} {request.url}")

    def watch(self) -> None:
        """Note all that goes wrong from now on."""
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._judge)
        self.page.on("requestfailed", self._note_failure)


@asynccontextmanager
async def open_tab(browser: Browser, server: Server | Light, **options: Any) -> AsyncIterator[Playground]:
    """A tab of a browser that knows nothing yet. It ends with nothing to complain of."""
    context = await browser.new_context(**({"viewport": {"width": 1280, "height": 860}} | options))
    context.set_default_timeout(PATIENCE * 1000)
    playground = Playground(await context.new_page(), context, server)
    playground.watch()
    yield playground
    await context.close()
    assert playground.surprises == []
    assert playground.foreign == []


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Debian's browser."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=need("chromium"), args=["--no-sandbox", "--disable-gpu", "--mute-audio"]
        )
        yield browser
        await browser.close()


@pytest.fixture
async def playground(browser: Browser, server: Server) -> AsyncIterator[Playground]:
    """A tab, as wide as a laptop."""
    async with open_tab(browser, server) as playground:
        yield playground


@pytest.fixture
def photograph() -> Path:
    """A picture of one's own."""
    return SAMPLE


@pytest.fixture
async def light(store: RequestStore, tmp_path: Path) -> AsyncIterator[Light]:
    """A gateway without replicas, of what is served."""
    async with open_light(store, served_endpoints(), tmp_path) as light:
        yield light


@pytest.fixture
async def lit(browser: Browser, light: Light) -> AsyncIterator[Playground]:
    """A tab on it."""
    async with open_tab(browser, light) as playground:
        yield playground
