"""Presence: by hand, against a plain transcription, over processes, by the config."""

import logging
import math

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import Boxes, BoxMode, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd_d2.config import add_ovd_config
from ovd_d2.errors import OVDError
from ovd_d2.evaluation import PresenceEvaluator, build_evaluator, check_evaluator
from ovd_d2.evaluation.presence import (
    GIVEN,
    SWEPT,
    best_threshold,
    class_counts,
    matthews,
    presence_metrics,
)
from ovd_d2.evaluation.presence_counts import compare, greedy_matches, image_truth, joined

NAMES = ["ant", "bee", "cow"]
DATASET = "test_presence"


def record(image_id, rows, **lists):
    """``rows`` of (class, x, width, crowd); every box is 10 high."""
    annotations = [
        {"category_id": k, "bbox": [x, 0, width, 10], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": c}
        for k, x, width, c in rows
    ]
    size = {"file_name": f"{image_id}.jpg", "height": 20, "width": 200}
    return {"image_id": image_id, "annotations": annotations, **size, **lists}


def found(rows):
    """(class, x, width, score)."""
    result = Instances((20, 200))
    boxes = [[x, 0, x + width, 10] for _, x, width, _ in rows]
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    result.pred_classes = torch.tensor([row[0] for row in rows], dtype=torch.int64)
    result.scores = torch.tensor([row[3] for row in rows], dtype=torch.float32)
    return {"instances": result}


@pytest.fixture
def dataset():
    """Registers records under one name, with whatever metadata."""

    def register(records, **metadata):
        remove()
        DatasetCatalog.register(DATASET, lambda: records)
        MetadataCatalog.get(DATASET).set(thing_classes=NAMES, **metadata)
        return DATASET

    def remove():
        if DATASET in DatasetCatalog:
            DatasetCatalog.remove(DATASET)
            MetadataCatalog.remove(DATASET)

    yield register
    remove()


def evaluated(name, outputs, **options):
    evaluator = PresenceEvaluator(name, distributed=False, **options)
    records = DatasetCatalog.get(name)
    evaluator.process(records, [found(rows) for rows in outputs])
    return evaluator.evaluate()


def test_by_hand(dataset):
    """Image 1: an ant found, a bee missed, a cow said by mistake. Image 2: two ants, one found and
    one box too many; nothing else."""
    name = dataset([
        record(1, [(0, 0, 10, 0), (1, 50, 10, 0)]),
        record(2, [(0, 0, 10, 0), (0, 100, 10, 0)]),
    ])  # fmt: skip
    outputs = [
        [(0, 1, 10, 0.9), (2, 80, 10, 0.6), (1, 50, 10, 0.4)],
        [(0, 0, 10, 0.8), (0, 1, 10, 0.7), (0, 101, 10, 0.3)],
    ]
    got = evaluated(name, outputs, threshold=0.5)[GIVEN]
    # 6 pairs: yes right 2 (ants), yes wrong 1 (cow), no wrong 1 (bee), no right 2
    mcc = (2 * 2 - 1 * 1) / math.sqrt(3 * 3 * 3 * 3)
    assert got["threshold"] == 0.5 and got["IL_MCC"] == pytest.approx(mcc)
    assert got["IL_precision"] == got["IL_recall"] == pytest.approx(200 / 3)
    assert got["IL_F1"] == pytest.approx(100 * 4 / 6)
    # boxes: 2 found, 2 missed, 2 wrong of which one in an image that has the name
    assert got["F1_50"] == pytest.approx(100 * 4 / (4 + 2 + 2))
    assert got["pmF1_50"] == pytest.approx(100 * 4 / (4 + 1 + 2))
    assert got["cgF1_50"] == pytest.approx(got["pmF1_50"] * mcc)
    assert got["IL_F1_names"] == pytest.approx(50.0)  # ant 1, bee 0; nobody has a cow
    assert {k: v for k, v in got.items() if "-" in k} == {"IL_F1-ant": 100.0, "IL_F1-bee": 0.0}
    at_all = evaluated(name, outputs, threshold=0.3)[GIVEN]
    assert at_all["IL_recall"] == 100.0
    assert at_all["F1_50"] == pytest.approx(100 * 8 / (8 + 2))


def test_nothing_detected_and_nothing_there(dataset, caplog):
    name = dataset([record(1, [(0, 0, 10, 0)]), record(2, [])])
    got = evaluated(name, [[], []], threshold=0.5)[GIVEN]
    assert (got["IL_MCC"], got["IL_recall"], got["F1_50"], got["cgF1_50"]) == (0, 0, 0, 0)
    assert math.isnan(got["IL_precision"])
    empty = dataset([record(1, []), record(2, [])])
    with caplog.at_level(logging.WARNING):
        got = evaluated(empty, [[(0, 0, 10, 0.9)], []], threshold=0.5)[GIVEN]
    assert math.isnan(got["IL_MCC"]) and math.isnan(got["cgF1_50"]) and math.isnan(got["pmF1_50"])
    assert (got["IL_precision"], got["F1_50"]) == (0, 0)
    assert "is known to be there" in caplog.text


def test_only_known_pairs_count(dataset):
    """LVIS: cows are known to be absent from image 1; of bees nothing is known."""
    lists = {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
    name = dataset([record(1, [(0, 0, 10, 0)], **lists)])
    boxes = [(0, 0, 10, 0.9), (1, 40, 10, 0.9), (2, 80, 10, 0.9)]
    got = evaluated(name, [boxes], threshold=0.5)[GIVEN]
    assert got["IL_precision"] == 50.0  # the bee is neither right nor wrong
    assert got["F1_50"] == pytest.approx(100 * 2 / 3)
    assert evaluated(name, [boxes[:2]], threshold=0.5)[GIVEN]["cgF1_50"] == 100.0
    ids = {7: 0, 9: 1, 11: 2}
    other = dataset([record(1, [(0, 0, 10, 0)], neg_category_ids=[11])],
                    thing_dataset_id_to_contiguous_id=ids)  # fmt: skip
    assert evaluated(other, [boxes], threshold=0.5)[GIVEN]["IL_precision"] == 50.0
    with pytest.raises(
        OVDError, match="neg_category_ids of the image with image_id 1 has the id 5"
    ):
        image_truth(record(1, [], neg_category_ids=[5]), 3, ids)


def test_more_objects_than_boxes(dataset):
    lists = {"neg_category_ids": [2, 3], "not_exhaustive_category_ids": [1]}
    name = dataset([record(1, [(0, 0, 10, 0), (0, 30, 10, 0)], **lists)])
    boxes = [(0, 0, 10, 0.9), (0, 60, 10, 0.9), (0, 90, 10, 0.9)]
    got = evaluated(name, [boxes], threshold=0.5)[GIVEN]
    assert got["pmF1_50"] == got["F1_50"] == pytest.approx(100 * 2 / 3)  # one found, one missed
    assert got["IL_MCC"] == 1.0
    elsewhere = evaluated(name, [boxes[1:]], threshold=0.5)[GIVEN]
    assert (elsewhere["IL_MCC"], elsewhere["pmF1_50"]) == (1.0, 0.0)


def test_crowds(dataset):
    """A crowd of ants: they are there, no box of them is asked for, none in it is wrong."""
    name = dataset([record(1, [(0, 0, 50, 1)]), record(2, [(1, 0, 10, 0)])])
    inside = [[(0, 45, 10, 0.9), (0, 0, 10, 0.9)], [(1, 0, 10, 0.9)]]
    got = evaluated(name, inside, threshold=0.5)[GIVEN]
    assert (got["cgF1_50"], got["F1_50"]) == (100.0, 100.0)
    outside = [[(0, 46, 10, 0.9)], [(1, 0, 10, 0.9)]]  # less than half of it inside
    assert evaluated(name, outside, threshold=0.5)[GIVEN]["F1_50"] == pytest.approx(200 / 3)
    of_others = [[(1, 0, 10, 0.9)], []]
    got = evaluated(name, of_others, threshold=0.5)[GIVEN]
    assert (got["IL_recall"], got["F1_50"]) == (0.0, 0.0)


def test_an_object_is_found_once():
    overlap = np.array([[0.6, 0.0], [0.9, 0.0], [0.4, 0.7], [0.0, 0.49]])
    assert greedy_matches(overlap).tolist() == [True, False, True, False]
    assert greedy_matches(np.zeros((2, 0))).tolist() == [False, False]
    assert greedy_matches(np.zeros((0, 3))).tolist() == []


def test_swept_thresholds_are_called_what_they_are(dataset, caplog):
    name = dataset([record(1, [(0, 0, 10, 0)]), record(2, [(1, 0, 10, 0)])])
    outputs = [[(0, 0, 10, 0.305), (2, 0, 10, 0.2)], [(1, 0, 10, 0.6), (0, 9, 9, 0.1)]]
    with caplog.at_level(logging.INFO):
        results = evaluated(name, outputs)
    assert list(results) == [SWEPT]
    assert results[SWEPT]["threshold"] == 0.21 and results[SWEPT]["cgF1_50"] == 100.0
    assert "the best on this very data, so optimistic" in caplog.text


def test_base_novel_and_classes_that_do_not_count(dataset):
    records = [record(1, [(0, 0, 10, 0)]), record(2, [(1, 0, 10, 0)])]
    outputs = [[(0, 0, 10, 0.9), (2, 40, 10, 0.9)], []]
    name = dataset(records, is_novel=[False, True, True], is_scored=[True, True, False])
    got = evaluated(name, outputs, threshold=0.5)[GIVEN]
    assert got["IL_precision"] == 100.0  # the cow is none of the scored
    assert got["IL_F1_base"] == 100.0 and got["IL_F1_novel"] == 0.0
    assert got["cgF1_50_base"] == 100.0


def test_what_is_refused(dataset):
    name = dataset([record(1, []), record(2, [])])
    with pytest.raises(OVDError, match="threshold is 2"):
        PresenceEvaluator(name, threshold=2)
    evaluator = PresenceEvaluator(name, threshold=0.5, distributed=False)
    with pytest.raises(OVDError, match="image_id 3 is not of data set 'test_presence'"):
        evaluator.process([{"image_id": 3}], [found([])])
    with pytest.raises(OVDError, match="predicts class 3 but data set"):
        evaluator.process([{"image_id": 1}], [found([(3, 0, 10, 0.9)])])
    evaluator.process([{"image_id": 1}], [found([])])
    with pytest.raises(OVDError, match="1 of 2 images of 'test_presence' have no prediction"):
        evaluator.evaluate()
    bare = dataset([{"image_id": 1, "file_name": "1.jpg"}])
    with pytest.raises(OVDError, match="has no annotations"):
        PresenceEvaluator(bare)


def test_results_of_several_processes(dataset, monkeypatch):
    """The main process joins all; an image that two have counts once, the others return nothing."""
    from detectron2.utils import comm

    records = [record(1, [(0, 0, 10, 0)]), record(2, [(1, 0, 10, 0)])]
    name = dataset(records)
    outputs = [[(0, 0, 10, 0.9)], [(2, 0, 10, 0.9)]]
    whole = evaluated(name, outputs, threshold=0.5)
    parts = []
    for chosen in ([0], [1, 0]):
        evaluator = PresenceEvaluator(name, threshold=0.5)
        of_part = outputs if not parts else [[], outputs[1]]
        evaluator.process([records[i] for i in chosen], [found(of_part[i]) for i in chosen])
        parts.append(evaluator)
    monkeypatch.setattr(comm, "gather", lambda data, dst=0: [p._found for p in parts])
    assert parts[0].evaluate() == {GIVEN: pytest.approx(whole[GIVEN])}
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert parts[1].evaluate() == {}


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    both = width * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def inside(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    return width * max(0.0, min(a[3], b[3]) - max(a[1], b[1])) / ((a[2] - a[0]) * (a[3] - a[1]))


def plainly(images, threshold):
    """Pair after pair; images are (truth rows, detections, negatives or None, incomplete)."""
    tp = fp = fp_positive = fn = 0
    answers = {(said, there): 0 for said in (True, False) for there in (True, False)}
    for truth, detections, negatives, incomplete in images:
        for k in range(3):
            own = [row for row in truth if row[0] == k]
            if not own and negatives is not None and k not in negatives:
                continue
            shown = sorted((d for d in detections if d[0] == k and d[2] >= threshold),
                           key=lambda d: -d[2])  # fmt: skip
            answers[bool(shown), bool(own)] += 1
            free = [row for row in own if not row[2]]
            fn += len(free)
            for _, box, _ in shown:
                match = max(free, key=lambda row: iou(box, row[1]), default=None)
                if match is not None and iou(box, match[1]) >= 0.5:
                    free.remove(match)
                    tp, fn = tp + 1, fn - 1
                elif k in incomplete or any(r[2] and inside(box, r[1]) >= 0.5 for r in own):
                    continue
                else:
                    fp += 1
                    fp_positive += bool(own)
    yes_right, yes_wrong = answers[True, True], answers[True, False]
    no_right, no_wrong = answers[False, False], answers[False, True]

    def ratio(a, b):
        return a / b if b else math.nan

    mcc = math.nan
    if yes_right + no_wrong and yes_wrong + no_right:
        product = ((yes_right + yes_wrong) * (yes_right + no_wrong)
                   * (no_right + yes_wrong) * (no_right + no_wrong))  # fmt: skip
        mcc = (yes_right * no_right - yes_wrong * no_wrong) / math.sqrt(product) if product else 0.0
    positive = ratio(2 * tp, 2 * tp + fp_positive + fn)
    return {
        "cgF1_50": 100 * positive * mcc,
        "pmF1_50": 100 * positive,
        "IL_MCC": mcc,
        "IL_F1": 100 * ratio(2 * yes_right, 2 * yes_right + yes_wrong + no_wrong),
        "IL_precision": 100 * ratio(yes_right, yes_right + yes_wrong),
        "IL_recall": 100 * ratio(yes_right, yes_right + no_wrong),
        "F1_50": 100 * ratio(2 * tp, 2 * tp + fp + fn),
    }


BOX = st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(3, 7), st.integers(3, 7)).map(
    lambda r: (float(r[0]), float(r[1]), float(r[0] + r[2]), float(r[1] + r[3]))
)
CLASS = st.integers(0, 2)


@st.composite
def images(draw):
    truth = draw(st.lists(st.tuples(CLASS, BOX, st.booleans()), max_size=4))
    boxes = draw(st.lists(st.tuples(CLASS, BOX), max_size=6))
    scores = draw(st.permutations([0.1, 0.25, 0.4, 0.55, 0.7, 0.85]))
    detections = [(k, box, score) for (k, box), score in zip(boxes, scores)]
    negatives = draw(st.none() | st.sets(CLASS))
    return truth, detections, negatives, draw(st.sets(CLASS))


@settings(max_examples=250, deadline=None)
@given(st.lists(images(), min_size=1, max_size=4), st.sampled_from([0.1, 0.3, 0.5, 0.9]))
def test_as_the_plain_transcription_says(data, threshold):
    parts = []
    for truth, detections, negatives, incomplete in data:
        lists = {"not_exhaustive_category_ids": [k + 1 for k in incomplete]}
        if negatives is not None:
            lists["neg_category_ids"] = [k + 1 for k in negatives]
        rows = [
            {"category_id": k, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": int(crowd)}
            for k, box, crowd in truth
        ]
        known = image_truth({"image_id": 1, "annotations": rows, **lists}, 3)
        classes, boxes, scores = zip(*detections) if detections else ((), (), ())
        parts.append(compare(known, list(boxes), list(scores), list(classes)))
    counts = class_counts(joined(parts, 3), threshold)
    got = presence_metrics(counts, np.ones(3, dtype=bool))
    got.pop("IL_F1_names")
    assert got == pytest.approx(plainly(data, threshold), nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(images(), min_size=1, max_size=3))
def test_no_threshold_is_better_than_the_best(data):
    parts = []
    for truth, detections, _, _ in data:
        rows = [
            {"category_id": k, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS} for k, box, _ in truth
        ]
        known = image_truth({"image_id": 1, "annotations": rows}, 3)
        classes, boxes, scores = zip(*detections) if detections else ((), (), ())
        parts.append(compare(known, list(boxes), list(scores), list(classes)))
    comparison, every = joined(parts, 3), np.ones(3, dtype=bool)
    best = presence_metrics(class_counts(comparison, best_threshold(comparison, every)), every)
    by = "F1_50" if math.isnan(best["IL_MCC"]) else "cgF1_50"
    for threshold in (0.05, 0.15, 0.3, 0.5, 0.6, 0.8, 0.95):
        other = presence_metrics(class_counts(comparison, threshold), every)[by]
        assert math.isnan(other) or other <= best[by] + 1e-9


def test_the_correlation_of_large_counts():
    assert matthews(10**7, 10**6, 10**10, 10**6) == pytest.approx(0.909, abs=1e-3)
    assert matthews(3, 0, 0, 0) != matthews(3, 0, 0, 0)  # nan
    assert matthews(3, 4, 0, 0) == 0.0 and matthews(3, 0, 4, 0) == 1.0


def test_the_config_switches_it_on(dataset, tmp_path):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    records = [record(1, [(0, 0, 10, 0)])]
    voc = {"evaluator_type": "pascal_voc", "dirname": str(tmp_path), "split": "test", "year": 2012}
    name = dataset(records, is_novel=[True, False, False], **voc)
    cfg.TEST.PRESENCE.ENABLED = True
    cfg.TEST.PRESENCE.THRESHOLD = 0.25
    evaluator = build_evaluator(cfg, name)
    assert isinstance(evaluator, DatasetEvaluators)
    (presence,) = [e for e in evaluator._evaluators if isinstance(e, PresenceEvaluator)]
    assert presence._threshold == 0.25 and presence._novel.tolist() == [True, False, False]
    cfg.TEST.PRESENCE.THRESHOLD = -1.0
    assert build_evaluator(cfg, name)._evaluators[-1]._threshold is None
    cfg.TEST.PRESENCE.ENABLED = False
    assert not isinstance(build_evaluator(cfg, name), DatasetEvaluators)
    cfg.TEST.PRESENCE.ENABLED = True
    with pytest.raises(OVDError, match="TEST.PRESENCE is for lvis, .*is for sem_seg"):
        check_evaluator(cfg, dataset(records, evaluator_type="sem_seg"))
