"""Linear probe as an evaluation: features of three data sets, one classifier."""

import copy

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2 import add_ovd_config
from ovd_d2.engine.config_rules import check_values
from ovd_d2.errors import OVDError
from ovd_d2.evaluation import LinearProbeEvaluator, check_evaluator
from ovd_d2.evaluation.linear_probe import linear_probe


def split(seed, count):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = np.eye(3, 5) * 2
    return (centres[labels] + rng.normal(size=(count, 5))).astype(np.float32), labels


SPLITS = {"train": split(0, 60), "held": split(1, 30), "test": split(2, 90)}


def evaluate(folder, name, rank=0, ranks=1):
    evaluator = LinearProbeEvaluator(name, str(folder), train="train", validation="held")
    evaluator._rank, evaluator._ranks = rank, ranks
    features, labels = (part[rank::ranks] for part in SPLITS[name])
    for row, label in zip(features, labels):
        evaluator.process([{"label": label}], [{"image_features": torch.from_numpy(row)}])
    evaluator.process([{"label": -1}], [{"image_features": torch.full((5,), torch.nan)}])
    return evaluator.evaluate()


def test_it_is_the_probe_of_the_features(tmp_path):
    assert evaluate(tmp_path, "train") == {} and evaluate(tmp_path, "held") == {}
    found = evaluate(tmp_path, "test")["linear_probe"]
    expected = linear_probe(*copy.deepcopy([SPLITS[n] for n in ("train", "held", "test")]))
    assert found == pytest.approx(expected) and 60 < found["top1"] < 100


def test_features_of_all_processes_count(tmp_path):
    whole = [evaluate(tmp_path / "one", name) for name in SPLITS][-1]
    for name in SPLITS:
        assert evaluate(tmp_path / "two", name, rank=1, ranks=2) is None
        parts = evaluate(tmp_path / "two", name, rank=0, ranks=2)
    assert parts["linear_probe"]["top1"] == pytest.approx(whole["linear_probe"]["top1"], abs=3)


def test_without_features_it_says_what_comes_first(tmp_path):
    evaluate(tmp_path, "train")
    with pytest.raises(OVDError, match="no features of 'held' .* before 'test', in the same run"):
        evaluate(tmp_path, "test")


def config(**keys):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "CLIP"
    cfg.TEST.LINEAR_PROBE.ENABLED = True
    cfg.TEST.LINEAR_PROBE.TRAIN, cfg.TEST.LINEAR_PROBE.VALIDATION = "a", "b"
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


@pytest.mark.parametrize("names", [("a", "b"), ("c", "a", "b"), ("a", "a", "c"), ("c",), ()])
def test_order_of_data_sets_is_checked_before_anything_else(names):
    with pytest.raises(OVDError, match=r"TEST.LINEAR_PROBE begin it with its TRAIN \('a'\)"):
        check_values(config(DATASETS__TEST=names))
    check_values(config(DATASETS__TEST=("b", "a", "c", "d")))


def test_other_models_and_data_are_refused():
    DatasetCatalog.register("probe_boxes", list)
    MetadataCatalog.get("probe_boxes").set(evaluator_type="coco")
    try:
        with pytest.raises(OVDError, match="'probe_boxes' is none"):
            check_evaluator(config(), "probe_boxes")
        with pytest.raises(OVDError, match="is for MODEL.META_ARCHITECTURE CLIP, not for GLIP"):
            check_evaluator(config(MODEL__META_ARCHITECTURE="GLIP"), "probe_boxes")
    finally:
        DatasetCatalog.remove("probe_boxes")
        MetadataCatalog.remove("probe_boxes")
