"""Boxes of an image to the square uint8 crops that an image tower reads, as PIL would make them.

Letters: Ri regions of one image, S side of the square.

Cropping, then resizing and centre cropping as ``ImagePreprocessing`` says. Two ways, both at most
two grey levels away from PIL:

* one crop after the other with torch's uint8 resize, the fastest on a CPU (0.2 to 0.5 ms for
  224 x 224 on one core, several times PIL's speed). A long crop, more than three times as long as
  wide, goes the other way: only what the centre crop keeps of it is computed. Otherwise a line of
  1 x 600 pixels would first become one of 224 x 134,400;
* all crops of an image at once, as two products with dense (source pixel, target pixel) matrices:
  no loop over regions and no launch per region, which is what costs on a GPU.

PIL rounds to uint8 between its two passes, so their order shows where edges are hard. Pillow 13
resamples columns first (the width changes first) unless the height shrinks by more than twice as
many pixels as the width; that is followed here. Older Pillow has no such exception: crops that
shrink and are more than twice as tall as wide differ from its by some ten grey levels at worst.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ovd_d2.encoders.image_text_model import ImagePreprocessing

LONG_CROP = 3  # times as long as wide; measured: 100 x 300 takes as long either way
_BLOCK_BYTES = 512 << 20  # what the intermediate image of one dense product may take


def crop_pixels(boxes: Tensor, scale: float, height: int, width: int) -> Tensor:
    """The whole pixels that a box, enlarged about its centre, covers.

    Enlarging comes before rounding, and both before cutting at the image's border, as ViLD's
    re-implementation in DetPro does it: x0' = x0 - (scale - 1) / 2 * (x1 - x0), rounded down.

    Args:
        boxes: (Ri, 4) finite, absolute xyxy in pixels, x0 <= x1 and y0 <= y1.
        scale: of the sides; 1.0 or 1.5.
        height: of the image.
        width: of the image.

    Returns:
        (Ri, 4) int64 x0, y0, x1, y1 with 0 <= x0 < x1 <= ``width`` and 0 <= y0 < y1 <= ``height``.
        Where no pixel would be left (a degenerate box, or one beyond the border), the nearest row
        or column of pixels inside.
    """
    corners = boxes.double()  # exact for every box of whole or quarter pixels
    grow = (corners[:, 2:] - corners[:, :2]) * ((scale - 1) / 2)
    extent = torch.tensor([width, height], dtype=torch.float64, device=boxes.device)
    low = (corners[:, :2] - grow).floor().clamp(min=0).minimum(extent - 1)
    high = (corners[:, 2:] + grow).ceil().maximum(low + 1).minimum(extent)
    return torch.cat([low, high], dim=1).long()


def resample_crops(
    image: Tensor, crops: Tensor, preprocessing: ImagePreprocessing, densely: bool | None = None
) -> Tensor:
    """Crops of one image, resized and centre cropped.

    Args:
        image: (3, H, W) uint8, on any device.
        crops: (Ri, 4) int64 as of :func:`crop_pixels`.
        preprocessing: its size, way of resizing and interpolation.
        densely: which of the two ways; None: the quicker one on the device of ``image``.

    Returns:
        (Ri, 3, S, S) uint8 on the device of ``image``.
    """
    if densely is None:
        densely = image.device.type != "cpu"
    crops = crops.to(image.device)
    rows_first = _are_rows_first(crops, preprocessing)
    if not densely:
        return _one_by_one(image, crops, rows_first, preprocessing)
    side = preprocessing.image_size
    resampled = torch.empty(len(crops), 3, side, side, dtype=torch.uint8, device=image.device)
    resampled[~rows_first] = _all_at_once(image, crops[~rows_first], preprocessing)
    turned = _all_at_once(image.transpose(1, 2), crops[rows_first][:, [1, 0, 3, 2]], preprocessing)
    resampled[rows_first] = turned.transpose(2, 3)
    return resampled


def _are_rows_first(crops: Tensor, preprocessing: ImagePreprocessing) -> Tensor:
    """(Ri,) bool: whether PIL changes the height of a crop before its width."""
    shrinks_by = crops[:, 2:] - crops[:, :2] - _output_geometry(crops, preprocessing)[0]
    return shrinks_by[:, 1] > (2 * shrinks_by[:, 0]).clamp(min=0)


def _one_by_one(
    image: Tensor, crops: Tensor, rows_first: Tensor, preprocessing: ImagePreprocessing
) -> Tensor:
    """As :func:`resample_crops`, on the CPU; ``rows_first`` (Ri,) of :func:`_are_rows_first`."""
    side = preprocessing.image_size
    outputs, offsets = _output_geometry(crops, preprocessing)
    boxes = torch.cat([crops, outputs, offsets], dim=1)
    boxes[rows_first] = boxes[rows_first][:, [1, 0, 3, 2, 5, 4, 7, 6]]
    images = (image, image.transpose(1, 2))  # as it is, and with x and y exchanged
    resampled = torch.empty(len(crops), 3, side, side, dtype=torch.uint8)
    for row, (turned, box) in enumerate(zip(rows_first.tolist(), boxes.tolist())):
        x0, y0, x1, y1, width, height, left, top = box
        target = resampled[row].transpose(1, 2) if turned else resampled[row]
        if max(width, height) > LONG_CROP * side:
            crop = boxes[row, :4]
            target.copy_(_resample_long_crop(images[turned], crop, preprocessing))
            continue
        resized = images[turned][None, :, y0:y1, x0:x1]
        if (x1 - x0, y1 - y0) != (width, height):
            resized = interpolate(
                resized, (height, width), mode=preprocessing.interpolation, antialias=True
            )
        target.copy_(resized[0, :, top : top + side, left : left + side])
    return resampled


def _all_at_once(image: Tensor, crops: Tensor, preprocessing: ImagePreprocessing) -> Tensor:
    """As :func:`resample_crops`, width before height, by matrix products over the whole image.

    Its cost does not depend on the sizes of the crops but on the image's: 3 S H W + 3 S S H
    multiplications each, in float32.
    """
    height, width = image.shape[-2:]
    side = preprocessing.image_size
    per_crop = 12 * side * (height + width)
    resampled = [torch.empty(0, 3, side, side, dtype=torch.uint8, device=image.device)]
    pixels = image.float()
    for block in crops.split(max(1, _BLOCK_BYTES // per_crop)):
        output, offset = _output_geometry(block, preprocessing)
        columns, rows = (
            _resampling_matrices(
                block[:, axis], block[:, axis + 2], output[:, axis], offset[:, axis],
                length, preprocessing,
            )
            for axis, length in ((0, width), (1, height))
        )  # fmt: skip
        across = pixels @ columns.permute(1, 0, 2).flatten(1)  # (3, H, Ri * S)
        across = _to_grey_levels(across).view(3, height, len(block), side)
        across = across.permute(2, 1, 0, 3).flatten(2)  # (Ri, H, 3 * S)
        squares = (rows.transpose(1, 2) @ across).view(len(block), side, 3, side)
        resampled.append(_to_grey_levels(squares).permute(0, 2, 1, 3).to(torch.uint8))
    return torch.cat(resampled)


def _resample_long_crop(image: Tensor, crop: Tensor, preprocessing: ImagePreprocessing) -> Tensor:
    """(3, S, S) uint8: the dense way, on the part of one crop that the result depends on."""
    output, offset = _output_geometry(crop[None], preprocessing)
    matrices, spans = [], []
    for axis in (0, 1):
        low, high = int(crop[axis]), int(crop[axis + 2])
        scale = (high - low) / int(output[0, axis])
        start = int(offset[0, axis]) * scale
        reach = 2 * max(scale, 1.0) + 1  # of the kernel, which is at most bicubic
        first = max(low, int(low + start - reach))
        last = min(high, int(low + start + preprocessing.image_size * scale + reach) + 1)
        spans.append(slice(first, last))
        ends = (crop[None, axis] - first, crop[None, axis + 2] - first)
        matrices.append(
            _resampling_matrices(
                *ends, output[:, axis], offset[:, axis], last - first, preprocessing
            )[0]
        )
    columns, rows = matrices
    across = _to_grey_levels(image[:, spans[1], spans[0]].float() @ columns)
    return _to_grey_levels(rows.T @ across).to(torch.uint8)


def _output_geometry(crops: Tensor, preprocessing: ImagePreprocessing) -> tuple[Tensor, Tensor]:
    """Both (Ri, 2) int64, x and y: the size of the resized crop, and where its centre crop begins.

    As torchvision's ``Resize`` and ``CenterCrop``, which CLIP uses: the longer side is rounded
    down, half an odd margin to the even number.
    """
    extent = crops[:, 2:] - crops[:, :2]
    side = preprocessing.image_size
    if preprocessing.resize == "squash":
        return torch.full_like(extent, side), torch.zeros_like(extent)
    output = torch.div(side * extent, extent.amin(dim=1, keepdim=True), rounding_mode="floor")
    return output, ((output - side) / 2).round().long()


def _resampling_matrices(
    low: Tensor,
    high: Tensor,
    output: Tensor,
    offset: Tensor,
    length: int,
    preprocessing: ImagePreprocessing,
) -> Tensor:
    """What every source pixel of a line gives to every target pixel, antialiased.

    Args:
        low: (Ri,) first source pixel of each crop; may be negative if only a part is given.
        high: (Ri,) end of each crop, exclusive; may exceed ``length`` likewise.
        output: (Ri,) number of pixels that the crop is resized to.
        offset: (Ri,) which of those are wanted: S from here.
        length: L, of the line.
        preprocessing: S and the kernel.

    Returns:
        (Ri, L, S) float32; columns sum to 1.
    """
    scale = ((high - low) / output).float()[:, None]
    target = torch.arange(preprocessing.image_size, device=low.device)
    centre = (offset[:, None] + target + 0.5) * scale + low[:, None]  # (Ri, S)
    source = torch.arange(length, device=low.device)[:, None]
    distance = (source + 0.5 - centre[:, None]).abs_().div_(scale.clamp(min=1)[:, None])
    weights = _KERNELS[preprocessing.interpolation](distance)
    inside = (source >= low[:, None, None]) & (source < high[:, None, None])
    weights *= inside
    return weights.div_(weights.sum(dim=1, keepdim=True))


def _bicubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5, which PIL and torch's antialias use; distance >= 0."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def _bilinear(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


_KERNELS = {"bicubic": _bicubic, "bilinear": _bilinear}


def _to_grey_levels(values: Tensor) -> Tensor:
    """Rounded and cut to 0..255, still float; in place."""
    return values.round_().clamp_(0, 255)
