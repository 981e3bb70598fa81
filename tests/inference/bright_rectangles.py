"""A detector without a network: every bright rectangle of a picture is an object."""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from scipy.ndimage import find_objects, label


def rectangles(image, *, masks=False, least=2):
    """Detections of a picture (H, W, 3) uint8: connected pixels whose red is over 127; class 1 if
    they are green too; the score is what blue says of them, in 1 / 255."""
    bright = image[:, :, 0] > 127
    numbers, _ = label(bright)
    found = [
        (where, number + 1)
        for number, where in enumerate(find_objects(numbers))
        if min(where[0].stop - where[0].start, where[1].stop - where[1].start) >= least
    ]
    instances = Instances(image.shape[:2])
    boxes = [(x.start, y.start, x.stop, y.stop) for (y, x), _ in found]
    middle = [image[(y0 + y1) // 2, (x0 + x1) // 2] for x0, y0, x1, y1 in boxes]
    instances.pred_boxes = Boxes(torch.tensor(boxes).float().reshape(-1, 4))
    instances.scores = torch.tensor([round(float(pixel[2]) / 255, 3) for pixel in middle])
    instances.pred_classes = torch.tensor([int(pixel[1] > 127) for pixel in middle]).long()
    if masks:
        planes = [numbers == number for _, number in found]
        empty = np.zeros((0, *image.shape[:2]), bool)
        instances.pred_masks = torch.from_numpy(np.stack(planes) if planes else empty)
    return instances[instances.scores.argsort(descending=True, stable=True)]


def paint(image, box, *, score=0.9, of_class=0):
    """Paints a rectangle x0 y0 x1 y1 that :func:`rectangles` finds, with this score and class."""
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = (255, 255 * of_class, round(255 * score))
    return image
