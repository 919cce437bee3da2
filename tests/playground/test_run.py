from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import httpx
import pytest
from playwright.async_api import Browser, Route

from tests.conftest import Server
from tests.playground.conftest import FAST, PATIENCE, STABLE_VIDEO, SVD, TEXT_TO_VIDEO, Playground, open_tab

STEPS: dict[str, dict[str, int]] = {STABLE_VIDEO: {"fps": 12}, SVD: {"steps": 6}, FAST: {"steps": 3}}

WATCH = """() => {
  window.seen = { titles: [], previews: [], statuses: [] };
  const note = (list, text) => text && list.at(-1) !== text && list.push(text);
  new MutationObserver(() => {
    note(seen.titles, document.getElementById("work-title")?.textContent);
    note(seen.statuses, document.getElementById("status").textContent);
    const preview = document.getElementById("preview");
    if (preview?.alt) note(seen.previews, preview.src);
  }).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true });
}"""


@pytest.mark.parametrize("endpoint", [STABLE_VIDEO, SVD, FAST])
async def test_a_picture_becomes_a_playing_clip(playground: Playground, endpoint: str) -> None:
    page = playground.page
    await playground.open_with_key(endpoint)
    await playground.choose_example()
    await playground.set(**STEPS[endpoint])
    await page.evaluate(WATCH)
    await playground.run()
    await playground.until("document.getElementById('video').currentTime > 0.1")

    request = await playground.request()
    assert request["image_url"].startswith(f"{playground.server.url}/files/")
    assert STEPS[endpoint].items() <= request.items()
    await check_result(playground)
    await playground.picture(f"done-{endpoint.rpartition('/')[2]}", whole=True)


async def test_a_prompt_becomes_a_playing_clip(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key(TEXT_TO_VIDEO)
    await page.locator(".chip").first.click()
    await page.get_by_text("Square", exact=True).click()
    await playground.set(steps=2)
    await page.evaluate(WATCH)
    await playground.run()

    request = await playground.request()
    assert request["video_size"] == "square" and len(request["prompt"]) > 10
    assert await page.evaluate("document.getElementById('video').videoWidth") == await page.evaluate(
        "document.getElementById('video').videoHeight"
    )
    await check_result(playground)
    await playground.picture("done-text-to-video", whole=True)


async def check_result(playground: Playground) -> None:
    """Steps were told on the way, and what it took is told at the end."""
    page = playground.page
    seen = await page.evaluate("window.seen")
    assert any("Step " in title for title in seen["titles"]), seen
    assert seen["previews"] and seen["previews"][-1].startswith(f"{playground.server.url}/files/")
    assert "Running" in seen["statuses"] and seen["statuses"][-1] == "Done"
    await page.locator("dt", has_text="Cost").wait_for()
    facts = await page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('.facts div')].map((each) => each.innerText.split('\\n')))"
    )
    assert set(facts) == {"Waited", "Ran", "Price", "Cost", "Seed", "File"}
    answer = await playground.shown_json("Answer")
    assert str(answer["seed"]) == facts["Seed"] == await page.input_value("#seed")
    async with page.expect_download() as download:
        await page.locator("#download").click()
    assert (await (await download.value).path()).read_bytes()[4:8] == b"ftyp"


async def test_frames_are_stepped_through_one_by_one(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key(FAST)
    await playground.choose_example()
    await playground.set(steps=1)
    await playground.run()
    words = page.locator(".frame-words")

    await page.get_by_role("button", name="Pause").click()
    await page.get_by_role("slider", name="Frame", exact=True).fill("0")
    await words.get_by_text("1 / 25").wait_for()
    await page.get_by_role("button", name="One frame forward").click()
    await words.get_by_text("2 / 25").wait_for()
    await page.get_by_role("button", name="One frame back").click()
    await page.get_by_role("button", name="One frame back").click()
    await words.get_by_text("25 / 25").wait_for()
    await page.get_by_role("button", name="Loop").click()
    await page.get_by_role("combobox", name="Speed").select_option("0.25")
    assert await page.evaluate("[video.loop, video.playbackRate]") == [False, 0.25]


async def test_a_request_is_cancelled(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key(SVD)
    await playground.choose_example()
    await playground.set(steps=100, motion_bucket_id=77)
    await page.locator("#run").click()
    await page.locator("#work-title", has_text="Step ").wait_for()
    await playground.picture("running")
    await page.locator("#cancel").click()
    await page.locator("#status", has_text="Cancelled").wait_for()

    assert await page.locator(".blank-title").text_content() == "Cancelled"
    assert await page.input_value("#motion_bucket_id") == "77"
    await page.locator("#run:enabled").wait_for()
    id = await page.locator(".id-line code").text_content()
    async with playground.api() as api:
        ended = (await api.get(f"/queue/fal-ai/svd/requests/{id}/status")).json()
    assert ended["error_type"] == "client_cancelled"
    await playground.picture("cancelled")


async def test_a_running_request_is_taken_up_again_after_a_reload(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key(SVD)
    await playground.choose_example()
    await playground.set(steps=60, cond_aug=0.5)
    await page.locator("#run").click()
    await page.locator("#work-title", has_text="Step ").wait_for()
    await page.reload()
    await page.locator("#work").wait_for()

    assert await page.input_value("#cond_aug") == "0.5"
    assert await page.locator(".picture-frame img").is_visible()
    await playground.plays()
    assert (await playground.request())["steps"] == 60


async def test_what_has_ended_is_not_taken_up_again(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key(FAST)
    await playground.choose_example()
    await playground.set(steps=1)
    await playground.run()
    assert not await page.evaluate("Object.keys(sessionStorage).some((each) => each.startsWith('run of'))")
    await page.reload()

    await page.get_by_text("Your clip will play here").wait_for()
    assert await page.input_value("#steps") == "1"


async def test_a_past_request_is_looked_at_while_another_goes_on(playground: Playground) -> None:
    page = playground.page
    await past(playground, {"steps": 1, "seed": 5})
    await playground.open_with_key(SVD)
    await playground.choose_example()
    await playground.set(steps=100)
    await page.locator("#run").click()
    await page.locator("#work-title", has_text="Step ").wait_for()

    await open_past(playground, "Open")
    await playground.plays()
    assert (await playground.request())["steps"] == 1
    assert await page.locator("#back-words").text_content() == "This is another request. Yours is at work."
    await playground.picture("another")
    await open_past(playground, "Make again with a new seed")
    await page.locator("#form-problem", has_text="A clip is at work.").wait_for()
    await page.get_by_role("button", name="Show yours").click()
    await page.locator("#work-title", has_text="Step ").wait_for()
    await page.locator("#cancel").click()
    await page.locator("#status", has_text="Cancelled").wait_for()
    await page.locator("#run:enabled").wait_for()
    assert await page.locator("#form-problem").is_hidden()


async def past(playground: Playground, input: dict[str, Any]) -> None:
    """Make a clip without a page."""
    async with playground.api() as api:
        picture = f"{playground.server.url}/files/samples/landscape.jpg"
        accepted = (await api.post(f"/queue/{SVD}", json={"image_url": picture, **input})).json()
        async with asyncio.timeout(PATIENCE):
            while (await api.get(f"/queue/{SVD}/requests/{accepted['request_id']}/status")).json()[
                "status"
            ] != "COMPLETED":
                await asyncio.sleep(0.1)


async def open_past(playground: Playground, action: str) -> None:
    """Do something with the newest of the history."""
    await playground.page.locator("#to-history").click()
    await playground.page.get_by_role("button", name=action).first.click()


async def test_a_request_that_may_have_come_through_is_made_once(playground: Playground) -> None:
    page, mark = playground.page, uuid4().hex

    async def lose_the_answer(route: Route) -> None:
        await route.fetch()
        await route.abort()

    playground.expect("ERR_FAILED")
    await playground.open_with_key(TEXT_TO_VIDEO)
    await playground.set(prompt=mark, steps=1)
    await page.route("**/queue/**", lose_the_answer, times=1)
    await page.locator("#run").click()
    await page.locator(".blank-title", has_text="The server cannot be reached").wait_for()
    await page.get_by_role("button", name="Try again").click()
    await playground.plays()

    async with playground.api() as api:
        found = (await api.get("/v1/models/requests/search", params={"query": mark})).json()
    assert len(found["items"]) == 1


async def test_who_waits_is_told_the_place_and_the_time(playground: Playground) -> None:
    page = playground.page
    async with playground.api() as api:
        await playground.open_with_key(SVD)
        await playground.choose_example()
        await playground.set(steps=2)
        await playground.run()  # so that it is known how long one takes
        input = (await playground.request()) | {"steps": 100}
        others = [(await api.post("/queue/fal-ai/svd", json=input)).json() for _ in range(3)]
        await page.locator("#run").click()
        await page.locator("#work-title", has_text="ahead").wait_for()
        await page.locator("#work-more", has_text="Ready in about").wait_for()
        await playground.picture("waiting")
        for other in others:
            await api.put(httpx.URL(other["cancel_url"]).path)
        await page.locator("#status", has_text="Running").wait_for()
        await playground.plays()


async def test_the_wait_counts_what_runs_and_is_told_anew(playground: Playground) -> None:
    page = playground.page
    waits = {"status": "IN_QUEUE", "queue_position": 1, "logs": []}
    pace = {"endpoint_id": FAST, "seconds": 10, "running": 1, "at_once": 1}
    await playground.open_with_key(FAST)
    await playground.choose_example()
    await playground.set(steps=1)
    await page.route("**/status?logs=1", lambda route: route.fulfill(json=waits))
    await page.route("**/playground/pace*", lambda route: route.fulfill(json=pace))
    await page.locator("#run").click()

    more = page.locator("#work-more")
    await more.get_by_text("Ready in about 30 s.").wait_for()
    pace |= {"running": 2, "at_once": 2}
    await more.get_by_text("Ready in about 20 s.").wait_for()
    pace |= {"running": 0, "at_once": 0}
    await more.get_by_text("Nothing is ready to make it yet.").wait_for()
    await page.unroute("**/status?logs=1")
    await playground.plays()


async def test_the_log_tells_the_readers_own_time(browser: Browser, server: Server) -> None:
    async with open_tab(browser, server, timezone_id="Asia/Kolkata") as playground:
        await playground.open_with_key(TEXT_TO_VIDEO)
        await playground.set(prompt="A lake", steps=1)
        await playground.run()
        line = playground.page.locator(".log time").first
        at = datetime.fromisoformat(await line.get_attribute("datetime") or "").astimezone(ZoneInfo("Asia/Kolkata"))
        assert await line.text_content() == f"{at:%H:%M:%S}"


async def test_a_locked_seed_stays_and_gives_the_same_clip(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key(FAST)
    await playground.choose_example()
    await playground.set(steps=1)
    await playground.run()
    first = await shown_clip(playground)
    await page.locator("#seed-lock").click()
    await again(playground)
    locked = await shown_clip(playground)
    await page.locator("#seed-lock").click()
    await again(playground)
    free = await shown_clip(playground)

    assert first == locked
    assert first[0] != free[0] and first[1] != free[1]


async def again(playground: Playground) -> None:
    before = await playground.page.evaluate("document.getElementById('video').src")
    await playground.page.locator("#run").click()
    await playground.until(f"(document.getElementById('video')?.src ?? {before!r}) !== {before!r}")
    await playground.plays()


async def shown_clip(playground: Playground) -> tuple[Any, bytes]:
    answer = await playground.shown_json("Answer")
    async with playground.api() as api:
        return answer["seed"], (await api.get(answer["video"]["url"])).content


# ---------------------------------------------------------------- the key


async def test_on_its_own_machine_it_just_works_and_keeps_nothing_beyond_the_tab(playground: Playground) -> None:
    await playground.open_with_key(FAST)

    assert await playground.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert playground.server.key in await playground.page.evaluate("Object.values(sessionStorage)")


async def test_a_key_in_the_address_is_taken_and_removed_from_it(playground: Playground) -> None:
    await playground.open_with_key(FAST, f"#key={playground.server.key}")

    assert playground.page.url == f"{playground.server.url}/models/{FAST}"


async def test_a_key_that_comes_into_the_address_of_an_open_tab_is_taken_as_it_stands(playground: Playground) -> None:
    page = playground.page
    playground.expect("401")  # the key is nobody's
    await playground.open_with_key(FAST)
    await page.evaluate("location.hash = 'key=some:one+two'")

    await playground.until("Object.values(sessionStorage).includes('some:one+two')")
    assert page.url == f"{playground.server.url}/models/{FAST}"


async def test_a_key_is_entered_remembered_only_when_asked_and_forgotten(browser: Browser, server: Server) -> None:
    async with open_tab(browser, server) as playground:
        page = playground.page
        await page.route("**/playground/key", lambda route: route.fulfill(status=404, json={"detail": "Not found"}))
        playground.expect("/playground/key")
        await playground.open(FAST)
        await page.locator(".example").first.click()
        await page.locator(".example[aria-pressed=true]").wait_for()  # it is loaded first
        await page.locator("#run").click()
        await page.get_by_text("Making a video needs a key.").wait_for()
        await playground.picture("key")
        await page.locator("#key").fill("no colon")
        await page.get_by_role("button", name="Use it").click()
        await page.get_by_text("A key is written id:secret").wait_for()
        await page.locator("#key").fill(server.key)
        await page.get_by_role("button", name="Use it").click()
        assert await page.evaluate("localStorage.length") == 0
        await playground.set(steps=1)
        await playground.run()

        await page.locator("#key-button").click()
        await page.get_by_label("Remember it on this device").check()
        await page.get_by_role("button", name="Use it").click()
        assert server.key in await page.evaluate("Object.values(localStorage)")
        await page.locator("#key-button").click()
        await page.get_by_role("button", name="Forget the key").click()
        assert await page.evaluate("localStorage.length") == 0
        assert server.key not in await page.evaluate("Object.values(sessionStorage)")
