"""A GLIP of a million parameters for tests."""

import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances

from ovd_d2 import add_ovd_config
from ovd_d2.encoders.caption_tokenizer import CaptionTokenizer
from ovd_d2.modeling.meta_arch import GLIP
from ovd_d2.modeling.text_backbone import HuggingFaceTextBackbone
from ovd_d2.structures import TokenSpans


def small_text_backbone(max_tokens=64):
    from transformers import BertConfig, BertModel

    settings = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=256,
    )  # fmt: skip
    tokenizer = CaptionTokenizer.load("minilm", max_tokens)
    return HuggingFaceTextBackbone(
        model=BertModel(settings, add_pooling_layer=False), tokenizer=tokenizer
    )


def small_config(**glip):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "GLIP"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [100.0] * 3, [60.0] * 3
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_swin_fpn_backbone"
    swin = cfg.MODEL.SWIN
    swin.EMBED_DIM, swin.DEPTHS, swin.NUM_HEADS = 16, [1, 1, 1, 1], [1, 2, 4, 8]
    swin.WINDOW_SIZE, swin.DROP_PATH_RATE = 4, 0.0
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[64], [128], [256], [512], [1024]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.5
    keys = cfg.MODEL.GLIP
    keys.NUM_BLOCKS, keys.NORM_GROUPS, keys.FUSION_DIM, keys.FUSION_HEADS = 2, 4, 32, 4
    keys.SCORE_THRESH_TEST = 0.0
    for name, value in glip.items():
        keys[name] = value
    cfg.MODEL.OPEN_VOCAB.VOCABULARY = "cat, red mug, zebra crossing"
    cfg.TEST.DETECTIONS_PER_IMAGE = 1000
    return cfg


def small_glip(monkeypatch, *, max_tokens=64, seed=0, **glip):
    """The model in eval mode, every parameter away from its first value."""
    monkeypatch.setattr(
        "ovd_d2.modeling.meta_arch.glip.build_text_backbone",
        lambda cfg: small_text_backbone(max_tokens),
    )
    torch.manual_seed(seed)
    model = GLIP(small_config(**glip)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if "log_scale" not in name:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def sample(height=64, width=96, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": height, "width": width, **more}


def boxes_of(size=(64, 96), **fields):
    """Two boxes with ``gt_classes`` or ``gt_phrases``."""
    rows = Instances(size)
    rows.gt_boxes = Boxes(torch.tensor([[4.0, 4, 40, 50], [30, 10, 90, 60]]))
    for name, values in fields.items():
        rows.set(name, torch.tensor(values))
    return rows


def no_boxes(size=(64, 96), field="gt_classes"):
    return boxes_of(size, **{field: [0, 0]})[:0]


CAPTION = TokenSpans("a cat beside a red mug", (((2, 5),), ((15, 22),)))


def same(first, second, tolerance=1e-5):
    """The same detections, as sets where scores tie."""
    assert len(first) == len(second) > 0
    torch.testing.assert_close(first.scores, second.scores, atol=tolerance, rtol=0)
    near = (first.scores[1:] - first.scores[:-1]).abs() > 10 * tolerance
    clear = torch.cat([torch.tensor([True]), near]) & torch.cat([near, torch.tensor([True])])
    assert torch.equal(first.pred_classes[clear], second.pred_classes[clear])
    torch.testing.assert_close(
        first.pred_boxes.tensor[clear], second.pred_boxes.tensor[clear], atol=1e-2, rtol=0
    )
