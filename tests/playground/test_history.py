from __future__ import annotations

import asyncio
from uuid import uuid4

from tests.playground.conftest import FAST, PATIENCE, TEXT_TO_VIDEO, Playground


async def make(playground: Playground, **input: object) -> str:
    """Make a clip without a page; answer its request's id."""
    async with playground.api() as api:
        accepted = (await api.post(f"/queue/{TEXT_TO_VIDEO}", json={"steps": 1, **input})).json()
        path = f"/queue/{FAST}/requests/{accepted['request_id']}"
        async with asyncio.timeout(PATIENCE):
            while (await api.get(f"{path}/status")).json()["status"] != "COMPLETED":
                await asyncio.sleep(0.1)
    return str(accepted["request_id"])


async def find(playground: Playground, text: str, count: int) -> None:
    """Filter the history by a text."""
    await playground.page.locator("#filter-text").fill(text)
    await playground.page.locator(".past-title", has_text=text).nth(count - 1).wait_for()
    await playground.until(f"document.querySelectorAll('.past-title').length === {count}")


async def test_past_requests_are_shown_found_and_opened(playground: Playground) -> None:
    page, mark = playground.page, uuid4().hex
    await make(playground, prompt=f"A boat {mark}", motion_bucket_id=40, seed=5)
    await make(playground, prompt="", seed=6)
    await playground.open_with_key(TEXT_TO_VIDEO, "#history")
    await page.locator(".past-item").first.wait_for()
    await page.locator(".no-clip", has_text="Input refused").first.wait_for()
    await playground.picture("history")
    await find(playground, mark, 1)
    await playground.until("document.querySelector('.thumb video').readyState >= 1")
    await page.locator("#filter-status").select_option("error")
    await page.get_by_text("Nothing matches").wait_for()
    await page.locator("#filter-status").select_option("success")
    await page.locator("#filter-endpoint").select_option(TEXT_TO_VIDEO)
    await find(playground, mark, 1)

    await page.get_by_role("button", name="Open").click()
    await playground.plays()
    assert await page.input_value("#prompt") == f"A boat {mark}"
    assert (await page.input_value("#motion_bucket_id"), await page.input_value("#seed")) == ("40", "5")


async def test_a_past_request_is_made_again_with_its_seed_or_a_new_one(playground: Playground) -> None:
    page, mark = playground.page, uuid4().hex
    first = await make(playground, prompt=mark, seed=11)
    seeds = {}
    for name in ("same seed", "new seed"):
        await playground.open_with_key(FAST, "#history")  # of another endpoint: the page goes there
        await find(playground, mark, 1 + len(seeds))
        await page.get_by_role(
            "button", name=f"Make again with {'the ' if 'same' in name else 'a '}{name}"
        ).last.click()
        await page.wait_for_url(f"**/models/{TEXT_TO_VIDEO}")
        await playground.plays()
        seeds[name] = (await playground.shown_json("Answer"))["seed"]

    async with playground.api() as api:
        before = (await api.get(f"/queue/{FAST}/requests/{first}")).json()
    assert seeds["same seed"] == before["seed"] == 11
    assert seeds["new seed"] != 11


async def test_two_clips_are_compared_in_step(playground: Playground) -> None:
    page, mark = playground.page, uuid4().hex
    for motion in (10, 250):
        await make(playground, prompt=mark, seed=3, motion_bucket_id=motion, fps=5)
    await playground.open_with_key(TEXT_TO_VIDEO, "#history")
    await find(playground, mark, 2)
    for at in range(2):
        await page.locator(".pick input").nth(at).check()
    await page.locator("#compare").click()
    await page.locator(".comparison .controls").wait_for()

    rows = await page.locator(".comparison tbody tr").all_inner_texts()
    assert len(rows) == 1 and rows[0].split("\t")[0] == "Motion"
    assert {"10", "250"} == set(rows[0].split("\t")[1:])
    await playground.until("[...document.querySelectorAll('.pair video')].every((each) => each.currentTime > 0.5)")
    apart = await page.evaluate(
        "(() => { const [a, b] = [...document.querySelectorAll('.pair video')].map((each) => each.currentTime);"
        " return Math.abs(a - b) })()"
    )
    assert apart < 0.25
    await playground.picture("compare")
    await page.get_by_role("slider", name="Place in all clips").fill("500")
    await playground.until(
        "[...document.querySelectorAll('.pair video')]"
        ".every((each) => each.paused && Math.abs(each.currentTime - 2.5) < 0.1)"
    )


async def test_a_key_that_has_made_nothing_is_told_so(playground: Playground) -> None:
    async with playground.api() as api:
        made = (await api.post("/v1/keys", json={"alias": f"new {uuid4().hex}"})).json()
    await playground.open_with_key(FAST, f"#key={made['key_id']}:{made['key_secret']}")
    await playground.page.locator("#to-history").click()

    await playground.page.get_by_text("Nothing made yet").wait_for()
    await playground.picture("history-empty")
