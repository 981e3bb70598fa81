"""Example boxes: what is read, and what is refused, in one sentence."""

import json
import os
import random
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from random_models import make_pixels

from ovd_d2.errors import OVDError
from ovd_d2.inference import ByExamples, OpenVocabPredictor
from ovd_d2.inference.examples import Example, as_examples, boxes_inside, read_examples

BOX = [1, 2, 30, 40]
PICTURE = make_pixels(48, 64)


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    return tmp_path


def write(folder, content):
    path = folder / "examples.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_file_of_boxes_and_words(folder):
    content = {"my mug": [{"image": "a.png", "box": BOX}], " cat ": None}
    found = read_examples(write(folder, content))
    assert found == {"my mug": (Example(folder / "a.png", (1.0, 2.0, 30.0, 40.0)),), "cat": ()}


def test_a_coco_json(folder):
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 2, "bbox": [1, 2, 29, 38], "area": 9, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 9, 9], "area": 9, "iscrowd": 1},
    ]
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 48, "width": 64}],
        "annotations": annotations,
        "categories": [{"id": 2, "name": "my mug"}, {"id": 1, "name": "cat"}],
    }
    found = read_examples(write(folder, content))
    assert list(found) == ["cat", "my mug"] and found["cat"] == ()
    assert found["my mug"] == (Example(folder / "a.png", (1.0, 2.0, 30.0, 40.0)),)
    content["categories"][0]["name"] = "cat"
    with pytest.raises(OVDError, match="two categories have the same name"):
        read_examples(write(folder, content))


def test_boxes_of_python(folder):
    box = np.array(BOX, dtype=np.float32)
    found = as_examples({"mug": [(PICTURE, box), ("a.png", tuple(BOX))], "cat": None})
    assert [e.box for e in found["mug"]] == [(1.0, 2.0, 30.0, 40.0)] * 2
    assert found["mug"][0].image is PICTURE and as_examples(found) == found


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mug": []}, "Class 'mug': give a list of"),
        ({"mug": [("a.png", [1, 2, 3])]}, "the box on a.png is .*; give four finite numbers"),
        ({"mug": [("a.png", [1, 2, float("nan"), 4])]}, "the box on a.png is .*four finite"),
        ({"mug": [("a.png", [1, 2, True, 4])]}, "four finite numbers"),
        ({"mug": [("a.png", "1234")]}, "four finite numbers"),
        ({"mug": [("a.png", [5, 2, 5, 4])]}, r"the box \(5, 2, 5, 4\) on a.png has no area"),
        ({"mug": [(PICTURE, [5, 9, 8, 4])]}, "on a ndarray has no area"),
        ({"mug": [("a.png",)]}, "a pair of picture and box"),
        ({"mug": "a.png"}, "Class 'mug': give a list"),
        ({"": None}, "empty"),
        ({"cat": None, "cat ": None}, "occurs twice"),
        ({1: None}, "must be strings"),
        ([("mug", None)], "a mapping of class names"),
    ],
)
def test_what_cannot_be_meant_is_named(given, sentence):
    with pytest.raises(OVDError, match=sentence):
        as_examples(given)


def test_boxes_are_inside_or_refused():
    def inside(box):
        return boxes_inside([("mug", Example("a.png", box))], 48, 64).tolist()

    assert inside((-0.7, 0.0, 64.9, 48.5)) == [[0.0, 0.0, 64.0, 48.0]]
    for box in ((-2.0, 0.0, 9.0, 9.0), (0.0, 0.0, 66.0, 9.0), (64.0, 0.0, 65.0, 9.0)):
        with pytest.raises(
            OVDError, match="'mug': the box .* is not inside of a.png, which has 64 x 48"
        ):
            inside(box)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "large.json"
    path.touch()
    os.truncate(path, 20 << 30)  # takes no room
    tracemalloc.start()
    with pytest.raises(OVDError, match="large.json has .* bytes, a file of examples at most"):
        read_examples(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


JUNK = [None, True, 0, -1, 1e308, 10**400, "", "x", "\0", "\ud800", [], {}, [[]], [None], {"a": 1}]


def damaged(rng):
    """One malformed file of examples, as text."""
    good = {"my mug": [{"image": "a.png", "box": list(BOX)}], "cat": None}
    entry = good["my mug"][0]
    kind = rng.randrange(11)
    if kind == 0:  # wrong type of an entry
        good["my mug"] = rng.choice([junk for junk in JUNK if junk is not None])
    elif kind == 1:
        entry[rng.choice(["image", "box"])] = rng.choice(JUNK)
    elif kind == 2:
        entry["box"][rng.randrange(4)] = rng.choice([*JUNK[:1], *JUNK[4:], float("nan"), 1e9])
    elif kind == 3:
        entry["box"] = [rng.choice([-1e9, 1e9, float("inf")]) for _ in range(rng.randrange(6))]
    elif kind == 4:
        missing = ["no.png", "/dev/zero", "/dev/stdin", "..", ".", "x" * 5000, "/proc/self/mem"]
        entry["image"] = rng.choice([*missing, "examples.json", "http://127.0.0.1:1/a.png"])
    elif kind == 5:  # cut off
        text = json.dumps(good)
        return text[: rng.randrange(len(text))]
    elif kind == 6:
        depth = rng.choice([100, 5_000, 200_000])
        opening = rng.choice(["[", '{"a":'])
        return '{"my mug": ' + opening * depth
    elif kind == 7:
        return '{"my mug": null, "my mug": [], "x": %s}' % ("null" * rng.randrange(2))
    elif kind == 8:
        return json.dumps(rng.choice(JUNK))
    elif kind == 9:  # nearly COCO's
        content = {"images": [{"id": 1, "file_name": "a.png", "height": 48, "width": 64}],
                   "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX}],
                   "categories": [{"id": 1, "name": "mug"}]}  # fmt: skip
        (which,) = rng.choices(list(content))
        field = rng.choice([f for f in content[which][0] if f not in ("height", "width")])
        content[which][0][field] = rng.choice([None, [], {}, -5.5, "\0"])
        return json.dumps(content)
    else:
        good[rng.choice(["", " ", "a\nb", "cat ", "\ud800"])] = None
    return json.dumps(good)


@pytest.fixture(scope="module")
def predictor(config, checkpoint):
    return OpenVocabPredictor(config, checkpoint, device="cpu")


def test_300_malformed_files(predictor, folder):
    """Each is one sentence, changes nothing and writes nothing."""
    before, rng = predictor.vocabulary, random.Random(0)
    tracemalloc.start()
    for _ in range(300):
        text = damaged(rng)
        path = folder / "examples.json"
        path.write_bytes(text.encode(errors="surrogatepass"))
        sentence = ""
        try:
            predictor.set_vocabulary(ByExamples(path))
        except OVDError as error:
            sentence = str(error)
        assert 10 < len(sentence) < 1000 and "Traceback" not in sentence, text[:300]
        assert predictor.vocabulary is before
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert sorted(file.name for file in folder.iterdir()) == ["a.png", "examples.json"]
