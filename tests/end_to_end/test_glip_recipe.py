"""The mini GLIP by commands: trained on boxes and captions, killed in between, evaluated, used."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from recipe_commands import ROOT, run, weights

pytestmark = pytest.mark.slow
SMALL = [
    "SOLVER.IMS_PER_BATCH", "2", "MODEL.TIMM.WEIGHTS", "", "MODEL.GLIP.NUM_BLOCKS", "1",
    "SOLVER.CHECKPOINT_PERIOD", "2", "MODEL.GLIP.DROPOUT", "0.1", "DATALOADER.NUM_WORKERS", "0",
]  # fmt: skip


def train(folder, out, *words, expect=0):
    command = (sys.executable, ROOT / "train_net.py", "--config-file", "configs/mini/glip.yaml")
    return run(folder, *command, *words, *SMALL, "OUTPUT_DIR", out, expect=expect)


def test_training_goes_on_where_it_stopped_and_both_kinds_of_data_are_evaluated(folder):
    train(folder, "straight", "SOLVER.MAX_ITER", "4")
    results = json.loads((folder / "straight/results.json").read_text())["results"]
    assert "AP_novel" in results["mini_v1_test"]["bbox"]
    phrases = results["mini_v1_grounding_test"]["phrase_grounding"]
    assert 0 <= phrases["R@1"] <= phrases["R@10"] <= phrases["upper_bound"] <= 100

    (folder / "stopped").mkdir()  # as if it had been killed after two steps
    shutil.copy(folder / "straight/model_0000001.pth", folder / "stopped")
    (folder / "stopped/last_checkpoint").write_text("model_0000001.pth")
    train(folder, "stopped", "--resume", "SOLVER.MAX_ITER", "4", "DATASETS.TEST", "()")
    straight, resumed = weights(folder, "straight"), weights(folder, "stopped")
    assert straight.keys() == resumed.keys()
    assert [key for key in straight if not torch.equal(straight[key], resumed[key])] == []


def test_two_processes_learn_what_one_learns(folder):
    torchrun = Path(sys.executable).with_name("torchrun")
    run(
        folder, torchrun, "--standalone", "--nproc-per-node", 2, ROOT / "train_net.py",
        "--config-file", "configs/mini/glip.yaml", *SMALL, "SOLVER.MAX_ITER", 2,
        "OUTPUT_DIR", "two", "DATASETS.TEST", "()",
    )  # fmt: skip
    rows = [json.loads(line) for line in (folder / "two/metrics.json").read_text().splitlines()]
    assert {"loss_token", "loss_box_reg", "loss_centerness"} <= set(rows[-1])


def test_an_exported_model_predicts_and_grounds(folder):
    if not (folder / "straight/model_final.pth").exists():
        train(folder, "straight", "SOLVER.MAX_ITER", "4", "DATASETS.TEST", "()")
    ovd = Path(sys.executable).with_name("ovd")
    image = next((folder / "datasets/mini-v1/images/test").iterdir())
    run(folder, ovd, "export", "straight/model_final.pth", "--config-file", "straight/config.yaml",
        "--out", "glip")  # fmt: skip
    run(folder, ovd, "predict", image, "--model", "glip", "--vocab", "owl, red mug",
        "--score-threshold", 0, "--json", "found.json", "--no-pictures")  # fmt: skip
    assert {c["name"] for c in json.loads((folder / "found.json").read_text())["categories"]} == {
        "owl", "red mug"}  # fmt: skip
    run(folder, ovd, "ground", image, "an owl and a red mug", "--model", "glip", "--out", "g.png",
        "--score-threshold", 0)  # fmt: skip
    assert (folder / "g.png").is_file()


def test_phrases_are_not_asked_of_a_model_that_reads_none(folder):
    message = run(
        folder, sys.executable, ROOT / "train_net.py", "--config-file",
        "configs/mini/vild_text.yaml", "DATASETS.TEST", "('mini_v1_grounding_val',)",
        expect=2,
    )  # fmt: skip
    assert "asks for phrases of captions" in message and "Traceback" not in message
