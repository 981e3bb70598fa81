"""The numbers of the README are those of the committed summary, seed by seed."""

import json
from pathlib import Path

from ovd_d2.benchmarks.recipes.seeds import markdown_table, mean_and_spread
from ovd_d2.benchmarks.recipes.summary import GROUNDING
from ovd_d2.cli.benchmark import ROWS

ROOT = Path(__file__).parents[2]
ONE_STAGE = json.loads((ROOT / "configs/mini/benchmark_one_stage.json").read_text())["rows"]


def test_the_table_is_that_of_the_summary():
    rows = {}
    for name, row in ONE_STAGE.items():
        assert row["title"] == ROWS[name].title and row["seeds"] == len(row["runs"])
        box = mean_and_spread([run["box"] for run in row["runs"]])
        of_phrases = mean_and_spread([run["grounding"] for run in row["runs"]], GROUNDING)
        rows[row["title"]] = {**box, **of_phrases}
    assert markdown_table(rows) in (ROOT / "README.md").read_text()


def test_every_one_stage_row_is_there():
    assert set(ONE_STAGE) == {name for name in ROWS if name.startswith(("glip", "detclip"))}
