"""The numbers of the page on results are those of the committed summaries, seed by seed."""

import json
from pathlib import Path

import pytest

from ovd_d2.benchmarks.recipes.seeds import markdown_table, mean_and_spread
from ovd_d2.benchmarks.recipes.summary import GROUNDING, METRICS, SEGMENTATION
from ovd_d2.cli.benchmark import ROWS

ROOT = Path(__file__).parents[2]
ROWS_OF = {"one_stage": ("glip", "detclip"), "segmentation": ("lseg", "groupvit")}
TASKS = {"box": METRICS, "grounding": GROUNDING, "sem_seg": SEGMENTATION}


def committed(name):
    return json.loads((ROOT / f"configs/mini/benchmark_{name}.json").read_text())["rows"]


@pytest.mark.parametrize("name", ROWS_OF)
def test_the_table_is_that_of_the_summary(name):
    rows = {}
    for key, row in committed(name).items():
        assert row["title"] == ROWS[key].title and row["seeds"] == len(row["runs"])
        means = rows[row["title"]] = {}
        for task in (task for task in TASKS if task in row):
            found = mean_and_spread([run[task] for run in row["runs"]], TASKS[task])
            assert row[task] == found
            means.update(found)
    assert markdown_table(rows) in (ROOT / "docs/results.md").read_text()


@pytest.mark.parametrize("name", ROWS_OF)
def test_every_row_is_there(name):
    assert set(committed(name)) == {row for row in ROWS if row.startswith(ROWS_OF[name])}


def test_the_summary_of_examples():
    """Means of five choices of examples; the names beside them are of one training."""
    rows = committed("examples")
    assert list(rows) == [row for row in ROWS if row.startswith("vild_ensemble")]
    for key, row in rows.items():
        assert row["title"] == ROWS[key].title
        assert row["seeds"] == len(row["runs"]) == (5 if ROWS[key].examples else 1)
        assert row["box"] == mean_and_spread([run["box"] for run in row["runs"]])
