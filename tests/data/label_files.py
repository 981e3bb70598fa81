"""Small files of image labels, with their images."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("green", "red", "blue")


def write_labels(folder, count=6, *, names=NAMES, size=(64, 48), seed=0, **changes):
    """``count`` images with a coloured rectangle each, and the json of their labels.

    Categories have the ids 10, 20, 30, in the order of ``names``. Returns the path of the json.
    """
    folder = Path(folder)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    width, height = size
    images, annotations = [], []
    for i in range(count):
        pixels = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
        w, h = (int(v) for v in rng.integers(12, 24, 2))
        x, y = int(rng.integers(width - w)), int(rng.integers(height - h))
        pixels[y : y + h, x : x + w, i % 3] = 255
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": height, "width": width})
        annotations.append({"id": i + 1, "image_id": i + 1, "category_id": 10 * (i % 3 + 1),
                            "bbox": [x, y, w, h], "score": 0.9, "area": w * h,
                            "iscrowd": 0})  # fmt: skip
    content = {
        "info": {"kind": "ovd_d2 image labels", "image_root": "pictures", "proposals": "test"},
        "images": images,
        "categories": [{"id": 10 * (k + 1), "name": name} for k, name in enumerate(names)],
        "annotations": annotations,
        **changes,
    }
    path = folder / "labels.json"
    path.write_text(json.dumps(content))
    return path
