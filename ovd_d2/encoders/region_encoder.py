"""Boxes on images to embeddings: crop, then the image tower of a CLIP-like model.

Letters: N images, Ri regions of image i, R regions over the batch, D embedding width, S side of the
tower's input.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ovd_d2.encoders.crop_resampling import crop_pixels, resample_crops
from ovd_d2.encoders.image_text_model import ImageTextModel
from ovd_d2.errors import OVDError

# What a region store's facts call the ways of cropping: enlargement of the box's sides.
CROP_RULES = {"1x": (1.0,), "1x+1.5x": (1.0, 1.5)}


class CropRegionEncoder:
    """Embeds regions by cropping them out and running the image tower on the crops.

    "1x+1.5x" is ViLD's teacher: v = normalise(V(crop 1x) + V(crop 1.5x)), V not normalised (ViLD,
    section 3.3; which of the two is added is not stated, this is what DetPro does). "1x" is
    object-centric-ovd's (RKD).

    A crop is every pixel that the box touches (rounded outward), cut at the image's border; the
    box is enlarged before that. Every box has an embedding: of one that is degenerate, or beyond
    the border, the nearest row or column of pixels inside the image is seen, at least one pixel
    in all. A tiny one is enlarged to S like any other.

    Args:
        model: whose image tower and preprocessing to use.
        scales: enlargements of the box's sides whose embeddings are added.
        batch: crops that go through the tower at once; 8 to 32 on a CPU, more on a GPU.

    Attributes:
        encoder_id: of ``model``; embeddings of its text side belong to these.
        dim: D.
        crop_rule: "1x" or "1x+1.5x", as in a region store's facts.

    Raises:
        OVDError: a scale that is not positive, no scale, or a batch below 1.
    """

    def __init__(
        self, model: ImageTextModel, scales: Sequence[float] = (1.0, 1.5), batch: int = 32
    ) -> None:
        if not scales or min(scales) <= 0:
            raise OVDError(f"scales of crops must be positive numbers, not {tuple(scales)}")
        if batch < 1:
            raise OVDError(f"crops per batch must be 1 or more, not {batch}")
        self.model = model
        self.scales = tuple(float(scale) for scale in scales)
        self.batch = batch
        self.encoder_id = model.encoder_id
        self.dim = model.dim
        self.crop_rule = "+".join(f"{scale:g}x" for scale in self.scales)

    def encode(self, images: Sequence[Tensor], boxes: Sequence[Tensor]) -> list[Tensor]:
        """Embeds the regions of N images; crops of different images share batches.

        Args:
            images: N of (3, H, W) uint8, RGB, each of its own size.
            boxes: N of (Ri, 4), absolute xyxy in pixels of that image, x0 <= x1 and y0 <= y1, of
                any number type; Ri may be 0.

        Returns:
            N of (Ri, D) fp32 on the CPU, rows of L2 norm 1, without gradient.

        Raises:
            OVDError: images or boxes that are not as above; the message tells which.
        """
        check_regions(images, boxes)
        plan = []  # one row per crop: number of the image, x0, y0, x1, y1
        for number, (image, rows) in enumerate(zip(images, boxes)):
            for scale in self.scales:
                crops = crop_pixels(rows.cpu(), scale, *image.shape[-2:])
                plan.append(nn.functional.pad(crops, (1, 0), value=number))
        features = torch.zeros(sum(map(len, plan)), self.dim)
        with torch.inference_mode():
            todo = torch.cat(plan) if plan else torch.zeros(0, 5, dtype=torch.int64)
            for start in range(0, len(todo), self.batch):
                block = todo[start : start + self.batch]
                crops = self._crops(images, block)
                features[start : start + self.batch] = self.model.raw_image_features(crops).cpu()
        split = features.split([len(self.scales) * len(rows) for rows in boxes])
        sums = [part.view(len(self.scales), -1, self.dim).sum(dim=0) for part in split]
        return [nn.functional.normalize(rows, dim=1) for rows in sums]

    def _crops(self, images: Sequence[Tensor], block: Tensor) -> Tensor:
        """(rows of ``block``, 3, S, S) uint8, on the model's device."""
        numbers, counts = block[:, 0].unique_consecutive(return_counts=True)
        parts = block[:, 1:].split(counts.tolist())
        return torch.cat(
            [
                resample_crops(images[n].to(self.model.device), part, self.model.preprocessing)
                for n, part in zip(numbers.tolist(), parts)
            ]
        )


def check_regions(images: Sequence[Tensor], boxes: Sequence[Tensor]) -> None:
    """Raises OVDError unless images and boxes are as ``CropRegionEncoder.encode`` wants them."""
    if len(images) != len(boxes):
        raise OVDError(f"{len(images)} images come with boxes of {len(boxes)}; give each its own")
    for number, (image, rows) in enumerate(zip(images, boxes)):
        shape = tuple(image.shape)
        if image.dtype != torch.uint8 or len(shape) != 3 or shape[0] != 3 or 0 in shape:
            raise OVDError(
                f"image {number} must be (3, H, W) uint8 RGB with pixels, not {shape} {image.dtype}"
            )
        if rows.ndim != 2 or rows.shape[1] != 4:
            raise OVDError(f"boxes of image {number} must be (Ri, 4), not {tuple(rows.shape)}")
        if not rows.isfinite().all() or (rows[:, 2:] < rows[:, :2]).any():
            raise OVDError(
                f"boxes of image {number} must be finite with their corners in the order x0, y0, "
                "x1, y1; drop or repair the others"
            )
