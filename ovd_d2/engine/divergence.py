"""What to change when training blows up."""

from detectron2.config import CfgNode
from torch import nn

from ovd_d2.modeling.classifiers import EmbeddingClassifier

# Above it, text heads diverge at learning rates that Detectron2's own classifier trains with.
LARGE_LOGIT_SCALE = 20.0


def remedy_for_divergence(cfg: CfgNode, model: nn.Module) -> str:
    """The keys to turn, most promising first: "lower SOLVER.BASE_LR, ...".

    The gradient that a text head sends into region features is proportional to its logit scale,
    times 1 / |embedding|: 50 or 100 wants gradient clipping at least while training begins.

    Args:
        cfg: of the training.
        model: whose classifiers say their logit scale.
    """
    if cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        first = "lower SOLVER.CLIP_GRADIENTS.CLIP_VALUE"
    else:
        first = "set SOLVER.CLIP_GRADIENTS.ENABLED True"
        scales = [m.logit_scale for m in model.modules() if isinstance(m, EmbeddingClassifier)]
        largest = max(scales, default=0.0)
        if largest >= LARGE_LOGIT_SCALE:
            first += (
                " (the gradients of text heads grow with MODEL.OPEN_VOCAB.LOGIT_SCALE, which is "
                f"{largest:g}; a lower one helps too)"
            )
    return f"{first}, lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS"
