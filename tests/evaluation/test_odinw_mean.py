"""The mean over ODinW: of all data sets or of none, with the split named."""

import logging
import math

import pytest
from detectron2.data import DatasetCatalog

import ovd_d2.data  # noqa: F401
from ovd_d2.data.datasets.odinw import odinw_suite
from ovd_d2.errors import OVDError
from ovd_d2.evaluation.odinw import (
    odinw_test_names,
    summarize_odinw,
    summarize_what_was_evaluated,
)

# GLIP-T without training: table 14 of the paper, and its mean
GLIP_T = {
    "PascalVOC": 56.2, "AerialDrone": 12.5, "Aquarium": 18.4, "Rabbits": 70.2, "EgoHands": 50.0,
    "Mushrooms": 73.8, "Packages": 72.3, "Raccoon": 57.8, "Shellfish": 26.3, "Vehicles": 56.0,
    "Pistols": 49.6, "Pothole": 17.7, "Thermal": 44.1,
}  # fmt: skip


def published(split="val"):
    return {
        d.registered(split): {"bbox": {"AP": GLIP_T[d.paper_name], "AP50": 1.0}}
        for d in odinw_suite("odinw_13").values()
    }


def test_names_of_a_suite():
    assert len(odinw_test_names("odinw_35", "default")) == 35
    assert sum(name.endswith("_minival") for name in odinw_test_names("odinw_35", "default")) == 11
    for name in (*odinw_test_names(), *odinw_test_names("odinw_35", "test")):
        assert name in DatasetCatalog
    with pytest.raises(OVDError, match="has no split 'dev'"):
        odinw_test_names("odinw_13", "dev")


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_published_mean(split, caplog):
    results = {**published(split), "coco_2017_val": {"bbox": {"AP": 99.0}}}
    with caplog.at_level(logging.INFO):
        summary = summarize_odinw(results, "odinw_13", split)
    assert round(summary.mean, 1) == 46.5 and summary.median == 50.0
    assert not summary.missing and "WARNING" not in caplog.text
    assert f"pothole ({split})" in summary.table() and "mean of 13" in caplog.text
    assert ("test, which is val" in summary.table()) == (split == "test")


def test_missing_data_sets_are_named_and_leave_no_mean(caplog):
    results = published()
    del results["odinw_pothole_val"]
    results["odinw_PascalVOC_val"]["bbox"]["AP"] = math.nan
    with caplog.at_level(logging.WARNING):
        summary = summarize_odinw(results, "odinw_13", "val")
    assert set(summary.missing) == {"pothole", "PascalVOC"}
    assert math.isnan(summary.mean) and math.isnan(summary.median)
    rest = [v for k, v in GLIP_T.items() if k not in ("Pothole", "PascalVOC")]
    assert summary.mean_of_evaluated == pytest.approx(sum(rest) / 11)
    assert "no AP of 2 of 13 data sets (split val)" in caplog.text and "pothole" in caplog.text
    assert "mean of the 11 evaluated" in summary.table()
    assert "| mean of 13" in summary.table()


def test_another_split_does_not_count_and_nothing_is_no_error():
    assert len(summarize_odinw(published("test"), "odinw_13", "val").missing) == 13
    summary = summarize_odinw({}, "odinw_35")
    assert len(summary.missing) == 35 and math.isnan(summary.mean_of_evaluated)
    assert not summarize_odinw({"odinw_pothole_val": {}}, "odinw_13").ap


def test_the_suite_that_was_evaluated_is_summarised():
    assert summarize_what_was_evaluated({"coco_2017_val": {}}) is None
    names = odinw_test_names("odinw_13", "test")
    assert summarize_what_was_evaluated({names[0]: {"bbox": {"AP": 5.0}}}) is None
    results = {name: {"bbox": {"AP": 5.0}} for name in names}
    summary = summarize_what_was_evaluated(results)
    assert (summary.suite, summary.mean) == ("odinw_13", 5.0)
    del results[names[3]]
    summary = summarize_what_was_evaluated(results)
    assert summary.suite == "odinw_13" and len(summary.missing) == 1 and summary.mean != 5.0
