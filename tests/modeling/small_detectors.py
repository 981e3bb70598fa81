"""Small detectors of all three kinds, built from Detectron2's own yamls with synthetic text."""

import json

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from ovd_d2 import add_ovd_config
from ovd_d2.language import TextEmbeddings, Vocabulary

KINDS = {
    "fpn": ("LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", "OpenVocabROIHeads"),
    "cascade": ("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", "OpenVocabCascadeROIHeads"),
    "c4": ("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", "OpenVocabRes5ROIHeads"),
}
DIM = 16


def make_vocabulary(num_classes: int, novel=()) -> Vocabulary:
    return Vocabulary(
        names=tuple(f"thing {k}" for k in range(num_classes)),
        is_novel=tuple(k in novel for k in range(num_classes)),
        image_counts=tuple(0 if k in novel else 10 for k in range(num_classes)),
    )


def make_embeddings(vocabulary: Vocabulary, seed=0, encoder_id="test-encoder") -> TextEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(vocabulary), DIM, generator=generator)
    values = torch.nn.functional.normalize(values, dim=1)
    return TextEmbeddings(embeddings=values, names=vocabulary.names, encoder_id=encoder_id)


@pytest.fixture
def zoo_cfg(tmp_path):
    """``zoo_cfg(kind, num_classes, *opts, slim=True)``: a model-zoo config with our heads."""

    def make(kind: str, num_classes: int = 5, *opts, slim: bool = True):
        yaml, head = KINDS[kind]
        names = tmp_path / f"names{num_classes}.json"
        names.write_text(json.dumps({"names": [f"thing {k}" for k in range(num_classes)]}))
        table = tmp_path / f"embeddings{num_classes}.npy"
        generator = np.random.default_rng(0)
        np.save(table, generator.normal(size=(num_classes, DIM)).astype(np.float16))
        cfg = get_cfg()
        add_ovd_config(cfg)
        cfg.merge_from_file(model_zoo.get_config_file(yaml))
        cfg.merge_from_list([
            "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "",
            "MODEL.ROI_HEADS.NAME", head,
            "MODEL.OPEN_VOCAB.VOCABULARY", str(names),
            "MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS", str(table),
            "MODEL.OPEN_VOCAB.EMBED_DIM", DIM,
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True,
            "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True,
            "INPUT.MASK_FORMAT", "bitmask",
            "DATASETS.TRAIN", (), "DATASETS.TEST", (),  # targets are numbered by the vocabulary
        ])  # fmt: skip
        if slim:
            cfg.merge_from_list([
                "MODEL.RESNETS.DEPTH", 18 if kind != "c4" else 50,
                "MODEL.RESNETS.RES2_OUT_CHANNELS", 64 if kind != "c4" else 32,
                "MODEL.RESNETS.WIDTH_PER_GROUP", 64 if kind != "c4" else 8,
                "MODEL.RESNETS.STEM_OUT_CHANNELS", 16 if kind == "c4" else 64,
                "MODEL.FPN.OUT_CHANNELS", 16,
                "MODEL.ROI_BOX_HEAD.FC_DIM", 32,
                "MODEL.ROI_MASK_HEAD.CONV_DIM", 8,
                "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
                "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50,
                "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
            ])  # fmt: skip
        cfg.merge_from_list(list(opts))
        return cfg

    return make


@pytest.fixture
def build(zoo_cfg):
    """``build(kind, num_classes, *opts)``: the model, weights fixed by seed."""

    def make(*args, **kwargs):
        cfg = zoo_cfg(*args, **kwargs)
        torch.manual_seed(0)
        return build_model(cfg)

    return make


def make_target(boxes, classes, size=(96, 128), **fields) -> Instances:
    target = Instances(size)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target.gt_boxes = Boxes(boxes)
    target.gt_classes = torch.tensor(classes, dtype=torch.int64)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist()):
        mask[y0:y1, x0:x1] = True
    target.gt_masks = BitMasks(masks)
    for name, value in fields.items():
        target.set(name, value)
    return target


def make_batch(targets, seed=0) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.randint(0, 256, (3, *t.image_size), generator=generator).byte(),
            "instances": t,
            "height": t.image_size[0],
            "width": t.image_size[1],
        }
        for t in targets
    ]


def training_losses(model, batch, seed=0) -> dict:
    model.train()
    torch.manual_seed(seed)
    with EventStorage():
        return model(batch)
