"""MAVL's part of the table: see ``published_constants``.

Sources:

* CODE: github.com/mmaaz60/mvits_for_class_agnostic_od ae561b0 (model and inference), its training
  code mmaaz60/mdef_detr 1d2ea25, and branch mdef_detr_minus_language b5067a3.
* PAPER: arXiv 2111.11430: the number of pairs.
* CHOSEN: not published; what stands in its place here.
"""

from published_constants import Constants

PAIRS = 1.3e6  # PAPER
BATCH = 4 * 8 * 2  # CODE: nodes, GPUs, images


def epochs(number: int, drop: int) -> Constants:
    """A training of so many, the rate falling after ``drop``; cut to thousands."""
    steps = [int(round(n * PAIRS / BATCH, -3)) for n in (number, drop)]
    return {"SOLVER.MAX_ITER": steps[0], "SOLVER.STEPS": steps[1:]}


# What of it is a default of ours is spelled out too.
MAVL: Constants = {
    "MODEL.META_ARCHITECTURE": "MAVL",
    "MODEL.MASK_ON": False,
    "MODEL.WEIGHTS": "",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.RESNETS.DEPTH": 101,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.TEXT_BACKBONE.MODEL": "hf:FacebookAI/roberta-base",
    "MODEL.TEXT_BACKBONE.MAX_TOKENS": 512,
    "MODEL.OPEN_VOCAB.VOCABULARY": "later",
    "MODEL.MAVL.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.MAVL.DIM": 256,
    "MODEL.MAVL.HEADS": 8,
    "MODEL.MAVL.HIDDEN": 1024,
    "MODEL.MAVL.LEVELS": 4,
    "MODEL.MAVL.NORM_GROUPS": 32,
    "MODEL.MAVL.POINTS": 4,
    "MODEL.MAVL.ENCODER_LAYERS": 6,
    "MODEL.MAVL.DECODER_LAYERS": 6,
    "MODEL.MAVL.OBJECT_QUERIES": 300,
    "MODEL.MAVL.DROPOUT": 0.1,
    "MODEL.MAVL.LANGUAGE": True,
    "MODEL.MAVL.FUSION_LAYERS": 6,
    "MODEL.MAVL.FUSION_HEADS": 8,
    "MODEL.MAVL.WORD_COLUMNS": 255,
    "MODEL.MAVL.QUERIES_TEST": [
        "all objects", "all entities", "all visible entities and objects",
        "all obscure entities and objects",
    ],
    "MODEL.MAVL.CLASS_QUERY": "every {}",
    "MODEL.MAVL.SCORE_THRESH_TEST": 0.0,
    "MODEL.MAVL.BOXES_PER_QUERY_TEST": 0,
    "MODEL.MAVL.NMS_THRESH_TEST": 0.5,
    "MODEL.MAVL.WHOLE_PIXELS_TEST": True,
    "MODEL.MAVL.MATCH_COSTS": [1.0, 5.0, 2.0],
    "MODEL.MAVL.LOSS_WEIGHTS": [1.0, 5.0, 2.0],
    "MODEL.MAVL.NO_OBJECT_WEIGHT": 0.1,
    "INPUT.FORMAT": "RGB",
    "INPUT.MAPPER": "GroundingMapper",
    "INPUT.RANDOM_FLIP": "none",
    "INPUT.MIN_SIZE_TRAIN": list(range(480, 801, 32)),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 100000,  # CODE: none
    "INPUT.RESIZE_CROP.PROB": 0.5,
    "INPUT.RESIZE_CROP.SHORT_SIDES": [400, 500, 600],
    "INPUT.RESIZE_CROP.SIDES": [384, 1333],
    "DATASETS.TRAIN": ["flickr30k_train", "gqa_vg_train"],
    "DATASETS.TEST": ["coco_2017_val"],
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.IMS_PER_BATCH": BATCH,
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.LR_MULTIPLIERS": [["backbone.", 0.1], ["text_backbone.", 0.5]],
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 1e-4,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.LINEAR_LR.PREFIXES": ["text_backbone."],
    "SOLVER.LINEAR_LR.WARMUP": 0.01,
    "SOLVER.EMA.ENABLED": True,
    "SOLVER.EMA.DECAY": 0.9998,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.1,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
    "SOLVER.AMP.ENABLED": False,
    "TEST.CLASS_AGNOSTIC.ENABLED": True,
    "TEST.CLASS_AGNOSTIC.ONLY": True,
    "TEST.CLASS_AGNOSTIC.TOPK": 50,
    # CHOSEN.
    "DATALOADER.NUM_WORKERS": 4,
    "SOLVER.CHECKPOINT_PERIOD": 10000,
    "TEST.DETECTIONS_PER_IMAGE": 100,
} | epochs(20, 16)  # fmt: skip
# CODE: 10 epochs; CHOSEN: when the rate falls.
MINUS_LANGUAGE: Constants = {
    "MODEL.MAVL.LANGUAGE": False,
    "SOLVER.LR_MULTIPLIERS": [["backbone.", 0.1]],
    "SOLVER.LINEAR_LR.PREFIXES": [],
} | epochs(10, 8)

RECIPES: dict[str, Constants] = {
    "mavl/mavl_r101": MAVL,
    "mavl/mavl_r101_minus_language": MAVL | MINUS_LANGUAGE,
}
