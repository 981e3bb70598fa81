"""What a predictor says of a picture.

Letters: R detections of a picture, H, W its height and width, K classes.
"""

from dataclasses import dataclass

import numpy as np
from detectron2.structures import Instances
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """What was found in one picture.

    Attributes:
        source: the file, or "image 3" for the third of the pictures given.
        image: (H, W, 3) uint8, RGB, EXIF orientation applied.
        instances: R detections in the frame of ``image``, on the CPU, best first:
            ``pred_boxes``, ``scores`` in 0..1, ``pred_classes`` in [0, K), and with a mask head
            ``pred_masks`` (R, H, W) bool. None of models that give label maps.
        sem_seg: of these, (K, H, W) float scores on the CPU, whose scale is the model's; a pixel's
            class is that of the largest.
    """

    source: str
    image: np.ndarray
    instances: Instances | None = None
    sem_seg: Tensor | None = None

    @property
    def found(self) -> Instances | Tensor:
        """``instances`` or ``sem_seg``, whichever the model gives."""
        return self.sem_seg if self.instances is None else self.instances
