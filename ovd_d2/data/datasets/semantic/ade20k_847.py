"""The full ADE20K with 847 classes, as MaskFormer (Cheng et al. 2021) has prepared it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.datasets.semantic.registration import EVALUATOR, Split, load_split
from ovd_d2.errors import OVDError

NAME = "ade20k_847_sem_seg_val"
IGNORE_LABEL = 65535  # 255 is a class
CLASSES = 847
SECTION = "ADE20K"
_FOLDER = "ADE20K_2021_17_01"


def register_ade20k_847(root: str | os.PathLike[str]) -> None:
    """Registers ade20k_847_sem_seg_val; its classes are those of classes.txt in its folder, read
    when it is used. ``ignore_label`` is 65535."""
    images, maps = (f"{_FOLDER}/{kind}_detectron2/validation" for kind in ("images", "annotations"))
    split = Split(images, ((maps, ".tif", ""),), (), SECTION)
    DatasetCatalog.register(NAME, lambda: load_ade20k_847(split, root))
    MetadataCatalog.get(NAME).set(
        ignore_label=IGNORE_LABEL,
        image_root=os.path.join(root, images),
        sem_seg_root=os.path.join(root, maps),
        evaluator_type=EVALUATOR,
        readme_section=SECTION,
    )


def load_ade20k_847(split: Split, root: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Records, see ``load_split``; sets ``stuff_classes`` and ``synonyms`` in the metadata.

    Raises:
        OVDError: classes.txt is missing or has not 847 lines, or what ``load_split`` raises.
    """
    path = Path(root, _FOLDER, "classes.txt")
    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise OVDError(
            f"{path}, the list of classes, cannot be read: prepare it as section '{SECTION}' of "
            "datasets/README.md says."
        ) from error
    if len(lines) != CLASSES:
        raise OVDError(f"{path} has {len(lines)} lines; it must have one for each of 847 classes.")
    synonyms = [[word.strip() for word in line.split(",")] for line in lines]
    MetadataCatalog.get(NAME).set(stuff_classes=distinct_names(synonyms), synonyms=synonyms)
    return load_split(split, root)


def distinct_names(synonyms: Sequence[Sequence[str]]) -> list[str]:
    """A name for each class: the first of its words that no other class has as its name, or else
    all of them. Classes of fewer words choose first, so that "pier" is the one without others."""
    names = [""] * len(synonyms)
    taken: set[str] = set()
    for place in sorted(range(len(synonyms)), key=lambda i: len(synonyms[i])):
        words = synonyms[place]
        names[place] = next((word for word in words if word not in taken), ", ".join(words))
        taken.add(names[place])
    return names
