"""Own data in every format: what is read, what is left out and said, and that nothing else
happens."""

import json
import os
import shutil

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_images import NAMES, SIZE, WRITERS, draw_images, write_coco, write_voc, write_yolo
from PIL import Image

from ovd_d2.data.datasets.own_data import check_labels, few_shot, read_labels, split_off
from ovd_d2.errors import OVDError


def read(source, split="train", **options):
    return check_labels(read_labels(source, **options)[1][split])


def boxes_by_file(data):
    """Like what ``draw_images`` returns."""
    files = {image["id"]: os.path.basename(image["file_name"]) for image in data.images}
    found = {file: [] for file in files.values()}
    for annotation in data.annotations:
        name = data.names[annotation["category_id"] - 1]
        box = tuple(round(side) for side in annotation["bbox"])
        assert annotation["bbox"] == pytest.approx(box, abs=0.011)
        found[files[annotation["image_id"]]].append((name, *box))
    return found


def said(data, text):
    return [line for line in data.remarks.lines() if text in line]


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_boxes(tmp_path, kind):
    truth = draw_images(tmp_path / "truth")
    source = WRITERS[kind](tmp_path / "data")
    found, labels = read_labels(source)
    assert found == kind and list(labels) == ["train"]
    data = check_labels(labels["train"])
    assert boxes_by_file(data) == truth
    assert sorted(data.names) == sorted(NAMES)
    assert data.remarks.count_left_out == 0
    assert said(data, "1 images have no box")
    content = data.content(list(NAMES))
    assert [c["name"] for c in content["categories"]] == list(NAMES)
    assert {(i["width"], i["height"]) for i in content["images"]} == {SIZE}


def test_lvis_names_folder_and_file_by_an_address(tmp_path):
    path = write_coco(tmp_path)
    truth = boxes_by_file(read(path))
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["coco_url"] = f"http://host/images/{image.pop('file_name')}"
    path.write_text(json.dumps(content))
    assert boxes_by_file(read(path)) == truth
    assert boxes_by_file(read(path, images=tmp_path)) == truth


def test_a_kind_that_it_is_not(tmp_path):
    source = write_coco(tmp_path / "data")
    with pytest.raises(OVDError, match="is a json; kind yolo is a folder"):
        read_labels(source, kind="yolo")
    with pytest.raises(OVDError, match="no export of Label Studio"):
        read_labels(source, kind="label-studio")
    with pytest.raises(OVDError, match="kind is 'kitti'"):
        read_labels(source, kind="kitti")
    with pytest.raises(OVDError, match="holds no labels that are known"):
        read_labels(source.parent / "images")
    with pytest.raises(OVDError, match="There is no"):
        read_labels(tmp_path / "nowhere")


def test_splits_that_the_data_bring_along(tmp_path):
    folder = write_yolo(tmp_path / "yolo")
    for place in ("images", "labels"):
        (folder / "valid" / place).mkdir(parents=True)
        for file in sorted((folder / place).iterdir())[-6:]:
            shutil.move(file, folder / "valid" / place)
    content = yaml.safe_load((folder / "data.yaml").read_text())
    (folder / "data.yaml").write_text(yaml.safe_dump({**content, "val": "../valid/images"}))
    _, labels = read_labels(folder)
    assert [len(labels[split].images) for split in ("train", "val")] == [14, 6]

    folder = write_voc(tmp_path / "voc")
    (folder / "ImageSets/Main").mkdir(parents=True)
    stems = sorted(file.stem for file in (folder / "Annotations").iterdir())
    for split, part in (("train", stems[:15]), ("val", stems[15:])):
        # Detectron2's lists hold one id a line; these ids have spaces, so they are renamed.
        for k, stem in enumerate(part):
            new = f"{split}{k}"
            text = (folder / f"Annotations/{stem}.xml").read_text()
            (folder / f"Annotations/{stem}.xml").unlink()
            text = text.replace(f"{stem}.png", f"{new}.png")
            (folder / f"Annotations/{new}.xml").write_text(text)
            (folder / f"JPEGImages/{stem}.png").rename(folder / f"JPEGImages/{new}.png")
        lines = "\n".join(f"{split}{k}" for k in range(len(part)))
        (folder / f"ImageSets/Main/{split}.txt").write_text(lines)
    _, labels = read_labels(folder)
    assert [len(labels[split].images) for split in ("train", "val")] == [15, 5]

    for split in ("train", "valid"):
        write_coco(tmp_path / "folders" / split)
    kind, labels = read_labels(tmp_path / "folders")
    assert kind == "coco" and list(labels) == ["train", "val"]


# ---- what is left out


def test_faults_of_a_coco_json(tmp_path):
    path = write_coco(tmp_path)
    content = json.loads(path.read_text())
    images, annotations = content["images"], content["annotations"]
    (tmp_path / "images" / images[0]["file_name"]).unlink()
    (tmp_path / "images" / images[1]["file_name"]).write_bytes(b"no image")
    images[2]["width"], images[2]["height"] = SIZE[::-1]
    images.append({**images[3], "id": 999})
    images.append({"id": 1000})
    images.append("image")
    good = dict(annotations[-1])
    for box in ([float("nan"), 1, 2, 3], [1, 1, 0, 5], [500, 500, 9, 9], [1, 2], "box", None):
        annotations.append({**good, "id": 100 + len(annotations), "bbox": box})
    annotations.append({**good, "id": 200})  # twice
    annotations.append({**good, "image_id": 12345})
    annotations.append({**good, "category_id": [1]})
    annotations.append({**good, "bbox": [-20, 10, 60, 30]})
    content["categories"].append({"id": 77, "name": "blue square"})
    content["categories"].append({"id": 78, "name": "Blue_Square"})
    content["categories"].append({"id": 0, "name": "again"})
    path.write_text(json.dumps(content))
    data = read(path)
    for reason in (
        "left out: 1 images are missing", "left out: 1 images cannot be read",
        "left out: 1 images have another size than their labels say",
        "left out: 1 images are listed twice", "left out: 1 images have no file_name",
        "left out: 1 entries of `images` are no mappings",
        "left out: 1 boxes are not made of numbers", "left out: 1 boxes have no area",
        "left out: 1 boxes are outside of their image", "left out: 3 annotations have no box of",
        "left out: 1 boxes are there twice", "left out: 1 boxes are of images that",
        "left out: 1 boxes are of categories that", "left out: 1 categories have no id",
        "note: 1 boxes reach out of their image", "note: 1 class names have several ids",
        "note: 1 class names hardly differ: 'blue square' and 'Blue_Square'",
    ):  # fmt: skip
        assert said(data, reason), (reason, data.remarks.lines())
    assert len(data.images) == 17
    cut = [a["bbox"] for a in data.annotations if a["bbox"][0] == 0]
    assert cut == [[0.0, 10, 40, 30]]


def test_faults_of_a_yolo_folder(tmp_path):
    folder = write_yolo(tmp_path)
    files = sorted((folder / "labels").iterdir())
    files[0].write_text("3 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.2 0.25\n-1 0.5 0.5 0.1 0.1\n")
    files[1].write_text("red 0.5 0.5 0.1 0.1\n0 0.5 0.5\n\n0 0.5 0.5 nan 0.1\n1 2 2 .1 .1")
    files[2].write_text("1 0.25 0.25 0.75 0.25 0.5 0.75\n1.0 0.5 0.5 0.2 0.25 0.9\n")
    files[3].unlink()
    (folder / "labels/orphan.txt").write_text("0 0.5 0.5 0.1 0.1")
    shutil.copy(folder / "images" / f"{files[4].stem}.png", folder / f"images/{files[4].stem}.jpg")
    data = read(folder)
    for reason in (
        "left out: 2 boxes have a class number that is none of the 3 names",
        "left out: 2 lines are no labels", "left out: 1 boxes are not made of numbers",
        "left out: 1 boxes are outside of their image", "left out: 1 label files have no image",
        "left out: 1 images share the label file of another one",
        "note: 1 images have no label file",
    ):  # fmt: skip
        assert said(data, reason), (reason, data.remarks.lines())
    found = boxes_by_file(data)
    assert found[f"{files[0].stem}.png"] == [(NAMES[0], 48, 36, 24, 24)]
    polygon, box = found[f"{files[2].stem}.png"]
    assert polygon == (NAMES[1], 30, 24, 60, 48) and box[0] == NAMES[1]
    assert f"{files[3].stem}.png" not in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a", "no readable yaml"),
        ("- a", "has no `names`"),
        ("names: 3", "must be a list of class names"),
        ("names: {a: cat}", "must be class numbers"),
        ("names: {0: cat, '0': dog}", "must be class numbers"),
        ("names: {99999999: cat}", "must be 0 to 99999"),
        ("names: [cat]\ntrain: 3", "`train` must be a path"),
        ("names: [cat]\ntrain: nowhere", "leads to no image"),
        ("names: !!python/object/apply:os.system [ls]", "no readable yaml"),
        ("&a [" * 600, "no readable yaml"),
    ],
)
def test_yaml_files_that_cannot_be_used(tmp_path, text, message):
    folder = write_yolo(tmp_path)
    (folder / "data.yaml").write_text(text)
    with pytest.raises(OVDError, match=message):
        read(folder)


def test_faults_of_voc_files(tmp_path):
    folder = write_voc(tmp_path)
    files = sorted((folder / "Annotations").iterdir())
    files[0].write_text("<annotation><object>")
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'
    files[1].write_text(bomb)
    text = files[2].read_text()
    files[2].write_text(text.replace(f"<name>{NAMES[2]}</name>", "<name> </name>"))
    files[3].write_text(files[3].read_text().replace("xmax>", "xmaximum>"))
    files[4].unlink()
    files[5].write_text(files[5].read_text().replace("<width>120", "<width>0"))
    data = read(folder)
    for reason in (
        "left out: 2 files are no readable xml", "left out: 1 boxes have no class name",
        "note: 1 images have no xml",
    ):  # fmt: skip
        assert said(data, reason), (reason, data.remarks.lines())
    assert said(data, "boxes are not made of numbers")
    assert f"{files[5].stem}.png" in boxes_by_file(data)


def test_shapes_of_label_studio(tmp_path):
    draw_images(tmp_path / "images", 3)
    names = sorted(file.name for file in (tmp_path / "images").iterdir())
    turned = {"x": 50, "y": 50, "width": 20, "height": 25, "rotation": 90,
              "rectanglelabels": ["a", "b"]}  # fmt: skip
    polygon = {"points": [[10, 25], [30, 25], [20, 50]], "polygonlabels": ["a"]}
    rows = [
        {"id": 4, "image": f"/data/local-files/?d=images/{names[0]}",
         "label": [{**turned, "original_width": 120, "original_height": 96}]},
        {"id": 5, "data": {"photo": f"https://host/images/{names[1].replace(' ', '%20')}"},
         "annotations": [{"result": [{"value": polygon}, {"value": {"choices": ["x"]}}]}]},
        {"id": 6, "data": {"image": names[2]}, "annotations": []},
        {"id": 7, "data": {"text": "hello"}},
    ]  # fmt: skip
    path = tmp_path / "min.json"
    path.write_text(json.dumps(rows))
    data = read(path)
    found = boxes_by_file(data)
    # 24 x 24 pixels turned by 90 degrees about (60, 48).
    assert found[names[0]] == [("a", 36, 48, 24, 24), ("b", 36, 48, 24, 24)]
    assert found[names[1]] == [("a", 12, 24, 24, 24)]
    assert said(data, "left out: 1 results are neither") and said(data, "left out: 1 tasks have no")
    assert said(data, "note: 1 tasks have no annotation")


def test_nothing_that_can_be_used(tmp_path):
    path = write_coco(tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(OVDError, match="has no image with a box that can be used"):
        read(path)
    path.write_text(json.dumps({**content, "categories": []}))
    with pytest.raises(OVDError, match="has no category"):
        read(path)
    path.write_text("{}")
    with pytest.raises(OVDError, match="neither a COCO json"):
        read(path)
    path.write_text("[")
    with pytest.raises(OVDError, match="no readable json"):
        read(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OVDError, match="holds no labels that are known"):
        read(tmp_path / "empty")


# ---- splits


def test_split_has_every_class_on_both_sides(tmp_path):
    data = read(write_coco(tmp_path))
    for seed in range(20):
        train, val = split_off(data, seed=seed)
        assert len(val.images) == 4 and len(train.images) == 16
        assert not train.paths() & val.paths()
        for part in (train, val):
            assert all(images for _, images in part.counts().values()), (seed, part.counts())
    first, again = split_off(data, seed=1), split_off(data, seed=1)
    assert first[1].images == again[1].images
    assert first[1].images != split_off(data, seed=2)[1].images


def test_classes_of_one_image_stay_in_training(tmp_path):
    data = read(write_coco(tmp_path)).of_images([1, 2, 3])
    train, val = split_off(data)
    assert all(images or not before for (_, images), (_, before) in
               zip(train.counts().values(), data.counts().values()))  # fmt: skip
    assert len(val.images) + len(train.images) == 3
    one = data.of_images([1])
    assert split_off(one) == (one, one)


def test_few_shots_are_drawn_by_the_seed(tmp_path):
    data = read(write_coco(tmp_path))
    found = few_shot(data, 2, seed=0)
    assert len(found.images) < len(data.images)
    assert all(images >= 2 for _, images in found.counts().values())
    assert found.images == few_shot(data, 2, seed=0).images
    assert found.images != few_shot(data, 2, seed=5).images


# ---- anything at all

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(
            ["images", "categories", "annotations", "id", "name", "file_name", "bbox", "image_id",
             "category_id", "width", "height", "data", "image", "result", "value", "x", "y",
             "rectanglelabels", "points", "polygonlabels", "rotation", "label"]
        ),
        inner, max_size=6,
    ),
    max_leaves=30,
)  # fmt: skip
FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def reads_or_says(source, **options):
    """Whatever it is, a sentence at most."""
    try:
        labels = read_labels(source, **options)[1]
        check_labels(labels["train"])
    except OVDError:
        pass


@FUZZ
@given(content=ANYTHING, kind=st.sampled_from(["", "coco", "label-studio"]))
def test_any_json(tmp_path, content, kind):
    path = tmp_path / "any.json"
    path.write_text(json.dumps(content))
    reads_or_says(path, kind=kind)


@FUZZ
@given(entry=ANYTHING, key=st.sampled_from(["images", "categories", "annotations"]))
def test_any_entry_of_a_coco_json(tmp_path, entry, key):
    path = tmp_path / "labels.json"
    if not path.exists():
        write_coco(tmp_path)
        path.rename(tmp_path / "good.txt")
    content = json.loads((tmp_path / "good.txt").read_text())
    content[key] = [*content[key][:3], entry] if isinstance(content[key], list) else entry
    path.write_text(json.dumps(content))
    reads_or_says(path)


@FUZZ
@given(
    label=st.binary(max_size=60)
    | st.lists(st.floats() | st.integers(), max_size=9).map(
        lambda row: " ".join(map(str, row)).encode()
    ),
    text=st.text(max_size=40) | ANYTHING.map(lambda v: yaml.safe_dump({"names": v, "train": v})),
)
def test_any_yolo_file(tmp_path, label, text):
    if not (tmp_path / "images").exists():
        Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
        (tmp_path / "images").mkdir()
        (tmp_path / "labels").mkdir()
        (tmp_path / "a.png").rename(tmp_path / "images/a.png")
    (tmp_path / "labels/a.txt").write_bytes(label)
    (tmp_path / "data.yaml").write_text("names: [cat, dog]")
    reads_or_says(tmp_path)
    (tmp_path / "data.yaml").write_text(text, encoding="utf-8", errors="replace")
    reads_or_says(tmp_path)


@FUZZ
@given(text=st.binary(max_size=80), name=st.text(max_size=12), number=st.text(max_size=6))
def test_any_xml(tmp_path, text, name, number):
    (tmp_path / "a.xml").write_bytes(text)
    reads_or_says(tmp_path)
    from xml.sax.saxutils import escape

    (tmp_path / "a.xml").write_text(
        f"<annotation><filename>{escape(name)}</filename><size><width>{escape(number)}</width>"
        f"</size><object><name>{escape(name)}</name><bndbox><xmin>{escape(number)}</xmin>"
        "</bndbox></object></annotation>",
        encoding="utf-8",
    )  # fmt: skip
    reads_or_says(tmp_path)
