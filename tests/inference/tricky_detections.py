"""Detections with everything that formats stumble over."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

NAMES = ("red mug", "a, b", "Größe 猫 🐈", "<&> \"quoted\" 'too'", "7")
# file: width, height; two are called alike, one has an apostrophe and nothing in it
IMAGES = {
    "one/x.png": (160, 120),
    "two/x.png": (97, 131),
    "two/it's a Bär.png": (50, 40),
    "three & more/<y>.png": (640, 480),
}
# image, class, x, y, width, height, score
BOXES = (
    (1, 0, 10.25, 20.5, 30.125, 40.0625, 0.875),
    (1, 4, 0.0, 0.0, 160.0, 120.0, 0.25),
    (2, 2, 1 / 3, 2 / 3, 90.5, 100.123, 1.0),
    (2, 1, 5.0, 6.0, 1.5, 1.25, 0.0625),
    (4, 3, 600.5, 400.0, 39.5, 80.0, 0.5),
)


def ring_and_dot():
    """(120, 160) uint8: a ring, whose hole is to be filled, and a part apart from it."""
    mask = np.zeros((120, 160), np.uint8)
    y, x = np.mgrid[:120, :160]
    distance = np.hypot(y - 60, x - 60)
    mask[distance < 40] = 1
    mask[distance < 10] = 0
    mask[20:50, 120:150] = 1
    return mask


def run_lengths(mask):
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


@pytest.fixture
def content(tmp_path):
    """A COCO json of boxes, as `ovd predict` writes it, and its images."""
    images = []
    for number, (name, (width, height)) in enumerate(IMAGES.items(), start=1):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (number, 90, 200)).save(path)
        images.append({"id": number, "file_name": str(path), "width": width, "height": height})
    rows = [
        {"id": i, "image_id": image, "category_id": 10 * label + 5, "bbox": box, "score": score,
         "area": box[2] * box[3], "iscrowd": 0}
        for i, (image, label, *box, score) in enumerate(BOXES, start=1)
    ]  # fmt: skip
    categories = [{"id": 10 * k + 5, "name": name} for k, name in enumerate(NAMES)]
    return {
        "info": {"model": "mini"},
        "images": images,
        "categories": categories,
        "annotations": rows,
    }


@pytest.fixture
def masked(content):
    """The same with masks for two of the objects: run lengths and polygons."""
    mask = ring_and_dot()
    content["annotations"][0].update(segmentation=run_lengths(mask), bbox=[20, 20, 130, 80])
    triangle = [600.5, 400, 640, 400, 620.25, 480]
    content["annotations"][4]["segmentation"] = [triangle]
    return content


@pytest.fixture
def wanted():
    """(image file, name) -> x0, y0, x1, y1, score."""
    files = list(IMAGES)
    return {
        (files[image - 1], NAMES[label]): (x, y, x + w, y + h, score)
        for image, label, x, y, w, h, score in BOXES
    }


@pytest.fixture
def write(tmp_path):
    """Writes a content in a format: the folder."""
    from ovd_d2.inference.formats import FormatOptions, from_coco, write_detections

    def run(content, name, **options):
        content = json.loads(json.dumps(content))
        folder = tmp_path / "out" / name
        write_detections(from_coco(content), name, folder, FormatOptions(**options))
        return folder

    return run
