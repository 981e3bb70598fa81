"""Detections as the package supervision has them.

Letters: R detections; H, W height and width of a picture.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from detectron2.structures import Instances

from ovd_d2.errors import OVDError

if TYPE_CHECKING:
    from supervision import Detections


def to_supervision(instances: Instances, names: Sequence[str]) -> "Detections":
    """Detections for supervision's annotators, zones, trackers and writers::

        found = to_supervision(predictor.predict("a.jpg"), predictor.vocabulary.names)

    Args:
        instances: R detections: ``pred_boxes``, ``scores``, ``pred_classes`` and, if there,
            ``pred_masks`` (R, H, W) bool.
        names: of the K classes.

    Returns:
        ``xyxy`` (R, 4) float32 pixels, ``confidence`` (R,), ``class_id`` (R,) in [0, K), ``mask``
        (R, H, W) bool or None, and ``data["class_name"]`` (R,) text.

    Raises:
        OVDError: supervision is not installed, or a class has no name.
    """
    try:
        from supervision import Detections
        from supervision.config import CLASS_NAME_DATA_FIELD
    except ImportError as error:
        raise OVDError(
            "The package supervision is not installed: pip install 'ovd_d2[tiles]'."
        ) from error
    classes = check_classes(instances, names)
    found = Detections.from_detectron2({"instances": instances})
    found.data[CLASS_NAME_DATA_FIELD] = np.array([names[k] for k in classes], dtype=str)
    return found


def check_classes(instances: Instances, names: Sequence[str]) -> list[int]:
    """The classes of ``instances``; OVDError if they are label maps or lack names."""
    if not isinstance(instances, Instances):
        raise OVDError("Label maps are no detections: give the Instances of a detector.")
    classes = instances.pred_classes.tolist()
    if classes and max(classes) >= len(names):
        raise OVDError(
            f"names has {len(names)} entries, but a detection is of class {max(classes)}: give "
            "those of the predictor's vocabulary."
        )
    return classes
