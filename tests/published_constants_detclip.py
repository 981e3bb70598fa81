"""DetCLIP's part of the table: see ``published_constants``.

Neither version has public code. Sources:

* V2: arXiv 2304.04514, section 4.1 and appendix; V1: arXiv 2209.09407.
* MEMORY: of V1, recalled and not read.
* CHOSEN: not published; what stands in its place here.
"""

import math
from typing import Any

from published_constants import Constants

O365, GOLDG, CC3M, CC15M, YFCC1M = 0.66e6, 0.77e6, 3e6, 13e6, 1e6  # V2, V1: images, usable pairs
EPOCHS = 12  # V2
PAIRS = 6144  # V2: pairs of a batch

# V2: method and schedule of all models; what of it is a default of ours is spelled out too.
DETCLIP_V2: Constants = {
    "MODEL.META_ARCHITECTURE": "DetCLIP",
    "MODEL.MASK_ON": False,
    "MODEL.BACKBONE.NAME": "build_retinanet_swin_fpn_backbone",
    "MODEL.SWIN.DROP_PATH_RATE": 0.2,
    "MODEL.SWIN.CHECKPOINT": True,
    "MODEL.DETCLIP.DEFORMABLE": True,
    "MODEL.DETCLIP.TEXT_TOWER": "transformer",
    "MODEL.DETCLIP.MAX_TOKENS": 16,
    "MODEL.DETCLIP.ENRICH": True,
    "MODEL.DETCLIP.CONCEPTS_DETECTION": 150,
    "MODEL.DETCLIP.CONCEPTS_GROUNDING": 100,
    "MODEL.DETCLIP.LOSS_WEIGHTS": [1.0, 2.0, 1.0],
    "MODEL.DETCLIP.LOCALIZE_GROUNDING": False,
    "MODEL.DETCLIP.PAIR_LOSS_WEIGHT": 0.1,
    "MODEL.DETCLIP.REGION_SCORE": "batch_text",
    "MODEL.DETCLIP.REGIONS": 100,
    "MODEL.DETCLIP.MATCH": "best",
    "MODEL.DETCLIP.DIRECTION": "text_to_image",
    "MODEL.DETCLIP.PAIR_TEMPERATURE": 0.5,
    "MODEL.DETCLIP.LABEL_SMOOTHING": 0.1,
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.PAIRS.IMAGE_SIZE": 320,
    "INPUT.PAIRS.NOUN_PHRASES": "auto",
    "DATASETS.TRAIN": ("objects365_v1_train",),
    "DATASETS.TEST": ("lvis_v1_minival",),
    "DATASETS.MIXING": "alternate",
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.LR_MULTIPLIERS": [["text.", 0.1]],
    "SOLVER.WEIGHT_DECAY": 0.05,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.AMP.ENABLED": True,
    "TEST.FIXED_AP": True,
}
CHOSEN: Constants = {
    "MODEL.WEIGHTS": "",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[64], [128], [256], [512], [1024]],  # ATSS: 8 x stride
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[1.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
    "MODEL.DETCLIP.NUM_CONVS": 4,
    "MODEL.DETCLIP.NORM_GROUPS": 32,
    "MODEL.DETCLIP.EMBED_DIM": 512,
    "MODEL.DETCLIP.TEXT.WIDTH": 512,
    "MODEL.DETCLIP.TEXT.HEADS": 8,
    "MODEL.DETCLIP.TEXT.LAYERS": 12,
    "MODEL.DETCLIP.NORMALIZE_REGIONS": False,
    "MODEL.DETCLIP.LOGIT_SCALE_INIT": 1.0,
    "MODEL.DETCLIP.MATCH_TEMPERATURE": 1.0,
    "MODEL.DETCLIP.DICTIONARY": "lvis+imagenet21k",
    "MODEL.DETCLIP.SCORE_THRESH_TEST": 0.0001,
    "MODEL.DETCLIP.TOPK_CANDIDATES_TEST": 1000,
    "MODEL.DETCLIP.NMS_THRESH_TEST": 0.6,
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TRAIN": list(range(480, 801, 32)),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.PAIRS.RESIZE": "squash",
    "INPUT.PAIRS.CROP_AREA": [1.0, 1.0],
    "INPUT.PAIRS.WITHOUT_NOUN_PHRASE": "keep",
    "DATALOADER.SAMPLER_TRAIN": "TrainingSampler",
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
    "SOLVER.BASE_LR_END": 0.0,
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WEIGHT_DECAY_BIAS": 0.0,
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "SOLVER.CHECKPOINT_PERIOD": 10000,
    "SOLVER.AMP.DTYPE": "bfloat16",
    "TEST.DETECTIONS_PER_IMAGE": -1,
}
SWIN_T: Constants = {
    "MODEL.SWIN.EMBED_DIM": 96,
    "MODEL.SWIN.DEPTHS": [2, 2, 6, 2],
    "MODEL.SWIN.NUM_HEADS": [3, 6, 12, 24],
    "MODEL.SWIN.WINDOW_SIZE": 7,
}
SWIN_L: Constants = {
    "MODEL.SWIN.EMBED_DIM": 192,
    "MODEL.SWIN.DEPTHS": [2, 2, 18, 2],
    "MODEL.SWIN.NUM_HEADS": [6, 12, 24, 48],
    "MODEL.SWIN.WINDOW_SIZE": 12,
}


def thousands(images: float, batch: int) -> float:
    """Batches of the epochs, in thousands."""
    return round(EPOCHS * images / batch / 1000, 1)


def trained(batch: int, goldg: bool = False, web: bool = False, pairs: float = 0) -> Constants:
    """V2: on O365, and on what else; ``web``: V1's pairs with pseudo boxes."""
    grounded = {"INPUT.MAPPER": "GroundingMapper"}
    boxes, found = thousands(O365, batch), {}
    if goldg:
        data = {"DATASETS.TRAIN": ["flickr30k_train", "gqa_vg_train"], **grounded}
        found["captions"] = (thousands(GOLDG, batch), batch, data)
    if web:
        name = "grounding:datasets/yfcc1m/images:datasets/yfcc1m/grounding.json"
        found["web"] = (thousands(YFCC1M, batch), batch, {"DATASETS.TRAIN": [name], **grounded})
    if pairs:
        names = ["pairs:datasets/cc3m", "pairs:datasets/cc12m"][: 1 if pairs == CC3M else 2]
        data: dict[str, Any] = {"DATASETS.TRAIN": names, "INPUT.MAPPER": "ImageTextPairMapper"}
        data["SOLVER.IMS_PER_BATCH"] = PAIRS
        found["pairs"] = (thousands(pairs, PAIRS), PAIRS, data)
    sources = {n: (r * size / (boxes * batch), data) for n, (r, size, data) in found.items()}
    iterations = 1000 * (boxes + sum(ratio for ratio, _, _ in found.values()))
    return {
        "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.BASE_LR": math.floor(1e-4 * math.sqrt(batch / 16) * 1e5) / 1e5,  # as printed
        "SOLVER.MAX_ITER": round(iterations),
        "DATASETS.SOURCES": {"boxes": (1, {}), **sources} if sources else {},
    }


def weights_of(name: str) -> Constants:
    return {"MODEL.WEIGHTS": f"output/detclip/{name}/model_final.pth"}


T = DETCLIP_V2 | CHOSEN | SWIN_T
L = DETCLIP_V2 | CHOSEN | SWIN_L
V2_O365 = T | trained(128)
V2_CC3M = T | trained(128, pairs=CC3M)
V2_GOLDG = T | trained(128, goldg=True)
V2_GOLDG_CC3M = T | trained(128, goldg=True, pairs=CC3M)
V2_T = T | trained(128, goldg=True, pairs=CC15M)
V2_L = L | trained(256, goldg=True, pairs=CC15M)
NOT_DEFORMABLE = {"MODEL.DETCLIP.DEFORMABLE": False}
# V1; MEMORY: tokens and concepts. CHOSEN: V2's schedule, batch and rate of L.
V1 = NOT_DEFORMABLE | {"MODEL.DETCLIP.MAX_TOKENS": 48, "MODEL.DETCLIP.CONCEPTS_GROUNDING": 150}
V1_T = T | V1 | trained(128, goldg=True, web=True)
V1_L = L | V1 | trained(256, goldg=True, web=True)
LVIS: Constants = {"DATASETS.TEST": ("lvis_v1_minival", "lvis_v1_val_ovd")}
LVIS_FINE_TUNED = LVIS | {
    "DATASETS.TRAIN": ("lvis_v1_train",),
    "DATASETS.SOURCES": {},
    "SOLVER.IMS_PER_BATCH": 64,
    "SOLVER.BASE_LR": 4e-5,
    "SOLVER.LR_MULTIPLIERS": [["text.", 0.1]],  # 4e-6
    "SOLVER.MAX_ITER": round(24 * 100_170 / 64, -2),
}
COCO_AP: Constants = {"TEST.FIXED_AP": False, "TEST.DETECTIONS_PER_IMAGE": 100}
AQUARIUM = "odinw_Aquarium_Aquarium_Combined.v2-raw-1024.coco"
# V2; CHOSEN: the iterations at which the rate falls, and the evaluations.
ODINW_FINE_TUNED = COCO_AP | {
    "DATASETS.TRAIN": (f"{AQUARIUM}_train",),
    "DATASETS.TEST": (f"{AQUARIUM}_val", f"{AQUARIUM}_test"),
    "DATASETS.SOURCES": {},
    "SOLVER.IMS_PER_BATCH": 32,
    "SOLVER.BASE_LR": 4e-5,
    "SOLVER.LR_MULTIPLIERS": [["text.", 0.01]],  # 4e-7
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_ITERS": 500,
    "SOLVER.MAX_ITER": 250 * 448 // 32,
    "SOLVER.STEPS": [1750, 2625],
    "SOLVER.CHECKPOINT_PERIOD": 5 * 448 // 32,
    "TEST.EVAL_PERIOD": 5 * 448 // 32,
}
ODINW_13: Constants = COCO_AP | {
    "DATASETS.TEST": (
        "odinw_AerialMaritimeDrone_large_val",
        f"{AQUARIUM}_val",
        "odinw_CottontailRabbits_val",
        "odinw_EgoHands_generic_minival",
        "odinw_NorthAmericaMushrooms_North_American_Mushrooms.v1-416x416.coco_val",
        "odinw_Packages_Raw_val",
        "odinw_PascalVOC_val",
        "odinw_Raccoon_Raccoon.v2-raw.coco_val",
        "odinw_ShellfishOpenImages_raw_val",
        "odinw_VehiclesOpenImages_416x416_minival",
        "odinw_pistols_export_val",
        "odinw_pothole_val",
        "odinw_thermalDogsAndPeople_val",
    )
}
# V2: names of its ablations that start from O365 + CC3M.
ABLATIONS: dict[str, Constants] = {
    **{
        f"region_{score}": {"MODEL.DETCLIP.REGION_SCORE": score}
        for score in ("class_score", "iou", "centerness", "own_text", "batch_text_centerness")
    },
    "match_largest": {"MODEL.DETCLIP.MATCH": "largest"},
    "match_softmax": {"MODEL.DETCLIP.MATCH": "softmax"},
    "image_to_text": {"MODEL.DETCLIP.DIRECTION": "image_to_text"},
    "both_directions": {"MODEL.DETCLIP.DIRECTION": "both"},
}
_MODELS = {
    "Base-detclip_t": V2_O365,
    "detclip_v2_t_o365": V2_O365,
    "detclip_v2_t_o365_no_deformable": V2_O365 | NOT_DEFORMABLE,
    "detclip_v2_t_o365_cc3m": V2_CC3M,
    "detclip_v2_t_o365_goldg": V2_GOLDG,
    "detclip_v2_t_o365_goldg_cc3m": V2_GOLDG_CC3M,
    "detclip_v2_t_o365_goldg_cc3m_no_deformable": V2_GOLDG_CC3M | NOT_DEFORMABLE,
    "detclip_v2_t_o365_goldg_cc15m": V2_T,
    "detclip_v2_l_o365_goldg_cc15m": V2_L,
    "detclip_v1_t_o365_goldg": T | V1 | trained(128, goldg=True),
    "detclip_v1_t_o365_goldg_yfcc1m": V1_T,
    "detclip_v1_l_o365_goldg_yfcc1m": V1_L,
    "detclip_v1_t_odinw_13": V1_T | ODINW_13 | weights_of("detclip_v1_t_o365_goldg_yfcc1m"),
    **{f"detclip_v2_t_o365_cc3m_{name}": V2_CC3M | keys for name, keys in ABLATIONS.items()},
}
for _version, _size, _data in (
    ("v2", "t", "o365_goldg_cc15m"),
    ("v2", "l", "o365_goldg_cc15m"),
    ("v1", "t", "o365_goldg_yfcc1m"),
    ("v1", "l", "o365_goldg_yfcc1m"),
):
    _name = f"detclip_{_version}_{_size}"
    _model = _MODELS[f"{_name}_{_data}"] | weights_of(f"{_name}_{_data}")
    _MODELS[f"{_name}_lvis"] = _model | LVIS
    if _version == "v2":
        _MODELS[f"{_name}_lvis_fine_tuned"] = _model | LVIS_FINE_TUNED
        _MODELS[f"{_name}_odinw_fine_tuned"] = _model | ODINW_FINE_TUNED

RECIPES: dict[str, Constants] = {f"detclip/{name}": keys for name, keys in _MODELS.items()}
