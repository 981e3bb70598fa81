"""LSeg under our trainer: label maps in, steps, and a checkpoint that goes on."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ovd_d2 import add_ovd_config
from ovd_d2.engine import OpenVocabTrainer

NAMES = ["sky", "grass", "red mug"]
DATASET = "toy_label_maps"


@pytest.fixture
def cfg(tmp_path):
    """Four pictures, one colour per class, some pixels without one."""
    records = []
    for i in range(4):
        labels = np.full((64, 80), i % 2, np.uint8)
        labels[20:50, 10 + 5 * i : 40 + 5 * i] = 2
        labels[:4] = 255
        colours = np.array([[90, 150, 250], [40, 160, 40], [220, 30, 30]], np.uint8)
        image, maps = tmp_path / f"{i}.jpg", tmp_path / f"{i}.png"
        Image.fromarray(colours[np.minimum(labels, 2)]).save(image)
        Image.fromarray(labels).save(maps)
        records.append({"file_name": str(image), "sem_seg_file_name": str(maps), "image_id": i,
                        "height": 64, "width": 80})  # fmt: skip
    DatasetCatalog.register(DATASET, lambda: records)
    MetadataCatalog.get(DATASET).set(
        thing_classes=NAMES, stuff_classes=NAMES, evaluator_type="sem_seg", ignore_label=255
    )
    rows = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.merge_from_list([
        "MODEL.META_ARCHITECTURE", "LSeg", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "",
        "MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "tf_efficientnet_lite0",
        "MODEL.TIMM.WEIGHTS", "packaged:efficientnet-lite0",
        "MODEL.TIMM.OUT_STRIDES", [4, 8, 16, 32], "MODEL.LSEG.WIDTH", 16,
        "MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS", str(tmp_path / "rows.npy"),
        "MODEL.OPEN_VOCAB.EMBED_DIM", 16, "DATASETS.TRAIN", (DATASET,), "DATASETS.TEST", (),
        "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "INPUT.RANDOM_FLIP", "horizontal",
        "INPUT.FORMAT", "RGB", "DATALOADER.NUM_WORKERS", 0, "SOLVER.OPTIMIZER", "ADAMW",
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, "SEED", 1,
        "SOLVER.IMS_PER_BATCH", 2, "SOLVER.BASE_LR", 3e-3, "SOLVER.MAX_ITER", 8,
        "SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", 0, "SOLVER.CHECKPOINT_PERIOD", 4,
        "SOLVER.LR_MULTIPLIERS", [["backbone.", 0.1]], "OUTPUT_DIR", str(tmp_path / "run"),
    ])  # fmt: skip
    (tmp_path / "run").mkdir()
    yield cfg
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


def run(cfg, resume=False):
    trainer = OpenVocabTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def test_trains_and_goes_on_bit_by_bit(cfg, tmp_path):
    trainer = run(cfg)
    lines = (tmp_path / "run" / "metrics.json").read_text().splitlines()
    assert any("loss_sem_seg" in json.loads(line) for line in lines)
    assert trainer.model.vocabulary.names == tuple(NAMES)  # of the training data
    whole = trainer.model.state_dict()
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000003.pth")
    again = run(cfg, resume=True)
    assert again.start_iter == 4
    assert all(torch.equal(value, whole[key]) for key, value in again.model.state_dict().items())
