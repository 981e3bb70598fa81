"""Reading detections: label files, results, LVIS, and everything that cannot be meant."""

import json

import pytest
from detectron2.structures import BoxMode
from tricky_detections import IMAGES, NAMES

from ovd_d2.data.datasets.grounding import write_grounding_json
from ovd_d2.errors import OVDError
from ovd_d2.inference.formats import (
    FORMATS,
    FormatOptions,
    check_formats,
    read_detections,
    write_detections,
)
from ovd_d2.pseudo_labelling import LabelledImage, write_label_file
from ovd_d2.structures import TokenSpans


@pytest.fixture
def file(tmp_path, content):
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(content))
    return path


def test_boxes_are_cut_and_what_has_no_area_is_counted(file, content):
    rows = content["annotations"]
    rows[0]["bbox"] = [-5, 100, 20, 50]
    rows[1]["bbox"] = [3, 3, 0, 5]
    rows[2]["bbox"] = [97, 0, 4, 4]
    rows[3]["iscrowd"] = 1
    rows.append({**rows[4], "bbox": None})
    file.write_text(json.dumps(content))
    found = read_detections(file)
    assert [len(image.objects) for image in found.images] == [1, 0, 0, 1]
    assert found.images[0].objects[0].box == (0, 100, 15, 120)
    assert found.left_out == {"have no box with an area in their image": 3, "are crowds": 1}
    assert found.names == NAMES and found.category_ids == (5, 15, 25, 35, 45)
    assert [image.file for image in found.images] == list(IMAGES)
    assert found.info == {"model": "mini"}


def test_a_label_file(tmp_path, content, monkeypatch):
    """Its images are where it says, wherever one stands."""
    path = tmp_path / "labels/labels.json"
    path.parent.mkdir()
    files = {image["id"]: image["file_name"] for image in content["images"]}
    box = ((1, (1.0, 2.0, 3.0, 4.0), 0.5),)
    images = [LabelledImage(1, 120, 160, box), LabelledImage(2, 131, 97, box)]
    facts = {"kind": "ovd_d2 image labels", "detector": "glip"}
    write_label_file(path, facts, files, images, content["categories"])
    monkeypatch.chdir(tmp_path)
    for name in (path, f"labels:{path}", "labels/labels.json"):
        found = read_detections(name)
        assert [image.file for image in found.images] == ["one/x.png", "two/x.png"]
        assert all(image.source.is_file() for image in found.images)
        assert found.images[1].objects[0].label == 1
        assert found.images[1].objects[0].score == 0.5
    out, ticks = tmp_path / "out", []
    for name in FORMATS:
        options = FormatOptions(on_image=lambda: ticks.append(1))
        write_detections(found, name, tmp_path / name, options)
    assert len(ticks) == 2 * len(FORMATS)
    assert write_detections(found, "label-studio", out) == 2
    assert json.loads((out / "tasks.json").read_text())[0]["predictions"][0]["model_version"] == (
        "glip"
    )


def test_grounded_captions(tmp_path, content):
    """Phrases are classes; an image with two captions is one image."""
    path = tmp_path / "pictures/grounded.json"
    caption, other = (
        TokenSpans("A cat, a Red  mug", (((2, 5),), ((9, 17),))),
        TokenSpans("the cat", (((4, 7),),)),
    )
    name = content["images"][0]["file_name"]
    box = {"bbox_mode": BoxMode.XYWH_ABS, "score": 0.5}
    records = [
        {"file_name": name, "image_id": i, "height": 120, "width": 160, "caption": words,
         "annotations": [{**box, "bbox": [i, 2, 3, 4], "category_id": k} for k in phrases]}
        for i, words, phrases in ((1, caption, (1, 0)), (2, other, (0,)))
    ]  # fmt: skip
    write_grounding_json(path, records, str(path.parent), {})
    found = read_detections(f"grounding:{path}")
    assert found.names == ("red mug", "cat") and [image.file for image in found.images] == ["x.png"]
    objects = found.images[0].objects
    assert [(one.label, one.box[0], one.score) for one in objects] == [
        (0, 1, 0.5), (1, 1, 0.5), (1, 2, 0.5)
    ]  # fmt: skip
    assert found.images[0].source.is_file()
    damaged = json.loads(path.read_text())
    damaged["annotations"][0]["tokens_positive"] = [[2, 50]]
    path.write_text(json.dumps(damaged))
    with pytest.raises(OVDError, match=r"grounded\.json: a box of image 1 has the span \[2, 50\]"):
        read_detections(path)


def test_results_and_the_json_they_were_made_for(tmp_path, file, content):
    results = [{k: row[k] for k in ("image_id", "category_id", "bbox", "score")}
               for row in content["annotations"]]  # fmt: skip
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    assert read_detections(path, annotations=file) == read_detections(file)
    with pytest.raises(OVDError, match=r"results\.json is a list of results.* add --annotations"):
        read_detections(path)
    with pytest.raises(OVDError, match="has images and classes of its own: leave it out"):
        read_detections(file, annotations=file)
    path.write_text(json.dumps([{**results[0], "image_id": 77}]))
    with pytest.raises(OVDError, match="is of image 77, which `images` does not list"):
        read_detections(path, annotations=file)
    file.write_text("[]")
    with pytest.raises(OVDError, match=r"predictions\.json holds no detections"):
        read_detections(path, annotations=file)


def test_lvis_names_its_files_by_urls(file, content):
    for image in content["images"]:
        del image["file_name"]
        image["coco_url"] = f"http://images.org/val2017/{image['id']}.jpg"
    file.write_text(json.dumps(content))
    found = read_detections(file, image_root="/data/coco")
    assert [image.file for image in found.images] == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert str(found.images[0].source) == "/data/coco/val2017/1.jpg"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.pop("annotations"), r"predictions\.json lacks the entry 'annotations'"),
        (lambda c: c.pop("categories"), r"predictions\.json lacks the entry 'categories'"),
        (lambda c: c["annotations"][0].update(score="high"), "has the score 'high'; give 0..1"),
        (lambda c: c["annotations"][0].update(score=1.5), "of image 1 has the score 1.5"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"annotation 1 has the bbox \[1, 2"),
        (lambda c: c["categories"][0].update(name="a\nb"), r"class name 'a\\nb' holds '\\n'"),
        (lambda c: c["categories"][0].update(name="\ud800"), "class name"),
        (lambda c: c["categories"][0].update(name="7"), "Several classes are called '7'"),
        (lambda c: c["images"][0].update(file_name="a\tb.png"), r"file name 'a\\tb\.png' holds"),
        (lambda c: c["images"][0].pop("file_name"), "image 1 has no file_name"),
        (lambda c: c["images"][0].update(file_name=c["images"][1]["file_name"]),
         "two/x.png is there twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(file, content, damage, message):
    damage(content)
    if content["images"][0].get("file_name") == "a\tb.png":
        content["images"], content["annotations"] = content["images"][:1], []
    file.write_text(json.dumps(content))
    with pytest.raises(OVDError, match=message):
        read_detections(file)


@pytest.mark.parametrize("text", ["{", "", "[[" * 100_000, '"text"', "7"])
def test_no_json_of_detections(file, text):
    file.write_text(text)
    with pytest.raises(OVDError, match=r"predictions\.json .*ovd predict"):
        read_detections(file)
    with pytest.raises(OVDError, match="No such file or directory"):
        read_detections(file.with_name("nothing.json"))


def test_formats_and_images_that_do_not_go_together(tmp_path, file, content):
    with pytest.raises(OVDError, match="--to zip is no format: use coco, yolo, voc"):
        check_formats("--to", ["zip"])
    twins = [tmp_path / "a.jpg", tmp_path / "A.png"]
    check_formats("--format", ["cvat", "label-studio", "coco"], tmp_path / "out", twins)
    for name in ("yolo", "voc"):
        with pytest.raises(OVDError, match=r"a\.jpg and A\.png would have one file in the format"):
            check_formats("--format", [name], tmp_path / "out", twins)
    with pytest.raises(OVDError, match=r"a\.jpg is there twice: name it once"):
        check_formats("--format", ["cvat"], tmp_path / "out", [twins[0], tmp_path / "b/../a.jpg"])
    content["images"][1]["file_name"] = str(tmp_path / "pictures/one/x.jpg")
    file.write_text(json.dumps(content))
    found = read_detections(file)
    with pytest.raises(OVDError, match=r"one/x\.png and one/x\.jpg"):
        write_detections(found, "yolo", tmp_path / "out")
    (tmp_path / "pictures/one/x.png").unlink()
    with pytest.raises(OVDError, match=r"one/x\.png is not there: say where by --image-root"):
        write_detections(found, "coco", tmp_path / "out", FormatOptions(copy_images=True))
    assert not (tmp_path / "out").exists()
