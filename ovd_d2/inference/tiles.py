"""Large pictures in overlapping tiles, which find what is small in them.

A tile goes through the model as a picture of its own, so objects in it are seen larger than in the
picture made small. The whole picture goes through too, as one more tile: it finds what is larger
than a tile. ``tile_merging`` says how the detections become one set.

Letters: R detections, H, W height and width of the picture.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask
from torch import Tensor

from ovd_d2.errors import OVDError

from .arguments import check_count
from .tile_merging import Merged, merge_tiles

logger = logging.getLogger(__name__)

OVERLAP = 0.2  # of a tile's side
MIN_TILE = 32
MAX_PIXELS = 1_000_000_000  # of a picture that is cut: INPUT.MAX_PIXELS is about those that are not
MAX_MASK_BYTES = 8_000_000_000
Detect = Callable[[list[np.ndarray]], Sequence[dict[str, Instances | Tensor]]]


@dataclass(frozen=True)
class Tiles:
    """How pictures are cut.

    Attributes:
        side: pixels of a tile; pictures that fit into one are not cut.
        overlap: the share of ``side`` that neighbours have in common, 0 up to 0.9.
    """

    side: int
    overlap: float = OVERLAP

    @property
    def pixels(self) -> int:
        """The overlap in pixels; at least one, which puts the last tile at the picture's edge
        instead of leaving a rest."""
        return max(1, round(self.side * self.overlap))

    def cut(self, image: np.ndarray) -> bool:
        """Whether a picture (H, W, 3) is larger than a tile."""
        return max(image.shape[:2]) > self.side

    def max_pixels(self, limit: int) -> int:
        """The largest picture, where ``limit`` is that of pictures that are not cut; 0: any."""
        return limit and max(limit, MAX_PIXELS)


def wanted_tiles(tile: int | None, overlap: float | None = None) -> Tiles | None:
    """The tiles of two arguments; None: pictures are taken whole.

    Raises:
        OVDError: an argument out of its range, or supervision is not installed.
    """
    if tile is None:
        if overlap is not None:
            raise OVDError(f"overlap is {overlap!r}, but there is no tile: give its side too.")
        return None
    if check_count("tile", tile) < MIN_TILE:
        raise OVDError(f"tile is {tile}; a tile has at least {MIN_TILE} pixels a side.")
    overlap = OVERLAP if overlap is None else overlap
    is_number = isinstance(overlap, int | float) and not isinstance(overlap, bool)
    if not is_number or not 0 <= overlap <= 0.9:
        raise OVDError(f"overlap is {overlap!r}; it must be in 0..0.9, a share of the tile.")
    _slicer()
    return Tiles(int(tile), float(overlap))


def _slicer() -> type:
    try:
        from supervision import InferenceSlicer
    except ImportError as error:
        raise OVDError(
            f"Tiles need supervision ({error}): run pip install 'ovd_d2[tiles]'."
        ) from error
    return InferenceSlicer


def detect_in_tiles(
    detect: Detect, image: np.ndarray, tiles: Tiles, batch_size: int
) -> dict[str, Instances]:
    """The detections of a picture, cut into tiles that go through ``detect``, ``batch_size`` at a
    time; only these are held.

    Args:
        detect: pictures -> their detections, in the frame of each, in order.
        image: (H, W, 3) uint8.
        tiles: how to cut.
        batch_size: at least 1.

    Returns:
        ``{"instances": ...}`` in the frame of ``image``, best first.

    Raises:
        OVDError: ``detect`` gives label maps.
    """
    if not tiles.cut(image):
        return {"instances": _instances(detect([image])[0])}
    from supervision import Detections

    found: list[Instances] = []

    def call(pieces: list[np.ndarray]) -> list[Detections]:
        instances = [_packed(output) for output in detect(pieces)]
        found.extend(instances)
        return [Detections(xyxy=each.pred_boxes.tensor.numpy()) for each in instances]

    cut = _slicer()(
        call if batch_size > 1 else lambda piece: call([piece])[0],
        slice_wh=tiles.side,
        overlap_wh=tiles.pixels,
        overlap_filter="none",  # tile_merging does it
        batch_size=batch_size,
    )
    height, width = image.shape[:2]
    moved = torch.from_numpy(cut(image).xyxy.reshape(-1, 4)).float()
    whole = _packed(detect([image])[0])
    found.append(whole)
    boxes = torch.cat([moved, whole.pred_boxes.tensor])
    scores = torch.cat([each.scores for each in found])
    classes = torch.cat([each.pred_classes for each in found])
    places, tile_of = _places(found, boxes, (height, width))
    merged = merge_tiles(boxes, scores, classes, places, tile_of)
    return {"instances": _of_picture(merged, found, places, tile_of, (height, width))}


def _instances(output: dict[str, Instances | Tensor]) -> Instances:
    if "instances" not in output:
        raise OVDError(
            "The model gives label maps, and looks at large pictures in windows of its own: leave "
            "out tile."
        )
    return output["instances"]


def _packed(output: dict[str, Instances | Tensor]) -> Instances:
    """Detections whose masks are run lengths: those of thousands of tiles are held."""
    instances = _instances(output)
    if instances.has("pred_masks"):
        masks = instances.pred_masks.permute(1, 2, 0).to(torch.uint8).numpy()
        instances.remove("pred_masks")
        instances.pred_masks = coco_mask.encode(np.asfortranarray(masks))
    return instances


def _places(
    found: Sequence[Instances], boxes: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(T, 4) tiles in the frame of the picture and (R,) the tile of every box, by how far each box
    was moved. A tile that found nothing is not among those that matter; its place is the origin."""
    counts = torch.tensor([len(each) for each in found])
    tile_of = torch.repeat_interleave(torch.arange(len(found)), counts)
    own = torch.cat([each.pred_boxes.tensor for each in found])
    origin = torch.zeros(len(found), 2)
    origin[tile_of] = (boxes - own)[:, :2].round()
    sides = torch.tensor([each.image_size[::-1] for each in found]).float()
    return torch.cat([origin, origin + sides], dim=1), tile_of


def _of_picture(
    merged: Merged,
    found: Sequence[Instances],
    places: Tensor,
    tile_of: Tensor,
    size: tuple[int, int],
) -> Instances:
    """The detections that are left, with every field they had in their tiles."""
    kept = Instances(size)
    starts = torch.cumsum(torch.tensor([0, *(len(each) for each in found)]), dim=0)
    for name in found[-1].get_fields():
        if name == "pred_boxes":
            kept.set(name, Boxes(merged.boxes))
        elif name == "pred_masks":
            _add_masks(kept, merged, found, places, tile_of, starts)
        elif isinstance(found[-1].get(name), Tensor):
            kept.set(name, torch.cat([each.get(name) for each in found])[merged.rows])
    return kept


def _add_masks(
    kept: Instances,
    merged: Merged,
    found: Sequence[Instances],
    places: Tensor,
    tile_of: Tensor,
    starts: Tensor,
) -> None:
    """``pred_masks`` (R, H, W) bool, or a warning where these would be too large to hold."""
    height, width = kept.image_size
    if len(merged.rows) * height * width > MAX_MASK_BYTES:
        logger.warning(
            "Masks of %d detections in %d x %d pixels need %.0f GB: there are boxes alone. Raise "
            "the score threshold to have masks.",
            len(merged.rows), width, height, len(merged.rows) * height * width / 1e9,
        )  # fmt: skip
        return
    masks = torch.zeros(len(merged.rows), height, width, dtype=torch.bool)
    for mask, row in zip(masks, merged.rows.tolist()):
        for part in merged.parts.get(row, (row,)):
            tile = int(tile_of[part])
            piece = coco_mask.decode(found[tile].pred_masks[part - int(starts[tile])])
            x, y = (int(value) for value in places[tile, :2])
            mask[y : y + piece.shape[0], x : x + piece.shape[1]] |= torch.from_numpy(piece > 0)
    kept.pred_masks = masks
