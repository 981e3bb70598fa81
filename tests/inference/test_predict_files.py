"""Files in, pictures and a COCO json out: whole, in order, and never over an input."""

import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from random_models import make_pixels

from ovd_d2.errors import OVDError
from ovd_d2.inference import OpenVocabPredictor, predict_files
from ovd_d2.inference.predict_files import find_images


@pytest.fixture(scope="module")
def predictor(config, checkpoint):
    return OpenVocabPredictor(config, checkpoint, device="cpu", topk=5, batch_size=2)


@pytest.fixture
def images(tmp_path):
    """Three images, the second broken, the third named as the first."""
    (tmp_path / "in/other").mkdir(parents=True)
    files = [tmp_path / name for name in ("in/a.png", "in/b.png", "in/other/a.png")]
    Image.fromarray(make_pixels(120, 160)).save(files[0])
    files[1].write_bytes(b"broken")
    Image.fromarray(make_pixels(60, 80, seed=1)).save(files[2])
    return files


def run(predictor, files, out, **options):
    options = {"pictures": out, "json_file": out / "predictions.json", **options}
    return predict_files.predict_files(predictor, files, **options)


def test_pictures_and_json(predictor, images, tmp_path, capsys):
    out, ticks = tmp_path / "deep/out", []
    report = run(predictor, images, out, on_image=lambda: ticks.append(1), info={"model": "m"})
    assert len(ticks) == 3
    assert {path.name for path in out.iterdir()} == {"a.jpg", "a_2.jpg", "predictions.json"}
    assert [found.file for found in report.found] == [str(images[0]), str(images[2])]
    assert [found.picture.name for found in report.found] == ["a.jpg", "a_2.jpg"]
    (sentence,) = report.skipped
    assert "b.png" in sentence
    with Image.open(out / "a.jpg") as picture:
        assert picture.size == (800, 600)
    content = json.loads((out / "predictions.json").read_text())
    assert content == json.loads(json.dumps(report.coco))
    assert content["info"]["model"] == "m"
    assert content["categories"] == [
        {"id": 1, "name": "cat"}, {"id": 2, "name": "red mug"}, {"id": 3, "name": "traffic light"}
    ]  # fmt: skip
    assert [(i["id"], i["width"], i["height"]) for i in content["images"]] == [
        (1, 160, 120),
        (2, 80, 60),
    ]


def test_the_json_is_coco(predictor, images, tmp_path, capsys):
    run(predictor, images, tmp_path / "out")
    coco = COCO(tmp_path / "out/predictions.json")
    results = coco.loadRes(
        json.loads((tmp_path / "out/predictions.json").read_text())["annotations"]
    )
    assert sorted(results.getImgIds()) == [1, 2]
    for image_id, file in ((1, images[0]), (2, images[2])):
        wanted = predictor.predict(file)
        rows = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        assert [row["category_id"] - 1 for row in rows] == wanted.pred_classes.tolist()
        assert [row["score"] for row in rows] == pytest.approx(wanted.scores.tolist(), abs=1e-3)
        x0, y0, x1, y1 = wanted.pred_boxes.tensor[0].tolist()
        assert rows[0]["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1e-2)
        mask = coco_mask.decode(rows[0]["segmentation"])
        assert (mask != wanted.pred_masks[0].numpy()).mean() < 1e-3
        assert rows[0]["area"] == mask.sum()
    counts = [len(coco.getAnnIds(imgIds=[1], catIds=[k])) for k in (1, 2, 3)]
    assert sum(counts) == 5


def test_json_alone_and_pictures_alone(predictor, images, tmp_path):
    run(predictor, images[:1], tmp_path / "json", pictures=None)
    assert [p.name for p in (tmp_path / "json").iterdir()] == ["predictions.json"]
    report = run(predictor, images[:1], tmp_path / "pictures", json_file=None)
    assert [p.name for p in (tmp_path / "pictures").iterdir()] == ["a.jpg"]
    assert len(report.coco["annotations"]) == 5


def test_counts_and_best_scores(predictor, images, tmp_path):
    (found,) = run(predictor, images[:1], tmp_path / "out").found
    wanted = predictor.predict(images[0])
    assert found.counts.total() == 5
    assert max(found.best.values()) == pytest.approx(float(wanted.scores.max()))
    assert set(found.best) == set(found.counts)


def test_an_input_is_never_replaced(predictor, tmp_path):
    Image.fromarray(make_pixels(50, 50)).save(tmp_path / "a.jpg")
    before = (tmp_path / "a.jpg").read_bytes()
    with pytest.raises(OVDError, match=r"a\.jpg would replace an input"):
        run(predictor, [tmp_path / "a.jpg"], tmp_path / "x/..")
    assert (tmp_path / "a.jpg").read_bytes() == before
    assert not (tmp_path / "predictions.json").exists()


def test_nothing_readable_writes_nothing(predictor, images, tmp_path):
    with pytest.raises(OVDError, match=r"b\.png"):
        run(predictor, images[1:2], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_dies_leaves_whole_files_alone(predictor, images, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(predictor, images, out)
    drawn = predict_files.draw_detections

    def dies(image, *rest):
        if image.shape[0] == 60:
            raise KeyboardInterrupt
        return drawn(image, *rest)

    monkeypatch.setattr(predict_files, "draw_detections", dies)
    with pytest.raises(KeyboardInterrupt):
        run(predictor, images, out)
    assert {path.name for path in out.iterdir()} == {"a.jpg", "a_2.jpg"}  # no stale json, no parts
    for path in out.iterdir():
        with Image.open(path) as picture:
            picture.load()


def test_a_folder_that_cannot_be_written_is_named(predictor, images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OVDError, match=r"Cannot write .*file"):
        run(predictor, images[:1], tmp_path / "file/out")


def test_outputs_that_are_inputs_or_no_plain_files_are_refused(predictor, images, tmp_path):
    """Before anything is deleted or written."""
    photo, out = images[0].read_bytes(), tmp_path / "out"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(images[0])
    for target in (
        images[0],
        tmp_path / "link",
        tmp_path / "pipe",
        tmp_path / "in",
        out / "a.jpg",
        tmp_path / ("n" * 256),
        tmp_path / "in/a.png/x.json",
    ):
        with pytest.raises(OVDError, match="--json"):
            run(predictor, images, out, json_file=target)
    assert images[0].read_bytes() == photo and not out.exists()
    assert (tmp_path / "pipe").is_fifo()
    out.mkdir()
    (out / "a_2.jpg").mkdir()
    with pytest.raises(OVDError, match=r"a_2\.jpg \(--out\): it is a folder"):
        run(predictor, images, out)
    assert [path.name for path in out.iterdir()] == ["a_2.jpg"]


def test_long_names_are_no_hindrance(predictor, tmp_path):
    file = tmp_path / f"{'n' * 246}.png"
    Image.fromarray(make_pixels(60, 80)).save(file)
    run(predictor, [file], tmp_path / "out", json_file=tmp_path / f"{'j' * 250}.json"[-255:])
    assert len(list((tmp_path / "out").iterdir())) == 1 and len(list(tmp_path.iterdir())) == 3


def test_boxes_without_masks_have_an_area(predictor):
    from detectron2.structures import Boxes, Instances

    found = Instances((10, 10))
    found.pred_boxes = Boxes(torch.tensor([[1.0, 2, 4, 6]]))
    found.pred_classes, found.scores = torch.tensor([2]), torch.tensor([0.5])
    (row,) = predict_files.coco_annotations(found, 7, first_id=3)
    assert row == {"id": 3, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5,
                   "area": 12.0, "iscrowd": 0}  # fmt: skip


def test_wide_pictures_fit_into_a_jpeg():
    content = predict_files._encoded(np.zeros((2, 70_000, 3), np.uint8))
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size[0] == 65_000


def test_find_images_lists_each_once(images, tmp_path):
    assert find_images([images[2], tmp_path / "in", images[0]]) == [images[2], images[0], images[1]]
