from __future__ import annotations

from tests.playground.conftest import FAST, Playground

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
