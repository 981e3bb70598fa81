"""Cross entropy of pixels.

Letters: N images, K classes, H and W sides of the map.
"""

from torch import Tensor
from torch.nn import functional as F


def pixel_cross_entropy(logits: Tensor, targets: Tensor, ignore: int = -1) -> Tensor:
    """Softmax cross entropy, mean over the pixels that have a class.

    Args:
        logits: (N, K, H, W) float.
        targets: (N, H, W) int64 in [0, K), or ``ignore``.
        ignore: of pixels that do not count.

    Returns:
        Scalar; 0 (with a gradient path) if no pixel counts.
    """
    total = F.cross_entropy(logits.float(), targets, ignore_index=ignore, reduction="sum")
    return total / (targets != ignore).sum().clamp(min=1)
