"""LVIS minival: the images of val2017/, in the loader and in the evaluator."""

import json
import logging

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from ovd_d2.data.datasets import lvis
from ovd_d2.errors import OVDError
from ovd_d2.evaluation import LVISOpenVocabEvaluator

SQUARE = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0]]


def content(folders):
    """One image with one square in each of the folders."""
    lists = {"neg_category_ids": [1], "not_exhaustive_category_ids": []}
    host = "http://images.cocodataset.org"
    box = {"category_id": 2, "bbox": [1.0, 1.0, 8.0, 8.0], "area": 64.0, "segmentation": SQUARE}
    numbered = list(enumerate(folders, start=1))
    return {
        "categories": [{"id": i, "name": str(i), "frequency": "f"} for i in (1, 2)],
        "images": [
            {"id": i, "height": 20, "width": 30, "coco_url": f"{host}/{f}/{i:012d}.jpg", **lists}
            for i, f in numbered
        ],
        "annotations": [{"id": i, "image_id": i, **box} for i, _ in numbered],
    }


def test_images_annotations_and_lists(caplog):
    whole = content(["train2017", "val2017", "train2017", "val2017"])
    with caplog.at_level(logging.WARNING):
        found = lvis.minival(whole, "part.json")
    assert found["images"] == [whole["images"][1], whole["images"][3]]
    assert found["annotations"] == [whole["annotations"][1], whole["annotations"][3]]
    assert found["categories"] == whole["categories"] and len(whole["images"]) == 4
    assert "part.json has 2 images in val2017/, but LVIS minival is 4809" in caplog.text


@pytest.mark.parametrize("count", [4808, 4809, 4810])
def test_the_whole_file_must_have_4809(count, caplog):
    whole = content(["val2017"] * count + ["train2017"] * (19_809 - count))
    if count == 4809:
        assert len(lvis.minival(whole, "val.json")["images"]) == 4809
        assert not caplog.text
    else:
        with pytest.raises(OVDError, match=f"{count} images in val2017/, but LVIS minival is 4809"):
            lvis.minival(whole, "val.json")


def test_no_image_at_all():
    with pytest.raises(OVDError, match="has 0 images in val2017/"):
        lvis.minival(content(["train2017"]), "val.json")


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "val2017").mkdir()
    path = tmp_path / "val.json"
    path.write_text(json.dumps(content(["train2017", "val2017", "train2017", "val2017"])))
    name = "test_lvis_minival"
    image_root = str(tmp_path)
    lvis.register_lvis_ovd(name, str(path), image_root, train=False, only_minival=True)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_loader_and_evaluator_take_the_same_images(dataset):
    records = DatasetCatalog.get(dataset)
    assert [r["image_id"] for r in records] == [2, 4]
    assert all("/val2017/" in r["file_name"] for r in records)
    assert all(r["annotations"][0]["segmentation"] for r in records)
    evaluator = LVISOpenVocabEvaluator(dataset, distributed=False, is_novel=[False, False])
    assert evaluator.num_images == 2
    evaluator.reset()
    for record in records:
        found = Instances((20, 30))
        found.pred_boxes = Boxes(torch.tensor([[1.0, 1, 9, 9]]))
        found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([1])
        evaluator.process([record], [{"instances": found}])
    # with the images of train2017/ among the ground truth it would be half of that
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_registration():
    whole, minival = (MetadataCatalog.get(f"lvis_v1_{n}") for n in ("val_ovd", "minival"))
    assert minival.only_minival and not whole.only_minival
    assert minival.json_file == whole.json_file and minival.is_novel == whole.is_novel
    assert minival.evaluator_type == "lvis" and "lvis_v1_minival" in DatasetCatalog
