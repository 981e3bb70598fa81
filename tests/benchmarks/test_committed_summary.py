"""The pages say what the committed summaries say, and those are the means of their seeds."""

import re

import markdown
import pytest

from ovd_d2.benchmarks.recipes import figures, pages, summaries
from ovd_d2.benchmarks.recipes.families import FAMILIES, family_of
from ovd_d2.benchmarks.recipes.runs import find_checkout
from ovd_d2.benchmarks.recipes.seeds import mean_and_spread
from ovd_d2.benchmarks.recipes.summary import REPORTED
from ovd_d2.cli.benchmark import ROWS
from ovd_d2.cli.demo import MODELS

ROOT = find_checkout("this test")
KEPT = summaries.read_summaries(ROOT)
OF_RANGE = re.compile(r"\d+\.\d \(\d+\.\d-\d+\.\d\)")
BLOCK = re.compile(r"<!-- benchmark: .*?<!-- end -->", re.DOTALL)


def test_every_family_has_a_summary_and_every_row_is_in_that_of_its_family():
    assert set(KEPT) == set(FAMILIES)
    kept = {(name, row) for name, summary in KEPT.items() for row in summary["rows"]}
    wanted = {(family_of(row), row) for row in ROWS} | {("examples", "vild_ensemble")}
    assert {one for one in kept if not FAMILIES[one[0]].of_demo} == wanted


@pytest.mark.parametrize("name", FAMILIES)
def test_means_are_those_of_the_runs(name):
    for key, row in KEPT[name]["rows"].items():
        assert row["title"] == (MODELS[key] if name == "demo" else ROWS[key].title)
        assert row["command"] and row["ovd_d2"]
        tasks = [task for task in REPORTED if task in row]
        assert tasks and set(tasks) >= {FAMILIES[name].tasks[0]}
        for task in tasks:
            assert list(row[task]) == list(REPORTED[task][1])
            for value in row[task].values():
                assert value["min"] <= value["mean"] <= value["max"]
        if "runs" not in row:
            assert row["source"]
            continue
        assert [run["seed"] for run in row["runs"]] == list(range(1, row["seeds"] + 1))
        for task in tasks:
            found = mean_and_spread([run[task] for run in row["runs"]], REPORTED[task][1])
            assert row[task] == found


def test_a_row_of_examples_is_of_five_choices():
    for key, row in KEPT["examples"]["rows"].items():
        assert row["seeds"] == (5 if ROWS[key].examples else 1)


def test_pages_and_pictures_say_what_the_summaries_say():
    """`ovd benchmark tables` mends them. Of a picture its numbers are compared, not its pixels."""
    assert pages.update_pages(ROOT, write=False) == []
    assert figures.update_figures(ROOT, write=False) == []
    shown = {str(page.relative_to(ROOT)) for page in pages.marked_pages(ROOT)}
    assert shown >= {"docs/results.md", "docs/visual-prompts.md", "docs/systems/rkd.md"}


@pytest.mark.parametrize("page", pages.marked_pages(ROOT), ids=lambda page: page.name)
def test_tables_are_tables_and_comments_are_not_seen(page):
    text = page.read_text(encoding="utf-8")
    html = markdown.markdown(text, extensions=["tables", "md_in_html"])
    shown = re.sub(r"<!--.*?-->", "", html, flags=re.DOTALL)
    assert "benchmark: " not in shown and "|---" not in shown
    rows = [line for line in BLOCK.findall(text) for line in line.splitlines() if line[0] == "|"]
    for row in rows[2:3]:
        assert f"<td>{row.split('|')[1].strip()}</td>" in shown
    assert not OF_RANGE.search(BLOCK.sub("", text)), "a number outside of the comments"
