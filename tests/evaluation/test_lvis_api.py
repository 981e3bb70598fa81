"""Detectron2's own LVISEvaluator runs after ``import ovd_d2``, and agrees with both back ends."""

import contextlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import LVISEvaluator
from detectron2.structures import Boxes, Instances
from test_lvis_backends import random_data

from ovd_d2.evaluation import LVISOpenVocabEvaluator
from ovd_d2.evaluation.lvis_api import install, mend
from ovd_d2.evaluation.lvis_self_test import one_box_ap

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


@pytest.fixture
def lvis_json(tmp_path):
    """A json of LVIS's format as a registered data set, and detections for it."""
    truth, results = random_data(11, images=6, hard=False)
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(truth))
    name = "test_stock_lvis"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(
        json_file=str(path), thing_classes=[c["name"] for c in truth["categories"]]
    )
    yield name, truth, results
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def evaluate(evaluator, truth, results):
    evaluator.reset()
    for image in truth["images"]:
        mine = [r for r in results if r["image_id"] == image["id"]]
        found = Instances((image["height"], image["width"]))
        boxes = torch.tensor([r["bbox"] for r in mine], dtype=torch.double).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found.pred_boxes = Boxes(boxes)
        found.scores = torch.tensor([r["score"] for r in mine], dtype=torch.double)
        found.pred_classes = torch.tensor([r["category_id"] - 1 for r in mine]).long()
        evaluator.process([{"image_id": image["id"]}], [{"instances": found}])
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate()["bbox"]


def test_stock_lvis_api_and_hotcoco_are_equal_on_one_json(lvis_json):
    name, truth, results = lvis_json
    stock = evaluate(LVISEvaluator(name), truth, results)
    assert 0 < stock["AP"] < 100
    for backend in ("lvis-api", "hotcoco"):
        ours = evaluate(LVISOpenVocabEvaluator(name, backend=backend), truth, results)
        for metric in NAMES:  # without ground truth lvis-api says -1, we say nan
            expected = float("nan") if stock[metric] == -100 else stock[metric]
            wanted = pytest.approx(expected, abs=1e-9, nan_ok=True)
            assert ours[metric] == wanted, (backend, metric)


FRESH = """
import sys
import numpy as np
import detectron2.evaluation
import ovd_d2
assert "lvis" not in sys.modules, "lvis is imported eagerly"
had = hasattr(np, "float")
import detectron2.evaluation.lvis_evaluation as stock, json, tempfile
box = {"image_id": 1, "category_id": 1, "bbox": [1.0, 1.0, 5.0, 5.0]}
truth = {"images": [{"id": 1, "height": 9, "width": 9, "neg_category_ids": [],
         "not_exhaustive_category_ids": []}], "categories": [{"id": 1, "name": "a",
         "frequency": "f"}], "annotations": [{"id": 1, "area": 25.0, **box}]}
with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    json.dump(truth, file); file.flush()
    from lvis import LVIS
    found = stock._evaluate_predictions_on_lvis(LVIS(file.name), [{**box, "score": 0.5}], "bbox")
assert abs(found["AP"] - 100) < 1e-6, found
import lvis.eval
assert lvis.eval.np is np and hasattr(np, "float") == had
"""


def test_a_fresh_process_needs_only_the_import():
    ran = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_twice_is_harmless_and_numpy_stays():
    import lvis.eval
    from detectron2.evaluation import lvis_evaluation

    mend()
    before = lvis.eval.LVISEval.accumulate, lvis_evaluation._evaluate_predictions_on_lvis
    mend()
    install()
    assert before == (
        lvis.eval.LVISEval.accumulate, lvis_evaluation._evaluate_predictions_on_lvis
    )  # fmt: skip
    assert lvis.eval.np is np


def test_the_self_test_sees_a_broken_package(monkeypatch):
    assert one_box_ap() == pytest.approx(
        {"Detectron2's LVISEvaluator": 100, "lvis-api": 100, "hotcoco": 100}
    )
    import lvis.eval

    def broken(self):
        raise AttributeError("np.float")

    monkeypatch.setattr(lvis.eval.LVISEval, "accumulate", broken)
    with pytest.raises(AttributeError, match="np.float"):
        one_box_ap()
