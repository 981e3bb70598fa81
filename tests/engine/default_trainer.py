"""A Detectron2 user's script: own data, own vocabulary, Detectron2's own trainer and evaluator."""

from pathlib import Path

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode
from PIL import Image, ImageDraw
from tiny_detector import OPTIONS

import ovd_d2

SHAPES, TRAIN, TEST = ("circle", "triangle", "square"), "shapes_train", "shapes_test"


def records(folder, names):
    """Twelve pictures of one shape each, red, green or blue, 16, 20 or 24 pixels wide."""
    found = []
    for i in range(12):
        kind, name = i % 3, SHAPES[i % 3]
        image, x, side = Image.new("RGB", (64, 64)), 4 + 2 * i, 16 + 4 * kind
        pen, box = ImageDraw.Draw(image), (x, x, x + side - 1, x + side - 1)
        colour = tuple(255 * (c == kind) for c in range(3))
        {"circle": pen.ellipse, "square": pen.rectangle}.get(name, lambda *_, fill: None)(
            box, fill=colour
        )
        if name == "triangle":
            pen.polygon([(x, x + side - 1), (x + side / 2, x), (x + side - 1,) * 2], fill=colour)
        image.save(Path(folder) / f"{i}.png")
        found.append({"file_name": f"{folder}/{i}.png", "image_id": i, "width": 64, "height": 64,
                      "annotations": [{"bbox": [x, x, side, side], "iscrowd": 0,
                                       "bbox_mode": BoxMode.XYWH_ABS,
                                       "category_id": names.index(name)}]})  # fmt: skip
    return found


def register(folder, train_names=SHAPES, test_names=SHAPES):
    for dataset, names in ((TRAIN, train_names), (TEST, test_names)):
        if dataset in DatasetCatalog.list():
            DatasetCatalog.remove(dataset)
            MetadataCatalog.remove(dataset)
        DatasetCatalog.register(dataset, lambda names=names: records(folder, names))
        MetadataCatalog.get(dataset).set(thing_classes=list(names), evaluator_type="coco")


def config(folder, vocabulary, *opts):
    cfg = get_cfg()
    ovd_d2.add_ovd_config(cfg)
    cfg.merge_from_list([
        *OPTIONS, "OUTPUT_DIR", str(folder), "DATASETS.TRAIN", (TRAIN,), "DATASETS.TEST", (TEST,),
        "MODEL.ROI_HEADS.NAME", "OpenVocabROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        True, "MODEL.OPEN_VOCAB.VOCABULARY", vocabulary, "MODEL.OPEN_VOCAB.TEXT_ENCODER", "hashing",
        "MODEL.OPEN_VOCAB.EMBED_DIM", 8, "MODEL.PIXEL_MEAN", [0.0] * 3, "INPUT.RANDOM_FLIP", "none",
        "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "SOLVER.MAX_ITER", 3,
        "SOLVER.STEPS", (2,), *opts,
    ])  # fmt: skip
    return cfg


class PlainTrainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR, use_fast_impl=False)


class MixinTrainer(ovd_d2.OpenVocabTraining, DefaultTrainer):
    pass


class TwoLinesTrainer(PlainTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return ovd_d2.build_train_loader(cfg)
