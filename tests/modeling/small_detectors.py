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
                # sixteen blocks of random weights make pixels of 0-255 very large numbers
                "MODEL.PIXEL_STD", [1.0 if kind == "c4" else 256.0] * 3,
                "MODEL.RESNETS.STEM_OUT_CHANNELS", 16,
                "MODEL.RESNETS.RES2_OUT_CHANNELS", 32,
                "MODEL.RESNETS.WIDTH_PER_GROUP", 8,
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


def pass_rows_alone(model) -> None:
    """Lets the box heads (C4: res5) see every row alone, so that nothing about it, not even its
    last bit, can come from the rows beside it."""

    def alone(forward):
        return lambda x: torch.cat([forward(row) for row in x.split(1)]) if len(x) else forward(x)

    heads = model.roi_heads
    head = heads.res5 if hasattr(heads, "res5") else heads.box_head
    for stage in head if hasattr(heads, "num_cascade_stages") else [head]:
        stage.forward = alone(stage.forward)


def losses_and_randomness(model, targets) -> tuple[dict, list]:
    """Losses in training; and per image sampled boxes, their classes, and the random state left."""
    heads, randomness = model.roi_heads, []
    sample = heads.label_and_sample_proposals

    def watched(*args):
        sampled = sample(*args)
        for one in sampled:
            randomness.extend([one.proposal_boxes.tensor.clone(), one.gt_classes.clone()])
        return sampled

    heads.label_and_sample_proposals = watched
    losses = training_losses(model, make_batch(targets))
    heads.label_and_sample_proposals = sample
    return losses, [*randomness, torch.get_rng_state()]


def assert_rows_change_nothing(model, plain, rich, may_change) -> tuple[dict, dict]:
    """Losses with targets ``plain`` and ``rich``, which has further rows, after checking that
    those ``may_change(name)`` does not name are the same, and so what was drawn at random.

    Layers over another number of rows are not bit-equal by contract (convolutions differ on some
    CPUs). So the same means: up to rounding, and bit by bit once the rows go through alone.
    """
    compared = []
    for rtol in (1e-5, 0):
        if rtol == 0:
            pass_rows_alone(model)
        (losses, drawn), (losses_rich, drawn_rich) = (
            losses_and_randomness(model, targets) for targets in (plain, rich)
        )
        assert losses.keys() == losses_rich.keys()
        assert len(drawn) == len(drawn_rich) and all(map(torch.equal, drawn, drawn_rich))
        for name in losses:
            if not may_change(name):
                here = 0 if name.startswith("loss_rpn") else rtol
                torch.testing.assert_close(
                    losses_rich[name], losses[name], rtol=here, atol=here / 10, msg=name
                )
        compared.append((losses, losses_rich))
    return compared[0]
