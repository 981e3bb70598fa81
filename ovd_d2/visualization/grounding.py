"""Draws a grounded caption: boxes in a picture, and the caption with its phrases in their colours.

Letters: H, W height and width of the picture.
"""

from typing import Any

import numpy as np
from detectron2.structures import Instances
from PIL import Image, ImageDraw

from ovd_d2.structures.grounding import TokenSpans
from ovd_d2.visualization.detections import class_colour, draw_detections, label_font

_PAPER, _INK = (250, 250, 250), (40, 40, 40)


def draw_grounding(image: np.ndarray, caption: TokenSpans, instances: Instances) -> np.ndarray:
    """The picture with a box for each detection, and below it the caption.

    Args:
        image: (H, W, 3) uint8, RGB.
        caption: the text and its phrases.
        instances: in the frame of ``image``: ``pred_boxes``, ``scores``, and ``pred_classes``,
            places in ``caption.spans``.

    Returns:
        (H', W', 3) uint8, RGB.

    Raises:
        OVDError: as :func:`draw_detections`.
    """
    drawn = draw_detections(image, instances, caption.phrases())
    strip = _caption_strip(caption, drawn.shape[1])
    return np.concatenate([drawn, strip])


def _caption_strip(caption: TokenSpans, width: int) -> np.ndarray:
    """(h, width, 3) uint8: the caption, its phrases underlined in their colours, in lines."""
    font = label_font(max(16, width // 45))
    pad = font.size // 2
    colours = _colour_of_characters(caption)
    lines, line, x = [], [], pad
    for begin, end in _words(caption.caption):
        wide = font.getlength(caption.caption[begin:end] + " ")
        if line and x + wide > width - pad:
            lines.append(line)
            line, x = [], pad
        line.append((begin, end, x))
        x += wide
    lines.append(line)
    height = round(font.size * 1.6)
    picture = Image.new("RGB", (width, height * len(lines) + 2 * pad), _PAPER)
    draw = ImageDraw.Draw(picture)
    for row, words in enumerate(lines):
        top = pad + row * height
        for begin, end, x in words:
            for place in range(begin, end):
                left = x + font.getlength(caption.caption[begin:place])
                right = x + font.getlength(caption.caption[begin : place + 1])
                phrase = colours[place]
                if phrase is not None:
                    box = (left, top + height - font.size // 4 - 2, right, top + height - 3)
                    draw.rectangle(box, fill=class_colour(phrase))
            draw.text((x, top), caption.caption[begin:end], font=font, fill=_INK)
    return np.array(picture)


def _colour_of_characters(caption: TokenSpans) -> list[Any]:
    """Per character the phrase whose colour it gets, the shortest one; None for none."""
    owner: list[Any] = [None] * len(caption.caption)
    sized = sorted(
        enumerate(caption.spans), key=lambda item: -sum(end - begin for begin, end in item[1])
    )
    for phrase, spans in sized:
        for begin, end in spans:
            owner[begin:end] = [phrase] * (end - begin)
    return owner


def _words(text: str) -> list[tuple[int, int]]:
    """[begin, end) of what stands between spaces."""
    found, begin = [], 0
    for word in text.split(" "):
        if word:
            found.append((begin, begin + len(word)))
        begin += len(word) + 1
    return found
