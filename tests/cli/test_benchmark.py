"""``ovd benchmark`` around a ``train_net.py`` that writes what the real one writes, in no time."""

import functools
import io
import json

import pytest
from PIL import Image

from ovd_d2.benchmarks.recipes.families import FAMILIES, family_of, select
from ovd_d2.cli import app, benchmark
from ovd_d2.cli.benchmark_progress import Estimate
from ovd_d2.errors import OVDError
from ovd_d2.visualization.iteration_curves import plot_iterations


def calls(checkout):
    """The settings of each training, by the name of its run, in their order."""
    lines = (checkout / "calls.txt").read_text().splitlines()
    return {line.split("OUTPUT_DIR ")[1].split()[0].split("/")[-1]: line for line in lines}


def run(*words):
    with pytest.raises(SystemExit) as exit_info:
        app.main(["benchmark", *words])
    return exit_info.value.code or 0


def digest(checkout, run_name):
    return json.loads((checkout / "here" / run_name / "run.json").read_text())["digest"]


def test_parents_come_before_their_children():
    waves = benchmark.waves(benchmark.KNOWN)
    assert sorted(name for wave in waves for name in wave) == sorted(benchmark.KNOWN)
    place = {name: i for i, wave in enumerate(waves) for name in wave}
    for name, row in benchmark.KNOWN.items():
        assert all(place[parent] < place[name] for parent in row.parents)
    wanted = [["rkd_base"], ["rkd_l1_relation"], ["rkd_weight_transfer"]]
    assert benchmark.waves(["rkd_weight_transfer"]) == wanted


def test_every_row_has_its_yaml_and_the_yamls_agree_with_the_rows():
    from ovd_d2.engine.setup import load_config

    load = functools.cache(load_config)  # many rows share a yaml
    for name, row in benchmark.KNOWN.items():
        cfg = load(f"configs/mini/{row.yaml or name}.yaml")
        before = (row.start or row.evaluates).replace("rkd_heads_", "rkd_")
        assert (before and f"output/mini/{before}/model_final.pth") == cfg.MODEL.WEIGHTS
        assert bool(cfg.DATASETS.REGION_STORE) == bool(row.regions or row.examples)
        assert ("labels:" in str(cfg.DATASETS.SOURCES)) == bool(row.labels)
        if row.labels:
            named = benchmark._boxes_and("x")
            file = cfg.DATASETS.SOURCES[1]["OPTS"][1][0].removeprefix("labels:")
            assert cfg.DATASETS.SOURCES == benchmark._boxes_and(file) != named
        assert ("web" in str(cfg.DATASETS.SOURCES)) == bool(row.captions)
        if row.captions:
            file = cfg.DATASETS.SOURCES[2]["OPTS"][1][0].removeprefix("grounding:")
            assert benchmark._boxes_captions_and(file) == cfg.DATASETS.SOURCES


def test_rows_go_on_from_their_parents(checkout, no_mini_build, capsys):
    assert run("--rows", "rkd_weight_transfer,vild_text_clip", "--seeds", "2", "--out", "here") == 0
    done = calls(checkout)
    for seed in ("1", "2"):
        last = done[f"rkd_weight_transfer-seed{seed}"]
        assert f"SEED {seed} " in last
        assert f"MODEL.WEIGHTS here/rkd_l1_relation-seed{seed}/model_final.pth" in last
        # The knowledge of seed 1 serves all seeds.
        of_base = digest(checkout, "rkd_base-seed1")[:8]
        assert f"DATASETS.REGION_STORE here/regions-{of_base}" in last
        assert f"labels:here/labels-{of_base}.json" in last
        assert "SOURCES" not in done[f"rkd_l1_relation-seed{seed}"]
        evaluated = done[f"vild_text_clip-seed{seed}"]
        assert f"--eval-only MODEL.WEIGHTS here/vild_text-seed{seed}/model_final.pth" in evaluated
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    [labelling, *_] = [line for line in shown if " pseudo-label " in line]
    assert "--detector model:here/rkd_base-seed1/model_final.pth" in labelling
    summary = json.loads((checkout / "here/summary.json").read_text())
    assert list(summary["rows"]) == ["rkd_weight_transfer", "vild_text_clip"]
    row = summary["rows"]["rkd_weight_transfer"]
    assert row["seeds"] == 2
    assert row["box"]["AP_base"] == {"mean": 20.0, "min": 20.0, "max": 20.0}
    assert row["command"] == "ovd benchmark --rows rkd_weight_transfer --seeds 2"
    assert [run["seed"] for run in row["runs"]] == [1, 2]
    tables = (checkout / "here/table.md").read_text().split("\n\n")
    assert tables[0].splitlines()[2].startswith("| RKD all, weight transfer | 12.5 |")
    assert tables[1].splitlines()[2].startswith("| ViLD-text + CLIP on crops | 12.5 |")
    for name in ("rkd", "vild"):
        with Image.open(checkout / f"here/{name}.png") as image:
            assert min(image.size) > 150


def test_curves_are_drawn_of_rows_that_share_the_base_of_seed_1(checkout, no_mini_build, capsys):
    rows = "rkd_heads_naive_180,rkd_heads_released_360"
    assert run("--rows", rows, "--seeds", "2", "--out", "here") == 0
    done = calls(checkout)
    assert "rkd_base-seed1" in done and "rkd_base-seed2" not in done
    for seed in ("1", "2"):
        naive = done[f"rkd_heads_naive_180-seed{seed}"]
        assert "--config-file configs/mini/rkd_all_naive.yaml" in naive
        assert "MODEL.WEIGHTS here/rkd_base-seed1/model_final.pth" in naive
        assert "MODEL.TUNE.ONLY ['roi_heads.'] SOLVER.MAX_ITER 180" in naive
        transfer = done[f"rkd_heads_released_360-seed{seed}"]
        assert f"MODEL.WEIGHTS here/rkd_heads_l1_relation-seed{seed}/model_final.pth" in transfer
    summary = json.loads((checkout / "here/summary.json").read_text())
    row = summary["rows"]["rkd_heads_released_360"]
    assert (row["curve"], row["iterations"]) == ("weight transfer, from stage 2", 540)
    assert row["title"].endswith("180 + 360 iterations")
    with Image.open(checkout / "here/rkd_iterations.png") as image:
        assert min(image.size) > 200
    with pytest.raises(OVDError, match="rkd_heads_"):
        plot_iterations([{"title": "A"}], "x", checkout / "none.png")


def test_a_curve_joins_its_trainings_by_length_and_a_band_is_their_range():
    def row(iterations, mean, spread=1.0):
        value = {"mean": mean, "min": mean - spread, "max": mean + spread}
        box = {"AP_base": value, "AP_novel": value}
        return {"curve": "A", "iterations": iterations, "box": box}

    def drawn(*rows):
        picture = io.BytesIO()
        plot_iterations(rows, "x", picture)
        return picture.getvalue()

    first, second, third = row(180, 10.0), row(360, 15.0), row(540, 12.0)
    picture = drawn(first, second, third)
    assert drawn(third, first, second) == picture
    assert drawn(first, row(360, 15.0, spread=4.0), third) != picture
    unknown = {"mean": None, "min": None, "max": None}
    box = {"AP_base": unknown, "AP_novel": unknown}
    assert drawn(first, second, third, {"curve": "A", "iterations": 720, "box": box}) == picture


def test_label_maps_have_a_table_of_their_own(checkout, no_mini_build, capsys):
    words = ("--rows", "vild_text,lseg", "--seeds", "2", "--out", "here")
    assert run(*words) == 0
    row = json.loads((checkout / "here/summary.json").read_text())["rows"]["lseg"]
    assert row["seeds"] == 2 and "box" not in row
    assert row["sem_seg"]["mIoU_novel"] == {"mean": 2.5, "min": 2.5, "max": 2.5}
    boxes, maps = (checkout / "here/table.md").read_text().split("\n\n")
    assert "mIoU" not in boxes and boxes.splitlines()[2].startswith("| ViLD-text | 12.5 | 20.0 |")
    assert maps.splitlines()[0] == "| model | mIoU | mIoU_base | mIoU_novel |"
    assert maps.splitlines()[2] == "| LSeg | 21.5 | 25.0 | 2.5 |"
    shown = " ".join(capsys.readouterr().out.split())
    assert "ViLD: box AP in percent on mini_v1_test, mean of 2 seed(s)" in shown
    assert "LSeg and GroupViT: mean IoU in percent on mini_v1_test" in shown
    with Image.open(checkout / "here/segmentation.png") as image:
        assert image.size[0] > 200


def test_rows_of_examples_ask_the_weights_of_seed_1(checkout, no_mini_build, capsys):
    words = ("--rows", "vild_ensemble_novel_by_5,vild_ensemble_all_by_1", "--seeds", "2")
    assert run(*words, "--out", "here") == 0
    done = calls(checkout)
    assert "vild_ensemble-seed1" in done and "vild_ensemble-seed2" not in done
    name = f"here/examples-{digest(checkout, 'vild_ensemble-seed1')[:8]}-novel-5-seed2"
    last = done["vild_ensemble_novel_by_5-seed2"]
    assert "--eval-only MODEL.WEIGHTS here/vild_ensemble-seed1/model_final.pth" in last
    assert "--config-file configs/mini/vild_ensemble_examples.yaml" in last
    assert f"MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS {name}.safetensors" in last
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    drawn = f"mini examples --count 5 --classes novel --seed 2 --out {name}.json"
    learned = (
        f"vocab learn {name}.json --out {name}.safetensors --config-file "
        "here/vild_ensemble-seed1/config.yaml --weights here/vild_ensemble-seed1/model_final.pth"
    )
    for command in (drawn, learned):
        assert any(line.endswith(command) for line in shown), command
    summary = json.loads((checkout / "here/summary.json").read_text())["rows"]
    assert summary["vild_ensemble_all_by_1"]["title"] == "ViLD-ensemble, all classes by 1 example"


def test_finished_rows_are_kept_and_a_changed_parent_changes_its_children(
    checkout, no_mini_build, capsys
):
    words = ("--rows", "rkd_l1,rkd_base_longer", "--seeds", "1", "--out", "here")
    assert run(*words) == 0
    first = (checkout / "calls.txt").read_text()
    assert run(*words) == 0
    assert (checkout / "calls.txt").read_text() == first
    with open(checkout / "configs/mini/rkd_base.yaml", "a") as file:
        file.write("SEED: 7\n")
    assert run(*words) == 0
    again = (checkout / "calls.txt").read_text().removeprefix(first)
    names = [line.split("configs/mini/")[1].split(".yaml")[0] for line in again.splitlines()]
    assert names[0] == "rkd_base"
    assert sorted(names[1:]) == ["rkd_base_longer", "rkd_l1"]


def test_no_seed_is_begun_that_would_end_too_late(checkout, no_mini_build, capsys):
    words = ("--rows", "vild_text", "--seeds", "3", "--minutes", "0", "--out", "here")
    assert run(*words) == 0
    assert list(calls(checkout)) == ["vild_text-seed1"]
    assert "Stopping after 1 seeds" in capsys.readouterr().out


def test_families_choose_rows(checkout, no_mini_build, capsys):
    assert run("--families", "segmentation", "--seeds", "1", "--out", "here") == 0
    assert sorted(calls(checkout)) == ["groupvit-seed1", "lseg-seed1", "lseg_all-seed1"]
    shown = capsys.readouterr().out
    assert "3 runs, " in shown and "lseg ?, lseg_all ?, groupvit ?" in shown
    assert "3 of 3 runs in 0 min, about 0 min left" in shown


def test_unknown_rows_and_families_are_named(checkout, capsys):
    assert run("--rows", "vild_text,vild_txt") == 2
    wanted = "--rows vild_txt (do you mean vild_text?): the benchmark knows supervised_all, "
    assert wanted in capsys.readouterr().err
    assert run("--families", "vild,clip") == 2
    assert "--families clip: the benchmark knows " in capsys.readouterr().err
    assert run("--families", "rkd", "--rows", "glip") == 2
    assert "--families rkd: none of --rows glip is of them." in capsys.readouterr().err


def test_every_row_is_of_a_family():
    found = {name: family_of(name) for name in benchmark.KNOWN}
    assert found["vild_ensemble_novel_by_5"] == "examples" and found["vild_ensemble"] == "vild"
    assert {name for name, family in FAMILIES.items() if not family.of_demo} == set(found.values())
    chosen = select(benchmark.ROWS, "", "examples")
    assert chosen[0] == "vild_ensemble" and len(chosen) == 7


def test_the_time_left_counts_what_was_measured():
    runs = [("a", 1), ("b", 1), ("c", 1), ("a", 2)]
    estimate = Estimate({"a": 600.0}, runs, at_once=2)
    assert estimate.left() == 4 * 600 / 2  # b and c: as the others
    assert "4 runs, 2 at once, about 20 min. " in estimate.plan()
    assert "a 10, b ?, c ?." in " ".join(estimate.plan().split())
    estimate.ended("a", 1, 1200.0)  # this machine is slower
    assert estimate.left() == 3 * 1200 / 2
    estimate.ended("b", 1, 0.0)
    estimate.ended("c", 1, 60.0)
    assert estimate.left() == 1200.0
    assert estimate.line(3660) == "3 of 4 runs in 1:01 h, about 20 min left"
    assert Estimate({}, runs, at_once=2).left() is None
