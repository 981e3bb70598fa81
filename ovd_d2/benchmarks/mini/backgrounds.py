"""Backgrounds of the mini benchmark. Training and evaluation share no photo and no texture family.

The photos are the ones that the scikit-image and scikit-learn wheels contain; none is downloaded.
Parts that show one of the categories (a flower, a cup, a rocket) are left out by a crop window.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovd_d2.data.datasets.mini.splits import IMAGE_SIZE
from ovd_d2.errors import OVDError


@dataclass(frozen=True)
class Photo:
    """A photo of a Python package. ``window`` is x0, y0, x1, y1 as fractions of its size."""

    package: str
    path: str
    words: str
    window: tuple[float, float, float, float] = (0, 0, 1, 1)


PHOTOS: dict[str, tuple[Photo, ...]] = {
    "train": (
        Photo("sklearn", "datasets/images/china.jpg", "a temple"),
        Photo("skimage", "data/gravel.png", "gravel"),
        Photo("skimage", "data/ihc.png", "stained tissue"),
        Photo("skimage", "data/moon.png", "the moon's surface"),
        Photo("skimage", "data/retina.jpg", "a red retina", (0.2, 0.2, 0.8, 0.8)),
        Photo("skimage", "data/text.png", "handwriting"),
    ),
    "eval": (
        Photo("skimage", "data/brick.png", "bricks"),
        Photo("skimage", "data/grass.png", "grass"),
        Photo("skimage", "data/hubble_deep_field.jpg", "galaxies"),
        Photo("sklearn", "datasets/images/flower.jpg", "dark leaves", (0.7, 0, 1, 0.8)),
        Photo("skimage", "data/coffee.png", "wood", (0.79, 0, 1, 1)),
        Photo("skimage", "data/rocket.jpg", "the evening sky", (0, 0, 0.42, 1)),
    ),
}


def load_photos(kind: str) -> list[np.ndarray]:
    """The photos of ``kind`` ("train" or "eval"), cut to their windows, (H, W, 3) uint8 RGB."""
    from PIL import Image

    photos = []
    for photo in PHOTOS[kind]:
        spec = importlib.util.find_spec(photo.package)
        places = list(spec.submodule_search_locations or []) if spec else []
        if not places or not (Path(places[0]) / photo.path).is_file():
            raise OVDError(
                f"the background photo {photo.path} of {photo.package} is missing; run "
                "`pip install -r requirements/all.txt`"
            )
        image = Image.open(Path(places[0]) / photo.path).convert("RGB")
        x0, y0, x1, y1 = photo.window
        w, h = image.size
        image = image.crop((round(x0 * w), round(y0 * h), round(x1 * w), round(y1 * h)))
        if max(image.size) > 900:
            image.thumbnail((900, 900))
        photos.append(np.asarray(image))
    return photos


def draw_background(
    rng: np.random.Generator, kind: str, photos: list[np.ndarray]
) -> tuple[np.ndarray, str]:
    """Draws one background.

    Returns:
        ((192, 192, 3) float32 RGB in 0-255, what it shows in words for a caption).
    """
    choice = rng.random()
    if choice < 0.45:
        index = int(rng.integers(len(photos)))
        return _photo_crop(rng, photos[index]), PHOTOS[kind][index].words
    painters = {"train": (_clouds, _stripes, _dots), "eval": (_cells, _waves, _checks)}[kind]
    if choice < 0.8:
        painter: Callable[[np.random.Generator], np.ndarray] = painters[int(rng.integers(3))]
        return painter(rng), painter.__name__.lstrip("_")
    painter = {"train": _linear, "eval": _radial}[kind]
    return painter(rng), "a plain background"


def _photo_crop(rng: np.random.Generator, photo: np.ndarray) -> np.ndarray:
    from PIL import Image

    height, width = photo.shape[:2]
    side = int(min(height, width) * rng.uniform(0.55, 1.0))
    x, y = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    crop = Image.fromarray(photo[y : y + side, x : x + side])
    crop = crop.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    pixels = np.asarray(crop, np.float32)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if np.ptp(pixels.reshape(-1, 3).mean(0)) < 1:  # a grey photo: tint it
        dark, light = _colour(rng) * 0.6, 255 - (255 - _colour(rng)) * 0.6
        pixels = dark + (light - dark) * pixels / 255
    gain, offset = rng.uniform(0.7, 1.15), rng.uniform(-20, 30)
    return np.clip(pixels * gain + offset, 0, 255).astype(np.float32)


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A random colour, (3,) float in 20-245."""
    return rng.uniform(20, 245, 3)


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of all pixels, (192, 192) each, in 0-1."""
    line = (np.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE
    return np.meshgrid(line, line)


def _mix(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Colours blended by a (192, 192) weight in 0-1."""
    weight = weight[..., None]
    return (first * (1 - weight) + second * weight).astype(np.float32)


def _linear(rng: np.random.Generator) -> np.ndarray:
    x, y = _grid()
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
    return _mix(_colour(rng), _colour(rng), np.clip(ramp + 0.5, 0, 1))


def _radial(rng: np.random.Generator) -> np.ndarray:
    x, y = _grid()
    centre = rng.uniform(0, 1, 2)
    distance = np.hypot(x - centre[0], y - centre[1]) / rng.uniform(0.6, 1.3)
    return _mix(_colour(rng), _colour(rng), np.clip(distance, 0, 1))


def _clouds(rng: np.random.Generator) -> np.ndarray:
    from PIL import Image

    total = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for octave in range(5):
        cells = int(rng.integers(2, 4)) * 2**octave
        noise = Image.fromarray(rng.random((cells, cells)).astype(np.float32), "F")
        noise = noise.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        total += np.asarray(noise) * 0.6**octave
    total = (total - total.min()) / max(float(np.ptp(total)), 1e-6)
    return _mix(_colour(rng), _colour(rng), total)


def _stripes(rng: np.random.Generator) -> np.ndarray:
    x, y = _grid()
    angle, count = rng.uniform(0, np.pi), rng.uniform(3, 14)
    phase = (x * np.cos(angle) + y * np.sin(angle)) * count
    return _mix(_colour(rng), _colour(rng), (phase % 1 < rng.uniform(0.3, 0.7)).astype(np.float32))


def _dots(rng: np.random.Generator) -> np.ndarray:
    x, y = _grid()
    angle, count = rng.uniform(0, np.pi), rng.uniform(4, 12)
    u = (x * np.cos(angle) - y * np.sin(angle)) * count % 1 - 0.5
    v = (x * np.sin(angle) + y * np.cos(angle)) * count % 1 - 0.5
    inside = np.hypot(u, v) < rng.uniform(0.15, 0.4)
    return _mix(_colour(rng), _colour(rng), inside.astype(np.float32))


def _cells(rng: np.random.Generator) -> np.ndarray:
    x, y = _grid()
    points = rng.random((int(rng.integers(8, 24)), 2))
    distance = (x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2
    first, second = _colour(rng), _colour(rng)
    return _mix(first, second, rng.random(len(points))[distance.argmin(-1)])


def _waves(rng: np.random.Generator) -> np.ndarray:
    x, y = _grid()
    total = np.zeros_like(x)
    for _ in range(3):
        fx, fy, phase = rng.uniform(-6, 6), rng.uniform(-6, 6), rng.uniform(0, 2 * np.pi)
        total += np.sin(2 * np.pi * (fx * x + fy * y) + phase)
    return _mix(_colour(rng), _colour(rng), (total + 3) / 6)


def _checks(rng: np.random.Generator) -> np.ndarray:
    x, y = _grid()
    angle, count = rng.uniform(0, np.pi), rng.uniform(3, 9)
    u = np.floor((x * np.cos(angle) - y * np.sin(angle)) * count)
    v = np.floor((x * np.sin(angle) + y * np.cos(angle)) * count)
    return _mix(_colour(rng), _colour(rng), ((u + v) % 2).astype(np.float32))
