"""``ovd serve`` as a process: endpoints, the page in a browser, and how it ends."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import warm_processes
from PIL import Image

CHROMIUM = Path("/usr/bin/chromium")
OVD = [sys.executable, "-m", "ovd_d2.cli.app"]
NAMES = "football, sun flower, army helmet, tempura, garden snail"
PHONE = {"width": 390, "height": 844}
needs_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason="chromium is not installed")
pytestmark = pytest.mark.slow


def start(folder, *words):
    """The process and its address."""
    for package in ("fastapi", "uvicorn", "gradio", "gradio_image_annotation"):
        pytest.importorskip(package)
    env = {**os.environ, "TMPDIR": str(folder)}
    with open(folder / "stderr", "w") as errors:
        process = warm_processes.start(
            [*OVD, "serve", "--port", "0", "--device", "cpu", *words],
            stdout=subprocess.PIPE, stderr=errors, text=True, env=env,
        )  # fmt: skip
    address = process.stdout.readline().split(" ")[0].strip()
    assert address.startswith("http://127.0.0.1:"), (folder / "stderr").read_text()
    return process, address


def end(process, folder):
    """Ctrl-C: exit code, and what is left."""
    process.send_signal(signal.SIGINT)
    code = process.wait(timeout=30)
    process.stdout.close()
    return code, (folder / "stderr").read_text(), [p.name for p in folder.glob("ovd-serve-*")]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a process that serves the model that ships."""
    folder = tmp_path_factory.mktemp("served")
    process, address = start(folder)
    yield address
    code, errors, left = end(process, folder)
    assert (code, left) == (0, [])
    assert "Traceback" not in errors


@pytest.fixture(scope="module")
def scene(mini_root):
    """A picture of the test split."""
    return mini_root / "images/test/030298.jpg"


def get(url, data=None, headers=None):
    request = urllib.request.Request(url, data=data, headers=headers or {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def test_answers(address, scene):
    assert get(f"{address}/healthz")["status"] == "ok"
    head = b'--B\r\ncontent-disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'
    names = b'\r\n--B\r\ncontent-disposition: form-data; name="names"\r\n\r\n' + NAMES.encode()
    body = head + scene.read_bytes() + names + b"\r\n--B--\r\n"
    form = {"content-type": "multipart/form-data; boundary=B"}
    found = get(f"{address}/v1/predict", body, form)
    assert found["names"][0] == "army helmet" and found["scores"][0] > 0.5
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(f"{address}/v1/predict", head + b"no image\r\n--B--\r\n", form)
    assert refused.value.code == 415
    assert "Cannot use the image" in json.loads(refused.value.read())["error"]


def test_a_taken_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = [*OVD, "serve", "--port", port]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"error: Cannot listen at 127.0.0.1:{port}")
    assert "Traceback" not in done.stderr


@pytest.fixture
def open_page(address):
    """Opens the page of the model that ships."""
    with a_browser(address) as opened:
        yield opened


@contextmanager
def a_browser(address):
    """Opens the page at a width and height; it may ask for nothing from elsewhere."""
    playwright = pytest.importorskip("playwright.sync_api")
    asked = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def opened(width=1280, height=860):
            page = browser.new_page(viewport={"width": width, "height": height})
            page.on("request", lambda request: asked.append(request.url))
            page.goto(address)
            page.wait_for_selector("#find")
            return page

        yield opened
        browser.close()
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert asked and elsewhere == []


def find(page, scene):
    """Uploads a picture, looks for names, and waits for the table."""
    page.fill("#names textarea", NAMES)
    page.set_input_files("#picture input[type=file]", scene)
    page.wait_for_selector(".found td")
    return drawn(page)


def drawn(page):
    """The address of the result."""
    return page.get_attribute(".drawn img", "src")


def until(page, condition, seconds=30):
    """Waits for what the page shows."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, page.inner_text("body")
        page.wait_for_timeout(100)


def pixels(page, url):
    """Of a picture that the page shows."""
    import io

    return np.asarray(Image.open(io.BytesIO(page.request.get(url).body())).convert("RGB"))


@needs_chromium
def test_shows_what_it_found(open_page, scene, tmp_path):
    page = open_page()
    first = find(page, scene)
    shown = pixels(page, first)
    upload = np.asarray(Image.open(scene).convert("RGB").resize(shown.shape[1::-1]))
    assert (np.abs(shown.astype(int) - upload).max(axis=2) > 100).mean() > 0.005  # the boxes
    rows = page.locator(".found td:first-child").all_inner_texts()
    assert rows[0] == "army helmet" and len(rows) > 3
    with page.expect_download() as waited:
        page.click("text=Download json")
    waited.value.save_as(tmp_path / "a.json")
    assert len(json.loads((tmp_path / "a.json").read_text())["annotations"]) == len(rows)
    with page.expect_download() as waited:
        page.click(".drawn button[title=Download], .drawn [aria-label=Download]")
    waited.value.save_as(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").format == "PNG"
    # the slider
    page.locator(".threshold input[type=range]").focus()
    page.locator(".threshold input[type=range]").fill("0.95")
    page.locator(".threshold input[type=range]").dispatch_event("pointerup")
    until(page, lambda: page.locator(".found td:first-child").count() < len(rows))
    assert drawn(page) != first
    assert not np.array_equal(pixels(page, drawn(page)), shown)


@needs_chromium
def test_names_compete_or_are_alone(open_page, scene):
    page = open_page()
    page.fill("#names textarea", "flower")
    page.set_input_files("#picture input[type=file]", scene)
    page.wait_for_selector(".nothing")  # a sun flower is the name that it was trained with
    page.check("#alone input")
    page.click("#find")
    page.wait_for_selector(".found td")
    assert set(page.locator(".found td:first-child").all_inner_texts()) == {"flower"}


@needs_chromium
def test_a_bad_file_gets_a_sentence(open_page, tmp_path):
    page = open_page()
    (tmp_path / "bad.png").write_text("no image")
    page.set_input_files("#picture input[type=file]", tmp_path / "bad.png")
    page.wait_for_selector("[data-testid=toast-body]")
    said = page.inner_text("[data-testid=toast-body]")
    assert "Cannot use the image upload" in said and "Traceback" not in said


@needs_chromium
def test_finds_what_was_drawn(open_page, scene):
    page = open_page(height=1600)
    find(page, scene)
    page.click("text=Find by example")
    page.set_input_files("#example input[type=file]", scene)
    page.wait_for_timeout(1000)
    canvas = page.locator("#example canvas").bounding_box()
    left = canvas["x"] + (canvas["width"] - 192) / 2  # the ball is at 98, 102 to 137, 158
    page.mouse.move(left + 98, canvas["y"] + 102)
    page.mouse.down()
    page.mouse.move(left + 120, canvas["y"] + 130, steps=4)
    page.mouse.move(left + 137, canvas["y"] + 158, steps=4)
    page.mouse.up()
    page.fill("#names textarea", "garden snail")
    page.click("#find")
    until(page, lambda: "like the example" in page.inner_text(".found"))
    assert "garden snail" in page.inner_text(".found")


@needs_chromium
def test_the_slider_waits_for_a_picture(open_page, scene):
    page = open_page()
    page.fill(".threshold input[type=number]", "0.98")
    page.press(".threshold input[type=number]", "Tab")
    page.wait_for_timeout(1000)
    find(page, scene)
    assert page.locator(".found td").count() == 4  # two rows
    assert page.locator("[data-testid=toast-body]").count() == 0


@needs_chromium
def test_fits_a_phone(open_page, scene):
    page = open_page(**PHONE)
    find(page, scene)
    page.click("text=Find by example")
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    right = page.evaluate(
        "Math.max(...[...document.querySelectorAll('button, textarea, table, img, canvas')]"
        ".map(e => e.getBoundingClientRect().right))"
    )
    assert right <= PHONE["width"]


def another_model(folder):
    """The model that ships, with noise on how it sees regions: a second one, which finds others."""
    from safetensors.torch import load_file, save_file

    from ovd_d2.inference.model_folders import MODELS

    shutil.copytree(MODELS / "mini", folder)
    tensors = load_file(folder / "model.safetensors")
    name = "roi_heads.box_predictor.cls_score.projection.weight"
    noise = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
    tensors[name] = tensors[name] + tensors[name].std() * noise.to(tensors[name].dtype)
    save_file(tensors, folder / "model.safetensors")
    facts = json.loads((folder / "facts.json").read_text())
    facts["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "facts.json").write_text(json.dumps(facts))
    return folder


@needs_chromium
def test_two_models_side_by_side(scene, tmp_path):
    other = another_model(tmp_path / "changed")
    process, address = start(tmp_path, "--model", "mini", "--model", str(other))
    with a_browser(address) as opened:
        page = opened(1500, 900)
        page.fill("#names textarea", NAMES)
        page.set_input_files("#picture input[type=file]", scene)
        until(page, lambda: page.locator(".drawn img").count() == 2, 60)
        left, right = (page.locator(".drawn img").nth(k).bounding_box() for k in (0, 1))
        assert left["x"] + left["width"] <= right["x"] and left["y"] == right["y"]
        assert [page.locator(".drawn").nth(k).inner_text() for k in (0, 1)] == ["mini", "changed"]
        shown = [page.locator(".drawn img").nth(k).get_attribute("src") for k in (0, 1)]
        assert not np.array_equal(*(pixels(page, url) for url in shown))
        tables = page.locator(".found").all_inner_texts()
        assert len(set(tables)) == 2 and all("found" in text for text in tables)
    code, errors, left = end(process, tmp_path)
    assert (code, left) == (0, []) and "Traceback" not in errors
