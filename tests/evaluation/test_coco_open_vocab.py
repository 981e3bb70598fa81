"""COCOOpenVocabEvaluator: AP50 of base, novel and all classes in the generalised setting."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import verify_results
from detectron2.structures import Boxes, Instances

from ovd_d2.data.datasets import coco_ovd
from ovd_d2.errors import OVDError
from ovd_d2.evaluation import COCOOpenVocabEvaluator

GOLDEN = Path(__file__).parents[1] / "golden" / "evaluators"
METADATA = coco_ovd.coco_ovd_metadata()
CLASSES = METADATA["thing_classes"]
IDS = {c["name"]: c["id"] for c in coco_ovd.COCO_CATEGORIES if c["isthing"]}
BOX = [10.0, 10.0, 40.0, 40.0]
OTHER = [55.0, 55.0, 40.0, 40.0]
# image id: (class, box)
TRUTH = {
    1: [("person", BOX), ("cat", OTHER)],
    2: [("stop sign", BOX)],  # unused class only: not an evaluation image
    3: [("cat", BOX), ("stop sign", OTHER)],
    4: [("cup", BOX)],
    5: [],
}


def content():
    annotations = [
        {"image_id": image_id, "category_id": IDS[name], "bbox": box}
        for image_id, boxes in TRUTH.items()
        for name, box in boxes
    ]
    for i, annotation in enumerate(annotations, start=1):
        x, y, w, h = annotation["bbox"]
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotation.update(id=i, iscrowd=0, area=w * h, segmentation=[polygon])
    return {
        "info": {},
        "categories": [{"id": i, "name": n} for n, i in IDS.items()],
        "images": [{"id": i, "height": 100, "width": 100, "file_name": f"{i}.jpg"} for i in TRUTH],
        "annotations": annotations,
    }


@pytest.fixture
def register(tmp_path):
    names = []

    def _register(truth, **changes):
        name = f"test_coco_ovd_{len(names)}"
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(truth))
        DatasetCatalog.register(name, list)
        names.append(name)
        metadata = {k: v for k, v in {**METADATA, **changes}.items() if v is not None}
        MetadataCatalog.get(name).set(json_file=str(path), evaluator_type="coco_ovd", **metadata)
        return name

    yield _register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def instances(found, masks=False):
    """From (class name, box, score) triples."""
    result = Instances((100, 100))
    boxes = torch.tensor([box for _, box, _ in found]).reshape(-1, 4)
    result.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
    result.pred_classes = torch.tensor([CLASSES.index(n) for n, _, _ in found], dtype=torch.int64)
    result.scores = torch.tensor([float(s) for _, _, s in found])
    if masks:
        grid = torch.arange(100)
        corners = result.pred_boxes.tensor[:, :, None]
        columns = (grid >= corners[:, 0]) & (grid < corners[:, 2])
        lines = (grid >= corners[:, 1]) & (grid < corners[:, 3])
        result.pred_masks = lines[:, :, None] & columns[:, None, :]
    return result


def evaluate(name, predictions, **options):
    evaluator = COCOOpenVocabEvaluator(name, distributed=False, **options)
    evaluator.reset()
    for image_id, prediction in predictions.items():
        evaluator.process([{"image_id": image_id}], [{"instances": prediction}])
    return evaluator.evaluate()


def perfect(masks=False):
    return {
        i: instances([(n, b, 0.9) for n, b in TRUTH[i] if n in CLASSES], masks) for i in (1, 3, 4)
    }


def test_perfect_predictions(register):
    results = evaluate(register(content()), perfect(masks=True))
    for task in ("bbox", "segm"):
        for key in ("AP", "AP50", "AP_base", "AP_novel", "AP50_base", "AP50_novel"):
            assert results[task][key] == pytest.approx(100), key


def test_splits_by_hand(register):
    predictions = perfect()
    # The cat of image 3 is found as a keyboard (novel, no ground truth), the cup (novel) nowhere.
    predictions[3] = instances([("keyboard", BOX, 0.9)])
    predictions[4] = instances([])
    metrics = evaluate(register(content()), predictions)["bbox"]
    cat = 100 * 51 / 101  # one of two found: recall thresholds 0 to 0.5
    assert metrics["AP50_base"] == pytest.approx(100)
    assert metrics["AP50_novel"] == pytest.approx((cat + 0) / 2)
    assert metrics["AP50"] == pytest.approx((100 + cat + 0) / 3)
    assert metrics["AP-cat"] == pytest.approx(cat)
    assert math.isnan(metrics["AP-keyboard"])


def test_generalised_a_base_class_on_a_novel_object_is_a_false_positive(register):
    predictions = perfect()
    predictions[3] = instances([("cat", BOX, 0.9), ("person", BOX, 0.95)])
    metrics = evaluate(register(content()), predictions)["bbox"]
    assert metrics["AP50_base"] == pytest.approx(50)
    assert metrics["AP50_novel"] == pytest.approx(100)


def test_ap50_ignores_looser_thresholds_and_ap_does_not(register):
    predictions = perfect()
    # IoU 0.6: a hit at 0.50, 0.55 (and 0.60 by rounding or not), a miss above
    predictions[4] = instances([("cup", [10.0, 10.0, 40.0, 24.4], 0.9)])
    metrics = evaluate(register(content()), predictions)["bbox"]
    assert metrics["AP50_novel"] == pytest.approx(100)
    assert metrics["AP_novel"] == pytest.approx((100 + 30) / 2)


def test_agrees_with_detectron2_on_a_file_of_the_65_classes(register, tmp_path):
    from detectron2.evaluation import COCOEvaluator

    filtered = coco_ovd.read_coco_json(
        MetadataCatalog.get(register(content())).json_file,
        METADATA["thing_dataset_id_to_contiguous_id"],
    )
    assert [i["id"] for i in filtered["images"]] == [1, 3, 4]
    rng = np.random.default_rng(0)
    predictions = {}
    for i in (1, 3, 4):
        found = [(n, b, 0.5) for n, b in TRUTH[i] if n in CLASSES] * 3
        predictions[i] = instances(
            [(n, (np.array(b) + rng.normal(0, 4, 4)).tolist(), rng.random()) for n, b, _ in found]
        )
    parent = COCOEvaluator(register(filtered), distributed=False, use_fast_impl=False)
    parent.reset()
    for i, prediction in predictions.items():
        parent.process([{"image_id": i}], [{"instances": prediction}])
    expected = parent.evaluate()["bbox"]
    metrics = evaluate(register(content()), predictions)["bbox"]
    assert 0 < expected["AP"] < 100
    np.testing.assert_equal({k: metrics[k] for k in expected}, expected)


def test_no_novel_ground_truth_gives_nan(register):
    truth = content()
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] == IDS["person"]]
    metrics = evaluate(register(truth), {1: perfect()[1]})["bbox"]
    assert math.isnan(metrics["AP50_novel"]) and math.isnan(metrics["AP_novel"])
    assert metrics["AP50_base"] == metrics["AP50"] == pytest.approx(100)


def test_predicting_nothing_gives_nan_like_detectron2(register):
    metrics = evaluate(register(content()), {1: instances([]), 3: instances([])})["bbox"]
    assert metrics.keys() >= {"AP", "AP50", "AP50_base", "AP50_novel"}
    assert all(math.isnan(v) for v in metrics.values())


def test_more_than_a_hundred_detections_keep_the_best(register):
    predictions = perfect()
    rest = [("cat", [1.0, 1.0, 5.0, 5.0], 0.1 + i / 1000) for i in range(150)]
    predictions[3] = instances([("cat", BOX, 0.05), *rest])
    metrics = evaluate(register(content()), predictions)["bbox"]
    assert metrics["AP-cat"] == pytest.approx(100 * 51 / 101)  # that of image 3 is the 151st


def test_expected_results(register):
    results = evaluate(register(content()), perfect())
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP50_novel", 100.0, 1e-3]]
    assert verify_results(cfg, results)


def test_table(register, caplog):
    with caplog.at_level(logging.INFO, logger="ovd_d2"):
        evaluate(register(content()), perfect())
    lines = [m for m in caplog.messages if m.startswith("Results for bbox")][0].splitlines()[1:]
    assert len({len(line) for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["all", "base", "novel"]


def test_wrong_set_ups_are_one_sentence(register):
    name = register(content())
    evaluator = COCOOpenVocabEvaluator(name, distributed=False)
    evaluator.reset()
    wrong = instances([("person", BOX, 0.5)])
    wrong.pred_classes[:] = 79
    with pytest.raises(OVDError, match=f"predicts class 79 but data set '{name}' has 65 classes"):
        evaluator.process([{"image_id": 1}], [{"instances": wrong}])
    with pytest.raises(OVDError, match="no 'is_novel' in its metadata"):
        COCOOpenVocabEvaluator(register(content(), is_novel=None), distributed=False)
    with pytest.raises(OVDError, match="marks 1 classes in is_novel"):
        COCOOpenVocabEvaluator(register(content(), is_novel=[True]), distributed=False)
    broken = {k: v for k, v in content().items() if k != "categories"}
    with pytest.raises(OVDError, match="lacks the entry 'categories'"):
        COCOOpenVocabEvaluator(register(broken), distributed=False)
    with pytest.raises(OVDError, match="nothing to evaluate"):
        COCOOpenVocabEvaluator(register({**content(), "annotations": []}), distributed=False)
    with pytest.raises(OVDError, match="has 2 entries in is_scored for 65 classes"):
        COCOOpenVocabEvaluator(register(content(), is_scored=[True, False]), distributed=False)


def test_with_80_names_the_public_evaluators_numbers_come_out(register):
    """Detic's on the same annotations and predictions of all 80 classes: 15 of them compete and
    are not scored."""
    truth = json.loads((GOLDEN / "coco_ovd_instances.json").read_text())
    name = register(truth, **coco_ovd.coco_ovd_metadata(all_names=True))
    stored = np.load(GOLDEN / "coco_ovd_predictions.npz")
    predictions = {}
    path = MetadataCatalog.get(name).json_file
    ids = METADATA["thing_dataset_id_to_contiguous_id"]
    for image in coco_ovd.read_coco_json(path, ids)["images"]:  # those of the data set
        rows = stored["image_id"] == image["id"]
        found = Instances((image["height"], image["width"]))
        found.pred_boxes = Boxes(torch.from_numpy(stored["boxes_xyxy"][rows]))
        found.pred_classes = torch.from_numpy(stored["class_index_of_80"][rows].astype(np.int64))
        found.scores = torch.from_numpy(stored["scores"][rows])
        predictions[image["id"]] = found
    metrics = evaluate(name, predictions)["bbox"]
    assert sum(key.startswith("AP-") for key in metrics) == 65
    expected = json.loads((GOLDEN / "coco_ovd_detic.json").read_text())
    theirs = {"AP50-seen": "AP50_base", "AP50-unseen": "AP50_novel"}
    compared = 0
    for key, value in expected.items():
        if value is not None:  # of an unused class
            assert metrics[theirs.get(key, key)] == pytest.approx(value, abs=1e-9), key
            compared += 1
    assert compared >= 65 + 6


def test_two_protocols_differ_in_names_alone():
    """The same ids of base and novel classes; unused ones have no box, in training they are held
    out as novel ones are, in evaluation they are neither."""
    of_80 = coco_ovd.coco_ovd_metadata(all_names=True)
    scored = np.array(of_80["is_scored"])
    assert (len(scored), scored.sum(), len(CLASSES)) == (80, 65, 65)
    assert [n for n, s in zip(of_80["thing_classes"], scored) if s] == CLASSES
    novel = np.array(of_80["is_novel"])
    assert novel.sum() == 17 and not novel[~scored].any()
    in_training = np.array(coco_ovd.coco_ovd_metadata(all_names=True, train=True)["is_novel"])
    assert (in_training == (novel | ~scored)).all()
