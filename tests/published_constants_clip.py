"""CLIP's part of the table: see ``published_constants``.

Sources:

* PAPER: arXiv 2103.00020, section 2.5 and the tables of hyperparameters of its appendix.
* CODE: github.com/openai/CLIP, which has the models and their input but no training.
* CHOSEN: not published; what stands in its place here.
"""

from typing import Any

from published_constants import Constants

PAIRS, BATCH, EPOCHS = 400_000_000, 32_768, 32  # PAPER
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CODE: of RGB / 255
STD = (0.26862954, 0.26130258, 0.27577711)

PAPER: Constants = {
    "MODEL.META_ARCHITECTURE": "CLIP",
    "MODEL.CLIP.IMAGE_SIZE": 224,
    "MODEL.CLIP.TEXT_TOWER": "transformer",
    "MODEL.CLIP.TEXT.WIDTH": 512,
    "MODEL.CLIP.TEXT.HEADS": 8,
    "MODEL.CLIP.TEXT.LAYERS": 12,
    "MODEL.CLIP.TEXT.CONTEXT": 77,  # 76 in the paper, 77 in CODE
    "MODEL.CLIP.LOGIT_SCALE_INIT": 1 / 0.07,
    "MODEL.CLIP.LOGIT_SCALE_MAX": 100.0,
    "MODEL.CLIP.CHECKPOINT": True,
    "MODEL.CLIP.IGNORE_EQUAL_CAPTIONS": False,
    "MODEL.OPEN_VOCAB.PROMPTS": "imagenet80",
    "INPUT.MAPPER": "ImageTextPairMapper",
    "INPUT.RANDOM_FLIP": "none",
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.IMS_PER_BATCH": BATCH,
    "SOLVER.WEIGHT_DECAY": 0.2,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WEIGHT_DECAY_BIAS": 0.0,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
    "SOLVER.WARMUP_ITERS": 2000,
    "SOLVER.MAX_ITER": EPOCHS * PAIRS // BATCH,
    "SOLVER.AMP.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
}
CODE: Constants = {
    "MODEL.PIXEL_MEAN": [round(value * 255, 8) for value in MEAN],
    "MODEL.PIXEL_STD": [round(value * 255, 8) for value in STD],
    "INPUT.FORMAT": "RGB",
}
CHOSEN: Constants = {
    "MODEL.WEIGHTS": "",
    "MODEL.MASK_ON": False,
    "INPUT.PAIRS.CROP_AREA": [1.0, 1.0],  # "a random square crop from resized images"
    "INPUT.PAIRS.DAMAGED_SHARDS": "skip",
    "DATASETS.TRAIN": ("pairs:datasets/clip400m",),
    "DATASETS.TEST": ("imagenet_val",),
    "DATALOADER.NUM_WORKERS": 6,
    "DATALOADER.ASPECT_RATIO_GROUPING": False,
    "SOLVER.WARMUP_FACTOR": 1 / 2000,
    "SOLVER.STEPS": (),
    "SOLVER.CHECKPOINT_PERIOD": 5000,
    "SEED": 0,
}
BASE = PAPER | CODE | CHOSEN


def resnet(layers: list[int], dim: int) -> Constants:
    return BASE | {
        "MODEL.CLIP.IMAGE_TOWER": "clip_resnet",
        "MODEL.CLIP.EMBED_DIM": dim,
        "MODEL.CLIP.RESNET.LAYERS": layers,
        "MODEL.CLIP.RESNET.WIDTH": 64,
        "SOLVER.BASE_LR": 5e-4,
        "SOLVER.ADAM_BETAS": [0.9, 0.999],
        "SOLVER.ADAM_EPS": 1e-8,
    }


def vit(patch: int, width: int, layers: int, dim: int, rate: float) -> Constants:
    return BASE | {
        "MODEL.CLIP.IMAGE_TOWER": "clip_vit",
        "MODEL.CLIP.EMBED_DIM": dim,
        "MODEL.CLIP.VIT.PATCH": patch,
        "MODEL.CLIP.VIT.WIDTH": width,
        "MODEL.CLIP.VIT.LAYERS": layers,
        "SOLVER.BASE_LR": rate,
        "SOLVER.ADAM_BETAS": [0.9, 0.98],
        "SOLVER.ADAM_EPS": 1e-6,
    }


VIT_L14 = vit(14, 1024, 24, 768, 4e-4) | {
    "MODEL.CLIP.TEXT.WIDTH": 768,
    "MODEL.CLIP.TEXT.HEADS": 12,
}
MODELS: dict[str, Constants] = {
    "rn50": resnet([3, 4, 6, 3], 1024),
    "rn101": resnet([3, 4, 23, 3], 512),
    "vit_b32": vit(32, 768, 12, 512, 5e-4),
    "vit_b16": vit(16, 768, 12, 512, 5e-4),
    "vit_l14": VIT_L14,
    "vit_l14_336": VIT_L14
    | {
        "MODEL.WEIGHTS": "output/clip/vit_l14/model_final.pth",
        "MODEL.CLIP.IMAGE_SIZE": 336,
        "SOLVER.BASE_LR": 2e-5,
        "SOLVER.MAX_ITER": PAIRS // BATCH,
    },
}
# CHOSEN: which training images choose the strength of the classifier.
PROBE: Constants = {
    "DATASETS.TEST": ("imagenet_probe_train", "imagenet_probe_val", "imagenet_val"),
    "TEST.LINEAR_PROBE.ENABLED": True,
    "TEST.LINEAR_PROBE.TRAIN": "imagenet_probe_train",
    "TEST.LINEAR_PROBE.VALIDATION": "imagenet_probe_val",
}


def _recipes() -> dict[str, Constants]:
    found: dict[str, Any] = {"clip/Base-clip": BASE}
    for name, constants in MODELS.items():
        weights = {"MODEL.WEIGHTS": f"output/clip/{name}/model_final.pth"}
        found[f"clip/{name}"] = constants
        found[f"clip/{name}_imagenet"] = constants | weights
        found[f"clip/{name}_imagenet_probe"] = constants | weights | PROBE
    return found


RECIPES: dict[str, Constants] = _recipes()
