"""Predictions as samples of the package fiftyone.

Letters: R detections; H, W height and width of a picture.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ovd_d2.errors import OVDError

from .prediction import Prediction
from .supervision_detections import check_classes

if TYPE_CHECKING:
    from fiftyone import Sample

FIELD = "predictions"


def to_fiftyone(prediction: Prediction, names: Sequence[str], field: str = FIELD) -> "Sample":
    """A sample for a fiftyone ``Dataset``::

        names = predictor.vocabulary.names
        dataset.add_samples([to_fiftyone(p, names) for p in predictor.stream("photos/")])

    Args:
        prediction: of a picture that is a file.
        names: of the K classes.
        field: of the sample, where the detections go.

    Returns:
        the sample with ``fiftyone.Detections``: label, confidence, ``bounding_box`` as x, y, width
        and height in shares of the picture, and the mask inside of the box, if there are masks.

    Raises:
        OVDError: fiftyone is not installed, a class has no name, or the picture is no file.
    """
    try:
        import fiftyone
    except ImportError as error:
        raise OVDError("The package fiftyone is not installed: pip install fiftyone.") from error
    instances = prediction.instances
    classes = check_classes(instances, names)
    if not os.path.isfile(prediction.source):
        raise OVDError(f"{prediction.source} is no file: samples of fiftyone need one.")
    height, width = prediction.image.shape[:2]
    boxes = instances.pred_boxes.tensor
    corners = (boxes / boxes.new_tensor([width, height] * 2)).double().tolist()
    masks: Sequence[Tensor | None] = (
        instances.pred_masks if instances.has("pred_masks") else [None] * len(instances)
    )
    rows = zip(corners, boxes.tolist(), instances.scores.tolist(), classes, masks)
    found = [
        fiftyone.Detection(
            label=names[k],
            confidence=score,
            bounding_box=[x0, y0, x1 - x0, y1 - y0],
            mask=None if mask is None else _inside(mask, box),
        )
        for (x0, y0, x1, y1), box, score, k, mask in rows
    ]
    sample = fiftyone.Sample(filepath=os.path.abspath(prediction.source))
    sample[field] = fiftyone.Detections(detections=found)
    return sample


def _inside(mask: Tensor, box: Sequence[float]) -> np.ndarray:
    """What of a mask (H, W) lies in the pixels that a box touches, one at least."""
    x0, y0 = int(box[0]), int(box[1])
    x1, y1 = max(int(np.ceil(box[2])), x0 + 1), max(int(np.ceil(box[3])), y0 + 1)
    return mask[y0:y1, x0:x1].numpy()
