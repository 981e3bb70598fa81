"""Every format, read back by others: supervision, pycocotools, Detectron2, and parsers by the
published schemas of CVAT and Label Studio."""

import json
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from defusedxml import ElementTree
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from tricky_detections import IMAGES, NAMES, ring_and_dot

CLOSE = 1e-3  # pixels


def assert_found(found, wanted):
    """Both: (image file, name) -> x0, y0, x1, y1, score; a score of None is not compared."""
    assert found.keys() == wanted.keys()
    for key, (*box, score) in wanted.items():
        *read, read_score = found[key]
        np.testing.assert_allclose(read, box, atol=CLOSE, err_msg=str(key))
        if read_score is not None:
            assert read_score == pytest.approx(score, abs=1e-6), key


def by_supervision(open_folder):
    """What ``open_folder(sub-folder)`` gives for each of the images' folders."""
    found = {}
    for folder in sorted({name.split("/")[0] for name in IMAGES}):
        dataset = open_folder(folder)
        for path, _, detections in dataset:
            for box, label in zip(detections.xyxy, detections.class_id):
                key = (f"{folder}/{path.split('/')[-1]}", dataset.classes[label])
                found[key] = (*box.tolist(), None)
    return found


def test_yolo_by_supervision(content, wanted, write):
    supervision = pytest.importorskip("supervision")
    out = write(content, "yolo", copy_images=True)
    read = by_supervision(
        lambda folder: supervision.DetectionDataset.from_yolo(
            str(out / "images" / folder), str(out / "labels" / folder), str(out / "data.yaml")
        )
    )
    assert_found(read, wanted)
    assert (out / "labels/two/it's a Bär.txt").read_text() == ""
    assert (out / "classes.txt").read_text(encoding="utf-8").split("\n")[:-1] == list(NAMES)


def test_yolo_lines(content, write):
    """class, middle, size; the score is there if asked for."""
    out = write(content, "yolo")
    first, second = (out / "labels/one/x.txt").read_text().splitlines()
    assert second == "4 0.50000000 0.50000000 1.00000000 1.00000000"
    values = [float(word) for word in first.split()]
    middle = [(10.25 + 30.125 / 2) / 160, (20.5 + 40.0625 / 2) / 120]
    assert values == pytest.approx([0, *middle, 30.125 / 160, 40.0625 / 120], abs=1e-8)
    data = yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))
    assert data == {"train": "images", "val": "images", "names": dict(enumerate(NAMES))}
    out = write(content, "yolo", scores=True)
    first, second = (out / "labels/one/x.txt").read_text().splitlines()
    assert first.split()[5:] == ["0.875000"] and second.split()[5:] == ["0.250000"]


def test_yolo_masks(masked, write):
    supervision = pytest.importorskip("supervision")
    out = write(masked, "yolo", copy_images=True)
    dataset = supervision.DetectionDataset.from_yolo(
        str(out / "images/one"), str(out / "labels/one"), str(out / "data.yaml")
    )
    ((_, _, detections),) = list(dataset)
    assert len(detections) == 2  # two parts are one object still; a box is its corners
    np.testing.assert_allclose(detections.xyxy, [[20.5, 20, 150, 100], [0, 0, 160, 120]], atol=0.6)
    filled = ring_and_dot()
    filled[45:75, 45:75] = 1
    assert iou(detections.mask[0], filled) > 0.95
    (line,) = (out / "labels/two/x.txt").read_text().splitlines()[:1]
    assert len(line.split()) == 9  # in files without a mask too
    triangle = np.array((out / "labels/three & more/<y>.txt").read_text().split()[1:], float)
    np.testing.assert_allclose(
        triangle.reshape(-1, 2) * (640, 480), [(600.5, 400), (640, 400), (620.25, 480)], atol=CLOSE
    )


def iou(first, second):
    first, second = np.asarray(first) > 0, np.asarray(second) > 0
    return (first & second).sum() / (first | second).sum()


def test_voc_by_supervision(content, wanted, write):
    supervision = pytest.importorskip("supervision")
    out = write(content, "voc", copy_images=True)
    read = by_supervision(
        lambda folder: supervision.DetectionDataset.from_pascal_voc(
            str(out / "JPEGImages" / folder), str(out / "Annotations" / folder)
        )
    )
    assert_found(read, wanted)
    root = ElementTree.parse(out / "Annotations/two/x.xml").getroot()
    assert root.findtext("folder") == "two" and root.findtext("filename") == "x.png"
    assert [root.findtext(f"size/{side}") for side in ("width", "height")] == ["97", "131"]
    scores = [float(one.findtext("confidence")) for one in root.findall("object")]
    assert scores == [1.0, 0.0625]


def test_voc_by_detectron2(content, wanted, write):
    """Its list of names is split at spaces, so the images without any."""
    from detectron2.data.datasets.pascal_voc import load_voc_instances

    content["images"] = content["images"][:2]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] < 3]
    out = write(content, "voc", copy_images=True)
    found = {}
    for record in load_voc_instances(str(out), "train", NAMES):
        assert (record["width"], record["height"]) == IMAGES[f"{record['image_id']}.png"]
        for row in record["annotations"]:
            key = (f"{record['image_id']}.png", NAMES[row["category_id"]])
            found[key] = (*row["bbox"], None)
    assert_found(found, {k: v for k, v in wanted.items() if not k[0].startswith("three")})


def test_voc_boxes_below_a_pixel_keep_their_corners_in_order(content, write):
    content["annotations"][0]["bbox"] = [10.2, 20.3, 0.5, 0.25]
    out = write(content, "voc")
    box = ElementTree.parse(out / "Annotations/one/x.xml").find("object/bndbox")
    assert [child.text for child in box] == ["11.2", "21.3", "11.2", "21.3"]


def test_coco_by_pycocotools(masked, wanted, write):
    out = write(masked, "coco")
    coco = COCO(str(out / "annotations.json"))
    assert coco.getCatIds() == [5, 15, 25, 35, 45]
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == list(IMAGES)
    found = {}
    for row in coco.loadAnns(coco.getAnnIds()):
        (image,), (category,) = coco.loadImgs(row["image_id"]), coco.loadCats(row["category_id"])
        x, y, w, h = row["bbox"]
        found[image["file_name"], category["name"]] = (x, y, x + w, y + h, row["score"])
    wanted["one/x.png", "red mug"] = (20, 20, 150, 100, 0.875)
    assert_found(found, wanted)
    (first, *_, last) = coco.loadAnns(coco.getAnnIds())
    assert (coco.annToMask(first) == ring_and_dot()).all() and first["area"] == ring_and_dot().sum()
    assert last["segmentation"] == [[600.5, 400, 640, 400, 620.25, 480]]


def test_coco_by_supervision(content, wanted, write):
    supervision = pytest.importorskip("supervision")
    out = write(content, "coco", copy_images=True)
    dataset = supervision.DetectionDataset.from_coco(
        str(out / "images"), str(out / "annotations.json")
    )
    assert dataset.classes == list(NAMES)
    found = {
        (path.split("/images/")[-1], dataset.classes[label]): (*box.tolist(), None)
        for path, _, detections in dataset
        for box, label in zip(detections.xyxy, detections.class_id)
    }
    assert_found(found, wanted)


def test_cvat_by_its_schema(content, wanted, write):
    out = write(content, "cvat")
    root = ElementTree.parse(out / "annotations.xml").getroot()
    assert root.tag == "annotations" and root.findtext("version") == "1.1"
    assert [x.text for x in root.findall("meta/task/labels/label/name")] == list(NAMES)
    images = root.findall("image")
    assert [image.get("name") for image in images] == sorted(IMAGES)
    assert [image.get("id") for image in images] == ["0", "1", "2", "3"]
    found = {}
    for image in images:
        assert (int(image.get("width")), int(image.get("height"))) == IMAGES[image.get("name")]
        for box in image.findall("box"):
            corners = [float(box.get(side)) for side in ("xtl", "ytl", "xbr", "ybr")]
            score = float(box.findtext("attribute[@name='score']"))
            found[image.get("name"), box.get("label")] = (*corners, score)
            assert box.get("source") == "auto" and box.get("occluded") == "0"
    assert_found(found, wanted)
    labels = json.loads((out / "labels.json").read_text(encoding="utf-8"))
    assert [label["name"] for label in labels] == list(NAMES)


def test_cvat_polygons(masked, write):
    out = write(masked, "cvat")
    root = ElementTree.parse(out / "annotations.xml").getroot()
    ring, dot, triangle = root.findall("image/polygon")  # "one" comes before "three"
    assert ring.get("group_id") == dot.get("group_id") == "1"
    assert triangle.get("group_id") is None and triangle.findtext("attribute") == "0.5"
    assert triangle.get("points") == "600.5,400;640,400;620.25,480"
    points = np.array([p.split(",") for p in dot.get("points").split(";")], float)
    np.testing.assert_allclose([points.min(0), points.max(0)], [(120, 20), (150, 50)], atol=CLOSE)
    drawn = coco_mask.decode(coco_mask.frPyObjects([points.flatten().tolist()], 120, 160))[..., 0]
    assert iou(drawn, np.where(np.arange(160) >= 120, ring_and_dot(), 0)) > 0.99
    assert len(root.findall("image/box")) == 3


def label_studio_boxes(task):
    """By the description of rectanglelabels: percent of original_width and original_height."""
    for made in (*task.get("predictions", ()), *task.get("annotations", ())):
        for region in made["result"]:
            value, width, height = (
                region["value"], region["original_width"], region["original_height"]
            )  # fmt: skip
            assert value["rotation"] == region["image_rotation"] == 0
            assert region["type"] == "rectanglelabels" and region["to_name"] == "image"
            x, y = value["x"] / 100 * width, value["y"] / 100 * height
            box = (x, y, x + value["width"] / 100 * width, y + value["height"] / 100 * height)
            (name,) = value["rectanglelabels"]
            yield name, (*box, region.get("score"))


def test_label_studio_by_its_schema(content, wanted, write):
    out = write(content, "label-studio")
    tasks = json.loads((out / "tasks.json").read_text(encoding="utf-8"))
    found = {}
    for task in tasks:
        prefix, file = task["data"]["image"].split("?d=")
        assert prefix == "/data/local-files/" and not set("<> &") & set(file)
        found |= {(unquote(file), name): box for name, box in label_studio_boxes(task)}
    assert_found(found, wanted)
    assert [task["predictions"][0]["model_version"] for task in tasks] == ["mini"] * 4
    assert tasks[0]["predictions"][0]["score"] == pytest.approx((0.875 + 0.25) / 2)
    assert tasks[2]["predictions"][0]["result"] == [] and "annotations" not in tasks[2]
    config = ElementTree.parse(out / "label_config.xml").getroot()
    (boxes,) = config.findall("RectangleLabels")
    regions = [r for task in tasks for r in task["predictions"][0]["result"]]
    assert {region["from_name"] for region in regions} == {boxes.get("name")}
    assert [label.get("value") for label in boxes] == list(NAMES)
    ids = [region["id"] for region in tasks[0]["predictions"][0]["result"]]
    assert len(set(ids)) == len(ids) == 2


def test_label_studio_polygons_and_what_was_annotated(masked, write):
    for row in masked["annotations"][1:]:
        del row["score"]
    out = write(masked, "label-studio", image_url="s3://bucket/")
    one, _, _, three = json.loads((out / "tasks.json").read_text(encoding="utf-8"))
    assert three["data"]["image"] == "s3://bucket/three%20%26%20more/%3Cy%3E.png"
    ring, dot = one["predictions"][0]["result"]
    assert ring["type"] == dot["type"] == "polygonlabels" and ring["score"] == 0.875
    assert ring["value"]["polygonlabels"] == ["red mug"]
    (whole,) = one["annotations"][0]["result"]
    assert whole["type"] == "rectanglelabels" and "score" not in whole
    (triangle,) = three["annotations"][0]["result"]
    points = np.array(triangle["value"]["points"]) * (6.4, 4.8)
    np.testing.assert_allclose(points, [(600.5, 400), (640, 400), (620.25, 480)], atol=CLOSE)
    config = ElementTree.parse(out / "label_config.xml").getroot()
    controls = {"rectanglelabels": "RectangleLabels", "polygonlabels": "PolygonLabels"}
    for region in (ring, whole, triangle):
        assert config.find(controls[region["type"]]).get("name") == region["from_name"]
