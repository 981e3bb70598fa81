"""The constants of every published recipe of RKD and ViLD, apart from the yamls and by hand:
key -> value. Those of DetCLIP and GLIP are in ``published_constants_detclip`` and ``_glip``.

A recipe's entry names all keys in which its yaml differs from the defaults, and those published
values that are defaults. Sources, with the commit that was read:

* OCOVD: github.com/hanoonaR/object-centric-ovd bd1a7e0, ``configs/{coco,lvis}/*.yaml``,
  ``ovd/config.py``, ``ovd/modeling/roi_heads/custom_fast_rcnn.py``. What it calls otherwise:
  ``FP16`` is AMP; ``DISTIL_L1_LOSS_WEIGHT`` and ``IRM_LOSS_WEIGHT`` are multiplied by its constant
  ``rkd_temperature`` 100; ``USE_BIAS`` is the initial value; ``DATASET_RATIO`` counts images and
  ``DATASET_BS`` is per GPU, of 8 (IMS_PER_BATCH 16).
* VILD: github.com/tensorflow/tpu 01b6706, ``models/official/detection/projects/vild/configs/
  vild_resnet.yaml`` and ``vild_config.py``; w, ``this_is`` and synonyms by its README, demo and
  file names. ``batch_norm_momentum`` m is 1 - m in torch.
* DETIC: github.com/facebookresearch/Detic 1c21c9b, ``configs/BoxSup_ViLD_200e.py``, above
  Detectron2's ``new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py``.
* PAPER: arXiv 2104.13921 or 2207.03482, where there is no public config.
"""

from typing import Any

Constants = dict[str, Any]

# Detectron2's defaults that OCOVD's, VILD's and DETIC's configs share or spell out.
DETECTOR: Constants = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.PROPOSAL_GENERATOR.NAME": "MixedSupervisionRPN",
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": True,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    "MODEL.RESNETS.DEPTH": 50,
    "INPUT.RANDOM_FLIP": "horizontal",
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "DATASETS.MIXING": "alternate",
    "TEST.DISTRACTORS": "",
}
FPN: Constants = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 1203,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.MASK_ON": True,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
    "INPUT.MASK_FORMAT": "bitmask",
    "DATASETS.TRAIN": ("lvis_v1_train_base",),
    "DATASETS.TEST": ("lvis_v1_val_ovd",),
    "TEST.DETECTIONS_PER_IMAGE": 300,
}
# OCOVD: the classifier of all its detectors (NORM_TEMP 50).
SIGMOID: Constants = {
    "MODEL.OPEN_VOCAB.TEXT_ENCODER": "openai-clip:ViT-B/32",
    "MODEL.OPEN_VOCAB.EMBED_DIM": 512,
    "MODEL.OPEN_VOCAB.LOGIT_SCALE": 50.0,
    "MODEL.OPEN_VOCAB.BACKGROUND": "zero",
    "MODEL.OPEN_VOCAB.BOX_MLP": True,
    "MODEL.OPEN_VOCAB.PROJECTION": "linear",
    "MODEL.OPEN_VOCAB.MULT_PROPOSAL_SCORE": False,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True,
}
# OCOVD: SOLVER of its 1x.
RKD_1X: Constants = {
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "INPUT.FORMAT": "BGR",
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MIN_SIZE_TEST": 800,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.MAX_ITER": 90000,
    "SOLVER.STEPS": [60000, 80000],
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
    "DATASETS.SOURCES": {},
}
# OCOVD coco/Base-OVD-RCNN-C4.yaml; 80 classes, as its classifier's file.
COCO_BASE = DETECTOR | SIGMOID | RKD_1X | {
    "MODEL.MASK_ON": False,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.OPEN_VOCAB.PROMPTS": "photo",
    "MODEL.OPEN_VOCAB.USE_BIAS": False,
    "MODEL.ROI_HEADS.NAME": "OpenVocabRes5ROIHeads",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False,
    "INPUT.MIN_SIZE_TRAIN": [800],
    "DATASETS.TRAIN": ("coco_2017_ovd_80_train_base",),
    "DATASETS.TEST": ("coco_2017_ovd_80_val",),
    "SOLVER.CHECKPOINT_PERIOD": 10000,
    "SOLVER.AMP.ENABLED": True,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}  # fmt: skip
# OCOVD lvis/mask_rcnn_R50FPN_CLIP_sigmoid.yaml; FP16 False.
LVIS_BASE = DETECTOR | FPN | SIGMOID | RKD_1X | {
    "MODEL.OPEN_VOCAB.PROMPTS": "photo",
    "MODEL.OPEN_VOCAB.USE_BIAS": True,
    "MODEL.OPEN_VOCAB.BIAS_INIT": -4.6,
    "MODEL.ROI_HEADS.NAME": "OpenVocabROIHeads",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0001,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": True,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": 50,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "INPUT.MIN_SIZE_TRAIN": [640, 672, 704, 736, 768, 800],
    "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
    "DATALOADER.REPEAT_THRESHOLD": 0.001,
    "SOLVER.AMP.ENABLED": False,
}  # fmt: skip
BASE_OF = {"coco": "output/rkd/coco_r50_c4_base", "lvis": "output/rkd/lvis_r50_fpn_base"}


def rkd(l1: float, relation: float, store: str, weights: str) -> Constants:
    """OCOVD ``DISTIL_L1_LOSS_WEIGHT``, ``IRM_LOSS_WEIGHT``, ``NUM_DISTIL_PROP``, the first ones."""
    return {
        "MODEL.WEIGHTS": f"{weights}/model_final.pth",
        "MODEL.REGION_DISTILLATION.WEIGHT": l1 * 100,
        "MODEL.REGION_DISTILLATION.LOSS": "l1_mean",
        "MODEL.REGION_DISTILLATION.RELATION_WEIGHT": relation * 100,
        "MODEL.REGION_DISTILLATION.RELATION": "released",
        "DATASETS.REGION_STORE": f"datasets/{store}",
        "DATASETS.REGIONS_PER_IMAGE": 5,
        "DATASETS.REGIONS_CHOICE": "first",
    }


def pis(labels: str, weights: str, **of_labels: Any) -> Constants:
    """OCOVD ``PMS_LOSS_WEIGHT``, ``DATASET_RATIO``, ``DATASET_BS``, ``DATASET_{MIN,MAX}_SIZES``,
    ``USE_RFS``. SOURCES: share of the *images*, and what differs from the whole config."""
    sizes = {"INPUT.MIN_SIZE_TRAIN": [400], "INPUT.MAX_SIZE_TRAIN": 667}
    one = {"DATASETS.TRAIN": [f"labels:datasets/{labels}"], "SOLVER.IMS_PER_BATCH": 8 * 8}
    return {
        "MODEL.WEIGHTS": f"{weights}/model_final.pth",
        "MODEL.IMAGE_LABELS.WEIGHT": 0.1,
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
        "DATASETS.SOURCES": {"boxes": (1, {}), "labels": (4, one | sizes | of_labels)},
    }


COCO_RKD = rkd(0.15, 0.15, "coco-regions/mavl", BASE_OF["coco"])
LVIS_RKD = rkd(0.25, 0.13, "lvis-regions/mavl", BASE_OF["lvis"])
COCO_LABELS = "coco-labels/captions.json"
LVIS_LABELS = "imagenet-lvis/labels.json"
NO_REPEATS = {"DATALOADER.SAMPLER_TRAIN": "TrainingSampler"}
COCO_STORE = {"DATASETS.REGION_STORE": "datasets/coco-regions/mavl_train2017"}
LVIS_STORE = {"DATASETS.REGION_STORE": "datasets/imagenet-lvis/regions"}
COCO_RKD_PIS = COCO_BASE | COCO_RKD | pis(COCO_LABELS, BASE_OF["coco"], **COCO_STORE)
LVIS_RKD_PIS = LVIS_BASE | LVIS_RKD | pis(LVIS_LABELS, BASE_OF["lvis"], **NO_REPEATS, **LVIS_STORE)
COCO_WT = COCO_RKD_PIS | {
    "MODEL.OPEN_VOCAB.PROJECTION": "weight_transfer",
    "MODEL.WEIGHTS": "output/rkd/coco_r50_c4_rkd/model_final.pth",
}
LVIS_WT = LVIS_RKD_PIS | {
    "MODEL.OPEN_VOCAB.PROJECTION": "weight_transfer",
    "MODEL.WEIGHTS": "output/rkd/lvis_r50_fpn_rkd/model_final.pth",
}
# OCOVD *_8x.yaml: sizes are chosen from 128, 160 .. 1280.
RKD_8X: Constants = {
    "INPUT.MIN_SIZE_TRAIN": list(range(128, 1281, 32)),
    "SOLVER.MAX_ITER": 720000,
    "SOLVER.STEPS": [480000, 640000],
}
L1_ALONE = {"MODEL.REGION_DISTILLATION.RELATION_WEIGHT": 0.0}  # PAPER
# PAPER: rows that evaluate another recipe's model.
STRICT = {
    "MODEL.WEIGHTS": "output/rkd/lvis_r50_fpn_rkd_pis_wt/model_final.pth",
    "TEST.DISTRACTORS": f"imagenet21k:{4 * 1203}",
}
TRANSFER = {
    "MODEL.WEIGHTS": "output/rkd/lvis_r50_fpn_rkd_pis_wt_8x/model_final.pth",
    "DATASETS.TEST": ("coco_2017_val", "objects365_v1_val"),
}

# VILD.
VILD_BASE = DETECTOR | FPN | {
    "MODEL.WEIGHTS": "",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.BATCH_NORM.MOMENTUM": 0.003,
    "MODEL.BATCH_NORM.EPS": 0.0001,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.RPN.HEAD_NAME": "RPNHeadWithNorm",
    "MODEL.RPN.NORM": "SyncBN",
    "MODEL.RPN.CONV_DIMS": [-1, -1],
    "MODEL.RPN.SMOOTH_L1_BETA": 0.111,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_BOX_HEAD.NAME": "BoxHeadWithNorm",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.NORM": "SyncBN",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskHeadWithNorm",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASK_HEAD.NORM": "SyncBN",
    "INPUT.FORMAT": "RGB",
    "INPUT.SCALE_JITTER.ENABLED": True,
    "INPUT.SCALE_JITTER.MIN_SCALE": 0.1,
    "INPUT.SCALE_JITTER.MAX_SCALE": 2.0,
    "INPUT.SCALE_JITTER.SIZE": 1024,
    "INPUT.MIN_SIZE_TEST": 1024,
    "INPUT.MAX_SIZE_TEST": 1024,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
    "DATALOADER.SAMPLER_TRAIN": "TrainingSampler",
    "DATASETS.SOURCES": {},
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.IMS_PER_BATCH": 256,
    "SOLVER.BASE_LR": 0.32,
    "SOLVER.MAX_ITER": 180000,
    "SOLVER.STEPS": [162000, 171000, 175500],
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.WARMUP_FACTOR": 0.0032 / 0.32,
    "SOLVER.WEIGHT_DECAY": 0.00004,
    "SOLVER.WEIGHT_DECAY_BIAS": 0.0,
    "SOLVER.AMP.ENABLED": False,
}  # fmt: skip
VILD_TEXT = VILD_BASE | {
    "MODEL.OPEN_VOCAB.TEXT_ENCODER": "openai-clip:ViT-B/32",
    "MODEL.OPEN_VOCAB.PROMPTS": "vild63_this_is",
    "MODEL.OPEN_VOCAB.USE_SYNONYMS": True,
    "MODEL.OPEN_VOCAB.EMBED_DIM": 512,
    "MODEL.OPEN_VOCAB.LOGIT_SCALE": 100.0,
    "MODEL.OPEN_VOCAB.BACKGROUND": "learned",
    "MODEL.OPEN_VOCAB.USE_BIAS": False,
    "MODEL.OPEN_VOCAB.BOX_MLP": False,
    "MODEL.ROI_HEADS.NAME": "OpenVocabROIHeads",
    "MODEL.REGION_DISTILLATION.WEIGHT": 0.0,
}
VILD = VILD_TEXT | {
    "MODEL.REGION_DISTILLATION.WEIGHT": 0.5,
    "MODEL.REGION_DISTILLATION.LOSS": "l1",
    "MODEL.REGION_DISTILLATION.RELATION_WEIGHT": 0.0,
    "DATASETS.REGION_STORE": "datasets/lvis-regions/rpn",
    "DATASETS.REGIONS_PER_IMAGE": 300,
}
ENSEMBLE: Constants = {
    "MODEL.IMAGE_BRANCH.NAME": "DistilledImageBranch",
    "MODEL.IMAGE_BRANCH.SCORES": "ensemble",
    "MODEL.IMAGE_BRANCH.LAMBDA": 2 / 3,
}
R152 = {"MODEL.RESNETS.DEPTH": 152}

RECIPES: dict[str, Constants] = {
    "rkd/coco_r50_c4_base": COCO_BASE,
    "rkd/coco_r50_c4_rkd": COCO_BASE | COCO_RKD,
    "rkd/coco_r50_c4_pis": COCO_BASE | pis(COCO_LABELS, BASE_OF["coco"]),
    "rkd/coco_r50_c4_rkd_pis": COCO_RKD_PIS,
    "rkd/coco_r50_c4_rkd_pis_wt": COCO_WT,
    "rkd/coco_r50_c4_rkd_pis_wt_8x": COCO_WT | RKD_8X,
    "rkd/coco_r50_c4_ablation_l1": COCO_BASE | COCO_RKD | L1_ALONE,
    "rkd/coco_r50_c4_ablation_l1_rpn": COCO_BASE
    | COCO_RKD
    | L1_ALONE
    | {"DATASETS.REGION_STORE": "datasets/coco-regions/rpn_top5"},
    "rkd/lvis_r50_fpn_base": LVIS_BASE,
    "rkd/lvis_r50_fpn_rkd": LVIS_BASE | LVIS_RKD,
    "rkd/lvis_r50_fpn_pis": LVIS_BASE | pis(LVIS_LABELS, BASE_OF["lvis"], **NO_REPEATS),
    "rkd/lvis_r50_fpn_rkd_pis": LVIS_RKD_PIS,
    "rkd/lvis_r50_fpn_rkd_pis_wt": LVIS_WT,
    "rkd/lvis_r50_fpn_rkd_pis_wt_8x": LVIS_WT | RKD_8X,
    "rkd/lvis_r50_fpn_rkd_pis_wt_strict": LVIS_WT | STRICT,
    "rkd/lvis_r50_fpn_rkd_pis_wt_8x_transfer": LVIS_WT | RKD_8X | TRANSFER,
    "vild/Base-lvis_r50_fpn": VILD_BASE,
    "vild/lvis_r50_fpn_vild_text": VILD_TEXT,
    "vild/lvis_r50_fpn_vild": VILD,
    "vild/lvis_r50_fpn_vild_ensemble": VILD | ENSEMBLE,
    "vild/lvis_r50_fpn_vild_image": VILD | {"MODEL.OPEN_VOCAB.TRAIN_CLASSIFIER": False},
    "vild/lvis_r152_fpn_vild": VILD | R152 | {"MODEL.REGION_DISTILLATION.WEIGHT": 1.0},
    "vild/lvis_r152_fpn_vild_ensemble": VILD
    | R152
    | ENSEMBLE
    | {"MODEL.REGION_DISTILLATION.WEIGHT": 2.0},
    # PAPER.
    "vild/lvis_r50_fpn_base_only": VILD_BASE,
    "vild/lvis_r50_fpn_supervised": VILD_BASE
    | {
        "DATASETS.TRAIN": ("lvis_v1_train",),
        "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
        "DATALOADER.REPEAT_THRESHOLD": 0.001,
    },
    "vild/lvis_r50_fpn_clip_on_crops": VILD_TEXT
    | {
        "MODEL.WEIGHTS": "output/vild/lvis_r50_fpn_vild_text/model_final.pth",
        "MODEL.IMAGE_BRANCH.NAME": "TeacherOnCrops",
        "MODEL.IMAGE_BRANCH.SCORES": "objectness",
        "MODEL.IMAGE_BRANCH.CROP_SCALES": [1.0, 1.5],
        "MODEL.IMAGE_BRANCH.NMS_THRESH": 0.9,
    },
    "vild/coco_r50_fpn_vild": VILD
    | {
        "MODEL.MASK_ON": False,
        "MODEL.OPEN_VOCAB.USE_SYNONYMS": False,
        "DATASETS.TRAIN": ("coco_2017_ovd_train_base",),
        "DATASETS.TEST": ("coco_2017_ovd_val",),
        "DATASETS.REGION_STORE": "datasets/coco-regions/rpn",
        "SOLVER.MAX_ITER": 45000,
        "SOLVER.STEPS": [40500, 42750, 43875],
    },
    # DETIC; 4 nodes.
    "vild/lvis_r50_fpn_boxsup_detic": DETECTOR
    | FPN
    | SIGMOID
    | {
        "MODEL.WEIGHTS": "",
        "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
        "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.NORM": "SyncBN",
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
        "MODEL.FPN.NORM": "SyncBN",
        "MODEL.RPN.CONV_DIMS": [-1, -1],
        "MODEL.OPEN_VOCAB.PROMPTS": "a {}",
        "MODEL.OPEN_VOCAB.USE_BIAS": False,
        "MODEL.ROI_HEADS.NAME": "OpenVocabROIHeads",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0001,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.NORM": "naiveSyncBN_N",
        "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False,
        "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
        "MODEL.ROI_MASK_HEAD.NORM": "naiveSyncBN_N",
        "INPUT.FORMAT": "BGR",
        "INPUT.SCALE_JITTER.ENABLED": True,
        "INPUT.SCALE_JITTER.MIN_SCALE": 0.1,
        "INPUT.SCALE_JITTER.MAX_SCALE": 2.0,
        "INPUT.SCALE_JITTER.SIZE": 896,
        "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
        "DATALOADER.REPEAT_THRESHOLD": 0.001,
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
        "DATASETS.SOURCES": {},
        "SOLVER.OPTIMIZER": "ADAMW",
        "SOLVER.IMS_PER_BATCH": 64 * 4,
        "SOLVER.BASE_LR": 0.0002 * 4,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
        "SOLVER.BASE_LR_END": 0.0,
        "SOLVER.MAX_ITER": 184375 * 2 // 4,
        "SOLVER.WARMUP_ITERS": 500,
        "SOLVER.WARMUP_FACTOR": 0.067,
        "SOLVER.WEIGHT_DECAY": 0.0001,
        "SOLVER.CHECKPOINT_PERIOD": 20000 // 4,
        "SOLVER.AMP.ENABLED": True,
    },
}
