"""Keys of detection by questions in words (Maaz et al. 2021, "MAVL"): MODEL.MAVL."""

from detectron2.config import CfgNode as CN

from ovd_d2.config.rules import (
    BELOW_1,
    COUNT,
    COUNT_OR_0,
    NAMES,
    SHARE,
    Rows,
    Rule,
    at_least,
    each,
)

RULES: Rows = (  # rule, prefix, keys below it
    (COUNT, "MODEL.MAVL.",
     "DIM HEADS HIDDEN LEVELS NORM_GROUPS POINTS ENCODER_LAYERS DECODER_LAYERS OBJECT_QUERIES "
     "FUSION_LAYERS FUSION_HEADS WORD_COLUMNS PAIRS_AT_ONCE"),
    (COUNT_OR_0, "MODEL.MAVL.", "BOXES_PER_QUERY_TEST"),
    (SHARE, "MODEL.MAVL.", "SCORE_THRESH_TEST NMS_THRESH_TEST"),
    (BELOW_1, "MODEL.MAVL.", "DROPOUT"),
    (each(at_least(0), 3), "MODEL.MAVL.", "MATCH_COSTS LOSS_WEIGHTS"),
    (at_least(0), "MODEL.MAVL.", "NO_OBJECT_WEIGHT"),
    (NAMES, "MODEL.MAVL.", "IN_FEATURES QUERIES_TEST"),
    (Rule(lambda v: v.count("{}") == 1, "a text with one {} for the name"), "MODEL.MAVL.",
     "CLASS_QUERY"),
)  # fmt: skip


def add_keys(cfg: CN) -> None:
    """Adds the group to ``cfg``, in place."""
    # For MODEL.META_ARCHITECTURE MAVL; the text side is MODEL.TEXT_BACKBONE. With
    # MODEL.OPEN_VOCAB.VOCABULARY later it finds objects of any class.
    _C = cfg.MODEL.MAVL = CN()
    # Maps of the backbone, finest first.
    _C.IN_FEATURES = ["res3", "res4", "res5"]
    # Width of everything behind the backbone; heads of its attention; units of hidden layers.
    _C.DIM = 256
    _C.HEADS = 8
    _C.HIDDEN = 1024
    # Feature levels: those that the backbone lacks are made of its last map. Groups of their norms.
    _C.LEVELS = 4
    _C.NORM_GROUPS = 32
    # Samples that a head takes of a level.
    _C.POINTS = 4
    _C.ENCODER_LAYERS = 6
    _C.DECODER_LAYERS = 6
    # Object queries: most boxes that one question finds.
    _C.OBJECT_QUERIES = 300
    # Of all layers behind the backbone and the text backbone.
    _C.DROPOUT = 0.1
    # Object queries and words are fused; False: MAVL's control "minus language", which has no text
    # and finds objects of any class alone.
    _C.LANGUAGE = True
    _C.FUSION_LAYERS = 6
    _C.FUSION_HEADS = 8
    # Places of a caption, by tokens, that a query can point at; one more column is "no object".
    _C.WORD_COLUMNS = 255
    # What is asked for objects of any class, and for a class ({}: its name).
    _C.QUERIES_TEST = [
        "all objects",
        "all entities",
        "all visible entities and objects",
        "all obscure entities and objects",
    ]
    _C.CLASS_QUERY = "every {}"
    # Pairs of image and text in the fusion at test time: speed for memory.
    _C.PAIRS_AT_ONCE = 16
    # Merging: scores must be above the first; best boxes of each text that go on (0: all; RKD: 50);
    # IoU from which boxes of one class, or all without classes, are duplicates.
    _C.SCORE_THRESH_TEST = 0.0
    _C.BOXES_PER_QUERY_TEST = 0
    _C.NMS_THRESH_TEST = 0.5
    # Boxes are cut to whole pixels before they are compared, as in the public code.
    _C.WHOLE_PIXELS_TEST = False
    # Training: weights of the class, L1 and GIoU in the costs by which queries and objects are
    # matched, and in the loss; and in it of queries without an object.
    _C.MATCH_COSTS = [1.0, 5.0, 2.0]
    _C.LOSS_WEIGHTS = [1.0, 5.0, 2.0]
    _C.NO_OBJECT_WEIGHT = 0.1
