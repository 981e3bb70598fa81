"""Image-level labels teach through one pseudo box each.

Letters: B pseudo boxes over the batch, N images, K classes. Class K is background.
"""

import torch.nn.functional as F
from torch import Tensor


def pseudo_box_loss(logits: Tensor, labels: Tensor, images: Tensor, num_images: int) -> Tensor:
    """RKD's pseudo-max-score loss (section 3.3; ``pms`` in the public code).

    Binary cross entropy of the region in a label's pseudo box against that label alone, *summed*
    over all K + 1 columns: novel names are active here, which is how they receive supervision,
    and the background column has the target 0. Then the mean over the labels of an image, then
    the mean over all images, those without a label counting as 0.

    Args:
        logits: (B, K + 1) float, logit scale and bias applied, background last.
        labels: (B,) int64 in [0, K).
        images: (B,) int64 in [0, N), the image of each row.
        num_images: N, images that the loss is averaged over.

    Returns:
        Scalar in the type of ``logits``; 0 with a gradient path if B = 0.
    """
    if not len(logits):
        return logits.sum() * 0.0
    targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    per_label = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)
    labels_of_image = images.bincount(minlength=num_images)
    return (per_label / labels_of_image[images]).sum() / num_images
