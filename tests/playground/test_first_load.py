from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Browser

from tests.conftest import Server
from tests.playground.conftest import FAST, STABLE_VIDEO, SVD, TEXT_TO_VIDEO, open_tab

MOST_BYTES = 150_000
MOST_REQUESTS = 25

NOTE_READY = """new MutationObserver((_, self) => {
  if (document.documentElement?.dataset.ready) {
    window.readyAfter = performance.now();
    self.disconnect();
  }
}).observe(document, { subtree: true, childList: true, attributes: true });"""


@pytest.mark.parametrize("endpoint", [STABLE_VIDEO, SVD, FAST, TEXT_TO_VIDEO])
async def test_the_first_load_is_small_and_quick(browser: Browser, server: Server, endpoint: str) -> None:
    async with open_tab(browser, server) as playground:
        session = await playground.context.new_cdp_session(playground.page)
        sizes: list[float] = []

        def note(event: Any) -> None:
            sizes.append(event["encodedDataLength"])

        session.on("Network.loadingFinished", note)
        await session.send("Network.enable")
        await playground.page.add_init_script(NOTE_READY)
        await playground.open_with_key(endpoint)
        await playground.page.wait_for_load_state("networkidle")
        ready = await playground.page.evaluate("window.readyAfter")

    print(f"{endpoint}: {sum(sizes) / 1000:.0f} kB in {len(sizes)} requests, interactive after {ready:.0f} ms")
    assert sum(sizes) < MOST_BYTES
    assert len(sizes) < MOST_REQUESTS
