"""A trained detector on VOC, COCO and Objects365: ``train_net.py --eval-only`` as a process.

The three are laid out as datasets/README.md says, with drawings of the mini benchmark under the
names those data sets have for them.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import warm_processes
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

import ovd_d2

ROOT = Path(__file__).parents[2]
SHIPPED = Path(ovd_d2.__file__).parent / "inference/models/mini"
# The mini benchmark's names -> those of the data set.
VOC = {"bicycle": "bicycle", "motorcycle": "motorbike", "potted plant": "pottedplant"}
COCO = {
    name: name
    for name in ("bicycle", "carrot", "kite", "laptop", "motorcycle", "mouse", "potted plant",
                 "sandwich", "toilet", "toothbrush", "wine glass")
}  # fmt: skip
OBJECTS365 = {"bicycle": "Bicycle", "goat": "Goat", "penguin": "Penguin", "pineapple": "Pineapple"}


def seen_drawings(mini: Path, names: dict[str, str]) -> dict[Path, list[tuple[str, list[float]]]]:
    """Pictures with something of ``names`` on them: [(name in the data set, x y w h)]."""
    content = json.loads((mini / "annotations/coco_val_seen.json").read_text())
    files = {image["id"]: mini / "images" / image["file_name"] for image in content["images"]}
    categories = {category["id"]: category["name"] for category in content["categories"]}
    found: dict[Path, list[tuple[str, list[float]]]] = {}
    for row in content["annotations"]:
        if (name := names.get(categories[row["category_id"]])) is not None:
            found.setdefault(files[row["image_id"]], []).append((name, row["bbox"]))
    return found


def lay_out_voc(root: Path, drawings: dict) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / "VOC2007" / folder).mkdir(parents=True)
    for file, objects in drawings.items():
        shutil.copy(file, root / "VOC2007/JPEGImages")
        tree = ElementTree.Element("annotation")
        size = ElementTree.SubElement(tree, "size")
        for key in ("width", "height"):
            ElementTree.SubElement(size, key).text = "192"
        for name, (x, y, w, h) in objects:
            thing = ElementTree.SubElement(tree, "object")
            facts = {"name": name, "pose": "Left", "truncated": "0", "difficult": "0"}
            for key, value in facts.items():
                ElementTree.SubElement(thing, key).text = value
            box = ElementTree.SubElement(thing, "bndbox")
            corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
            for key, value in corners.items():
                ElementTree.SubElement(box, key).text = str(int(value))
        ElementTree.ElementTree(tree).write(root / f"VOC2007/Annotations/{file.stem}.xml")
    names = "\n".join(file.stem for file in drawings)
    (root / "VOC2007/ImageSets/Main/test.txt").write_text(names + "\n")


def lay_out_json(images: Path, json_file: Path, drawings: dict, categories: list[dict]) -> None:
    images.mkdir(parents=True)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    ids = {category["name"]: category["id"] for category in categories}
    records, rows = [], []
    for number, (file, objects) in enumerate(drawings.items(), start=1):
        shutil.copy(file, images)
        records.append({"id": number, "file_name": file.name, "width": 192, "height": 192})
        for name, (x, y, w, h) in objects:
            rows.append({"id": len(rows) + 1, "image_id": number, "category_id": ids[name],
                         "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})  # fmt: skip
    json_file.write_text(
        json.dumps({"info": {}, "images": records, "annotations": rows, "categories": categories})
    )


@pytest.fixture
def data_sets(mini_root, tmp_path):
    root = tmp_path / "data"
    lay_out_voc(root, seen_drawings(mini_root, VOC))
    lay_out_json(
        root / "coco/val2017",
        root / "coco/annotations/instances_val2017.json",
        seen_drawings(mini_root, COCO),
        [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]],
    )
    lay_out_json(
        root / "objects365/val",
        root / "objects365/objects365_val.json",
        seen_drawings(mini_root, OBJECTS365),
        [{"id": 365 - i, "name": name} for i, name in enumerate(OBJECTS365.values())],
    )
    return root


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_command_evaluates_on_three_other_data_sets(data_sets, tmp_path):
    """Each with its own classes and evaluator; 20, 80 and the json's number of names."""
    out = tmp_path / "out"
    command = [
        sys.executable, "train_net.py", "--config-file", str(SHIPPED / "config.yaml"),
        "--eval-only", "MODEL.WEIGHTS", str(SHIPPED / "model.safetensors"), "OUTPUT_DIR", str(out),
        "MODEL.DEVICE", "cpu", "MODEL.OPEN_VOCAB.VOCABULARY", "cat",
        "DATASETS.TEST", "('voc_2007_test', 'coco_2017_val', 'objects365_v1_val')",
    ]  # fmt: skip
    environment = {**os.environ, "DETECTRON2_DATASETS": str(data_sets)}
    done = warm_processes.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((out / "results.json").read_text())["results"]
    voc, coco, objects = (
        results[name]["bbox"] for name in ("voc_2007_test", "coco_2017_val", "objects365_v1_val")
    )
    # VOC's mean is over 20 classes, of which 17 have no box here and count as 0.
    assert voc["AP50"] * 20 / len(VOC) > 20
    assert coco["AP50"] > 20
    assert objects["AP50"] > 20
    assert {key for key in objects if key.startswith("AP-")} == {
        f"AP-{name}" for name in OBJECTS365.values()
    }
