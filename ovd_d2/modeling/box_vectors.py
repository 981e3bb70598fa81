"""What a head that predicts a box at every place sees in boxes of one's choice.

Letters: A places (anchors, patches), D embedding width, R boxes.
"""

from torch import Tensor
from torch.nn.functional import normalize
from torchvision.ops import box_iou


def vectors_of_boxes(
    vectors: Tensor, predicted: Tensor, weights: Tensor, boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """Of each box the vector of the place that predicts it best, by IoU; and the mean of all.

    Args:
        vectors: (A, D) of any norm.
        predicted: (A, 4) boxes that the places predict, x0 y0 x1 y1.
        weights: (A,) positive, of the mean: centerness, or ones.
        boxes: (R, 4) in the same frame.

    Returns:
        (R, D) of L2 norm 1, and (D,), the weighted mean of unit vectors.
    """
    vectors = normalize(vectors.float(), dim=1)
    return vectors[box_iou(boxes, predicted).argmax(dim=1)], weights @ vectors / weights.sum()
