"""A detector and a dataset small enough to train for a few steps in a second.

Run as a script it is ``train_net.py`` with the two registered:
    python tiny_detector.py DATA_FOLDER [arguments of train_net.py]
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
TRAIN, TEST = "tiny_train", "tiny_test"


class TinyBackbone(Backbone):
    """Three convolutions to one map of stride 8; dropout makes training draw random numbers."""

    def __init__(self, dropout):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Dropout(dropout),
        )  # fmt: skip

    def forward(self, x):
        return {"p3": self.body(x)}

    def output_shape(self):
        return {"p3": ShapeSpec(channels=16, stride=8)}


if "build_tiny_backbone" not in BACKBONE_REGISTRY:

    @BACKBONE_REGISTRY.register()
    def build_tiny_backbone(cfg, input_shape):
        return TinyBackbone(0.1)

    @BACKBONE_REGISTRY.register()
    def build_tiny_backbone_without_dropout(cfg, input_shape):
        backbone = TinyBackbone(0.0)
        backbone.body[1] = nn.GroupNorm(2, 8)  # batch statistics would differ between processes
        return backbone


def write_dataset(folder, count=12, square=False, boxes_per_image=2):
    """Images with coloured rectangles in two shapes, and a COCO json; returns the json path."""
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(count):
        width, height = (64, 64) if square else ((64, 48) if i % 3 else (48, 64))
        pixels = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
        for _ in range(boxes_per_image):
            category = int(rng.integers(3))
            w, h = (int(v) for v in rng.integers(12, 24, 2))
            x, y = int(rng.integers(width - w)), int(rng.integers(height - h))
            pixels[y : y + h, x : x + w, category] = 255
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1,
                                "category_id": category + 1, "bbox": [x, y, w, h],
                                "area": w * h, "iscrowd": 0})  # fmt: skip
        name = f"{i + 1:03d}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": i + 1, "file_name": name, "width": width, "height": height})
    categories = [{"id": k + 1, "name": n} for k, n in enumerate(("red", "green", "blue"))]
    path = folder / "annotations.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return path


def register(folder):
    """Registers the dataset of ``folder`` for training and testing, replacing earlier ones."""
    from detectron2.data import MetadataCatalog

    for name in (TRAIN, TEST):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_coco_instances(
            name, {}, str(Path(folder) / "annotations.json"), str(Path(folder) / "images")
        )


OPTIONS = [
    "MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "",
    "MODEL.BACKBONE.NAME", "build_tiny_backbone", "MODEL.MASK_ON", "False",
    "MODEL.RPN.IN_FEATURES", "['p3']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[16, 32]]",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20",
    "MODEL.RPN.PRE_NMS_TOPK_TEST", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "20",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "16", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8",
    "MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", "['p3']",
    "MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC", "1", "MODEL.ROI_BOX_HEAD.FC_DIM", "16",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "3",
    "INPUT.MIN_SIZE_TRAIN", "(48, 64)", "INPUT.MIN_SIZE_TEST", "48",
    "INPUT.MAX_SIZE_TRAIN", "96",
    "DATASETS.TRAIN", f"('{TRAIN}',)", "DATASETS.TEST", f"('{TEST}',)",
    "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.01",
    "SOLVER.WARMUP_ITERS", "3", "SOLVER.MAX_ITER", "6", "SOLVER.STEPS", "(4,)",
    "SOLVER.CHECKPOINT_PERIOD", "2", "SEED", "7", "VERSION", "2",
]  # fmt: skip


def tiny_config(output_dir, *opts):
    """The config of the tiny detector."""
    from ovd_d2.engine import load_config

    return load_config("", [*OPTIONS, "OUTPUT_DIR", str(output_dir), *map(str, opts)])


def run_trainer(cfg, resume=False, trainer_class=None):
    """What train_net.py does, in this process; returns the trainer."""
    from detectron2.utils.env import seed_all_rng

    from ovd_d2.engine import OpenVocabTrainer

    seed_all_rng(cfg.SEED if cfg.SEED >= 0 else None)
    trainer = (trainer_class or OpenVocabTrainer)(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def weights(path):
    """The model weights of a checkpoint."""
    return torch.load(path, weights_only=True)["model"]


def assert_same_weights(first, second):
    """Bit by bit."""
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)
    register(sys.argv[1])
    import train_net
    from ovd_d2.engine import argument_parser, launch

    arguments = argument_parser().parse_args(sys.argv[2:])
    arguments.opts = [*OPTIONS, *(arguments.opts or [])]
    launch(train_net.main, arguments)
