from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import Locator, Route

from deployments.gateway.sample import SAMPLE
from tests.playground.conftest import SVD, Playground

PICTURE, MASK, MAPS = "image_url", "mask_image_url", "control_maps_data_url"


@pytest.fixture
async def svd(lit: Playground) -> Playground:
    """The page of the endpoint that takes a picture, a mask and depth maps."""
    await lit.open_with_key(SVD)
    return lit


def field(playground: Playground, name: str) -> Locator:
    return playground.page.locator(f"#{name}-field")


async def entered(playground: Playground) -> dict[str, str]:
    """What the form says of files, as the page keeps it."""
    draft = await playground.page.evaluate(f"JSON.parse(sessionStorage.getItem('draft of {SVD}'))")
    return {name: value for name, value in draft.items() if name in (PICTURE, MASK, MAPS)}


@pytest.mark.parametrize("name", [PICTURE, MASK, MAPS])
async def test_a_file_belongs_to_the_field_on_which_it_falls(svd: Playground, name: str) -> None:
    await svd.drop(field(svd, name), SAMPLE, "image/jpeg")
    await field(svd, name).get_by_text("Uploaded", exact=True).wait_for()

    assert list(await entered(svd)) == [name]


async def test_a_file_that_falls_beside_the_fields_is_nobodys_and_does_not_leave_the_page(svd: Playground) -> None:
    await svd.page.evaluate("addEventListener('drop', (event) => (window.kept = event.defaultPrevented))")
    await svd.drop(svd.page.locator("h1").first, SAMPLE, "image/jpeg")

    assert await svd.page.evaluate("kept")
    assert await entered(svd) == {}


@pytest.mark.parametrize("name", [PICTURE, MASK])
async def test_what_is_no_picture_is_refused_where_it_fell_and_aloud(
    svd: Playground, tmp_path: Path, name: str
) -> None:
    page, words = svd.page, tmp_path / "words.txt"
    words.write_text("a boat")
    await svd.drop(field(svd, name), words, "text/plain")

    problem = page.locator(f"#{name}-problem")
    assert await problem.text_content() == "“words.txt” is not a picture."
    assert await page.locator("#said").text_content() == await problem.text_content()
    assert await field(svd, name).locator(f"button[aria-describedby={name}-problem]").count() > 0
    assert await entered(svd) == {}


async def test_what_is_pasted_into_a_dialog_is_not_the_picture(svd: Playground) -> None:
    await svd.page.locator("#key-button").click()
    await svd.page.evaluate(
        """() => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File(["a"], "a.png", { type: "image/png" }));
            document.activeElement.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
        }"""
    )
    assert await entered(svd) == {}


async def test_an_upload_that_was_replaced_says_nothing_more(svd: Playground) -> None:
    page, begun, held = svd.page, asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        if route.request.method == "PUT" and not begun.is_set():
            begun.set()
            await held.wait()
            await route.abort()
        else:
            await route.continue_()

    await page.route("**/*", hold)
    await page.locator(".example").nth(0).click()
    await begun.wait()
    await page.locator(".example").nth(1).click()
    await field(svd, PICTURE).get_by_text("Uploaded", exact=True).wait_for()
    held.set()
    await page.wait_for_timeout(300)

    assert await field(svd, PICTURE).get_by_text("Uploaded", exact=True).is_visible()
    assert (await entered(svd))[PICTURE].endswith("hills.jpg")


async def test_of_two_examples_the_later_choice_counts(svd: Playground) -> None:
    page, arrived = svd.page, asyncio.Event()

    async def hold(route: Route) -> None:
        await arrived.wait()
        await route.continue_()

    await page.route("**/examples/boat.jpg", hold)
    await page.locator(".example").nth(0).click()
    await svd.choose_example(1)
    async with page.expect_response("**/examples/boat.jpg"):
        arrived.set()
    await page.wait_for_timeout(300)

    assert await page.locator(".example").nth(1).get_attribute("aria-pressed") == "true"
    assert (await entered(svd))[PICTURE].endswith("hills.jpg")


async def test_an_example_that_is_not_there_is_no_picture(svd: Playground) -> None:
    page = svd.page
    svd.expect("500")
    await page.route("**/examples/boat.jpg", lambda route: route.fulfill(status=500, body="no"))
    await page.locator(".example").nth(0).click()

    await field(svd, PICTURE).get_by_text("It could not be loaded. Check the connection.").wait_for()
    assert await entered(svd) == {}


async def test_a_failed_upload_is_told_aloud_and_tried_again(svd: Playground) -> None:
    page = svd.page
    svd.expect("500")
    await page.route("**/storage/upload/initiate?*", lambda route: route.fulfill(status=500, json={"detail": "no"}))
    await page.locator(".example").nth(0).click()
    await field(svd, PICTURE).get_by_text("Not uploaded").wait_for()
    assert "Not uploaded" in (await page.locator("#said").text_content() or "")

    await page.unroute("**/storage/upload/initiate?*")
    await field(svd, PICTURE).get_by_role("button", name="Try again").click()
    await field(svd, PICTURE).get_by_text("Uploaded", exact=True).wait_for()
