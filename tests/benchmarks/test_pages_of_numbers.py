"""Numbers come into pages by comments, and stay there as the summaries have them."""

import io
import json
import shutil
import sys

import pytest
import warm_processes
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ovd_d2.benchmarks.recipes import figures, pages, summaries
from ovd_d2.cli import app
from ovd_d2.errors import OVDError

PAGE = """# Page

<!-- benchmark: rkd rows=rkd_l1 metrics=AP_novel,AP -->
<!-- end -->

It reaches <!-- benchmark: rkd row=rkd_l1 metric=AP_novel --><!-- end --> there.
"""


def row(title, *values):
    runs = [{"box": {"AP": value, "AP_novel": value / 2}} for value in values]
    return summaries.row_summary(title, runs)


SUMMARIES = {"rkd": {"dataset": "d", "rows": {"rkd_l1": row("L1", 2.0, 4.0), "b": row("B", 1.0)}}}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A checkout with one family and one page."""
    (tmp_path / "configs/mini").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "train_net.py").touch()
    summaries.summary_file("rkd", tmp_path).write_text(json.dumps(SUMMARIES["rkd"]))
    (tmp_path / "docs/page.md").write_text(PAGE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    with pytest.raises(SystemExit) as end:
        app.main(["benchmark", "tables", *words])
    return end.value.code or 0


def test_tables_and_single_numbers():
    found = []
    text = pages.filled(PAGE, SUMMARIES, "page.md", found)
    table = text.split("-->\n")[1].splitlines()
    assert table[:3] == [
        "| model | seeds | AP_novel | AP |",
        "|---|---|---|---|",
        "| L1 | 2 | 1.5 (1.0-2.0) | 3.0 (2.0-4.0) |",
    ]
    assert "metric=AP_novel -->1.5<!-- end --> there." in text
    assert [one.row for one in found] == ["model", "L1", "rkd_l1: AP_novel"]
    again = []
    assert pages.filled(text, SUMMARIES, "page.md", again) == text and not again


def test_the_row_that_differs_is_named():
    text = pages.filled(PAGE.replace(" rows=rkd_l1", ""), SUMMARIES, "page.md", [])
    found = []
    pages.filled(text.replace("| 0.5 |", "| 0.6 |"), SUMMARIES, "page.md", found)
    assert found == [pages.Difference("page.md", "B")]
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("| L1"))
    lines[at], lines[at + 1] = lines[at + 1], lines[at]
    found = []
    pages.filled("\n".join(lines), SUMMARIES, "page.md", found)
    assert found == [pages.Difference("page.md", "(their order)")]
    many = [pages.Difference("a.md", str(i)) for i in range(6)]
    assert pages.told(many) == ['a.md, row "0", "1", "2", "3" and 2 more']


@pytest.mark.parametrize(
    "comment, message",
    [
        ("x <!-- benchmark: vild --> <!-- end -->", "families with a summary are rkd"),
        ("x <!-- benchmark: rkd rows=c --> <!-- end -->", "no c among rkd_l1, b"),
        ("x <!-- benchmark: rkd metrics=AR --> <!-- end -->", "no AR among AP, AP_novel"),
        ("x <!-- benchmark: rkd row=b --> <!-- end -->", "row is not understood"),
        ("x <!-- benchmark: rkd row=b,rkd_l1 metric=AP --> <!-- end -->", "one row and one metric"),
        ("<!-- benchmark: rkd row=b metric=AP --> <!-- end -->", "begins a line"),
        ("x <!-- benchmark: rkd -->", 'has no "<!-- end -->"'),
        ("<!-- benchmark: rkd -->\n<!-- benchmark: rkd -->\n<!-- end -->", "has no"),
    ],
)
def test_a_comment_that_cannot_be_met(comment, message):
    summary = json.loads(json.dumps(SUMMARIES))
    for one in summary["rkd"]["rows"].values():
        one["box"] = {key: one["box"][key] for key in ("AP", "AP_novel")}
    with pytest.raises(OVDError, match=r"page\.md") as caught:
        pages.filled(comment, summary, "page.md", [])
    assert message in str(caught.value)


def test_the_command_checks_writes_and_then_has_nothing_to_do(root, capsys):
    words = [sys.executable, "-m", "ovd_d2.cli.app", "benchmark", "tables", "--check"]
    checked = warm_processes.run(words, capture_output=True, text=True, timeout=120)
    assert checked.returncode == 2 and not checked.stdout
    wanted = 'docs/page.md, row "model", "L1", "rkd_l1: AP_novel"; docs/images/benchmark_rkd.png'
    assert wanted in checked.stderr and len(checked.stderr.splitlines()) == 1
    assert (root / "docs/page.md").read_text() == PAGE
    assert run() == 0
    assert capsys.readouterr().out.splitlines() == [
        "docs/page.md written", "docs/images/benchmark_rkd.png written",
    ]  # fmt: skip
    assert run("--check") == 0
    # A run with one more seed takes the row's place; its folder's name is not kept.
    one = {"box": {"AP": 8.0, "AP_novel": 6.0}, "dataset": "d", "command": "x OUTPUT_DIR /a/b/r"}
    new = {"rows": {"rkd_l1": summaries.row_summary("L1", [one])}, "out": "/a/b"}
    (root / "summary.json").write_text(json.dumps(new))
    assert run("--take", "summary.json", "--check") == 2
    assert run("--take", "summary.json") == 0
    kept = summaries.read_summary(summaries.summary_file("rkd", root))["rows"]
    assert list(kept) == ["rkd_l1", "b"]
    assert kept["rkd_l1"]["runs"][0]["command"] == "x OUTPUT_DIR output/benchmark/r"
    assert "| L1 | 1 | 6.0 | 8.0 |" in (root / "docs/page.md").read_text()


def test_rows_that_cannot_be_taken(root):
    file = root / "summary.json"
    run = {"box": {"AP": 8.0}, "dataset": "other"}
    for name, one, message in [
        ("rkd_l1", summaries.row_summary("L1", [run]), "evaluated on other, "),
        ("nonsense", summaries.row_summary("N", [run]), "Row nonsense is of no family"),
        ("rkd_l1", {"title": "L1", "seeds": 1}, "row rkd_l1 has no runs"),
        ("rkd_l1", {}, "is no summary of"),
    ]:
        file.write_text(json.dumps({"rows": {name: one}}))
        with pytest.raises(OVDError) as caught:
            summaries.take(file, root)
        assert message in str(caught.value)
    with pytest.raises(OVDError, match="cannot be read"):
        summaries.take(root / "missing.json", root)


def test_examples_are_kept_beside_the_first_seed_of_their_model(root):
    runs = [{"box": {"AP": value}, "dataset": "d"} for value in (1.0, 3.0)]
    rows = {name: summaries.row_summary(name, runs) for name in ("vild_ensemble", "vild")}
    rows["vild_ensemble_novel_by_1"] = summaries.row_summary("one", runs)
    (root / "summary.json").write_text(json.dumps({"rows": rows}))
    order = ["vild", "vild_ensemble", "vild_ensemble_novel_by_1"]
    summaries.take(root / "summary.json", root, order)
    kept = summaries.read_summaries(root)
    assert list(kept["vild"]["rows"]) == order[:2]
    assert list(kept["examples"]["rows"]) == order[1:]
    assert kept["examples"]["rows"]["vild_ensemble"]["seeds"] == 1
    assert kept["vild"]["rows"]["vild_ensemble"]["box"]["AP"]["mean"] == 2.0


def test_a_summary_of_the_demo_is_taken(root):
    run = {"title": "ViLD-text", "box": {"AP": 5.0}, "dataset": "d", "seconds": 90.0}
    (root / "summary.json").write_text(json.dumps({"models": {"vild_text": run}, "ovd_d2": "1"}))
    assert summaries.take(root / "summary.json", root) == {"demo": ["vild_text"]}
    assert summaries.recorded_seconds(root) == {"vild_text": 90.0}
    text = "<!-- benchmark: demo metrics=AP -->\n<!-- end -->"
    shown = pages.filled(text, summaries.read_summaries(root), "p", [])
    assert "| model | seeds | AP | seconds |" in shown and "| ViLD-text | 1 | 5.0 | 90 |" in shown


def test_seeds_of_the_demo_are_put_together(root):
    def took(seed, value):
        run = {"title": "ViLD-text", "box": {"AP": value}, "dataset": "d", "seconds": 90.0}
        content = {"models": {"vild_text": run}, "ovd_d2": "1", "seed": seed}
        (root / "summary.json").write_text(json.dumps(content))
        summaries.take(root / "summary.json", root)
        row = summaries.read_summaries(root)["demo"]["rows"]["vild_text"]
        return row["seeds"], row["box"]["AP"], [run["seed"] for run in row["runs"]]

    with pytest.raises(OVDError, match="has 0 seeds of vild_text: take the summary of seed 1"):
        took(2, 7.0)
    assert took(1, 5.0)[0] == 1
    with pytest.raises(OVDError, match="has 1 seeds of vild_text: take the summary of seed 2"):
        took(3, 7.0)
    took(2, 7.0)
    assert took(3, 9.0) == (3, {"mean": 7.0, "min": 5.0, "max": 9.0}, [1, 2, 3])
    assert took(2, 6.0) == (2, {"mean": 5.5, "min": 5.0, "max": 6.0}, [1, 2])
    assert took(1, 4.0)[0] == 1


def test_a_picture_is_drawn_again_when_its_numbers_change_alone(root):
    assert figures.update_figures(root, write=True) == ["docs/images/benchmark_rkd.png"]
    file = figures.figure_file("rkd", root)
    first = file.read_bytes()
    file.unlink()
    figures.update_figures(root, write=True)
    assert file.read_bytes() == first  # the same numbers, the same bytes
    # Drawn with other fonts: other pixels, the same numbers.
    note, other = figures.comment_of(file), Image.new("RGB", (300, 200), "red")
    info = PngInfo()
    info.add_text("Comment", note)
    other.save(file, pnginfo=info)
    assert figures.update_figures(root, write=True) == []
    changed = {**SUMMARIES["rkd"], "rows": {"b": row("B", 7.0)}}
    summaries.summary_file("rkd", root).write_text(json.dumps(changed))
    assert figures.update_figures(root, write=False) == ["docs/images/benchmark_rkd.png"]
    file.write_bytes(first[:200])
    assert figures.comment_of(file) is None
    assert figures.update_figures(root, write=True) == ["docs/images/benchmark_rkd.png"]
    assert "B: AP_base -, AP_novel 3.5" in figures.comment_of(file)
    shutil.rmtree(root / "docs/images")
    assert figures.update_figures(root, write=False)


def test_a_picture_of_other_metrics():
    from ovd_d2.visualization.training_plots import plot_average_precision

    picture = io.BytesIO()
    one = {"mean": 1.0, "min": 1.0, "max": 1.0}
    models = {"a": {"AP50": one, "R50": one, "R10": one}, "b": {"AP50": one}}
    plot_average_precision(models, "d", picture, ("AP50", "R50", "R10"), what="any class")
    assert Image.open(picture).size[0] > 300


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"models": 5}',
        '{"models": {"x": {}}}',
        '{"models": {"vild_text": {"title": "x"}}}',
        '{"rows": {}}',
        '{"rows": {"vild": {"title": "a", "seeds": 1, "runs": [1]}}}',
        '{"rows": {"vild": {"title": "a", "seeds": 1, "runs": [{}]}}}',
        '{"rows": {"vild": {"title": "a", "seeds": 1}}}',
        "not json",
    ],
)
def test_what_is_no_summary_changes_nothing(tmp_path, content):
    file = tmp_path / "summary.json"
    file.write_text(content)
    with pytest.raises(OVDError, match="summary.json"):
        summaries.take(file, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
