"""Keys of the optimiser and of checkpoints: SOLVER."""

from detectron2.config import CfgNode as CN

from ovd_d2.config.rules import (
    ABOVE_0,
    BELOW_1,
    COUNT,
    COUNT_OR_0,
    NAMES,
    SHARE,
    Rows,
    Rule,
    at_least,
    each,
    empty_or,
    one_of,
)

_PREFIX_FACTORS = Rule(
    lambda v: (
        isinstance(v, list | tuple)
        and all(isinstance(p, list | tuple) and len(p) == 2 for p in v)
        and all(isinstance(name, str) and name and at_least(0).good(f) for name, f in v)
    ),
    'a list of [prefix, factor], such as [["backbone.", 0.1]]',
)
RULES: Rows = (  # rule, prefix, keys below it
    (COUNT, "SOLVER.", "ACCUMULATE"),
    (COUNT_OR_0, "SOLVER.", "CHECKPOINT_KEEP"),
    (_PREFIX_FACTORS, "SOLVER.", "LR_MULTIPLIERS"),
    (empty_or(NAMES), "SOLVER.", "NO_WEIGHT_DECAY"),
    (one_of("SGD", "ADAMW"), "SOLVER.", "OPTIMIZER"),
    (each(BELOW_1, 2), "SOLVER.", "ADAM_BETAS"),
    (ABOVE_0, "SOLVER.", "ADAM_EPS"),
    (empty_or(NAMES), "SOLVER.LINEAR_LR.", "PREFIXES"),
    (SHARE, "SOLVER.LINEAR_LR.", "WARMUP"),
    (BELOW_1, "SOLVER.EMA.", "DECAY"),
    (one_of("float16", "bfloat16"), "SOLVER.AMP.", "DTYPE"),
)  # fmt: skip


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    # "SGD" (Detectron2's) or "ADAMW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Of "ADAMW": decay of the means of the gradient and of its square, and what is added to the
    # root of the latter.
    cfg.SOLVER.ADAM_BETAS = [0.9, 0.999]
    cfg.SOLVER.ADAM_EPS = 1e-8
    # [PREFIX, factor] pairs: parameters whose name starts with PREFIX use BASE_LR times the factor
    # of the first that fits, e.g. [["backbone.", 0.1], ["roi_heads.image_branch.", 3.0]].
    cfg.SOLVER.LR_MULTIPLIERS = []
    for old, prefix in (("BACKBONE", "backbone."), ("IMAGE_BRANCH", "roi_heads.image_branch.")):
        cfg.register_renamed_key(
            f"SOLVER.{old}_MULTIPLIER",
            "SOLVER.LR_MULTIPLIERS",
            message=f'write [["{prefix}", factor]]; without a factor leave it out',
        )
    # Parameters whose names begin with one of PREFIXES have a schedule of their own, whatever
    # LR_SCHEDULER_NAME says: linear from 0 to their rate over the first share WARMUP of MAX_ITER,
    # then linear to 0 (MDETR's and MAVL's text encoder).
    cfg.SOLVER.LINEAR_LR = CN({"PREFIXES": [], "WARMUP": 0.01})
    # An exponential moving average of the weights: it is what is saved, evaluated and opened by
    # others. A checkpoint holds the trained weights too, for --resume. Short trainings need a
    # smaller DECAY: it looks back over about 1 / (1 - DECAY) steps.
    cfg.SOLVER.EMA = CN({"ENABLED": False, "DECAY": 0.9998})
    # Parameters that do not decay, by the last word of their names: learned factors on logits and
    # on the box deltas of a level, for which 0 means nothing. Biases and norms have keys of their
    # own.
    cfg.SOLVER.NO_WEIGHT_DECAY = [
        "logit_scale", "multi_label_logit_scale", "log_scale", "level_scales",
    ]  # fmt: skip
    # Micro-batches summed into one optimizer step; IMS_PER_BATCH is the size of one micro-batch.
    cfg.SOLVER.ACCUMULATE = 1
    # Type used under SOLVER.AMP.ENABLED: "float16" (scaled loss) or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Keep this many newest checkpoints besides model_final; 0 keeps all.
    cfg.SOLVER.CHECKPOINT_KEEP = 3
