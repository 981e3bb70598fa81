"""Keys of grounded detection (Li et al. 2022, "GLIP"): MODEL.GLIP."""

from detectron2.config import CfgNode as CN

from ovd_d2.config.rules import (
    ABOVE_0,
    BELOW_1,
    COUNT,
    COUNT_OR_0,
    SHARE,
    Rows,
    at_least,
    each,
    one_of,
)

RULES: Rows = (  # rule, prefix, keys below it
    (COUNT, "MODEL.GLIP.",
     "NUM_BLOCKS NORM_GROUPS FUSION_DIM FUSION_HEADS MAX_NEGATIVES PAIRS_AT_ONCE "
     "TOPK_CANDIDATES_TEST"),
    (COUNT_OR_0, "MODEL.GLIP.", "NAMES_PER_CAPTION"),
    (SHARE, "MODEL.GLIP.", "ALL_NEGATIVES_PROB SCORE_THRESH_TEST NMS_THRESH_TEST"),
    (BELOW_1, "MODEL.GLIP.", "DROPOUT"),
    (ABOVE_0, "MODEL.GLIP.", "LOGIT_SCALE_INIT"),
    (at_least(0), "MODEL.GLIP.", "FUSION_INIT"),
    (each(at_least(0), 3), "MODEL.GLIP.", "LOSS_WEIGHTS"),
    (one_of("buffer", "resize"), "MODEL.GLIP.", "COARSE_OFFSETS"),
    (one_of("mean", "max"), "MODEL.GLIP.", "CLASS_SCORE"),
)  # fmt: skip


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    # For MODEL.META_ARCHITECTURE GLIP; anchors are MODEL.ANCHOR_GENERATOR's, one per location, the
    # text side is MODEL.TEXT_BACKBONE.
    _C = cfg.MODEL.GLIP = CN()
    _C.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Blocks of the head (T 6, L 8), and groups of its norms.
    _C.NUM_BLOCKS = 6
    _C.NORM_GROUPS = 16
    # Image and text attend to each other before each block (deep fusion); False: GLIP-T(A).
    _C.FUSION = True
    # How much of what they find counts at first: a layer scale starts at this / NUM_BLOCKS, and
    # the weights behind the hidden parts of a text layer are multiplied by it. 1: GLIP. With a
    # small one a head starts as good as one without fusion.
    _C.FUSION_INIT = 1.0
    # Width and heads of that attention, its dropout, and whether its activations are recomputed in
    # the backward pass.
    _C.FUSION_DIM = 2048
    _C.FUSION_HEADS = 8
    _C.DROPOUT = 0.1
    _C.CHECKPOINT = False
    # Deformable convolutions and dynamic ReLUs in the blocks; False: plain ones.
    _C.DYNAMIC = True
    # How a block reads the offsets of a coarser level: "resize" or, for weights of the public
    # release, "buffer" (by memory order, as they were trained).
    _C.COARSE_OFFSETS = "resize"
    # First value of the learned factor on products of region and word. From 1 (GLIP) short
    # trainings find the objects and hardly tell them apart.
    _C.LOGIT_SCALE_INIT = 1.0
    # Regions are unit vectors in that product; False: as in GLIP, where short trainings tell
    # objects apart much later.
    _C.NORMALIZE_REGIONS = False
    # Weights of the losses on tokens, boxes (GIoU) and centerness.
    _C.LOSS_WEIGHTS = [1.0, 2.0, 1.0]
    # Detection data: most classes an image does not show in its caption, and how often it has all
    # of them (else a random number).
    _C.MAX_NEGATIVES = 85
    _C.ALL_NEGATIVES_PROB = 0.5
    # Test captions hold as many names as fit into MODEL.TEXT_BACKBONE.MAX_TOKENS, or at most this
    # many (0: no other limit; the public code: 40 on LVIS). Names are context for each other, so
    # scores depend on it.
    _C.NAMES_PER_CAPTION = 0
    # Manual prompts, for names that are to stand otherwise in a caption ("hand of a person"): json
    # file {"class name": {"prefix": "", "name": "", "suffix": ""}}, each part optional; "" none.
    _C.NAME_PROMPTS = ""
    # Pairs of image and caption that go through the head together at test time: speed for memory.
    _C.PAIRS_AT_ONCE = 4
    # What becomes a candidate: class score before centerness, then the best per level and caption.
    _C.SCORE_THRESH_TEST = 0.05
    _C.TOPK_CANDIDATES_TEST = 1000
    _C.NMS_THRESH_TEST = 0.6
    # Score of a class from those of its tokens: "mean" or "max".
    _C.CLASS_SCORE = "mean"
    # What is trained: "full", "linear_probe" (box and word projections alone) or "prompt" (an
    # offset of the text features alone).
    _C.TUNE = "full"
