"""Registers ADE20K, VOC 2012, Pascal Context, COCO-Stuff and COCO-Object with Detectron2.

No file is touched before a data set is used, and maps are read as they are published. Cityscapes is
registered by Detectron2 itself, and so is ADE20K once more under its name for it.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.datasets.semantic import label_sets
from ovd_d2.data.datasets.semantic.label_sets import IGNORE_LABEL
from ovd_d2.errors import OVDError

logger = logging.getLogger(__name__)

EVALUATOR = "sem_seg"


@dataclass(frozen=True)
class Split:
    """One data set, in folders below the folder of all data sets.

    Attributes:
        images: folder of the .jpg files.
        maps: folder of the label maps, which have the same names; of several the first that is
            there, each with its ending and the table of its values ("": values are classes), see
            :mod:`~ovd_d2.data.datasets.semantic.label_values`.
        classes: K names.
        section: of datasets/README.md.
        listed: file of the names without ending; "": all that have a map.
        synonyms: K lists of words; (): the names alone.
    """

    images: str
    maps: tuple[tuple[str, str, str], ...]
    classes: tuple[str, ...]
    section: str
    listed: str = ""
    synonyms: tuple[tuple[str, ...], ...] = ()


def _with_background(classes: tuple[str, ...]) -> tuple[str, ...]:
    return (label_sets.BACKGROUND, *classes)


def _ade20k() -> dict[str, Split]:
    splits = {}
    for short, folder in (("train", "training"), ("val", "validation")):
        images = f"ADEChallengeData2016/images/{folder}"
        maps = ((f"ADEChallengeData2016/annotations/{folder}", ".png", "from_1"),)
        splits[f"ade20k_150_sem_seg_{short}"] = Split(
            images, maps, label_sets.ADE20K_150, "ADE20K", synonyms=label_sets.ADE20K_150_SYNONYMS
        )
        splits[f"ade20k_150_lseg_sem_seg_{short}"] = Split(
            images, maps, label_sets.ADE20K_150_LSEG, "ADE20K"
        )
    return splits


def _voc() -> dict[str, Split]:
    classes = label_sets.VOC_20
    images, lists = "VOC2012/JPEGImages", "VOC2012/ImageSets/Segmentation"
    plain, augmented = "VOC2012/SegmentationClass", "VOC2012/SegmentationClassAug"

    def split(maps: str, listed: str, table: str = "") -> Split:
        names = classes if table else _with_background(classes)
        return Split(images, ((maps, ".png", table),), names, "Pascal VOC", f"{lists}/{listed}.txt")

    return {
        "voc_2012_sem_seg_train": split(plain, "train"),
        "voc_2012_sem_seg_train_aug": split(augmented, "trainaug"),
        "voc_2012_sem_seg_val": split(plain, "val"),
        "voc_2012_20_sem_seg_val": split(plain, "val", "from_1"),
    }


def _context() -> dict[str, Split]:
    splits = {}
    for number, classes, tables in (
        (59, label_sets.CONTEXT_59, ("from_1", "context_459")),
        (60, _with_background(label_sets.CONTEXT_59), ("", "context_459_background")),
    ):
        maps = (
            ("VOC2010/SegmentationClassContext", ".png", tables[0]),
            ("VOC2010/trainval", ".mat", tables[1]),
        )
        for short in ("train", "val"):
            splits[f"pascal_context_{number}_sem_seg_{short}"] = Split(
                "VOC2010/JPEGImages",
                maps,
                classes,
                "Pascal Context",
                f"VOC2010/ImageSets/Main/{short}.txt",
            )
    return splits


def _coco() -> dict[str, Split]:
    splits = {}
    for short in ("train", "val"):
        images, maps = f"coco/{short}2017", f"coco/stuffthingmaps/{short}2017"
        for name, classes, table in (
            ("coco_stuff", label_sets.COCO_STUFF_171, "coco_stuff"),
            ("coco_object", _with_background(label_sets.COCO_80), "coco_object"),
        ):
            splits[f"{name}_sem_seg_{short}"] = Split(
                images, ((maps, ".png", table),), classes, "COCO-Stuff"
            )
    return splits


SPLITS: dict[str, Split] = {**_ade20k(), **_voc(), **_context(), **_coco()}


def register_semantic(root: str | os.PathLike[str]) -> None:
    """Registers :data:`SPLITS` under the folder ``root``.

    Their metadata have ``stuff_classes``, ``synonyms`` where there are any, ``ignore_label`` 255,
    ``image_root``, ``sem_seg_root``, ``readme_section`` and ``evaluator_type`` "sem_seg". Where
    background is a class it is class 0, named "background".
    """
    for name, split in SPLITS.items():
        image_root = os.path.join(root, split.images)
        DatasetCatalog.register(name, lambda s=split: load_split(s, root))
        MetadataCatalog.get(name).set(
            stuff_classes=list(split.classes),
            ignore_label=IGNORE_LABEL,
            image_root=image_root,
            sem_seg_root=os.path.join(root, split.maps[0][0]),
            evaluator_type=EVALUATOR,
            readme_section=split.section,
        )
        if split.synonyms:
            MetadataCatalog.get(name).set(synonyms=[list(words) for words in split.synonyms])


def load_split(split: Split, root: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """One record per image: ``file_name``, ``sem_seg_file_name``, ``image_id`` (the name without
    ending) and ``label_values`` where the maps need a table.

    Raises:
        OVDError: a folder or list is missing or empty, or a map has no image.
    """
    image_root = Path(root, split.images)
    folder, ending, table = _maps_of(split, root)
    names = _listed(split, root, folder, ending)
    images = {path.stem for path in _listing(image_root, split.section)}
    without = [name for name in names if name not in images]
    if without:
        raise OVDError(
            f"{image_root} lacks {without[0]}.jpg, of which there is a label map ({len(without)} "
            f"of {len(names)} are missing): prepare it as section '{split.section}' of "
            "datasets/README.md says."
        )
    extra = {} if not table else {"label_values": table}
    return [
        {
            "file_name": str(image_root / f"{name}.jpg"),
            "sem_seg_file_name": str(folder / f"{name}{ending}"),
            "image_id": name,
            **extra,
        }
        for name in names
    ]


def _maps_of(split: Split, root: str | os.PathLike[str]) -> tuple[Path, str, str]:
    """Folder, ending and table of the maps that are there."""
    for folder, ending, table in split.maps:
        if Path(root, folder).is_dir():
            return Path(root, folder), ending, table
    folders = " and ".join(str(Path(root, folder)) for folder, _, _ in split.maps)
    raise OVDError(
        f"{folders}, the folder of the label maps, is missing: prepare the data set as section "
        f"'{split.section}' of datasets/README.md says."
    )


def _listed(split: Split, root: str | os.PathLike[str], folder: Path, ending: str) -> list[str]:
    maps = {path.stem for path in _listing(folder, split.section) if path.name.endswith(ending)}
    if not split.listed:
        if not maps:
            raise OVDError(f"{folder} holds no label map ({ending}): prepare the data set anew.")
        return sorted(maps)
    path = Path(root, split.listed)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise OVDError(
            f"{path}, the list of images, cannot be read: prepare it as section "
            f"'{split.section}' of datasets/README.md says."
        ) from error
    names = [os.path.basename(line.split()[0]).split(".")[0] for line in lines if line.strip()]
    without = [name for name in names if name not in maps]
    if without or not names:
        what = f"{without[0]}{ending}, which" if names else "any image, as"
        raise OVDError(f"{folder} lacks {what} {path} names: prepare the data set anew.")
    return names


def _listing(folder: Path, section: str) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise OVDError(
            f"The folder {folder} is missing: prepare it as section '{section}' of "
            "datasets/README.md says."
        ) from error
