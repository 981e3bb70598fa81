"""Keys of text backbones that a detector trains along: MODEL.TEXT_BACKBONE."""

from detectron2.config import CfgNode as CN

from ovd_d2.config.rules import COUNT, Rows

RULES: Rows = (  # rule, prefix, keys below it
    (COUNT, "MODEL.TEXT_BACKBONE.", "MAX_TOKENS"),
)  # fmt: skip


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    _C = cfg.MODEL.TEXT_BACKBONE = CN()
    # In ovd_d2.modeling.text_backbone.TEXT_BACKBONE_REGISTRY.
    _C.NAME = "HuggingFaceTextBackbone"
    # "hf:NAME_OR_FOLDER", "minilm", or "bert-base-uncased": its shape and its words, without
    # weights, for a checkpoint that has them.
    _C.MODEL = "hf:google-bert/bert-base-uncased"
    # Most tokens of a caption, with start and end.
    _C.MAX_TOKENS = 256
    # It keeps its weights.
    _C.FREEZE = False
