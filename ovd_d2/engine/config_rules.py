"""What the values of config keys must be: one table, read before anything is built.

A rule looks at one key; :data:`TOGETHER` at several. What only a built model can tell (a feature
that the backbone does not give) is explained by :mod:`ovd_d2.modeling.build`; what a part of ours
says about its own keys is not repeated here. Yacs has compared the types of whole values with the
defaults' by then, not those inside lists.
"""

import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from ovd_d2.errors import OVDError


class Rule(NamedTuple):
    """A condition on a value, and what to call a value that meets it ("it must be ...")."""

    good: Callable[[Any], bool]
    wanted: str


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def at_least(least: float) -> Rule:
    """A finite number."""
    return Rule(
        lambda v: _is_number(v) and v >= least, f"at least {least:g}" if least else "0 or more"
    )


def whole(least: int) -> Rule:
    """An integer."""
    number = at_least(least)
    return Rule(lambda v: number.good(v) and v == int(v), number.wanted)


def one_of(*names: str) -> Rule:
    """A word of a list."""
    return Rule(lambda v: v in names, " or ".join(map(repr, names)))


def each(rule: Rule, count: int | None = None) -> Rule:
    """A list that is not empty, or has ``count`` elements, each of which follows ``rule``."""
    words = "a list that is not empty" if count is None else f"a list of {count}"
    return Rule(
        lambda v: (
            isinstance(v, list | tuple)
            and (len(v) == count if count is not None else len(v) > 0)
            and all(map(rule.good, v))
        ),
        f"{words}, of values that are {rule.wanted}",
    )


def either(first: Rule, second: Rule) -> Rule:
    """A value that follows one of two rules."""
    return Rule(lambda v: first.good(v) or second.good(v), f"{first.wanted}, or {second.wanted}")


def empty_or(rule: Rule) -> Rule:
    """An empty list, or what ``rule`` says."""
    return Rule(lambda v: len(v) == 0 or rule.good(v), f"empty or {rule.wanted}")


NUMBER = Rule(_is_number, "a finite number")
ABOVE_0 = Rule(lambda v: _is_number(v) and v > 0, "above 0")
SHARE = Rule(lambda v: _is_number(v) and 0 <= v <= 1, "between 0 and 1")
BELOW_1 = Rule(lambda v: _is_number(v) and 0 <= v < 1, "at least 0 and below 1")
COUNT, COUNT_OR_0 = whole(1), whole(0)
NAMES = each(Rule(lambda v: isinstance(v, str) and bool(v), "names"))
ALL_OR_COUNT = Rule(lambda v: whole(1).good(v) or v == -1, "at least 1, or -1 for all")
GRID = either(each(ABOVE_0), each(each(ABOVE_0)))  # one for all feature maps, or one for each
NORM = one_of(
    "", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN"
)
BOX_LOSS = one_of("smooth_l1", "giou", "diou", "ciou")
BOX_WEIGHTS = each(ABOVE_0, 4)
PREFIX_FACTORS = Rule(
    lambda v: (
        isinstance(v, list | tuple)
        and all(isinstance(p, list | tuple) and len(p) == 2 for p in v)
        and all(isinstance(name, str) and name and at_least(0).good(f) for name, f in v)
    ),
    'a list of [prefix, factor], such as [["backbone.", 0.1]]',
)
POOLER = one_of("ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated")

_KEYS: tuple[tuple[Rule, str, str], ...] = (  # rule, prefix, keys below it
    (COUNT, "SOLVER.", "MAX_ITER ACCUMULATE IMS_PER_BATCH CHECKPOINT_PERIOD NUM_DECAYS"),
    (COUNT_OR_0, "SOLVER.", "CHECKPOINT_KEEP WARMUP_ITERS REFERENCE_WORLD_SIZE"),
    (ABOVE_0, "SOLVER.", "BASE_LR GAMMA CLIP_GRADIENTS.CLIP_VALUE CLIP_GRADIENTS.NORM_TYPE"),
    (at_least(0), "SOLVER.", "BASE_LR_END WEIGHT_DECAY WEIGHT_DECAY_NORM BIAS_LR_FACTOR"),
    (PREFIX_FACTORS, "SOLVER.", "LR_MULTIPLIERS"),
    (empty_or(NAMES), "SOLVER.", "NO_WEIGHT_DECAY"),
    (Rule(lambda v: v is None or at_least(0).good(v), "0 or more, or None"),
     "SOLVER.", "WEIGHT_DECAY_BIAS"),
    (BELOW_1, "SOLVER.", "MOMENTUM"),
    (SHARE, "SOLVER.", "WARMUP_FACTOR"),
    (empty_or(each(COUNT_OR_0)), "SOLVER.", "STEPS"),
    (one_of("SGD", "ADAMW"), "SOLVER.", "OPTIMIZER"),
    (one_of("float16", "bfloat16"), "SOLVER.", "AMP.DTYPE"),
    (one_of("linear", "constant"), "SOLVER.", "WARMUP_METHOD"),
    (one_of("value", "norm", "full_model"), "SOLVER.", "CLIP_GRADIENTS.CLIP_TYPE"),
    (one_of("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"), "SOLVER.",
     "LR_SCHEDULER_NAME"),
    (SHARE, "DATALOADER.", "MAX_CORRUPT_FRACTION"),
    (COUNT_OR_0, "DATALOADER.", "NUM_WORKERS"),
    (at_least(0), "DATALOADER.", "REPEAT_THRESHOLD"),
    (COUNT, "DATASETS.", "PRECOMPUTED_PROPOSAL_TOPK_TRAIN PRECOMPUTED_PROPOSAL_TOPK_TEST"),
    (COUNT_OR_0, "DATASETS.", "REGIONS_PER_IMAGE"),
    (each(COUNT_OR_0), "INPUT.", "MIN_SIZE_TRAIN"),
    (COUNT_OR_0, "INPUT.", "MIN_SIZE_TEST MAX_PIXELS PAIRS.IMAGE_SIZE PAIRS.PROMPTED_NOUNS"),
    (COUNT, "INPUT.", "MAX_SIZE_TRAIN MAX_SIZE_TEST SCALE_JITTER.SIZE"),
    (ABOVE_0, "INPUT.", "SCALE_JITTER.MIN_SCALE SCALE_JITTER.MAX_SCALE"),
    (one_of("choice", "range"), "INPUT.", "MIN_SIZE_TRAIN_SAMPLING"),
    (one_of("horizontal", "vertical", "none"), "INPUT.", "RANDOM_FLIP"),
    (COUNT_OR_0, "INPUT.", "SQUARE"),
    (Rule(lambda v: at_least(0).good(v) and v <= 255, "0 to 255"), "INPUT.",
     "SCALE_JITTER.PAD_VALUE"),
    (one_of("relative_range", "relative", "absolute", "absolute_range"), "INPUT.", "CROP.TYPE"),
    (each(ABOVE_0, 2), "INPUT.", "CROP.SIZE PAIRS.BOX_SCALE"),
    (each(SHARE, 2), "INPUT.", "PAIRS.CROP_AREA"),
    (at_least(0), "INPUT.", "PAIRS.BOX_SHIFT PAIRS.COLOR_JITTER"),
    (SHARE, "INPUT.", "PAIRS.GRAY PAIRS.RANDOM_ERASING"),
    (one_of("", "crop", "squash"), "INPUT.", "PAIRS.RESIZE"),
    (one_of("keep", "skip", "refuse"), "INPUT.", "PAIRS.WITHOUT_NOUN_PHRASE"),
    (one_of("refuse", "skip"), "INPUT.", "PAIRS.DAMAGED_SHARDS"),
    (one_of("BGR", "RGB", "L", "YUV-BT.601"), "INPUT.", "FORMAT"),
    (one_of("polygon", "bitmask"), "INPUT.", "MASK_FORMAT"),
    (COUNT_OR_0, "TEST.", "EVAL_PERIOD"),
    (COUNT, "TEST.", "PRECISE_BN.NUM_ITER AUG.MAX_SIZE"),
    (each(COUNT), "TEST.", "AUG.MIN_SIZES"),
    (ALL_OR_COUNT, "TEST.", "DETECTIONS_PER_IMAGE"),
    (empty_or(each(ABOVE_0)), "TEST.", "KEYPOINT_OKS_SIGMAS"),
    (one_of("hotcoco", "lvis-api"), "TEST.", "LVIS_BACKEND"),
    (one_of("no_truth", "nan", "zero"), "TEST.", "ABSENT_CLASSES"),
    (Rule(lambda v: bool(re.fullmatch(r"(imagenet21k:0*[1-9]\d*)?", v)), '"" or imagenet21k:N'),
     "TEST.", "DISTRACTORS"),
    (COUNT_OR_0, "", "VIS_PERIOD"),
    (Rule(lambda v: whole(-1 << 31).good(v) and v < 1 << 31, "below 2147483648"), "", "SEED"),
    (each(NUMBER), "MODEL.", "PIXEL_MEAN"),
    (each(ABOVE_0), "MODEL.", "PIXEL_STD"),
    (Rule(lambda v: v in range(6), "0 to 5"), "MODEL.", "BACKBONE.FREEZE_AT"),
    (COUNT, "MODEL.FPN.", "OUT_CHANNELS"),
    (one_of("sum", "avg"), "MODEL.FPN.", "FUSE_TYPE"),
    (empty_or(NAMES), "MODEL.", "FPN.IN_FEATURES OPEN_VOCAB.REGION_TASKS"),
    (NAMES, "MODEL.", "RPN.IN_FEATURES ROI_HEADS.IN_FEATURES RETINANET.IN_FEATURES "
     "SEM_SEG_HEAD.IN_FEATURES RESNETS.OUT_FEATURES"),
    (NORM, "MODEL.", "FPN.NORM RESNETS.NORM ROI_BOX_HEAD.NORM ROI_MASK_HEAD.NORM "
     "SEM_SEG_HEAD.NORM RETINANET.NORM"),
    (Rule(lambda v: v in (18, 34, 50, 101, 152), "18, 34, 50, 101 or 152"), "MODEL.",
     "RESNETS.DEPTH"),
    (COUNT, "MODEL.RESNETS.", "NUM_GROUPS WIDTH_PER_GROUP RES2_OUT_CHANNELS STEM_OUT_CHANNELS "
     "DEFORM_NUM_GROUPS"),
    (Rule(lambda v: v in (1, 2), "1 or 2"), "MODEL.RESNETS.", "RES5_DILATION"),
    (each(Rule(lambda v: isinstance(v, bool), "True or False"), 4), "MODEL.RESNETS.",
     "DEFORM_ON_PER_STAGE"),
    (GRID, "MODEL.ANCHOR_GENERATOR.", "SIZES ASPECT_RATIOS"),
    (either(each(NUMBER), each(each(NUMBER))), "MODEL.ANCHOR_GENERATOR.", "ANGLES"),
    (BELOW_1, "MODEL.ANCHOR_GENERATOR.", "OFFSET"),
    (at_least(-1), "MODEL.", "PROPOSAL_GENERATOR.MIN_SIZE RPN.BOUNDARY_THRESH"),
    (COUNT, "MODEL.RPN.", "BATCH_SIZE_PER_IMAGE PRE_NMS_TOPK_TRAIN PRE_NMS_TOPK_TEST "
     "POST_NMS_TOPK_TRAIN POST_NMS_TOPK_TEST"),
    (each(ALL_OR_COUNT), "MODEL.RPN.", "CONV_DIMS"),
    (SHARE, "MODEL.", "RPN.POSITIVE_FRACTION RPN.NMS_THRESH ROI_HEADS.POSITIVE_FRACTION "
     "ROI_HEADS.SCORE_THRESH_TEST ROI_HEADS.NMS_THRESH_TEST RETINANET.SCORE_THRESH_TEST "
     "RETINANET.NMS_THRESH_TEST RETINANET.PRIOR_PROB PANOPTIC_FPN.COMBINE.OVERLAP_THRESH "
     "PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH IMAGE_BRANCH.NMS_THRESH"),
    (each(SHARE), "MODEL.", "RPN.IOU_THRESHOLDS ROI_HEADS.IOU_THRESHOLDS RETINANET.IOU_THRESHOLDS "
     "ROI_BOX_CASCADE_HEAD.IOUS"),
    (each(Rule(lambda v: v in (-1, 0, 1), "-1, 0 or 1")), "MODEL.",
     "RPN.IOU_LABELS ROI_HEADS.IOU_LABELS RETINANET.IOU_LABELS"),
    (BOX_LOSS, "MODEL.", "RPN.BBOX_REG_LOSS_TYPE ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE "
     "RETINANET.BBOX_REG_LOSS_TYPE"),
    (BOX_WEIGHTS, "MODEL.", "RPN.BBOX_REG_WEIGHTS ROI_BOX_HEAD.BBOX_REG_WEIGHTS "
     "RETINANET.BBOX_REG_WEIGHTS"),
    (each(BOX_WEIGHTS), "MODEL.", "ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"),
    (at_least(0), "MODEL.", "RPN.LOSS_WEIGHT RPN.BBOX_REG_LOSS_WEIGHT RPN.SMOOTH_L1_BETA "
     "ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT ROI_BOX_HEAD.SMOOTH_L1_BETA ROI_KEYPOINT_HEAD.LOSS_WEIGHT "
     "ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER SEM_SEG_HEAD.LOSS_WEIGHT "
     "PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT "
     "RETINANET.FOCAL_LOSS_GAMMA RETINANET.SMOOTH_L1_LOSS_BETA"),
    (Rule(lambda v: SHARE.good(v) or v == -1, "between 0 and 1, or -1 for none"), "MODEL.",
     "RETINANET.FOCAL_LOSS_ALPHA"),
    (COUNT, "MODEL.", "ROI_HEADS.NUM_CLASSES ROI_HEADS.BATCH_SIZE_PER_IMAGE ROI_BOX_HEAD.FC_DIM "
     "ROI_BOX_HEAD.CONV_DIM ROI_BOX_HEAD.POOLER_RESOLUTION ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES "
     "ROI_MASK_HEAD.CONV_DIM ROI_MASK_HEAD.POOLER_RESOLUTION ROI_KEYPOINT_HEAD.POOLER_RESOLUTION "
     "ROI_KEYPOINT_HEAD.NUM_KEYPOINTS SEM_SEG_HEAD.NUM_CLASSES SEM_SEG_HEAD.CONVS_DIM "
     "SEM_SEG_HEAD.COMMON_STRIDE RETINANET.NUM_CLASSES RETINANET.NUM_CONVS "
     "RETINANET.TOPK_CANDIDATES_TEST"),
    (COUNT_OR_0, "MODEL.", "ROI_BOX_HEAD.NUM_FC ROI_BOX_HEAD.NUM_CONV ROI_MASK_HEAD.NUM_CONV "
     "ROI_BOX_HEAD.POOLER_SAMPLING_RATIO ROI_MASK_HEAD.POOLER_SAMPLING_RATIO "
     "ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE "
     "TIMM.FREEZE_STAGES OPEN_VOCAB.PROJECTION_HIDDEN IMAGE_BRANCH.PROJECTION_HIDDEN"),
    (each(COUNT), "MODEL.", "ROI_KEYPOINT_HEAD.CONV_DIMS TIMM.OUT_STRIDES CLIP.RESNET.LAYERS"),
    (POOLER, "MODEL.", "ROI_BOX_HEAD.POOLER_TYPE ROI_MASK_HEAD.POOLER_TYPE "
     "ROI_KEYPOINT_HEAD.POOLER_TYPE"),
    (COUNT, "MODEL.", "OPEN_VOCAB.EMBED_DIM CLIP.IMAGE_SIZE CLIP.EMBED_DIM CLIP.VIT.PATCH "
     "CLIP.VIT.WIDTH CLIP.VIT.LAYERS CLIP.RESNET.WIDTH CLIP.TEXT.WIDTH CLIP.TEXT.HEADS "
     "CLIP.TEXT.LAYERS CLIP.TEXT.CONTEXT"),
    (ABOVE_0, "MODEL.", "OPEN_VOCAB.LOGIT_SCALE CLIP.LOGIT_SCALE_MAX"),
    (NUMBER, "MODEL.", "OPEN_VOCAB.BIAS_INIT SEM_SEG_HEAD.IGNORE_VALUE"),
    (whole(-1), "MODEL.IMAGE_BRANCH.", "NUM_CONV CONV_DIM NUM_FC FC_DIM"),
    (each(ABOVE_0), "MODEL.IMAGE_BRANCH.", "CROP_SCALES"),
    (one_of("crop", "squash"), "MODEL.CLIP.", "RESIZE"),
    (COUNT, "MODEL.", "GLIP.NUM_BLOCKS GLIP.NORM_GROUPS GLIP.FUSION_DIM GLIP.FUSION_HEADS "
     "GLIP.MAX_NEGATIVES GLIP.PAIRS_AT_ONCE GLIP.TOPK_CANDIDATES_TEST TEXT_BACKBONE.MAX_TOKENS "
     "SWIN.EMBED_DIM SWIN.WINDOW_SIZE"),
    (COUNT_OR_0, "MODEL.GLIP.", "NAMES_PER_CAPTION"),
    (SHARE, "MODEL.GLIP.", "ALL_NEGATIVES_PROB SCORE_THRESH_TEST NMS_THRESH_TEST"),
    (BELOW_1, "MODEL.", "GLIP.DROPOUT SWIN.DROP_PATH_RATE TIMM.DROP_PATH_RATE"),
    (ABOVE_0, "MODEL.GLIP.", "LOGIT_SCALE_INIT"),
    (at_least(0), "MODEL.GLIP.", "FUSION_INIT"),
    (each(at_least(0), 3), "MODEL.GLIP.", "LOSS_WEIGHTS"),
    (one_of("buffer", "resize"), "MODEL.GLIP.", "COARSE_OFFSETS"),
    (one_of("mean", "max"), "MODEL.GLIP.", "CLASS_SCORE"),
    (COUNT, "MODEL.DETCLIP.", "NORM_GROUPS EMBED_DIM TEXT.WIDTH TEXT.HEADS TEXT.LAYERS "
     "CONCEPTS_DETECTION CONCEPTS_GROUNDING REGIONS TOPK_CANDIDATES_TEST"),
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
    (NAMES, "MODEL.LSEG.", "IN_FEATURES"),
    (COUNT, "MODEL.LSEG.", "WIDTH REGULARISER.DEPTH TEST.STRIDE TEST.BASE_SIZE"),
    (NORM, "MODEL.LSEG.", "NORM"),
    (ABOVE_0, "MODEL.LSEG.", "TEMPERATURE"),
    (one_of("", "bottleneck", "depthwise"), "MODEL.LSEG.", "REGULARISER.KIND"),
    (one_of("relu", "lrelu", "tanh"), "MODEL.LSEG.", "REGULARISER.ACTIVATION"),
    (COUNT_OR_0, "MODEL.LSEG.", "TEST.WINDOW"),
    (each(ABOVE_0), "MODEL.LSEG.", "TEST.SCALES"),
    (each(COUNT_OR_0, 4), "MODEL.TIMM.", "VIT.BLOCKS"),
    (each(COUNT, 4), "MODEL.TIMM.", "VIT.CHANNELS"),
    (one_of("project", "add", "ignore"), "MODEL.TIMM.", "VIT.READOUT"),
    (COUNT, "MODEL.GROUPVIT.", "IMAGE_SIZE PATCH WIDTH HEADS TEXT.WIDTH TEXT.HEADS TEXT.LAYERS "
     "TEXT.CONTEXT EMBED_DIM PROJECTOR_HIDDEN WINDOW_TEST STRIDE_TEST TOP_CLASSES_TEST"),
    (each(COUNT), "MODEL.GROUPVIT.", "DEPTHS OUTPUT_GROUPS"),
    (each(COUNT_OR_0), "MODEL.GROUPVIT.", "GROUP_TOKENS"),
    (BELOW_1, "MODEL.GROUPVIT.", "DROP_PATH_RATE"),
    (ABOVE_0, "MODEL.GROUPVIT.", "ASSIGNMENT_TEMPERATURE COUNT_OFFSET LOGIT_SCALE_INIT "
     "LOGIT_SCALE_MAX"),
    (one_of("SyncBN", "BN"), "MODEL.GROUPVIT.", "PROJECTOR_NORM"),
    (one_of("", "soft_targets", "log_sum"), "MODEL.GROUPVIT.", "MULTI_LABEL_LOSS"),
    (SHARE, "MODEL.GROUPVIT.", "BACKGROUND_THRESH_TEST"),
    (Rule(lambda v: _is_number(v) and 0 < v <= 1, "above 0 and up to 1"), "MODEL.GROUPVIT.",
     "CROP_SHARE_TEST"),
    (each(COUNT, 4), "MODEL.SWIN.", "DEPTHS NUM_HEADS"),
    (whole(-1), "MODEL.SWIN.", "FREEZE_STAGES"),
)  # fmt: skip
RULES: dict[str, Rule] = {
    prefix + key: rule for rule, prefix, keys in _KEYS for key in keys.split()
}


_OUR_MAPPERS = (
    "OpenVocabDatasetMapper", "ImageTextPairMapper", "GroundingMapper",
    "SemanticSegmentationMapper",
)  # fmt: skip


def _channels(cfg: CfgNode) -> str | None:
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    channels = 1 if cfg.INPUT.FORMAT == "L" else 3
    if cfg.INPUT.MAPPER not in _OUR_MAPPERS:  # which may make images of any kind
        channels = len(mean)
    if len(mean) == len(std) == channels:
        return None
    return (
        f"MODEL.PIXEL_MEAN has {len(mean)} and PIXEL_STD {len(std)} values, INPUT.FORMAT "
        f"{cfg.INPUT.FORMAT} has {channels} channels: give one value per channel."
    )


def _box_head_layers(cfg: CfgNode) -> str | None:
    head = cfg.MODEL.ROI_BOX_HEAD
    if head.NAME != "FastRCNNConvFCHead" or head.NUM_FC + head.NUM_CONV > 0:
        return None
    return (
        "MODEL.ROI_BOX_HEAD.NUM_FC and NUM_CONV are 0, but a FastRCNNConvFCHead has at least one "
        "layer: set NUM_FC to 2."
    )


def _size_range(cfg: CfgNode) -> str | None:
    sizes, sampling = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    if sampling != "range" or (len(sizes) == 2 and sizes[0] <= sizes[1]):
        return None
    return f"INPUT.MIN_SIZE_TRAIN is {sizes}; for MIN_SIZE_TRAIN_SAMPLING range give (least, most)."


def _scale_jitter(cfg: CfgNode) -> str | None:
    jitter = cfg.INPUT.SCALE_JITTER
    if jitter.MIN_SCALE <= jitter.MAX_SCALE:
        return None
    return (
        f"INPUT.SCALE_JITTER.MIN_SCALE is {jitter.MIN_SCALE:g}, above MAX_SCALE "
        f"{jitter.MAX_SCALE:g}: swap them."
    )


def _keypoint_sigmas(cfg: CfgNode) -> str | None:
    sigmas, n = cfg.TEST.KEYPOINT_OKS_SIGMAS, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if not (cfg.MODEL.KEYPOINT_ON and sigmas) or len(sigmas) == n:
        return None
    return (
        f"TEST.KEYPOINT_OKS_SIGMAS has {len(sigmas)} values, MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS "
        f"is {n}: give one for each keypoint."
    )


def _augmented_test(cfg: CfgNode) -> str | None:
    if not cfg.TEST.AUG.ENABLED:
        return None
    architecture = cfg.MODEL.META_ARCHITECTURE
    for stands_in_the_way, why in (
        (architecture != "GeneralizedRCNN", f"MODEL.META_ARCHITECTURE is {architecture}"),
        (cfg.MODEL.KEYPOINT_ON, "MODEL.KEYPOINT_ON is True"),
        (cfg.MODEL.LOAD_PROPOSALS, "MODEL.LOAD_PROPOSALS is True"),
    ):
        if stands_in_the_way:
            return (
                "TEST.AUG.ENABLED evaluates by Detectron2's GeneralizedRCNNWithTTA, which cannot "
                f"take this model: {why}. Set TEST.AUG.ENABLED False."
            )
    return None


def _output_dir(cfg: CfgNode) -> str | None:
    """OUTPUT_DIR need not be there yet; the folder above it that is must let it be made."""
    path = cfg.OUTPUT_DIR
    if not path:
        return "OUTPUT_DIR is ''; it must be a folder."
    there = os.path.abspath(path)
    try:
        while not _exists(there):
            there = os.path.dirname(there)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return f"OUTPUT_DIR {path[:80]!r} cannot be made ({reason}): choose another folder."
    if not os.path.isdir(there):
        return f"OUTPUT_DIR {path!r} cannot be made, {there} is no folder: choose another."
    try:  # os.access tells root nothing, nor of /proc or a read-only mount
        with tempfile.TemporaryDirectory(prefix=".ovd_d2_", dir=there):
            return None
    except OSError as error:
        reason = f"nothing can be written to {there} ({error.strerror})"
        return f"OUTPUT_DIR {path!r} cannot be made, {reason}: choose another."


def _exists(path: str) -> bool:
    """As ``os.path.lexists``, but a name that no file can have is an error."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


TOGETHER = (
    _output_dir, _channels, _box_head_layers, _size_range, _scale_jitter, _keypoint_sigmas,
    _augmented_test,
)  # fmt: skip


def check_values(cfg: CfgNode) -> None:
    """Looks at every key that has a rule.

    Raises:
        OVDError: the first value that breaks its rule, and what it must be.
    """
    for key, rule in RULES.items():
        for value in _values(cfg, key):
            if not rule.good(value):
                raise OVDError(f"{key} is {_short(value)}; it must be {rule.wanted}.")
    for rule in TOGETHER:
        sentence = rule(cfg)
        if sentence:
            raise OVDError(sentence)


def _values(cfg: CfgNode, key: str) -> Iterator[Any]:
    """The value of ``key``; nothing if the config lacks it."""
    node: Any = cfg
    for word in key.split("."):
        if word not in node:
            return
        node = node[word]
    yield node


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
