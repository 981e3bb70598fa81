"""The summary's numbers are the evaluator's numbers, gaps included."""

import numpy as np

from ovd_d2.benchmarks.recipes.summary import METRICS, summarise


def test_values_gaps_and_tasks():
    results = {
        "bbox": {"AP": np.float64(10.5), "AP_base": 20, "AP_novel": float("nan"), "APr": 3.0},
        "segm": dict.fromkeys(METRICS, 1.0),
        "keypoints": {"AP": 5.0},
    }
    summary = summarise(results)
    assert list(summary) == ["box", "segm"]
    assert summary["box"] == {
        "AP": 10.5,
        "AP_base": 20.0,
        "AP_novel": None,
        "AP50_base": None,
        "AP50_novel": None,
    }
    assert type(summary["box"]["AP"]) is float


def test_phrases_of_captions():
    results = {"phrase_grounding": {"R@1": 20.5, "R@5": 30.0}, "phrase_grounding_merged": {}}
    assert summarise(results) == {"grounding": {"R@1": 20.5}}


def test_boxes_whatever_their_classes():
    results = {"class_agnostic": {"AP50": 20.5, "R50": 30.0, "AP50_small": float("nan")}}
    assert summarise(results) == {"class_agnostic": {"AP50": 20.5, "R50": 30.0}}


def test_nothing_evaluated():
    assert summarise({}) == {}
