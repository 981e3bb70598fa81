"""Keys of detection by parallel concepts (Yao et al. 2023, "DetCLIPv2"): MODEL.DETCLIP."""

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
    whole,
)

RULES: Rows = (  # rule, prefix, keys below it
    (COUNT, "MODEL.DETCLIP.",
     "NORM_GROUPS EMBED_DIM TEXT.WIDTH TEXT.HEADS TEXT.LAYERS CONCEPTS_DETECTION "
     "CONCEPTS_GROUNDING REGIONS TOPK_CANDIDATES_TEST"),
    (COUNT_OR_0, "MODEL.DETCLIP.", "NUM_CONVS"),
    (whole(3), "MODEL.DETCLIP.", "MAX_TOKENS"),
    (ABOVE_0, "MODEL.DETCLIP.", "LOGIT_SCALE_INIT MATCH_TEMPERATURE PAIR_TEMPERATURE"),
    (SHARE, "MODEL.DETCLIP.", "SCORE_THRESH_TEST NMS_THRESH_TEST"),
    (BELOW_1, "MODEL.DETCLIP.", "LABEL_SMOOTHING"),
    (at_least(0), "MODEL.DETCLIP.", "PAIR_LOSS_WEIGHT"),
    (each(at_least(0), 3), "MODEL.DETCLIP.", "LOSS_WEIGHTS"),
    (one_of("batch_text", "own_text", "centerness", "batch_text_centerness", "class_score", "iou"),
     "MODEL.DETCLIP.", "REGION_SCORE"),
    (one_of("best", "softmax", "largest"), "MODEL.DETCLIP.", "MATCH"),
    (one_of("text_to_image", "image_to_text", "both"), "MODEL.DETCLIP.", "DIRECTION"),
)  # fmt: skip


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    # For MODEL.META_ARCHITECTURE DetCLIP; anchors are MODEL.ANCHOR_GENERATOR's, one per location.
    _C = cfg.MODEL.DETCLIP = CN()
    _C.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Convolutions of each branch of the head, and groups of its norms.
    _C.NUM_CONVS = 4
    _C.NORM_GROUPS = 32
    # The classification branch starts with a deformable convolution that the regression branch
    # steers (version 2; version 1 has none).
    _C.DEFORMABLE = True
    # D, the width of the common space of regions and concepts.
    _C.EMBED_DIM = 512
    # The text side, as MODEL.CLIP.TEXT_TOWER: "transformer", "locked:ENCODER" or "trained:ENCODER";
    # width, heads and blocks of "transformer" are those of TEXT.
    _C.TEXT_TOWER = "transformer"
    _C.TEXT = CN({"WIDTH": 512, "HEADS": 8, "LAYERS": 12})
    # Most tokens of a concept, with start and end; what is behind them is cut.
    _C.MAX_TOKENS = 16
    # Regions have norm 1 before the learned scale (cosines), whose first value follows. Concepts
    # always have.
    _C.NORMALIZE_REGIONS = False
    _C.LOGIT_SCALE_INIT = 1.0
    # A concept is read as "name, definition" where a definition is known, in training and at test:
    # that of the vocabulary, else that of DICTIONARY. False: the name alone.
    _C.ENRICH = True
    # Concepts from which negatives of grounding data are drawn, and their definitions: "" (those of
    # the vocabulary), "lvis", "imagenet21k", "wordnet", "dataset:NAME", a file of `ovd vocab
    # dictionary`, or several joined by "+", of which the first that defines a name counts.
    _C.DICTIONARY = ""
    # Concepts per image, its own and then negatives: of detection data (names of the vocabulary
    # that are known to be absent) and of grounding data (from DICTIONARY).
    _C.CONCEPTS_DETECTION = 150
    _C.CONCEPTS_GROUNDING = 100
    # Weights of the losses on concepts, boxes (GIoU), centerness, and of that on pairs.
    _C.LOSS_WEIGHTS = [1.0, 2.0, 1.0]
    _C.PAIR_LOSS_WEIGHT = 0.1
    # Boxes of grounded captions train boxes and centerness too; the paper leaves them out.
    _C.LOCALIZE_GROUNDING = False
    # Pairs: which regions meet the words, and how many. "batch_text", "own_text", "centerness",
    # "batch_text_centerness"; "class_score" and "iou" add an output that boxes train.
    _C.REGION_SCORE = "batch_text"
    _C.REGIONS = 100
    # What a word's match among them is: "best", "softmax" (of temperature MATCH_TEMPERATURE) or
    # "largest".
    _C.MATCH = "best"
    _C.MATCH_TEMPERATURE = 1.0
    # "text_to_image", "image_to_text" or "both"; temperature and label smoothing of the loss.
    _C.DIRECTION = "text_to_image"
    _C.PAIR_TEMPERATURE = 0.5
    _C.LABEL_SMOOTHING = 0.1
    # What becomes a candidate: probability before centerness, then the best per level.
    _C.SCORE_THRESH_TEST = 0.05
    _C.TOPK_CANDIDATES_TEST = 1000
    _C.NMS_THRESH_TEST = 0.6
