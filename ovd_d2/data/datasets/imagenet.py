"""ImageNet-1K (ILSVRC 2012) for image-text models: labelled images in folders named by synset.

Classes are numbered in the order of their synsets, 0..999. Their names are those that CLIP's
authors edited; see :func:`~ovd_d2.language.imagenet_names.imagenet1k_names`.
"""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.errors import OVDError
from ovd_d2.files.images import SUFFIXES
from ovd_d2.language.imagenet_names import imagenet1k_names, imagenet1k_synsets

logger = logging.getLogger(__name__)

README_SECTION = "ImageNet"
NAMES_FILE = "classes.txt"
HELD_OUT = 50  # images of a class, for the strength of a linear probe
# Data set name -> (folder, which part of each class's images).
SPLITS = {
    "imagenet_train": ("train", "all"),
    "imagenet_val": ("val", "all"),
    "imagenet_probe_train": ("train", "rest"),
    "imagenet_probe_val": ("train", "held out"),
}


def register_imagenet(root: str | os.PathLike[str]) -> None:
    """Registers imagenet_train, imagenet_val, and imagenet_probe_train and imagenet_probe_val: the
    training images without and with those 50 of each class whose file names have the smallest
    sha256.

    Records have ``file_name``, ``image_id`` (number) and ``label`` 0..999; ``evaluator_type`` is
    "classification". Metadata have ``thing_classes`` when the records are loaded.

    Args:
        root: folder of all data sets; images are in ``root``/imagenet/train/n01440764/*.JPEG.
    """
    folder = Path(root) / "imagenet"
    for name, (split, part) in SPLITS.items():

        def load(name: str = name, split: str = split, part: str = part) -> list[dict[str, Any]]:
            records = load_imagenet(folder / split, part)
            names = imagenet1k_names(folder / NAMES_FILE)
            MetadataCatalog.get(name).set(thing_classes=list(names))
            return records

        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(
            image_root=str(folder / split),
            evaluator_type="classification",
            readme_section=README_SECTION,
        )


def load_imagenet(folder: Path, part: str = "all") -> list[dict[str, Any]]:
    """Records of the images in the sub-folders of ``folder``.

    Args:
        folder: with sub-folders named by synset; other files and folders are refused.
        part: of each class "all" images, those "held out", or the "rest".

    Raises:
        OVDError: no such folder, an unknown sub-folder, images outside of any, or no image.
    """
    label_of = {synset: label for label, synset in enumerate(imagenet1k_synsets())}
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise OVDError(_sentence(folder, f"cannot be read ({error.strerror})")) from error
    records: list[dict[str, Any]] = []
    classes = 0
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.name not in label_of or not entry.is_dir():
            raise OVDError(_sentence(folder, f"holds {entry.name}, which is no class of ImageNet"))
        names = _part(
            [n for n in os.listdir(entry.path) if Path(n).suffix.lower() in SUFFIXES], part
        )
        classes += bool(names)
        records += [
            {"file_name": os.path.join(entry.path, name), "label": label_of[entry.name]}
            for name in names
        ]
    if not records:
        raise OVDError(_sentence(folder, "holds no image"))
    if classes < len(label_of):
        logger.warning(
            "%s has images of %d classes; all %d compete, but accuracy is over these images alone.",
            folder, classes, len(label_of),
        )  # fmt: skip
    for number, record in enumerate(records):
        record["image_id"] = number
    return records


def _part(names: list[str], part: str) -> list[str]:
    if part == "all":
        return sorted(names)
    in_order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return sorted(in_order[:HELD_OUT] if part == "held out" else in_order[HELD_OUT:])


def _sentence(folder: Path, what: str) -> str:
    return (
        f"{folder} {what}: ImageNet's images are in folders named by synset, such as "
        f"{folder}/n01440764, as section '{README_SECTION}' of datasets/README.md says."
    )
