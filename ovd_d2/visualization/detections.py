"""Draws detections into a picture: masks, boxes, names and scores that can be read at any size.

Letters: R detections; H, W height and width of the picture.
"""

import colorsys
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.structures import Instances
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ovd_d2.errors import OVDError

MIN_SIDE = 800  # smaller pictures are enlarged until their longer side has this many pixels
MAX_ENLARGEMENT = 8
MASK_OPACITY = 0.35
GREY = (150, 150, 150)
# Bright, and apart from their neighbours for colour-blind readers too; after these come the same
# hues, darker and lighter.
_HUES = (0.57, 0.10, 0.33, 0.92, 0.15, 0.75, 0.47, 0.02, 0.63, 0.25, 0.83, 0.52)
_COLOURS = 12 * len(_HUES)
_Rectangle = tuple[int, int, int, int]


def draw_detections(
    image: np.ndarray, instances: Instances, names: Sequence[str], *, min_side: int = MIN_SIDE
) -> np.ndarray:
    """A copy of ``image`` with its detections.

    The colour belongs to the class, or to the track where there are ids, and is the same in every
    picture; what has no id yet is grey. Labels are moved so that they do not cover each other where
    there is room; the best-scored ones come first and lie on top.

    Args:
        image: (H, W, 3) uint8, RGB.
        instances: R detections in the frame of ``image``: ``pred_boxes``, ``scores``,
            ``pred_classes`` and, if there, ``pred_masks`` (R, H, W) bool and ``track_ids`` (R,),
            which labels show as "#3 cat 0.71"; -1: none.
        names: what the classes are called.
        min_side: see :data:`MIN_SIDE`; 0 draws at the size of ``image``.

    Returns:
        (H', W', 3) uint8, RGB; H' = H and W' = W unless it was enlarged.

    Raises:
        OVDError: ``image`` is no such array, the detections are not in its frame or lack a field,
            or ``names`` are too few.
    """
    _check(image, instances, names)
    height, width = image.shape[:2]
    if tuple(instances.image_size) != (height, width):
        raise OVDError(
            f"The detections are of an image of {instances.image_size}, (height, width), this one "
            f"has {(height, width)}."
        )
    scale = min(max(min_side / max(height, width), 1.0), MAX_ENLARGEMENT)
    canvas = Image.fromarray(image)
    if scale > 1:
        size = (round(width * scale), round(height * scale))
        canvas = canvas.resize(size, Image.Resampling.BICUBIC)
    instances = instances.to("cpu")
    order = instances.scores.argsort(descending=True, stable=True)
    instances = instances[order]
    colours, labels = _colours(instances), _labels(instances, names)
    if instances.has("pred_masks"):
        canvas = _with_masks(canvas, instances.pred_masks.numpy(), colours)
    boxes = (instances.pred_boxes.tensor * scale).round().int().tolist()
    line = max(3, round(max(canvas.size) / 420))
    draw = ImageDraw.Draw(canvas)
    for box, colour in list(zip(boxes, colours))[::-1]:
        _draw_box(draw, box, colour, line)
    _draw_labels(draw, canvas.size, boxes, labels, colours)
    return np.array(canvas)


def _check(image: np.ndarray, instances: Instances, names: Sequence[str]) -> None:
    is_rgb = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3
    if not is_rgb or image.dtype != np.uint8:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image)
        raise OVDError(f"image is {what}; draw_detections takes an array (H, W, 3) of uint8, RGB.")
    if not isinstance(instances, Instances):
        raise OVDError(f"instances is a {type(instances).__name__}; give Detectron2's Instances.")
    lacking = [n for n in ("pred_boxes", "scores", "pred_classes") if not instances.has(n)]
    if lacking:
        raise OVDError(f"instances lacks {', '.join(lacking)}: give what a predictor returns.")
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise OVDError(f"names is {names!r}; give a list of class names.")
    highest = max(instances.pred_classes.tolist(), default=-1)
    if highest >= len(names):
        raise OVDError(
            f"names has {len(names)} entries, but a detection is of class {highest}: give the "
            "names of all classes (predictor.vocabulary.names)."
        )


def _colours(instances: Instances) -> list[tuple[int, int, int]]:
    if not instances.has("track_ids"):
        return [class_colour(k) for k in instances.pred_classes.tolist()]
    tracks = instances.track_ids.tolist()
    return [GREY if track < 0 else class_colour(track % _COLOURS) for track in tracks]


def _labels(instances: Instances, names: Sequence[str]) -> list[str]:
    """As "#3 cat 0.71", or "cat 0.71" of what has no id."""
    count = len(instances)
    tracks = instances.track_ids.tolist() if instances.has("track_ids") else [-1] * count
    rows = zip(tracks, instances.pred_classes.tolist(), instances.scores.tolist())
    return [
        f"{f'#{track} ' if track >= 0 else ''}{names[k].replace('_', ' ')} {score:.2f}"
        for track, k, score in rows
    ]


@functools.cache
def class_colour(index: int) -> tuple[int, int, int]:
    """(R, G, B) 0-255 of a class; neighbouring indices look different."""
    cycle, place = divmod(index, len(_HUES))
    saturation, value = ((0.85, 0.95), (0.55, 1.0), (0.9, 0.7))[cycle % 3]
    hue = _HUES[place] + 0.03 * (cycle // 3 % 4)
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _draw_box(
    draw: ImageDraw.ImageDraw, box: Sequence[int], colour: tuple[int, int, int], line: int
) -> None:
    """A frame of ``line`` pixels inside ``box``, with a thin dark edge that shows on its own
    colour; boxes of less than a pixel become one."""
    x0, y0, x1, y1 = box
    x1, y1 = max(x1 - 1, x0), max(y1 - 1, y0)
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0))
    draw.rectangle((x0, y0, x1, y1), outline=colour, width=line)


def _with_masks(
    canvas: Image.Image, masks: np.ndarray, colours: Sequence[tuple[int, int, int]]
) -> Image.Image:
    """``canvas`` with tinted masks and their outlines, large ones first."""
    pixels = np.asarray(canvas).astype(np.float32)
    outline = max(1, round(max(canvas.size) / 800))
    for i in np.argsort([-int(mask.sum()) for mask in masks], kind="stable"):
        rows, columns = masks[i].any(axis=1).nonzero()[0], masks[i].any(axis=0).nonzero()[0]
        if not len(rows):
            continue
        # Only the part of the picture that the mask covers is touched.
        y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        scale_x, scale_y = canvas.width / masks.shape[2], canvas.height / masks.shape[1]
        left, right = round(x0 * scale_x), min(round(x1 * scale_x), canvas.width)
        top, bottom = round(y0 * scale_y), min(round(y1 * scale_y), canvas.height)
        piece = Image.fromarray(masks[i, y0:y1, x0:x1].astype(np.uint8) * 255)
        piece = piece.resize((right - left, bottom - top), Image.Resampling.BILINEAR)
        inside = np.asarray(piece) > 127
        edge = inside & ~_eroded(inside, outline)
        colour = np.array(colours[i], np.float32)
        region = pixels[top:bottom, left:right]
        region[inside] += MASK_OPACITY * (colour - region[inside])
        region[edge] = colour
    return Image.fromarray(pixels.round().astype(np.uint8))


def _eroded(mask: np.ndarray, by: int) -> np.ndarray:
    padded = np.pad(mask, by)  # the border of the picture counts as outside
    image = Image.fromarray(padded.astype(np.uint8) * 255).filter(ImageFilter.MinFilter(2 * by + 1))
    return np.asarray(image)[by:-by, by:-by] > 0


@functools.cache
def label_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans (Latin, Greek, Cyrillic and more), which matplotlib brings along."""
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    return ImageFont.truetype(str(path), size)


def _draw_labels(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    boxes: Sequence[Sequence[int]],
    labels: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
) -> None:
    """``boxes``, ``labels`` and ``colours``: best score first."""
    font = label_font(max(13, round(8 + max(size) / 110)))
    pad = max(2, font.size // 6)
    ascent, descent = font.getmetrics()
    placed: list[_Rectangle] = []
    texts = []
    for box, label in zip(boxes, labels):
        text = _fitted(label, font, size[0] - 2 * pad)
        wide = round(font.getlength(text)) + 2 * pad
        placed.append(_place(box, (wide, ascent + descent + pad), size, placed))
        texts.append(text)
    for rectangle, text, colour in list(zip(placed, texts, colours))[::-1]:
        x0, y0, x1, y1 = rectangle
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=colour)
        red, green, blue = colour
        bright = 0.299 * red + 0.587 * green + 0.114 * blue > 130
        draw.text((x0 + pad, y0 + pad // 2), text, font=font, fill="black" if bright else "white")


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """``text``, its name shortened if it is wider than ``width`` pixels; the score stays."""
    if font.getlength(text) <= width:
        return text
    name, _, score = text.rpartition(" ")
    while name and font.getlength(f"{name}… {score}") > width:
        name = name[:-1]
    return f"{name}… {score}" if name else score


def _place(
    box: Sequence[int], label: tuple[int, int], size: tuple[int, int], placed: list[_Rectangle]
) -> _Rectangle:
    """Where a label of (width, height) goes: on the box, in it, under it, left or right; the first
    place that is free and inside the picture, else the one that covers least of other labels."""
    x0, y0, x1, y1 = box
    wide, high = label
    best, best_covered = None, 0
    for x, y in (
        (x0, y0 - high), (x1 - wide, y0 - high),
        (x0, y0), (x0, y1), (x1 - wide, y1), (x0, y1 - high), (x1 - wide, y0),
        (x1 - wide, y1 - high),
        (x1, y0), (x0 - wide, y0), (x0, y0 + high), (x0, y0 + 2 * high), (x0, y1 + high),
        (x0, y0 - 2 * high), (x1, y1 - high), (x0 - wide, y1 - high),
    ):  # fmt: skip
        x = max(0, min(x, size[0] - wide))
        y = max(0, min(y, size[1] - high))
        covered = sum(_overlap((x, y, x + wide, y + high), other) for other in placed)
        if best is None or covered < best_covered:
            best, best_covered = (x, y, x + wide, y + high), covered
        if not covered:
            break
    return best


def _overlap(first: _Rectangle, second: _Rectangle) -> int:
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    return max(wide, 0) * max(high, 0)
