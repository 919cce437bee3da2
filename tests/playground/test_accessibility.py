from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

from playwright.async_api import Browser

from tests.conftest import Server
from tests.playground.conftest import FAST, SVD, TEXT_TO_VIDEO, Playground, open_tab

State = Callable[[Playground], Awaitable[None]]
Scheme = Literal["light", "dark"]

LOOKS: list[tuple[Scheme, int]] = [("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)]
"""The scheme of colours, and how many pixels the page is wide."""

TOUCH = 44
"""Pixels that a finger needs."""

SMALL = """(least) => [...document.querySelectorAll("button, a.button, nav a, select, input:not([type=file])")]
  .filter((each) => each.checkVisibility() && !each.closest(".off-screen"))
  .map((each) => [each, (each.closest("label:has(input)") ?? each).getBoundingClientRect()])
  .filter(([each, box]) => box.height > 0 && box.height < least - 0.5)
  .map(([each, box]) => `${each.tagName} ${each.id} ${each.textContent.slice(0, 20)} ${box.height}`)"""


async def empty(playground: Playground) -> None:
    await playground.open_with_key(FAST)
    await playground.page.get_by_text("Your clip will play here").wait_for()


async def chosen(playground: Playground) -> None:
    await playground.open_with_key(SVD)
    await playground.choose_example()


async def painting(playground: Playground) -> None:
    await chosen(playground)
    await playground.page.locator("#paint-mask").click()
    await playground.page.locator("#mask-fill").click()
    await playground.page.get_by_text("Add a rectangle by numbers").click()


async def prompt(playground: Playground) -> None:
    await playground.open_with_key(TEXT_TO_VIDEO)
    await playground.page.locator(".chip").first.click()
    await playground.page.get_by_text("Custom", exact=True).click()


async def wrong(playground: Playground) -> None:
    await empty(playground)
    await playground.set(motion_bucket_id=999)
    await playground.page.locator("#run").click()


async def running(playground: Playground) -> None:
    await chosen(playground)
    await playground.set(steps=100)
    await playground.page.locator("#run").click()
    await playground.page.locator("#work-title", has_text="Step ").wait_for()


async def cancelled(playground: Playground) -> None:
    await running(playground)
    await playground.page.locator("#cancel").click()
    await playground.page.locator("#status", has_text="Cancelled").wait_for()


async def done(playground: Playground) -> None:
    await playground.open_with_key(FAST)
    await playground.choose_example()
    await playground.set(steps=1)
    await playground.run()
    await playground.page.locator("dt", has_text="Cost").wait_for()
    for title in ("Request as JSON", "Answer as JSON", "Log"):
        await playground.page.locator("summary", has_text=title).click()


async def code(playground: Playground) -> None:
    await empty(playground)
    await playground.page.locator("#tab-code").click()


async def swept(playground: Playground) -> None:
    await playground.open_with_key(FAST)
    await playground.choose_example()
    await playground.set(steps=1)
    await playground.page.locator("#open-sweep").click()
    await playground.page.locator("#run-sweep").click()
    await playground.page.locator("#sweep-controls .controls").wait_for()


async def history(playground: Playground) -> None:
    await playground.open_with_key(FAST, "#history")
    await playground.page.locator(".past-item video").nth(1).wait_for()


async def compared(playground: Playground) -> None:
    await history(playground)
    for at in range(2):
        await playground.page.locator(".pick input").nth(at).check()
    await playground.page.locator("#compare").click()
    await playground.page.locator(".comparison .controls").wait_for()


async def key(playground: Playground) -> None:
    await empty(playground)
    await playground.page.locator("#key-button").click()


async def operator(playground: Playground) -> None:
    await playground.page.goto(f"{playground.server.url}/operator")
    await playground.page.locator(".endpoint-card").first.wait_for()


async def mistyped(playground: Playground) -> None:
    playground.expect("404")
    await playground.page.goto(f"{playground.server.url}/models/fal-ai/sdv")


async def document(playground: Playground) -> None:
    await playground.page.goto(f"{playground.server.url}/models/{FAST}/api")


STATES: list[State] = [
    *[empty, chosen, painting, prompt, wrong, running, cancelled, done, code],
    *[swept, history, compared, key, operator, mistyped, document],
]


async def test_every_state_is_fit_for_everybody(browser: Browser, server: Server) -> None:
    found: dict[str, list[str]] = {}
    for state in STATES:
        # What is at work ends while it is looked at, so that each look is at another.
        for looks in [[look] for look in LOOKS] if state is running else [LOOKS]:
            async with open_tab(browser, server) as playground:
                await state(playground)
                for scheme, width in looks:
                    found[f"{state.__name__}-{scheme}-{width}"] = await faults(playground, state, scheme, width)
                if state is running:
                    await playground.page.locator("#cancel").click()
                    await playground.page.locator("#status", has_text="Cancelled").wait_for()
    print(f"axe-core: {sum(map(len, found.values()))} violations in {len(STATES)} states, each in {len(LOOKS)} looks")
    assert {name: list for name, list in found.items() if list} == {}


async def faults(playground: Playground, state: State, scheme: Scheme, width: int) -> list[str]:
    """What is wrong with a state, in this light and as wide as that."""
    page = playground.page
    await page.emulate_media(color_scheme=scheme)
    await page.set_viewport_size({"width": width, "height": 800})
    await playground.picture(f"{state.__name__}-{scheme}-{width}", whole=True)
    found = await playground.violations()
    if await page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        found.append("it is wider than the screen")
    if state is not document:
        found += await page.evaluate(SMALL, TOUCH)
    return found


async def test_who_wants_no_motion_gets_none(browser: Browser, server: Server) -> None:
    async with open_tab(browser, server, reduced_motion="reduce") as playground:
        await done(playground)
        await playground.page.wait_for_timeout(500)
        assert await playground.page.evaluate("document.getElementById('video').paused")
        assert await playground.page.evaluate("document.getAnimations().length") == 0
