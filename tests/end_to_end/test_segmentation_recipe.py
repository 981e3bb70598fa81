"""The mini LSeg and GroupViT by commands: trained, killed in between, evaluated, exported, used."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recipe_commands import ROOT, run, run_copy, weights

pytestmark = pytest.mark.slow
SMALL = {
    "lseg": ["SOLVER.IMS_PER_BATCH", 2, "MODEL.TIMM.WEIGHTS", "", "MODEL.LSEG.WIDTH", 16],
    "groupvit": [
        "SOLVER.IMS_PER_BATCH", 4, "MODEL.GROUPVIT.WIDTH", 48, "MODEL.GROUPVIT.DROP_PATH_RATE", 0.1,
    ],
}  # fmt: skip
LOSSES = {"lseg": {"loss_sem_seg"}, "groupvit": {"loss_contrastive", "loss_multi_label"}}
SHORT = ["SOLVER.CHECKPOINT_PERIOD", 2, "DATALOADER.NUM_WORKERS", 0]


def settings(system, out, *words):
    return [
        "--config-file", f"configs/mini/{system}.yaml", *words, *SMALL[system], *SHORT,
        "OUTPUT_DIR", out,
    ]  # fmt: skip


@pytest.fixture(scope="module", params=list(SMALL))
def trained(request, folder):
    """Name of the system; in its folder ``NAME`` four iterations, evaluated."""
    words = settings(request.param, request.param, "SOLVER.MAX_ITER", 4)
    run(folder, sys.executable, ROOT / "train_net.py", *words)
    return request.param


def test_base_and_novel_classes_are_evaluated(folder, trained):
    results = json.loads((folder / trained / "results.json").read_text())["results"]
    found = results["mini_v1_sem_seg_test"]["sem_seg"]
    assert {"mIoU", "mIoU_base", "mIoU_novel", "IoU-background"} <= set(found)
    run_copy(
        folder, "train_net.py", "--eval-only",
        *settings(trained, "again", "MODEL.WEIGHTS", f"{trained}/model_final.pth"),
    )  # fmt: skip
    again = json.loads((folder / "again/results.json").read_text())["results"]
    assert again["mini_v1_sem_seg_test"]["sem_seg"] == found


def test_training_goes_on_where_it_stopped(folder, trained):
    stopped = folder / f"{trained}_stopped"
    stopped.mkdir()  # as if it had been killed after two steps
    shutil.copy(folder / trained / "model_0000001.pth", stopped)
    (stopped / "last_checkpoint").write_text("model_0000001.pth")
    words = settings(trained, stopped.name, "SOLVER.MAX_ITER", 4, "DATASETS.TEST", "()")
    run_copy(folder, "train_net.py", "--resume", *words)
    straight, resumed = weights(folder, trained), weights(folder, stopped.name)
    assert straight.keys() == resumed.keys()
    assert [key for key in straight if not torch.equal(straight[key], resumed[key])] == []


def test_two_processes_train(folder, trained):
    torchrun = Path(sys.executable).with_name("torchrun")
    words = settings(trained, "two", "SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()")
    run(folder, torchrun, "--standalone", "--nproc-per-node", 2, ROOT / "train_net.py", *words)
    rows = [json.loads(line) for line in (folder / "two/metrics.json").read_text().splitlines()]
    assert LOSSES[trained] <= set(rows[-1])
    shutil.rmtree(folder / "two")


def test_an_exported_model_draws_other_words(folder, trained):
    image = next((folder / "datasets/mini-v1/images/test").iterdir())
    out = f"{trained}_model"
    config = ("--config-file", f"{trained}/config.yaml", "MODEL.OPEN_VOCAB.VOCABULARY", "owl")
    run_copy(folder, "ovd", "export", f"{trained}/model_final.pth", *config, "--out", out)
    words = ("--vocab", "background, owl, red mug", "--out", f"{trained}_found")
    run_copy(folder, "ovd", "predict", image, "--model", out, *words)
    with Image.open(folder / f"{trained}_found/{image.stem}_labels.png") as labels:
        with Image.open(image) as picture:
            assert labels.size == picture.size
        assert set(np.unique(np.asarray(labels))) <= {0, 1, 2}
