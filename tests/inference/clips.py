"""Tiny videos, and a predictor without a network that finds the bright rectangles in them."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
from bright_rectangles import paint, rectangles

from ovd_d2.inference import OpenVocabPredictor
from ovd_d2.language import Vocabulary

SIZE = (64, 96)


class StubPredictor(OpenVocabPredictor):
    """Everything of the predictor but the network: :func:`rectangles`, "box" and "lamp".

    Args:
        before: called before each batch.
    """

    def __init__(self, batch_size=4, *, masks=False, before=lambda: None):
        self.batch_size, self.input_format, self.facts = batch_size, "BGR", {}
        self._score_threshold, self._attributes, self.rules = 0.0, None, None
        test = SimpleNamespace(DETECTIONS_PER_IMAGE=100)
        self.cfg = SimpleNamespace(INPUT=SimpleNamespace(MAX_PIXELS=1_000_000), TEST=test)
        self.masks, self.before, self.batches = masks, before, []

    @property
    def vocabulary(self):
        return Vocabulary.from_names(["box", "lamp"])

    def _detect(self, images):
        self.before()
        self.batches.append(len(images))
        return [{"instances": rectangles(image, masks=self.masks)} for image in images]


def moving(frames, size=SIZE):
    """Frames of a box that moves right by 2 pixels, and a lamp that moves down by 1, over noise."""
    rng = np.random.default_rng(0)
    for k in range(frames):
        image = rng.integers(0, 80, (*size, 3)).astype(np.uint8)
        x, y = 4 + 2 * k % (size[1] - 24), 4 + k % (size[0] - 20)
        paint(image, (x, 4, x + 16, 16), score=0.8)
        yield paint(image, (size[1] - 14, y, size[1] - 2, y + 12), score=0.5, of_class=1)


def write_clip(path, frames, *, rate=25, codec="libx264", times=None, rotation=None, kind=None):
    """Writes frames (H, W, 3) uint8 RGB; ``times``: seconds of each, default k / rate."""
    import av

    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=Fraction(rate))
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for k, pixels in enumerate(frames):
            if k == 0:
                stream.height, stream.width = pixels.shape[:2]
                base = Fraction(1, 1000) if times else 1 / Fraction(rate)
                stream.time_base = stream.codec_context.time_base = base
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = round(times[k] / base) if times else k
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path, seconds=1):
    """A file with sound alone."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for k in range(8 * seconds):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.int16), layout="mono")
            frame.sample_rate, frame.pts = 8000, 1000 * k
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
