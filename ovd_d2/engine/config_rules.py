"""Are the values of a config what they must be? All are looked at before anything is built.

A rule of one key stands beside the key: ``RULES`` in the files of :mod:`ovd_d2.config`, those of
Detectron2's keys in ``detectron2_rules`` there. :data:`TOGETHER` looks at several keys. What only a
built model can tell (a feature that the backbone does not give) is explained by
:mod:`ovd_d2.modeling.build`; what a part of ours says about its own keys is not repeated.
"""

import os
import tempfile
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode

from ovd_d2.config import GROUPS, detectron2_rules
from ovd_d2.config.rules import Rule, by_key
from ovd_d2.errors import OVDError

RULES: dict[str, Rule] = by_key(
    row for group in (detectron2_rules, *GROUPS) for row in getattr(group, "RULES", ())
)

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


def _averaged_statistics(cfg: CfgNode) -> str | None:
    if not (cfg.SOLVER.EMA.ENABLED and cfg.TEST.PRECISE_BN.ENABLED):
        return None
    return (
        "TEST.PRECISE_BN makes statistics for the weights that are trained, and SOLVER.EMA saves "
        "the average of the weights: set one of the two ENABLED keys False."
    )


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


def _linear_probe(cfg: CfgNode) -> str | None:
    probe, names = cfg.TEST.LINEAR_PROBE, cfg.DATASETS.TEST
    first = sorted(names[:2])
    if not probe.ENABLED or (
        first == sorted([probe.TRAIN, probe.VALIDATION]) and len({*names}) == len(names) > 2
    ):
        return None
    return (
        f"DATASETS.TEST is {tuple(names)}; for TEST.LINEAR_PROBE begin it with its TRAIN "
        f"({probe.TRAIN!r}) and VALIDATION ({probe.VALIDATION!r}), and name others behind them to "
        "report on."
    )


TOGETHER = (
    _output_dir, _channels, _box_head_layers, _size_range, _scale_jitter, _keypoint_sigmas,
    _augmented_test, _linear_probe, _averaged_statistics,
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
