"""What the page's own calls can be made to do: nothing but take uploads."""

import json
import uuid

import numpy as np
import pytest
from small_uploads import LIMITS, encoded, png

FILE = {"_type": "gradio.FileData"}


def uploaded(client, content, name="a.png"):
    answer = client.post("/gradio_api/upload", files={"files": (name, content)})
    assert answer.status_code == 200, answer.text
    return {"path": answer.json()[0], "orig_name": name, "meta": FILE}


def call(client, *data, index=0):
    """What an event of the page ends with, as its browser sees it."""
    session = uuid.uuid4().hex
    config = client.get("/config").json()
    events = [d for d in config["dependencies"] if len(d["inputs"]) == len(data)]
    body = {"data": data, "fn_index": events[index]["id"], "session_hash": session}
    joined = client.post("/gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as lines:
        for line in lines.iter_lines():
            message = json.loads(line.removeprefix("data: ")) if line else {}
            if message.get("msg") == "process_completed":
                return message["success"], message["output"]
    raise AssertionError("no end")


def test_finds(client):
    ok, output = call(client, uploaded(client, png()), "dog, red mug", 0.05, None, "x", False)
    assert ok, output
    picture, table, file = output["data"]
    assert picture["path"].endswith(".png") and "found" in table
    url = "/gradio_api/file=" + file["value"]["path"]
    coco = client.get(url).json()
    assert [c["name"] for c in coco["categories"]] == ["dog", "red mug"]
    assert len(coco["annotations"]) == table.count("<td>") // 2 > 0
    assert set(coco["annotations"][0]) > {"bbox", "score", "category_id", "segmentation"}


def test_finds_by_example(client):
    drawn = {
        "image": uploaded(client, png(seed=3)),
        "boxes": [{"xmin": 20, "ymin": 40, "xmax": 120, "ymax": 140, "scaleFactor": 2}],
        "orientation": 0,
    }
    ok, output = call(client, uploaded(client, png()), "", 0.05, drawn, "<b>mine</b>", False)
    assert ok, output
    assert "&lt;b&gt;mine" in output["data"][1] and "<b>" not in output["data"][1]


@pytest.mark.parametrize(
    ("content", "names", "sentence"),
    [
        (b"text", "dog", "Cannot use the image upload"),
        (png(), "<b>" + "a" * 60, "The name &lt;b&gt;aaa"),
        (png(), "!", "hold no letters"),
        (
            encoded(np.zeros((1001, 1000, 3), np.uint8)),
            "dog",
            "1000 x 1001 pixels, more than 1000000",
        ),
    ],
)
def test_bad_input_is_one_sentence(client, capfd, content, names, sentence):
    ok, output = call(client, uploaded(client, content), names, 0.05, None, "x", False)
    assert not ok and sentence in output["error"]
    assert "Traceback" not in "".join(capfd.readouterr())


def test_nothing_uploaded(client):
    ok, output = call(client, None, "dog", 0.05, None, "x", False)
    assert not ok and output["error"] == "Drop an image first."
    ok, output = call(client, None, "dog", 0.05, None, "x", False, index=1)  # of the slider
    assert ok and len(output["data"]) == 3
    assert all(kept["__type__"] == "update" and "value" not in kept for kept in output["data"])


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize(
    "path", ["/etc/passwd", "http://127.0.0.1:9/a.png", "file:///etc/passwd", "setup.py", "x\0", ""]
)
def test_paths_and_addresses_are_no_uploads(client, place, path):
    """Whatever input names them: they are neither read nor copied to where files are served."""
    data = [uploaded(client, png()), "dog", 0.05, None, "x", False]
    named = {"path": path, "orig_name": "a.png", "url": path, "meta": FILE}
    data[place] = {"image": named, "boxes": [{}], "orientation": 0} if place == 3 else named
    before = {p for p in client.folder.rglob("*") if p.is_file()}
    ok, output = call(client, *data)
    assert not ok and "data" not in output
    assert {p for p in client.folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("place", [0, 3])
def test_a_path_that_does_not_say_it_is_a_file(client, tmp_path, place):
    (tmp_path / "a.png").write_bytes(png())
    data = [uploaded(client, png()), "dog", 0.05, None, "x", False]
    named = {"path": str(tmp_path / "a.png")}
    box = {"xmin": 1, "ymin": 1, "xmax": 30, "ymax": 30}
    data[place] = {"image": named, "boxes": [box], "orientation": 0} if place else named
    ok, output = call(client, *data)
    assert not ok and output["error"] in ("The upload is no longer here: upload it again.", None)


@pytest.mark.parametrize(
    "boxes", [[{}], [{"xmin": "a"}], [None], [{"xmin": 0, "ymin": 0, "xmax": 9, "ymax": 9,
                                                 "scaleFactor": 0}]]
)  # fmt: skip
def test_boxes_of_nobodys_drawing(client, boxes):
    drawn = {"image": uploaded(client, png()), "boxes": boxes, "orientation": 0}
    ok, output = call(client, uploaded(client, png()), "dog", 0.05, drawn, "x", False)
    assert not ok and "data" not in output


@pytest.mark.parametrize("path", ["/etc/passwd", "setup.py", "http://127.0.0.1:9/x", "../setup.py"])
def test_no_other_file_is_served(client, path):
    answer = client.get(f"/gradio_api/file={path}")
    assert answer.status_code in (403, 404)
    assert "root:" not in answer.text and "setuptools" not in answer.text


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/proxy=http://127.0.0.1:9/", "/gradio_api/vibe-code/", "/gradio_api/run/predict",
     "/gradio_api/call/predict", "/gradio_api/runs", "/monitoring", "/docs"],
)  # fmt: skip
def test_routes_that_nobody_needs_are_not_there(client, path):
    assert client.get(path).status_code == client.post(path, json={}).status_code == 404


def test_uploads_have_a_size(client):
    files = {"files": ("a.png", b"x" * (LIMITS.bytes + 1))}
    assert client.post("/gradio_api/upload", files=files).status_code == 413
    files = {"files": ("a.png", b"x" * (3 * LIMITS.bytes))}
    assert client.post("/gradio_api/upload", files=files).status_code == 413


def test_the_page_asks_for_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "fonts.googleapis" not in answer.text + client.get("/theme.css").text
    assert client.get("/config").json()["analytics_enabled"] is False
