"""What the mini benchmark consists of: splits, sizes, seeds, and which categories go where.

Nothing here reads a file or draws a pixel: the number of objects per category is known before
anything is rendered, so the training frequencies that detectors need can be part of the package.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

VERSION = "mini-v1"
# Raised with every change that alters a built pixel or annotation; part of manifest.json.
REVISION = 1
SEED = 20240611
IMAGE_SIZE = 192  # pixels, height and width
NUM_CATEGORIES = 160
NUM_NOVEL = 40
OBJECTS_PER_IMAGE = (3, 7)  # inclusive

TRAIN_STYLES = ("openmoji", "twemoji", "fluent_3d", "fluent_flat")
HELD_OUT_STYLE = "noto"
STYLES = (*TRAIN_STYLES, HELD_OUT_STYLE)

# Relative number of objects per category in the training images. Evaluation images are balanced.
TRAIN_WEIGHTS = {"f": 1.5, "c": 0.75, "r": 1.0}


@dataclass(frozen=True)
class Split:
    """One folder of images.

    ``first_id`` is the id of its first image (ids are unique over all splits); ``backgrounds`` is
    "train" or "eval", two disjoint sets of photos and texture families.
    """

    name: str
    num_images: int
    first_id: int
    styles: tuple[str, ...]
    backgrounds: str

    @property
    def is_train(self) -> bool:
        return self.name == "train"

    def image_ids(self) -> range:
        return range(self.first_id, self.first_id + self.num_images)


SPLITS: dict[str, Split] = {
    split.name: split
    for split in (
        Split("train", 1200, 1, TRAIN_STYLES, "train"),
        Split("val", 400, 10001, (HELD_OUT_STYLE,), "eval"),
        Split("val_seen", 400, 20001, TRAIN_STYLES, "eval"),
        Split("test", 800, 30001, (HELD_OUT_STYLE,), "eval"),
    )
}

# Annotation file -> folder of images it describes.
ANNOTATION_SETS: dict[str, str] = {
    "train_all": "train",
    "train_base": "train",
    "val": "val",
    "val_seen": "val_seen",
    "test": "test",
}


def rng_for(*keys: str | int) -> np.random.Generator:
    """A random generator that depends only on the benchmark's seed and ``keys``.

    Every image has its own, so images can be drawn in any order and by any number of processes.
    """
    words = [zlib.crc32(str(key).encode()) for key in keys]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([SEED, *words])))


def plan_split(split: Split, frequencies: tuple[str, ...]) -> list[tuple[int, ...]]:
    """Decides which categories every image of ``split`` shows.

    Args:
        frequencies: "r", "c" or "f" for each of the K categories.

    Returns:
        one tuple per image with the contiguous category index of each of its objects. Categories
        are dealt from shuffled decks, so that their totals follow the weights closely.
    """
    rng = rng_for("plan", split.name)
    low, high = OBJECTS_PER_IMAGE
    counts = rng.integers(low, high + 1, size=split.num_images)
    weights = [TRAIN_WEIGHTS[f] if split.is_train else 1.0 for f in frequencies]
    deck: list[int] = []
    carried = np.zeros(len(weights))
    while len(deck) < int(counts.sum()):
        carried += weights
        whole = np.floor(carried + 1e-9).astype(int)
        carried -= whole
        hand = np.repeat(np.arange(len(weights)), whole)
        rng.shuffle(hand)
        deck.extend(hand.tolist())
    ends = np.cumsum(counts)
    return [tuple(deck[end - n : end]) for end, n in zip(ends, counts, strict=True)]


def image_counts(plan: list[tuple[int, ...]], num_categories: int = NUM_CATEGORIES) -> list[int]:
    """Number of images that show each category, K integers."""
    totals = [0] * num_categories
    for categories in plan:
        for category in set(categories):
            totals[category] += 1
    return totals
