"""``ovd demo`` around a ``train_net.py`` that writes what the real one writes, in no time."""

import json
import os
import sys
from pathlib import Path

import pytest
import warm_processes
from PIL import Image

from ovd_d2.cli import app, demo


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Trainings that take no time need no torchrun."""
    monkeypatch.setattr(demo, "PROCESSES", 1)


def calls(checkout):
    return (checkout / "calls.txt").read_text().splitlines()


def run(*words):
    """Exit code of ``ovd demo`` in this process."""
    with pytest.raises(SystemExit) as exit_info:
        app.main(["demo", *words])
    return exit_info.value.code or 0


@pytest.mark.slow
def test_two_models_as_a_process(checkout):
    ovd = str(Path(sys.executable).with_name("ovd"))
    names = ["vild_text", "vild_text_mask"]
    words = [ovd, "demo", "--models", ",".join(names)]
    result = warm_processes.run(words, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    commands = [line for line in lines if line.startswith("$ ")]
    assert commands[0].endswith("ovd mini build")
    assert all(" -m torch.distributed.run " in line for line in commands[1:])
    assert [line.split(" train_net.py ")[1] for line in commands[1:]] == [
        f"--config-file configs/mini/{name}.yaml OUTPUT_DIR output/demo/{name}" for name in names
    ]
    summary = json.loads((checkout / "output/demo/summary.json").read_text())
    assert list(summary["models"]) == names
    mask = summary["models"]["vild_text_mask"]
    assert mask["segm"] == mask["box"]
    assert mask["box"]["AP_base"] == 20.0
    assert mask["box"]["AP_novel"] is None
    assert "segm" not in summary["models"]["vild_text"]
    assert mask["seconds"] > 0
    page = (checkout / "output/demo/index.html").read_text()
    assert "<td>ViLD-text</td>" in page and "<td>20.0</td>" in page
    assert 'src="detections.png"' in page
    for name in ("average_precision.png", "detections.png", "loss_curves.png"):
        with Image.open(checkout / "output/demo" / name) as image:
            assert min(image.size) > 200
    rows = [line for line in lines if " box " in line]
    assert len(rows) == len(names)
    assert [len(row) for row in rows] == [len(rows[0])] * len(rows)


def test_distilled_models_wait_for_the_regions_of_the_proposer(checkout, no_mini_build, capsys):
    assert run("--models", "vild_ensemble,supervised_all", "--out", "here") == 0
    order = [call.split("configs/mini/")[1].split(".yaml")[0] for call in calls(checkout)]
    assert sorted(order[:2]) == ["supervised_all", demo.PROPOSER]
    assert order[2:] == ["vild_ensemble"]
    digest = json.loads((checkout / "here" / demo.PROPOSER / "run.json").read_text())["digest"]
    assert f"DATASETS.REGION_STORE here/regions-{digest[:8]}" in calls(checkout)[-1]
    out = capsys.readouterr().out
    built = next(line for line in out.splitlines() if " regions build " in line)
    assert f"--proposals rpn:here/{demo.PROPOSER}/model_final.pth --encoder mini-teacher" in built
    summary = json.loads((checkout / "here/summary.json").read_text())
    assert list(summary["models"]) == ["vild_ensemble", "supervised_all"]
    assert summary["seed"] == 1


def test_the_longer_ensemble_goes_on_from_the_proposer(checkout, no_mini_build):
    assert run("--out", "here", "--seed", "2") == 0
    first, second = calls(checkout)
    assert "MODEL.WEIGHTS" not in first
    assert f"MODEL.WEIGHTS here/{demo.PROPOSER}/model_final.pth" in second
    assert first.endswith("SEED 2") and "SEED 2" in second
    assert json.loads((checkout / "here/summary.json").read_text())["seed"] == 2


def test_finished_runs_are_kept_and_changed_ones_moved_aside(checkout, no_mini_build, capsys):
    words = ("--models", "vild_text,base_closed_set", "--out", "here")
    assert run(*words) == 0
    assert len(calls(checkout)) == 2
    assert run(*words) == 0
    assert len(calls(checkout)) == 2
    assert "vild_text: finished earlier" in capsys.readouterr().out
    with open(checkout / "configs/mini/Base.yaml", "a") as file:
        file.write("SEED: 2\n")
    assert run("--models", "vild_text", "--out", "here") == 0
    assert len(calls(checkout)) == 3
    [aside] = (checkout / "here").glob("vild_text.before-*")
    assert (aside / "results.json").is_file()


def test_a_failed_training_is_reported_and_resumed(checkout, no_mini_build, capfd):
    config = checkout / "configs/mini/vild_text.yaml"
    good = config.read_text()
    config.write_text(good + "# FAIL\n")
    words = ("--models", "vild_text,base_closed_set", "--out", "here", "--quick")
    assert run(*words) == 2
    error = capfd.readouterr().err
    assert "a traceback\nit broke" in error
    assert error.splitlines()[-1].startswith("error: Training failed: vild_text (exit code 1)")
    assert not (checkout / "here/summary.json").exists()
    assert json.loads((checkout / "here/base_closed_set/run.json").read_text())["finished"]
    assert run(*words) == 2  # the same again: goes on from the checkpoint, keeps the finished one
    assert [("--resume" in call) for call in calls(checkout)] == [False, False, True]
    assert all(call.count("SOLVER.MAX_ITER 20") == 1 for call in calls(checkout))


def test_a_broken_config_is_named(checkout, no_mini_build, capsys):
    (checkout / "configs/mini/vild_text.yaml").write_text("_BASE_: nowhere.yaml\n")
    assert run("--models", "vild_text") == 2
    assert "nowhere.yaml does not exist" in capsys.readouterr().err
    assert not os.path.exists("output")
