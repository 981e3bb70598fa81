"""What nobody here has heard of goes through every door without a change in the package.

The meta-architecture of ``toy_system.py`` reads words letter by letter and has neither ROI heads
nor an embedding matrix. Only ``--register`` names it.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import warm_processes
from detectron2 import model_zoo
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
TOY = str(ROOT / "tests/toy_system.py")
COLOURS = ("red", "green", "blue")
YAML = """
MODEL: {META_ARCHITECTURE: WordReader, DEVICE: cpu, WEIGHTS: "", OPEN_VOCAB: {VOCABULARY: "%s"}}
DATASETS: {TRAIN: [toy_train], TEST: [toy_turned]}
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64, RANDOM_FLIP: none}
DATALOADER: {NUM_WORKERS: 0}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 1, BASE_LR: 0.1, STEPS: [], CHECKPOINT_PERIOD: 1}
OUTPUT_DIR: run
VERSION: 2
"""
TASK = """
MODEL:
  DEVICE: cpu
  WEIGHTS: ""
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, NORM: BN}
  BACKBONE: {FREEZE_AT: 0}
  FPN: {OUT_CHANNELS: 16}
  ROI_HEADS: {NAME: OpenVocabROIHeads, BATCH_SIZE_PER_IMAGE: 8}
  ROI_BOX_HEAD: {CLS_AGNOSTIC_BBOX_REG: True, FC_DIM: 16, NUM_FC: 1}
  RPN: {POST_NMS_TOPK_TRAIN: 20}
  OPEN_VOCAB: {TEXT_EMBEDDINGS: colours.npy, EMBED_DIM: 8, REGION_TASKS: [Sharpness]}
DATASETS: {TRAIN: [toy_train], TEST: []}
INPUT: {MIN_SIZE_TRAIN: [64]}
DATALOADER: {NUM_WORKERS: 0}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 1, BASE_LR: 0.001, STEPS: [], WARMUP_ITERS: 0}
OUTPUT_DIR: task
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures with one coloured box each, and two jsons of them that number the colours
    differently; the model's own order is a third one."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "images").mkdir()
    for name, order in (("toy_train", COLOURS), ("toy_turned", COLOURS[::-1])):
        images, annotations = [], []
        for i in range(6):
            colour, x, y = COLOURS[i % 3], 8 + 6 * i, 40 - 6 * i
            picture = Image.new("RGB", (64, 64), "black")
            ImageDraw.Draw(picture).rectangle(
                (x, y, x + 15, y + 15), "lime" if i % 3 == 1 else colour
            )
            picture.save(folder / f"images/{i}.png")
            images.append({"id": i + 1, "file_name": f"{i}.png", "width": 64, "height": 64})
            annotations.append({"id": i + 1, "image_id": i + 1, "bbox": [x, y, 16, 16],
                                "category_id": 1 + order.index(colour), "area": 256,
                                "iscrowd": 0})  # fmt: skip
        categories = [{"id": 1 + k, "name": colour} for k, colour in enumerate(order)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "toy.yaml").write_text(YAML % "blue, red, green")
    return folder


def run(folder, *words):
    """A command as a process in ``folder``; its output."""
    environment = {**os.environ, "TOY_DATA": str(folder), "PYTHONPATH": str(ROOT)}
    result = warm_processes.run(
        [str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=280,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.slow
def test_a_meta_architecture_of_somebody_else(folder):
    train = (sys.executable, ROOT / "train_net.py", "--config-file", "toy.yaml", "--register", TOY)
    ovd = Path(sys.executable).with_name("ovd")
    run(folder, *train)  # class numbers of toy_train become places in "blue, red, green"
    run(folder, *train, "--resume", "SOLVER.MAX_ITER", 2, "TEST.PRESENCE.ENABLED", True,
        "TEST.PRESENCE.THRESHOLD", -1.0)  # fmt: skip
    report = json.loads((folder / "run/results.json").read_text())
    assert report["iteration"] == 2
    metrics = report["results"]["toy_turned"]["bbox"]  # with that data set's classes, in its order
    assert [k for k in metrics if k.startswith("AP-")] == [f"AP-{c}" for c in COLOURS[::-1]]
    presence = report["results"]["toy_turned"]["presence_at_best_of_same_data"]
    assert [k for k in presence if "-" in k] == [f"IL_F1-{c}" for c in COLOURS[::-1]]
    assert 0 < presence["threshold"] < 1 and 0 <= presence["IL_recall"] <= 100

    run(folder, ovd, "export", "run/model_final.pth", "--config-file", "toy.yaml", "--out", "toy",
        "--register", TOY)  # fmt: skip
    assert json.loads((folder / "toy/facts.json").read_text())["text_encoder_id"] == ""
    run(folder, ovd, "predict", "images/0.png", "--model", "toy", "--vocab", "mauve, blue",
        "--score-threshold", 0.0, "--json", "found.json", "--no-pictures",
        "--register", TOY)  # fmt: skip
    content = (folder / "found.json").read_text()
    assert "mauve" in content

    run(folder, ovd, "pseudo-label", "--detector", "model:run/model_final.pth", "--dataset",
        "toy_turned", "--labels", "dataset", "--out", "labels.json", "--config-file", "toy.yaml",
        "--register", TOY)  # fmt: skip
    labels = json.loads((folder / "labels.json").read_text())
    assert [c["name"] for c in labels["categories"]] == list(COLOURS[::-1])
    assert {a["image_id"] for a in labels["annotations"]} <= set(range(1, 7))
    assert len(labels["annotations"]) + labels["info"]["labels_without_box"] == 6


@pytest.mark.slow
def test_a_region_task_of_somebody_else(folder):
    """In the heads of a zoo detector: trained, saved and gone on with."""
    base = model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    np.save(folder / "colours.npy", np.eye(3, 8, dtype=np.float32))
    (folder / "task.yaml").write_text(f"_BASE_: {base}\n" + TASK)
    train = (sys.executable, ROOT / "train_net.py", "--config-file", "task.yaml", "--register", TOY)
    run(folder, *train)
    run(folder, *train, "--resume", "SOLVER.MAX_ITER", 2, "TEST.PRESENCE.ENABLED", True,
        "TEST.PRESENCE.THRESHOLD", -1.0)  # fmt: skip
    rows = [json.loads(line) for line in (folder / "task/metrics.json").read_text().splitlines()]
    assert all(row["loss_sharpness"] > 0 for row in rows) and rows[-1]["iteration"] == 1
    weights = torch.load(folder / "task/model_final.pth", weights_only=True)["model"]
    (name,) = [name for name in weights if name.startswith("roi_heads.region_tasks.")]
    assert name.endswith(".weight") and (weights[name] != 1).any()


def test_the_predictor_and_the_loops_of_others(folder, monkeypatch):
    """Without a process of its own: the names below are the toy's whole contract."""
    monkeypatch.setenv("TOY_DATA", str(folder))
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.modeling import META_ARCH_REGISTRY

    import ovd_d2
    from ovd_d2.config_file import load_config
    from ovd_d2.data.user_code import run_registration
    from ovd_d2.engine import OpenVocabTrainer
    from ovd_d2.errors import OVDError
    from ovd_d2.modeling import OpenVocabularyModel, get_vocabulary, set_vocabulary
    from ovd_d2.modeling.roi_heads import REGION_TASK_REGISTRY

    try:
        run_registration(TOY)
        cfg = load_config(str(folder / "toy.yaml"), ["MODEL.OPEN_VOCAB.VOCABULARY", "later"])
        model = OpenVocabTrainer.build_model(cfg)
        assert isinstance(model, OpenVocabularyModel) and get_vocabulary(model) is None
        with ovd_d2.vocabulary_for(cfg, model, "toy_turned"):
            assert get_vocabulary(model).names == COLOURS[::-1]
        assert get_vocabulary(model) is None
        set_vocabulary(model, "mauve")
        assert get_vocabulary(model).names == ("mauve",)
        with pytest.raises(OVDError, match="WordReader makes its class embeddings itself"):
            set_vocabulary(model, "mauve", "minilm")
    finally:
        META_ARCH_REGISTRY._obj_map.pop("WordReader", None)
        REGION_TASK_REGISTRY._obj_map.pop("Sharpness", None)
        for name in ("toy_train", "toy_turned"):
            DatasetCatalog.pop(name, None)
            MetadataCatalog.pop(name, None)
