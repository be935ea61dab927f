"""The web page in a headless Chromium that has no network but the loopback address.

`make test-web` installs what it needs beside .venv.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from odise_mm.apis import OpenVocabInferencer
from odise_mm.models import RegionMemory
from odise_mm.serving.page import EXAMPLES, make_page
from odise_mm.serving.server import PAGE_PACKAGES, listen
from odise_mm.serving.uploads import Limits

for module in (*PAGE_PACKAGES, "playwright"):
    pytest.importorskip(module, reason=f"{module} is missing; run make test-web")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium found; install it, or set CHROMIUM", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "demo/images/toy_scene.jpg"
NAMES, STUFF = EXAMPLES[IMAGE.name]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Address of the page with the toy model."""
    import uvicorn

    weights = ROOT / "projects/toy_world/weights/odise_label.safetensors"
    inferencer = OpenVocabInferencer("odise_toy_label", weights, device="cpu")
    app = make_page(
        inferencer,
        names=inferencer.default_vocabulary,
        limits=Limits(max_bytes=100_000, max_pixels=300_000),
    )
    with listen("127.0.0.1", 0) as bound:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs=dict(sockets=[bound]))
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", rules, "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A new visitor on the page. Requests to other addresses and errors of scripts fail."""
    context = browser.new_context(viewport=dict(width=1360, height=1100), accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(30_000)
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("response", lambda answer: answer.ok or wrong.append(f"{answer.status} {answer.url}"))
    page.goto(address)
    page.locator("#segment").wait_for()
    yield page
    context.close()
    others = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert others == [] and wrong == []


def segment(page: Any) -> None:
    page.set_input_files("#upload input[type=file]", IMAGE)
    page.locator("#upload img").wait_for()
    page.get_by_label("Things").fill(NAMES)
    page.get_by_label("Stuff").fill(STUFF)
    page.get_by_text("4 things: yellow triangle (golden triangle)").wait_for()
    page.get_by_role("button", name="Segment").click()
    page.locator("#status", has_text="7 regions found").wait_for()
    page.locator("#drawing img").wait_for()


def click_at(page: Any, x: float, y: float) -> None:
    """Click the drawing at a pixel of the image, which is drawn six times as large."""
    image = page.locator("#drawing img")
    natural = image.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    box = image.bounding_box()
    across, down = (6 * (x, y)[i] / natural[i] for i in (0, 1))
    page.mouse.click(box["x"] + across * box["width"], box["y"] + down * box["height"])


def regions(page: Any) -> dict[str, float]:
    """Names and scores in the list of regions."""
    lines = page.locator("#regions label").all_inner_texts()
    found = [re.match(r"(.+?)(?: (\d\.\d\d))?, ", line) for line in lines]
    return {match[1]: float(match[2] or 1) for match in found if match}


def toast(page: Any) -> str:
    message = page.locator("[data-testid=toast-body]").last
    message.wait_for()
    return message.inner_text()


def test_segment_choose_change_and_download(page: Any) -> None:
    segment(page)
    found = regions(page)
    assert found.keys() == {
        "yellow triangle", "red moon", "white box", "black triangle", "sky", "brick wall", "water",
    }  # fmt: skip

    click_at(page, 88.5, 70.5)
    page.locator("#details", has_text="white box").wait_for()
    details = page.locator("#details").inner_text()
    assert re.fullmatch(
        r"white box: thing, score 0\.[89]\d\d, 1,\d\d\d pixels, [78]\.\d % of the image", details
    )
    table = page.locator("#predictions").inner_text()
    heads = ["ensemble", "OpenVocabClassifier", "MaskCLIPClassifier"]
    assert table.split("\n")[0].split("\t") == heads and table.count("white box") == 3
    assert page.locator("#regions input:checked").count() == 1

    # With the keyboard: the next region of the list, and a higher minimum score.
    page.locator("#regions input:checked").press("Tab")
    page.keyboard.press("Space")
    page.locator("#details", has_text="yellow triangle: thing").wait_for()
    threshold = page.locator("#score_threshold input[type=number]")
    threshold.fill("0.9")
    threshold.press("Tab")
    page.locator("#regions label", has_text="red moon").wait_for(state="detached")
    assert regions(page).keys() == {name for name, score in found.items() if score > 0.9}
    page.get_by_role("button", name="Reset").click()
    page.locator("#regions label", has_text="red moon").wait_for()
    assert regions(page) == found

    for tab, text in (
        ("Semantic", "Every pixel has a class"),
        ("Instances", "the best on top"),
        ("Who says what", "named by all classifiers"),
    ):
        page.get_by_role("tab", name=tab).click()
        page.locator("#details", has_text=text).wait_for()
    page.get_by_label("MaskCLIPClassifier").check()
    page.locator("#details", has_text="named by one classifier").wait_for()
    assert regions(page)["white box"] == 1.0

    page.get_by_label("Format").click()
    page.get_by_role("option", name="coco", exact=True).click()
    page.get_by_role("button", name="Make the file").click()
    with page.expect_download() as download:
        page.locator("#file a").first.click()
    assert download.value.suggested_filename == "toy_scene_coco.zip"
    with zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())) as archive:
        content = json.loads(archive.read("instances.json"))
    assert {c["name"] for c in content["categories"]} == found.keys()
    assert len(content["annotations"]) == 7


def test_teach_undo_and_keep_the_memory(page: Any, browser: Any, address: str) -> None:
    teach, undo = page.locator("#teach"), page.locator("#undo")
    teach.click()
    assert "Segment an image first." in toast(page)
    segment(page)
    found = regions(page)
    teach.click()
    page.get_by_text("Click a region first").wait_for()
    page.locator("#regions label", has_text="white box").click()
    page.locator("#details", has_text="white box: thing").wait_for()
    teach.click()
    page.get_by_text("Type a name for the region first.").wait_for()
    undo.click()
    page.get_by_text("There is nothing to undo").wait_for()

    name = page.locator("#name input, #name textarea")
    name.fill("wug")  # no word of the text encoder
    teach.click()
    page.locator("#details", has_text="wug: thing").wait_for()
    page.locator("#taught", has_text="Taught by you: wug (1).").wait_for()
    taught = regions(page)
    assert taught.keys() == found.keys() - {"white box"} | {"wug"}
    evidence = page.locator("#evidence").inner_text()
    picture = page.locator("#evidence img[alt='example of wug']")
    assert 0 < picture.evaluate("image => image.naturalWidth") <= 64
    assert "wug" in evidence and "1.00" in evidence and "toy_scene.jpg" in evidence
    assert "MemoryClassifier" in page.locator("#predictions").inner_text()
    teach.click()
    page.get_by_text("This region is an example of 'wug' already.").wait_for()

    # Without the examples by the slider, and with them again.
    weight = page.locator("#memory_weight input[type=number]")
    weight.fill("0")
    weight.press("Tab")
    page.locator("#regions label", has_text="white box").wait_for()
    assert regions(page) == found
    page.get_by_role("button", name="Reset").click()
    page.locator("#regions label", has_text="wug").wait_for()
    assert regions(page) == taught

    # The same when the model runs again, and if the name is typed.
    for text in (NAMES, f"{NAMES}; wug"):
        page.get_by_label("Things").fill(text)
        page.locator("#understood", has_text=f"{text.count(';') + 1} things").wait_for()
        page.locator("#segment").click()
        page.locator("#status", has_text="8 classes, 7 regions found").wait_for()
        page.locator("#regions label", has_text="wug").wait_for()
        assert regions(page) == taught

    page.get_by_role("button", name="Make a memory file").click()
    with page.expect_download() as download:
        page.locator("#memory a").first.click()
    assert download.value.suggested_filename == "taught.safetensors"
    memory = RegionMemory.load(download.value.path())
    assert memory.names == {"wug": 1} and memory.regions[0].image == "toy_scene.jpg"

    other = browser.new_page()  # another visitor, who must not know the word
    other.goto(address)
    other.get_by_label("Things").fill("wug")
    other.locator("#understood", has_text="is not one of the 85 words").wait_for()
    other.close()

    undo.click()
    page.locator("#taught", has_text="You have taught nothing yet.").wait_for()
    page.locator("#regions label", has_text="white box").wait_for()
    assert regions(page) == found


def test_teach_what_no_name_fits(page: Any) -> None:
    page.set_input_files("#upload input[type=file]", IMAGE)
    page.locator("#upload img").wait_for()
    page.get_by_label("Things").fill("red moon; yellow triangle")
    page.get_by_label("Stuff").fill(STUFF)
    page.get_by_text("2 things: red moon, yellow triangle").wait_for()
    page.locator("#segment").click()
    page.locator("#status", has_text="5 regions found").wait_for()
    page.locator("#drawing img").wait_for()
    click_at(page, 88.5, 70.5)  # the white box
    page.locator("#details", has_text="dropped mask: more probably none of the classes").wait_for()
    page.locator("#name input, #name textarea").fill("wug")
    page.locator("#teach").click()
    page.locator("#details", has_text="wug: thing").wait_for()
    assert "wug" in regions(page) and len(regions(page)) == 6


def test_mistakes_have_messages_without_paths(page: Any, tmp_path: Path) -> None:
    page.get_by_role("button", name="Segment").click()
    assert "Upload an image or choose an example first." in toast(page)
    page.get_by_label("Things").fill("/etc/passwd")
    page.locator("#understood", has_text="looks like a file").wait_for()
    page.get_by_label("Things").fill("<img src=x onerror=alert(1)>")
    page.locator("#understood", has_text="is not one of the 85 words").wait_for()
    page.get_by_role("button", name="Example: toy scene").click()
    page.locator("#understood", has_text="4 things").wait_for()

    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    page.set_input_files("#upload input[type=file]", tmp_path / "bad.png")
    page.get_by_text("bad.png: not a readable image").first.wait_for()
    messages = "".join(page.locator("[data-testid=toast-body]").all_inner_texts())
    assert str(tmp_path) not in messages and "/tmp" not in messages and ".py" not in messages


def test_what_is_served_to_others(page: Any, address: str) -> None:
    segment(page)
    source = page.locator("#drawing img").get_attribute("src")
    assert source is not None and source.startswith(address)
    folder, _, own = source.partition("/file=")
    name = Path(own)

    def status(url: str) -> int:
        try:
            with urllib.request.urlopen(url) as answer:
                return answer.status
        except urllib.error.HTTPError as err:
            assert str(ROOT) not in err.read().decode()
            return err.code

    assert re.fullmatch("[0-9a-f]{64}", name.parent.name)  # nobody can guess it
    assert status(source) == 200
    for other in (
        name.parent,
        name.parent.parent,
        name.parent.parent / ("0" * 64) / name.name,
        "/etc/passwd",
        ROOT / "README.md",
        f"{ROOT}/demo/images/../../README.md",
        f"{name.parent}/../../../etc/passwd",
    ):
        assert status(f"{folder}/file={other}") in (403, 404), other
    request = urllib.request.Request(f"{address}/", headers={"Host": "evil.example"})
    assert "gradio" in urllib.request.urlopen(f"{address}/").read().decode()
    assert status(request) == 400  # names that other sites make point here
