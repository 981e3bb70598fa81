"""YOLO: a text file per image, whose lines are class, x, y of the middle, width, height.

Numbers are shares of the image's width and height, classes count from 0. If any object has a mask,
every line is a class and a polygon instead, as YOLO-seg wants it: parts of an object are joined by
lines without width, and a box is its four corners.
"""

from collections.abc import Iterator

import yaml

from .detection_set import DetectedImage, DetectedObject, DetectionSet
from .options import FormatOptions
from .outlines import joined, outlines


def yolo_files(found: DetectionSet, options: FormatOptions) -> Iterator[tuple[str, bytes]]:
    """``labels/NAME.txt`` of every image, ``data.yaml`` and ``classes.txt``. With
    ``options.scores`` the score is the last number of a line; for training there must be none."""
    names = dict(enumerate(found.names))
    # Without "path" these are folders beside data.yaml, from wherever the training starts.
    data = {"train": "images", "val": "images", "names": names}
    yield "data.yaml", yaml.safe_dump(data, allow_unicode=True, sort_keys=False).encode()
    yield "classes.txt", "".join(f"{name}\n" for name in found.names).encode()
    has_masks = found.has_masks
    for image in found.images:
        lines = [_line(image, one, has_masks, options.scores) for one in image.objects]
        yield f"labels/{image.stem}.txt", "".join(f"{line}\n" for line in lines).encode()
        options.on_image()


def _line(image: DetectedImage, one: DetectedObject, polygon: bool, score: bool) -> str:
    if polygon:
        shares = (joined(outlines(image, one)) / (image.width, image.height)).flatten()
    else:
        x0, y0, x1, y1 = one.box
        shares = ((x0 + x1) / 2 / image.width, (y0 + y1) / 2 / image.height,
                  (x1 - x0) / image.width, (y1 - y0) / image.height)  # fmt: skip
    words = [str(one.label), *(f"{share:.8f}" for share in shares)]
    if score and one.score is not None:
        words.append(f"{one.score:.6f}")
    return " ".join(words)
