"""Label maps through the trainer: learned from, evaluated with the data set's own words, resumed;
and few-shot episodes."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data.semantic_trees import write_image, write_list, write_map
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ovd_d2.config_file import load_config
from ovd_d2.data.datasets.semantic.few_shot import load_pascal5i
from ovd_d2.engine import OpenVocabTrainer
from ovd_d2.engine.setup import check_config

sys.path.append(str(Path(__file__).resolve().parents[1] / "inference"))

from random_label_maps import letters_of_pixels

COLOURS = {"red": (220, 30, 30), "green": (30, 210, 40), "blue": (30, 40, 230)}


@pytest.fixture
def stripes(tmp_path):
    """Two data sets of coloured stripes that number their classes differently; blue is novel."""
    letters_of_pixels()
    for name, order in (("stripes_train", "red green blue"), ("stripes_test", "blue red green")):
        records = []
        for i in range(4):
            classes = np.roll(np.arange(3), i).repeat(16)
            labels = np.tile(classes, (24, 1)).astype(np.uint8)
            pixels = np.array([COLOURS[c] for c in order.split()], np.uint8)[labels]
            labels[:2] = 255
            files = [tmp_path / f"{name}_{i}_{kind}.png" for kind in ("image", "map")]
            for array, file in zip((pixels, labels), files):
                Image.fromarray(array).save(file)
            records.append({"file_name": str(files[0]), "sem_seg_file_name": str(files[1])})
        DatasetCatalog.register(name, lambda r=records: r)
        MetadataCatalog.get(name).set(
            stuff_classes=order.split(), evaluator_type="sem_seg", novel_classes=["blue"]
        )
    yield tmp_path
    for name in ("stripes_train", "stripes_test"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(out, *opts):
    cfg = load_config("", [
        "MODEL.META_ARCHITECTURE", "LettersOfPixels", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "",
        "INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TRAIN", "(24,)", "INPUT.MIN_SIZE_TEST", "24",
        "DATASETS.TRAIN", "('stripes_train',)", "DATASETS.TEST", "('stripes_test',)",
        "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.5",
        "SOLVER.WARMUP_ITERS", "0", "SOLVER.STEPS", "()", "SOLVER.MAX_ITER", "30",
        "SOLVER.CHECKPOINT_PERIOD", "10", "OUTPUT_DIR", str(out), "SEED", "2", *opts,
    ])  # fmt: skip
    check_config(cfg, train=True, resume=False)
    cfg.freeze()
    return cfg


def train(cfg, resume=False):
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(2)
    trainer = OpenVocabTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer, trainer.train()


def test_trained_and_evaluated_in_the_words_of_each_data_set(stripes):
    cfg = config(stripes / "out")
    trainer, results = train(cfg)
    found = results["sem_seg"]
    assert found["mIoU_base"] > 99  # red and green, numbered otherwise than in training
    assert set(found) >= {"mIoU", "mIoU_base", "mIoU_novel", "hIoU", "pACC", "IoU-blue"}
    assert trainer.model.vocabulary.names == ("red", "green", "blue")
    # Nothing was learned from the pixels of blue: the same with a map that ignores them.
    for record in DatasetCatalog.get("stripes_train"):
        labels = np.array(Image.open(record["sem_seg_file_name"]))
        labels[labels == 2] = 255
        Image.fromarray(labels).save(record["sem_seg_file_name"])
    again, _ = train(config(stripes / "again"))
    assert torch.equal(again.model.letters.weight, trainer.model.letters.weight)


def test_resumed_exactly(stripes):
    whole, _ = train(config(stripes / "whole"))
    train(config(stripes / "parts", "SOLVER.MAX_ITER", "10"))
    parts, _ = train(config(stripes / "parts"), resume=True)
    assert torch.equal(whole.model.letters.weight, parts.model.letters.weight)


def test_few_shot_episodes_are_evaluated(stripes):
    root = stripes / "few"
    for name, values in (("a", (0, 6)), ("b", (0, 0, 7))):
        write_image(root / f"VOC2012/JPEGImages/{name}.jpg")
        write_map(root / f"VOC2012/SegmentationClassAug/{name}.png", values)
    write_list(root / "few_shot_splits/pascal/val/fold1.txt", ["a__06", "b__07"])
    DatasetCatalog.register("tiny_few", lambda: load_pascal5i(root, 1, train=False)[:20])
    classes = MetadataCatalog.get("pascal5i_fold1_val").stuff_classes
    MetadataCatalog.get("tiny_few").set(
        stuff_classes=classes, ignore_label=255, evaluator_type="few_shot_sem_seg"
    )
    try:
        cfg = config(stripes / "few_out", "DATASETS.TEST", "('tiny_few',)", "INPUT.SQUARE", "12")
        trainer = OpenVocabTrainer(cfg)
        found = OpenVocabTrainer.test(cfg, trainer.model)["sem_seg"]
    finally:
        DatasetCatalog.remove("tiny_few")
        MetadataCatalog.remove("tiny_few")
    assert set(found) == {"mIoU", "FB-IoU", *(f"IoU-{name}" for name in classes[1:])}
    assert found["mIoU"] == pytest.approx(sum(found[f"IoU-{n}"] for n in classes[1:]) / 5)
    assert found["IoU-car"] + found["IoU-bus"] > 0
    assert found["IoU-cat"] == 0  # of which there is no image
