"""Means over seeds and the table made of them."""

import pytest

from ovd_d2.benchmarks.recipes.seeds import cell, markdown_table, mean_and_spread
from ovd_d2.benchmarks.recipes.summary import METRICS


def metrics(value):
    return dict.fromkeys(METRICS, value)


def test_mean_and_range():
    result = mean_and_spread([metrics(1.0), metrics(2.0), metrics(6.0)])
    assert list(result) == list(METRICS)
    assert result["AP"] == {"mean": pytest.approx(3.0), "min": 1.0, "max": 6.0}


def test_a_missing_value_leaves_no_mean():
    result = mean_and_spread([metrics(1.0), {**metrics(2.0), "AP_novel": None}])
    assert result["AP_novel"] == {"mean": None, "min": None, "max": None}
    assert result["AP_base"]["mean"] == 1.5
    assert cell(result["AP_novel"]) == "-"


def test_cells_show_a_range_only_where_there_is_one():
    assert cell(mean_and_spread([metrics(17.94)])["AP"]) == "17.9"
    assert cell(mean_and_spread([metrics(1.0), metrics(3.0)])["AP"]) == "2.0 (1.0-3.0)"


def test_the_table_has_a_row_per_model_and_a_column_per_metric():
    lines = markdown_table({"a": mean_and_spread([metrics(1.0)])}).splitlines()
    assert lines[0] == "| model | " + " | ".join(METRICS) + " |"
    assert lines[2] == "| a | " + " | ".join(["1.0"] * len(METRICS)) + " |"
    assert {line.count("|") for line in lines} == {len(METRICS) + 2}


def test_rows_with_other_metrics_share_a_table():
    grounded = {**mean_and_spread([metrics(1.0)]), **mean_and_spread([{"R@1": 2.0}], ["R@1"])}
    lines = markdown_table({"a": mean_and_spread([metrics(1.0)]), "b": grounded}).splitlines()
    assert lines[0].endswith("| AP50_novel | R@1 |")
    assert lines[2].endswith("| 1.0 | - |") and lines[3].endswith("| 1.0 | 2.0 |")
