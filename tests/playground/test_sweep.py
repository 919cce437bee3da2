from __future__ import annotations

import asyncio

from playwright.async_api import Route

from tests.playground.conftest import FAST, SVD, Playground

APART = """() => {
  const times = [...document.querySelectorAll('.tile video')].map((each) => each.currentTime);
  return Math.max(...times) - Math.min(...times);
}"""


async def test_one_click_shows_what_a_parameter_does(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key(FAST)
    await playground.choose_example()
    await playground.set(steps=1)
    await page.locator("#open-sweep").click()
    await page.locator("#sweep-parameter").select_option("motion_bucket_id")
    await page.locator("#sweep-count").select_option("4")
    assert await page.input_value("#sweep-values") == "1, 86, 170, 255"
    await page.locator("#run-sweep").click()
    await page.locator("#sweep-controls .controls").wait_for()

    assert await page.locator(".tile figcaption strong").all_text_contents() == ["1", "86", "170", "255"]
    async with playground.api() as api:
        query = {"endpoint_id": FAST, "limit": 4, "expand": "payloads"}
        items = (await api.get("/v1/models/requests/search", params=query)).json()["items"]
    inputs = [item["json_input"] for item in items]
    assert {input["motion_bucket_id"] for input in inputs} == {1, 86, 170, 255}
    assert len({input["seed"] for input in inputs}) == len({input["image_url"] for input in inputs}) == 1
    assert str(inputs[0]["seed"]) == await page.input_value("#seed")
    await playground.until("[...document.querySelectorAll('.tile video')].every((each) => each.currentTime > 0.5)")
    assert await page.evaluate(APART) < 0.25
    await playground.picture("sweep")


async def test_the_values_of_a_sweep_are_checked_in_words(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key(FAST)
    await page.locator("#open-sweep").click()
    await page.locator("#sweep-parameter").select_option("steps")
    problem = page.locator("#sweep-problem")

    for values, words in {
        "1, x": "Write numbers",
        "1, 2.5": "whole numbers",
        "1, 99": "99 is outside 1 to 20",
        "4": "Two to five values",
        "4, 4": "Each value once",
        "1, 4": "",
    }.items():
        await page.locator("#sweep-values").fill(values)
        assert words in (await problem.text_content() or "")
    await page.locator("#run-sweep").click()
    await page.locator("#form-problem", has_text="Choose a picture first").wait_for()


async def test_a_sweep_is_cancelled_as_a_whole(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key("fal-ai/svd")
    await playground.choose_example()
    await playground.set(steps=100)
    await page.locator("#open-sweep").click()
    await page.locator("#run-sweep").click()
    await page.get_by_text("Making it").first.wait_for()
    await page.get_by_role("button", name="Cancel all").click()

    await playground.until(
        "[...document.querySelectorAll('.tile')].every((each) => /Cancelled/.test(each.textContent))"
    )
    await page.locator("#run-sweep:enabled").wait_for()


async def test_a_sweep_that_is_cancelled_while_it_is_sent_leaves_nothing_running(playground: Playground) -> None:
    page = playground.page
    sent, stopped = [], asyncio.Event()

    async def submit(route: Route) -> None:
        if route.request.method == "POST":
            sent.append(route.request.url)
            if len(sent) == 2:
                await stopped.wait()
        await route.continue_()

    await playground.open_with_key(SVD)
    await playground.choose_example()
    await playground.set(steps=100)
    await page.route("**/queue/**", submit)
    await page.locator("#open-sweep").click()
    await page.locator("#run-sweep").click()
    async with asyncio.timeout(30):
        while len(sent) < 2:
            await asyncio.sleep(0.05)
    await page.get_by_role("button", name="Cancel all").click()
    stopped.set()

    await page.locator("#run-sweep:enabled").wait_for()
    tiles = await page.locator(".tile").all_inner_texts()
    assert len(tiles) == 3 and all("Cancelled" in tile for tile in tiles)
    assert len(sent) == 2
    async with playground.api() as api:
        items = (await api.get(f"/v1/models/requests/search?endpoint_id={SVD}&limit=2")).json()["items"]
    assert [item["status_code"] for item in items] == [499, 499]


async def test_a_running_sweep_is_taken_up_again_after_a_reload(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key(SVD)
    await playground.choose_example()
    await playground.set(steps=25)
    await page.locator("#open-sweep").click()
    await page.locator("#sweep-parameter").select_option("motion_bucket_id")
    await page.locator("#run-sweep").click()
    await page.get_by_text("Making it").first.wait_for()
    await playground.until("JSON.parse(sessionStorage.getItem('sweep of fal-ai/svd'))?.sent.length === 3")
    await page.reload()

    await page.locator("#sweep-controls .controls").wait_for()
    assert await page.locator(".tile figcaption strong").all_text_contents() == ["1", "128", "255"]
    assert await page.locator(".tile video").count() == 3
    assert not await page.evaluate("sessionStorage.getItem('sweep of fal-ai/svd')")
