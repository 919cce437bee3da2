from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image

from deployments.inference.images import fit
from deployments.models.base import VideoConfig
from tests.conftest import ROOT, need
from tests.gateway.conftest import served_endpoints
from tests.playground.conftest import FAST, PATIENCE, STABLE_VIDEO, SVD, TEXT_TO_VIDEO, Playground

TIMES = "\N{MULTIPLICATION SIGN}"
LANGUAGES = ("python", "javascript", "curl")


@pytest.mark.parametrize("endpoint", [STABLE_VIDEO, SVD, FAST, TEXT_TO_VIDEO])
async def test_every_parameter_is_there_with_its_help_its_default_and_a_reset(
    playground: Playground, endpoint: str
) -> None:
    page = playground.page
    await playground.open_with_key(endpoint)
    schema = served_endpoints()[endpoint].Input.model_json_schema()

    assert await page.locator(".field").count() == len(schema["properties"])
    for name, property in schema["properties"].items():
        if "maximum" not in property or name == "seed":
            continue
        field = page.locator(f"#{name}-field")
        assert property["description"] in (await field.locator(".help").inner_text())
        assert float(await page.input_value(f"#{name}")) == property["default"]
        reset = field.get_by_role("button", name="Reset")
        assert await reset.is_disabled()
        await page.locator(f"#{name}").fill(str(property["minimum"]))
        await reset.click()
        assert float(await page.input_value(f"#{name}")) == property["default"]


async def test_a_slider_and_its_number_say_the_same(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key(STABLE_VIDEO)
    slider = page.get_by_role("slider", name="Motion, slider")

    await slider.press("ArrowRight")
    assert await page.input_value("#motion_bucket_id") == "128"
    await slider.fill("1000")
    assert await page.input_value("#motion_bucket_id") == "255"
    await page.locator("#motion_bucket_id").fill("1")
    assert await slider.input_value() == "0"
    noise = page.get_by_role("slider", name="Noise, slider")
    await noise.fill("0")
    assert await page.input_value("#cond_aug") == "0"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("motion_bucket_id", "256", "The most is 255."),
        ("motion_bucket_id", "0", "The least is 1."),
        ("motion_bucket_id", "1.5", "This must be a whole number."),
        ("cond_aug", "11", "The most is 10."),
        ("seed", "-1", "A seed is a whole number from 0 on."),
    ],
)
async def test_what_cannot_be_is_said_before_it_is_sent(
    playground: Playground, name: str, value: str, words: str
) -> None:
    page = playground.page
    await playground.open_with_key(STABLE_VIDEO)
    await playground.choose_example()
    await page.locator(f"#{name}").fill(value)
    await page.locator("#run").click()

    assert await page.locator(f"#{name}-problem").text_content() == words
    assert words in (await page.locator("#form-problem").text_content() or "")
    assert await page.evaluate("document.activeElement.id") == name
    assert await page.locator("#status").text_content() == ""


async def test_without_a_picture_or_a_prompt_nothing_is_sent(playground: Playground) -> None:
    for endpoint, words in ((FAST, "Choose a picture first"), (TEXT_TO_VIDEO, "Say in words")):
        await playground.open_with_key(endpoint)
        await playground.page.locator("#run").click()
        await playground.page.locator("#form-problem", has_text=words).wait_for()


async def test_a_picture_comes_by_drop_file_paste_and_address(playground: Playground, photograph: Path) -> None:
    page = playground.page
    await playground.open_with_key(FAST)
    uploaded = page.get_by_text("Uploaded", exact=True)
    note = page.locator("#image_url-note")

    await playground.drop(page.locator(".drop"), photograph, "image/jpeg")
    await uploaded.wait_for()
    assert f"1024 {TIMES} 576" in (await note.text_content() or "")
    await page.get_by_role("button", name="Remove").click()
    await page.locator("#image_url").set_input_files(photograph)
    await uploaded.wait_for()
    await page.get_by_role("button", name="Remove").click()
    await page.evaluate(PASTE)
    await uploaded.wait_for()
    await note.get_by_text(f"40 {TIMES} 30").wait_for()
    address = await playground.page.evaluate("document.getElementById('code-python').textContent")
    assert "pasted.png" in address
    await page.get_by_role("button", name="Remove").click()
    await page.get_by_role("button", name="Use an address").click()
    await page.locator("#image_url-url").fill("no address")
    await page.get_by_role("button", name="Use it").click()
    await page.locator("#image_url-problem", has_text="An address begins with").wait_for()
    await page.locator("#image_url-url").fill(f"{playground.server.url}/files/samples/landscape.jpg")
    await page.get_by_role("button", name="Use it").click()
    await note.get_by_text(f"1024 {TIMES} 576").wait_for()
    await playground.set(steps=1)
    await playground.run()
    assert (await playground.request())["image_url"].endswith("/files/samples/landscape.jpg")


PASTE = """async () => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 40, height: 30 });
  canvas.getContext("2d").fillRect(0, 0, 40, 30);
  const blob = await new Promise((done) => canvas.toBlob(done));
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File([blob], "pasted.png", { type: "image/png" }));
  document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
}"""


async def test_the_picture_is_shown_as_the_service_crops_it(playground: Playground, tmp_path: Path) -> None:
    page = playground.page
    await playground.open_with_key(FAST)
    config = served_endpoints()[FAST].config
    assert isinstance(config, VideoConfig)
    for name, size in (("tall", (300, 600)), ("square", (400, 420)), ("wide", (900, 300))):
        picture = Image.new("RGB", size, "teal")
        picture.save(tmp_path / f"{name}.png")
        await page.locator("#image_url").set_input_files(tmp_path / f"{name}.png")
        width, height = fit(picture, config.sizes).size
        await page.locator("#image_url-note", has_text=f"the clip is {width} {TIMES} {height}").wait_for()
        box = await page.locator(".picture-frame img").bounding_box()
        assert box is not None and abs(box["width"] / box["height"] - width / height) < 0.02


async def test_a_file_that_is_no_picture_is_refused_in_words(playground: Playground, tmp_path: Path) -> None:
    page = playground.page
    await playground.open_with_key(FAST)
    notes = tmp_path / "notes.txt"
    notes.write_text("not a picture")
    await playground.drop(page.locator(".drop"), notes, "text/plain")

    await page.locator("#image_url-problem", has_text="“notes.txt” is not a picture.").wait_for()


async def test_depth_maps_are_uploaded_and_sent(playground: Playground, tmp_path: Path) -> None:
    maps = tmp_path / "maps.zip"
    with zipfile.ZipFile(maps, "w") as archive:
        for number in range(2):
            file = tmp_path / f"{number}.png"
            Image.new("L", (112, 64), 100 + number).save(file)
            archive.write(file, file.name)
    page = playground.page
    await playground.open_with_key(SVD)
    await playground.choose_example()
    await page.locator("#control_maps_data_url").set_input_files(maps)
    await page.locator("#control_maps_data_url-field").get_by_text("Uploaded", exact=True).wait_for()
    await playground.set(steps=1)
    await playground.run()

    assert (await playground.request())["control_maps_data_url"].endswith("maps.zip")
    await page.locator(".frame-words", has_text="/ 2").wait_for()


async def test_a_file_that_a_reload_loses_is_asked_for_again(playground: Playground) -> None:
    page = playground.page
    await page.route("**/storage/upload/initiate*", lambda route: None)  # an upload that does not end
    await playground.open_with_key(FAST)
    await page.locator(".example").first.click()
    await page.locator("#image_url-note", has_text="the clip is").wait_for()
    await playground.set(steps=2)
    await page.reload()

    await page.locator("#image_url-problem", has_text="Choose it again: boat.jpg was not uploaded").wait_for()
    assert await page.input_value("#steps") == "2"


async def test_a_picture_too_large_to_be_kept_is_sent_all_the_same(playground: Playground, tmp_path: Path) -> None:
    page, file = playground.page, tmp_path / "noise.png"
    Image.frombytes("RGB", (1500, 1500), os.urandom(3 * 1500 * 1500)).save(file)
    picture = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    item: dict[str, Any] = {
        "request_id": str(uuid4()),
        "endpoint_id": FAST,
        "json_input": {"image_url": picture, "steps": 1},
    }
    item |= {"status_code": 500, "json_input": {"image_url": picture, "steps": 1}, "json_output": None}
    await playground.open_with_key(FAST)
    await page.route("**/requests/search?request_id=*", lambda route: route.fulfill(json={"items": [item]}))
    await page.evaluate(f"sessionStorage.setItem('request to open', JSON.stringify({{ id: {item['request_id']!r} }}))")
    await page.reload()
    await page.locator(".picture-frame img").wait_for()
    await page.unroute("**/requests/search?request_id=*")
    await playground.run()

    assert (await playground.request())["image_url"] == picture
    await page.reload()
    await page.locator("#image_url-problem", has_text="Choose it again").wait_for()


# ---------------------------------------------------------------- code


async def test_the_code_is_in_step_with_the_form(playground: Playground) -> None:
    page = playground.page
    await playground.open_with_key(TEXT_TO_VIDEO)
    await playground.set(prompt='It\'s "red" & <b>new</b>', motion_bucket_id=99)
    await page.get_by_text("Custom", exact=True).click()
    await page.locator("#video_size-width").fill("640")
    await page.locator("#tab-code").click()

    for language in LANGUAGES:
        text = await page.locator(f"#code-{language}").text_content() or ""
        assert "99" in text and "640" in text and TEXT_TO_VIDEO in text
    python = await page.locator("#code-python").text_content() or ""
    compile(python, "program.py", "exec")
    assert json.dumps('It\'s "red" & <b>new</b>') in python
    await playground.set(motion_bucket_id=98)
    assert "98" in (await page.locator("#code-curl").text_content() or "")
    links = await page.locator("#code-links a").evaluate_all("(links) => links.map((each) => each.href)")
    async with playground.api() as api:
        assert [(await api.get(link)).status_code for link in links] == [200, 200, 200]
    await playground.picture("code")


async def test_code_is_copied(playground: Playground) -> None:
    page = playground.page
    await playground.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await playground.open_with_key(FAST)
    await page.locator("#tab-code").click()
    await page.locator("#tab-curl").click()
    await page.get_by_role("button", name="Copy the code").click()
    await page.get_by_text("Copied", exact=True).first.wait_for()

    assert await page.evaluate("navigator.clipboard.readText()") == await page.locator("#code-curl").text_content()


@pytest.mark.parametrize("language", LANGUAGES)
async def test_the_code_runs_as_it_stands(playground: Playground, language: str, tmp_path: Path) -> None:
    await playground.open_with_key(FAST)
    await playground.choose_example()
    await playground.set(steps=1)
    text = await playground.page.locator(f"#code-{language}").text_content() or ""
    program = tmp_path / {"python": "program.py", "javascript": "program.mjs", "curl": "program.sh"}[language]
    program.write_text(text)
    server = playground.server
    commands = {
        "python": [
            *[sys.executable, "-m", "deployments.cli", "connect", "--url", server.url, "--key", server.key, "--"],
            *[sys.executable, str(program)],
        ],
        "javascript": [need("node"), str(program)],
        "curl": ["bash", str(program)],
    }
    need({"python": "bash", "javascript": "node", "curl": "curl"}[language])
    if language == "javascript":
        (tmp_path / "node_modules").symlink_to(ROOT / "tests" / "js" / "node_modules")
    done = subprocess.run(
        commands[language],
        cwd=ROOT,
        env={**os.environ, "FAL_KEY": server.key},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0 and f"{server.url}/files/" in done.stdout, done
