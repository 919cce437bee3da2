from __future__ import annotations

from collections.abc import AsyncIterator
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from playwright.async_api import Browser
from pydantic import Field

from deployments.models.base import Endpoint, VideoConfig, VideoInput
from deployments.models.stable_video import StableVideo, StableVideoInput
from deployments.queue.store import RequestStore
from tests.playground.conftest import Playground, open_tab
from tests.playground.light import open_light

MANIFOLD = "fal-ai/manifold"


class Light(StrEnum):
    DAY = "day"
    NIGHT = "night"


class ManifoldInput(StableVideoInput):
    """A parameter of each kind that pydantic writes in its own way."""

    title: str = "A boat"
    note: str | None = None
    word: str = Field(max_length=5)
    count: int | None = None
    share: float | None = Field(0.5, ge=0, le=1)
    bare: int = 3
    loop: bool = True
    flip: bool | None = None
    mode: Literal["slow", "fast"] = "slow"
    style: Literal["ink", "oil"] | None = None
    light: Light = Light.DAY
    dusk: Light | None = None


class Manifold(StableVideo):
    Input: ClassVar[type[VideoInput]] = ManifoldInput
    title = "Manifold"


@pytest.fixture
async def manifold(browser: Browser, store: RequestStore, tmp_path: Path) -> AsyncIterator[Playground]:
    """The page of an endpoint that takes a bit of everything."""
    endpoints: dict[str, Endpoint] = {MANIFOLD: Manifold(MANIFOLD, VideoConfig(weights="none"))}
    async with open_light(store, endpoints, tmp_path) as light, open_tab(browser, light) as playground:
        await playground.open_with_key(MANIFOLD)
        yield playground


async def sent(playground: Playground) -> dict[str, object]:
    """What the form says, as the page keeps it."""
    return dict(await playground.page.evaluate("JSON.parse(sessionStorage.getItem(`draft of fal-ai/manifold`))"))


async def test_every_kind_of_parameter_has_a_field_with_its_default(manifold: Playground) -> None:
    fields = {
        name: await manifold.page.locator(f"#{name}").evaluate("(each) => [each.tagName, each.type, each.value]")
        for name in ManifoldInput.model_fields
        if name not in VideoInput.model_fields and name != "image_url"
    }

    assert fields == {
        "fps": ["INPUT", "number", "25"],
        "title": ["INPUT", "text", "A boat"],
        "note": ["INPUT", "text", ""],
        "word": ["INPUT", "text", ""],
        "count": ["INPUT", "number", ""],
        "share": ["INPUT", "number", "0.5"],
        "bare": ["INPUT", "number", "3"],
        "loop": ["SELECT", "select-one", "true"],
        "flip": ["SELECT", "select-one", ""],
        "mode": ["SELECT", "select-one", "slow"],
        "style": ["SELECT", "select-one", ""],
        "light": ["SELECT", "select-one", "day"],
        "dusk": ["SELECT", "select-one", ""],
    }
    assert await manifold.violations() == []


async def test_what_is_entered_is_sent_as_what_it_is_and_what_is_not_set_is_left_out(manifold: Playground) -> None:
    page = manifold.page
    assert not {"note", "word", "count", "flip", "style", "dusk"} & (await sent(manifold)).keys()

    await manifold.set(title="", note="slowly", word="boats", count=7)
    await page.locator("#flip").select_option("false")
    await page.locator("#dusk").select_option("night")
    entered = {"title": "", "note": "slowly", "word": "boats", "count": 7, "flip": False, "dusk": "night"}
    assert entered.items() <= (await sent(manifold)).items()
    ManifoldInput.model_validate({"image_url": "https://example.com/cat.png", **await sent(manifold)})
    await page.reload()
    await page.wait_for_selector("html[data-ready]")
    assert entered.items() <= (await sent(manifold)).items()


async def test_what_is_needed_or_out_of_its_range_is_said(manifold: Playground) -> None:
    page = manifold.page
    await manifold.set(share=2)
    await page.locator("#run").click()

    assert await page.locator("#word-problem").text_content() == "This is needed."
    assert await page.locator("#share-problem").text_content() == "The most is 1."
    assert await page.locator("#word").get_attribute("aria-invalid") == "true"
    await page.get_by_role("button", name="Reset share to 0.5").click()
    assert await page.locator("#share-problem").is_hidden()
    await manifold.set(title="Another")
    await page.get_by_role("button", name="Reset title to A boat").click()
    assert await page.input_value("#title") == "A boat"
