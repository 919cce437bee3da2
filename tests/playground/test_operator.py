from __future__ import annotations

from uuid import uuid4

from playwright.async_api import Browser

from tests.conftest import Server
from tests.gateway.conftest import served_endpoints
from tests.playground.conftest import FAST, Playground, open_tab


async def test_the_operator_sees_everything_at_a_glance(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key(FAST)
    await playground.choose_example()
    await playground.set(steps=1)
    await playground.run()
    await page.get_by_role("link", name="Operator").click()
    await page.locator(".endpoint-card").first.wait_for()

    cards = await page.locator(".endpoint-card").all_inner_texts()
    assert len(cards) == len(served_endpoints())
    fast = next(card for card in cards if f"{FAST}\n" in card)
    assert "1 ready" in fast
    lines = fast.split("\n")
    told = {
        name: lines[lines.index(name) + 1] for name in ("Waiting", "Run p50 / p90", "Videos today", "Cost of a video")
    }
    assert int(told["Videos today"]) >= 1 and told["Cost of a video"].startswith("$")
    assert told["Run p50 / p90"][0].isdigit()
    totals = await page.locator("#totals").inner_text()
    assert all(name in totals for name in ("Waiting", "Videos today", "Errors today", "Cost of a video"))
    before = await page.locator("#fresh").text_content()
    await playground.until(f"document.getElementById('fresh').textContent !== {before!r}")
    await playground.picture("operator", whole=True)


async def test_it_is_readable_on_a_phone(browser: Browser, server: Server) -> None:
    async with open_tab(browser, server, viewport={"width": 360, "height": 740}) as playground:
        page = playground.page
        await page.goto(f"{server.url}/operator")
        await page.locator(".endpoint-card").first.wait_for()
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        sizes = await page.locator(".endpoint-card *").evaluate_all(
            "(all) => all.map((each) => parseFloat(getComputedStyle(each).fontSize))"
        )
        assert min(sizes) >= 13
        await playground.picture("operator-phone", whole=True)


async def test_another_key_is_told_what_is_missing(playground: Playground) -> None:
    async with playground.api() as api:
        made = (await api.post("/v1/keys", json={"alias": f"plain {uuid4().hex}"})).json()
    playground.expect("403")
    await playground.page.goto(f"{playground.server.url}/operator#key={made['key_id']}:{made['key_secret']}")

    await playground.page.get_by_text("This key may not see this page").wait_for()
    assert await playground.page.locator(".endpoint-card").count() == 0
    await playground.picture("operator-refused")
