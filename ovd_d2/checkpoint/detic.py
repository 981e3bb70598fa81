"""Checkpoints of Detic (arXiv 2201.02605, github.com/facebookresearch/Detic).

Letters: K classes, D embedding width, S cascade stages.

Four kinds of detectors are published. Names and shapes are those of the public code, built:

==========================  ====================================================================
CenterNet2, on LVIS         S = 3 stages of text classifiers above a CenterNet and a timm
                            backbone with FPN levels p3 to p7. Cascade and mask head fit
                            OpenVocabCascadeROIHeads; backbone and proposal generator have no
                            counterpart here and are named, not converted.
R50-C4, on OVD-COCO         Detectron2's, as object-centric-ovd's: whole.
R50-FPN (``*_ViLD_200e``)   Detectron2's, as a cascade of one stage: whole.
Deformable DETR             closed-set classifiers, as the "Base" config of CenterNet2: refused.
==========================  ====================================================================

Their classifiers are ``linear`` (with a bias of its own) and 50 x cosine with the columns of
``zs_weight`` (D, K + 1), the last of which, background, is 0. None has the scalar ``cls_bias``,
since no published config sets ``USE_BIAS``, but a file that has it is converted with it.
``freq_weight`` (K,) is missing where there is no federated loss (the five configs of ImageNet-21K's
22047 classes). Configs with captions also save the text tower of CLIP, as ``text_encoder``.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ovd_d2.errors import OVDError

from .object_centric_ovd import (
    CLASS_EMBEDDINGS,
    PREDICTOR,
    from_object_centric_ovd,
    image_counts_of,
)

_STAGE = r"roi_heads\.box_predictor\.([0-2])\."
_NORM = r"(?:\.norm)?\.(?:weight|bias|running_mean|running_var|num_batches_tracked)"
# Theirs -> ours, below the predictor of a stage.
_RENAMED = (
    (re.compile(_STAGE + r"cls_score\.linear\.(weight|bias)"), "cls_score.projection.{}"),
    (re.compile(_STAGE + r"cls_score\.(cls_bias)"), "cls_score.bias"),
    (re.compile(_STAGE + r"(bbox_pred\.[02]\.(?:weight|bias))"), "{}"),
)
_MASK_HEAD = r"roi_heads\.mask_head\.(?:mask_fcn[1-4]|deconv|predictor)" + _NORM
_KEPT_OF_CASCADE = re.compile(rf"roi_heads\.box_head\.[0-2]\.fc[12]\.(?:weight|bias)|{_MASK_HEAD}")
_KEPT_OF_ONE_STAGE = re.compile(
    rf"backbone\.bottom_up\.(?:stem|res[2-5])\..*|backbone\.fpn_(?:lateral|output)[2-5]{_NORM}"
    r"|proposal_generator\.rpn_head\..*"
    rf"|roi_heads\.box_head\.0\.(?:conv[1-4]|fc1){_NORM}|{_MASK_HEAD}"
)
_CLASSES = re.compile(_STAGE + r"cls_score\.zs_weight")
_FREQUENCY = re.compile(_STAGE + r"freq_weight")
_TEXT_TOWER = "text_encoder."
_REASONS = (
    (_TEXT_TOWER, "CLIP's text tower: MODEL.OPEN_VOCAB.TEXT_ENCODER has its own"),
    ("proposal_generator.", "CenterNet, which is not built here: train an RPN, or keep yours"),
    ("backbone.bottom_up.base.fc.", "ImageNet-21K's classifier, of no use in a detector"),
    ("backbone.bottom_up.base.stages_", "ConvNeXt with timm's names and layout"),
    ("backbone.bottom_up.base.stem_", "ConvNeXt with timm's names and layout"),
    ("backbone.bottom_up.base.", "ResNet with timm's names and layout, not Detectron2's"),
    ("backbone.bottom_up.", "Swin transformer, which is not built here"),
    ("backbone.", "FPN of levels p3 to p7 above that backbone"),
    ("roi_heads.", "no part of OpenVocabCascadeROIHeads"),
    ("", "unknown"),
)


@dataclass(frozen=True)
class DeticParts:
    """What one of our detectors can take from a Detic checkpoint.

    Attributes:
        heads: ``MODEL.ROI_HEADS.NAME`` that the weights fit.
        weights: our keys to tensors.
        class_embeddings: (K, D) float, background left out; rows of L2 norm 1.
        image_counts: (K,) int64 training images per class; None if the checkpoint does not say.
        has_bias: whether it was trained with ``MODEL.OPEN_VOCAB.USE_BIAS``.
        left_out: (prefix of the keys, how many they are, why), all that is not in the above.
    """

    heads: str
    weights: dict[str, Tensor]
    class_embeddings: Tensor
    image_counts: Tensor | None
    has_bias: bool
    left_out: tuple[tuple[str, int, str], ...]


def from_detic(state_dict: Mapping[str, Tensor]) -> DeticParts:
    """The parts of Detic's state dict that fit ours; the others are counted and explained.

    Args:
        state_dict: names to tensors, as in the released files under "model".

    Raises:
        OVDError: no text classifier, a cascade with a stage missing, or a wrong shape.
    """
    if CLASS_EMBEDDINGS in state_dict:
        return _from_c4(state_dict)
    _check_has_text_classifier(state_dict)
    one_stage = not any(key.startswith(PREDICTOR + "1.") for key in state_dict)
    kept = _KEPT_OF_ONE_STAGE if one_stage else _KEPT_OF_CASCADE
    weights, classes, frequencies = {}, {}, {}
    left_out: Counter[tuple[str, str]] = Counter()
    for key, value in state_dict.items():
        if match := _CLASSES.fullmatch(key):
            classes[match[1]] = value
        elif match := _FREQUENCY.fullmatch(key):
            frequencies[match[1]] = value
        elif kept.fullmatch(key):
            weights[key] = value
        elif renamed := _rename(key):
            weights[renamed] = value
        else:
            left_out[_reason(key)] += 1
    _check(weights, classes, stages=("0",) if one_stage else ("0", "1", "2"))
    if one_stage:
        weights = {_without_stage(key): value for key, value in weights.items()}
    return DeticParts(
        "OpenVocabROIHeads" if one_stage else "OpenVocabCascadeROIHeads",
        weights,
        classes["0"][:, :-1].T.contiguous(),
        image_counts_of(frequencies.get("0")),
        any(key.endswith("cls_score.bias") for key in weights),
        _counted(left_out),
    )


def _from_c4(state_dict: Mapping[str, Tensor]) -> DeticParts:
    """An OVD-COCO detector: object-centric-ovd's, but for the text tower of the caption configs."""
    left_out = Counter(_reason(key) for key in state_dict if key.startswith(_TEXT_TOWER))
    found = from_object_centric_ovd(
        {key: value for key, value in state_dict.items() if not key.startswith(_TEXT_TOWER)}
    )
    return DeticParts(
        "OpenVocabRes5ROIHeads",
        found.weights,
        found.class_embeddings,
        found.image_counts,
        found.has_bias,
        _counted(left_out),
    )


def _reason(key: str) -> tuple[str, str]:
    prefix, why = next(pair for pair in _REASONS if key.startswith(pair[0]))
    return prefix + "*" if prefix else key, why


def _counted(left_out: Counter[tuple[str, str]]) -> tuple[tuple[str, int, str], ...]:
    return tuple((prefix, count, why) for (prefix, why), count in left_out.items())


def _rename(key: str) -> str | None:
    for pattern, ours in _RENAMED:
        if match := pattern.fullmatch(key):
            return f"{PREDICTOR}{match[1]}." + ours.format(match[2])
    return None


def _without_stage(key: str) -> str:
    return re.sub(r"^(roi_heads\.box_(?:head|predictor))\.0\.", r"\1.", key)


def _check_has_text_classifier(state_dict: Mapping[str, Tensor]) -> None:
    """Raises OVDError for the published detectors that classify without text."""
    kind = ""
    if any(key.startswith("detr.") for key in state_dict):
        kind = "a Deformable DETR of Detic's"
    elif PREDICTOR + "0.cls_score.weight" in state_dict:
        kind = "a CenterNet2 of Detic's without text (its Base config)"
    if kind:
        raise OVDError(
            f"This is {kind}: its classifier is a trained layer with one row per class, so there "
            "is nothing that could take other words, and nothing is converted."
        )


def _check(
    weights: Mapping[str, Tensor], classes: Mapping[str, Tensor], stages: tuple[str, ...]
) -> None:
    """Raises OVDError unless whole ``stages`` share one vocabulary of fitting width."""
    if sorted(classes) != list(stages):
        raise OVDError(
            "There is no cascade of three stages with text classifiers (roi_heads.box_predictor."
            "{0,1,2}.cls_score.zs_weight), nor a single one: this is no checkpoint of Detic's."
        )
    first = classes["0"]
    if first.dim() != 2 or first.shape[1] < 2 or first[:, -1].any():
        raise OVDError(
            f"zs_weight has shape {tuple(first.shape)}; it must be (D, K + 1) with a last column "
            "of zeros, the background: this is no checkpoint of Detic."
        )
    if not all(torch.equal(first, other) for other in classes.values()):
        raise OVDError("The cascade's stages have different class embeddings, which ours share.")
    for stage in stages:
        _check_stage(weights, stage, dim=len(first), last_fc="fc1" if len(stages) == 1 else "fc2")


def _check_stage(weights: Mapping[str, Tensor], stage: str, dim: int, last_fc: str) -> None:
    predictor = f"{PREDICTOR}{stage}."
    linear = weights.get(predictor + "cls_score.projection.weight")
    if linear is None or linear.dim() != 2:
        raise OVDError(f"The key {predictor}cls_score.linear.weight is missing or no matrix.")
    width = linear.shape[1]
    expected = {
        predictor + "cls_score.projection.weight": (dim, width),
        predictor + "cls_score.projection.bias": (len(linear),),
        predictor + "bbox_pred.0.weight": (width, width),
        predictor + "bbox_pred.0.bias": (width,),
        predictor + "bbox_pred.2.weight": (4, width),
        predictor + "bbox_pred.2.bias": (4,),
        f"roi_heads.box_head.{stage}.{last_fc}.bias": (width,),
    }
    for key, shape in expected.items():
        if key not in weights:
            raise OVDError(f"The key of {key} is missing: the checkpoint is not complete.")
        if tuple(weights[key].shape) != shape:
            raise OVDError(
                f"What becomes {key} has shape {tuple(weights[key].shape)}, not {shape}: the "
                "checkpoint is damaged or of another detector."
            )
