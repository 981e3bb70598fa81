"""Draws a sheet of sample images with boxes, masks and names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ovd_d2.data.datasets.mini.registration import class_metadata, load_mini
from ovd_d2.data.datasets.mini.splits import ANNOTATION_SETS, VERSION
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_picture, write_picture
from ovd_d2.files.images import read_image

_SCALE = 2  # samples are enlarged by this


def draw_sheet(
    root: str | Path, split: str, out: str | Path, *, num: int = 12, columns: int = 4
) -> Path:
    """Writes a picture of ``num`` samples, spread evenly over one annotation file.

    Base categories are drawn in blue, novel ones in orange (in train_all none counts as novel).

    Args:
        root: folder of all data sets.
        split: train_all, train_base, val, val_seen or test.
        out: image file to write; its folder is created.

    Raises:
        OVDError: unknown split, benchmark not built, ``num`` < 1, or ``out`` cannot be written.
    """
    from detectron2.data import Metadata
    from PIL import Image

    if num < 1:
        raise OVDError(f"--num must be at least 1, got {num}")
    if split not in ANNOTATION_SETS:
        raise OVDError(f"--split {split!r} is unknown; choose from {', '.join(ANNOTATION_SETS)}")
    folder = Path(root).expanduser() / VERSION
    records = load_mini(str(folder / "annotations" / f"{split}.json"), f"{folder / 'images'}/")
    metadata = Metadata(**class_metadata(split))
    check_picture("--out", out, [record["file_name"] for record in records])
    picks = np.unique(np.linspace(0, len(records) - 1, num).round().astype(int))
    tiles = [draw_sample(records[i], metadata) for i in picks]
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    gap = 4
    shape = (rows * (height + gap) - gap, min(columns, len(tiles)) * (width + gap) - gap, 3)
    sheet = np.full(shape, 255, np.uint8)
    for index, tile in enumerate(tiles):
        y, x = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = tile
    return write_picture(Image.fromarray(sheet), out)


def draw_sample(record: dict[str, Any], metadata: Any) -> np.ndarray:
    """One image of a data set with its annotations, (H', W', 3) uint8 RGB, enlarged."""
    from detectron2.structures import BoxMode
    from detectron2.utils.visualizer import Visualizer

    image = read_image(record["file_name"], remedy="Run `ovd mini build --force`.")
    items = record["annotations"]
    visualizer = Visualizer(image, metadata, scale=_SCALE)
    novel = [bool(metadata.is_novel[item["category_id"]]) for item in items]
    boxes = [BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS) for item in items]
    drawn = visualizer.overlay_instances(
        boxes=np.array(boxes).reshape(-1, 4),
        masks=[item["segmentation"] for item in items],
        labels=[metadata.thing_classes[item["category_id"]] for item in items],
        assigned_colors=[(1.0, 0.5, 0.0) if n else (0.1, 0.5, 1.0) for n in novel],
        alpha=0.2,
    )
    return drawn.get_image()
