"""A small set of drawn images with known boxes, written in every format that users have."""

import json
import random
from pathlib import Path

import yaml
from PIL import Image, ImageDraw

NAMES = ("red circle", "blue square", "grünes Dreieck")
COLOURS = {"red circle": "red", "blue square": "blue", "grünes Dreieck": "green"}
SIZE = (120, 96)  # width, height
# By image, boxes (name, x, y, width, height) with whole numbers.
Truth = dict[str, list[tuple[str, int, int, int, int]]]


def draw_images(folder: Path, count: int = 20, suffix: str = ".png") -> Truth:
    """Images with one or two shapes each; the last one is empty."""
    folder.mkdir(parents=True)
    rng = random.Random(3)
    truth: Truth = {}
    for number in range(count):
        image = Image.new("RGB", SIZE, (200 + number % 50, 210, 220))
        draw = ImageDraw.Draw(image)
        boxes = []
        for place in range(0 if number == count - 1 and count > 1 else 1 + number % 2):
            name = NAMES[(number + place) % len(NAMES)]
            side = rng.randrange(20, 41)
            x, y = place * 60 + rng.randrange(2, 15), rng.randrange(2, 50)
            corners = (x, y, x + side - 1, y + side - 1)
            if name == NAMES[0]:
                draw.ellipse(corners, fill=COLOURS[name])
            elif name == NAMES[1]:
                draw.rectangle(corners, fill=COLOURS[name])
            else:
                draw.polygon([(x, y + side - 1), (x + side - 1, y + side - 1), (x + side // 2, y)],
                             fill=COLOURS[name])  # fmt: skip
            boxes.append((name, x, y, side, side))
        truth[f"bild {number:02d} ü{suffix}"] = boxes
        image.save(folder / f"bild {number:02d} ü{suffix}")
    return truth


def write_coco(folder: Path) -> Path:
    """folder/images and folder/labels.json."""
    truth = draw_images(folder / "images")
    images, annotations = [], []
    for image_id, (file, boxes) in enumerate(truth.items(), start=7):
        images.append({"id": image_id, "file_name": file, "width": SIZE[0], "height": SIZE[1]})
        for name, *box in boxes:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id,
                                "category_id": 10 * NAMES.index(name), "bbox": box})  # fmt: skip
    categories = [{"id": 10 * k, "name": name} for k, name in enumerate(NAMES)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    path = folder / "labels.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_yolo(folder: Path) -> Path:
    """folder/data.yaml, images/ and labels/; the yaml's train says it as exports do."""
    truth = draw_images(folder / "images")
    (folder / "labels").mkdir()
    for file, boxes in truth.items():
        lines = [
            f"{NAMES.index(name)} {(x + w / 2) / SIZE[0]:.6f} {(y + h / 2) / SIZE[1]:.6f} "
            f"{w / SIZE[0]:.6f} {h / SIZE[1]:.6f}"
            for name, x, y, w, h in boxes
        ]
        (folder / "labels" / f"{Path(file).stem}.txt").write_text("\n".join(lines))
    content = {"train": "../images", "names": dict(enumerate(NAMES)), "nc": len(NAMES)}
    (folder / "data.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return folder


def write_voc(folder: Path) -> Path:
    """folder/JPEGImages and Annotations."""
    truth = draw_images(folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    for file, boxes in truth.items():
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for name, x, y, w, h in boxes
        )
        text = (
            f"<annotation><filename>{file}</filename><size><width>{SIZE[0]}</width>"
            f"<height>{SIZE[1]}</height><depth>3</depth></size>{objects}</annotation>"
        )
        (folder / "Annotations" / f"{Path(file).stem}.xml").write_text(text, encoding="utf-8")
    return folder


def write_label_studio(folder: Path) -> Path:
    """folder/export.json; the addresses are those of uploads."""
    truth = draw_images(folder / "media")
    tasks = []
    for number, (file, boxes) in enumerate(truth.items()):
        results = [
            {
                "type": "rectanglelabels", "original_width": SIZE[0], "original_height": SIZE[1],
                "value": {
                    "x": 100 * x / SIZE[0], "y": 100 * y / SIZE[1], "width": 100 * w / SIZE[0],
                    "height": 100 * h / SIZE[1], "rotation": 0, "rectanglelabels": [name],
                },
            }
            for name, x, y, w, h in boxes
        ]  # fmt: skip
        tasks.append(
            {
                "id": number, "data": {"image": f"/data/upload/3/0123abcd-{file}"},
                "annotations": [{"result": [], "was_cancelled": True}, {"result": results}],
            }
        )  # fmt: skip
    path = folder / "export.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return path


WRITERS = {
    "coco": write_coco, "yolo": write_yolo, "voc": write_voc, "label-studio": write_label_studio
}  # fmt: skip
