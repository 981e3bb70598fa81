"""What several models say about one picture, side by side."""

import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from ovd_d2.errors import OVDError
from ovd_d2.visualization.detections import label_font

PANEL = 800  # width of a panel in pixels
_GAP = 12


def side_by_side(panels: Mapping[str, np.ndarray], *, width: int = PANEL) -> np.ndarray:
    """One picture of all panels, each under its title, in rows of about the shape of a screen.

    Args:
        panels: title -> (H, W, 3) uint8, RGB; they are brought to the same width.
        width: of a panel.

    Returns:
        (H', W', 3) uint8, RGB.

    Raises:
        OVDError: there is none.
    """
    if not panels:
        raise OVDError("There is nothing to show side by side.")
    font = label_font(max(14, width // 32))
    title = round(1.7 * font.size)
    pictures = [
        Image.fromarray(p).resize((width, max(1, round(p.shape[0] * width / p.shape[1]))))
        for p in panels.values()
    ]
    high = max(picture.height for picture in pictures) + title
    columns = min(
        range(1, len(pictures) + 1), key=lambda n: _unlike_a_screen(n, len(pictures), width, high)
    )
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new(
        "RGB", (columns * (width + _GAP) + _GAP, rows * (high + _GAP) + _GAP), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for place, (name, picture) in enumerate(zip(panels, pictures)):
        row, column = divmod(place, columns)
        x, y = _GAP + column * (width + _GAP), _GAP + row * (high + _GAP)
        draw.text((x, y), _fitted(name, font, width), font=font, fill="black")
        sheet.paste(picture, (x, y + title))
    return np.asarray(sheet)


def _unlike_a_screen(columns: int, count: int, width: int, high: int) -> tuple[float, int]:
    """How far the sheet is from 16:9; of equals, more columns are better."""
    rows = math.ceil(count / columns)
    return abs(math.log(columns * width / (rows * high) * 9 / 16)), -columns


def _fitted(text: str, font: "object", width: int) -> str:
    while font.getlength(text) > width and len(text) > 1:
        text = text[:-2] + "…"
    return text
