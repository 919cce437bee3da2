from __future__ import annotations

from datetime import datetime, timedelta
from uuid import uuid4

from playwright.async_api import Browser, Route

from tests.conftest import Server
from tests.gateway.conftest import served_endpoints
from tests.playground.conftest import FAST, Playground, open_tab
from tests.playground.light import Light


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


async def test_a_clock_that_is_ahead_of_the_service_does_no_harm(lit: Playground) -> None:
    tomorrow = datetime.now().replace(hour=0, minute=5) + timedelta(days=1)
    await lit.page.clock.set_fixed_time(tomorrow)
    await lit.page.goto(f"{lit.server.url}/operator")

    await lit.page.locator("#fresh", has_text="Live").wait_for()
    assert await lit.page.locator(".endpoint-card").count() == len(served_endpoints())


async def test_the_page_goes_on_after_a_failure_and_says_so_once(lit: Playground) -> None:
    page, answers = lit.page, [400, 503, 503]

    async def fail(route: Route) -> None:
        if answers:
            await route.fulfill(status=answers.pop(), json={"detail": "no"})
        else:
            await route.continue_()

    lit.expect("400|503")
    await page.add_init_script("""addEventListener("DOMContentLoaded", () => {
      window.heard = [];
      new MutationObserver(() => heard.push(said.textContent)).observe(said, { childList: true, characterData: true });
    });""")
    await page.route("**/v1/models/analytics?*", fail)
    await page.goto(f"{lit.server.url}/operator")
    await page.locator("#fresh", has_text="trying again").wait_for()
    await page.locator("#fresh", has_text="Live").wait_for()

    assert answers == []
    heard = await page.evaluate("heard")
    assert len(heard) == 2 and "trying again" in heard[0] and "Live" in heard[1]
    assert await page.locator("[role=status]").count() == 0


async def test_what_was_given_up_is_no_refused_input(lit: Playground, light: Light) -> None:
    for status in (200, 422, 499, 499, 500):
        await light.past({"prompt": "a boat"}, status)
    await lit.page.goto(f"{lit.server.url}/operator")
    await lit.page.locator(".endpoint-card").first.wait_for()

    assert "1 refused input, 2 cancelled" in await lit.page.locator("#totals").inner_text()


async def test_a_mistyped_page_leads_to_what_there_is(lit: Playground) -> None:
    page = lit.page
    lit.expect("404")
    await page.goto(f"{lit.server.url}/models/fal-ai/sdv")
    await page.get_by_role("heading", name="There is no such endpoint").wait_for()
    await page.locator(".endpoints a").first.click()
    await page.wait_for_selector("html[data-ready]")
