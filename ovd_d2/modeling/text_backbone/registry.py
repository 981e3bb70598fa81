"""The registry of text backbones.

Letters: N captions, L tokens, D text width.
"""

from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

from ovd_d2.errors import OVDError

TEXT_BACKBONE_REGISTRY: Any = Registry("TEXT_BACKBONE")
TEXT_BACKBONE_REGISTRY.__doc__ = """What ``MODEL.TEXT_BACKBONE.NAME`` may be: ``Module(cfg)``.

``tokenizer(captions)`` makes :class:`~ovd_d2.structures.grounding.CaptionTokens` of N strings, and
the module itself (N, L, D) features of them; ``dim`` is D, ``num_heads`` its attention heads.
"""


def build_text_backbone(cfg: CfgNode) -> nn.Module:
    """The text backbone that ``MODEL.TEXT_BACKBONE.NAME`` names.

    Raises:
        OVDError: no such backbone, or one that cannot be had.
    """
    name = cfg.MODEL.TEXT_BACKBONE.NAME
    if name not in TEXT_BACKBONE_REGISTRY:
        known = ", ".join(sorted(key for key, _ in TEXT_BACKBONE_REGISTRY))
        raise OVDError(f"MODEL.TEXT_BACKBONE.NAME is {name!r}; there are: {known}.")
    return TEXT_BACKBONE_REGISTRY.get(name)(cfg)
