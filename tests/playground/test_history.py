from __future__ import annotations

import asyncio
import base64
from uuid import uuid4

import pytest
from playwright.async_api import Route

from deployments.gateway.sample import SAMPLE
from deployments.queue.keys import Keys
from tests.playground.conftest import FAST, PATIENCE, SVD, TEXT_TO_VIDEO, Playground
from tests.playground.light import Light


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
    await page.get_by_text("Nothing matches", exact=True).wait_for()
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

    await playground.page.get_by_text("Nothing made yet", exact=True).wait_for()
    await playground.picture("history-empty")


async def titles(playground: Playground, count: int) -> list[str]:
    """What the cards are called, once there are so many."""
    await playground.until(f"document.querySelectorAll('.past-title').length === {count}")
    return await playground.page.locator(".past-title").all_inner_texts()


async def choose(playground: Playground, *titles: str) -> None:
    """Tick the boxes of some clips, and compare them."""
    for title in titles:
        await (
            playground.page.locator(".past-item", has_text=title).locator("[name=compare]:not(:checked)").first.check()
        )
    await playground.page.locator("#compare").click()
    await playground.page.locator(".comparison").wait_for()


async def test_an_administrator_sees_its_own_unless_it_asks_for_everybodys(lit: Playground, light: Light) -> None:
    page = lit.page
    key, _ = await Keys(light.store.database).create("the shop")
    await light.past({"prompt": "mine"})
    theirs = await light.past({"prompt": "theirs", "seed": 3}, key_id=key.id)
    await lit.open_with_key(TEXT_TO_VIDEO, "#history")
    assert await titles(lit, 1) == ["mine"]

    await page.get_by_label("Everybody's").check()
    assert sorted(await titles(lit, 2)) == ["mine", "theirs"]
    card = page.locator(".past-item", has_text="theirs")
    assert "by the shop" in await card.inner_text()
    assert "by " not in await page.locator(".past-item", has_text="mine").inner_text()
    await card.get_by_role("button", name="Open").click()
    await lit.plays()
    assert (await page.input_value("#prompt"), await page.input_value("#seed")) == ("theirs", "3")
    assert await page.locator(".id-line code").text_content() == theirs


async def test_another_key_is_not_asked_whose_history_it_wants(lit: Playground, light: Light) -> None:
    key, secret = await Keys(light.store.database).create("the shop")
    await light.past({"prompt": "theirs"}, key_id=key.id)
    await light.past({"prompt": "mine"})
    await lit.open_with_key(TEXT_TO_VIDEO, f"#key={key.id}:{secret}")
    await lit.page.locator("#to-history").click()

    assert await titles(lit, 1) == ["theirs"]
    assert await lit.page.get_by_label("Everybody's").is_hidden()


async def test_nothing_of_a_history_stays_when_its_key_is_forgotten(lit: Playground, light: Light) -> None:
    page = lit.page
    for prompt in ("a boat", "a lake"):
        await light.past({"prompt": prompt})
    await lit.open_with_key(TEXT_TO_VIDEO, "#history")
    await titles(lit, 2)
    await choose(lit, "a boat", "a lake")
    await page.locator("#key-button").click()
    await page.locator("#forget").click()

    await page.get_by_text("A key is needed", exact=True).wait_for()
    assert await page.locator(".past-item, .comparison").count() == 0
    assert await page.locator("#tray").is_hidden()


async def test_what_was_cancelled_is_found_apart_from_refused_inputs(lit: Playground, light: Light) -> None:
    page = lit.page
    for status in (200, 422, 499, 500):
        await light.past({"prompt": f"ended with {status}"}, status)
    await lit.open_with_key(TEXT_TO_VIDEO, "#history")
    await titles(lit, 4)

    for ending, status in (("user_error", 422), ("cancelled", 499), ("error", 500)):
        await page.locator("#filter-status").select_option(ending)
        assert await titles(lit, 1) == [f"ended with {status}"]


async def test_a_long_input_is_no_part_of_the_list_and_is_opened_whole(lit: Playground, light: Light) -> None:
    page, sizes = lit.page, []
    picture = f"data:image/jpeg;base64,{base64.b64encode(SAMPLE.read_bytes()).decode()}"
    await light.past({"image_url": picture, "motion_bucket_id": 33}, endpoint=SVD)
    page.on("response", lambda reply: "short_payloads" in reply.url and sizes.append(reply))
    await lit.open_with_key(SVD, "#history")
    assert await titles(lit, 1) == ["A long input"]
    assert [len(await reply.body()) < 2000 for reply in sizes] == [True] * len(sizes) and sizes

    await page.get_by_role("button", name="Open").click()
    await lit.plays()
    assert await page.input_value("#motion_bucket_id") == "33"
    await lit.until("document.querySelector('img.picture').naturalWidth > 0")


LEFT, RIGHT = "https://example.com/a", "https://example.com/b"
MASKS = ({"mask_image_url": f"{LEFT}/mask.png"}, {"mask_image_url": f"{RIGHT}/mask.png"})


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (({"image_url": f"{LEFT}/100%.png"}, {"image_url": f"{RIGHT}/b%20c.png"}), ["Picture", "100%.png", "b c.png"]),
        (MASKS, ["Mask", "another mask.png", "mask.png"]),
        (({"image_url": "data:,a"}, {"image_url": "data:,b"}), ["Picture", "A file within the request", "another "]),
        (({"seed": 1}, {"seed": 1}), ["Their inputs are the same"]),
    ],
)
async def test_clips_are_the_same_only_when_their_inputs_are(
    lit: Playground, light: Light, inputs: tuple[dict[str, object], ...], told: list[str]
) -> None:
    for input in inputs:
        await light.past({"prompt": "a boat", **input})
    await lit.open_with_key(TEXT_TO_VIDEO, "#history")
    await titles(lit, 2)
    await choose(lit, "a boat", "a boat")

    text = await lit.page.locator(".comparison").inner_text()
    assert [words for words in told if words not in text] == []


async def test_the_boxes_say_which_two_clips_are_compared(lit: Playground, light: Light) -> None:
    page = lit.page
    names = ["first", "second", "third"]
    for name in names:
        await light.past({"prompt": name})
    await lit.open_with_key(TEXT_TO_VIDEO, "#history")
    await titles(lit, 3)
    for name in names:
        await page.locator(".past-item", has_text=name).locator("[name=compare]").check()

    async def ticked() -> list[str]:
        return sorted(await page.locator(".past-item:has(:checked) .past-title").all_inner_texts())

    assert await ticked() == ["second", "third"]
    await page.locator("#filter-text").fill("third")
    assert await titles(lit, 1) == ["third"]
    assert await ticked() == ["third"]
    assert await page.locator("#tray p").text_content() == "Two clips chosen"
    await page.locator("#compare").click()
    await page.locator(".comparison h2").wait_for()
    assert await page.evaluate("document.activeElement.textContent") == "Side by side"
    await page.get_by_role("button", name="Close").click()
    assert await page.evaluate("document.activeElement.id") == "compare"
    await page.get_by_role("button", name="Clear").click()
    assert await ticked() == [] and await page.locator("#tray").is_hidden()


async def test_who_pauses_before_all_clips_are_there_is_obeyed(lit: Playground, light: Light) -> None:
    page = lit.page
    arrived = asyncio.Event()

    async def hold(route: Route) -> None:
        await arrived.wait()
        await route.continue_()

    ids = [await light.past({"prompt": prompt}) for prompt in ("a boat", "a lake")]
    await lit.open_with_key(TEXT_TO_VIDEO, "#history")
    await titles(lit, len(ids))
    await page.route("**/files/**", hold)
    await choose(lit, "a boat", "a lake")
    toggle = page.get_by_role("button", name="Play all clips")
    await toggle.click()
    await page.get_by_role("button", name="Pause all clips").click()
    arrived.set()

    await lit.until("[...document.querySelectorAll('.pair video')].every((each) => each.readyState >= 2)")
    await page.wait_for_timeout(300)
    assert await page.evaluate("[...document.querySelectorAll('.pair video')].every((each) => each.paused)")
    assert await toggle.is_visible()
