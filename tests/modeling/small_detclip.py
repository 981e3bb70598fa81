"""A DetCLIP of a million parameters for tests, nearly all of them the words of CLIP's tokenizer."""

import torch
from small_glip import CAPTION, boxes_of, no_boxes, same, sample, small_config

from ovd_d2.modeling import DetCLIP

__all__ = [
    "CAPTION",
    "boxes_of",
    "detclip_config",
    "no_boxes",
    "pair",
    "same",
    "sample",
    "small_detclip",
]


def detclip_config(vocabulary="cat, red mug, zebra crossing", **detclip):
    cfg = small_config()
    cfg.MODEL.META_ARCHITECTURE = "DetCLIP"
    cfg.MODEL.OPEN_VOCAB.VOCABULARY = vocabulary
    keys = cfg.MODEL.DETCLIP
    keys.NUM_CONVS, keys.NORM_GROUPS, keys.EMBED_DIM = 1, 4, 12
    keys.TEXT.WIDTH, keys.TEXT.HEADS, keys.TEXT.LAYERS = 16, 2, 1
    keys.SCORE_THRESH_TEST = 0.0
    for name, value in detclip.items():
        keys[name] = value
    return cfg


def small_detclip(vocabulary="cat, red mug, zebra crossing", *, seed=0, **detclip):
    """The model in eval mode, every parameter of its head away from its first value."""
    torch.manual_seed(seed)
    model = DetCLIP(detclip_config(vocabulary, **detclip)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if "log_scale" not in name:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def pair(*concepts, height=64, width=96, seed=0):
    """A pair: the caption and its noun phrases."""
    return {**sample(height, width, seed=seed), "concepts": list(concepts)}


def in_double(monkeypatch):
    """Whatever is made fp32 on purpose stays fp64, so that a model in double can be compared."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr("clip.model.LayerNorm.forward", torch.nn.LayerNorm.forward)
