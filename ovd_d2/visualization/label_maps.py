"""Draws a label map over a picture, with a legend of its classes under it.

Letters: H, W height and width of the picture; K classes.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ovd_d2.errors import OVDError
from ovd_d2.visualization.detections import MAX_ENLARGEMENT, MIN_SIDE, class_colour, label_font

OPACITY = 0.55
LEGEND = 24  # classes at most; those of most pixels
# Names of what is no object: such pixels keep the colours of the picture.
PLAIN = ("background", "others", "other")
_GREY = (150, 150, 150)
_EDGE = (20, 20, 20)


def draw_label_map(
    image: np.ndarray, labels: np.ndarray, names: Sequence[str], *, min_side: int = MIN_SIDE
) -> np.ndarray:
    """A copy of ``image`` in the colours of its classes, which are outlined and listed below it.

    The colour belongs to the class and is the same in every picture; a class is named where it is
    broadest, if there is room. Pixels of a class that is called background or others are not
    coloured.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) integers in [0, K).
        names: what the K classes are called.
        min_side: smaller pictures are enlarged until their longer side has this many pixels.

    Returns:
        (H' + legend, W', 3) uint8, RGB; H' = H and W' = W unless it was enlarged.

    Raises:
        OVDError: sizes that differ, or a number without a name.
    """
    height, width = image.shape[:2]
    if labels.shape != (height, width):
        raise OVDError(f"The label map has shape {labels.shape}, its picture {(height, width)}.")
    if labels.size and not 0 <= labels.min() <= labels.max() < len(names):
        raise OVDError(
            f"The label map holds classes from {labels.min()} to {labels.max()}, but there are "
            f"{len(names)} names."
        )
    scale = min(max(min_side / max(height, width), 1.0), MAX_ENLARGEMENT)
    size = (round(width * scale), round(height * scale))
    canvas = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    rows = np.arange(size[1]) * height // size[1]
    columns = np.arange(size[0]) * width // size[0]
    labels = labels[rows[:, None], columns[None]]
    shares = class_shares(labels)
    painted = Image.fromarray(_painted(canvas, labels, names))
    _write_names(ImageDraw.Draw(painted), labels, shares, names)
    return np.concatenate([np.asarray(painted), _legend(shares, names, size[0])])


def class_shares(labels: np.ndarray) -> dict[int, float]:
    """Class -> its share of the pixels, 0..1, the largest first."""
    classes, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {int(classes[i]): float(counts[i] / labels.size) for i in order}


def map_colour(index: int, names: Sequence[str]) -> tuple[int, int, int]:
    """(R, G, B) 0-255 of a class in a label map."""
    return _GREY if names[index].lower() in PLAIN else class_colour(index)


def _painted(canvas: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    there = np.unique(labels)
    colours = np.array([map_colour(int(k), names) for k in there], np.float32)
    opacity = np.array([0 if names[k].lower() in PLAIN else OPACITY for k in there], np.float32)
    place = np.searchsorted(there, labels)
    share = opacity[place][..., None]
    pixels = canvas * (1 - share) + colours[place] * share
    edge = np.zeros(labels.shape, bool)
    reach = max(1, round(max(labels.shape) / 800))
    for step in range(1, reach + 1):
        edge[step:] |= labels[step:] != labels[:-step]
        edge[:, step:] |= labels[:, step:] != labels[:, :-step]
    pixels[edge] = _EDGE
    return pixels.round().astype(np.uint8)


def _write_names(
    draw: ImageDraw.ImageDraw, labels: np.ndarray, shares: dict[int, float], names: Sequence[str]
) -> None:
    """Each class's name in its broadest place, those of large classes first; not over another."""
    height, width = labels.shape
    font = label_font(max(12, round(8 + max(labels.shape) / 130)))
    taken: list[tuple[int, int, int, int]] = []
    for k in list(shares)[:LEGEND]:
        if names[k].lower() in PLAIN:
            continue
        x, y = _broadest(labels == k)
        text = names[k].replace("_", " ")
        wide, high = round(font.getlength(text)), font.size
        x = max(0, min(x - wide // 2, width - wide))
        y = max(0, min(y - high // 2, height - high))
        box = (x - 2, y - 2, x + wide + 2, y + high + 2)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        draw.text((x, y), text, font=font, fill="white", stroke_width=2, stroke_fill="black")


def _broadest(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel of a mask that has most of it on its four sides."""
    room = np.minimum(_run(mask), _run(mask.T).T)
    y, x = np.unravel_index(int(room.argmax()), mask.shape)
    return int(x), int(y)


def _run(mask: np.ndarray) -> np.ndarray:
    """(H, W) how far each row of the mask goes on to the left and to the right, the lesser."""
    place = np.arange(1, mask.shape[1] + 1)
    left = place - np.maximum.accumulate(np.where(mask, 0, place), axis=1)
    place = place[::-1]
    right = place - np.maximum.accumulate(np.where(mask, 0, place)[:, ::-1], axis=1)[:, ::-1]
    return np.minimum(left, right)


def _legend(shares: dict[int, float], names: Sequence[str], width: int) -> np.ndarray:
    """(h, width, 3): coloured squares, names and shares, in as many lines as they need."""
    font = label_font(max(13, round(8 + width / 70)))
    line = round(font.size * 1.6)
    entries = [
        (map_colour(k, names), f"{names[k].replace('_', ' ')} {percent(share)}")
        for k, share in list(shares.items())[:LEGEND]
    ]
    if len(shares) > LEGEND:
        entries.append((None, f"and {len(shares) - LEGEND} more"))
    places, x, y = [], font.size // 2, 0
    for colour, text in entries:
        wide = round(font.getlength(text)) + (0 if colour is None else round(1.5 * font.size))
        if x + wide > width and x > font.size:
            x, y = font.size // 2, y + line
        places.append((x, y))
        x += wide + font.size
    picture = Image.new("RGB", (width, y + line + font.size // 2), "white")
    draw = ImageDraw.Draw(picture)
    for (x, y), (colour, text) in zip(places, entries):
        top = y + (line - font.size) // 2
        if colour is not None:
            draw.rectangle((x, top, x + font.size, top + font.size), fill=colour, outline="black")
            x += round(1.5 * font.size)
        draw.text((x, top), text, font=font, fill="black")
    return np.asarray(picture)


def percent(share: float) -> str:
    """A share of the pixels in words."""
    return f"{share:.0%}" if share >= 0.01 else "<1%"
