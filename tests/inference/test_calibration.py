"""Thresholds per name: chosen, measured, written down, used."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from random_models import make_pixels

from ovd_d2.errors import OVDError
from ovd_d2.evaluation.presence import THRESHOLDS
from ovd_d2.evaluation.presence_counts import Comparison
from ovd_d2.inference import OpenVocabPredictor
from ovd_d2.inference.calibration import calibrate_names, choose_thresholds, f1_of_boxes
from ovd_d2.inference.name_thresholds import as_thresholds


def comparison(rows, objects):
    """``rows`` of (class, score, right)."""
    classes, scores, right = zip(*rows) if rows else ((), (), ())
    none = np.zeros(0)
    return Comparison(
        np.array(classes, int), np.array(scores, float), np.array(right, bool), none, none, none,
        none, np.array(objects), none, none,
    )  # fmt: skip


EASY = [(0, 0.9 - k / 100, True) for k in range(20)] + [(0, 0.3, False)] * 20
HARD = [(1, 0.21, False)] * 10 + [(1, 0.2, True)] * 10 + [(1, 0.15, False)] * 50
FEW = [(2, 0.05, True)] * 2


def test_a_threshold_of_its_own_for_each_name_with_enough_examples():
    found = comparison(EASY + HARD + FEW, [20, 20, 2])
    chosen = choose_thresholds(found, min_examples=3, prior=0)
    assert chosen.thresholds.tolist() == [0.31, 0.16, chosen.pooled] and chosen.pooled == 0.31
    assert chosen.own.tolist() == [True, True, False]
    assert chosen.examples.tolist() == [20, 20, 2]
    assert choose_thresholds(found, min_examples=1, prior=0).thresholds[2] == 0.01
    one = f1_of_boxes(found, np.full(3, chosen.pooled))
    each = f1_of_boxes(found, chosen.thresholds)
    assert one == pytest.approx({"F1": 100 * 40 / 62, "F1_names": 100 / 3})
    assert each == pytest.approx({"F1": 100 * 60 / 82, "F1_names": 50.0})


def test_average_objects_pull_towards_the_pooled_threshold():
    found = comparison(EASY + HARD + FEW, [20, 20, 2])
    assert choose_thresholds(found, min_examples=1, prior=1e6).thresholds.tolist() == [0.31] * 3
    assert choose_thresholds(found, min_examples=1, prior=10).thresholds[1] == 0.16


def test_a_name_that_is_never_found_has_the_pooled_threshold():
    found = comparison([*EASY, (1, 0.6, False)], [20, 9])
    chosen = choose_thresholds(found, prior=0)
    assert chosen.thresholds[1] == chosen.pooled and not chosen.own[1]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 99), st.booleans()), max_size=30),
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
    st.sampled_from([0, 1.5, 10]),
)
def test_as_the_plain_transcription_says(rows, more, prior):
    rows = [(k, score / 100 + 1e-6, right) for k, score, right in rows]
    objects = [sum(r for k, _, r in rows if k == c) + extra for c, extra in enumerate(more)]

    def counts(threshold, of):
        shown = [r for k, s, r in rows if k in of and s >= threshold]
        return sum(shown), len(shown) + sum(objects[k] for k in of)

    def quality(threshold, k):
        right, both = counts(threshold, [k])
        all_right, all_both = counts(threshold, [0, 1, 2])
        share = prior / sum(objects)
        return (right + share * all_right) / (both + share * all_both)

    got = choose_thresholds(comparison(rows, objects), min_examples=1, prior=prior)
    for k, threshold in enumerate(got.thresholds):
        if got.own[k]:
            assert quality(threshold, k) == pytest.approx(max(quality(t, k) for t in THRESHOLDS))
    right, both = counts(got.pooled, [0, 1, 2])
    best = max(counts(t, [0, 1, 2])[0] / counts(t, [0, 1, 2])[1] for t in THRESHOLDS)
    assert right / both == pytest.approx(best)


@pytest.fixture
def labelled(tmp_path):
    """Two data sets of three pictures, whose objects the random model has told us."""
    names = ["cat", "red mug"]

    def register(name, boxes, thing_classes=names):
        records = []
        for seed, rows in enumerate(boxes):
            path = tmp_path / f"{seed}.png"
            Image.fromarray(make_pixels(96, 120, seed)).save(path)
            annotations = [
                {"category_id": k, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS} for k, box in rows
            ]
            size = {"height": 96, "width": 120, "image_id": seed}
            records.append({"file_name": str(path), "annotations": annotations, **size})
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(thing_classes=thing_classes)
        return name

    yield register
    for name in ("test_calibration_a", "test_calibration_b", "test_calibration_c"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_what_is_written_is_what_prediction_uses(config, checkpoint, labelled, tmp_path):
    predictor = OpenVocabPredictor(config, checkpoint, device="cpu", score_threshold=0.2)
    predictor.set_vocabulary("cat, red mug", thresholds={"cat": 0.01, "red mug": 0.01})
    boxes = []
    for seed in range(3):
        found = predictor.predict(Image.fromarray(make_pixels(96, 120, seed)))
        rows = zip(found.pred_classes.tolist(), found.pred_boxes.tensor.tolist())
        boxes.append(list(rows)[:4])
    first = labelled("test_calibration_a", boxes)
    second = labelled("test_calibration_b", boxes[:2])
    seen, out = [], tmp_path / "deep/t.json"
    content = calibrate_names(
        predictor, first, out, test_dataset=second, min_examples=1, prior=0,
        info={"model": "random"}, on_image=lambda: seen.append(1),
    )  # fmt: skip
    assert len(seen) == 5 and json.loads(out.read_text()) == content
    assert content["model"] == "random" and sum(content["examples"].values()) == 12
    assert set(content["f1"]) == {first, second}
    of_first = content["f1"][first]
    assert of_first["per name"]["F1_names"] >= of_first["one threshold"]["F1_names"] > 0
    assert as_thresholds(out, ("red mug",)) == {"red mug": content["thresholds"]["red mug"]}
    predictor.set_vocabulary("cat, red mug", thresholds=out)
    least = [content["thresholds"][name] for name in ("cat", "red mug")]
    for found in predictor.predict([r["file_name"] for r in DatasetCatalog.get(first)]):
        for k, score in zip(found.pred_classes.tolist(), found.scores.tolist()):
            assert score >= least[k]
    third = labelled("test_calibration_c", boxes, ["cat", "wolf"])
    with pytest.raises(OVDError, match="test_dataset test_calibration_c has other names"):
        calibrate_names(predictor, first, tmp_path / "x.json", test_dataset=third)
    with pytest.raises(OVDError, match="no_such_data_set"):
        calibrate_names(predictor, "no_such_data_set", tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()
