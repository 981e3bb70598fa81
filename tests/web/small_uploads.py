"""Pictures to send, and what may be sent."""

import io

from PIL import Image
from random_models import make_pixels

from ovd_d2.web.limits import Limits

LIMITS = Limits(names=20, characters=40, pixels=1_000_000, bytes=1 << 20, waiting=2)


def encoded(pixels, kind="PNG"):
    """(H, W, 3) uint8 as an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


def png(height=96, width=120, seed=0):
    """An image file of random rectangles."""
    return encoded(make_pixels(height, width, seed))
