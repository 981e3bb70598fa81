"""The 160 categories of the mini benchmark, frozen in ``categories.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

CATEGORIES_FILE = Path(__file__).with_name("categories.json")


@dataclass(frozen=True)
class Category:
    """One category.

    Attributes:
        name: what the class is called, lower case, may contain spaces.
        codepoints: hexadecimal code points joined by "-" that name its artwork.
        group: animal, plant, food, vehicle, clothing, leisure, device or tool.
        frequency: "r" exactly for the novel categories; "f" and "c" for the base ones.
        synonyms: the name first.
        definition: a short phrase.
        train_images: number of training images that show it (fully labelled).
    """

    name: str
    codepoints: str
    group: str
    frequency: str
    synonyms: tuple[str, ...]
    definition: str
    train_images: int

    @property
    def is_novel(self) -> bool:
        return self.frequency == "r"


@lru_cache(maxsize=1)
def load_categories() -> tuple[Category, ...]:
    """All K = 160 categories in contiguous order; category id = index + 1."""
    records = json.loads(CATEGORIES_FILE.read_text(encoding="utf-8"))["categories"]
    return tuple(Category(**{**r, "synonyms": tuple(r["synonyms"])}) for r in records)


@lru_cache(maxsize=1)
def load_clutter() -> dict[str, tuple[str, ...]]:
    """Code points of the unlabelled symbols in "train" and in "eval" images; disjoint."""
    clutter = json.loads(CATEGORIES_FILE.read_text(encoding="utf-8"))["clutter"]
    return {kind: tuple(codes) for kind, codes in clutter.items()}


def frequencies() -> tuple[str, ...]:
    """ "r", "c" or "f" for each of the K categories."""
    return tuple(category.frequency for category in load_categories())
