"""COCO's json of images, categories and annotations; the ids are those of the source."""

import json
from collections.abc import Iterator

from .detection_set import DetectionSet
from .options import FormatOptions


def coco_files(found: DetectionSet, options: FormatOptions) -> Iterator[tuple[str, bytes]]:
    """``annotations.json``. Boxes are x, y, width, height in pixels, ``score`` as COCO's results
    have it."""
    rows = []
    for image in found.images:
        for one in image.objects:
            x0, y0, x1, y1 = one.box
            row = {
                "id": len(rows) + 1,
                "image_id": image.image_id,
                "category_id": found.category_ids[one.label],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
            }
            if one.mask is not None:
                row |= {"segmentation": one.mask, "area": _mask_area(one.mask, row["area"])}
            if one.score is not None:
                row["score"] = one.score
            rows.append(row)
        options.on_image()
    content = {
        "info": found.info,
        "images": [
            {"id": i.image_id, "file_name": i.file, "width": i.width, "height": i.height}
            for i in found.images
        ],
        "categories": [
            {"id": category_id, "name": name}
            for category_id, name in zip(found.category_ids, found.names)
        ],
        "annotations": rows,
    }
    yield "annotations.json", (json.dumps(content, ensure_ascii=False) + "\n").encode()


def _mask_area(mask: object, of_box: float) -> float:
    """Pixels of run lengths; polygons may overlap each other, and have the area of the box."""
    from pycocotools import mask as coco_mask

    if not isinstance(mask, dict):
        return of_box
    if isinstance(mask["counts"], list):
        mask = coco_mask.frPyObjects(mask, *mask["size"])
    return float(coco_mask.area(mask))
