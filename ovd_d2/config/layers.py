"""Keys of Detectron2's own layers: MODEL.BATCH_NORM, MODEL.RPN.NORM, MODEL.CHANNELS_LAST."""

from detectron2.config import CfgNode as CN


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    # Of all batch norms; 0: each layer's own (torch: 0.1 and 1e-5). Our trainer and predictor set
    # them once the model is built; after a plain build_model call modeling.batch_norm.finish_model.
    # MOMENTUM is the share of a batch in the running statistics (TensorFlow's 0.997 is 0.003).
    cfg.MODEL.BATCH_NORM = CN({"MOMENTUM": 0.0, "EPS": 0.0})
    # For MODEL.RPN.HEAD_NAME RPNHeadWithNorm: norm of the hidden convolutions, one per level.
    # ("BoxHeadWithNorm" and "MaskHeadWithNorm" put MODEL.ROI_*_HEAD.NORM after all their layers.)
    cfg.MODEL.RPN.NORM = ""
    # Memory layout of convolutions; several times faster for depthwise nets on CPU.
    cfg.MODEL.CHANNELS_LAST = False
