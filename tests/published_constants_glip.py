"""GLIP's part of the table: see ``published_constants``.

Sources:

* CODE: github.com/microsoft/GLIP 59a6a2a and f91be1a, ``configs/pretrain/*.yaml``,
  ``configs/lvis/minival.yaml``, the defaults and the optimiser behind them, and the commands of its
  README. What it calls otherwise: ``CONTROL_PROB``'s third number is ALL_NEGATIVES_PROB;
  ``RANDOM_SAMPLE_NEG`` is MAX_NEGATIVES; ``STEPS`` are shares of the training; ``LANG_LR`` is a
  factor here; ``CHUNKED_EVALUATION`` is NAMES_PER_CAPTION.
* PAPER: arXiv 2112.03857, where there is no public config: the data of GLIP-T and of its captions,
  and few shots.
* CHOSEN: not published; what stands in its place here.
"""

from published_constants import Constants
from published_constants_detclip import AQUARIUM
from published_constants_detclip import ODINW_13 as OF_DETCLIP

O365, GOLDG, CAP4M = 0.66e6, 0.8e6, 4e6  # PAPER: images
EPOCHS = 30

# CODE: method and schedule of all models; what of it is a default of ours is spelled out too.
GLIP: Constants = {
    "MODEL.META_ARCHITECTURE": "GLIP",
    "MODEL.MASK_ON": False,
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
    "MODEL.BACKBONE.NAME": "build_retinanet_swin_fpn_backbone",
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.TEXT_BACKBONE.MODEL": "bert-base-uncased",
    "MODEL.TEXT_BACKBONE.MAX_TOKENS": 256,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[64], [128], [256], [512], [1024]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[1.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
    "MODEL.GLIP.NORM_GROUPS": 16,
    "MODEL.GLIP.FUSION": True,
    "MODEL.GLIP.FUSION_INIT": 1.0,
    "MODEL.GLIP.FUSION_DIM": 2048,
    "MODEL.GLIP.FUSION_HEADS": 8,
    "MODEL.GLIP.DROPOUT": 0.1,
    "MODEL.GLIP.CHECKPOINT": True,
    "MODEL.GLIP.DYNAMIC": True,
    "MODEL.GLIP.COARSE_OFFSETS": "buffer",
    "MODEL.GLIP.LOGIT_SCALE_INIT": 1.0,
    "MODEL.GLIP.NORMALIZE_REGIONS": False,
    "MODEL.GLIP.LOSS_WEIGHTS": [1.0, 2.0, 1.0],
    "MODEL.GLIP.MAX_NEGATIVES": 85,
    "MODEL.GLIP.ALL_NEGATIVES_PROB": 0.5,
    "MODEL.GLIP.NAMES_PER_CAPTION": 0,
    "MODEL.GLIP.NAME_PROMPTS": "",
    "MODEL.GLIP.SCORE_THRESH_TEST": 0.05,
    "MODEL.GLIP.TOPK_CANDIDATES_TEST": 1000,
    "MODEL.GLIP.NMS_THRESH_TEST": 0.6,
    "MODEL.GLIP.CLASS_SCORE": "mean",
    "MODEL.GLIP.TUNE": "full",
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TRAIN": [480, 560, 640, 720, 800],
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.RANDOM_FLIP": "horizontal",
    "DATASETS.TRAIN": ("objects365_v1_train",),
    "DATASETS.TEST": ("coco_2017_val",),
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.IMS_PER_BATCH": 64,
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.LR_MULTIPLIERS": [["text_backbone.", 0.1]],
    "SOLVER.BIAS_LR_FACTOR": 2.0,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_BIAS": 0.0,
    "SOLVER.WEIGHT_DECAY_NORM": 1e-4,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.WARMUP_ITERS": 2000,
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.AMP.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
    "TEST.FIXED_AP": False,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}
CHOSEN: Constants = {
    "MODEL.WEIGHTS": "",
    "MODEL.SWIN.WEIGHTS": "",
    "DATALOADER.SAMPLER_TRAIN": "TrainingSampler",
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
    "DATASETS.MIXING": "alternate",
    "SOLVER.CHECKPOINT_PERIOD": 10000,
}
SWIN_T: Constants = {
    "MODEL.SWIN.EMBED_DIM": 96,
    "MODEL.SWIN.DEPTHS": [2, 2, 6, 2],
    "MODEL.SWIN.NUM_HEADS": [3, 6, 12, 24],
    "MODEL.SWIN.WINDOW_SIZE": 7,
    "MODEL.SWIN.DROP_PATH_RATE": 0.2,
    "MODEL.SWIN.FREEZE_STAGES": -1,
    "MODEL.GLIP.NUM_BLOCKS": 6,
}
SWIN_L: Constants = {
    "MODEL.SWIN.EMBED_DIM": 192,
    "MODEL.SWIN.DEPTHS": [2, 2, 18, 2],
    "MODEL.SWIN.NUM_HEADS": [6, 12, 24, 48],
    "MODEL.SWIN.WINDOW_SIZE": 12,
    "MODEL.SWIN.DROP_PATH_RATE": 0.4,
    "MODEL.SWIN.FREEZE_STAGES": 2,
    "MODEL.GLIP.NUM_BLOCKS": 8,
}


def steps(iterations: float) -> Constants:
    """A training of that length: the rate falls at 67 and 89 percent."""
    return {
        "SOLVER.MAX_ITER": round(iterations),
        "SOLVER.STEPS": [int(round(share * iterations, -1)) for share in (0.67, 0.89)],
    }


def epochs(images: float, batch: int, number: int, to: int) -> Constants:
    """Of so many images; iterations cut to ``to`` digits."""
    return steps(number * images // batch // 10**to * 10**to)


def captions(*names: str) -> Constants:
    return {"DATASETS.TRAIN": list(names), "INPUT.MAPPER": "GroundingMapper"}


def web(name: str) -> Constants:
    return captions(f"grounding:datasets/{name}/images:datasets/{name}/grounding.json")


def mixed(boxes: float, **others: tuple[float, Constants]) -> Constants:
    """Sources: name -> (images of it for each of ``boxes``, keys)."""
    found = {name: (share / boxes, keys) for name, (share, keys) in others.items()}
    return {"DATASETS.SOURCES": {"boxes": (1, {}), **found}}


def weights_of(name: str) -> Constants:
    return {"MODEL.WEIGHTS": f"output/glip/{name}/model_final.pth"}


HUMAN = captions("flickr30k_train", "gqa_vg_train")
T_B = GLIP | CHOSEN | SWIN_T | {"DATASETS.SOURCES": {}} | epochs(O365, 64, EPOCHS, 3)
T_A = T_B | {"MODEL.GLIP.FUSION": False}
# Shares in percent.
T_C = T_B | mixed(45, captions=(55, HUMAN)) | epochs(O365 + GOLDG, 64, EPOCHS, 3)
T = T_B | mixed(12, captions=(15, HUMAN), web=(73, web("cap4m")))
T = T | epochs(O365 + GOLDG + CAP4M, 64, EPOCHS, 3)
# CODE: copies x images, by its comments 2.8, 1.2 and 2.4 million; CHOSEN: of the captions, 24
# million, one copy.
L_DATA = mixed(
    7,
    flickr=(3, captions("flickr30k_train")),
    mixed=(6, captions("gqa_vg_train")),
    web=(60, web("cap24m")),
)
L_SOLVER = steps(1e6) | {
    "SOLVER.WEIGHT_DECAY": 0.01,
    "SOLVER.WEIGHT_DECAY_NORM": 0.01,
    "SOLVER.AMP.ENABLED": False,
}
L = GLIP | CHOSEN | SWIN_L | L_DATA | L_SOLVER
# CODE: COCO and ODinW name all classes in every caption (DISABLE_SHUFFLE).
FINE_TUNED: Constants = {
    "DATASETS.SOURCES": {},
    "SOLVER.LR_MULTIPLIERS": [],
    "MODEL.GLIP.ALL_NEGATIVES_PROB": 1.0,
}
COCO = FINE_TUNED | {
    "DATASETS.TRAIN": ("coco_2017_train",),
    "SOLVER.IMS_PER_BATCH": 32,
    "SOLVER.BASE_LR": 1e-5,
} | epochs(118_287, 32, 24, 2)  # fmt: skip
LVIS: Constants = {
    "DATASETS.TEST": ("lvis_v1_minival",),
    "MODEL.GLIP.NAMES_PER_CAPTION": 40,
    "TEST.FIXED_AP": True,
    "TEST.DETECTIONS_PER_IMAGE": 300 * 31,  # CODE: of each caption
}
# CHOSEN: the length; CODE waits for the AP to stop growing.
ODINW_TUNED = FINE_TUNED | steps(2000) | {
    "DATASETS.TRAIN": (f"{AQUARIUM}_train",),
    "DATASETS.TEST": (f"{AQUARIUM}_val",),
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.WARMUP_ITERS": 100,
}  # fmt: skip
LINEAR_PROBE = ODINW_TUNED | {"MODEL.GLIP.TUNE": "linear_probe", "SOLVER.WEIGHT_DECAY": 0.05}
PROMPT = ODINW_TUNED | {
    "MODEL.GLIP.TUNE": "prompt",
    "SOLVER.BASE_LR": 0.05,
    "SOLVER.WEIGHT_DECAY": 0.25,
}
ODINW_13: Constants = {
    "MODEL.GLIP.NAME_PROMPTS": "configs/glip/odinw_prompts_paper.json",
    "DATASETS.TEST": OF_DETCLIP["DATASETS.TEST"],
}
_MODELS = {
    "Base-glip_t": T_B,
    "glip_t_odinw_13": T | weights_of("glip_t") | ODINW_13,
    "glip_t_odinw_linear_probe": T | weights_of("glip_t") | LINEAR_PROBE,
    "glip_t_odinw_prompt": T | weights_of("glip_t") | PROMPT,
}
for _name, _model in {
    "glip_t_a": T_A, "glip_t_b": T_B, "glip_t_c": T_C, "glip_t": T, "glip_l": L,
}.items():  # fmt: skip
    _MODELS[_name] = _model
    _MODELS[f"{_name}_coco"] = _model | weights_of(_name) | COCO
    if _name != "glip_t_b":
        _MODELS[f"{_name}_lvis_minival"] = _model | weights_of(_name) | LVIS

RECIPES: dict[str, Constants] = {f"glip/{name}": keys for name, keys in _MODELS.items()}
