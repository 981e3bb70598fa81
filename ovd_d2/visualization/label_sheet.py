"""A contact sheet of pseudo-labelled images."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from torchvision.ops import box_convert

from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_picture, write_picture
from ovd_d2.files.images import read_image
from ovd_d2.pseudo_labelling import read_label_file
from ovd_d2.visualization.detections import draw_detections

_COLUMNS = 4
_GAP = 6


def draw_label_sheet(
    label_file: str | os.PathLike, out: str | os.PathLike, *, num: int = 24, side: int = 420
) -> Path:
    """Writes a picture of ``num`` images of a label file, spread evenly over it, with boxes, names
    and scores.

    Args:
        label_file: of `ovd pseudo-label`.
        out: image file to write; its folder is created.
        num: images at most.
        side: of the square, in pixels, that each is fitted into.

    Raises:
        OVDError: no label file, no image in it, an image that cannot be read, or ``out`` cannot be
            written.
    """
    content = read_label_file(label_file)
    images = content["images"]
    if not images:
        raise OVDError(f"{label_file} has no image with a box: there is nothing to draw")
    picks = np.unique(np.linspace(0, len(images) - 1, min(num, len(images))).round().astype(int))
    wanted = {images[i]["id"]: [] for i in picks}
    for annotation in content["annotations"]:
        if annotation["image_id"] in wanted:
            wanted[annotation["image_id"]].append(annotation)
    columns = min(_COLUMNS, len(picks))
    rows = -(-len(picks) // columns)
    step = side + _GAP
    sheet = Image.new("RGB", (columns * step - _GAP, rows * step - _GAP), "white")
    for place, i in enumerate(picks):
        tile = _tile(images[i], wanted[images[i]["id"]], content)
        tile.thumbnail((side, side), Image.Resampling.LANCZOS)
        row, column = divmod(place, columns)
        sheet.paste(tile, (column * step, row * step))
    root = Path(content["info"]["image_root"])
    check_picture("--show", out, [label_file, *(root / image["file_name"] for image in images)])
    return write_picture(sheet, out)


def _tile(
    image: dict[str, Any], annotations: list[dict[str, Any]], content: dict[str, Any]
) -> Image.Image:
    """One image with its boxes."""
    index = {category["id"]: k for k, category in enumerate(content["categories"])}
    pixels = read_image(os.path.join(content["info"]["image_root"], image["file_name"]))
    found = Instances((image["height"], image["width"]))
    boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).view(-1, 4)
    found.pred_boxes = Boxes(box_convert(boxes, "xywh", "xyxy"))
    found.scores = torch.tensor([float(a["score"]) for a in annotations])
    found.pred_classes = torch.tensor([index[a["category_id"]] for a in annotations])
    names = [category["name"] for category in content["categories"]]
    return Image.fromarray(draw_detections(pixels, found, names, min_side=420))
