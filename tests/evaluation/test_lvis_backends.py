"""hotcoco and lvis-api give the same precision and recall, on random and on hard data."""

import copy
import logging
import math

import numpy as np
import pycocotools.mask as mask_utils
import pytest

from ovd_d2.errors import OVDError
from ovd_d2.evaluation import lvis_backends
from ovd_d2.evaluation.lvis_backends import (
    BestOfEachCategory,
    average_precision,
    evaluate_lvis,
    has_ground_truth,
)

HEIGHT, WIDTH = 130, 150


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("lvis").setLevel(logging.ERROR)


def rle(mask):
    encoded = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def box_mask(x, y, w, h):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[max(round(y), 0) : max(round(y + h), 0), max(round(x), 0) : max(round(x + w), 0)] = 1
    return mask


def truth_segmentation(rng, x, y, w, h):
    """A polygon with fractional corners, several polygons, or uncompressed run lengths."""
    polygon = [x, y, x + w, y + rng.random(), x + w, y + h, x + w / 2, y + h + 1, x, y + h]
    kind = rng.integers(3)
    if kind == 0:
        return [polygon]
    if kind == 1:
        return [polygon, [x, y, x + 2 * w, y, x + 2 * w, y + h / 3]]
    flat = box_mask(x, y, w, h).flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def random_data(
    seed, *, images=8, classes=6, detections=40, hard=True, masks=False, annotated=None
):
    """LVIS ground truth and results: near misses, ties, wrong classes, federated lists.

    ``hard`` adds crowds, ignored and empty annotations, empty detections and tied scores;
    ``annotated`` limits the classes with ground truth.
    """
    rng = np.random.default_rng(seed)
    annotated = np.arange(1, classes + 1) if annotated is None else np.asarray(annotated)

    def random_box():
        return (*rng.uniform(0, 70, 2), *rng.uniform(1, 60, 2))

    truth = {
        "images": [],
        "annotations": [],
        "categories": [
            {"id": int(i), "name": f"class {i}", "frequency": "rcf"[i % 3]}
            for i in rng.permutation(classes) + 1
        ],
    }
    results = []
    for image_id in rng.permutation(images) + 1:
        image_id = int(image_id)
        lists = [(rng.choice(classes, min(classes, n), replace=False) + 1).tolist() for n in (2, 1)]
        truth["images"].append(
            {
                "id": image_id,
                "height": HEIGHT,
                "width": WIDTH,
                "neg_category_ids": lists[0],
                "not_exhaustive_category_ids": lists[1],
            }
        )
        boxes = []
        for _ in range(rng.integers(0, 7)):
            box, category = random_box(), int(rng.choice(annotated))
            annotation = {
                "id": len(truth["annotations"]) + 1,
                "image_id": image_id,
                "category_id": category,
                "bbox": [float(v) for v in box],
                "area": float(box[2] * box[3]),
                "segmentation": truth_segmentation(rng, *map(float, box)),
            }
            if hard:
                annotation["iscrowd"] = int(rng.random() < 0.2)
                annotation["ignore"] = int(rng.random() < 0.1)
                annotation["area"] *= rng.random() > 0.05
            truth["annotations"].append(annotation)
            boxes.append((category, box))
        for _ in range(rng.integers(0, detections + 1)):
            category, box = int(rng.integers(1, classes + 1)), random_box()
            if boxes and rng.random() < 0.7:
                near, box = boxes[rng.integers(len(boxes))]
                box = np.asarray(box) + rng.normal(0, 2, 4)
                category = near if rng.random() < 0.8 else category
            box = [*box[:2], *np.maximum(box[2:], 0 if hard else 1)]
            result = {
                "image_id": image_id,
                "category_id": category,
                "bbox": [float(v) for v in box],
                "score": float(np.round(rng.random(), 1 if hard else 9)),
            }
            if masks:
                result["segmentation"] = rle(box_mask(*box))
            results.append(result)
    return truth, results


def both(truth, results, iou_type="bbox", **options):
    before = copy.deepcopy((truth, results))
    found = [
        evaluate_lvis(truth, results, iou_type, backend=b, **options)
        for b in ("hotcoco", "lvis-api")
    ]
    assert (truth, results) == before, "the inputs were changed"
    return found


def assert_equal(a, b):
    assert a.category_ids == b.category_ids
    assert a.precision.shape == b.precision.shape == (10, 101, len(a.category_ids), 4)
    np.testing.assert_allclose(a.precision, b.precision, rtol=0, atol=1e-12)
    np.testing.assert_allclose(a.recall, b.recall, rtol=0, atol=1e-12)
    for area in lvis_backends.AREA_RANGES:
        np.testing.assert_allclose(
            average_precision(a, area=area), average_precision(b, area=area), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_backends_agree(seed, masks, hard):
    truth, results = random_data(seed, hard=hard, masks=masks)
    for iou_type in ("bbox", "segm") if masks else ("bbox",):
        for limit in (300, 5, -1):
            a, b = both(truth, results, iou_type, max_dets_per_image=limit)
            assert_equal(a, b)
            assert 0 < average_precision(a) < 100


def test_the_limit_per_image_cuts_and_agrees_above_300_detections():
    truth, results = random_data(1, images=3, detections=900, hard=False)
    per_image = np.bincount([r["image_id"] for r in results])
    assert per_image.max() > 600
    found = {}
    for limit in (10, 300, 1000, -1):
        a, b = both(truth, results, max_dets_per_image=limit)
        assert_equal(a, b)
        found[limit] = average_precision(a)
    assert found[10] < found[300] < found[1000] == found[-1]


def test_ties_across_the_limit_agree():
    truth, results = random_data(2, images=4, detections=60, hard=False)
    for result in results:
        result["score"] = 0.5
    for limit in (1, 7, 300):
        assert_equal(*both(truth, results, max_dets_per_image=limit))


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_predictions(iou_type):
    truth, _ = random_data(3)
    a, b = both(truth, [], iou_type)
    assert_equal(a, b)
    assert average_precision(a) == 0.0


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_predictions_of_nothing_but_empty_boxes_and_masks(iou_type):
    truth, _ = random_data(3)
    result = {
        "image_id": 1,
        "category_id": 1,
        "score": 0.9,
        "bbox": [3.0, 3.0, 0.0, 5.0],
        "segmentation": rle(np.zeros((HEIGHT, WIDTH))),
    }
    assert_equal(*both(truth, [result] * 300, iou_type))


def test_no_ground_truth_at_all():
    truth, results = random_data(4)
    truth["annotations"] = []
    a, b = both(truth, results)
    assert_equal(a, b)
    assert not has_ground_truth(a).any()
    assert math.isnan(average_precision(a))


def test_single_class_single_image():
    truth, results = random_data(5, images=1, classes=1, hard=False)
    truth["annotations"] = truth["annotations"] or [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81}
    ]
    a, b = both(truth, results)
    assert_equal(a, b)
    assert a.precision.shape[2] == 1


def test_predictions_of_classes_without_ground_truth():
    truth, results = random_data(6, annotated=[2, 3], hard=False)
    a, b = both(truth, results)
    assert_equal(a, b)
    assert has_ground_truth(a).tolist() == [False, True, True, False, False, False]
    all_novel = [{**r, "category_id": 5} for r in results]
    a, b = both(truth, all_novel)
    assert_equal(a, b)
    assert average_precision(a) == 0.0


def test_empty_lists_and_no_frequencies():
    truth, results = random_data(7)
    for category in truth["categories"]:
        del category["frequency"]
    for image in truth["images"]:
        image["neg_category_ids"] = image["not_exhaustive_category_ids"] = []
    assert_equal(*both(truth, results))


def one_box(**lists):
    """One box of class 1 in image 7, an empty image 8; and the right result."""
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": [], **lists}
    truth = {
        "categories": [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
        "images": [{"id": i, "height": 99, "width": 99, **lists} for i in (7, 8)],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "bbox": [5, 5, 40, 40], "area": 1600},
        ],
    }
    return truth, {"image_id": 7, "category_id": 1, "score": 0.5, "bbox": [5, 5, 40, 40]}


@pytest.mark.parametrize("backend", ["hotcoco", "lvis-api"])
def test_federated_rules_by_hand(backend):
    def ap(truth, results):
        return average_precision(evaluate_lvis(truth, results, "bbox", backend=backend))

    truth, right = one_box()
    wrong_place = {**right, "score": 0.9, "bbox": [60, 60, 30, 30]}
    elsewhere = {**right, "score": 0.9, "image_id": 8}
    assert ap(truth, [right]) == pytest.approx(100.0)
    assert ap(truth, [right, wrong_place]) == pytest.approx(50.0)  # a false positive ranks first
    assert ap(truth, [right, elsewhere]) == pytest.approx(
        100.0
    )  # image 8 was not searched for class 1
    negative, _ = one_box(neg_category_ids=[1])
    assert ap(negative, [right, elsewhere]) == pytest.approx(50.0)
    partial, _ = one_box(not_exhaustive_category_ids=[1])
    assert ap(partial, [right, wrong_place]) == pytest.approx(100.0)


def test_average_precision_over_classes_thresholds_and_areas():
    precision = -np.ones((10, 101, 3, 4))
    precision[:, :, 0, 0] = 0.5
    precision[0, :, 1, 0] = 1.0
    precision[1:, :, 1, 0] = 0.0
    precision[:, :, 0, 2] = 0.25
    evaluation = lvis_backends.PrecisionRecall(precision, -np.ones((10, 3, 4)), (1, 2, 3))
    assert has_ground_truth(evaluation).tolist() == [True, True, False]
    assert average_precision(evaluation) == pytest.approx(30.0)
    assert average_precision(evaluation, iou=0.5) == pytest.approx(75.0)
    assert average_precision(evaluation, iou=0.75) == pytest.approx(25.0)
    assert average_precision(evaluation, np.array([False, True, True])) == pytest.approx(10.0)
    assert average_precision(evaluation, area="medium") == 25.0
    assert math.isnan(average_precision(evaluation, np.array([False, False, True])))
    assert math.isnan(average_precision(evaluation, np.zeros(3, bool)))
    assert math.isnan(average_precision(evaluation, area="large"))


def test_the_best_of_each_category_over_all_images():
    scored = [(1, 0.1), (2, 0.2), (1, 0.9), (1, 0.5), (2, 0.2), (1, 0.5), (2, 0.2)]
    results = [{"category_id": c, "score": s, "image_id": i} for i, (c, s) in enumerate(scored)]
    best = BestOfEachCategory(2)
    best.add(results[:4])
    best.add([])
    best.add(results[4:])
    kept = [(r["category_id"], r["image_id"]) for r in best.results()]
    assert kept == [(1, 2), (1, 3), (2, 1), (2, 4)]
    assert BestOfEachCategory(2).results() == []


def test_the_best_of_each_category_are_those_of_a_stable_sort():
    rng = np.random.default_rng(0)
    best, stream = BestOfEachCategory(5), []
    for image_id in range(40):
        results = [
            {"category_id": int(c), "score": int(s) / 8, "image_id": image_id, "row": n}
            for n, (c, s) in enumerate(rng.integers([0, 0], [3, 8], (rng.integers(9), 2)))
        ]
        stream += results
        best.add(results)
    for category in range(3):
        members = [r for r in stream if r["category_id"] == category]
        expected = sorted(members, key=lambda r: r["score"], reverse=True)[:5]
        assert [r for r in best.results() if r["category_id"] == category] == expected


def test_numpy_is_left_alone():
    had_float = hasattr(np, "float")
    truth, results = random_data(0)
    evaluate_lvis(truth, results, "bbox", backend="lvis-api")
    import lvis.eval

    assert lvis.eval.np is np
    assert hasattr(np, "float") == had_float


def test_wrong_input_is_one_sentence(monkeypatch):
    truth, results = random_data(0)
    with pytest.raises(OVDError, match="TEST.LVIS_BACKEND is 'fast': use one of hotcoco, lvis-api"):
        evaluate_lvis(truth, results, "bbox", backend="fast")
    with pytest.raises(OVDError, match="lacks 1 values of image_id.*such as 99"):
        evaluate_lvis(truth, [{**results[0], "image_id": 99}], "bbox")
    with pytest.raises(OVDError, match="lacks 1 values of category_id.*such as 77"):
        evaluate_lvis(truth, [{**results[0], "category_id": 77}], "bbox")
    with pytest.raises(OVDError, match="no 'segmentation'"):
        evaluate_lvis(truth, results, "segm")
    monkeypatch.setattr(lvis_backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OVDError, match="not installed: run `pip install lvis`"):
        evaluate_lvis(truth, results, "bbox", backend="lvis-api")
