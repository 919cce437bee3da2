from __future__ import annotations

import asyncio
import re
from typing import Any
from uuid import uuid4

import pytest
from playwright.async_api import Route

from tests.playground.conftest import FAST, SVD, TEXT_TO_VIDEO, Playground

FAILED_LOAD = "Failed to load resource"


async def fails(playground: Playground, title: str, *words: str) -> None:
    """The result says so, and the form is still what it was."""
    page = playground.page
    await page.locator(".blank.failed .blank-title", has_text=title).wait_for()
    told = await page.locator(".blank.failed").inner_text()
    assert all(each in told for each in words), told
    assert await page.input_value("#prompt") == "A lake"
    await page.locator("#run:enabled").wait_for()


async def send(playground: Playground, answer: dict[str, Any]) -> None:
    """Send a form that the service answers so."""

    async def submit(route: Route) -> None:
        await route.fulfill(**answer) if route.request.method == "POST" else await route.continue_()

    playground.expect(FAILED_LOAD)
    await playground.open_with_key(TEXT_TO_VIDEO)
    await playground.page.route("**/queue/**", submit)
    await playground.set(prompt="A lake")
    await playground.page.locator("#run").click()


@pytest.mark.parametrize(
    ("name", "status", "headers", "body", "words"),
    [
        ("401", 401, {}, {"detail": "No user found for Key ID and Secret"}, ["This key is not accepted"]),
        ("404", 404, {}, {"detail": "Application not found"}, ["Not found", "Application not found."]),
        (
            "429",
            429,
            {"retry-after": "7", "x-fal-error-type": "queue_full"},
            {"detail": "8 requests are waiting", "error_type": "queue_full"},
            ["The queue is full", "8 requests are waiting.", "Try again in 7 s."],
        ),
        ("500", 500, {}, {"detail": "Internal error", "error_type": "internal_error"}, ["The server has a problem"]),
        ("502", 502, {}, None, ["The server cannot be reached"]),
        ("503", 503, {"retry-after": "5"}, {"detail": "away"}, ["busy or restarting", "Try again in 5 s."]),
    ],
)
async def test_a_refusal_is_told_in_words(
    playground: Playground, name: str, status: int, headers: dict[str, str], body: Any, words: list[str]
) -> None:
    answer: dict[str, Any] = {"status": status, "headers": headers}
    await send(playground, answer | ({"json": body} if body else {"body": "<html>"}))
    await fails(playground, words[0], *words)
    assert await playground.page.locator("#key-dialog").is_visible() == (status == 401)
    await playground.picture(f"error-{name}")


async def test_what_the_service_finds_wrong_is_shown_at_its_field(playground: Playground) -> None:
    detail = [{"loc": ["body", "motion_bucket_id"], "msg": "Input should be less than 9", "type": "less_than"}]
    await send(playground, {"status": 422, "json": {"detail": detail}})

    await fails(playground, "Something needs another look", "motion_bucket_id")
    page = playground.page
    assert await page.locator("#motion_bucket_id-problem").text_content() == "Input should be less than 9."
    assert await page.locator("#motion_bucket_id").get_attribute("aria-invalid") == "true"
    await playground.picture("error-422")


async def test_a_picture_that_the_service_cannot_read_is_told_at_the_picture(
    playground: Playground, tmp_path: Any
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture at all")
    playground.expect(FAILED_LOAD)
    page = playground.page
    await playground.open_with_key(FAST)
    await page.locator("#image_url").set_input_files(broken)
    await page.get_by_text("This browser cannot show the picture.").wait_for()
    await page.get_by_text("Uploaded", exact=True).wait_for()
    await page.locator("#run").click()

    await page.locator("#image_url-problem", has_text="no picture that can be read").wait_for()
    assert await page.locator("#status").text_content() == "Failed"
    await playground.picture("error-picture")


async def test_offline_nothing_is_lost(playground: Playground) -> None:
    page = playground.page
    playground.expect("ERR_INTERNET_DISCONNECTED")
    await playground.open_with_key(TEXT_TO_VIDEO)
    await playground.set(prompt="A lake", steps=1)
    await playground.context.set_offline(True)
    await page.locator("#run").click()
    await fails(playground, "You are offline")
    await playground.picture("error-offline")
    await playground.context.set_offline(False)
    await page.get_by_role("button", name="Try again").click()
    await playground.plays()


async def test_a_connection_that_is_lost_on_the_way_loses_no_request(playground: Playground) -> None:
    page = playground.page
    playground.expect("ERR_INTERNET_DISCONNECTED")
    await playground.open_with_key(SVD)
    await playground.choose_example()
    await playground.set(steps=40)
    await page.locator("#run").click()
    await page.locator("#work-title", has_text="Step ").wait_for()
    await playground.context.set_offline(True)
    await page.locator("#work-more", has_text="The connection is lost.").wait_for()
    await asyncio.sleep(1)
    await playground.context.set_offline(False)

    await playground.plays()


async def test_a_call_that_nobody_answers_ends(playground: Playground) -> None:
    page = playground.page
    await page.add_init_script(
        "const wait = AbortSignal.timeout; AbortSignal.timeout = () => wait.call(AbortSignal, 2000)"
    )
    await playground.open_with_key(TEXT_TO_VIDEO)
    await page.route("**/queue/**", lambda route: None)
    await playground.set(prompt="A lake", steps=1)
    await page.locator("#run").click()

    await fails(playground, "The server does not answer")


async def test_a_cancellation_that_failed_is_told(playground: Playground) -> None:
    page = playground.page
    playground.expect(FAILED_LOAD)
    await playground.open_with_key(SVD)
    await playground.choose_example()
    await playground.set(steps=100)
    await page.route("**/cancel", lambda route: route.fulfill(status=503, json={"detail": "away"}))
    await page.locator("#run").click()
    await page.locator("#work-title", has_text="Step ").wait_for()
    await page.locator("#cancel").click()
    await page.locator("#work-more", has_text="It was not cancelled: the service is busy or restarting.").wait_for()
    await page.unroute("**/cancel")
    await page.locator("#cancel").click()

    await page.locator("#status", has_text="Cancelled").wait_for()


async def test_a_slow_answer_keeps_no_page_waiting(playground: Playground) -> None:
    page = playground.page
    await page.route("**/playground/pace*", lambda route: None)
    await playground.open_with_key(FAST, "#history")

    await page.get_by_role("heading", name="History").wait_for()


async def test_a_part_that_cannot_be_loaded_says_so(playground: Playground) -> None:
    page = playground.page
    playground.expect("ERR_FAILED")
    await page.route(re.compile(r"/playground/(history|sweep)\.js"), lambda route: route.abort())
    await playground.open_with_key(FAST)
    for opener, place in (("#open-sweep", "#panel-sweep"), ("#to-history", "#history")):
        await page.locator(opener).click()
        await page.locator(place, has_text="This could not be loaded").wait_for()
    await page.unroute_all()
    await page.get_by_role("button", name="Load the page again").click()

    await page.get_by_role("heading", name="History").wait_for()


@pytest.mark.parametrize(
    ("items", "title", "words"),
    [
        ([], "Not found", "The request is in the history no longer."),
        (
            [{"request_id": "1", "endpoint_id": "fal-ai/gone"}],
            "This endpoint is gone",
            "fal-ai/gone is served here no longer.",
        ),
    ],
)
async def test_a_past_request_that_cannot_be_opened_is_told(
    playground: Playground, items: list[Any], title: str, words: str
) -> None:
    page = playground.page
    await playground.open_with_key(FAST)
    await page.route("**/requests/search?request_id=*", lambda route: route.fulfill(json={"items": items}))
    await page.evaluate(f"sessionStorage.setItem('request to open', JSON.stringify({{ id: '{uuid4()}' }}))")
    await page.reload()

    await page.locator(".blank.failed .blank-title", has_text=title).wait_for()
    await page.locator(".blank.failed", has_text=words).wait_for()
    assert page.url == f"{playground.server.url}/models/{FAST}"


async def test_a_failed_upload_is_told_and_tried_again(playground: Playground) -> None:
    page = playground.page
    playground.expect(FAILED_LOAD)
    refused = {"status": 429, "json": {"detail": "Enough for a day", "error_type": "upload_limit"}}
    await page.route("**/storage/upload/initiate*", lambda route: route.fulfill(**refused))
    await playground.open_with_key(FAST)
    await page.locator(".example").first.click()
    await page.locator(".upload", has_text="Not uploaded: the day's uploads are used up.").wait_for()
    await page.locator("#run").click()
    await page.locator("#form-problem", has_text="The day's uploads are used up.").wait_for()
    await page.unroute("**/storage/upload/initiate*")
    await page.get_by_role("button", name="Try again").click()

    await page.get_by_text("Uploaded", exact=True).wait_for()
