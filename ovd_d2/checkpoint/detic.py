"""Checkpoints of Detic (arXiv 2201.02605, github.com/facebookresearch/Detic).

Letters: K classes, D embedding width, S = 3 cascade stages.

Its released R50 detectors (BoxSup and Detic on LVIS) are CenterNet2: a CenterNet as proposal
generator, a timm-style ResNet-50 with FPN levels p3 to p7, and a cascade of S stages with text as
the classifier. The cascade, the mask head and the class embeddings fit OpenVocabCascadeROIHeads
with ``MODEL.OPEN_VOCAB.BOX_MLP``, zero background, a bias and logit scale 50; backbone and proposal
generator have no counterpart here and are named, not converted.

From memory of the public code, not checked against a released file: the key names
``roi_heads.box_predictor.{0,1,2}.cls_score.{linear,zs_weight,cls_bias}``, ``bbox_pred.{0,2}``,
``freq_weight``, ``roi_heads.box_head.{0,1,2}.fc{1,2}``, ``roi_heads.mask_head.*``,
``proposal_generator.centernet_head.*``, ``backbone.bottom_up.base.*``, ``backbone.top_block.*``;
the bias of -4.6; and that all stages share one matrix of class embeddings.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ovd_d2.errors import OVDError

from .object_centric_ovd import image_counts_of

_STAGE = r"roi_heads\.box_predictor\.([0-2])\."
# Theirs -> ours; everything else is left out.
_RENAMED = (
    (re.compile(_STAGE + r"cls_score\.linear\.(weight|bias)"), "cls_score.projection.{}"),
    (re.compile(_STAGE + r"cls_score\.(cls_bias)"), "cls_score.bias"),
    (re.compile(_STAGE + r"(bbox_pred\.[02]\.(?:weight|bias))"), "{}"),
)
_KEPT = re.compile(
    r"roi_heads\.(box_head\.[0-2]\.fc[12]|mask_head\.(mask_fcn[1-4]|deconv|predictor))"
    r"\.(weight|bias)"
)
_CLASSES = re.compile(_STAGE + r"cls_score\.zs_weight")
_FREQUENCY = re.compile(_STAGE + r"freq_weight")
_REASONS = (
    ("proposal_generator.", "CenterNet, which is not built here: train an RPN, or keep yours"),
    ("backbone.bottom_up.", "its ResNet-50 has timm's names and layout, not Detectron2's"),
    ("backbone.", "FPN of levels p3 to p7 above that ResNet"),
    ("roi_heads.", "no part of OpenVocabCascadeROIHeads"),
    ("", "unknown"),
)


@dataclass(frozen=True)
class DeticParts:
    """What OpenVocabCascadeROIHeads can take from a Detic checkpoint.

    Attributes:
        weights: our keys to tensors.
        class_embeddings: (K, D) float, background left out; rows of L2 norm 1.
        image_counts: (K,) int64 training images per class; None if the checkpoint does not say.
        left_out: (prefix of the keys, how many they are, why), all that is not in the above.
    """

    weights: dict[str, Tensor]
    class_embeddings: Tensor
    image_counts: Tensor | None
    left_out: tuple[tuple[str, int, str], ...]


def from_detic(state_dict: Mapping[str, Tensor]) -> DeticParts:
    """The parts of Detic's state dict that fit ours; the others are counted and explained.

    Args:
        state_dict: names to tensors, as in the released files under "model".

    Raises:
        OVDError: no cascade with a text classifier, one with a stage missing, or a wrong shape.
    """
    weights, classes, frequencies = {}, {}, {}
    left_out: Counter[tuple[str, str]] = Counter()
    for key, value in state_dict.items():
        if match := _CLASSES.fullmatch(key):
            classes[match[1]] = value
        elif match := _FREQUENCY.fullmatch(key):
            frequencies[match[1]] = value
        elif renamed := _rename(key):
            weights[renamed] = value
        else:
            prefix, why = next(pair for pair in _REASONS if key.startswith(pair[0]))
            left_out[prefix + "*" if prefix else key, why] += 1
    _check(weights, classes)
    embeddings = classes["0"][:, :-1].T.contiguous()
    return DeticParts(
        weights,
        embeddings,
        image_counts_of(frequencies.get("0")),
        tuple((prefix, count, why) for (prefix, why), count in left_out.items()),
    )


def _rename(key: str) -> str | None:
    if _KEPT.fullmatch(key):
        return key
    for pattern, ours in _RENAMED:
        if match := pattern.fullmatch(key):
            return f"roi_heads.box_predictor.{match[1]}." + ours.format(match[2])
    return None


def _check(weights: Mapping[str, Tensor], classes: Mapping[str, Tensor]) -> None:
    """Raises OVDError unless three whole stages share one vocabulary of fitting width."""
    if sorted(classes) != ["0", "1", "2"]:
        raise OVDError(
            "There is no cascade of three stages with text classifiers (roi_heads.box_predictor."
            "{0,1,2}.cls_score.zs_weight): this is no checkpoint of Detic's CenterNet2 detectors."
        )
    first = classes["0"]
    if first.dim() != 2 or first.shape[1] < 2 or first[:, -1].any():
        raise OVDError(
            f"zs_weight has shape {tuple(first.shape)}; it must be (D, K + 1) with a last column "
            "of zeros, the background: this is no checkpoint of Detic."
        )
    if not all(torch.equal(first, other) for other in classes.values()):
        raise OVDError("The cascade's stages have different class embeddings, which ours share.")
    for stage in "012":
        predictor = f"roi_heads.box_predictor.{stage}."
        linear = weights.get(predictor + "cls_score.projection.weight")
        if linear is None or linear.dim() != 2:
            raise OVDError(f"The key {predictor}cls_score.linear.weight is missing or no matrix.")
        dim, width = linear.shape
        head = f"roi_heads.box_head.{stage}."
        expected = {
            predictor + "cls_score.projection.weight": (len(first), width),
            predictor + "cls_score.projection.bias": (dim,),
            predictor + "bbox_pred.0.weight": (width, width),
            predictor + "bbox_pred.0.bias": (width,),
            predictor + "bbox_pred.2.weight": (4, width),
            predictor + "bbox_pred.2.bias": (4,),
            head + "fc2.bias": (width,),
        }
        for key, shape in expected.items():
            if key not in weights:
                raise OVDError(f"The key of {key} is missing: the checkpoint is not complete.")
            if tuple(weights[key].shape) != shape:
                raise OVDError(
                    f"What becomes {key} has shape {tuple(weights[key].shape)}, not {shape}: the "
                    "checkpoint is damaged or of another detector."
                )
