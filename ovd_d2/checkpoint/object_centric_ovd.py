"""Checkpoints of object-centric-ovd (arXiv 2207.03482, github.com/hanoonaR/object-centric-ovd).

Letters: K classes, D embedding width, F width of a region's feature.

Its detectors are Detectron2's, with the same parameters as ours: all names but those of the
classifier are equal, and so are the order of the colours (BGR), pixel mean and standard deviation.

==========================================  =================================================
theirs, under roi_heads.box_predictor       ours, under roi_heads.box_predictor.cls_score
==========================================  =================================================
``cls_score.linear``                        ``projection``, or ``projection.frozen`` with
                                            weight transfer
``cls_score.fc1``, ``cls_score.fc2``        ``projection.generate.0``, ``projection.generate.2``
``cls_score.fc3``, ``cls_score.fc4``        ``projection.skip.0``, ``projection.skip.2``
``cls_score.cls_bias`` (1,)                 ``bias`` (1,)
``cls_score.zs_weight`` (D, K + 1)          none: the class embeddings are the configured
                                            vocabulary's; the last column, background, is 0
``freq_weight`` (K,)                        none: sqrt of the vocabulary's image counts
==========================================  =================================================

Ours also holds ``encoder_id_bytes``, which names the text encoder; a checkpoint without it fits
any.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ovd_d2.errors import OVDError

from .detector_shapes import MASK_HEAD, layer, resnet_c4_shapes, resnet_fpn_shapes

PREDICTOR = "roi_heads.box_predictor."
CLASSIFIER = PREDICTOR + "cls_score."
CLASS_EMBEDDINGS = CLASSIFIER + "zs_weight"
FREQUENCY_WEIGHT = PREDICTOR + "freq_weight"
ENCODER_ID = CLASSIFIER + "encoder_id_bytes"
# Theirs -> ours, below CLASSIFIER, with and without weight transfer.
_LINEAR = {"linear": "projection"}
_TRANSFER = {
    "linear": "projection.frozen",
    "fc1": "projection.generate.0",
    "fc2": "projection.generate.2",
    "fc3": "projection.skip.0",
    "fc4": "projection.skip.2",
}


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """A state dict of one of our models, and what of the foreign one is not part of it.

    Attributes:
        weights: our keys to tensors, in the foreign order.
        class_embeddings: (K, D) float, background left out; rows of L2 norm 1.
        image_counts: (K,) int64 training images per class; None if the checkpoint does not say.
        weight_transfer: whether it is of a model with ``MODEL.OPEN_VOCAB.PROJECTION``
            "weight_transfer".
        has_bias: whether it is of a model with ``MODEL.OPEN_VOCAB.USE_BIAS``.
    """

    weights: dict[str, Tensor]
    class_embeddings: Tensor
    image_counts: Tensor | None
    weight_transfer: bool
    has_bias: bool


def from_object_centric_ovd(state_dict: Mapping[str, Tensor]) -> ConvertedCheckpoint:
    """Their state dict as one of ours; no key is lost silently.

    Args:
        state_dict: names to tensors, as in the released files under "model".

    Raises:
        OVDError: a key that none of their models has, a missing one, or one of a wrong shape.
    """
    classes = state_dict.get(CLASS_EMBEDDINGS)
    if classes is None:
        raise OVDError(
            f"The key {CLASS_EMBEDDINGS} is missing: this is no checkpoint of object-centric-ovd."
        )
    if classes.dim() != 2 or classes.shape[1] < 2 or classes[:, -1].any():
        raise OVDError(
            f"{CLASS_EMBEDDINGS} has shape {tuple(classes.shape)}; it must be (D, K + 1) with a "
            "last column of zeros, the background: this is no checkpoint of object-centric-ovd."
        )
    dim, columns = classes.shape
    check_shapes(state_dict, dim, columns - 1)
    transfer = f"{CLASSIFIER}fc1.weight" in state_dict
    dropped = (CLASS_EMBEDDINGS, FREQUENCY_WEIGHT)
    weights = {key: value for key, value in state_dict.items() if key not in dropped}
    return ConvertedCheckpoint(
        rename_classifier(weights, transfer),
        classes[:, :-1].T.contiguous(),
        image_counts_of(state_dict.get(FREQUENCY_WEIGHT)),
        transfer,
        CLASSIFIER + "cls_bias" in state_dict,
    )


def to_object_centric_ovd(
    state_dict: Mapping[str, Tensor],
    class_embeddings: Tensor,
    image_counts: Sequence[int] | Tensor | None = None,
) -> dict[str, Tensor]:
    """The way back: a state dict of ours as one that their code loads.

    Args:
        state_dict: of a model with OpenVocabROIHeads or OpenVocabRes5ROIHeads, zero background.
        class_embeddings: (K, D), any norm; become ``zs_weight``.
        image_counts: (K,) training images per class; become ``freq_weight``. None: it is left out.

    Raises:
        OVDError: a key that their models do not have (such as a learned background), a missing
            one, or one of a wrong shape.
    """
    if CLASSIFIER + "background" in state_dict:
        raise OVDError(
            "The model has a learned background, which object-centric-ovd's has not: only one with "
            "MODEL.OPEN_VOCAB.BACKGROUND zero can be converted."
        )
    if class_embeddings.dim() != 2:
        raise OVDError(f"The embeddings have shape {tuple(class_embeddings.shape)}, not (K, D).")
    transfer = f"{CLASSIFIER}projection.generate.0.weight" in state_dict
    kept = {key: value for key, value in state_dict.items() if key != ENCODER_ID}
    converted = rename_classifier(kept, transfer, reverse=True)
    # Rows of norm 1 keep their bits: the way there and back is the identity.
    rows = class_embeddings.float()
    is_unit = (rows.norm(dim=1, keepdim=True) - 1).abs() < 1e-5
    rows = torch.where(is_unit, rows, torch.nn.functional.normalize(rows, dim=1))
    zero = rows.new_zeros(rows.shape[1], 1)
    converted[CLASS_EMBEDDINGS] = torch.cat([rows.T, zero], dim=1)
    if image_counts is not None:
        counts = torch.as_tensor(image_counts)
        if counts.shape != (len(rows),):
            raise OVDError(
                f"There are image counts of {counts.numel()} classes, but embeddings of "
                f"{len(rows)}: use the counts of the same vocabulary."
            )
        converted[FREQUENCY_WEIGHT] = counts.float() ** 0.5  # as there; sqrt() rounds otherwise
    check_shapes(converted, rows.shape[1], len(rows))
    return converted


def rename_classifier(
    weights: Mapping[str, Tensor], transfer: bool, *, reverse: bool = False
) -> dict[str, Tensor]:
    """``weights`` with the classifier's keys renamed by the table above; others stay.

    Args:
        weights: names to tensors, theirs (ours if ``reverse``); need not be complete.
        transfer: with weight transfer.
        reverse: from our names to theirs.
    """
    names = {CLASSIFIER + "cls_bias": CLASSIFIER + "bias"}
    for theirs, ours in (_TRANSFER if transfer else _LINEAR).items():
        for end in ("weight", "bias"):
            names[f"{CLASSIFIER}{theirs}.{end}"] = f"{CLASSIFIER}{ours}.{end}"
    if reverse:
        names = {ours: theirs for theirs, ours in names.items()}
    return {names.get(key, key): value for key, value in weights.items()}


def check_shapes(state_dict: Mapping[str, Tensor], dim: int, num_classes: int) -> None:
    """Raises OVDError unless ``state_dict`` is exactly that of one of their detectors.

    Args:
        state_dict: under their names.
        dim: D.
        num_classes: K.
    """
    expected = detector_shapes(set(state_dict), dim, num_classes)
    for key in state_dict:
        if key not in expected:
            raise OVDError(
                f"The key {key} belongs to no detector of object-centric-ovd (Mask R-CNN R50-FPN, "
                "Faster R-CNN R50-C4): nothing is converted."
            )
    optional = {CLASSIFIER + "cls_bias", FREQUENCY_WEIGHT}
    missing = [key for key in expected if key not in state_dict and key not in optional]
    if missing:
        raise OVDError(
            f"The key {missing[0]} is missing ({len(missing)} in all): this is no complete "
            "checkpoint of such a detector."
        )
    for key, value in state_dict.items():
        if tuple(value.shape) != expected[key]:
            raise OVDError(
                f"The key {key} has shape {tuple(value.shape)}, not {expected[key]}: the "
                "checkpoint is damaged or of another detector."
            )


def detector_shapes(keys: set[str], dim: int, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the one of their detectors that ``keys`` look most like, optional ones
    (bias, frequencies) included: R50-FPN or R50-C4 (or with ResNet-101 or -152), with mask head
    and weight transfer or without."""
    is_fpn = any(key.startswith("backbone.bottom_up.") for key in keys)
    shapes = resnet_fpn_shapes(keys) if is_fpn else resnet_c4_shapes(keys)
    width = 1024 if is_fpn else 2048
    if any(key.startswith("roi_heads.mask_head.") for key in keys):
        for name, shape in MASK_HEAD.items():
            shapes.update(layer(f"roi_heads.mask_head.{name}", shape))
    layers = {"cls_score.linear": (dim, width)}
    if f"{CLASSIFIER}fc1.weight" in keys:
        pairs = ((dim, width), (width, dim), (1024, width), (dim, 1024))
        layers.update({f"cls_score.fc{i}": pair for i, pair in enumerate(pairs, start=1)})
    layers.update({"bbox_pred.0": (width, width), "bbox_pred.2": (4, width)})
    for name, shape in layers.items():
        shapes.update(layer(PREDICTOR + name, shape))
    shapes[CLASSIFIER + "cls_bias"] = (1,)
    shapes[CLASS_EMBEDDINGS] = (dim, num_classes + 1)
    shapes[FREQUENCY_WEIGHT] = (num_classes,)
    return shapes


def image_counts_of(frequencies: Tensor | None) -> Tensor | None:
    """(K,) int64 whose square roots are ``frequencies``; None where they are not of that kind."""
    if frequencies is None:
        return None
    counts = frequencies.double().square().round()
    exact = torch.allclose(counts.sqrt(), frequencies.double(), rtol=1e-6, atol=0)
    return counts.long() if exact else None
