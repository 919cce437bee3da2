from __future__ import annotations

from tests.playground.conftest import FAST, Playground

MOST_STOPS = 60


async def tab_to(playground: Playground, selector: str) -> None:
    """Press Tab until something has the focus."""
    page = playground.page
    for _ in range(MOST_STOPS):
        await page.keyboard.press("Tab")
        if await page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab does not lead to {selector}")


async def test_a_clip_is_made_and_looked_at_without_a_mouse(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key(FAST)
    await tab_to(playground, ".example")
    await page.keyboard.press("Enter")
    await page.get_by_text("Uploaded", exact=True).wait_for()
    await tab_to(playground, "#motion_bucket_id")
    await page.keyboard.type("9")
    await tab_to(playground, "#steps")
    await page.keyboard.press("Control+a")
    await page.keyboard.type("1")
    await page.keyboard.press("Control+Enter")
    await playground.plays()

    assert (await playground.request())["steps"] == 1
    await tab_to(playground, "#video")
    await page.keyboard.press("Space")
    await playground.until("document.getElementById('video').paused")
    before = await page.locator(".frame-words").text_content()
    await page.keyboard.press(".")
    await playground.until(f"document.querySelector('.frame-words').textContent !== {before!r}")
    await page.keyboard.press("Space")
    await playground.until("!document.getElementById('video').paused")


async def test_tabs_are_moved_through_with_arrows(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key(FAST)
    await tab_to(playground, "#tab-result")
    for name in ("sweep", "code", "result", "sweep"):
        await page.keyboard.press("ArrowRight")
        assert await page.evaluate("document.activeElement.id") == f"tab-{name}"
        assert await page.locator(f"#panel-{name}").is_visible()


async def test_what_has_the_focus_is_seen(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key(FAST)
    for _ in range(MOST_STOPS):
        await page.keyboard.press("Tab")
        width = await page.evaluate(
            """() => {
                const element = document.activeElement.closest(".size") ?? document.activeElement;
                return element === document.body ? null : parseFloat(getComputedStyle(element).outlineWidth);
            }"""
        )
        assert width is None or width >= 2


async def test_the_key_dialog_keeps_the_focus_and_gives_it_back(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key(FAST)
    await tab_to(playground, "#key-button")
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == "key"
    await page.keyboard.press("Escape")
    assert await page.evaluate("document.activeElement.id") == "key-button"


async def test_the_skip_link_stays_on_the_page_that_is_seen(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key(FAST, "#history")
    await page.get_by_role("heading", name="History").wait_for()
    await page.locator(".skip").focus()  # Tab begins at what the address names
    await page.keyboard.press("Enter")

    assert await page.evaluate("document.activeElement.id") == "main"
    assert await page.locator("#history").is_visible()
    assert page.url.endswith("#history")
