"""AP50 and R50 of boxes without classes: the public script's numbers, loops, any detector."""

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from ovd_d2.config import add_ovd_config
from ovd_d2.engine.dataset_vocabulary import vocabulary_for
from ovd_d2.errors import OVDError
from ovd_d2.evaluation import ClassAgnosticEvaluator, build_evaluator, check_evaluator
from ovd_d2.evaluation.class_agnostic import NAME, Image, area_under, curve, overlaps
from ovd_d2.language import Vocabulary

GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden" / "mavl" / "eval.npz"))
CASES = sorted(key[: -len(".ap")] for key in GOLDEN if key.endswith(".ap"))
DATASET = "test_class_agnostic"


def golden_images():
    area = float(GOLDEN["image_size_wh"].prod())
    return [
        Image(
            GOLDEN[f"img{i}.det_boxes"].astype(float), GOLDEN[f"img{i}.det_scores"].astype(float),
            GOLDEN[f"img{i}.gt_boxes"].astype(float).reshape(-1, 4), area,
        )
        for i in range(5)
    ]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_public_script_s_numbers(case):
    kind, size, topk, iou, digit = case.split(".")
    topk = int(topk.removeprefix("top"))
    threshold = float(f"{iou.removeprefix('iou')}.{digit}")
    images = golden_images()
    found = curve(images, topk=topk, threshold=threshold, size=size, count_empty=kind == "voc")
    assert found.average_precision == pytest.approx(float(GOLDEN[f"{case}.ap"]), rel=1e-6)
    assert found.last_recall == pytest.approx(float(GOLDEN[f"{case}.recall"]), rel=1e-6)
    assert found.precision[-1] == pytest.approx(float(GOLDEN[f"{case}.precision"]), rel=1e-6)
    mean = np.mean([min(len(image.boxes), topk) for image in images])
    assert mean == pytest.approx(float(GOLDEN[f"{case}.avg_dets"]))
    if kind == "voc" and f"{case}.recall_curve" in GOLDEN:  # the other repeats points
        np.testing.assert_allclose(found.recall, GOLDEN[f"{case}.recall_curve"], rtol=1e-6)
        np.testing.assert_allclose(found.precision, GOLDEN[f"{case}.precision_curve"], rtol=1e-6)


def test_there_are_cases_of_both_kinds_and_all_sizes():
    words = {word for case in CASES for word in case.split(".")}
    assert {"coco", "voc", "all", "small", "medium", "large", "top10", "top50"} <= words


def test_the_area():
    recall, precision = GOLDEN["voc_ap.in.recall"], GOLDEN["voc_ap.in.precision"]
    assert area_under(recall, precision) == pytest.approx(float(GOLDEN["voc_ap.out"]), rel=1e-6)


def plain_metrics(images, topk, threshold):
    """AP and recall by loops over single detections."""
    entries, number = [], 0
    for k, (boxes, scores, objects) in enumerate(images):
        number += len(objects)
        order = sorted(range(len(boxes)), key=lambda i: -scores[i])[:topk]
        entries += [(-scores[i], k, i) for i in order]
    taken, hits, points = set(), 0, []
    for seen, (_, k, i) in enumerate(sorted(entries), start=1):
        boxes, _, objects = images[k]
        best, which = -1.0, None
        for g, (x0, y0, x1, y1) in enumerate(objects):
            a, b, c, d = boxes[i]
            w, h = min(c, x1) - max(a, x0) + 1, min(d, y1) - max(b, y0) + 1
            shared = max(w, 0) * max(h, 0)
            total = (c - a + 1) * (d - b + 1) + (x1 - x0 + 1) * (y1 - y0 + 1) - shared
            if shared / total > best:
                best, which = shared / total, g
        if best > threshold and (k, which) not in taken:
            taken.add((k, which))
            hits += 1
        points.append((hits / number, hits / seen))
    area = before = 0.0
    for n, (recall, _) in enumerate(points):
        area += (recall - before) * max(p for _, p in points[n:])
        before = recall
    return area, points[-1][0]


@pytest.mark.parametrize("seed", range(4))
def test_loops_over_single_detections(seed):
    rng = np.random.default_rng(seed)

    def boxes(n):
        first = rng.integers(0, 30, (n, 2))
        return np.concatenate([first, first + rng.integers(5, 30, (n, 2))], axis=1).astype(float)

    images = []
    for _ in range(4):
        n = int(rng.integers(1, 12))
        images.append((boxes(n), rng.permutation(1000)[:n] / 1000, boxes(int(rng.integers(1, 5)))))
    found = curve([Image(*one, 3600.0) for one in images], topk=6, threshold=0.3)
    area, recall = plain_metrics(images, 6, 0.3)
    assert (found.average_precision, found.last_recall) == pytest.approx((area, recall))


def test_exactly_half_is_not_enough():
    """Widths count pixels: 10 of 20 columns are half."""
    objects = np.array([[0.0, 0, 19, 9]])
    half, more = np.array([[0.0, 0, 9, 9]]), np.array([[0.0, 0, 10, 9]])
    assert overlaps(half, objects)[0, 0] == 0.5
    for boxes, recall in ((half, 0), (more, 1)):
        assert curve([Image(boxes, np.ones(1), objects, 400.0)]).last_recall == recall


def test_nothing_found_and_nothing_there():
    none = np.zeros((0, 4))
    assert curve([]).average_precision == curve([]).last_recall == 0
    there = Image(none, np.zeros(0), np.array([[0.0, 0, 9, 9]]), 100.0)
    assert curve([there]).average_precision == 0
    empty = Image(np.array([[0.0, 0, 9, 9]]), np.ones(1), none, 100.0)
    assert len(curve([empty], count_empty=False).recall) == 0
    assert curve([empty]).precision.tolist() == [0]


# The evaluator.


def record(image_id, boxes, **more):
    annotations = [
        {"category_id": k % 3, "bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, **more}
        for k, box in enumerate(boxes)
    ]
    size = {"file_name": f"{image_id}.jpg", "height": 100, "width": 100}
    return {"image_id": image_id, "annotations": annotations, **size}


def found(boxes, scores):
    result = Instances((100, 100))
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    result.scores = torch.tensor(scores, dtype=torch.float32)
    result.pred_classes = torch.zeros(len(scores), dtype=torch.int64)
    return {"instances": result}


@pytest.fixture
def dataset():
    def register(records, **metadata):
        remove()
        DatasetCatalog.register(DATASET, lambda: records)
        MetadataCatalog.get(DATASET).set(thing_classes=["a", "b", "c"], **metadata)
        return DATASET

    def remove():
        if DATASET in DatasetCatalog:
            DatasetCatalog.remove(DATASET)
            MetadataCatalog.remove(DATASET)

    yield register
    remove()


def test_by_hand(dataset, caplog):
    """Three objects: a large one found, a small one found behind a miss, a small one missed."""
    caplog.set_level(logging.INFO)
    name = dataset([
        record("x", [(0, 0, 60, 60), (80, 80, 10, 10)]),
        record("y", [(10, 10, 15, 15)]),
        record("z", [(0, 0, 5, 5)], iscrowd=1),
    ])  # fmt: skip
    evaluator = ClassAgnosticEvaluator(name, topk=2, distributed=False)
    outputs = [
        found([[0, 0, 60, 60], [30, 0, 40, 9], [80, 80, 90, 90]], [0.9, 0.3, 0.5]),
        found([[70, 10, 90, 30]], [0.7]),
        found([], []),
    ]
    evaluator.process(DatasetCatalog.get(name), outputs)
    got = evaluator.evaluate()[NAME]
    assert got["R50"] == pytest.approx(200 / 3)
    assert got["AP50"] == pytest.approx(100 * (1 / 3 + 1 / 3 * 2 / 3))
    assert got["R50_large"] == 100 and got["R50_small"] == 50
    assert math.isnan(got["AP50_medium"]) and math.isnan(got["R50_medium"])
    assert got["boxes"] == 1.0  # of three detections two count in the first image
    assert "whatever their classes" in caplog.text


def test_an_rpn_is_a_detector_too(dataset):
    name = dataset([record(1, [(0, 0, 50, 50)])])
    evaluator = ClassAgnosticEvaluator(name, distributed=False)
    proposals = Instances((100, 100))
    proposals.proposal_boxes = Boxes(torch.tensor([[0.0, 0, 50, 50]]))
    proposals.objectness_logits = torch.tensor([-3.0])
    evaluator.process(DatasetCatalog.get(name), [{"proposals": proposals}])
    assert evaluator.evaluate()[NAME]["AP50"] == 100


def test_what_is_refused(dataset):
    name = dataset([record(1, [(0, 0, 50, 50)]), record(2, [])])
    evaluator = ClassAgnosticEvaluator(name, distributed=False)
    with pytest.raises(OVDError, match="image_id 7 is not of data set"):
        evaluator.process([{"image_id": 7}], [found([], [])])
    evaluator.process(DatasetCatalog.get(name)[:1], [found([], [])])
    with pytest.raises(OVDError, match="1 of 2 images .* image_id 2: predict all of it"):
        evaluator.evaluate()
    name = dataset([{"image_id": 1}])
    with pytest.raises(OVDError, match="no annotations.* TEST.CLASS_AGNOSTIC.ENABLED False"):
        ClassAgnosticEvaluator(name)


class Detector(nn.Module):
    finds_objects = True

    def __init__(self):
        super().__init__()
        self.vocabulary = Vocabulary(("before",))

    def set_vocabulary(self, vocabulary):
        self.vocabulary = vocabulary


def test_the_config_decides(dataset, tmp_path):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    records = [record(1, [(0, 0, 50, 50)]), record(2, [])]
    name = dataset(records, evaluator_type="sem_seg")
    cfg.TEST.CLASS_AGNOSTIC.ENABLED = True
    with pytest.raises(OVDError, match="TEST.CLASS_AGNOSTIC is for lvis, .* is for sem_seg"):
        check_evaluator(cfg, name)
    for kind, misses in (("pascal_voc", True), ("coco_ovd", False)):
        name = dataset(records, evaluator_type=kind)
        cfg.TEST.CLASS_AGNOSTIC.ONLY, cfg.TEST.CLASS_AGNOSTIC.TOPK = True, 1
        evaluator = build_evaluator(cfg, name)
        assert type(evaluator) is ClassAgnosticEvaluator
        wrong = found([[0, 0, 9, 9]], [0.9])  # in the image without objects
        evaluator.process(records, [found([[0, 0, 50, 50], [0, 0, 1, 1]], [0.8, 0.7]), wrong])
        assert evaluator.evaluate()[NAME]["AP50"] == (50 if misses else 100)
        assert evaluator.evaluate()[NAME]["boxes"] == 1
    cfg.TEST.CLASS_AGNOSTIC.ONLY = False
    cfg.TEST.PRESENCE.ENABLED = True
    model = Detector()
    with vocabulary_for(cfg, model, name):
        assert list(model.vocabulary.names) == ["a", "b", "c"]
    cfg.TEST.CLASS_AGNOSTIC.ONLY = True
    with vocabulary_for(cfg, model, name):
        assert model.vocabulary is None
    assert model.vocabulary.names == ("before",)
    model.finds_objects = None  # asks for names alone
    with vocabulary_for(cfg, model, name):
        assert list(model.vocabulary.names) == ["a", "b", "c"]


def test_beside_the_data_set_s_own_evaluator(dataset, monkeypatch, tmp_path):
    from ovd_d2.evaluation import build

    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.TEST.CLASS_AGNOSTIC.ENABLED = True
    name = dataset([record(1, [(0, 0, 50, 50)])], evaluator_type="pascal_voc")
    monkeypatch.setattr(build, "PascalVOCDetectionEvaluator", lambda _: "own")
    evaluator = build_evaluator(cfg, name)
    assert isinstance(evaluator, DatasetEvaluators)
    own, agnostic = evaluator._evaluators
    assert own == "own" and isinstance(agnostic, ClassAgnosticEvaluator)
