"""What to change when training blows up."""

from detectron2.config import CfgNode
from torch import nn

from ovd_d2.modeling.classifiers import EmbeddingClassifier

# Above it, text heads diverge at learning rates that Detectron2's own classifier trains with.
LARGE_LOGIT_SCALE = 20.0


def remedy_for_divergence(cfg: CfgNode, model: nn.Module) -> str:
    """The keys to turn, most promising first: "lower SOLVER.BASE_LR, ...".

    The gradient that a text head sends into region features is proportional to its logit scale:
    50 or 100 wants a long warm-up or gradients clipped by their norm. Clipping each value, as
    Detectron2 does unless told otherwise, bounds a gradient of n values by sqrt(n) only.

    Args:
        cfg: of the training.
        model: whose classifiers say their logit scale.
    """
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if clipping.ENABLED and clipping.CLIP_TYPE != "value":
        first = "lower SOLVER.CLIP_GRADIENTS.CLIP_VALUE"
    else:
        enable = "" if clipping.ENABLED else "SOLVER.CLIP_GRADIENTS.ENABLED True and "
        first = f'set {enable}SOLVER.CLIP_GRADIENTS.CLIP_TYPE "full_model"'
        scales = [m.logit_scale for m in model.modules() if isinstance(m, EmbeddingClassifier)]
        largest = max(scales, default=0.0)
        if largest >= LARGE_LOGIT_SCALE:
            first += (
                " (the gradients of text heads grow with MODEL.OPEN_VOCAB.LOGIT_SCALE, which is "
                f"{largest:g}; a lower one helps too)"
            )
    return f"{first}, lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS"
