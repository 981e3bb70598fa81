"""Evaluation with more names than the data set has classes."""

import json

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances

from ovd_d2.config import add_ovd_config
from ovd_d2.evaluation import build_evaluator
from ovd_d2.evaluation.data_set_classes_only import DataSetClassesOnly


def found(classes, scores=None) -> dict:
    result = Instances((9, 9))
    result.pred_classes = torch.tensor(classes, dtype=torch.long)
    result.pred_boxes = Boxes(torch.tensor([[1.0, 1, 6, 6]]).expand(len(classes), -1))
    result.scores = torch.tensor(scores or [0.9] * len(classes))
    return {"instances": result, "more": 1}


@pytest.fixture
def dataset(tmp_path):
    """Two classes, one image with a box of each."""
    name = "test_data_set_classes_only"
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    boxes = [[1, 1, 5, 5], [2, 2, 5, 5]]
    content = {
        "images": [{"id": 1, "height": 9, "width": 9, "file_name": "1.jpg", **lists}],
        "categories": [{"id": k, "name": n, "frequency": "f"} for k, n in ((1, "ant"), (2, "bee"))],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": k, "bbox": b, "area": 25, "iscrowd": 0}
            for k, b in enumerate(boxes, start=1)
        ],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(
        json_file=str(path), thing_classes=["ant", "bee"], evaluator_type="lvis"
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_other_classes_are_dropped_and_nothing_else(dataset):
    class Watching(DatasetEvaluator):
        def process(self, inputs, outputs):
            self.seen = outputs

    watching = Watching()
    outputs = [found([0, 5, 1, 2]), found([7]), {"proposals": 3}]
    DataSetClassesOnly(watching, dataset).process([{}] * 3, outputs)
    assert watching.seen[0]["instances"].pred_classes.tolist() == [0, 1]
    assert watching.seen[0]["more"] == 1
    assert len(watching.seen[1]["instances"]) == 0 and watching.seen[2] == {"proposals": 3}
    assert len(outputs[0]["instances"]) == 4


def test_distractors_cost_nothing_unless_they_take_the_place_of_a_class(dataset, tmp_path):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.TEST.LVIS_BACKEND = "lvis-api"

    def score(outputs, distractors):
        cfg.TEST.DISTRACTORS = distractors
        evaluator = build_evaluator(cfg, dataset)
        evaluator.reset()
        evaluator.process([{"image_id": 1}], [outputs])
        return evaluator.evaluate()["bbox"]

    plain = score(found([0, 1]), "")
    with_others = score(found([5, 0, 6, 1], [0.99, 0.9, 0.95, 0.9]), "imagenet21k:10")
    assert plain["AP50"] > 0 and plain == pytest.approx(with_others, nan_ok=True)
    lost = score(found([6, 1]), "imagenet21k:10")
    assert lost["AP50"] < plain["AP50"]
