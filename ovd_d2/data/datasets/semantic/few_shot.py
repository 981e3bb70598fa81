"""Few-shot segmentation as LSeg does it: Pascal-5i, COCO-20i and FSS-1000.

Every record is an image and one class that is on it. It brings its own two names, ``class_names``:
("others", the class), which its map counts, 0 and 1; ``few_shot_class`` is the class's number among
those of the data set. No support image is used. Classes of a test split are in no training split of
its fold. Splits are those of HSNet (Min et al. 2021): lists of images in few_shot_splits/.
"""

import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.datasets.semantic import label_sets
from ovd_d2.data.datasets.semantic.label_sets import IGNORE_LABEL
from ovd_d2.errors import OVDError
from ovd_d2.region_store.restricted_unpickler import read_restricted_pickle

logger = logging.getLogger(__name__)

EVALUATOR = "few_shot_sem_seg"
SECTION = "Few-shot segmentation"
FOLDS = 4
EPISODES = 1000  # of a test split of Pascal-5i and COCO-20i
SEED = 0  # of the episodes of COCO-20i
_SPLITS = "few_shot_splits"
_FSS_SPLITS = {"train": "trn", "val": "val", "test": "test"}
Records = list[dict[str, Any]]


def fold_classes(benchmark: str, fold: int, *, train: bool) -> list[int]:
    """The classes of a split, numbers from 0 among the benchmark's 20 or 80.

    Test classes of Pascal-5i are five in a row, 5f to 5f + 4; those of COCO-20i every fourth, f +
    4v. Training classes are the others.
    """
    count = len(_classes(benchmark))
    if benchmark == "pascal5i":
        test = range(fold * count // FOLDS, (fold + 1) * count // FOLDS)
    else:
        test = range(fold, count, FOLDS)
    return [c for c in range(count) if (c in test) is not train]


def _classes(benchmark: str) -> tuple[str, ...]:
    return label_sets.PASCAL_5I if benchmark == "pascal5i" else label_sets.COCO_20I


def register_few_shot(root: str | os.PathLike[str]) -> None:
    """Registers pascal5i_fold{0..3}_{train,val}, coco20i_fold{0..3}_{train,val} and
    fss1000_{train,val,test} under the folder ``root``.

    ``stuff_classes`` are "others" and the names of the split's own classes (of FSS-1000 once it is
    loaded); ``evaluator_type`` is "few_shot_sem_seg", ``ignore_label`` 255.
    """
    for fold in range(FOLDS):
        for train in (True, False):
            for benchmark, load, images in (
                ("pascal5i", load_pascal5i, "VOC2012/JPEGImages"),
                ("coco20i", load_coco20i, "COCO2014"),
            ):
                names = _classes(benchmark)
                own = [names[c] for c in fold_classes(benchmark, fold, train=train)]
                name = f"{benchmark}_fold{fold}_{'train' if train else 'val'}"
                DatasetCatalog.register(name, partial(load, root, fold, train=train))
                _describe(name, os.path.join(root, images))
                MetadataCatalog.get(name).set(stuff_classes=[label_sets.OTHERS, *own])
    for split in _FSS_SPLITS:
        name = f"fss1000_{split}"
        DatasetCatalog.register(name, partial(load_fss1000, root, split, name=name))
        _describe(name, os.path.join(root, "FSS-1000"))


def _describe(name: str, image_root: str) -> None:
    MetadataCatalog.get(name).set(
        ignore_label=IGNORE_LABEL,
        image_root=image_root,
        evaluator_type=EVALUATOR,
        readme_section=SECTION,
    )


def load_pascal5i(root: str | os.PathLike[str], fold: int, *, train: bool) -> Records:
    """Records of a fold.

    In a test split the pixels of VOC's outlines are ignored, and the list is repeated in its order
    up to exactly 1000 records. In a training split they are "others", as everything else is.

    Raises:
        OVDError: a list is missing or damaged.
    """
    classes = fold_classes("pascal5i", fold, train=train)
    names = label_sets.PASCAL_5I
    place = {c: number for number, c in enumerate(classes, 1)}
    folds = [f for f in range(FOLDS) if f != fold] if train else [fold]
    records = []
    for path in (
        _split_file(root, f"pascal/{'trn' if train else 'val'}/fold{f}.txt") for f in folds
    ):
        for line in _lines(path):
            image, _, value = line.partition("__")
            if not value.isdigit() or int(value) - 1 not in place:
                raise OVDError(
                    f"{path} has the line {line[:60]!r}, which is no image and class of this fold: "
                    f"use the lists that section '{SECTION}' of datasets/README.md names."
                )
            number = place[int(value) - 1]
            record = _record(
                Path(root, "VOC2012/JPEGImages", f"{image}.jpg"),
                Path(root, "VOC2012/SegmentationClassAug", f"{image}.png"),
                f"{image}__{number}",
                number,
                names[int(value) - 1],
                f"one:{int(value)}" + ("" if train else f":{IGNORE_LABEL}"),
            )
            records.append(record)
    if train or not records:
        return _not_empty(records, root)
    return [records[i % len(records)] for i in range(EPISODES)]


def load_coco20i(root: str | os.PathLike[str], fold: int, *, train: bool) -> Records:
    """Records of a fold: all pairs of an image and a class on it, or 1000 of the test split.

    A test record is a class drawn with numpy, seed 0, and an image of it, as LSeg draws them.
    Nothing is ignored.

    Raises:
        OVDError: a list is missing or damaged.
    """
    classes = fold_classes("coco20i", fold, train=train)
    path = _split_file(root, f"coco/{'trn' if train else 'val'}/fold{fold}.pkl")
    images = read_restricted_pickle(path)
    if not isinstance(images, dict) or any(not images.get(c) for c in classes):
        raise OVDError(
            f"{path} lacks images of some class of fold {fold}: use the lists that section "
            f"'{SECTION}' of datasets/README.md names."
        )
    if train:
        pairs = [(c, name) for c in classes for name in images[c]]
    else:
        rng = np.random.RandomState(SEED)  # its numbers are the protocol
        pairs = []
        for _ in range(EPISODES):
            c = classes[rng.choice(len(classes), 1, replace=False)[0]]
            pairs.append((c, images[c][rng.choice(len(images[c]), 1, replace=False)[0]]))
    folder = Path(root, "COCO2014")
    return [
        _record(
            folder / name,
            (folder / "annotations" / name).with_suffix(".png"),
            f"{Path(name).stem}__{number}",
            number,
            label_sets.COCO_20I[c],
            f"one:{c + 1}",
        )
        for c, name in pairs
        for number in (classes.index(c) + 1,)
    ]


def load_fss1000(root: str | os.PathLike[str], split: str, *, name: str) -> Records:
    """Records of "train" (520 classes), "val" or "test" (240 each): ten images per class, in the
    order of class names. Sets ``stuff_classes`` in the metadata of ``name``.

    Raises:
        OVDError: the list of classes or a class's folder is missing.
    """
    classes = sorted(_lines(_split_file(root, f"fss/{_FSS_SPLITS[split]}.txt")))
    MetadataCatalog.get(name).set(stuff_classes=[label_sets.OTHERS, *classes])
    records = []
    for number, label in enumerate(classes, 1):
        folder = Path(root, "FSS-1000", label)
        images = sorted(folder.glob("*.jpg"))
        if not images:
            raise OVDError(
                f"{folder} holds no .jpg: prepare FSS-1000 as section '{SECTION}' of "
                "datasets/README.md says."
            )
        for image in images:
            identity = f"{label}/{image.stem}"
            label_map = image.with_suffix(".png")
            records.append(_record(image, label_map, identity, number, label, "grey"))
    return _not_empty(records, root)


def _record(
    image: Path, label_map: Path, identity: str, number: int, name: str, table: str
) -> dict[str, Any]:
    return {
        "file_name": str(image),
        "sem_seg_file_name": str(label_map),
        "image_id": identity,
        "few_shot_class": number,
        "class_names": (label_sets.OTHERS, name),
        "label_values": table,
    }


def _split_file(root: str | os.PathLike[str], name: str) -> Path:
    path = Path(root, _SPLITS, name)
    if not path.is_file():
        raise OVDError(
            f"{path} is missing: get the lists as section '{SECTION}' of datasets/README.md says."
        )
    return path


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _not_empty(records: Sequence[dict[str, Any]], root: str | os.PathLike[str]) -> Records:
    if not records:
        raise OVDError(f"The lists in {Path(root, _SPLITS)} are empty: get them anew.")
    return list(records)
