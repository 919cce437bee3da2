from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from tests.playground.conftest import SVD, Playground

WHITE, BLACK = 255, 0


async def open_editor(playground: Playground) -> Any:
    """The editor on an example, and its canvas."""
    page = playground.page
    await playground.open_with_key(SVD)
    await playground.choose_example()
    await page.locator("#paint-mask").click()
    canvas = page.locator(".mask-canvas")
    await canvas.wait_for()
    return canvas


async def use(playground: Playground) -> np.ndarray[Any, Any]:
    """Take the mask, make a clip with it, and answer the mask that the request names."""
    page = playground.page
    await page.locator("#mask-use").click()
    await page.locator("#mask_image_url-field").get_by_text("Uploaded", exact=True).wait_for()
    await playground.set(steps=1)
    await playground.run()
    url = (await playground.request())["mask_image_url"]
    async with playground.api() as api:
        mask = Image.open(io.BytesIO((await api.get(url)).content))
    assert mask.mode in ("RGB", "RGBA")
    return np.asarray(mask.convert("L"))


async def drag(playground: Playground, canvas: Any, *places: tuple[float, float]) -> None:
    """Draw a line over the picture, through places given in shares of its sides."""
    box = await canvas.bounding_box()
    points = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in places]
    await playground.page.mouse.move(*points[0])
    await playground.page.mouse.down()
    for point in points[1:]:
        await playground.page.mouse.move(*point, steps=10)
    await playground.page.mouse.up()


def at(mask: np.ndarray[Any, Any], x: float, y: float) -> int:
    """The brightness of a place."""
    return int(mask[round(y * (mask.shape[0] - 1)), round(x * (mask.shape[1] - 1))])


async def test_what_is_painted_moves_and_the_rest_stays(playground: Playground) -> None:
    canvas = await open_editor(playground)
    await drag(playground, canvas, (0.2, 0.5), (0.6, 0.5))
    await playground.picture("mask")
    mask = await use(playground)

    assert mask.shape == (360, 640)
    assert [at(mask, x, 0.5) for x in (0.2, 0.4, 0.6)] == [BLACK] * 3
    assert [at(mask, *place) for place in ((0.9, 0.5), (0.4, 0.9), (0.4, 0.1))] == [WHITE] * 3
    assert set(np.unique(mask[:100])) == {WHITE}
    share = float((mask < 128).mean())
    told = await playground.page.locator("#mask_image_url-field").inner_text()
    assert f"{round(share * 100)} % of the picture moves" in told
    await playground.picture("masked", whole=True)


async def test_another_painting_is_another_mask_and_none_is_none(playground: Playground) -> None:
    page = playground.page
    canvas = await open_editor(playground)
    await drag(playground, canvas, (0.2, 0.2), (0.8, 0.2))
    first = await use(playground)
    await page.get_by_role("button", name="Change the mask").click()
    await drag(playground, canvas, (0.2, 0.8), (0.8, 0.8))
    second = await use_again(playground)
    await page.locator("#mask_image_url-field").get_by_role("button", name="Remove").click()
    code = await page.locator("#code-python").text_content() or ""

    assert at(first, 0.5, 0.2) == at(second, 0.5, 0.2) == BLACK
    assert (at(first, 0.5, 0.8), at(second, 0.5, 0.8)) == (WHITE, BLACK)
    assert "mask_image_url" not in code


async def use_again(playground: Playground) -> np.ndarray[Any, Any]:
    """Like ``use``, when a clip is shown already."""
    page = playground.page
    before = await page.evaluate("document.getElementById('video').src")
    await page.locator("#mask-use").click()
    await page.locator("#mask_image_url-field").get_by_text("Uploaded", exact=True).wait_for()
    await page.locator("#run").click()
    await playground.until(f"(document.getElementById('video')?.src ?? {before!r}) !== {before!r}")
    url = (await playground.request())["mask_image_url"]
    async with playground.api() as api:
        return np.asarray(Image.open(io.BytesIO((await api.get(url)).content)).convert("L"))


async def test_the_tools_do_what_they_say(playground: Playground) -> None:
    page = playground.page
    canvas = await open_editor(playground)
    share = page.locator("#mask-share")

    assert await share.text_content() == "Nothing moves yet"
    assert await page.locator("#mask-use").is_disabled()
    await page.locator("#mask-fill").click()
    assert await share.text_content() == "100 % of the picture moves"
    await page.locator("#mask-erase").click()
    await page.locator("#mask-brush").fill("40")
    await drag(playground, canvas, (0.5, 0.5), (0.51, 0.5))
    erased = await share.text_content() or ""
    assert 70 < int(erased.split()[0]) < 100
    await page.locator("#mask-undo").click()
    assert await share.text_content() == "100 % of the picture moves"
    await page.locator("#mask-clear").click()
    assert await share.text_content() == "Nothing moves yet"


async def test_a_mask_is_painted_with_keys_alone(playground: Playground) -> None:
    page = playground.page
    await open_editor(playground)
    await page.keyboard.press("Space")
    for _ in range(3):
        await page.keyboard.press("Shift+ArrowLeft")
    await page.keyboard.press("Space")
    await playground.picture("mask-keys")
    await page.keyboard.press("e")
    assert await page.locator("#mask-erase").get_attribute("aria-pressed") == "true"
    mask = await use(playground)

    assert at(mask, 0.5, 0.5) == BLACK
    black = np.argwhere(mask < 128)
    assert black[:, 1].max() - black[:, 1].min() > 200  # two dots, six brushes apart
    assert len(np.unique(black[:, 0])) < 60


async def test_a_rectangle_is_added_by_numbers(playground: Playground) -> None:
    page = playground.page
    await open_editor(playground)
    await page.get_by_text("Add a rectangle by numbers").click()
    for name, value in (("left", 50), ("top", 0), ("right", 100), ("bottom", 50)):
        await page.locator(f"#mask-{name}").fill(str(value))
    await page.locator("#mask-rectangle").click()
    mask = await use(playground)

    assert (mask[:180, 320:] == BLACK).all()
    assert (mask[180:] == WHITE).all() and (mask[:, :320] == WHITE).all()


async def test_another_picture_has_no_mask_yet(playground: Playground) -> None:
    page = playground.page
    await open_editor(playground)
    await page.locator("#mask-fill").click()
    await page.locator("#mask-use").click()
    await page.locator("#mask_image_url-field").get_by_text("100 % of the picture moves").wait_for()
    await page.locator(".example").nth(1).click()

    await page.get_by_role("button", name="Paint a mask").wait_for()


async def test_a_second_finger_or_button_leaves_the_stroke_alone(lit: Playground) -> None:
    page = lit.page
    canvas = await open_editor(lit)
    box, share = await canvas.bounding_box(), page.locator("#mask-share")
    await canvas.click(button="right")
    assert await share.text_content() == "Nothing moves yet"

    def finger(id: int, x: float, y: float) -> dict[str, float]:
        return {"id": id, "x": box["x"] + box["width"] * x, "y": box["y"] + box["height"] * y}

    session = await page.context.new_cdp_session(page)
    first, second = finger(1, 0.4, 0.2), finger(2, 0.9, 0.9)
    for kind, points in (
        ("touchStart", [finger(1, 0.1, 0.2)]),
        ("touchMove", [first]),
        ("touchStart", [first, second]),
        ("touchMove", [finger(1, 0.8, 0.2), second]),
        ("touchEnd", []),
    ):
        await session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    painted = await share.text_content()
    await page.locator("#mask-fill").click()
    await page.locator("#mask-undo").click()

    assert await share.text_content() == painted  # what is kept is what was seen
    await page.locator("#mask-undo").click()
    assert await share.text_content() == "Nothing moves yet"


async def test_after_a_reload_a_mask_is_called_what_its_file_is(lit: Playground) -> None:
    page = lit.page
    await open_editor(lit)
    await page.locator("#mask-fill").click()
    await page.locator("#mask-use").click()
    row = page.locator("#mask_image_url-field .file-row")
    await row.get_by_text("Uploaded", exact=True).wait_for()
    await page.reload()

    await row.get_by_text("mask.png", exact=True).wait_for()
