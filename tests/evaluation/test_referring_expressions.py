"""Precision of referring expressions: golden numbers by both overlaps, ties, wrong predictions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from ovd_d2.errors import OVDError
from ovd_d2.evaluation.referring_expressions import (
    NEVER,
    ExpressionTarget,
    ReferringExpressionEvaluator,
    best_first,
    expression_targets,
    first_right_box,
    precision_of_expressions,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "evaluators"
EXPECTED = json.loads((GOLDEN / "refexp.json").read_text())


@pytest.fixture(scope="module")
def arrays():
    return dict(np.load(GOLDEN / "refexp_predictions.npz"))


@pytest.fixture(scope="module")
def targets():
    content = json.loads((GOLDEN / "refexp_gt.json").read_text())
    dataset = {image["id"]: image["dataset_name"] for image in content["images"]}
    found = {}
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        box = [x, y, x + width, y + height]
        found[annotation["image_id"]] = ExpressionTarget(box, dataset[annotation["image_id"]])
    return found


def output(boxes, scores):
    found = Instances((600, 600))
    found.pred_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.as_tensor(scores, dtype=torch.float32)
    return {"instances": found}


def predictions(arrays):
    for image_id in dict.fromkeys(arrays["image_id"].tolist()):
        rows = arrays["image_id"] == image_id
        boxes, scores = (torch.from_numpy(arrays[k][rows]) for k in ("boxes_xyxy", "scores"))
        yield image_id, boxes, scores


def test_golden_best_boxes(arrays):
    best = {i: best_first(boxes, scores)[0] for i, boxes, scores in predictions(arrays)}
    for image_id, box in zip(arrays["best_image_id"], arrays["best_box_per_image"], strict=True):
        np.testing.assert_array_equal(best[int(image_id)], box)


@pytest.mark.parametrize(
    "case, overlap, least, ranks",
    [
        ("mdetr_and_glip_giou_0.5", "giou", 0.5, (1, 5, 10)),
        ("mdetr_giou_0.7_k_1_2_3", "giou", 0.7, (1, 2, 3)),
        ("mmdet_3.3.0_iou_0.5", "iou", 0.5, (1, 5, 10)),
    ],
)
def test_golden(case, overlap, least, ranks, arrays, targets):
    found = {
        image_id: first_right_box(
            best_first(boxes, scores), targets[image_id].box, overlap=overlap, min_overlap=least
        )
        for image_id, boxes, scores in predictions(arrays)
    }
    precision = precision_of_expressions(found, targets, ranks)
    assert precision.keys() == EXPECTED[case].keys()
    for dataset, expected in EXPECTED[case].items():
        assert [*precision[dataset].values()] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "overlap, case", [("iou", "mmdet_3.3.0_iou_0.5"), ("giou", "mdetr_and_glip_giou_0.5")]
)
def test_the_evaluator_gives_the_golden_numbers(overlap, case, arrays, targets, monkeypatch):
    evaluators = [ReferringExpressionEvaluator(targets, overlap=overlap) for _ in range(2)]
    for number, (image_id, boxes, scores) in enumerate(predictions(arrays)):
        evaluators[number % 2].process([{"image_id": image_id}], [output(boxes, scores)])
    with pytest.raises(OVDError, match="57 of 114 expressions have no prediction"):
        evaluators[0].evaluate()
    monkeypatch.setattr(
        "detectron2.utils.comm.gather", lambda data, dst=0: [data, evaluators[1]._found]
    )
    metrics = evaluators[0].evaluate()["refexp"]
    expected = {
        f"P@{k}_{dataset}": 100 * value
        for dataset, values in EXPECTED[case].items()
        for k, value in zip((1, 5, 10), values, strict=True)
    }
    assert metrics == pytest.approx(expected, abs=1e-9)


def test_one_data_set_no_detections_and_a_second_prediction():
    targets = {1: ExpressionTarget([0, 0, 20, 10]), 2: ExpressionTarget([0, 0, 5, 5])}
    evaluator = ReferringExpressionEvaluator(targets, distributed=False)
    good, bad = output([[0, 0, 10, 10]], [0.1]), output([[50, 50, 60, 60]], [1.0])
    inputs = [{"image_id": 1}, {"image_id": 2}, {"image_id": 1}]
    evaluator.process(inputs, [good, output([], []), bad])
    assert evaluator.evaluate() == {"refexp": {"P@1": 50.0, "P@5": 50.0, "P@10": 50.0}}


def test_the_overlap_of_exactly_half_and_the_order_of_equal_scores():
    half = torch.tensor([[0.0, 0, 10, 10]])
    assert (
        first_right_box(half, [0, 0, 20, 10])
        == 0
        == first_right_box(half, [0, 0, 20, 10], overlap="giou")
    )
    assert first_right_box(half[:0], [0, 0, 20, 10]) == NEVER
    boxes = torch.tensor([[1.0, 5, 9, 9], [2, 1, 9, 9], [2, 3, 8, 9], [0, 0, 1, 1]])
    order = best_first(boxes, torch.tensor([0.5, 0.5, 0.5, 0.6]))
    assert order.tolist() == boxes[[3, 2, 1, 0]].tolist()


def test_wrong_input_is_one_sentence():
    record = {"image_id": 1, "phrases": [{"boxes": [[0, 0, 1, 1]]}], "dataset_name": "refcoco"}
    assert expression_targets([record]) == {1: ExpressionTarget([0, 0, 1, 1], "refcoco")}
    with pytest.raises(OVDError, match="Two expressions have the image_id 1"):
        expression_targets([record, record])
    for phrases in ([], [{"boxes": []}], record["phrases"] * 2):
        with pytest.raises(OVDError, match="has not one phrase with one box"):
            expression_targets([{**record, "phrases": phrases}])
    with pytest.raises(OVDError, match="targets is empty"):
        ReferringExpressionEvaluator({})
    with pytest.raises(OVDError, match="overlap is 'diou': use one of iou, giou"):
        ReferringExpressionEvaluator(expression_targets([record]), overlap="diou")
    evaluator = ReferringExpressionEvaluator(expression_targets([record]))
    with pytest.raises(OVDError, match="image_id 2 is not among the targets"):
        evaluator.process([{"image_id": 2}], [output([], [])])
